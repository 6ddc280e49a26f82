"""What 8-bit integers change: the AUC, the probabilities, the predictions, and the speed.

    python -m benchmarks.precision --checkpoint DIR --data chest_xray --split validation
    python -m benchmarks.precision --checkpoint DIR --data chest_xray --output precision.json

The checkpoint is one that `jobs/train.py --int8` has written. Both precisions are evaluated by
`jobs/evaluate.py` on the same images, each with its own calibration and operating point. Speed is
that of ONNX Runtime alone on random pixels: on one core, in processor time, and on all, in one
process of a thread for each core and in one process of one thread on each core.
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr import cli, metrics, storage
from cxr.errors import CxrError
from cxr.inference import processor
from cxr.inference.engine import batch_size
from cxr.metrics.results import Interval
from cxr.models import checkpoint
from cxr.models.precision import Precision
from cxr.models.session import open_session
from cxr.sources.settings import Split
from tests.support.jobs import command, run

TIMED_S: Final = 3.0
"""Seconds for which a precision is timed, after one batch that is not."""


@dataclass(frozen=True)
class PrecisionBenchmark:
    """What is compared, and on what."""

    checkpoint: str
    """Folder of a classifier that `jobs/train.py --int8` has trained."""
    data: str | None = None
    """As in jobs/evaluate.py. Without it, the synthetic radiographs that jobs/train.py draws."""
    split: Split = "test"
    """As in jobs/evaluate.py; validation is the fold that trained nothing."""
    cache: str = storage.default_cache()
    """Folder of decoded pixels."""
    output: Path | None = None
    """JSON file for the results."""


@dataclass(frozen=True)
class Change:
    """8-bit integers against float32 on the same images."""

    num_images: int
    num_patients: int
    auc: dict[Precision, float | None]
    auc_difference: Interval
    mean_change: float
    """Of the calibrated probability, absolute."""
    largest_change: float
    changed_predictions: float
    """Share of the images whose prediction is another one."""


def main() -> None:
    job = cli.parse(PrecisionBenchmark, __doc__ or "")
    trained = checkpoint.load(job.checkpoint)
    trained.at("int8")  # Says how to make it, before anything is computed.
    predictions = {precision: _evaluate(job, precision) for precision in get_args(Precision)}
    change = compare(predictions)
    speed = measure_speed(trained)
    name, flags = processor.cpu()
    vnni = bool({"avx512_vnni", "avx_vnni"} & flags)
    print(f"{name}, {'with' if vnni else 'without'} VNNI, {os.cpu_count()} cores")
    print(
        f"{trained.recipe.name}: {change.num_images:,} images of {change.num_patients:,} patients"
    )
    low, high = change.auc_difference.low, change.auc_difference.high
    print(f"AUC difference         {change.auc_difference.value:+.4f} [{low:+.4f}, {high:+.4f}]")
    print(
        f"change of probability  mean {change.mean_change:.4f}, largest {change.largest_change:.3f}"
    )
    print(f"changed predictions    {change.changed_predictions:.2%}")
    for way, rates in speed.items():
        gain = rates["int8"] / rates["float32"]
        print(f"{way:22} {rates['float32']:.1f} -> {rates['int8']:.1f} images/s ({gain:.1f} times)")
    if job.output:
        content = {"cpu": name, "flags": sorted(flags), "change": asdict(change), "speed": speed}
        job.output.write_text(json.dumps(content, indent=2) + "\n")


def _evaluate(job: PrecisionBenchmark, precision: Precision) -> Any:
    """The predictions of `jobs/evaluate.py`, sorted by uri."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "evaluated")
        words = ["--checkpoint", job.checkpoint, "--split", job.split, "--precision", precision]
        words += ["--output", str(output), "--cache", job.cache, "--gpu", "off"]
        words += ["--stress-images", "0"]
        words += ["--data", job.data] if job.data else []
        ended = run(command("evaluate", *words), timeout_s=3600)
        if ended.code:
            raise CxrError(f"jobs/evaluate.py --precision {precision} failed: {ended.err.strip()}")
        return pq.read_table(output / "predictions.parquet").sort_by("uri")


def compare(predictions: Mapping[Precision, Any]) -> Change:
    """Compare the predictions of both precisions on the same images.

    Args:
        predictions: tables of `jobs/evaluate.py`, {patient, y_true, logit, prob, prediction}, in
            the same order.
    """
    exact, rounded = predictions["float32"], predictions["int8"]
    y_true = np.asarray(exact["y_true"])
    moved = np.abs(np.asarray(rounded["prob"]) - np.asarray(exact["prob"]))
    changed = pc.not_equal(exact["prediction"], rounded["prediction"])
    return Change(
        num_images=len(exact),
        num_patients=len(exact["patient"].unique()),
        auc={name: metrics.roc_auc(y_true, table["logit"]) for name, table in predictions.items()},
        auc_difference=metrics.auc_difference(
            y_true, rounded["logit"], exact["logit"], patients=exact["patient"].to_pylist()
        ),
        mean_change=float(moved.mean()),
        largest_change=float(moved.max()),
        changed_predictions=float(np.asarray(changed).mean()),
    )


def measure_speed(trained: checkpoint.Checkpoint) -> dict[str, dict[Precision, float]]:
    """Images per second of both precisions, by how the cores are used."""
    cores = os.cpu_count() or 1
    networks = {precision: trained.at(precision).onnx for precision in get_args(Precision)}
    shape = (batch_size(gpu=False), 1, trained.recipe.image_px, trained.recipe.image_px)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    ways: dict[str, Callable[[bytes], float]] = {
        "one core": lambda content: _rate(content, pixels, 1, "cpu"),
        f"1 x {cores} threads": lambda content: _rate(content, pixels, cores, "wall"),
        f"{cores} x 1 thread": lambda content: _rate_of_processes(content, pixels, cores),
    }
    return {
        way: {precision: measure(content) for precision, content in networks.items()}
        for way, measure in ways.items()
    }


def _rate(content: bytes, pixels: NDArray[np.uint8], threads: int, clock: str) -> float:
    session = open_session(content, threads)
    session.run(["logits"], {"pixels": pixels})
    now = time.process_time if clock == "cpu" else time.perf_counter
    started, start, count = time.perf_counter(), now(), 0
    while time.perf_counter() - started < TIMED_S:
        session.run(["logits"], {"pixels": pixels})
        count += len(pixels)
    return count / (now() - start)


def _rate_of_processes(content: bytes, pixels: NDArray[np.uint8], count: int) -> float:
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        work = [(content, pixels, 1, "wall")] * count
        return sum(pool.starmap(_rate, work, chunksize=1))


if __name__ == "__main__":
    cli.run(main)
