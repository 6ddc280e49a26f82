"""Train the published versions and keep the best checkpoint of each.

python jobs/train.py                                        # synthetic radiographs, this machine
python jobs/train.py --version v2 --data chest_xray         # radiographs of a folder
ray job submit --working-dir . -- python jobs/train.py --version v2 --data s3://bucket/chest_xray
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from cxr import cli, cluster, recipes, storage
from cxr.recipes import PUBLISHED_VERSIONS, RECIPES, Recipe
from cxr.reports import comparison_table
from cxr.training.run import RunSettings, reopen, resolve, train


@dataclass(frozen=True)
class Base:
    """What the flags of a recipe are over."""

    version: Literal["all", "v0", "v1", "v2", "v3", "best"] = "all"
    """all four published versions, one of them, or our best."""
    recipe: str | None = None
    """JSON file with a recipe, instead of a version."""


@dataclass(frozen=True)
class TrainJob(Base):
    """What to train, and how."""

    resume: str | None = None
    """Folder of an interrupted run to go on with; it keeps its own settings."""
    run: RunSettings = dataclasses.field(default_factory=RunSettings)
    """What the run reads, writes and uses."""
    settings: Recipe = RECIPES["v0"]
    """Fields of the recipe, over those of the version; defaults shown are the version's."""


def chosen_recipes() -> tuple[TrainJob, list[Recipe]]:
    """The command line read once for each recipe, over that recipe's own values."""
    over = cli.peek(Base)
    if over.recipe:
        bases = [Recipe.from_json(storage.read_bytes(over.recipe).decode())]
    else:
        names = PUBLISHED_VERSIONS if over.version == "all" else (over.version,)
        bases = [recipes.named(name) for name in names]
    jobs = [cli.parse(TrainJob, __doc__, TrainJob(settings=base)) for base in bases]
    return jobs[0], [each.settings for each in jobs]


def main() -> None:
    job, wanted = chosen_recipes()
    if job.resume:
        wanted, settings = reopen(job.resume)
    else:
        settings = resolve(wanted, job.run)
    cluster.connect()
    run = train(wanted, settings)
    print(comparison_table(run.results))
    print(f"report: {run.report}")
    data = f" --data {settings.data}" if settings.data else ""
    for folder in run.checkpoints:
        print(f"checkpoint: {folder}")
        print(f"next: python jobs/evaluate.py --checkpoint {folder}{data}")


if __name__ == "__main__":
    cli.run(main)
