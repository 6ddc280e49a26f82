"""How radiographs differ between scanners and hospitals, as changes of their pixels.

Each change is named and has five severities. Evaluation applies them one at a time; training with
`--augmentation acquisition` draws a mixture for every image. Everything runs on the device of the
pixels, except JPEG, whose codec is the CPU's.

Source: the severities follow Hendrycks and Dietterich 2019 (arXiv 1903.12261), who grade named
corruptions from 1 to 5; severity 3 of gamma, contrast, brightness, blur, sharpening, noise and zoom
are values under which the specificity of a classifier on frozen features fell to .07-.95 on this
project's validation images.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from cxr.errors import SettingsError

REFERENCE_PX: Final = 224
"""Lengths in pixels below are of images of this side, and scale with the image."""

MIN_PX: Final = 32
"""Images with smaller sides are refused: a blur or border of a pixel or less is no change."""

VERSION: Final = 2
"""Raise it when `change` or `vary` return other numbers for the same arguments, so that features
of changed images which were cached before are not used."""

SEVERITIES: Final = (1, 2, 3, 4, 5)
MEDIUM: Final = 3


@dataclass(frozen=True)
class Change:
    """One way in which an image may differ from those that a model was trained on."""

    values: tuple[float, float, float, float, float]
    """The parameter of each severity."""
    unit: str
    """What the parameter is."""
    apply: Callable[[torch.Tensor, float, int], torch.Tensor]
    """Images with levels 0-1, float32 (N, 1, S, S), the parameter and a seed to changed images."""


def change(pixels: torch.Tensor, name: str, severity: int, seed: int = 0) -> torch.Tensor:
    """Apply one acquisition change to every image.

    Args:
        pixels: gray levels 0-255, uint8 or float32, (N, 1, S, S), bone bright.
        name: in `CHANGES`.
        severity: 1 to 5; 3 is medium.
        seed: of the noise; other changes are the same for every seed.

    Returns:
        uint8 (N, 1, S, S), rounded as a file would hold them.

    Raises:
        SettingsError: an unknown change or severity, or images that are too small.
    """
    if name not in CHANGES:
        raise SettingsError(f"unknown change {name!r}. Choices: {', '.join(CHANGES)}.")
    if severity not in SEVERITIES:
        raise SettingsError(f"severity {severity}: choose 1 to 5.")
    if pixels.shape[-1] < MIN_PX:
        raise SettingsError(
            f"images of {pixels.shape[-1]} px are too small for acquisition changes; at least"
            f" {MIN_PX} px."
        )
    chosen = CHANGES[name]
    images = chosen.apply(pixels.float() / 255, chosen.values[severity - 1], seed)
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def draw_uniform(rows: NDArray[np.int64], seed: int, epoch: int, size: int) -> NDArray[np.float32]:
    """Uniform numbers from 0 to 1 that belong to a row and an epoch, whichever worker asks.

    Args:
        rows: row numbers, (N,).
        seed: of the recipe.
        epoch: number of the pass.
        size: numbers for each row.

    Returns:
        float32 (N, size).
    """
    numbers = [np.random.default_rng((seed, epoch, int(row))).random(size) for row in rows]
    return np.asarray(numbers, np.float32).reshape(len(rows), size)


NUM_DRAWS: Final = 19
"""Uniform numbers that `vary` uses for an image."""


@dataclass(frozen=True)
class Ranges:
    """How far `vary` changes an image at strength 1. No mirroring: the side of the heart matters.

    Each change is drawn evenly between minus and plus its range, except blur, noise and frames,
    which are drawn from 0 up for a share of the images.
    """

    rotation_deg: float
    zoom: float
    """Relative change of the size."""
    shift: float
    """Share of the side."""
    contrast: float
    """Relative change, around the middle gray."""
    brightness: float
    """Share of the full range of levels."""
    aspect: float = 0.0
    """Relative change of width against height."""
    gamma: float = 0.0
    """Natural logarithm of the exponent."""
    blur: float = 0.0
    """Standard deviation in pixels of an image of `REFERENCE_PX`."""
    blur_share: float = 0.3
    """Share of the images that are blurred."""
    noise: float = 0.0
    """Standard deviation as a share of the full range of levels."""
    noise_share: float = 0.5
    """Share of the images that get noise."""
    frame: float = 0.0
    """Width of a black or white frame, as a share of the side; each side has its own."""
    frame_share: float = 0.3
    """Share of the images that get a frame: a collimator's shadow, or the border of a film."""


RANGES: Final[Mapping[str, Ranges]] = {
    "affine": Ranges(rotation_deg=7.0, zoom=0.1, shift=0.05, contrast=0.15, brightness=0.075),
    "acquisition": Ranges(
        rotation_deg=10.0, zoom=0.22, aspect=0.1, shift=0.16, contrast=0.4, brightness=0.2,
        gamma=0.6, blur=2.0, noise=0.06, frame=0.15,
    ),
}  # fmt: skip
"""The ranges of each augmentation of a recipe. Those of `affine` are the variation of positioning
and exposure in one practice. Those of `acquisition` are between hospitals: the ranges with which an
end-to-end training of this project held its specificity above .98 under noise and blur, and frames,
without which it fell to .6 under borders and collimation."""


def vary(
    pixels: torch.Tensor, draws: NDArray[np.float32], ranges: Ranges, strength: float = 1.0
) -> torch.Tensor:
    """Change every image in its own way, as another scanner or another technician would.

    Args:
        pixels: gray levels 0-255, uint8, (N, 1, S, S).
        draws: uniform numbers, (N, `NUM_DRAWS`).
        ranges: of the changes.
        strength: multiplies every range; 0 changes nothing.

    Returns:
        float32 (N, 1, S, S), gray levels 0-255; what is beyond the image's border is black.
    """
    uniform = torch.from_numpy(draws).to(pixels.device)
    signed = (uniform * 2 - 1) * strength
    column = (len(pixels), 1, 1, 1)
    zoom, aspect = 1 + ranges.zoom * signed[:, 1], 1 + ranges.aspect * signed[:, 2]
    images = _move(
        pixels.float() / 255,
        ranges.rotation_deg * torch.pi / 180 * signed[:, 0],
        zoom * aspect,
        zoom / aspect,
        ranges.shift * signed[:, 3],
        ranges.shift * signed[:, 4],
    )
    if ranges.blur:
        is_blurred = uniform[:, 5] < ranges.blur_share
        sigma = ranges.blur * strength * uniform[:, 6] * (pixels.shape[-1] / REFERENCE_PX)
        images = _blur(images, torch.where(is_blurred, sigma, 0.0))
    images = images.clamp(0, 1) ** torch.exp(ranges.gamma * signed[:, 7]).view(column)
    images = (images - 0.5) * (1 + ranges.contrast * signed[:, 8]).view(column) + 0.5
    images = images + (ranges.brightness * signed[:, 9]).view(column)
    if ranges.noise:
        is_noisy = uniform[:, 10] < ranges.noise_share
        level = torch.where(is_noisy, ranges.noise * strength * uniform[:, 11], 0.0)
        seeds = (draws[:, 12].astype(np.float64) * 2**31).astype(np.int64)
        images = images + _noise(images, seeds) * level.view(column)
    if ranges.frame:
        is_framed = uniform[:, 13] < ranges.frame_share
        widths = torch.where(is_framed[:, None], ranges.frame * strength * uniform[:, 14:18], 0.0)
        images = torch.where(_inside(images, widths), images, uniform[:, 18].round().view(column))
    return images.clamp(0, 1) * 255


def _move(
    images: torch.Tensor,
    angle: torch.Tensor,
    zoom_x: torch.Tensor,
    zoom_y: torch.Tensor,
    shift_x: torch.Tensor,
    shift_y: torch.Tensor,
) -> torch.Tensor:
    """Rotate by radians, enlarge by factors and shift by shares of the side, each (N,)."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    # A shift by a share of the side is twice that on grid_sample's axis from -1 to 1.
    matrix = torch.stack(
        [cos / zoom_x, -sin / zoom_x, shift_x * 2, sin / zoom_y, cos / zoom_y, shift_y * 2], dim=1
    ).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved: torch.Tensor = functional.grid_sample(images, grid, align_corners=False)
    return moved


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A Gaussian blur of each image by its own sigma, (N,), in pixels; 0 leaves it as it is."""
    radius = int(torch.ceil(3 * sigma.max())) if len(sigma) else 0
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3).view(-1, 1)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    # Each image is a channel with a kernel of its own.
    count = len(images)
    planes = functional.pad(images.view(1, count, *images.shape[-2:]), [radius] * 4, mode="reflect")
    planes = functional.conv2d(planes, kernel.view(count, 1, -1, 1), groups=count)
    planes = functional.conv2d(planes, kernel.view(count, 1, 1, -1), groups=count)
    return planes.view(images.shape)


def _noise(images: torch.Tensor, seeds: NDArray[np.int64]) -> torch.Tensor:
    """Standard normal noise, of each image from its own seed."""
    fields = [
        torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(int(seed)))
        for seed in seeds
    ]
    return torch.stack(fields).to(images.device) if fields else images


def _moved(
    images: torch.Tensor, *, degrees: float = 0.0, zoom: float = 1.0, shift: float = 0.0
) -> torch.Tensor:
    def same(value: float) -> torch.Tensor:
        return torch.full((len(images),), value, device=images.device)

    return _move(
        images, same(degrees * torch.pi / 180), same(zoom), same(zoom), same(shift), same(shift)
    )


def _add_noise(images: torch.Tensor, sigma: float, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return images + sigma / 255 * _noise(images, rng.integers(2**31, size=len(images)))


def _lower_resolution(images: torch.Tensor, factor: float, _: int) -> torch.Tensor:
    side = images.shape[-1]
    small = vision.resize(images, [max(8, round(side * factor))] * 2, antialias=True)
    enlarged: torch.Tensor = vision.resize(small, [side, side], antialias=True)
    return enlarged


def _compress(images: torch.Tensor, quality: float, _: int) -> torch.Tensor:
    levels = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    decoded = np.empty_like(levels)
    for i, image in enumerate(levels):
        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, "JPEG", quality=int(quality))
        decoded[i, 0] = np.asarray(Image.open(file))
    return (torch.from_numpy(decoded).float() / 255).to(images.device)


def _inside(images: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """Which pixels are inside a frame: bool, (N, 1, S, S).

    Args:
        images: (N, 1, S, S).
        widths: of the frame on the left, at the top, on the right and at the bottom, as shares of
            the side, (N, 4).
    """
    center = (torch.arange(images.shape[-1], device=images.device) + 0.5) / images.shape[-1]
    left, top, right, bottom = widths[:, :, None].unbind(dim=1)
    across = (center >= left) & (center < 1 - right)
    down = (center >= top) & (center < 1 - bottom)
    return (down[:, :, None] & across[:, None, :])[:, None]


def _frame(images: torch.Tensor, share: float, level: float) -> torch.Tensor:
    width = max(1, round(images.shape[-1] * share))
    framed = torch.full_like(images, level)
    inner = (..., slice(width, -width), slice(width, -width))
    framed[inner] = images[inner]
    return framed


def _collimate(images: torch.Tensor, share: float, _: int) -> torch.Tensor:
    """Black beyond the light field, which is rarely centered: all of the share at one corner."""
    width = max(1, round(images.shape[-1] * share))
    covered = torch.zeros_like(images)
    covered[..., width:, width:] = images[..., width:, width:]
    return covered


def _mark(images: torch.Tensor, share: float, _: int) -> torch.Tensor:
    """A white letter L, as lead markers have, at the upper left."""
    side = images.shape[-1]
    height, bar, start = max(4, round(side * share)), max(1, round(side * share / 4)), side // 16
    marked = images.clone()
    marked[..., start : start + height, start : start + bar] = 1.0
    marked[..., start + height - bar : start + height, start : start + height * 2 // 3] = 1.0
    return marked


CHANGES: Final[Mapping[str, Change]] = {
    "gamma_low": Change((0.85, 0.7, 0.6, 0.5, 0.4), "exponent", lambda x, v, _: x**v),
    "gamma_high": Change((1.2, 1.4, 1.6, 2.0, 2.5), "exponent", lambda x, v, _: x**v),
    "contrast_low": Change(
        (0.85, 0.7, 0.6, 0.5, 0.4), "factor", lambda x, v, _: vision.adjust_contrast(x, v)
    ),
    "brightness_high": Change(
        (1.1, 1.18, 1.25, 1.4, 1.6), "factor", lambda x, v, _: vision.adjust_brightness(x, v)
    ),
    "brightness_low": Change(
        (0.9, 0.82, 0.75, 0.6, 0.5), "factor", lambda x, v, _: vision.adjust_brightness(x, v)
    ),
    "blur": Change(
        (0.6, 1.0, 1.5, 2.2, 3.0),
        "sigma in pixels of 224",
        lambda x, v, _: _blur(x, torch.full((len(x),), v * x.shape[-1] / REFERENCE_PX).to(x)),
    ),
    "sharpening": Change(
        (1.5, 2.0, 3.0, 4.0, 6.0), "factor", lambda x, v, _: vision.adjust_sharpness(x, v)
    ),
    "noise": Change((3.0, 5.0, 8.0, 12.0, 18.0), "standard deviation of 255", _add_noise),
    "zoom_in": Change((1.06, 1.11, 1.17, 1.27, 1.4), "factor", lambda x, v, _: _moved(x, zoom=v)),
    "zoom_out": Change((0.93, 0.89, 0.85, 0.78, 0.72), "factor", lambda x, v, _: _moved(x, zoom=v)),
    "rotation": Change((2.0, 4.0, 6.0, 9.0, 12.0), "degrees", lambda x, v, _: _moved(x, degrees=v)),
    "shift": Change(
        (0.02, 0.04, 0.06, 0.09, 0.12), "share of the side", lambda x, v, _: _moved(x, shift=v)
    ),
    "jpeg": Change((60.0, 40.0, 25.0, 15.0, 8.0), "quality", _compress),
    "low_resolution": Change((0.7, 0.5, 0.35, 0.25, 0.18), "factor", _lower_resolution),
    "border": Change(
        (0.02, 0.04, 0.06, 0.09, 0.12), "share of the side", lambda x, v, _: _frame(x, v, 1.0)
    ),
    "collimation": Change((0.04, 0.07, 0.1, 0.14, 0.18), "share of the side", _collimate),
    "marker": Change((0.05, 0.08, 0.11, 0.15, 0.2), "height, share of the side", _mark),
}
"""Every change by its name, in the order in which tables show them."""

STRESS: Final = (
    *("gamma_low", "gamma_high", "contrast_low", "brightness_high", "brightness_low"),
    *("blur", "zoom_in", "zoom_out", "noise", "sharpening"),
)
"""The changes, at `MEDIUM` severity, by which a search ranks settings: each costs a pass over the
images. Chosen among strengths of regularization by the mean AUC under these, a frozen SqueezeNet
also had the highest AUC on images from elsewhere (.959); chosen by the clean AUC it had .948."""
