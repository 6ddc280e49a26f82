"""Small pictures of radiographs for a page, and heatmaps laid over them."""

import io
from dataclasses import dataclass
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from cxr.errors import ImageError

THUMBNAIL_PX: Final = 224
"""Longest side of a thumbnail."""

COLORS: Final = "inferno"
"""Matplotlib's color map of heatmaps: readable in gray, and by the color-blind."""

STRONGEST: Final = 0.65
"""Opacity of the colors where a heatmap is 1: the radiograph is visible below them."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A radiograph on a page."""

    uri: str
    """Its last two parts are shown."""
    thumbnail: bytes
    """JPEG, from `thumbnail`."""
    heatmap: bytes = b""
    """JPEG, from `thumbnail` with a heatmap; empty if there is none."""


def thumbnail(
    pixels: npt.NDArray[np.uint8], heatmap: npt.NDArray[np.float32] | None = None
) -> bytes:
    """A small JPEG of a radiograph, longest side at most `THUMBNAIL_PX`, without metadata.

    Args:
        pixels: gray levels 0-255, uint8, (H, W), bone bright.
        heatmap: laid over it, see `overlay`.

    Raises:
        ImageError: `pixels` is not uint8 with two dimensions.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise ImageError(
            f"thumbnail of {pixels.dtype} pixels {pixels.shape}: expected gray uint8 (H, W)."
        )
    image = Image.fromarray(pixels if heatmap is None else overlay(pixels, heatmap))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()


def overlay(
    pixels: npt.NDArray[np.uint8], heatmap: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """A radiograph with a heatmap over it: the higher the value, the more of its color.

    Args:
        pixels: gray levels 0-255, uint8, (H, W), bone bright.
        heatmap: 0 to 1, float32, (H, W).

    Returns:
        RGB, uint8 (H, W, 3); where the heatmap is 0, the gray level of the radiograph.
    """
    colors = mpl.colormaps[COLORS](heatmap)[..., :3] * 255
    opacity = STRONGEST * heatmap[..., None]
    mixed: npt.NDArray[np.uint8] = (
        ((1 - opacity) * pixels[..., None] + opacity * colors).round().astype(np.uint8)
    )
    return mixed
