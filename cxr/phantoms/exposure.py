"""A chest as one view shows it: a radiograph and its truth."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cxr.errors import SettingsError
from cxr.phantoms.anatomy import Chest, Lesion, Subtype, View, draw_chest, draw_lesions, draw_view
from cxr.phantoms.attenuation import (
    Plane,
    attenuate,
    clouds,
    distance_to,
    draw_vessels,
    resize,
    step,
)

# The chest is drawn on a grid this much coarser than the image: no edge in it is sharper, and it
# takes a quarter of the time. Noise, wires and letters have the image's own grid.
_COARSENESS = 2


@dataclass(frozen=True)
class Opacity:
    """Where a lung holds less air than it should: an ellipse along the image's axes.

    All four are fractions of the image's side; the origin is the upper left corner. At the radii
    the opacity has fallen to about half of its density; its edge is soft and uneven.
    """

    x: float
    y: float
    radius_x: float
    radius_y: float


@dataclass(frozen=True)
class Phantom:
    """One drawn radiograph and its truth."""

    pixels: npt.NDArray[np.uint8]
    """Gray levels 0-255, uint8, (H, W), bone bright; the patient's left is on the image's right."""

    subtype: Subtype
    """`"normal"`, `"bacteria"` or `"virus"`."""

    opacities: tuple[Opacity, ...]
    """None for a normal chest, one for `"bacteria"`, two or three for `"virus"`."""


def draw(rng: np.random.Generator, subtype: Subtype, image_px: int = 224) -> Phantom:
    """Draw one radiograph.

    Generators in the same state draw the same chest under the same exposure whatever the subtype,
    so the pair of a normal and a diseased phantom differs by the opacities alone.

    Args:
        rng: where chance comes from; the only source.
        subtype: `"bacteria"` gives one large consolidation, `"virus"` two or three smaller and
            fainter ones in both lungs, `"normal"` none.
        image_px: height and width in pixels.

    Returns:
        The radiograph with the places of its opacities.

    Raises:
        SettingsError: `subtype` is none of the three.
    """
    if subtype not in ("normal", "bacteria", "virus"):
        raise SettingsError(f"unknown subtype {subtype!r}. Choices: normal, bacteria, virus.")
    chest_seed, view_seed, lesion_seed = rng.integers(2**63, size=3)
    chest = draw_chest(np.random.default_rng(chest_seed))
    view = draw_view(np.random.default_rng(view_seed))
    lesions = draw_lesions(np.random.default_rng(lesion_seed), chest, subtype)
    return expose(chest, view, lesions, subtype, image_px)


def expose(
    chest: Chest, view: View, lesions: tuple[Lesion, ...], subtype: Subtype, image_px: int
) -> Phantom:
    """Draw `chest` with `lesions` as `view` shows it, `image_px` on a side."""
    half_height = view.half_width * chest.aspect
    cos, sin = math.cos(view.angle), math.sin(view.angle)
    opacities = tuple(
        Opacity(
            x=view.x + cos * lesion.u * view.half_width - sin * lesion.v * half_height,
            y=view.y + sin * lesion.u * view.half_width + cos * lesion.v * half_height,
            radius_x=lesion.radius_x * view.half_width,
            radius_y=lesion.radius_y * view.half_width,
        )
        for lesion in lesions
    )
    grid_px = -(-image_px // _COARSENESS)
    side = (np.arange(grid_px, dtype=np.float32) + np.float32(0.5)) / np.float32(grid_px)
    x, y = side[None, :], side[:, None]
    u = (cos * (x - view.x) + sin * (y - view.y)) / view.half_width
    v = (cos * (y - view.y) - sin * (x - view.x)) / half_height

    edges = np.random.default_rng([view.seed, 1])
    airless = np.zeros((grid_px, grid_px), np.float32)
    if lesions:
        uneven = 0.22 * clouds(edges, grid_px, 9) + 0.1 * clouds(edges, grid_px, 28)
        for opacity, lesion in zip(opacities, lesions, strict=True):
            distance = distance_to(
                (x - opacity.x) / opacity.radius_x, (y - opacity.y) / opacity.radius_y
            )
            shape = step((1 - distance + uneven) / lesion.softness)
            airless = np.maximum(airless, lesion.density * shape)

    vessels = draw_vessels(chest, u, v)
    attenuation = attenuate(chest, view, u, v, airless, vessels)
    pixels = _develop(attenuation, view, image_px)
    return Phantom(pixels, subtype, opacities)


def _develop(attenuation: Plane, view: View, image_px: int) -> npt.NDArray[np.uint8]:
    """Turn attenuation into gray levels: scatter, window, gamma, noise, markers."""
    rng = np.random.default_rng([view.seed, 0])
    grid_px = attenuation.shape[0]
    texture = 0.02 * clouds(rng, grid_px, 12) + 0.012 * clouds(rng, grid_px, 60)
    attenuation = attenuation + texture * (attenuation > 0.05)
    if view.haze:
        veil = Image.fromarray(attenuation).resize((14, 14), Image.Resampling.BOX)
        scattered = resize(np.asarray(veil, np.float32), grid_px)
        attenuation = (1 - view.haze) * attenuation + view.haze * scattered
    shown = (resize(attenuation, image_px) - view.black) / view.width
    np.clip(shown, 0, 1, out=shown)
    # A table is four times as fast as a power per pixel.
    curve = np.linspace(0, 1, 4096, dtype=np.float32) ** view.gamma
    shown = curve[(shown * 4095).astype(np.intp)]
    grain = rng.standard_normal((image_px, image_px), dtype=np.float32)
    levels = 250 * shown + view.grain * grain * (0.3 + shown)
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if view.blur_px:
        image = image.filter(ImageFilter.BoxBlur(view.blur_px * image_px / 224))
    pen = ImageDraw.Draw(image)
    _add_leads(pen, view, rng, image_px)
    if view.marker:
        # Lead letters lie beside the patient, on the side that they name.
        x = 0.02 if view.marker == "R" else 0.92
        corner = (x * image_px, view.marker_y * image_px)
        pen.text(corner, view.marker, fill=240, font=_font(max(6, image_px // 18)))
    return np.asarray(image, np.uint8)


def _add_leads(
    pen: ImageDraw.ImageDraw, view: View, rng: np.random.Generator, image_px: int
) -> None:
    """Electrodes on the skin, each with its wire out of the image."""
    for _ in range(view.num_leads):
        x, y = rng.uniform(0.15, 0.85) * image_px, rng.uniform(0.15, 0.9) * image_px
        edge = image_px if x > image_px / 2 else 0
        bend = ((x + edge) / 2, y + rng.uniform(-0.2, 0.2) * image_px)
        end = (edge, y + rng.uniform(-0.4, 0.4) * image_px)
        stroke = max(1, image_px // 200)
        pen.line([(x, y), bend, end], fill=215, width=stroke, joint="curve")
        radius = 0.012 * image_px
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=225)


@lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
