"""How an image is explained. Needs no PyTorch."""

from typing import Literal

Method = Literal["grad_cam", "occlusion"]
"""`grad_cam`: Selvaraju et al. 2017, arXiv 1610.02391, one pass back to the last maps of the
backbone. `occlusion`: Zeiler and Fergus 2014, arXiv 1311.2901, a pass for each place that is
covered, for any network, however it is built."""
