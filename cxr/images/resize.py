"""Resize every image to the same square where it is read, so that few pixels travel."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize(pixels: NDArray[np.uint8], image_px: int) -> NDArray[np.uint8]:
    """Resize to a square, whatever the aspect ratio, with antialiasing.

    Args:
        pixels: gray levels, uint8, (H, W).
        image_px: side of the result.

    Returns:
        uint8 (image_px, image_px).

    The aspect ratio changes as in the published work: cropping would cut off lung fields, and
    padding would reveal which detector took the image. Pillow's bilinear filter widens with
    the reduction, as torchvision's antialiased resize does.
    """
    if pixels.shape == (image_px, image_px):
        return pixels
    image = Image.fromarray(pixels).resize((image_px, image_px), Image.Resampling.BILINEAR)
    return np.asarray(image)
