"""What a chest holds back of the beam, on a plane."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from cxr.phantoms.anatomy import Chest, View

# float32 throughout; numpy's stubs take plane times Python float for float64.
Plane: TypeAlias = npt.NDArray[np.floating[Any]]


def step(x: Plane) -> Plane:
    """0 below -1, 1 above 1, smooth between."""
    # In place: fresh planes, not arithmetic, are what a drawing would wait for.
    t = 0.5 * x
    t += 0.5
    np.clip(t, 0, 1, out=t)
    rest = -2 * t
    rest += 3
    rest *= t
    rest *= t
    return rest


def distance_to(x: Plane, y: Plane) -> Plane:
    """Of each point to the origin, float32 (H, W)."""
    # Ten times as fast as np.hypot, which guards against overflows that cannot occur here.
    return np.sqrt(x * x + y * y)


def resize(plane: Plane, side_px: int) -> Plane:
    """The plane on another grid, float32 (side_px, side_px)."""
    image = Image.fromarray(plane).resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


def clouds(rng: np.random.Generator, side_px: int, num_cells: int) -> Plane:
    """Smooth noise, float32 (H, W), about unit variance, `num_cells` grains across."""
    return resize(rng.standard_normal((num_cells, num_cells), dtype=np.float32), side_px)


def attenuate(
    chest: Chest, view: View, u: Plane, v: Plane, airless: Plane, vessels: Plane
) -> Plane:
    """How much of the beam the patient holds back; 0 is air, about 1 the mediastinum.

    Args:
        chest: the patient.
        view: the position.
        u: across the chest, float32 (H, W).
        v: down the chest, float32 (H, W).
        airless: share of the lung's air that disease has taken, 0-1, float32 (H, W).
        vessels: where vessels run, 0-1, float32 (H, W).

    Returns:
        float32 (H, W).
    """
    u = u + chest.curvature * np.sin(2.5 * v)
    across = np.abs(u)
    up = np.clip(0.5 - 0.5 * v, 0, 0.998)
    cage = 0.97 * np.sqrt(1 - up * up * (1 - chest.taper + chest.taper * up))
    lateral = np.minimum(across / cage, 1.3)
    square = lateral * lateral

    # Chest wall: a trunk, shoulders that widen it above, a neck; thickness is that of an ellipse.
    wall = 1 + chest.fat + 0.9 * step((-v - 0.85) / 0.35) + 0.05 * v
    shoulders = step((v + 1.42 - 0.4 * np.maximum(across - 0.3, 0)) / 0.05)
    neck = step((0.36 - across) / 0.06)
    chord = np.sqrt(np.maximum(1 - (across / wall) ** 2, 0))
    tissue = (0.45 + 0.55 * chord) * step((wall - across) / 0.03) * np.maximum(shoulders, neck)
    attenuation: Plane = 0.72 * tissue + chest.fat * 0.5 * tissue

    # Lungs: air between cage, mediastinum and diaphragm. The heart leaves some air behind it.
    dome = chest.domes[0] + view.breath + np.float32(chest.domes[1] - chest.domes[0]) * (u > 0)
    diaphragm = dome + 0.55 * (across - 0.42) ** 2 + 0.35 * np.maximum(across - 0.7, 0)
    middle = chest.mediastinum + chest.thymus * step((-v - 0.1) / 0.3) + 0.04 * v
    air = (
        step((cage - 0.02 - across) / 0.03)
        * step((across - middle - 0.06) / 0.06)
        * step((diaphragm - v) / 0.03)
    )
    heart_u = u - chest.heart_u + 0.21 * (chest.heart_v - v)
    heart_v = (v - chest.heart_v) / 1.15
    heart = step((chest.heart_radius - distance_to(heart_u, heart_v)) / 0.05)
    air = air * (1 - 0.72 * heart) * (0.55 + 0.45 * np.sqrt(np.maximum(1 - square, 0)))
    aerated = air * (1 - airless)
    attenuation = attenuation - view.air * aerated * (1 + view.turn * u)
    attenuation += 0.07 * heart + 0.16 * step((0.16 - across) / 0.2) * tissue
    attenuation += 0.1 * step((v - diaphragm) / 0.03) * step((cage - across) / 0.1)

    # Vessels are seen against air only, which is why they vanish inside a consolidation.
    attenuation += 0.4 * chest.vessels * vessels * aerated

    # Ribs: the back halves arch outward and down, the front halves come down toward the middle.
    in_cage = step((cage + 0.02 - across) / 0.03) * step((1.25 - v) / 0.15)
    arch = chest.rib_slope * square + 0.14 * square * square * square - 0.1 * lateral
    phase = 0.5 * chest.num_ribs
    back = np.cos(2 * np.pi * (phase * (v - arch) + chest.rib_phase))
    front = np.cos(2 * np.pi * (0.85 * phase * (v - 0.55 * (1 - lateral)) + chest.rib_phase))
    back_band = step((back - 0.2) / 0.4)
    front_band = step((front - 0.3) / 0.5) * step((lateral - 0.5) / 0.25)
    rim = 4 * back_band * (1 - back_band)
    bone = (0.75 * back_band + 0.35 * rim) * (0.7 + 0.6 * square * square) + 0.45 * front_band
    bone = bone * in_cage * step((across - 0.1) / 0.05) * (0.4 + 0.6 * step((diaphragm - v) / 0.2))
    pleura = step((0.03 - np.abs(across - cage - 0.01)) / 0.03)
    bone += 0.5 * pleura * step((0.9 - v) / 0.3) * step((v + 0.7) / 0.15)

    # Clavicles, inner ends low.
    clavicle = chest.clavicle_v - chest.clavicle_rise * (across - 0.1) + 0.05 * np.sin(6 * across)
    collar = step((0.045 - np.abs(v - clavicle)) / 0.025) * step((0.9 - across) / 0.1)
    bone += 0.9 * collar * step((across - 0.13) / 0.04)
    # Shoulder blades: a faint edge that crosses the upper outer lung.
    blade = 0.95 + 0.12 * v
    bone += (
        0.35 * step((0.03 - np.abs(across - blade)) / 0.03) * step((0.25 - np.abs(v + 0.6)) / 0.15)
    )
    attenuation += chest.rib_density * bone * (tissue > 0)

    # Spine with vertebrae, windpipe before it.
    vertebra = 0.6 + 0.4 * step(np.cos(2 * np.pi * phase * v + 1) + 0.4)
    column = step((0.12 - across) / 0.045)
    attenuation += chest.spine_density * column * vertebra * tissue
    windpipe = step((0.06 - np.abs(u - 0.03)) / 0.05) * step((-0.35 - v) / 0.15)
    attenuation -= 0.1 * windpipe * tissue

    if chest.breasts:
        radius = distance_to((across - 0.55) / 0.42, (v - chest.breast_v) / 0.38)
        attenuation += chest.breasts * step((1 - radius) / 0.25)
    if chest.bubble:
        radius = distance_to((u - 0.45) / 0.22, (v - chest.domes[1] - 0.28) / 0.14)
        attenuation -= chest.bubble * step((1 - radius) / 0.2)
    attenuation += 0.12 * view.turn * u * tissue
    return attenuation


def draw_vessels(chest: Chest, u: Plane, v: Plane) -> Plane:
    """Branches from the two hila outward, 0-1, float32 (H, W)."""
    side_px = u.shape[0]
    rng = np.random.default_rng(chest.vessel_seed)
    # 14 branches a side, each of four segments that bend and thin outward.
    side = np.repeat((-1, 1), 14)
    origin = np.stack([side * (chest.mediastinum + 0.06), rng.normal(-0.08, 0.1, 28)], axis=-1)
    bends = np.column_stack([rng.uniform(-1.35, 1.35, 28), rng.normal(0, 0.35, (28, 3))])
    heading, length = np.cumsum(bends, axis=1), rng.uniform(0.1, 0.2, (28, 1))
    steps = np.stack([side[:, None] * np.cos(heading), np.sin(heading)], axis=-1)
    path = np.concatenate([np.zeros((28, 1, 2)), np.cumsum(length[..., None] * steps, axis=1)], 1)
    # The view hardly turns, so three pixels give the way from chest to image.
    corner = (float(u[side_px // 2, 0]), float(v[0, side_px // 2]))
    extent = (float(u[0, -1] - u[0, 0]), float(v[-1, 0] - v[0, 0]))
    points = (path + origin[:, None] - corner) / extent * side_px

    image = Image.new("L", (side_px, side_px))
    pen = ImageDraw.Draw(image)
    for branch in points.reshape(28, 10).tolist():
        for generation in range(4):
            ends = branch[2 * generation : 2 * generation + 4]
            stroke = max(1, round((2.4 - generation) * side_px / 112))
            pen.line(ends, fill=230 - 45 * generation, width=stroke)
    image = image.filter(ImageFilter.BoxBlur(0.4 * side_px / 112))
    return np.asarray(image, np.float32) / 255
