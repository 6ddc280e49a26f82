"""Normalization is torchvision's."""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.models import VGG16_Weights

from cxr.errors import ImageError, SettingsError
from cxr.models import transforms
from cxr.models.transforms import normalize
from cxr.recipes import Normalization


def drawn(num: int = 4, image_px: int = 32) -> torch.Tensor:
    """Grain of different means, gray levels, uint8, (num, 1, image_px, image_px)."""
    rng = np.random.default_rng(0)
    means = np.linspace(60, 190, num)[:, None, None, None]
    grain = rng.normal(means, 25, (num, 1, image_px, image_px))
    return torch.from_numpy(grain.clip(0, 255).astype(np.uint8))


# Normalization ------------------------------------------------------------------------------------


def test_imagenet_normalization_equals_torchvisions_preset() -> None:
    pixels = drawn()
    preset = VGG16_Weights.IMAGENET1K_V1.transforms(resize_size=32, crop_size=32)
    reference = preset(pixels.expand(-1, 3, -1, -1))
    torch.testing.assert_close(normalize(pixels, "imagenet"), reference)


def test_none_keeps_grey_levels() -> None:
    pixels = drawn()
    assert torch.equal(normalize(pixels, "none"), pixels.float().expand(-1, 3, -1, -1))


def test_unit_divides_by_255() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert normalize(pixels, "unit")[0, 2, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_per_image_gives_mean_0_and_standard_deviation_1() -> None:
    images = normalize(drawn(), "per_image").numpy()
    assert np.allclose(images.mean(axis=(2, 3)), 0, atol=1e-5)
    assert np.allclose(images.std(axis=(2, 3)), 1, atol=1e-5)


def test_per_image_leaves_a_blank_image_finite() -> None:
    blank = torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(normalize(blank, "per_image"), torch.zeros(1, 3, 8, 8))


def test_equalize_is_pillows_then_imagenets() -> None:
    pixels = drawn()
    flat = [np.asarray(ImageOps.equalize(Image.fromarray(image.numpy()))) for image in pixels[:, 0]]
    expected = normalize(torch.from_numpy(np.stack(flat))[:, None], "imagenet")
    torch.testing.assert_close(normalize(pixels, "equalize"), expected)
    torch.testing.assert_close(normalize(pixels.float(), "equalize"), expected)


# By version of the transform and normalization: red at (5, 7) and at (20, 3), then blue at both, of
# the ramp below, whose gray levels there are 6 and 100.
VALUES = {
    1: {
        "none": (6, 100, 6, 100),
        "unit": (0.02353, 0.39216, 0.02353, 0.39216),
        "imagenet": (-2.01516, -0.40543, -1.69987, -0.06152),
        "per_image": (-1.03217, 0.2055, -1.03217, 0.2055),
        "equalize": (-1.43291, 0.63918, -1.10728, 1.00166),
    }
}


@pytest.mark.parametrize("normalization", get_args(Normalization))
def test_a_version_of_the_transform_stands_for_these_numbers(normalization: Normalization) -> None:
    # Cached features are taken for current by the version. Where a number here is to be another,
    # raise the version. A new normalization needs a line and no other version.
    ramp = (torch.arange(1024) ** 2 // 4112).to(torch.uint8).view(1, 1, 32, 32)
    red, _, blue = normalize(ramp, normalization)[0]
    values = [channel[at].item() for channel in (red, blue) for at in ((5, 7), (20, 3))]
    expected = VALUES[transforms.VERSION][normalization]
    assert values == pytest.approx(expected, rel=0, abs=1e-5)


@pytest.mark.parametrize("normalization", get_args(Normalization))
def test_normalization_treats_each_image_alone(normalization: Normalization) -> None:
    pixels = drawn()
    images = normalize(pixels, normalization)
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[1:2], normalize(pixels[1:2], normalization))
    torch.testing.assert_close(images, normalize(pixels.float(), normalization))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (8, 8), (1, 8, 8)])
def test_pixels_without_one_channel_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"expected gray pixels \(N, 1, H, W\), found \("):
        normalize(torch.zeros(shape, dtype=torch.uint8), "unit")


@pytest.mark.parametrize("dtype", [torch.int16, torch.float64, torch.bool])
def test_pixels_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ImageError, match=f"uint8 or float32, found {dtype}"):
        normalize(torch.zeros(1, 1, 8, 8, dtype=dtype), "unit")


def test_unknown_normalization_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'zscore'\. Choices: none, unit, imagenet, per_image"):
        normalize(drawn(), "zscore")  # type: ignore[arg-type]
