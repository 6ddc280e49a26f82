"""What chance decides: one chest, one view of it, its disease."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Subtype: TypeAlias = Literal["normal", "bacteria", "virus"]

# Chest coordinates: u runs across (-1 and 1 are the lateral walls of the rib cage, u > 0 is the
# patient's left and the image's right), v runs down (-1 is above the apex of the lungs, 1 at the
# costophrenic angles).


@dataclass(frozen=True)
class Chest:
    """What stays the same between two radiographs of one patient."""

    aspect: float  # height of the rib cage over its width
    taper: float  # 0-1, how fast the cage widens below the apex
    fat: float  # soft tissue around and over the cage
    mediastinum: float  # half width
    thymus: float  # half width added to the upper mediastinum, as in small children
    heart_u: float
    heart_v: float
    heart_radius: float
    domes: tuple[float, float]  # height of the diaphragm on the image's left and right
    num_ribs: float
    rib_phase: float
    rib_slope: float
    rib_density: float
    spine_density: float
    curvature: float  # scoliosis
    clavicle_v: float
    clavicle_rise: float
    breasts: float  # density; 0 for most
    breast_v: float
    bubble: float  # gas in the stomach
    vessels: float  # how far vessels stand out
    vessel_seed: int


def draw_chest(rng: np.random.Generator) -> Chest:
    """One patient."""
    uniform = rng.uniform
    dome = uniform(0.52, 0.84)
    return Chest(
        aspect=uniform(0.9, 1.12),
        taper=uniform(0.1, 1.0),
        fat=uniform(0.08, 0.24),
        mediastinum=uniform(0.15, 0.21),
        thymus=max(0.0, uniform(-0.15, 0.15)),
        heart_u=uniform(0.12, 0.24),
        heart_v=uniform(0.22, 0.4),
        heart_radius=uniform(0.33, 0.52),
        domes=(dome - uniform(0.0, 0.1), dome + uniform(-0.02, 0.08)),
        num_ribs=uniform(8.5, 10.5),
        rib_phase=uniform(0, 1),
        rib_slope=uniform(0.16, 0.36),
        rib_density=uniform(0.13, 0.24),
        spine_density=uniform(0.08, 0.2),
        curvature=uniform(-0.05, 0.05),
        clavicle_v=uniform(-0.95, -0.78),
        clavicle_rise=uniform(0.0, 0.4),
        breasts=max(0.0, uniform(-0.25, 0.14)),
        breast_v=uniform(0.3, 0.65),
        bubble=max(0.0, uniform(-0.3, 0.3)),
        vessels=uniform(0.5, 1.1),
        vessel_seed=int(rng.integers(2**63)),
    )


@dataclass(frozen=True)
class View:
    """What changes from one radiograph to the next: position, exposure, processing, markers."""

    x: float  # center of the cage, fractions of the image's side
    y: float
    angle: float  # radians, clockwise
    half_width: float  # of the cage, fraction of the image's side
    turn: float  # of the patient about the long axis; one lung looks denser than the other
    breath: float  # deep inspiration lowers the diaphragm
    air: float  # attenuation that a full lung takes away
    haze: float  # scatter: share of the light that went astray
    black: float  # attenuation shown as black
    width: float  # attenuation between black and white
    gamma: float
    grain: float  # noise, in gray levels
    blur_px: float  # at 224 px
    marker: str  # "", "L" or "R"
    marker_y: float
    num_leads: int  # electrodes with wires
    seed: int


def draw_view(rng: np.random.Generator) -> View:
    """One radiograph of a patient, whoever it is."""
    uniform = rng.uniform
    return View(
        x=uniform(0.47, 0.53),
        y=uniform(0.49, 0.57),
        angle=rng.normal(0, 0.03),
        half_width=uniform(0.33, 0.41),
        turn=rng.normal(0, 0.05),
        breath=uniform(-0.06, 0.06),
        air=uniform(0.44, 0.6),
        haze=uniform(0.0, 0.25),
        black=uniform(-0.1, 0.1),
        width=uniform(1.05, 1.5),
        gamma=uniform(0.75, 1.35),
        grain=uniform(1.0, 4.0),
        blur_px=uniform(0.0, 0.7),
        marker=str(rng.choice(["", "L", "R", "R"])),
        marker_y=uniform(0.03, 0.5),
        num_leads=int(rng.choice(4, p=(0.7, 0.1, 0.1, 0.1))),
        seed=int(rng.integers(2**63)),
    )


@dataclass(frozen=True)
class Lesion:
    """An opacity in chest coordinates; the radii are in units of the cage's half width."""

    u: float
    v: float
    radius_x: float
    radius_y: float
    density: float  # share of the air that it takes away, 0-1
    softness: float  # width of its edge over its radius


def draw_lesions(rng: np.random.Generator, chest: Chest, subtype: Subtype) -> tuple[Lesion, ...]:
    """The disease of a patient: none, one large opacity, or two or three faint ones."""
    if subtype == "normal":
        return ()
    first_side = int(rng.integers(2))
    focal = subtype == "bacteria"
    num_lesions = 1 if focal else int(rng.integers(2, 4))
    lesions = []
    for index in range(num_lesions):
        side = (first_side + index) % 2
        v = rng.uniform(-0.5, chest.domes[side] - 0.2)
        inner, outer = chest.mediastinum, _cage_half_width(v, chest)
        if side:
            # Behind the heart a consolidation can hardly be seen, so keep to its edge.
            depth = 1 - ((v - chest.heart_v) / (1.15 * chest.heart_radius)) ** 2
            inner = max(inner, chest.heart_u + chest.heart_radius * math.sqrt(max(depth, 0)) - 0.1)
        u = inner + rng.uniform(0.3, 0.7) * (outer - inner)
        radius = rng.uniform(0.24, 0.42) if focal else rng.uniform(0.16, 0.26)
        stretch = math.exp(rng.normal(0, 0.15))
        lesions.append(
            Lesion(
                u=u if side else -u,
                v=v,
                radius_x=radius * stretch,
                radius_y=radius / stretch,
                density=rng.uniform(0.6, 1.0) if focal else rng.uniform(0.5, 0.8),
                softness=rng.uniform(0.4, 0.8) if focal else rng.uniform(0.7, 1.1),
            )
        )
    return tuple(lesions)


def _cage_half_width(v: float, chest: Chest) -> float:
    up = min(max((1 - v) / 2, 0.0), 1.0)
    return 0.97 * math.sqrt(1 - up * up * (1 - chest.taper + chest.taper * up))
