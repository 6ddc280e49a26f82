"""The data set and pretrained weights from their publishers: resumed, checked, safely unpacked.

Here are the rooms that need no decoder; `publishers`, `unpacking`, `checking` and `dataset` are
imported by their names.
"""

from cxr.download.transfer import fetch
from cxr.download.weights import features_only, imagenet_url, imagenet_weights, verified_weights

__all__ = ["features_only", "fetch", "imagenet_url", "imagenet_weights", "verified_weights"]
