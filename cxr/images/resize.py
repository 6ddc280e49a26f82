"""Every radiograph to the same square, on the host, so that pixels travel small."""

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

    The ratio is stretched because the published data are: cropping would cut lung fields off, and
    padding would tell a network which camera took the picture. Pillow's bilinear filter widens with
    the reduction, as torchvision's antialiased resize does.
    """
    if pixels.shape == (image_px, image_px):
        return pixels
    image = Image.fromarray(pixels).resize((image_px, image_px), Image.Resampling.BILINEAR)
    return np.asarray(image)
