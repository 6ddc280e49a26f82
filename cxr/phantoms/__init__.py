"""Synthetic radiographs with known truth: the default data set, drawn on this machine.

A phantom is a map of attenuation (chest wall, air, bone, heart) seen through a random exposure.
Pneumonia takes air out of the lungs at recorded positions; everything else is drawn the same way
for both classes, so that neither brightness nor a text marker gives the class away. Phantoms show
that a training run works. They say nothing about real patients.
"""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cxr import storage
from cxr.errors import SettingsError, StorageError
from cxr.phantoms.anatomy import Subtype, draw_chest, draw_lesions, draw_view
from cxr.phantoms.exposure import Opacity, Phantom, draw, expose

__all__ = [
    "DEFAULT",
    "FORMAT_VERSION",
    "TRUTH",
    "Opacity",
    "Phantom",
    "PhantomSettings",
    "Subtype",
    "cached",
    "data_or_default",
    "draw",
    "kept",
    "write",
]

FORMAT_VERSION = 1
"""Part of the cache key: raise it whenever the same settings would draw other pixels or files."""

TRUTH = "truth.json"
"""Name of the file at the root that says where the opacities of every radiograph are."""

_SMALLEST_PX, _LARGEST_PX = 32, 4096
_JPEG_QUALITY = 92
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


DEFAULT = PhantomSettings(num_train=128, num_val=8, num_test=80)
"""The embedded default set: half of 128 validates, and VGG16's convolutions, which pass 5 to 40
images per second on two cores, run twice over all."""


def data_or_default(data: str | None, cache: str) -> tuple[str, str]:
    """Where a job's radiographs are, and what reports call them.

    Args:
        data: a path or URI; None for the default phantoms.
        cache: where those are drawn.

    Returns:
        `data` and its last part, or the folder of the phantoms and "phantoms".

    Raises:
        StorageError: `cache` cannot be written.
    """
    if not data:
        return kept(DEFAULT, cache), "phantoms"
    return data, data.rstrip("/").rsplit("/", 1)[-1]


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

    Drawn under a temporary name and renamed when complete: an interrupted drawing is never taken
    for a finished one, and of two processes at once one wins and both return the same folder.

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
    """`cached` for a cache that may be in a bucket, to which the drawing is then uploaded.

    Raises:
        StorageError: `cache` cannot be written.
    """
    root = storage.absolute(cache)
    if "://" not in root:
        return str(cached(settings, Path(root)))
    folder = storage.join(root, "phantoms", _key(settings))
    if storage.kind(storage.join(folder, TRUTH)) == "nothing":
        with tempfile.TemporaryDirectory() as scratch:
            drawn = write(settings, Path(scratch) / "phantoms")
            files = [path for path in drawn.rglob("*.*") if path.name != TRUTH]

            def upload(path: Path) -> None:
                relative = path.relative_to(drawn).as_posix()
                storage.move_in(path, storage.join(folder, relative))

            with ThreadPoolExecutor(storage.REQUESTS_AT_ONCE) as pool:
                list(pool.map(upload, files))
            upload(drawn / TRUTH)  # Last: where it is, all others are.
    return folder


def _key(settings: PhantomSettings) -> str:
    identity = json.dumps({"format": FORMAT_VERSION, **asdict(settings)}, sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder}: cannot be written ({error.strerror or error})."
        " Name a folder that you may write to, with space left."
    )


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
                chest = draw_chest(rng)
                lesions = draw_lesions(rng, chest, subtype)
                num_own = 1 + int(rng.choice(len(_IMAGES_PER_PATIENT), p=_IMAGES_PER_PATIENT))
                for exposure in range(1, min(num_own, remaining) + 1):
                    if subtype == "normal":
                        name = f"NORMAL/{prefix}IM-{number:04d}-{exposure:04d}.jpeg"
                    else:
                        num_exposures += 1
                        name = f"PNEUMONIA/person{number}_{subtype}_{num_exposures}.jpeg"
                    view = draw_view(rng)
                    phantom = expose(chest, view, lesions, subtype, settings.image_px)
                    yield f"{split}/{name}", phantom
                    remaining -= 1
                patient += 1
