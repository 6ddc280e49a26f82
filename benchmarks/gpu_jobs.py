"""Images per second of the jobs on a GPU, compared with their parts alone.

    python -m benchmarks.gpu_jobs --data FOLDER --train-data CHEST_XRAY

The files to score are full-size JPEG files, repeated under other names until there are enough. The
networks have random weights, which do not affect speed. Measured one after another:

decode    `cxr.images`: decoding and resizing alone, one process per core
nvjpeg    torchvision's JPEG decoder on the GPU, full size and gray, without a resize
engine    `cxr.inference`: from pixels in memory to logits, including the copy to the GPU
score     `jobs/score.py --gpu on` as a program: its steady rate and its total time
train     `jobs/train.py --gpu on --frozen 0` as a program, from a random start: its last epoch

Decoding on the CPUs and computing on the GPU overlap, so the slower of the two bounds scoring.
"""

import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch

from benchmarks.score import decode_rate
from cxr import cli
from cxr.errors import CxrError, SettingsError
from cxr.inference.torch_engine import TorchEngine
from cxr.models import classifier
from cxr.recipes import RECIPES
from tests.support.checkpoints import write_checkpoint
from tests.support.files import repeat
from tests.support.jobs import command, run

Part = Literal["decode", "nvjpeg", "engine", "score", "train"]

IMAGE_PX: Final = 224
MEASURE_S: Final = 5.0
"""Seconds for which decoding and the engine are measured."""


@dataclass(frozen=True)
class GpuJobsBenchmark:
    """What to score and to train on."""

    data: Path
    """Folder of full-size JPEG files, searched through all its folders."""
    train_data: Path
    """Labeled set as for jobs/train.py."""
    num_images: int = 4000
    """Files to score."""
    versions: tuple[str, ...] = ("v0", "v2")
    """Recipes whose networks score and train."""
    parts: tuple[Part, ...] = get_args(Part)
    """What is measured."""
    epochs: int = 3
    """Epochs of each training."""
    batch_size: int = 64
    """Images of a training step."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        for name in ("data", "train_data"):
            if not getattr(self, name).is_dir():
                raise SettingsError(f"{name}: no folder {getattr(self, name)}.")


def nvjpeg_rate(files: Sequence[Path]) -> float | None:
    """Images per second of torchvision's decoder on the GPU; None if it cannot decode."""
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.from_numpy(np.frombuffer(file.read_bytes(), np.uint8).copy()) for file in files]
    batches = [data[i : i + 32] for i in range(0, len(data), 32)]
    try:
        decode_jpeg(batches[0], mode=ImageReadMode.GRAY, device="cuda")
    except RuntimeError as error:
        print(f"nvjpeg: {str(error).splitlines()[0]}")
        return None
    torch.cuda.synchronize()
    started, count = time.perf_counter(), 0
    for batch in itertools.cycle(batches):
        decode_jpeg(batch, mode=ImageReadMode.GRAY, device="cuda")
        count += len(batch)
        if time.perf_counter() - started > MEASURE_S:
            break
    torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def engine_rate(version: str) -> float:
    """Images per second from pixels in memory to logits."""
    recipe = dataclasses.replace(RECIPES[version], image_px=IMAGE_PX)
    engine = TorchEngine(classifier.build(recipe), recipe.normalization, gpu=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2048, IMAGE_PX, IMAGE_PX), np.uint8)
    engine.run(pixels[:256])
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < MEASURE_S:
        engine.run(pixels)
        count += len(pixels)
    return count / (time.perf_counter() - started)


def score_rate(version: str, archive: Path, scratch: Path) -> dict[str, Any]:
    """The rates that `jobs/score.py` reports."""
    recipe = dataclasses.replace(RECIPES[version], image_px=IMAGE_PX)
    output = scratch / f"scores-{version}"
    trained = write_checkpoint(scratch / f"checkpoint-{version}", recipe)
    words = ["--checkpoint", trained, "--input", archive, "--output", output, "--gpu", "on"]
    seconds = timed("score", words)
    summary = json.loads((output / "summary.json").read_text())
    return {
        "images_per_s": summary["images_per_second"],
        "scored": summary["scored"],
        "start_up_s": summary["start_up_seconds"],
        "whole_s": seconds,
    }


def train_rate(version: str, job: GpuJobsBenchmark, scratch: Path) -> dict[str, Any]:
    """Images per second in the last epoch of `jobs/train.py`, and the AUC of each epoch."""
    output = scratch / f"run-{version}"
    words = [
        "--version", version, "--data", job.train_data, "--weights", "none", "--frozen", 0,
        "--pretrained", 0, "--normalization", "imagenet", "--epochs", job.epochs,
        "--batch-size", job.batch_size, "--learning-rate", 1e-4, "--loading", "memory",
        "--gpu", "on", "--cache", scratch / "cache", "--output", output, "--stress-images", 0,
    ]  # fmt: skip
    seconds = timed("train", words)
    lines = (output / version / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    result = json.loads((output / version / "result.json").read_text())
    data = json.loads((output / version / "checkpoint" / "checkpoint.json").read_text())
    num_images = data["provenance"]["data"]["num_images"]
    return {
        "images_per_s": num_images / history[-1]["seconds"],
        "epoch_s": [entry["seconds"] for entry in history],
        "auc": [entry["val_auc"] for entry in history],
        "peak_memory_mb": result["peak_memory_mb"],
        "whole_s": seconds,
    }


def timed(name: str, words: Sequence[object]) -> float:
    """Run a job as a program; its seconds."""
    started = time.perf_counter()
    ended = run(command(name, *words))
    if ended.code:
        raise CxrError(f"jobs/{name}.py ended with {ended.code}: {ended.err[-2000:]}")
    return time.perf_counter() - started


def main() -> None:
    job = cli.parse(GpuJobsBenchmark, __doc__)
    files = sorted(path for path in job.data.rglob("*.jp*g"))
    rows: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        archive = scratch / "archive"
        repeat(files, job.num_images, archive)
        measurements: list[tuple[str, Callable[[], Any]]] = [
            ("decode", partial(decode_rate, files, IMAGE_PX)),
            ("nvjpeg", partial(nvjpeg_rate, files)),
            *((f"engine {v}", partial(engine_rate, v)) for v in job.versions),
            *((f"score {v}", partial(score_rate, v, archive, scratch)) for v in job.versions),
            *((f"train {v}", partial(train_rate, v, job, scratch)) for v in job.versions),
        ]
        for title, measure in measurements:
            if title.split()[0] not in job.parts:
                continue
            try:
                rows[title] = measure()
            except CxrError as error:  # Keep the other rows.
                rows[title] = f"failed: {error}"
            print(f"{title}: {rows[title]}", flush=True)
            if job.output:
                job.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
