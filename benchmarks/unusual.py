"""Which images does a checkpoint call unlike its training images?

    python -m benchmarks.unusual --checkpoint DIR --input heldout.csv --others dicom photographs

The images of `--input` should be like the training images and of patients that neither trained nor
validated the checkpoint, such as those of `jobs/train.py --test-fraction`: `predictions.parquet` of
`jobs/evaluate.py` lists them. They are read once, and counted as they are and distorted in ways
that turn them into something else. `--others` are counted as they are, one row for each input.
Phantoms are added, and the time that the distances take beside the network.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cxr import cli, phantoms
from cxr.errors import DataError, SettingsError
from cxr.explanations.job import list_images
from cxr.images.read import read_images
from cxr.images.resize import resize
from cxr.inference.engine import batch_size
from cxr.inference.onnx_engine import OnnxEngine
from cxr.models import checkpoint
from cxr.models.precision import Precision
from cxr.models.unusual import WARN_ABOVE

SEED: Final = 7
"""Of the noise and of the phantoms."""

NOISE: Final = 40.0
"""Standard deviation, in gray levels of 255."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class UnusualBenchmark:
    """What is counted."""

    checkpoint: str
    """Folder of a checkpoint that knows its training images."""
    input: tuple[str, ...]
    """Images like the training images, as jobs/score.py takes them."""
    others: tuple[str, ...] = ()
    """Other images; a row for each of these inputs."""
    precision: Precision = "float32"
    """Number format of the network."""
    num_images: int = 300
    """Images of an input, at most: drawn at random, with a fixed seed."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise SettingsError(f"num_images: {self.num_images} is below 1.")


@dataclass(frozen=True)
class Flagged:
    """How many images are above the threshold, with a 95 % interval (Wilson)."""

    num_images: int
    share: float
    low: float
    high: float
    median: float
    """Percentile among validation images of the image in the middle."""


def main() -> None:
    job = cli.parse(UnusualBenchmark, __doc__ or "")
    trained = checkpoint.load(job.checkpoint).at(job.precision)
    distribution = trained.distribution
    if distribution is None:
        raise DataError(
            f"{job.checkpoint}: does not know its training images. Train it again, on 100 images or"
            " more in each of training and validation."
        )
    engine = OnnxEngine(trained.onnx, "logits", threads=1, appended=distribution.output)

    def count(pixels: Pixels) -> Flagged:
        distances = distribution.distances(engine.run(pixels)[:, 2:])
        percentiles = distribution.percentiles(distances)
        flagged = int((percentiles > WARN_ABOVE).sum())
        interval = binomtest(flagged, len(pixels)).proportion_ci(method="wilson")
        return Flagged(
            num_images=len(pixels),
            share=flagged / len(pixels),
            low=interval.low,
            high=interval.high,
            median=float(np.median(percentiles)),
        )

    pixels = read(job.input, trained.recipe.image_px, job.num_images)
    results = {name: count(change(pixels)) for name, change in changes().items()}
    results["phantoms"] = count(draw(trained.recipe.image_px, job.num_images))
    for source in job.others:
        name = Path(source).name
        results[name] = count(read([source], trained.recipe.image_px, job.num_images))
    for name, result in results.items():
        print(
            f"{name:28} {result.share:6.1%} [{result.low:.1%}, {result.high:.1%}]"
            f"  n = {result.num_images:,}, median {result.median:.0f}"
        )
    batch = np.resize(pixels, (batch_size(gpu=False), *pixels.shape[1:]))
    features = engine.run(batch)[:, 2:]
    seconds = {
        "network": fastest(lambda: engine.run(batch)),
        "distances": fastest(lambda: distribution.percentiles(distribution.distances(features))),
    }
    share = seconds["distances"] / seconds["network"]
    print(
        f"{len(batch)} images: network {seconds['network'] * 1e3:.1f} ms, distances"
        f" {seconds['distances'] * 1e3:.2f} ms ({share:.1%})"
    )
    if job.output:
        content = {
            "precision": job.precision,
            "results": {name: asdict(result) for name, result in results.items()},
            "seconds": seconds,
        }
        job.output.write_text(json.dumps(content, indent=2) + "\n")


def read(inputs: tuple[str, ...] | list[str], image_px: int, num_images: int) -> Pixels:
    """Images of the inputs, drawn at random, as the model takes them: uint8 (N, S, S).

    Raises:
        DataError: none of them can be decoded.
    """
    listing = list_images(inputs)
    order = np.random.default_rng(SEED).permutation(len(listing))[:num_images]
    rows = listing.take(np.sort(order)).to_pylist()
    images = read_images(rows, image_px, any_body_part=True, any_view=True)
    decoded = [image.pixels for image in images if image.pixels is not None]
    if not decoded:
        raise DataError(f"{inputs[0]}: none of {len(rows)} images can be decoded.")
    return np.stack(decoded)


def draw(image_px: int, num_images: int) -> Pixels:
    """So many phantoms, half of them normal: uint8 (N, S, S)."""
    kinds: tuple[phantoms.Subtype, ...] = ("normal", "bacteria", "normal", "virus")
    drawn = (
        phantoms.draw(np.random.default_rng([SEED, index]), kinds[index % 4])
        for index in range(num_images)
    )
    return np.stack([resize(phantom.pixels, image_px) for phantom in drawn])


def changes() -> Mapping[str, Callable[[Pixels], Pixels]]:
    """Ways to make images unlike radiographs of a chest, by name: uint8 (N, S, S), as is first."""
    return {
        "as they are": lambda images: images,
        "turned by 90 degrees": lambda images: np.ascontiguousarray(np.rot90(images, axes=(1, 2))),
        f"noise of {NOISE:.0f} gray levels": add_noise,
        "padded to twice the width": pad,
        "inverted gray levels": lambda images: 255 - images,
        "turned by 180 degrees": lambda images: np.ascontiguousarray(images[:, ::-1, ::-1]),
        "upside down": lambda images: np.ascontiguousarray(images[:, ::-1]),
        "a quarter black": cut_out,
        "mirrored": lambda images: np.ascontiguousarray(images[:, :, ::-1]),
    }


def add_noise(images: Pixels) -> Pixels:
    """Add normal noise of `NOISE` gray levels to images, (N, S, S)."""
    noise = np.random.default_rng(SEED).normal(0, NOISE, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def pad(images: Pixels) -> Pixels:
    """Put images, (N, S, S), in the middle of black ones of twice the width, resized to S."""
    side = images.shape[-1]
    wide = np.pad(images, ((0, 0), (0, 0), (side // 2, side - side // 2)))
    return np.stack([resize(image, side) for image in wide])


def cut_out(images: Pixels) -> Pixels:
    """Make the upper left quarter of images, (N, S, S), black."""
    cut, half = images.copy(), images.shape[-1] // 2
    cut[:, :half, :half] = 0
    return cut


def fastest(run: Callable[[], object], times: int = 20) -> float:
    """The least seconds that a call takes."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    cli.run(main)
