"""Images per second of `jobs/score.py`, a DataLoader loop, and this machine's upper bound.

    python -m benchmarks.score --num-images 2000 200 --output score.json    # v0, v1: VGG16 is slow

The files are full-size JPEG files, repeated under other names until there are enough; all are read
once beforehand, so that none has to come from the disk. The networks have random weights.
Everything is computed on the CPU, each measurement in its own processes while nothing else runs:

job         `jobs/score.py` as a program; its steady rate is the one in its summary.json
DataLoader  what one would write by hand: two loader processes, batches of 32, Pillow's full
            decode, torchvision's antialiased resize, float32, PyTorch's defaults
decode      `cxr.images` alone: decoding and resizing, one process per core
forward     the network alone, the fastest of several ways to use the cores; one of them is bfloat16
            if the CPU multiplies in it

The bound is 1 / (1 / decode + 1 / forward): both share the cores, and everything else that a
pipeline does takes time from them. Start-up is included in the total rates and not in the steady
ones: the job's as it reports it, the loop's up to the end of its first batch.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final, TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cxr import cli, recipes
from cxr.errors import CxrError, SettingsError
from cxr.images import decoding, resize
from cxr.inference import devices, processor
from cxr.models import classifier
from cxr.recipes import Recipe
from tests.support.files import repeat
from tests.support.jobs import ROOT, command, run

REAL_DATA: Final = Path(os.environ.get("CXR_REAL_DATA", ROOT.parent / "shared" / "data"))

LOADER_WORKERS: Final = 2
LOADER_BATCH: Final = 32
FORWARD_BATCHES: Final = (8, 16)
MEASURE_S: Final = 5.0
"""Minimum time for which decoding and each way to run the network are timed; at least two calls."""

PATIENCE_S: Final = 300.0
"""Longest time that the processes of a measurement wait for one another."""

SPAWN: Final = multiprocessing.get_context("spawn")

Result = TypeVar("Result")


@dataclass(frozen=True)
class ScoreBenchmark:
    """What to score, and with which networks."""

    data: Path = REAL_DATA / "fullsize"
    """Folder of JPEG files, searched through all its folders."""
    num_images: tuple[int, ...] = (2000,)
    """Files to score: one number, or one per version."""
    versions: tuple[str, ...] = ("v0", "v1")
    """Recipes whose networks score."""
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
    channels_last: bool
    bfloat16: bool

    def __str__(self) -> str:
        cores = f"processes {self.processes}, threads {self.threads}"
        layout = "channels-last" if self.channels_last else "channels-first"
        form = ", bfloat16" if self.bfloat16 else ""
        return f"{cores}, batch {self.batch_size}, {layout}{form}"


@dataclass(frozen=True)
class Row:
    """What was measured with one network."""

    version: str
    network: str
    job: Rate
    loader: Rate
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


def time_job(trained: Path, images: Path, num_images: int, output: Path) -> Rate:
    """Run `jobs/score.py` as its users do."""
    words = ("--checkpoint", trained, "--input", images, "--output", output)
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
    """Fully decoded and resized files; float32 (3, image_px, image_px)."""

    def __init__(self, paths: Sequence[Path], image_px: int) -> None:
        self.paths = paths
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize((image_px, image_px), antialias=True),
                v2.ToDtype(torch.float32),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            pixels: torch.Tensor = self.transform(image.convert("RGB"))
        return pixels


def loop(recipe: Recipe, paths: Sequence[Path]) -> float:
    """Score with PyTorch alone; seconds from the end of the first batch to that of the last."""
    # A spawned process would also spawn its loader's workers; a program uses Python's default.
    multiprocessing.set_start_method(None, force=True)
    model = classifier.build(recipe).eval()
    loader = DataLoader(
        Radiographs(paths, recipe.image_px), batch_size=LOADER_BATCH, num_workers=LOADER_WORKERS
    )
    probs: list[float] = []
    with torch.inference_mode():
        for images in loader:
            probs += model(images).softmax(dim=1)[:, 1].tolist()
            if len(probs) == LOADER_BATCH:
                first_end = time.perf_counter()
    return time.perf_counter() - first_end


def time_loop(recipe: Recipe, paths: Sequence[Path]) -> Rate:
    started = time.perf_counter()
    [rest_s] = in_processes(loop, [(recipe, paths)])
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
    """The ways to try: one process or one per core, two batch sizes, two layouts.

    Also bfloat16 if the CPU computes in it; otherwise PyTorch emulates it, slowly.
    """
    num_cores = os.cpu_count() or 1
    cores = sorted({(1, num_cores), (num_cores, 1)})
    forms = (False, True) if devices.has_bfloat16(torch.device("cpu")) else (False,)
    return [
        Way(processes, threads, batch_size, channels_last, bfloat16)
        for (processes, threads), batch_size, channels_last, bfloat16 in itertools.product(
            cores, FORWARD_BATCHES, (True, False), forms
        )
    ]


def forward_rate(recipe: Recipe, way: Way) -> float:
    """Images per second of the network alone, over all processes."""
    together = SPAWN.Barrier(way.processes, timeout=PATIENCE_S)
    return sum(in_processes(forward, [(recipe, way, together)] * way.processes))


def forward(recipe: Recipe, way: Way, together: Barrier) -> float:
    """Images per second of this process."""
    torch.set_num_threads(way.threads)
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    model: torch.nn.Module = classifier.build(recipe).eval()
    if way.bfloat16:
        model = devices.for_inference(model, torch.device("cpu"))
    model = model.to(memory_format=layout)
    shape = (way.batch_size, 3, recipe.image_px, recipe.image_px)
    images = torch.rand(shape).mul_(255).contiguous(memory_format=layout)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=way.bfloat16):
        return way.batch_size * calls_per_s(lambda: model(images), together)


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


# --- results -------------------------------------------------------------------------------------


def measure(job: ScoreBenchmark, recipe: Recipe, num_images: int, scratch: Path) -> Row:
    """All four measurements with one network, one after another."""
    originals = sorted(path for path in job.data.rglob("*") if path.suffix in (".jpeg", ".jpg"))
    if not originals:
        raise SettingsError(f"data: no .jpeg or .jpg files below {job.data}.")
    paths = lay_out(originals, num_images, scratch / "images")
    # Imported here: it imports scikit-learn, which the DataLoader loop's process does not need.
    from tests.support.checkpoints import write_checkpoint

    write_checkpoint(scratch / "checkpoint", recipe)
    print(f"\n{recipe.name} ({recipe.backbone}): jobs/score.py over {num_images:,} of"
          f" {len(originals):,} files ...", flush=True)  # fmt: skip
    scored = time_job(scratch / "checkpoint", scratch / "images", num_images, scratch / "scores")
    looped = paths[: job.dataloader_images]
    print(f"{recipe.name}: DataLoader over {len(looped):,} ...", flush=True)
    loader = time_loop(recipe, looped)
    print(f"{recipe.name}: decode and forward alone ...", flush=True)
    decoded = decode_rate(paths, recipe.image_px)
    forwards = {str(way): forward_rate(recipe, way) for way in ways()}
    fastest = max(forwards, key=lambda way: forwards[way])
    return Row(
        recipe.name, recipe.backbone, scored, loader, decoded, forwards[fastest], fastest, forwards
    )


def print_table(row: Row, image_px: int) -> None:
    head = f"{row.version}, {row.network}, {image_px} px"
    print(f"\n{head:28} {'images/s':>10} {'with start-up':>14} {'start-up':>10}")
    for name, rate in (("job", row.job), ("DataLoader", row.loader)):
        title = f"{name}, {rate.num_images:,} images"
        print(f"{title:28} {rate.steady:10.2f} {rate.whole:14.2f} {rate.start_up_s:8.1f} s")
    print(f"{'decode':28} {row.decode:10.2f}")
    print(f"{'forward':28} {row.forward:10.2f}   {row.forward_way}")
    print(f"{'bound':28} {row.bound:10.2f}")
    print(f"{'job / DataLoader':28} {row.job.steady / row.loader.steady:10.2f}"
          f" {row.job.whole / row.loader.whole:14.2f}")  # fmt: skip
    print(f"{'job / bound':28} {row.job.steady / row.bound:10.2f}", flush=True)


def main() -> None:
    job = cli.parse(ScoreBenchmark, str(__doc__))
    # Only the CPU is measured, so no process may see a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    machine = {
        "cpu": processor.cpu()[0],
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchvision", "ray", "pillow")},
    }
    print(", ".join(f"{key}: {value}" for key, value in machine.items()), flush=True)
    rows = []
    sizes = job.num_images * (1 if len(job.num_images) > 1 else len(job.versions))
    for version, num_images in zip(job.versions, sizes, strict=True):
        recipe = dataclasses.replace(recipes.named(version), image_px=job.image_px)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(job, recipe, num_images, Path(folder)))
        print_table(rows[-1], job.image_px)
    if job.output:
        results = {
            "machine": machine,
            "image_px": job.image_px,
            "rows": [dataclasses.asdict(row) | {"bound": row.bound} | row.ratios for row in rows],
        }
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
