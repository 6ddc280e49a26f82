"""Do heatmaps point at the opacity? A pointing game on phantoms, whose opacities are known.

    python -m benchmarks.pointing --checkpoint DIR
    python -m benchmarks.pointing --checkpoint DIR --num-images 40 --output pointing.json

A heatmap hits where its maximum is in one of the opacities of the phantom (Zhang et al. 2016, arXiv
1608.00507, here without their margin of 15 pixels). Beside each method stands the same one with
random weights in all layers, a map that always points at the center, and chance: the share of the
image that the opacities cover. The phantoms are other ones than a training has drawn; a checkpoint
that was trained on phantoms is the one to be asked. Nothing here says what heatmaps of radiographs
are worth.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cxr import cli, metrics, phantoms
from cxr.errors import SettingsError
from cxr.explanations.heatmaps import compute_logits, explain
from cxr.explanations.settings import Method
from cxr.images.resize import resize
from cxr.models import checkpoint, classifier
from cxr.phantoms import Opacity, Phantom

SEED: Final = 1_234
"""Of the phantoms; sets that are trained on are drawn from small numbers, in another way."""


@dataclass(frozen=True)
class PointingBenchmark:
    """What is asked, and how often."""

    checkpoint: str
    """Folder of a classifier that was trained on phantoms."""
    num_images: int = 200
    """Phantoms with opacities; half of them have one, half two or three."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise SettingsError(f"num_images: {self.num_images} is below 1.")


def main() -> None:
    job = cli.parse(PointingBenchmark, __doc__ or "")
    trained = checkpoint.load(job.checkpoint)
    recipe = trained.recipe
    drawn = draw(job.num_images)
    pixels = np.stack([resize(phantom.pixels, recipe.image_px) for phantom in drawn])
    opacities = [phantom.opacities for phantom in drawn]
    probs = metrics.probabilities(
        compute_logits(trained.model, recipe.normalization, pixels), trained.scaling
    )
    found = float(trained.operating_point.predict(probs).mean())
    print(f"{len(drawn):,} phantoms with opacities, {found:.1%} of them predicted as pneumonia")
    other = classifier.build(dataclasses.replace(recipe, seed=recipe.seed + 1)).eval()
    results: dict[str, dict[str, Any]] = {}
    for method in get_args(Method):
        for name, model in ((method, trained.model), (f"{method}, random weights", other)):
            started = time.perf_counter()
            peaks = [peak(m) for m in explain(model, recipe.normalization, pixels, method)]
            seconds = time.perf_counter() - started
            results[name] = count_hits(peaks, opacities) | {"seconds": seconds}
    results["center"] = count_hits([(0.5, 0.5)] * len(drawn), opacities)
    for name, result in results.items():
        low, high = result["interval"]
        print(f"{name:28} {result['share']:6.1%} [{low:.1%}, {high:.1%}]")
    covered = float(np.mean([cover(shapes).mean() for shapes in opacities]))
    print(f"{'chance':28} {covered:6.1%}")
    if job.output:
        content = {"predicted_pneumonia": found, "chance": covered, "methods": results}
        job.output.write_text(json.dumps(content, indent=2) + "\n")


def draw(num_images: int) -> list[Phantom]:
    """So many phantoms with opacities, always the same."""
    subtypes: tuple[phantoms.Subtype, ...] = ("bacteria", "virus")
    return [
        phantoms.draw(np.random.default_rng([SEED, index]), subtypes[index % 2])
        for index in range(num_images)
    ]


def peak(heatmap: NDArray[np.float32]) -> tuple[float, float] | None:
    """Where a heatmap (S, S) is highest: x and y as shares of its side; None where it is all zero.

    Of a plateau, as occlusion makes them, its middle.
    """
    if not heatmap.any():
        return None
    rows, columns = np.nonzero(heatmap == heatmap.max())
    side = heatmap.shape[0]
    return (columns.mean() + 0.5) / side, (rows.mean() + 0.5) / side


def count_hits(
    peaks: Sequence[tuple[float, float] | None], opacities: Sequence[Sequence[Opacity]]
) -> dict[str, Any]:
    """How many peaks are in an opacity, their share, and its 95 % interval (Wilson)."""
    hits = sum(
        position is not None and any(is_in(*position, opacity) for opacity in shapes)
        for position, shapes in zip(peaks, opacities, strict=True)
    )
    interval = binomtest(hits, len(peaks)).proportion_ci(method="wilson")
    return {
        "hits": hits,
        "images": len(peaks),
        "share": hits / len(peaks),
        "interval": [interval.low, interval.high],
        "without_peak": sum(position is None for position in peaks),
    }


def is_in(x: Any, y: Any, opacity: Opacity) -> Any:
    """Whether points, as shares of the image's side, are within an opacity's radii."""
    across, down = (x - opacity.x) / opacity.radius_x, (y - opacity.y) / opacity.radius_y
    return across**2 + down**2 <= 1


def cover(opacities: Sequence[Opacity], side: int = 224) -> NDArray[np.bool_]:
    """Which pixels of a square are in an opacity: (side, side)."""
    centers = (np.arange(side) + 0.5) / side
    covered = np.zeros((side, side), bool)
    for opacity in opacities:
        covered |= is_in(centers[None], centers[:, None], opacity)
    return covered


if __name__ == "__main__":
    cli.run(main)
