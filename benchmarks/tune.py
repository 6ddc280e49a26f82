"""What sharing work saves: a search over the whole grid, compared with separate trials.

    python -m benchmarks.tune --data chest_xray --weights squeezenet1_1-features.safetensors

"Together" is `search.search` over the full grid with an empty cache: images are decoded once,
frozen layers run once per normalization, and all heads train on the same features. The others share
less; each starts with an empty cache, and Ray's start is not counted:

- alone: `search.search` for one setting at a time. Folds and epochs still share features.
- jobs: `run.train` for one fold of one setting at a time, as a loop over jobs/train.py does. Epochs
  still share features.

A few of both are measured and scaled to all; the output says so.
"""

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr import cli, cluster, recipes
from cxr.errors import SettingsError
from cxr.training import run
from cxr.training.settings import RunSettings, resolve
from cxr.tuning import search, space
from cxr.tuning.settings import SearchSettings
from cxr.tuning.space import Setting, Space


@dataclass(frozen=True)
class TuneBenchmark:
    """What to search, and on which data."""

    data: str
    """Labeled radiographs."""
    weights: str
    """Weights of the backbone."""
    version: str = "frozen"
    """The version whose settings vary."""
    limit: int | None = None
    """Use at most this many images."""
    alone: int = 2
    """Number of settings, and of folds, that are measured separately."""
    folds: int = 5
    """Folds of the cross-validation."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if self.alone < 1:
            raise SettingsError(f"alone: {self.alone} is below 1.")


def searching(job: TuneBenchmark, wanted: Space) -> float:
    """Seconds of a search with nothing cached."""
    recipe = recipes.named(job.version)
    with tempfile.TemporaryDirectory() as folder:
        settings = resolve(SearchSettings(**fresh(job, folder)), [recipe])
        started = time.monotonic()
        search.search(recipe, wanted, settings)
        return time.monotonic() - started


def training(job: TuneBenchmark, setting: Setting) -> float:
    """Seconds of a run on one fold with nothing cached."""
    recipe = space.apply(recipes.named(job.version), setting)
    with tempfile.TemporaryDirectory() as folder:
        settings = run.begin([recipe], RunSettings(**fresh(job, folder)))
        started = time.monotonic()
        run.train([recipe], settings)
        return time.monotonic() - started


def fresh(job: TuneBenchmark, folder: str) -> dict[str, Any]:
    return {
        "data": job.data, "weights": job.weights, "limit": job.limit, "folds": job.folds,
        "output": f"{folder}/out", "cache": f"{folder}/cache", "stress_images": 0,
    }  # fmt: skip


def main() -> None:
    job = cli.parse(TuneBenchmark, str(__doc__))
    whole = space.parse(("normalization", "class_weighting"), None)
    cluster.connect()
    # Settings that differ in both factors.
    taken = whole.settings[:: len(whole.settings) // job.alone + 1][: job.alone]
    alone = [
        searching(job, dataclasses.replace(
            whole, grid={name: (value,) for name, value in setting.items()}, trials=1))
        for setting in taken
    ]  # fmt: skip
    jobs = [training(job, setting) for setting in taken]
    together = searching(job, whole)
    num = len(whole.settings)
    scaled = {
        "alone": sum(alone) / len(alone) * num,
        "jobs": sum(jobs) / len(jobs) * num * job.folds,
    }
    print(f"\n{num} settings, {job.folds} folds, {job.limit or 'all'} images")
    print(f"together {together:9.1f} s")
    for (name, value), each in zip(scaled.items(), (alone, jobs), strict=True):
        taken_s = ", ".join(f"{second:.1f} s" for second in each)
        print(f"{name:8} {value:9.1f} s, {value / together:5.1f} times; scaled from {taken_s}")
    if job.output:
        results = {"limit": job.limit, "settings": num, "folds": job.folds,
                   "together_s": together, "alone_s": alone, "jobs_s": jobs}  # fmt: skip
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
