"""Thousands of damaged radiographs through `cxr.images.decoding`, which promises never to fail.

    python -m benchmarks.fuzz --output fuzz.json
    python -m benchmarks.fuzz --only 1234            # repeat one mutation and describe it

Intact files are damaged at random, headers more than bodies: real JPEG and DICOM files, and small
files of every format in many encodings, made from one radiograph so that most decodes take
milliseconds. Without real files, phantoms are drawn. A mutation is determined by `--seed`, its own
number and the files.

The address space of each worker process limits a decode to 1 GiB; running out of memory is a valid
reason for `decode` to report. The worker announces a mutation before it decodes it. A decode that
takes more than 10 s is killed (hung). If the process ends, the mutation has crashed it (died), and
a new process continues with the next one. An exception that escapes, or a result that breaks the
promises of `Decoded`, counts as raised. Any of the three makes the exit code 1.
"""

import dataclasses
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final, Literal, get_args

import jpeg_ls
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxr import cli, phantoms
from cxr.errors import CxrError, SettingsError
from cxr.images.decoding import Decoded, decode
from tests.support.encoders import (
    CHANNELS,
    bmp_with_alpha,
    deep_png,
    deep_tiff,
    in_channels,
    lossless_jpeg,
    sequential_jpeg,
)
from tests.support.radiographs import dicom, saved

Kind = Literal["jpeg", "png", "tiff", "bmp", "dicom"]
Outcome = Literal["pixels", "refused", "unreadable", "hung", "died", "raised"]

BAD: Final = ("hung", "died", "raised")
HANG_S: Final = 10.0
MEMORY_BYTES: Final = 2**30
HEADER_BYTES: Final = (64, 256, 1024)
HEADER_SHARE: Final = 0.7
"""Shares of the damaged positions that lie in the first 64, 256 or 1024 bytes."""
LARGE_BYTES: Final = 120_000
LARGE_SHARE: Final = 0.05
"""Files above `LARGE_BYTES` take up to 0.3 s to decode, so they have a small share of their kind's
mutations."""


@dataclass(frozen=True)
class FuzzJob:
    """What to damage, and how often."""

    data: Path | None = None
    """Folder with chest_xray, fullsize and dicom. Without it CXR_REAL_DATA, or ../shared/data
    beside the repository, or where that is missing phantoms."""
    num_mutations: int = 20_000
    """Damaged files to decode."""
    seed: int = 0
    """The same seed damages the same files in the same way."""
    workers: int = 2
    """Processes that decode."""
    only: int | None = None
    """Number of a single mutation to repeat."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        for field in ("num_mutations", "workers"):
            if getattr(self, field) < 1:
                raise SettingsError(f"{field}: {getattr(self, field)} is below 1.")
        if self.data and not self.data.is_dir():
            raise SettingsError(f"data: no folder {self.data}.")


@dataclass(frozen=True)
class Seed:
    """An intact file, to be damaged."""

    kind: Kind
    name: str
    data: bytes


@dataclass(frozen=True)
class Mutation:
    """A damaged file and what was done to it."""

    seed: Seed
    data: bytes
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """The outcome of one mutation."""

    number: int
    kind: Kind
    outcome: Outcome
    detail: str
    """The reason, the exception, or the signal."""
    seconds: float
    memory_mib: float
    """Peak memory of the worker during the decode, less its memory before."""


# --- intact files --------------------------------------------------------------------------------


def read_seeds(data: Path | None) -> list[Seed]:
    """Real files below `data`, else phantoms, and those made from the first of them."""
    if data:
        jpegs = sorted(data.glob("chest_xray/train/*/*.jpeg"))
        originals = sorted(data.glob("fullsize/*/*.jpeg"))
        dicoms = sorted(data.glob("dicom/*.dcm"))
        seeds = [
            *(_read("jpeg", file, data) for file in _evenly(jpegs, 6) + _evenly(originals, 6)),
            *(_read("dicom", file, data) for file in dicoms),
        ]
        if not any(seed.kind == "jpeg" for seed in seeds):
            raise SettingsError(f"{data}: no JPEG files in chest_xray/train or fullsize.")
    else:
        seeds = [
            Seed("jpeg", f"phantom {px} px", saved(_phantom(px), "JPEG", quality=92))
            for px in (224, 224, 224, 1500)
        ]
    with Image.open(BytesIO(seeds[0].data)) as image:
        # Sides that differ and are not a multiple of a block.
        picture = image.convert("L").resize((100, 116))
    made = (made_jpegs, made_pngs, made_tiffs, made_bmps, made_dicoms)
    return [*seeds, *(seed for make in made for seed in make(picture))]


def _read(kind: Kind, file: Path, data: Path) -> Seed:
    return Seed(kind, str(file.relative_to(data)), file.read_bytes())


def _evenly(files: Sequence[Path], count: int) -> list[Path]:
    return list(files[:: max(1, len(files) // count)][:count])


def _phantom(px: int) -> Image.Image:
    return Image.fromarray(phantoms.draw(np.random.default_rng(px), "bacteria", px).pixels)


def deepened(picture: Image.Image) -> NDArray[np.uint16]:
    return np.asarray(picture).astype(np.uint16) * 16


def made_jpegs(picture: Image.Image) -> list[Seed]:
    oriented = Image.Exif()
    oriented[0x0112] = 6
    color = picture.convert("RGB")
    made = {
        "gray": saved(picture, "JPEG"),
        "color": saved(color, "JPEG"),
        "progressive": saved(color, "JPEG", progressive=True),
        "restart markers": saved(picture, "JPEG", restart_marker_blocks=4),
        "oriented": saved(picture, "JPEG", exif=oriented),
        "lossless": lossless_jpeg(np.asarray(picture), 8),
        "lossless of 12 bit": lossless_jpeg(deepened(picture), 12, restart_rows=20),
        "12 bit": sequential_jpeg(deepened(picture), 12, 24),
    }
    return [Seed("jpeg", f"made {name}", data) for name, data in made.items()]


def made_pngs(picture: Image.Image) -> list[Seed]:
    gray = np.asarray(picture)
    alpha = picture.convert("LA")
    alpha.putalpha(Image.fromarray(np.maximum(gray, 100)))
    commented = PngInfo()
    commented.add_text("Comment", "a radiograph " * 20, zip=True)
    commented.add_itxt("Title", "a radiograph", zip=True)
    oriented = Image.Exif()
    oriented[0x0112] = 6
    made = {
        "8 bit": saved(picture, "PNG"),
        "16 bit": saved(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        "12 of 16 bit": saved(Image.fromarray(gray.astype(np.uint16) * 16), "PNG"),
        "palette": saved(picture.convert("P"), "PNG"),
        "palette transparent": saved(picture.convert("P"), "PNG", transparency=b"\xff\x80\0"),
        "gray transparent": saved(picture, "PNG", transparency=0),
        "gray alpha": saved(alpha, "PNG"),
        "color": saved(picture.convert("RGB"), "PNG"),
        "16 bit color": deep_png(in_channels(deepened(picture), "rgb")),
        "16 bit gray alpha": deep_png(in_channels(deepened(picture), "gray and alpha")),
        "color alpha": saved(alpha.convert("RGBA"), "PNG"),
        "comments": saved(picture, "PNG", pnginfo=commented, exif=oriented),
        "animated": saved(picture, "PNG", save_all=True, append_images=[picture.rotate(9)]),
    }
    return [Seed("png", f"made {name}", data) for name, data in made.items()]


def made_tiffs(picture: Image.Image) -> list[Seed]:
    deep = deepened(picture)
    compressions = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    made = {name: saved(picture, "TIFF", compression=name) for name in compressions}
    made["jpeg in color"] = saved(picture.convert("RGB"), "TIFF", compression="jpeg")
    for channels in CHANNELS:
        levels = in_channels(deep, channels)
        made[f"16 bit {channels}"] = deep_tiff(levels)
        made[f"16 bit {channels} deflated"] = deep_tiff(levels, ">", deflated=True)
    return [Seed("tiff", f"made {name}", data) for name, data in made.items()]


def made_bmps(picture: Image.Image) -> list[Seed]:
    gray = np.asarray(picture)
    made = {
        "gray": saved(picture, "BMP"),
        "color": saved(picture.convert("RGB"), "BMP"),
        "alpha": bmp_with_alpha(np.dstack((gray, gray, gray, np.zeros_like(gray)))),
    }
    return [Seed("bmp", f"made {name}", data) for name, data in made.items()]


def made_dicoms(picture: Image.Image) -> list[Seed]:
    gray = np.asarray(picture)
    deep = gray.astype(np.uint16) * 16
    jpeg, j2k = saved(picture, "JPEG"), saved(picture, "JPEG2000", no_jp2=True)
    deep_j2k = saved(Image.fromarray(deep), "JPEG2000", no_jp2=True)
    window: dict[str, Any] = {
        "WindowCenter": 2000,
        "WindowWidth": 3800,
        "BitsStored": 12,
        "HighBit": 11,
    }
    offsets: dict[str, Any] = dict(
        zip(
            ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
            encapsulate_extended([jpeg, jpeg]),
            strict=True,
        )
    )
    made = {
        "explicit": dicom(deep, ExplicitVRLittleEndian, **window),
        "implicit": dicom(deep, ImplicitVRLittleEndian, **window),
        "big endian": dicom(deep, ExplicitVRBigEndian, **window),
        "deflated": dicom(deep, DeflatedExplicitVRLittleEndian, **window),
        "rle": _rle(dicom(deep, ExplicitVRLittleEndian, **window)),
        "jpeg baseline": dicom(gray, JPEGBaseline8Bit, jpeg),
        "jpeg extended": dicom(deep, JPEGExtended12Bit, sequential_jpeg(deep, 12, 24), **window),
        "jpeg lossless": dicom(deep, JPEGLosslessSV1, lossless_jpeg(deep, 12), **window),
        "jpeg-ls": dicom(deep, JPEGLSLossless, bytes(jpeg_ls.encode_array(deep)), **window),
        "jpeg 2000": dicom(gray, JPEG2000Lossless, j2k),
        "jpeg 2000 deep": dicom(deep, JPEG2000Lossless, deep_j2k, **window),
        "jpeg 2000 in boxes": dicom(gray, JPEG2000Lossless, saved(picture, "JPEG2000")),
        "8 bit without window": dicom(gray, ExplicitVRLittleEndian),
        "white is zero": dicom(
            deep,
            ExplicitVRLittleEndian,
            PhotometricInterpretation="MONOCHROME1",
            PixelPaddingValue=0,
        ),
        "signed": dicom(
            deep.astype(np.int16) - 2000,
            ExplicitVRLittleEndian,
            RescaleSlope=2,
            RescaleIntercept=4000,
            WindowCenter=4000,
            WindowWidth=7600,
            VOILUTFunction="SIGMOID",
        ),
        "tables": dicom(
            gray,
            ExplicitVRLittleEndian,
            ModalityLUTSequence=DicomSequence([_table(256, 12, "US")]),
            VOILUTSequence=DicomSequence([_table(4096, 16, "OW")]),
        ),
        "two frames": dicom(
            gray,
            ExplicitVRLittleEndian,
            NumberOfFrames=2,
            PixelData=2 * gray.tobytes(),
        ),
        "frames by offset": dicom(gray, JPEGBaseline8Bit, jpeg, NumberOfFrames=2, **offsets),
        "without preamble": dicom(deep, ExplicitVRLittleEndian, **window)[132:],
    }
    return [Seed("dicom", f"made {name}", data) for name, data in made.items()]


def _table(entries: int, bits: int, kind: str) -> Dataset:
    levels = np.linspace(0, 2**bits - 1, entries).astype("<u2")
    item = Dataset()
    item.LUTDescriptor = [entries, 0, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = levels.tobytes() if kind == "OW" else levels.tolist()
    item["LUTData"].VR = kind
    return item


def _rle(data: bytes) -> bytes:
    dataset = pydicom.dcmread(BytesIO(data))
    dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


# --- damage --------------------------------------------------------------------------------------


def mutate(seeds: Sequence[Seed], seed: int, number: int) -> Mutation:
    """The damaged file with this number: one to eight changes to a file chosen at random."""
    chance = random.Random(f"{seed}/{number}")
    chosen = _choose(seeds, chance)
    data = bytearray(chosen.data)
    steps = []
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        [step] = chance.choices(STEPS, weights=STEP_WEIGHTS)
        if data:
            steps.append(step(data, chance, seeds))
    if chosen.kind == "png" and chance.random() < 0.8:
        # Otherwise decoders would stop at the wrong checksum.
        _mend_checksums(data)
        steps.append("mend checksums")
    return Mutation(chosen, bytes(data), tuple(steps))


def _choose(seeds: Sequence[Seed], chance: random.Random) -> Seed:
    kind = chance.choice(get_args(Kind))
    small = [seed for seed in seeds if seed.kind == kind and len(seed.data) <= LARGE_BYTES]
    large = [seed for seed in seeds if seed.kind == kind and len(seed.data) > LARGE_BYTES]
    return chance.choice(large if large and chance.random() < LARGE_SHARE else small)


def _place(data: bytearray, chance: random.Random) -> int:
    if chance.random() >= HEADER_SHARE:
        return chance.randrange(len(data))
    start = 128 if data[128:132] == b"DICM" else 0  # The preamble has no meaning.
    return chance.randrange(start, min(len(data), start + chance.choice(HEADER_BYTES)))


def _length(chance: random.Random) -> int:
    """Length of a slice: mostly a few bytes, rarely thousands."""
    return 2 ** chance.choice((0, 1, 2, 3, 5, 8, 12)) + chance.randrange(4)


def _flip_bits(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    places = [_place(data, chance) for _ in range(chance.choice((1, 1, 4, 32)))]
    for at in places:
        data[at] ^= 1 << chance.randrange(8)
    return f"flip a bit at each of {places}"


def _overwrite(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    at, length = _place(data, chance), _length(chance)
    length = min(length, len(data) - at)
    written = chance.choice((b"\0" * length, b"\xff" * length, chance.randbytes(length)))
    data[at : at + length] = written
    return f"overwrite {length} bytes at {at} with {written[:4].hex()}..."


def _write_integer(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    at, size = _place(data, chance), chance.choice((2, 4))
    top = 2 ** (8 * size)
    # 8192 x 8192 pixels is close to the largest picture that is decoded.
    number = chance.choice((0, 1, top // 2 - 1, top // 2, top - 1, 8192))
    order: Literal["little", "big"] = chance.choice(("little", "big"))
    data[at : at + size] = number.to_bytes(size, order)
    return f"write {number} at {at} in {size} bytes, {order} endian"


def _insert(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    at, length = _place(data, chance), _length(chance)
    data[at:at] = chance.randbytes(length)
    return f"insert {length} random bytes at {at}"


def _delete(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    at, length = _place(data, chance), _length(chance)
    del data[at : at + length]
    return f"delete {length} bytes at {at}"


def _duplicate(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    source, at, length = _place(data, chance), _place(data, chance), _length(chance)
    times = chance.choice((1, 1, 2, 100))
    data[at:at] = data[source : source + length] * times
    return f"insert {length} bytes from {source} at {at}, {times} times"


def _truncate(data: bytearray, chance: random.Random, _: Sequence[Seed]) -> str:
    at = chance.randrange(len(data))
    del data[at:]
    return f"cut at {at}"


def _splice(data: bytearray, chance: random.Random, seeds: Sequence[Seed]) -> str:
    other = _choose(seeds, chance)
    at, start = _place(data, chance), chance.randrange(len(other.data))
    data[at:] = other.data[start:]
    return f"from {at} on, {other.name} from {start} on"


Step = Callable[[bytearray, random.Random, Sequence[Seed]], str]

STEPS: Final[tuple[Step, ...]] = (
    _flip_bits, _overwrite, _write_integer, _insert, _delete, _duplicate, _truncate, _splice,
)  # fmt: skip
STEP_WEIGHTS: Final = (5, 4, 6, 2, 2, 2, 1, 1)
# Few are truncated: most truncated files are soon rejected as too short.


def _mend_checksums(data: bytearray) -> None:
    """Correct the checksum of each PNG chunk, as far as the chunk lengths are valid."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(memoryview(data)[at + 4 : end]))
        at = end + 4


# --- a worker ------------------------------------------------------------------------------------


def work(
    pipe: "Connection[object, object]",
    seeds: Sequence[Seed],
    seed: int,
    numbers: range,
    silent: bool,
) -> None:
    """Decode mutations; send the number of each before decoding, and its trial afterwards."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if silent:  # Native decoders write messages there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    for whole in seeds:  # Import the decoders that load lazily.
        if len(whole.data) <= LARGE_BYTES:
            decode(whole.data, any_body_part=True, any_view=True)
    most = _memory("VmSize") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in numbers:
        mutation = mutate(seeds, seed, number)
        pipe.send(number)
        Path("/proc/self/clear_refs").write_text("5")  # Resets VmHWM.
        before = _memory("VmRSS")
        started = time.perf_counter()
        outcome, detail = attempt(mutation.data)
        seconds = time.perf_counter() - started
        memory = (_memory("VmHWM") - before) / 2**20
        pipe.send(Trial(number, mutation.seed.kind, outcome, detail, seconds, memory))


def attempt(data: bytes) -> tuple[Outcome, str]:
    """Decode, and check the result; the outcome and its reason."""
    try:
        decoded = decode(data, any_body_part=True, any_view=True)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Also the panics of decoders in Rust.
        return "raised", f"{type(error).__name__}: {error}"
    if wrong := broken_promise(decoded):
        return "raised", f"result {wrong}"
    if decoded.status == "ok":
        return "pixels", ""
    return decoded.status, decoded.reason


def broken_promise(decoded: Decoded) -> str:
    """How a result breaks its promises; empty if it does not."""
    if decoded.status not in ("ok", "refused", "unreadable"):
        return f"has status {decoded.status!r}"
    if decoded.status == "ok":
        pixels = decoded.pixels
        if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
            return "is ok without uint8 pixels (H, W)"
        return f"is ok with reason {decoded.reason!r}" if decoded.reason else ""
    if decoded.pixels is not None:
        return f"is {decoded.status} with pixels"
    if len(decoded.reason.splitlines()) != 1:
        return f"is {decoded.status} with reason {decoded.reason!r}, not one line"
    return ""


def _memory(field: Literal["VmRSS", "VmHWM", "VmSize"]) -> int:
    """Bytes of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise CxrError(f"/proc/self/status has no {field}.")


# --- all workers ---------------------------------------------------------------------------------


@dataclass
class Worker:
    """A process and the mutation that it is at."""

    process: SpawnProcess
    pipe: "Connection[object, object]"
    numbers: range
    """Those that it was given."""
    current: int | None = None
    """Announced last."""
    busy: bool = False
    """Announced, and not answered yet."""
    since: float = 0.0


def fuzz(
    seeds: Sequence[Seed], seed: int, shares: Sequence[range], silent: bool = True
) -> list[Trial]:
    """Decode the mutations of each share in its own process; one trial per mutation."""

    def start(numbers: range) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=work, args=(theirs, seeds, seed, numbers, silent), daemon=True
        )
        process.start()
        theirs.close()  # So that the end of the process ends the pipe.
        return Worker(process, ours, numbers)

    def replace(worker: Worker, outcome: Outcome, detail: str) -> None:
        """Record the mutation at which a worker was lost, and continue after it."""
        workers.remove(worker)
        if worker.current is None:
            raise CxrError(f"a worker ended ({detail}) before its first mutation.")
        kind = mutate(seeds, seed, worker.current).seed.kind
        seconds = time.perf_counter() - worker.since
        trials[worker.current] = Trial(worker.current, kind, outcome, detail, seconds, 0.0)
        if left := worker.numbers[worker.numbers.index(worker.current) + 1 :]:
            workers.append(start(left))

    trials: dict[int, Trial] = {}
    workers = [start(numbers) for numbers in shares if numbers]
    while workers:
        connection.wait([worker.pipe for worker in workers], timeout=1.0)
        for worker in list(workers):
            try:
                while worker.pipe.poll():
                    message = worker.pipe.recv()
                    if isinstance(message, Trial):
                        trials[message.number] = message
                    elif isinstance(message, int):
                        worker.current, worker.since = message, time.perf_counter()
                    worker.busy = not isinstance(message, Trial)
            except EOFError:
                worker.process.join()
                code = worker.process.exitcode or 0
                if code:  # Also if an earlier mutation left damage behind.
                    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    replace(worker, "died", ended)
                else:
                    workers.remove(worker)
                continue
            if worker.busy and time.perf_counter() - worker.since > HANG_S:
                worker.process.kill()
                worker.process.join()
                replace(worker, "hung", f"killed after {HANG_S:.0f} s")
    return [trials[number] for number in sorted(trials)]


# --- results -------------------------------------------------------------------------------------


def print_table(trials: Sequence[Trial]) -> None:
    counts = Counter((trial.kind, trial.outcome) for trial in trials)
    print(f"{'damaged':8}" + "".join(f"{outcome:>12}" for outcome in get_args(Outcome)))
    for kind in get_args(Kind):
        cells = (f"{counts[kind, outcome]:12,}" for outcome in get_args(Outcome))
        print(f"{kind:8}" + "".join(cells))


def out_of_memory(trials: Sequence[Trial]) -> int:
    """Number of files that could not be decoded for lack of memory."""
    return sum("MemoryError" in trial.detail for trial in trials if trial.outcome not in BAD)


def main() -> None:
    job = cli.parse(FuzzJob, str(__doc__))
    usual = Path(
        os.environ.get("CXR_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    )
    data = job.data or (usual if usual.is_dir() else None)
    seeds = read_seeds(data)
    kinds = Counter(seed.kind for seed in seeds)
    counted = ", ".join(f"{kinds[kind]} {kind}" for kind in get_args(Kind))
    origin = f"real ones from {data}" if data else "phantoms"
    print(f"{len(seeds)} whole files ({counted}): {origin}, and made ones", flush=True)
    if job.only is not None:
        shares = [range(job.only, job.only + 1)]
    else:
        shares = [range(first, job.num_mutations, job.workers) for first in range(job.workers)]
    started = time.perf_counter()
    trials = fuzz(seeds, job.seed, shares, silent=job.only is None)
    wall_s = time.perf_counter() - started
    print_table(trials)
    slowest = max(trials, key=lambda trial: trial.seconds)
    largest = max(trials, key=lambda trial: trial.memory_mib)
    print(f"slowest decode   {slowest.seconds:8.2f} s    (mutation {slowest.number})")
    print(f"most memory      {largest.memory_mib:8,.0f} MiB  (mutation {largest.number})")
    print(f"out of memory    {out_of_memory(trials):8,}      (reported as a reason)")
    print(f"in all           {wall_s:8.1f} s    ({job.workers} workers)")
    findings = [trial for trial in trials if trial.outcome in BAD]
    for trial in findings if job.only is None else trials:
        mutation = mutate(seeds, job.seed, trial.number)
        print(f"mutation {trial.number}, {mutation.seed.name}: {trial.outcome}: {trial.detail}")
        for step in mutation.steps:
            print(f"    {step}")
    if job.output:
        results = {
            "seed": job.seed,
            "num_mutations": len(trials),
            "seeds": [f"{seed.kind}: {seed.name}" for seed in seeds],
            "counts": {
                kind: {
                    outcome: sum(t.kind == kind and t.outcome == outcome for t in trials)
                    for outcome in get_args(Outcome)
                }
                for kind in get_args(Kind)
            },
            "slowest": dataclasses.asdict(slowest),
            "most_memory": dataclasses.asdict(largest),
            "out_of_memory": out_of_memory(trials),
            "wall_s": wall_s,
            "findings": [
                dataclasses.asdict(trial) | {"steps": mutate(seeds, job.seed, trial.number).steps}
                for trial in findings
            ],
        }
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")
    if findings:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
