"""Images per second of `jobs/score.py`, DataLoader loops, and this machine's upper bound.

    python -m benchmarks.score --num-images 2000 400 --precisions float32 int8 --output score.json
    python -m benchmarks.score --versions v0 v0 v0 --num-images 160 500 2000    # with start-up
    python -m benchmarks.score --parts rows handover

The files are full-size JPEG files, repeated under other names until there are enough; all are read
once beforehand, so that none has to come from the disk. The networks have random weights.
Everything is computed on the CPU, each measurement in its own processes while nothing else runs:

job         `jobs/score.py` as a program; its steady rate is the one in its summary.json
DataLoader  what one would write by hand: two loader processes, batches of 32, Pillow's full
            decode, torchvision's antialiased resize, float32, PyTorch's defaults
engine loop the same loop with the job's engine and precision
decode      `cxr.images` alone: decoding and resizing, one process per core
forward     the job's engine alone, the fastest of several ways to use the cores

The bound is 1 / (1 / decode + 1 / forward): both share the cores, and everything else that a
pipeline does takes time from them. Start-up is included in the total rates and not in the steady
ones: the job's as it reports it, the loops' up to the end of their first batch.

Two more parts show what the job itself costs:

rows        `jobs/score.py` over empty files, which have rows and no pixels
handover    ready pixels from tasks to an actor on a GPU that is made up, whose engine answers at
            once: images per second that it takes in and writes
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import multiprocessing
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import psutil
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cxr import cli, recipes
from cxr.errors import CxrError, SettingsError
from cxr.images import decoding, resize
from cxr.inference import processor
from cxr.inference.onnx_engine import OnnxEngine
from cxr.models import classifier
from cxr.models.precision import Precision
from cxr.recipes import Recipe
from tests.support.files import repeat
from tests.support.jobs import ROOT, command, environment, run

REAL_DATA: Final = Path(os.environ.get("CXR_REAL_DATA", ROOT.parent / "shared" / "data"))

LOADER_WORKERS: Final = 2
LOADER_BATCH: Final = 32
FORWARD_BATCHES: Final = (1, 8, 32)
MEASURE_S: Final = 5.0
"""Minimum time for which decoding and each way to run the network are timed; at least two calls."""

PATIENCE_S: Final = 300.0
"""Longest time that the processes of a measurement wait for one another."""

SPAWN: Final = multiprocessing.get_context("spawn")

Result = TypeVar("Result")

Part = Literal["images", "rows", "handover"]


@dataclass(frozen=True)
class ScoreBenchmark:
    """What to score, and with which networks."""

    data: Path = REAL_DATA / "fullsize"
    """Folder of JPEG files, searched through all its folders."""
    num_images: tuple[int, ...] = (2000,)
    """Files to score: one number, or one per version."""
    versions: tuple[str, ...] = ("v0", "v1")
    """Recipes whose networks score."""
    precisions: tuple[Precision, ...] = ("float32",)
    """What the job and its engine compute in."""
    parts: tuple[Part, ...] = ("images",)
    """What is measured."""
    num_rows: int = 300_000
    """Empty files for rows, and images for handover."""
    image_px: int = 224
    """Side of the square that each radiograph is resized to, in pixels; of every version."""
    dataloader_images: int | None = None
    """Files for the DataLoader loop, if fewer than for the job."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not self.data.is_dir():
            raise SettingsError(f"data: no folder {self.data}. Name one with JPEG files.")
        if len(self.num_images) not in (1, len(self.versions)):
            raise SettingsError(
                f"num_images: {len(self.num_images)} numbers for {len(self.versions)} versions."
            )
        if min(*self.num_images, self.dataloader_images or math.inf) <= LOADER_BATCH:
            raise SettingsError(f"num_images, dataloader_images: at least {LOADER_BATCH + 1}.")
        for version in self.versions:
            recipes.named(version)


@dataclass(frozen=True)
class Rate:
    """Images per second of a whole program."""

    num_images: int
    steady: float
    """Without start-up."""
    whole: float
    """Including start-up."""
    start_up_s: float
    seconds: float
    """From the start of the program to its end."""


@dataclass(frozen=True)
class Way:
    """A way to run a network on the cores."""

    processes: int
    threads: int
    batch_size: int

    def __str__(self) -> str:
        cores = f"processes {self.processes}, threads {self.threads}"
        return f"{cores}, batch {self.batch_size}"


@dataclass(frozen=True)
class Row:
    """What was measured with one network."""

    version: str
    network: str
    precision: Precision
    job: Rate
    loader: Rate
    engine_loop: Rate
    decode: float
    """Images per second."""
    forward: float
    """Images per second."""
    forward_way: str
    forward_ways: dict[str, float]
    """Images per second of every way that was tried."""

    @property
    def bound(self) -> float:
        return 1 / (1 / self.decode + 1 / self.forward)

    @property
    def ratios(self) -> dict[str, float]:
        return {
            "job_to_dataloader_steady": self.job.steady / self.loader.steady,
            "job_to_dataloader_whole": self.job.whole / self.loader.whole,
            "job_to_engine_loop_steady": self.job.steady / self.engine_loop.steady,
            "job_to_bound": self.job.steady / self.bound,
        }


# --- files and networks --------------------------------------------------------------------------


def lay_out(originals: Sequence[Path], num_images: int, folder: Path) -> list[Path]:
    """Make that many files with mixed classes and sizes, even if not all originals are used."""
    paths = repeat(random.Random(0).sample(originals, len(originals)), num_images, folder)
    for path in paths[: len(originals)]:
        path.read_bytes()  # Brings it into the page cache.
    return paths


# --- the job -------------------------------------------------------------------------------------


def time_job(
    trained: Path, images: Path, num_images: int, output: Path, precision: Precision
) -> Rate:
    """Run `jobs/score.py` as its users do."""
    words = ("--checkpoint", trained, "--input", images, "--output", output, "--precision",
             precision)  # fmt: skip
    started = time.perf_counter()
    ended = run(command("score", *words))
    seconds = time.perf_counter() - started
    if ended.code:
        raise CxrError(f"jobs/score.py ended with {ended.code}:\n{ended.err[-2000:]}")
    summary = json.loads((output / "summary.json").read_text())
    return Rate(
        num_images, summary["images_per_second"], num_images / seconds,
        summary["start_up_seconds"], seconds,
    )  # fmt: skip


# --- the DataLoader loop -------------------------------------------------------------------------


class Radiographs(Dataset[torch.Tensor]):
    """Fully decoded and resized files; float32 (3, image_px, image_px), or uint8 (1, ...) gray."""

    def __init__(self, paths: Sequence[Path], image_px: int, mode: Literal["RGB", "L"]) -> None:
        self.paths, self.mode = paths, mode
        steps = [v2.ToImage(), v2.Resize((image_px, image_px), antialias=True)]
        self.transform = v2.Compose(steps + ([v2.ToDtype(torch.float32)] if mode == "RGB" else []))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            pixels: torch.Tensor = self.transform(image.convert(self.mode))
        return pixels


def loop(recipe: Recipe, paths: Sequence[Path], network: bytes | None) -> float:
    """Score; seconds from the end of the first batch to that of the last.

    Args:
        recipe: of the network.
        paths: of the files.
        network: an ONNX file, for the job's engine; PyTorch where None.
    """
    # A spawned process would also spawn its loader's workers; a program uses Python's default.
    multiprocessing.set_start_method(None, force=True)
    forward: Callable[[torch.Tensor], torch.Tensor]
    if network is None:
        forward = classifier.build(recipe).eval()
    else:
        engine = OnnxEngine(network, "logits", os.cpu_count() or 1)

        def forward(pixels: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(engine.run(pixels[:, 0].numpy()))

    loader = DataLoader(
        Radiographs(paths, recipe.image_px, "L" if network else "RGB"),
        batch_size=LOADER_BATCH, num_workers=LOADER_WORKERS,
    )  # fmt: skip
    probs: list[float] = []
    with torch.inference_mode():
        for images in loader:
            probs += forward(images).softmax(dim=1)[:, 1].tolist()
            if len(probs) == LOADER_BATCH:
                first_end = time.perf_counter()
    return time.perf_counter() - first_end


def time_loop(recipe: Recipe, paths: Sequence[Path], network: bytes | None = None) -> Rate:
    started = time.perf_counter()
    [rest_s] = in_processes(loop, [(recipe, paths, network)])
    seconds = time.perf_counter() - started
    steady = (len(paths) - LOADER_BATCH) / rest_s
    return Rate(len(paths), steady, len(paths) / seconds, seconds - rest_s, seconds)


# --- the bound -----------------------------------------------------------------------------------


def decode_rate(paths: Sequence[Path], image_px: int) -> float:
    """Images per second of decoding and resizing on all cores, without a network."""
    num_cores = os.cpu_count() or 1
    together = SPAWN.Barrier(num_cores, timeout=PATIENCE_S)
    shares = [paths[core::num_cores] for core in range(num_cores)]
    return sum(in_processes(decode, [(share, image_px, together) for share in shares]))


def decode(paths: Sequence[Path], image_px: int, together: Barrier) -> float:
    """Images per second of this process, which reads the files in order, from the page cache."""
    waiting = itertools.cycle(paths)

    def step() -> None:
        decoded = decoding.decode(next(waiting).read_bytes(), min_px=image_px)
        if decoded.pixels is None:
            raise CxrError(f"a file cannot be scored: {decoded.reason}.")
        resize.resize(decoded.pixels, image_px)

    return calls_per_s(step, together)


def ways() -> list[Way]:
    """The ways to try: one process or one per core, and several batch sizes."""
    num_cores = os.cpu_count() or 1
    cores = sorted({(1, num_cores), (num_cores, 1)})
    return [
        Way(processes, threads, batch_size)
        for (processes, threads), batch_size in itertools.product(cores, FORWARD_BATCHES)
    ]


def forward_rate(network: bytes, image_px: int, way: Way) -> float:
    """Images per second of the engine alone, over all processes."""
    together = SPAWN.Barrier(way.processes, timeout=PATIENCE_S)
    return sum(in_processes(forward, [(network, image_px, way, together)] * way.processes))


def forward(network: bytes, image_px: int, way: Way, together: Barrier) -> float:
    """Images per second of this process."""
    engine = OnnxEngine(network, "logits", way.threads)
    engine.batch_size = way.batch_size
    shape = (way.batch_size, image_px, image_px)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return way.batch_size * calls_per_s(lambda: engine.run(pixels), together)


def calls_per_s(call: Callable[[], object], together: Barrier) -> float:
    """Calls per second, after warm-up, while the other processes of `together` also run."""
    call()
    together.wait()
    num_calls = 0
    started = time.perf_counter()
    while num_calls < 2 or time.perf_counter() - started < MEASURE_S:
        call()
        num_calls += 1
    return num_calls / (time.perf_counter() - started)


# --- processes -----------------------------------------------------------------------------------


def in_processes(work: Callable[..., Result], tasks: Sequence[tuple[object, ...]]) -> list[Result]:
    """Call `work` with each task in a fresh process, all at once; the results in order."""
    pipes, processes = [], []
    for task in tasks:
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_answer, args=(theirs, work, task))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        results: list[Result] = [pipe.recv() for pipe in pipes]
    except EOFError:
        for process in processes:
            process.terminate()
        raise CxrError(f"a process of '{work.__name__}' ended without a result.") from None
    for process in processes:
        process.join()
    return results


def _answer(
    pipe: "Connection[object, object]", work: Callable[..., object], task: tuple[object, ...]
) -> None:
    pipe.send(work(*task))


# --- what the job itself costs -------------------------------------------------------------------


def score_rows(num_rows: int, scratch: Path) -> dict[str, float]:
    """`jobs/score.py` over so many empty files: seconds, and the driver's peak memory."""
    from tests.support.checkpoints import write_checkpoint

    (scratch / "empty.jpeg").write_bytes(b"")
    repeat([scratch / "empty.jpeg"], num_rows, scratch / "empty")
    trained = write_checkpoint(scratch / "checkpoint")
    words = ("--checkpoint", trained, "--input", scratch / "empty", "--output", scratch / "rows")
    started = time.perf_counter()
    process = subprocess.Popen(
        command("score", *words), env=environment(), stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.2)
    if process.returncode:
        raise CxrError(f"jobs/score.py ended with {process.returncode}.")
    seconds = time.perf_counter() - started
    return {
        "rows": num_rows, "seconds": seconds, "ms_per_row": seconds / num_rows * 1000,
        "driver_peak_mib": peak / 2**20,
    }  # fmt: skip


class Instant:
    """A network, and its engine, that answers at once."""

    def open(self, threads: int) -> "Instant":  # noqa: ARG002
        return self

    def run(
        self,
        pixels: NDArray[np.uint8],
        on_batch: Callable[[int], object] = lambda _: None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        return np.zeros((len(pixels), 2), np.float32)


def hand_over(settings: Any, number: int, size: int) -> Iterator[Any]:
    """A part whose images are read already."""
    from cxr.scoring.read import ReadPart

    row = {
        "uri": "images/1.jpeg", "file": "images/1.jpeg", "sha256": "0" * 64, "status": "scored",
        "reason": "", "warnings": [], "width": 1400, "height": 1000, "format": "jpeg", "view": "",
    }  # fmt: skip
    pixels = np.full((size, settings.image_px, settings.image_px), number % 256, np.uint8)
    yield ReadPart(number, pa.Table.from_pylist([row] * size, schema=settings.known), pixels)


def hand_over_rate(num_images: int, image_px: int, folder: Path) -> float:
    """Images per second that one actor takes in and writes, without those of the first second."""
    import ray

    from cxr.cluster import ENVIRONMENT
    from cxr.cluster.crew import Crew, read_ahead
    from cxr.scoring.manifest import PART_IMAGES
    from cxr.scoring.parts import SCORES
    from cxr.scoring.predict import PartPredictor
    from cxr.scoring.read import ReadSettings

    os.environ.update(ENVIRONMENT)
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"  # Of a GPU that is made up; Ray checks the number.
    ray.init(address="local", num_gpus=1, include_dashboard=False, logging_level=logging.ERROR)
    reading = ReadSettings(image_px, False, False, SCORES, None)
    num_parts = num_images // PART_IMAGES
    crew = Crew(
        PartPredictor, (Instant(), 1, reading, str(folder), 1.0, 0.5), num_parts, 1, gpu=True
    )
    parts = read_ahead(hand_over, ((reading, i, PART_IMAGES) for i in range(num_parts)), 1)
    count, started = 0, math.inf
    begun = math.inf
    for done in crew.run("predict", ((part,) for part in parts)):
        now = time.perf_counter()
        begun = min(begun, now)
        if now - begun > 1:
            count += done if started < math.inf else 0
            started = min(started, now)
    ray.shutdown()
    return count / (now - started)


# --- results -------------------------------------------------------------------------------------


def measure(job: ScoreBenchmark, recipe: Recipe, num_images: int, scratch: Path) -> list[Row]:
    """All measurements with one network, one after another; a row for each precision."""
    originals = sorted(path for path in job.data.rglob("*") if path.suffix in (".jpeg", ".jpg"))
    if not originals:
        raise SettingsError(f"data: no .jpeg or .jpg files below {job.data}.")
    paths = lay_out(originals, num_images, scratch / "images")
    networks = write_networks(scratch / "checkpoint", recipe, paths, job.precisions)
    looped = paths[: job.dataloader_images]
    title = f"{recipe.name} ({recipe.backbone})"
    print(f"\n{title}: DataLoader over {len(looped):,} of {len(originals):,} files ...", flush=True)
    loader = time_loop(recipe, looped)
    decoded = decode_rate(paths, recipe.image_px)
    rows = []
    for precision, network in networks.items():
        print(f"{title}, {precision}: jobs/score.py over {num_images:,} ...", flush=True)
        output = scratch / f"scores-{precision}"
        scored = time_job(scratch / "checkpoint", scratch / "images", num_images, output, precision)
        print(f"{title}, {precision}: the loop with the engine, the engine alone ...", flush=True)
        engine_loop = time_loop(recipe, looped, network)
        forwards = {str(way): forward_rate(network, recipe.image_px, way) for way in ways()}
        fastest = max(forwards, key=lambda way: forwards[way])
        rows.append(
            Row(
                recipe.name, recipe.backbone, precision, scored, loader, engine_loop, decoded,
                forwards[fastest], fastest, forwards,
            )
        )  # fmt: skip
    return rows


def write_networks(
    folder: Path, recipe: Recipe, paths: Sequence[Path], precisions: Sequence[Precision]
) -> dict[Precision, bytes]:
    """Write a checkpoint with random weights; the ONNX file of each precision.

    It is quantized on images that it scores: the scales decide nothing about the speed.
    """
    from cxr.models import checkpoint
    from cxr.models.export import export
    from cxr.models.quantization import quantize

    # Imported here: it imports scikit-learn, which the DataLoader loop's process does not need.
    from tests.support.checkpoints import write_checkpoint

    write_checkpoint(folder, recipe)
    trained = checkpoint.load(str(folder))
    if "int8" in precisions:
        decoded = [
            decoding.decode(path.read_bytes(), min_px=recipe.image_px) for path in paths[:64]
        ]
        pixels = np.stack(
            [resize.resize(d.pixels, recipe.image_px) for d in decoded if d.pixels is not None]
        )
        content = export(trained.model, recipe, {}, split_gray=True)
        network = quantize(content, pixels, recipe.normalization, threads=1)
        checkpoint.add_int8(trained, network, trained.validation, {})
    return {precision: trained.at(precision).onnx for precision in precisions}


def print_table(row: Row, image_px: int) -> None:
    head = f"{row.version}, {row.network}, {image_px} px, {row.precision}"
    print(f"\n{head:34} {'images/s':>10} {'with start-up':>14} {'start-up':>10}")
    loops = (("job", row.job), ("DataLoader", row.loader), ("engine loop", row.engine_loop))
    for name, rate in loops:
        title = f"{name}, {rate.num_images:,} images"
        print(f"{title:34} {rate.steady:10.2f} {rate.whole:14.2f} {rate.start_up_s:8.1f} s")
    print(f"{'decode':34} {row.decode:10.2f}")
    print(f"{'forward':34} {row.forward:10.2f}   {row.forward_way}")
    print(f"{'bound':34} {row.bound:10.2f}")
    print(f"{'job / DataLoader':34} {row.job.steady / row.loader.steady:10.2f}"
          f" {row.job.whole / row.loader.whole:14.2f}")  # fmt: skip
    print(f"{'job / engine loop':34} {row.job.steady / row.engine_loop.steady:10.2f}")
    print(f"{'job / bound':34} {row.job.steady / row.bound:10.2f}", flush=True)


def main() -> None:
    job = cli.parse(ScoreBenchmark, str(__doc__))
    # Only the CPU is measured, so no process may see a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    name, flags = processor.cpu()
    machine = {
        "cpu": name,
        "flags": " ".join(sorted(flag for flag in flags if flag.startswith(("avx", "amx")))),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{
            name: metadata.version(name)
            for name in ("onnxruntime", "torch", "torchvision", "ray", "pillow")
        },
    }
    print(", ".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    results: dict[str, Any] = {"machine": machine, "image_px": job.image_px}
    if "images" in job.parts:
        rows: list[Row] = []
        sizes = job.num_images * (1 if len(job.num_images) > 1 else len(job.versions))
        for version, num_images in zip(job.versions, sizes, strict=True):
            recipe = dataclasses.replace(recipes.named(version), image_px=job.image_px)
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(job, recipe, num_images, Path(folder))
            for row in measured:
                print_table(row, job.image_px)
            rows += measured
        results["rows"] = [
            dataclasses.asdict(row) | {"bound": row.bound} | row.ratios for row in rows
        ]
    if "rows" in job.parts:
        with tempfile.TemporaryDirectory() as folder:
            results["without_pixels"] = found = score_rows(job.num_rows, Path(folder))
        print(f"{job.num_rows:,} rows without pixels: {found['seconds']:.1f} s,"
              f" {found['ms_per_row']:.3f} ms a row, driver at most"
              f" {found['driver_peak_mib']:,.0f} MiB", flush=True)  # fmt: skip
    if "handover" in job.parts:
        with tempfile.TemporaryDirectory() as folder:
            rate = hand_over_rate(min(job.num_rows, 60_000), job.image_px, Path(folder))
        results["handover_images_per_s"] = rate
        print(f"an actor whose engine answers at once: {rate:,.0f} images/s", flush=True)
    if job.output:
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
