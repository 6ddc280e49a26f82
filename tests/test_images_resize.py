"""Radiographs are stretched to a square as torchvision's antialiased resize does."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from cxr.images.resize import resize


def drawn(height: int, width: int) -> np.ndarray:
    """Smooth shadows, an edge and grain, gray levels, uint8, (height, width)."""
    y, x = np.mgrid[:height, :width]
    shadow = 120 + 70 * np.sin(9 * x / width) * np.cos(7 * y / height)
    shadow[:, width // 3] = 255
    grain = np.random.default_rng(0).normal(0, 12, (height, width))
    pixels: np.ndarray = (shadow + grain).clip(0, 255).astype(np.uint8)
    return pixels


@pytest.mark.parametrize(
    ("height", "width", "image_px"),
    [(400, 560, 64), (701, 499, 128), (224, 224, 128), (50, 40, 64), (300, 20, 224), (1, 1, 8)],
)
def test_resize_equals_torchvisions_antialiased_resize(
    height: int, width: int, image_px: int
) -> None:
    pixels = drawn(height, width)
    resized = resize(pixels, image_px)
    tensor = torch.from_numpy(pixels)[None]
    reference = functional.resize(tensor, [image_px, image_px], antialias=True)[0].numpy()
    assert resized.shape == (image_px, image_px)
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - reference.astype(int)).max() <= 1


def test_resize_leaves_an_image_of_the_size_alone() -> None:
    pixels = drawn(96, 96)
    assert np.array_equal(resize(pixels, 96), pixels)


def test_reduction_averages_what_it_leaves_out() -> None:
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(resize(checks, 32).astype(int) - 127).max() <= 2


def test_resize_does_not_change_its_input() -> None:
    pixels = drawn(100, 80)
    before = pixels.copy()
    resize(pixels, 32)
    assert np.array_equal(pixels, before)
