"""Train the published versions and keep the best checkpoint of each.

python jobs/train.py                                        # synthetic radiographs, this machine
python jobs/train.py --version v2 --data chest_xray         # radiographs of a folder
ray job submit --working-dir . -- python jobs/train.py --version v2 --data s3://bucket/chest_xray
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from cxr import cli
from cxr.recipes import RECIPES, Recipe
from cxr.training.settings import IMPORTS, RecipeChoice, RunSettings


@dataclass(frozen=True)
class TrainJob(RecipeChoice):
    """What to train, and how."""

    resume: str | None = None
    """Folder of an interrupted run to resume; it keeps its own settings, but for --int8."""
    settings: Annotated[RunSettings, cli.section("data and resources")] = dataclasses.field(
        default_factory=RunSettings
    )
    """What the run reads, writes and uses."""
    fields: Annotated[Recipe, cli.section("recipe")] = RECIPES["v0"]
    """Changes to the recipe of the version; defaults shown are the version's."""


def main() -> None:
    choice = cli.peek(RecipeChoice)
    jobs = [cli.parse(TrainJob, __doc__, TrainJob(fields=base)) for base in choice.read()]
    # Imported once the command line is known to be right: Ray and PyTorch take seconds.
    from cxr import cluster, storage
    from cxr.cluster.settings import CacheSettings

    cluster.connect(importing=IMPORTS)
    from cxr.reports import comparison_table
    from cxr.training import run

    recipes, resume = [job.fields for job in jobs], jobs[0].resume
    if resume:
        recipes, settings = run.reopen(resume, int8=jobs[0].settings.int8)
    else:
        settings = run.begin(recipes, jobs[0].settings)
    with (
        storage.lock_folder(settings.folder),
        cli.on_interrupt(lambda: run.how_to_resume(settings.folder)),
    ):
        finished = run.train(recipes, settings)
    print(comparison_table(finished.results, finished.remarks))
    print(f"report: {finished.report}")
    for folder in finished.checkpoints:
        print(f"checkpoint: {folder}")
    if finished.best:
        words = ["--checkpoint", finished.best]
        if settings.validates_by_folds and not finished.has_test:  # Nothing is left to evaluate on.
            inputs = "--input <folder, archive or bucket> --output <folder>"
            print(f"next: {cli.command('score', words)} {inputs}")
            return
        words += ["--data", settings.data] if settings.data else []
        words += cli.flags(settings, CacheSettings)
        words += [] if finished.has_test else ["--split", "validation"]
        print(f"next: {cli.command('evaluate', words)}")


if __name__ == "__main__":
    cli.run(main)
