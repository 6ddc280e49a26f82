"""What sharing saves a search: the whole grid at once, against each setting on its own.

    python benchmarks/tune.py --data chest_xray --weights squeezenet1_1-features.safetensors

Ours is `tuning.search` over the full grid with a fresh cache: decoding once, the frozen part once
for each normalization, all heads from the same features. The other way is the same function for one
setting at a time, each with a fresh cache, so that it decodes and passes over the images itself:
what a loop over jobs would do, Ray's start not counted. A few settings are measured and scaled to
all, which is said in the output.
"""

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cxr import cli, cluster, recipes, space, tuning
from cxr.errors import SettingsError
from cxr.runs import RunSettings
from cxr.space import Space


@dataclass(frozen=True)
class TuneBenchmark:
    """What to search, on what."""

    data: str
    """Labelled radiographs."""
    weights: str
    """Weights of the backbone."""
    version: str = "best"
    """Whose settings vary."""
    limit: int = 500
    """Images of both."""
    alone: int = 2
    """Settings that are measured on their own."""
    folds: int = 5
    """Of the cross-validation."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if self.alone < 1:
            raise SettingsError(f"alone: {self.alone} is below 1.")


def seconds(job: TuneBenchmark, wanted: Space) -> float:
    """Wall clock of a search with nothing cached."""
    recipe = recipes.named(job.version)
    with tempfile.TemporaryDirectory() as folder:
        settings = RunSettings(
            data=job.data, weights=job.weights, limit=job.limit, folds=job.folds,
            output=f"{folder}/out", cache=f"{folder}/cache",
        )  # fmt: skip
        started = time.monotonic()
        tuning.search(recipe, wanted, tuning.resolve(recipe, settings))
        return time.monotonic() - started


def main() -> None:
    job = cli.parse(TuneBenchmark, str(__doc__))
    whole = space.parse(("normalization", "class_weighting"), None)
    cluster.connect()
    together = seconds(job, whole)
    # From the grid's corners, so that slow and fast normalizations are both among them.
    step = max(1, len(whole.settings) // job.alone)
    taken = whole.settings[:: step + 1][: job.alone]
    alone = [
        seconds(job, dataclasses.replace(
            whole, grid={name: (value,) for name, value in setting.items()}, trials=1))
        for setting in taken
    ]  # fmt: skip
    scaled = sum(alone) / len(alone) * len(whole.settings)
    print(f"\n{job.limit} images, {len(whole.settings)} settings, {job.folds} folds")
    print(f"together   {together:8.1f} s")
    print(f"alone      {scaled:8.1f} s   scaled from {len(alone)} settings: "
          + ", ".join(f"{value:.1f} s" for value in alone))  # fmt: skip
    print(f"ratio      {scaled / together:8.1f}")
    if job.output:
        results = {"limit": job.limit, "together_s": together, "alone_s": alone,
                   "settings": len(whole.settings), "ratio": scaled / together}  # fmt: skip
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
