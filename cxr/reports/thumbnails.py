"""Small pictures of radiographs for a page."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from cxr.errors import ImageError

THUMBNAIL_PX: Final = 224
"""Longest side of a thumbnail."""


def thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A small JPEG of a radiograph, longest side at most `THUMBNAIL_PX`, without metadata.

    Args:
        pixels: gray levels 0-255, uint8, (H, W), bone bright.

    Raises:
        ImageError: `pixels` is not uint8 with two dimensions.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise ImageError(
            f"thumbnail of {pixels.dtype} pixels {pixels.shape}: expected gray uint8 (H, W)."
        )
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()
