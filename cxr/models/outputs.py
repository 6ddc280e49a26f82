"""What a classifier's two outputs mean, in whichever library they were computed."""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Outputs = TypeVar("Outputs", "torch.Tensor", NDArray[np.float32])


def logit(outputs: Outputs) -> Outputs:
    """Log-odds of pneumonia, float32 (N,), from the classifier's two outputs, float32 (N, 2)."""
    return outputs[:, 1] - outputs[:, 0]
