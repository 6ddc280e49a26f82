"""Search for the best settings by patient-disjoint cross-validation, and compare them in pairs.

python jobs/tune.py --version frozen --data chest_xray --weights squeezenet1_1-features.safetensors
python jobs/tune.py --data URI --search normalization=none,imagenet learning_rate --trials 20

Interrupted, it resumes when the same command is run again with the same --output.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import tyro

from cxr import cli
from cxr.recipes import RECIPES, Recipe
from cxr.sources.settings import SetSettings
from cxr.training.settings import IMPORTS, RecipeChoice, Version, resolve
from cxr.tuning import space
from cxr.tuning.settings import SearchSettings


@dataclass(frozen=True)
class BaseChoice(RecipeChoice):
    """Which recipe the settings of a search change."""

    version: Version = "v2"
    """The version whose settings vary."""


@dataclass(frozen=True)
class TuneJob(BaseChoice):
    """What to search, on what."""

    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FACTOR [FACTOR ...]")] = (
        "normalization",
        "class_weighting",
    )
    """normalization, class_weighting, views and augmentation_strength are tried in full;
    learning_rate, weight_decay, dropout and head_width are drawn. With values, as in
    normalization=none,imagenet views=1,4,8 weight_decay=0.01,0.1, those are tried."""
    trials: int | None = None
    """Number of settings. Default: the whole grid, or four draws at each of its points."""
    sampler: space.Sampler = "random"
    """How settings are drawn: at random, or by optuna from the figures of earlier trials (needs
    pip install -e '.[optuna]')."""
    settings: Annotated[SearchSettings, cli.section("data and resources")] = dataclasses.field(
        default_factory=SearchSettings
    )
    """What the search reads, writes and uses; each setting is judged on all folds."""
    fields: Annotated[Recipe, cli.section("recipe")] = RECIPES["v2"]
    """Changes to the recipe of the version; defaults shown are the version's."""


def main() -> None:
    [base] = cli.peek(BaseChoice).read()
    job = cli.parse(TuneJob, __doc__, TuneJob(fields=base))
    # Imported once the command line is known to be right: Ray and PyTorch take seconds.
    from cxr import cluster, storage
    from cxr.cluster.settings import CacheSettings

    asked = space.parse(job.search, job.trials, job.sampler)
    cluster.connect(importing=IMPORTS)
    from cxr.tuning import results, search

    settings = resolve(job.settings, [job.fields], "-tune")
    with (
        storage.lock_folder(settings.folder),
        cli.on_interrupt(lambda: search.how_to_resume(settings.folder)),
    ):
        finished = search.search(job.fields, asked, settings)
    print(results.table(finished))
    for answer in finished.answers:
        print(answer)
    print(f"report: {finished.report}")
    words = ["--recipe", finished.best_recipe, *cli.flags(settings, SetSettings)]
    if settings.test_fraction is not None:
        words += ["--test-fraction", str(settings.test_fraction)]
    if job.settings.weights:
        words += ["--weights", job.settings.weights]
    words += cli.flags(settings, CacheSettings)
    print(f"next: {cli.command('train', words)}")


if __name__ == "__main__":
    cli.run(main)
