"""Acquisition changes: what each does, its severities, and the mixtures that training draws."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cxr.errors import SettingsError
from cxr.models.acquisition import (
    CHANGES,
    NUM_DRAWS,
    RANGES,
    SEVERITIES,
    Ranges,
    change,
    draw_uniform,
    vary,
)


def drawn(num: int = 2, image_px: int = 64) -> torch.Tensor:
    """A bright middle, darker to the sides, with grain, uint8, (num, 1, image_px, image_px)."""
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, image_px)
    middle = 200 * np.exp(-2 * (axis[:, None] ** 2 + axis**2)) + 20
    grain = rng.normal(0, 4, (num, 1, image_px, image_px))
    return torch.from_numpy((middle + grain).clip(0, 255).astype(np.uint8))


def blob(row: int, column: int, image_px: int = 64) -> torch.Tensor:
    """A bright square of 9 x 9 pixels on black."""
    pixels = torch.zeros(1, 1, image_px, image_px, dtype=torch.uint8)
    pixels[0, 0, row - 4 : row + 5, column - 4 : column + 5] = 255
    return pixels


def center(image: torch.Tensor) -> torch.Tensor:
    return torch.nonzero(image > 128).float().mean(dim=0)


def difference(images: torch.Tensor, pixels: torch.Tensor) -> float:
    return float((images.float() - pixels.float()).abs().mean())


# Changes, one at a time ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_a_higher_severity_changes_more(name: str) -> None:
    pixels = drawn(image_px=224)
    amounts = [difference(change(pixels, name, severity), pixels) for severity in SEVERITIES]
    assert amounts[0] > 0
    assert amounts == sorted(amounts)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_form_and_does_not_depend_on_other_images(name: str) -> None:
    pixels = drawn(3)
    images = change(pixels, name, 3)
    assert images.shape == pixels.shape
    assert images.dtype == torch.uint8
    assert torch.equal(images[:1], change(pixels[:1], name, 3))
    assert torch.equal(images, change(pixels, name, 3))


def test_noise_has_its_deviation_and_follows_its_seed() -> None:
    gray = torch.full((1, 1, 200, 200), 128, dtype=torch.uint8)
    images = change(gray, "noise", 3)
    assert float(images.float().std()) == pytest.approx(8.0, rel=0.05)
    assert not torch.equal(images, change(gray, "noise", 3, seed=1))


def test_blur_is_pillows() -> None:
    pixels = drawn(1, 224)
    blurred = Image.fromarray(pixels[0, 0].numpy()).filter(ImageFilter.GaussianBlur(1.5))
    ours = change(pixels, "blur", 3)[0, 0].float()
    inner = (ours - torch.from_numpy(np.array(blurred)).float())[8:-8, 8:-8]
    assert float(inner.abs().max()) <= 2  # Pillow approximates a Gaussian by boxes.


def test_gamma_is_a_power_of_the_level() -> None:
    gray = torch.full((1, 1, 32, 32), 64, dtype=torch.uint8)
    assert change(gray, "gamma_low", 3)[0, 0, 0, 0] == round(255 * (64 / 255) ** 0.6)
    assert change(gray, "gamma_high", 3)[0, 0, 0, 0] == round(255 * (64 / 255) ** 1.6)


def test_zoom_in_enlarges_and_zoom_out_reduces() -> None:
    square = blob(32, 32)
    areas = [int((change(square, name, 5) > 128).sum()) for name in ("zoom_in", "zoom_out")]
    assert areas[0] == pytest.approx(81 * 1.4**2, rel=0.1)
    assert areas[1] == pytest.approx(81 * 0.72**2, rel=0.15)


@pytest.mark.parametrize(
    ("name", "severity", "image_px", "message"),
    [
        ("moire", 3, 64, "unknown change 'moire'. Choices: gamma_low, "),
        ("blur", 6, 64, "severity 6: choose 1 to 5."),
        ("blur", 3, 16, "images of 16 px are too small for acquisition changes; at least 32 px."),
    ],
)
def test_an_impossible_change_is_refused(
    name: str, severity: int, image_px: int, message: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        change(torch.zeros(1, 1, image_px, image_px, dtype=torch.uint8), name, severity)
    assert message in str(raised.value)


# Mixtures for training ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANGES)
def test_a_mixture_keeps_shape_and_range(name: str) -> None:
    pixels = drawn(16)
    images = vary(pixels, draw_uniform(np.arange(16), 0, 1, NUM_DRAWS), RANGES[name])
    assert images.shape == pixels.shape
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 255


@pytest.mark.parametrize("name", RANGES)
def test_a_mixture_belongs_to_row_and_epoch_alone(name: str) -> None:
    pixels = drawn(1).expand(4, -1, -1, -1).contiguous()
    rows = np.arange(4)
    images = vary(pixels, draw_uniform(rows, 0, 1, NUM_DRAWS), RANGES[name])
    for row in rows:
        alone = vary(pixels[:1], draw_uniform(rows[row : row + 1], 0, 1, NUM_DRAWS), RANGES[name])
        torch.testing.assert_close(alone[0], images[row], atol=1e-3, rtol=0)
        assert all(difference(images[row], images[other]) > 1 for other in rows if other != row)
    later = vary(pixels, draw_uniform(rows, 0, 2, NUM_DRAWS), RANGES[name])
    assert difference(later, images) > 1


def test_affine_moves_little_and_never_mirrors() -> None:
    # Left of the middle: a shift of 5 %, a zoom of 10 % and 7 degrees move it by 8 % of the side.
    pixels = blob(32, 16)
    where = center(pixels[0, 0])
    draws = draw_uniform(np.arange(200), 0, 0, NUM_DRAWS)
    images = vary(pixels.expand(200, -1, -1, -1), draws, RANGES["affine"])
    moved = torch.stack([(center(image[0]) - where).norm() for image in images]) / 64
    assert 0.03 < moved.max() < 0.13
    areas = (images > 128).sum(dim=(1, 2, 3)) / 81
    assert 0.7 < areas.min() < 0.95
    assert 1.05 < areas.max() < 1.4


def test_affine_varies_exposure_both_ways() -> None:
    gray = torch.full((200, 1, 16, 16), 128, dtype=torch.uint8)
    draws = draw_uniform(np.arange(200), 0, 0, NUM_DRAWS)
    middle = vary(gray, draws, RANGES["affine"])[:, 0, 8, 8]
    assert 128 * 0.85 - 0.1 <= middle.min() < 128 * 0.9
    assert 128 * 1.1 < middle.max() <= 128 * 1.15 + 0.1


def test_a_share_of_the_images_is_framed_in_black_or_white() -> None:
    ranges = Ranges(rotation_deg=0, zoom=0, shift=0, contrast=0, brightness=0, frame=0.25)
    gray = torch.full((1000, 1, 32, 32), 100, dtype=torch.uint8)
    images = vary(gray, draw_uniform(np.arange(1000), 0, 0, NUM_DRAWS), ranges)[:, 0]
    changed = (images != 100).flatten(1).any(dim=1)
    assert changed.float().mean() == pytest.approx(ranges.frame_share, abs=0.05)
    assert (images[:, 8:-8, 8:-8] == 100).all()
    levels = [set(image.unique().tolist()) - {100} for image in images[changed]]
    assert levels.count({0}) + levels.count({255}) == len(levels)
    assert 0.4 < levels.count({0}) / len(levels) < 0.6
    # Each side has a width of its own.
    widths = (images[changed] != 100).float()
    assert (widths[:, 16].sum(dim=1) != widths[:, :, 16].sum(dim=1)).any()


@pytest.mark.parametrize("name", RANGES)
def test_no_strength_changes_nothing(name: str) -> None:
    pixels = drawn(4)
    images = vary(pixels, draw_uniform(np.arange(4), 0, 0, NUM_DRAWS), RANGES[name], 0.0)
    torch.testing.assert_close(images, pixels.float(), atol=0.01, rtol=0)
