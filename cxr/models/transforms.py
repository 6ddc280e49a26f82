"""From gray pixels to the scale that a backbone was trained on, in batches on the device."""

from typing import Final, get_args

import torch
from torchvision.transforms.v2.functional import equalize

from cxr.errors import ImageError, SettingsError
from cxr.recipes import Normalization

# Raise it when `normalize` returns other numbers for an existing normalization, so that features
# which were cached before are not used. A new normalization does not need it.
VERSION: Final = 1

# Channel statistics of ImageNet as in torchvision's classification presets.
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def normalize(pixels: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """Bring gray pixels onto the scale that a backbone was trained on.

    Args:
        pixels: gray levels 0-255, uint8 or float32, (N, 1, H, W), bone bright.
        normalization: `"none"`, `"unit"`, `"imagenet"`, `"per_image"` or `"equalize"`.

    Returns:
        float32 (N, 3, H, W); the gray plane repeated, since the backbones expect RGB.

    Raises:
        ImageError: `pixels` is neither uint8 nor float32, or does not have one channel.
        SettingsError: an unknown normalization.

    Source: channel statistics of ImageNet as in torchvision's classification presets; histogram
    equalization as torchvision's and Pillow's.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 1:
        raise ImageError(f"expected gray pixels (N, 1, H, W), found {tuple(pixels.shape)}.")
    if pixels.dtype not in (torch.uint8, torch.float32):
        raise ImageError(f"expected gray levels as uint8 or float32, found {pixels.dtype}.")
    gray = pixels.float()
    match normalization:
        case "none":
            return gray.expand(-1, 3, -1, -1)
        case "unit":
            return (gray / 255).expand(-1, 3, -1, -1)
        case "imagenet":
            return _as_imagenet(gray)
        case "per_image":
            mean = gray.mean(dim=(2, 3), keepdim=True)
            std = gray.std(dim=(2, 3), keepdim=True, correction=0)
            return ((gray - mean) / std.clamp(min=1.0)).expand(-1, 3, -1, -1)
        case "equalize":
            return _as_imagenet(equalize(gray.round().clamp(0, 255).to(torch.uint8)).float())
        case _:
            choices = ", ".join(get_args(Normalization))
            raise SettingsError(f"unknown normalization {normalization!r}. Choices: {choices}.")


def _as_imagenet(gray: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor(IMAGENET_MEAN, device=gray.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=gray.device).view(1, 3, 1, 1)
    return (gray / 255 - mean) / std
