"""Radiographs with a hole in their compressed data: how many are decoded without a word.

    python -m benchmarks.damage --output damage.json
    python -m benchmarks.damage --before ../old     # the same files by another version, too

A hole is 64 to 8,192 bytes, of zeros or random, at 10 to 95 % of the compressed data: what a bad
sector, a lost packet or a torn write leaves. Its size is drawn as a power of two, so that small
ones, the harder ones, are as frequent as large ones. Whole files are made from full-size originals
by encoders of several libraries; without real ones, from phantoms. A file counts as noticed if it
is not decoded, or with a warning. All sound radiographs below `--data` are decoded, too: any that
is not is a false alarm. Versions decode in a process each, in turns; of several rounds the fastest
counts, in seconds of CPU, since a machine may be shared.
"""

import dataclasses
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import jpeg_ls
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxr import cli, phantoms
from cxr.errors import CxrError, SettingsError
from tests.support.encoders import lossless_jpeg, sequential_jpeg
from tests.support.radiographs import dicom, saved

ROOT: Final = Path(__file__).parent.parent

HOLE_BYTES: Final = tuple(2**power for power in range(6, 14))
PLACES: Final = (0.10, 0.95)
"""Of the compressed data."""
QUALITIES: Final = (50, 75, 85, 95)
NUM_PICTURES: Final = 5
SIDE_PX: Final = 900
"""Longest side of the pictures that are damaged: the encoders in Python take a second for them."""

PROGRAM: Final = """
import hashlib, pickle, sys, time
sys.path.insert(0, sys.argv[1])
from cxr.images.decoding import decode
while True:
    try:
        files, image_px = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    began, rows = time.process_time(), []
    for data in files:
        decoded = decode(data, min_px=image_px)
        rows.append((decoded.status, decoded.reason, decoded.warnings, decoded.pixels))
    seconds = time.process_time() - began
    rows = [(*row[:3], row[3] is not None and hashlib.sha256(row[3]).hexdigest()) for row in rows]
    sys.stdout.buffer.write(pickle.dumps((rows, seconds)))
    sys.stdout.buffer.flush()
"""

Outcome = tuple[str, str, tuple[str, ...], str | bool]
"""Status, reason, warnings, and a digest of the pixels or `False`."""


@dataclass(frozen=True)
class DamageBenchmark:
    """How many holes, and which versions decode."""

    data: Path | None = None
    """Folder with chest_xray and fullsize. Without it CXR_REAL_DATA, or ../shared/data beside the
    repository, or where that is missing phantoms."""
    before: Path | None = None
    """Root of another version of the project, which decodes the same files."""
    num_holes: int = 500
    """Damaged files of each kind."""
    num_sound: int | None = None
    """Sound radiographs at most; all without it."""
    rounds: int = 5
    """How often each version decodes the full-size originals for its speed."""
    image_px: int = 224
    """Side that JPEG files are reduced towards."""
    seed: int = 0
    """The same seed makes the same holes."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        for field in ("num_holes", "rounds", "image_px"):
            if getattr(self, field) < 1:
                raise SettingsError(f"{field}: {getattr(self, field)} is below 1.")
        for folder in (self.data, self.before):
            if folder and not folder.is_dir():
                raise SettingsError(f"no folder {folder}.")


@dataclass(frozen=True)
class Damaged:
    """A file with a hole."""

    kind: str
    data: bytes
    num_bytes: int
    is_random: bool


# --- files ---------------------------------------------------------------------------------------


def in_12_bits(picture: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """A picture with the grain of a detector of 12 bits, (H, W)."""
    grain = np.random.default_rng(0).integers(0, 16, picture.shape)
    return (picture.astype(np.uint16) * 16 + grain).astype(np.uint16)


def jpeg(picture: NDArray[np.uint8], quality: int, progressive: bool = False) -> bytes:
    return saved(picture, "JPEG", quality=quality, progressive=progressive)


WINDOW: Final = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}


def _baseline(picture: NDArray[np.uint8], quality: int) -> tuple[bytes, bytes]:
    frame = jpeg(picture, quality)
    window: dict[str, object] = {"WindowCenter": 128, "WindowWidth": 256}
    return dicom(picture, JPEGBaseline8Bit, frame, **window), frame


def _extended(picture: NDArray[np.uint8], quality: int) -> tuple[bytes, bytes]:
    deep = in_12_bits(picture)
    frame = sequential_jpeg(deep, 12, 2 * (101 - quality))
    return dicom(deep, JPEGExtended12Bit, frame, **WINDOW), frame


def _lossless(picture: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    deep = in_12_bits(picture)
    frame = lossless_jpeg(deep, 12)
    return dicom(deep, JPEGLosslessSV1, frame, **WINDOW), frame


def _jpeg_ls(picture: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    deep = in_12_bits(picture)
    frame = bytes(jpeg_ls.encode_array(deep))
    return dicom(deep, JPEGLSLossless, frame, **WINDOW), frame


def _jpeg_2000(picture: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    deep = in_12_bits(picture)
    frame = saved(Image.fromarray(deep), "JPEG2000", no_jp2=True)
    return dicom(deep, JPEG2000Lossless, frame, **WINDOW), frame


def _rle(picture: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    header = pydicom.dcmread(BytesIO(dicom(in_12_bits(picture), **WINDOW)))
    header.compress(RLELossless, generate_instance_uid=False)
    buffer = BytesIO()
    header.save_as(buffer)
    return buffer.getvalue(), get_frame(header.PixelData, 0, number_of_frames=1)


KINDS: Final[dict[str, Callable[[NDArray[np.uint8], int], tuple[bytes, bytes]]]] = {
    "JPEG baseline": lambda picture, quality: (jpeg(picture, quality),) * 2,
    "JPEG progressive": lambda picture, quality: (jpeg(picture, quality, True),) * 2,
    "DICOM, JPEG baseline": _baseline,
    "DICOM, JPEG extended": _extended,
    "DICOM, JPEG lossless": lambda picture, _: _lossless(picture),
    "DICOM, JPEG-LS": lambda picture, _: _jpeg_ls(picture),
    "DICOM, JPEG 2000": lambda picture, _: _jpeg_2000(picture),
    "DICOM, RLE": lambda picture, _: _rle(picture),
}
"""What makes a file of a picture, (H, W), in a quality: the file, and the compressed data in it."""


def read_pictures(data: Path | None) -> list[NDArray[np.uint8]]:
    """Gray levels, uint8, (H, W), of a few originals or phantoms."""
    if data is None:
        chance = np.random.default_rng(0)
        return [phantoms.draw(chance, "bacteria", SIDE_PX).pixels for _ in range(NUM_PICTURES)]
    files = full_size(data)
    pictures = []
    for file in files[:: max(1, len(files) // NUM_PICTURES)][:NUM_PICTURES]:
        with Image.open(file) as image:
            gray = image.convert("L")
            gray.thumbnail((SIDE_PX, SIDE_PX))
            pictures.append(np.asarray(gray))
    return pictures


def full_size(data: Path) -> list[Path]:
    files = sorted(data.glob("fullsize/*/*.jpeg"))
    if not files:
        raise SettingsError(f"{data}: no JPEG files in fullsize.")
    return files


def make_holes(
    kind: str, pictures: Sequence[NDArray[np.uint8]], num_holes: int, seed: int
) -> Iterator[Damaged]:
    """Files of a kind, each with its hole."""
    files = [KINDS[kind](picture, quality) for picture in pictures for quality in QUALITIES]
    for number in range(num_holes):
        chance = random.Random(f"{seed}/{number}")
        whole, stream = chance.choice(files)
        start = whole.index(stream[:1024])
        at = start + int(len(stream) * chance.uniform(*PLACES))
        # The end of the stream stays: a file that is cut short is another kind.
        num_bytes = min(chance.choice(HOLE_BYTES), start + len(stream) - 4 - at)
        is_random = chance.random() < 0.5
        hole = chance.randbytes(num_bytes) if is_random else bytes(num_bytes)
        yield Damaged(kind, whole[:at] + hole + whole[at + num_bytes :], num_bytes, is_random)


def read_sound(data: Path | None, pictures: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    if data is None:
        return [jpeg(picture, quality) for picture in pictures for quality in QUALITIES]
    small = sorted(data.glob("chest_xray/*/*/*.jpeg"))
    return [file.read_bytes() for file in [*full_size(data), *small]]


# --- versions ------------------------------------------------------------------------------------


class Version:
    """A version of the project that decodes in its own process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Decoders in other languages say there what they meet.
            cwd="/",  # Not this project's, which Python would import from.
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )

    def decode(self, files: Sequence[bytes], image_px: int) -> tuple[list[Outcome], float]:
        """The outcome of each file, and the seconds of CPU for all."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((list(files), image_px), self._process.stdin)
        self._process.stdin.flush()
        try:
            answer: tuple[list[Outcome], float] = pickle.load(self._process.stdout)
        except EOFError:
            raise CxrError(f"the process that decodes with {self.root} ended.") from None
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# --- results -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What became of the damaged files of a kind, by version."""

    name: str
    num_files: int
    silent: tuple[int, ...]
    """Decoded without a warning."""
    silent_random: tuple[int, ...]
    """Of these, with random bytes in the hole."""
    largest_silent: tuple[int, ...]
    """Bytes of the largest hole without a warning; 0 without one."""


def count(name: str, holes: Sequence[Damaged], outcomes: Sequence[Sequence[Outcome]]) -> Kind:
    silent = [
        [
            hole
            for hole, (status, _, warnings, _) in zip(holes, answered, strict=True)
            if status == "ok" and not warnings
        ]
        for answered in outcomes
    ]
    return Kind(
        name,
        len(holes),
        tuple(len(passed) for passed in silent),
        tuple(sum(hole.is_random for hole in passed) for passed in silent),
        tuple(max((hole.num_bytes for hole in passed), default=0) for passed in silent),
    )


def print_table(rows: Sequence[Kind], names: Sequence[str]) -> None:
    print(f"\n{'decoded without a warning':26}" + "".join(f"{name:>34}" for name in names))
    for row in rows:
        cells = (
            f"{silent:8} of {row.num_files} {silent / row.num_files:7.1%}  (<= {largest:,} B)"
            for silent, largest in zip(row.silent, row.largest_silent, strict=True)
        )
        print(f"{row.name:26}" + "".join(f"{cell:>34}" for cell in cells))


def main() -> None:
    job = cli.parse(DamageBenchmark, str(__doc__))
    usual = Path(os.environ.get("CXR_REAL_DATA", ROOT.parent / "shared" / "data"))
    data = job.data or (usual if usual.is_dir() else None)
    pictures = read_pictures(data)
    names = ["before", "now"] if job.before else ["now"]
    versions = [Version(root) for root in (*([job.before] if job.before else []), ROOT)]
    rows = []
    for kind in KINDS:
        holes = list(make_holes(kind, pictures, job.num_holes, job.seed))
        files = [hole.data for hole in holes]
        rows.append(count(kind, holes, [v.decode(files, job.image_px)[0] for v in versions]))
        print(f"{kind}: {len(holes)} files decoded", flush=True)
    print_table(rows, names)

    sound = read_sound(data, pictures)[: job.num_sound]
    outcomes = [version.decode(sound, job.image_px)[0] for version in versions]
    alarms = [sum(outcome[0] != "ok" for outcome in answered) for answered in outcomes]
    for name, alarm in zip(names, alarms, strict=True):
        print(f"{name}: {alarm:,} false alarms in {len(sound):,} sound radiographs")
    changed = sum(len({outcome[3] for outcome in both}) > 1 for both in zip(*outcomes, strict=True))
    if job.before:
        print(f"other pixels than before: {changed:,}")

    originals = sound[: len(full_size(data))] if data else sound
    seconds = [float("inf")] * len(versions)
    for _, (number, version) in itertools.product(range(job.rounds), enumerate(versions)):
        seconds[number] = min(seconds[number], version.decode(originals, job.image_px)[1])
    rates = [len(originals) / fastest for fastest in seconds]
    for name, rate in zip(names, rates, strict=True):
        print(f"{name}: {rate:.1f} images per second of CPU ({len(originals)} originals)")
    if job.before:
        print(f"now / before: {rates[1] / rates[0]:.3f}")
    for version in versions:
        version.close()
    if job.output:
        results: dict[str, Any] = {
            "versions": names,
            "seed": job.seed,
            "kinds": [dataclasses.asdict(row) for row in rows],
            "sound": len(sound),
            "false_alarms": alarms,
            "reasons": [Counter(o[1] for o in answered if o[1]) for answered in outcomes],
            "other_pixels": changed,
            "images_per_cpu_s": rates,
        }
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
