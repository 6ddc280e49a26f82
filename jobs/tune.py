"""Search for the best settings by patient-disjoint cross-validation, and say what each is worth.

python jobs/tune.py --version best --data chest_xray --weights squeezenet1_1-features.safetensors
python jobs/tune.py --data URI --search normalization=none,imagenet learning_rate --trials 20

Interrupted, it goes on when the same command is run again with the same --output.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cxr import cli, cluster, recipes, storage
from cxr.recipes import Recipe
from cxr.storage import default_cache
from cxr.training.run import RunSettings
from cxr.tuning import search, space


@dataclass(frozen=True)
class Base:
    """What the flags of a recipe are over."""

    version: Literal["v0", "v1", "v2", "v3", "best"] = "v2"
    """The version whose settings vary."""
    recipe: str | None = None
    """JSON file with a recipe, instead of a version."""


@dataclass(frozen=True)
class TuneJob(Base):
    """What to search, on what."""

    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FACTOR [FACTOR ...]")] = (
        "normalization",
        "class_weighting",
    )
    """normalization and class_weighting are tried in full, or in part, as in
    normalization=none,imagenet; learning_rate, weight_decay, dropout and head_width are drawn."""
    trials: int | None = None
    """Settings in all. Default: the whole grid, or four draws at each of its points."""
    sampler: space.Sampler = "random"
    """Who draws: random, or optuna by earlier trials' figures (pip install -e '.[optuna]')."""
    data: str | None = None
    """Labeled radiographs as for jobs/train.py. Without it, synthetic ones are drawn."""
    weights: str | None = None
    """Pretrained weights as for jobs/train.py."""
    output: str | None = None
    """Folder of the search: empty, or that of the same search. Default: runs/<time>-tune."""
    folds: int = 5
    """Patient-disjoint, class-stratified folds; each setting is judged on all."""
    limit: int | None = None
    """Use at most so many images: whole patients, classes in proportion."""
    workers: str = "1"
    """Training processes of a trial that trains the backbone: 4, or 1:4."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Compute on GPUs: auto where the cluster has one."""
    cache: str = dataclasses.field(default_factory=default_cache)
    """Where pixels, features and weights are kept; on a cluster a place that all nodes reach."""
    settings: Recipe = recipes.RECIPES["v2"]
    """Fields of the recipe, over those of the version; defaults shown are the version's."""


def chosen() -> TuneJob:
    """The command line, over the values of the version or recipe that it names."""
    over = cli.peek(Base)
    if over.recipe:
        base = Recipe.from_json(storage.read_bytes(over.recipe).decode())
    else:
        base = recipes.named(over.version)
    return cli.parse(TuneJob, __doc__, TuneJob(settings=base))


def main() -> None:
    job = chosen()
    wanted = space.parse(job.search, job.trials, job.sampler)
    names = ("data", "weights", "output", "folds", "limit", "workers", "gpu", "cache")
    settings = RunSettings(**{name: getattr(job, name) for name in names})
    settings = search.resolve(job.settings, settings)
    cluster.connect()
    found = search.search(job.settings, wanted, settings)
    print(search.table(found))
    for answer in found.answers:
        print(answer)
    print(f"report: {found.report}")
    data = f" --data {settings.data}" if settings.data else ""
    weights = f" --weights {job.weights}" if job.weights else ""
    print(f"next: python jobs/train.py --recipe {found.best_recipe}{data}{weights}")


if __name__ == "__main__":
    cli.run(main)
