"""Gray levels and their contrast."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.images.decoding.verdict import RejectedError

MIN_CONTRAST = 16
"""An image is nearly constant if the 1st and 99th percentiles of its gray levels are less than 16
levels apart. The flattest of 5,472 radiographs has 85."""


def as_bytes(brightness: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Brightness 0-1 as gray levels 0-255, uint8."""
    return np.rint(brightness * 255).astype(np.uint8)


def thinned(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Every n-th pixel of every n-th row, at least about `side` x `side` of them."""
    step = max(1, min(pixels.shape) // side)
    return pixels[::step, ::step]


def contrast(pixels: NDArray[np.uint8]) -> int:
    """Gray levels between the 1st and the 99th percentile."""
    counts = np.bincount(thinned(pixels, 64).ravel(), minlength=256).cumsum()
    low, high = np.searchsorted(counts, counts[-1] * np.array([0.01, 0.99]))
    return int(high - low)


def refuse_flat(pixels: NDArray[np.uint8]) -> None:
    """Refuse an image without contrast.

    Raises:
        RejectedError: it is nearly constant.
    """
    if contrast(pixels) < MIN_CONTRAST:
        raise RejectedError("refused", "a nearly constant picture")
