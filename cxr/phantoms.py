"""Synthetic radiographs with known truth: the default data set, drawn on this machine.

A phantom is a map of attenuation (chest wall, air, bone, heart) seen through a random exposure.
Pneumonia takes air out of the lungs at recorded places; everything else is drawn the same way for
both classes, so that neither brightness nor a text marker gives the class away. Phantoms show that
a training run works. They say nothing of how well a network reads real patients.
"""

import hashlib
import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cxr import storage
from cxr.errors import SettingsError, StorageError

Subtype: TypeAlias = Literal["normal", "bacteria", "virus"]
# float32 throughout; numpy's stubs take plane times Python float for float64.
Plane: TypeAlias = npt.NDArray[np.floating[Any]]

FORMAT_VERSION = 1
"""Part of the cache key: raise it whenever the same settings would draw other pixels or files."""

TRUTH = "truth.json"
"""Name of the file at the root that says where the opacities of every radiograph are."""

_SMALLEST_PX = 32
_LARGEST_PX = 4096
_JPEG_QUALITY = 92
# The chest is drawn on a grid this much coarser than the image: no edge in it is sharper, and it
# takes a quarter of the time. Noise, wires and letters have the image's own grid.
_COARSENESS = 2
# The set of Kermany et al. 2018 has about two bacterial pneumonias (2,530) to one viral (1,345).
_SUBTYPE_CYCLE: tuple[Subtype, ...] = ("bacteria", "virus", "bacteria")
# Share of patients with 1, 2 and 3 radiographs: more repeats than the real set (where 68 to 94% of
# a class have one), so that a split that ignores patients shows.
_IMAGES_PER_PATIENT = (0.6, 0.3, 0.1)


@dataclass(frozen=True)
class PhantomSettings:
    """How many phantoms to draw, how large, and from which seed."""

    num_train: int = 240
    """Radiographs to train on."""

    num_val: int = 16
    """Radiographs in the set's own small validation folder, as large as the real one's."""

    num_test: int = 80
    """Radiographs held back for evaluation."""

    pneumonia_fraction: float = 0.625
    """Share of pneumonia in every split; 0.625 is that of the real test split."""

    image_px: int = 224
    """Height and width of a radiograph in pixels."""

    seed: int = 0
    """The same seed draws the same files, byte for byte, under the same library versions."""

    def __post_init__(self) -> None:
        if not 0 < self.pneumonia_fraction < 1:
            raise SettingsError(
                f"pneumonia_fraction: {self.pneumonia_fraction} leaves a class without radiographs."
                " Choose a share between 0 and 1."
            )
        for name, num_images in self.num_images.items():
            num_pneumonia = self.num_pneumonia(num_images)
            if not 0 < num_pneumonia < num_images:
                raise SettingsError(
                    f"num_{name}: {num_images} radiographs with pneumonia_fraction"
                    f" {self.pneumonia_fraction} leave a class without any. Draw more."
                )
        if not _SMALLEST_PX <= self.image_px <= _LARGEST_PX:
            raise SettingsError(
                f"image_px: {self.image_px} is not between {_SMALLEST_PX} and {_LARGEST_PX}."
            )
        if self.seed < 0:
            raise SettingsError(f"seed: {self.seed} is negative. Choose 0 or more.")

    @property
    def num_images(self) -> dict[str, int]:
        """Radiographs per split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}

    def num_pneumonia(self, num_images: int) -> int:
        """Radiographs with pneumonia among `num_images` of one split."""
        return round(num_images * self.pneumonia_fraction)


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
    """Grey levels 0-255, uint8, (H, W), bone bright; the patient's left is on the image's right."""

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
    chest = _draw_chest(np.random.default_rng(chest_seed))
    view = _draw_view(np.random.default_rng(view_seed))
    lesions = _draw_lesions(np.random.default_rng(lesion_seed), chest, subtype)
    return _expose(chest, view, lesions, subtype, image_px)


def write(settings: PhantomSettings, folder: Path) -> Path:
    """Write the data set in the layout and naming of the real one, plus `truth.json`.

    Some patients have two or three radiographs: the same chest and disease, positioned and exposed
    anew. No patient is in two splits.

    Args:
        settings: what to draw.
        folder: where to; made if missing.

    Returns:
        `folder`, holding `<split>/<class>/<name>.jpeg` (grayscale) and `truth.json`: the settings,
        and for every path below `folder` the subtype and the opacities (see `Opacity`).

    Raises:
        StorageError: `folder` holds files already or cannot be written.
    """
    images: dict[str, dict[str, object]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StorageError(f"{folder}: not empty. Name a fresh folder for the phantoms.")
        for path, phantom in _draw_set(settings):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(phantom.pixels).save(target, "JPEG", quality=_JPEG_QUALITY)
            opacities = [asdict(opacity) for opacity in phantom.opacities]
            images[path] = {"subtype": phantom.subtype, "opacities": opacities}
        truth = {"format": FORMAT_VERSION, "settings": asdict(settings), "images": images}
        (folder / TRUTH).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def cached(settings: PhantomSettings, cache: Path) -> Path:
    """The folder of these phantoms below `cache`, drawn on the first call.

    Drawn beside its place and renamed when complete: an interrupted drawing is never taken for a
    finished one, and of two processes at once one wins and both return the same folder.

    Args:
        settings: what to draw; every setting is part of the folder's name.
        cache: folder that outlives the run; made if missing.

    Returns:
        `cache/phantoms/<key>`, as `write` leaves it.

    Raises:
        StorageError: `cache` cannot be written.
    """
    folder = cache / "phantoms" / _key(settings)
    # Not tempfile.mkdtemp: its folder would stay closed to every other user of the cache.
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        write(settings, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            # Renaming onto a full folder fails: another process has finished the same drawing.
            if not folder.is_dir():
                raise
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def kept(settings: PhantomSettings, cache: str) -> str:
    """`cached` for a cache that may be in a bucket, to which the drawing is then brought.

    Raises:
        StorageError: `cache` cannot be written.
    """
    place = storage.absolute(cache)
    if "://" not in place:
        return str(cached(settings, Path(place)))
    folder = storage.join(place, "phantoms", _key(settings))
    if storage.kind(storage.join(folder, TRUTH)) == "nothing":
        with tempfile.TemporaryDirectory() as scratch:
            drawn = write(settings, Path(scratch) / "phantoms")
            files = [path for path in drawn.rglob("*.*") if path.name != TRUTH]

            def bring(path: Path) -> None:
                relative = path.relative_to(drawn).as_posix()
                storage.move_in(path, storage.join(folder, relative))

            with ThreadPoolExecutor(storage.REQUESTS_AT_ONCE) as pool:
                list(pool.map(bring, files))
            bring(drawn / TRUTH)  # Last: where it is, all is.
    return folder


def _key(settings: PhantomSettings) -> str:
    identity = json.dumps({"format": FORMAT_VERSION, **asdict(settings)}, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder}: cannot be written ({error.strerror or error})."
        " Name a folder that you may write to, with space left."
    )


# The set: patients and names ----------------------------------------------------------------------


def _draw_set(settings: PhantomSettings) -> Iterator[tuple[str, Phantom]]:
    """Every path below the root with its phantom, in a fixed order."""
    # Numbers run on through the splits. Bacterial and viral patients are counted apart and share
    # the numbers, and normal names come with two prefixes: all as in the real set.
    num_patients: dict[Subtype, int] = {"normal": 114, "bacteria": 0, "virus": 0}
    num_exposures = 0
    for split_index, (split, num_images) in enumerate(settings.num_images.items()):
        num_pneumonia = settings.num_pneumonia(num_images)
        for label, remaining in enumerate((num_images - num_pneumonia, num_pneumonia)):
            patient = 0
            while remaining:
                rng = np.random.default_rng([settings.seed, split_index, label, patient])
                subtype = _SUBTYPE_CYCLE[patient % len(_SUBTYPE_CYCLE)] if label else "normal"
                num_patients[subtype] += 1
                number = num_patients[subtype]
                prefix = "NORMAL2-" if number % 2 else ""
                chest = _draw_chest(rng)
                lesions = _draw_lesions(rng, chest, subtype)
                wanted = 1 + int(rng.choice(len(_IMAGES_PER_PATIENT), p=_IMAGES_PER_PATIENT))
                for exposure in range(1, min(wanted, remaining) + 1):
                    if subtype == "normal":
                        name = f"NORMAL/{prefix}IM-{number:04d}-{exposure:04d}.jpeg"
                    else:
                        num_exposures += 1
                        name = f"PNEUMONIA/person{number}_{subtype}_{num_exposures}.jpeg"
                    view = _draw_view(rng)
                    phantom = _expose(chest, view, lesions, subtype, settings.image_px)
                    yield f"{split}/{name}", phantom
                    remaining -= 1
                patient += 1


# Chance: one chest, one view of it, its disease ---------------------------------------------------
#
# Chest coordinates: u runs across (-1 and 1 are the lateral walls of the rib cage, u > 0 is the
# patient's left and the image's right), v runs down (-1 is above the apex of the lungs, 1 at the
# costophrenic angles).


@dataclass(frozen=True)
class _Chest:
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


def _draw_chest(rng: np.random.Generator) -> _Chest:
    uniform = rng.uniform
    dome = uniform(0.52, 0.84)
    return _Chest(
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
class _View:
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
    grain: float  # noise, in grey levels
    blur_px: float  # at 224 px
    marker: str  # "", "L" or "R"
    marker_y: float
    num_leads: int  # electrodes with wires
    seed: int


def _draw_view(rng: np.random.Generator) -> _View:
    uniform = rng.uniform
    return _View(
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
class _Lesion:
    """An opacity in chest coordinates; the radii are in units of the cage's half width."""

    u: float
    v: float
    radius_x: float
    radius_y: float
    density: float  # share of the air that it takes away, 0-1
    softness: float  # width of its edge over its radius


def _draw_lesions(rng: np.random.Generator, chest: _Chest, subtype: Subtype) -> tuple[_Lesion, ...]:
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
            _Lesion(
                u=u if side else -u,
                v=v,
                radius_x=radius * stretch,
                radius_y=radius / stretch,
                density=rng.uniform(0.6, 1.0) if focal else rng.uniform(0.5, 0.8),
                softness=rng.uniform(0.4, 0.8) if focal else rng.uniform(0.7, 1.1),
            )
        )
    return tuple(lesions)


# Drawing ------------------------------------------------------------------------------------------


def _expose(
    chest: _Chest, view: _View, lesions: tuple[_Lesion, ...], subtype: Subtype, image_px: int
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
        uneven = 0.22 * _clouds(edges, grid_px, 9) + 0.1 * _clouds(edges, grid_px, 28)
        for opacity, lesion in zip(opacities, lesions, strict=True):
            distance = _distance(
                (x - opacity.x) / opacity.radius_x, (y - opacity.y) / opacity.radius_y
            )
            shape = _step((1 - distance + uneven) / lesion.softness)
            airless = np.maximum(airless, lesion.density * shape)

    vessels = _vessels(chest, u, v)
    attenuation = _attenuation(chest, view, u, v, airless, vessels)
    pixels = _develop(attenuation, view, image_px)
    return Phantom(pixels, subtype, opacities)


def _step(x: Plane) -> Plane:
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


def _distance(x: Plane, y: Plane) -> Plane:
    # Ten times as fast as np.hypot, which guards against overflows that cannot occur here.
    return np.sqrt(x * x + y * y)


def _resize(plane: Plane, side_px: int) -> Plane:
    image = Image.fromarray(plane).resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


def _clouds(rng: np.random.Generator, side_px: int, num_cells: int) -> Plane:
    """Smooth noise, float32 (H, W), about unit variance, `num_cells` grains across."""
    return _resize(rng.standard_normal((num_cells, num_cells), dtype=np.float32), side_px)


def _cage_half_width(v: float, chest: _Chest) -> float:
    up = min(max((1 - v) / 2, 0.0), 1.0)
    return 0.97 * math.sqrt(1 - up * up * (1 - chest.taper + chest.taper * up))


def _attenuation(
    chest: _Chest, view: _View, u: Plane, v: Plane, airless: Plane, vessels: Plane
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
    wall = 1 + chest.fat + 0.9 * _step((-v - 0.85) / 0.35) + 0.05 * v
    shoulders = _step((v + 1.42 - 0.4 * np.maximum(across - 0.3, 0)) / 0.05)
    neck = _step((0.36 - across) / 0.06)
    chord = np.sqrt(np.maximum(1 - (across / wall) ** 2, 0))
    tissue = (0.45 + 0.55 * chord) * _step((wall - across) / 0.03) * np.maximum(shoulders, neck)
    attenuation: Plane = 0.72 * tissue + chest.fat * 0.5 * tissue

    # Lungs: air between cage, mediastinum and diaphragm. The heart leaves some air behind it.
    dome = chest.domes[0] + view.breath + np.float32(chest.domes[1] - chest.domes[0]) * (u > 0)
    diaphragm = dome + 0.55 * (across - 0.42) ** 2 + 0.35 * np.maximum(across - 0.7, 0)
    middle = chest.mediastinum + chest.thymus * _step((-v - 0.1) / 0.3) + 0.04 * v
    air = (
        _step((cage - 0.02 - across) / 0.03)
        * _step((across - middle - 0.06) / 0.06)
        * _step((diaphragm - v) / 0.03)
    )
    heart_u = u - chest.heart_u + 0.21 * (chest.heart_v - v)
    heart_v = (v - chest.heart_v) / 1.15
    heart = _step((chest.heart_radius - _distance(heart_u, heart_v)) / 0.05)
    air = air * (1 - 0.72 * heart) * (0.55 + 0.45 * np.sqrt(np.maximum(1 - square, 0)))
    aerated = air * (1 - airless)
    attenuation = attenuation - view.air * aerated * (1 + view.turn * u)
    attenuation += 0.07 * heart + 0.16 * _step((0.16 - across) / 0.2) * tissue
    attenuation += 0.1 * _step((v - diaphragm) / 0.03) * _step((cage - across) / 0.1)

    # Vessels are seen against air only, which is why they vanish inside a consolidation.
    attenuation += 0.4 * chest.vessels * vessels * aerated

    # Ribs: the back halves arch outward and down, the front halves come down toward the middle.
    in_cage = _step((cage + 0.02 - across) / 0.03) * _step((1.25 - v) / 0.15)
    arch = chest.rib_slope * square + 0.14 * square * square * square - 0.1 * lateral
    phase = 0.5 * chest.num_ribs
    back = np.cos(2 * np.pi * (phase * (v - arch) + chest.rib_phase))
    front = np.cos(2 * np.pi * (0.85 * phase * (v - 0.55 * (1 - lateral)) + chest.rib_phase))
    back_band = _step((back - 0.2) / 0.4)
    front_band = _step((front - 0.3) / 0.5) * _step((lateral - 0.5) / 0.25)
    rim = 4 * back_band * (1 - back_band)
    bone = (0.75 * back_band + 0.35 * rim) * (0.7 + 0.6 * square * square) + 0.45 * front_band
    bone = (
        bone * in_cage * _step((across - 0.1) / 0.05) * (0.4 + 0.6 * _step((diaphragm - v) / 0.2))
    )
    pleura = _step((0.03 - np.abs(across - cage - 0.01)) / 0.03)
    bone += 0.5 * pleura * _step((0.9 - v) / 0.3) * _step((v + 0.7) / 0.15)

    # Clavicles, inner ends low.
    clavicle = chest.clavicle_v - chest.clavicle_rise * (across - 0.1) + 0.05 * np.sin(6 * across)
    collar = _step((0.045 - np.abs(v - clavicle)) / 0.025) * _step((0.9 - across) / 0.1)
    bone += 0.9 * collar * _step((across - 0.13) / 0.04)
    # Shoulder blades: a faint edge that crosses the upper outer lung.
    blade = 0.95 + 0.12 * v
    bone += (
        0.35
        * _step((0.03 - np.abs(across - blade)) / 0.03)
        * _step((0.25 - np.abs(v + 0.6)) / 0.15)
    )
    attenuation += chest.rib_density * bone * (tissue > 0)

    # Spine with vertebrae, windpipe before it.
    vertebra = 0.6 + 0.4 * _step(np.cos(2 * np.pi * phase * v + 1) + 0.4)
    column = _step((0.12 - across) / 0.045)
    attenuation += chest.spine_density * column * vertebra * tissue
    windpipe = _step((0.06 - np.abs(u - 0.03)) / 0.05) * _step((-0.35 - v) / 0.15)
    attenuation -= 0.1 * windpipe * tissue

    if chest.breasts:
        radius = _distance((across - 0.55) / 0.42, (v - chest.breast_v) / 0.38)
        attenuation += chest.breasts * _step((1 - radius) / 0.25)
    if chest.bubble:
        radius = _distance((u - 0.45) / 0.22, (v - chest.domes[1] - 0.28) / 0.14)
        attenuation -= chest.bubble * _step((1 - radius) / 0.2)
    attenuation += 0.12 * view.turn * u * tissue
    return attenuation


def _vessels(chest: _Chest, u: Plane, v: Plane) -> Plane:
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


def _develop(attenuation: Plane, view: _View, image_px: int) -> npt.NDArray[np.uint8]:
    """Turn attenuation into grey levels: scatter, window, gamma, noise, markers."""
    rng = np.random.default_rng([view.seed, 0])
    grid_px = attenuation.shape[0]
    texture = 0.02 * _clouds(rng, grid_px, 12) + 0.012 * _clouds(rng, grid_px, 60)
    attenuation = attenuation + texture * (attenuation > 0.05)
    if view.haze:
        veil = Image.fromarray(attenuation).resize((14, 14), Image.Resampling.BOX)
        scattered = _resize(np.asarray(veil, np.float32), grid_px)
        attenuation = (1 - view.haze) * attenuation + view.haze * scattered
    shown = (_resize(attenuation, image_px) - view.black) / view.width
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
        place = (x * image_px, view.marker_y * image_px)
        pen.text(place, view.marker, fill=240, font=_font(max(6, image_px // 18)))
    return np.asarray(image, np.uint8)


def _add_leads(
    pen: ImageDraw.ImageDraw, view: _View, rng: np.random.Generator, image_px: int
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
