"""Check a labeled set before training: read everything once, train nothing.

python jobs/check.py --data chest_xray
python jobs/check.py --data list.csv --columns uri=File label=Finding patient=PatientID
python jobs/check.py --data s3://bucket/set.zip --cache s3://bucket/cache

It prints the training command that follows, which does not decode the images again.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from cxr import cli
from cxr.cluster.settings import CacheSettings
from cxr.errors import DataError
from cxr.training.settings import ImageSettings, RecipeChoice, Version


@dataclass(frozen=True)
class CheckJob(RecipeChoice):
    """What to check, and for which training."""

    version: Version | Literal["all"] = "best"
    """What is to be trained: all published versions and our best, or one recipe. Its image size is
    that of the pixels that are kept."""
    output: str | None = None
    """Folder for the report; must be empty or not exist. Default: runs/<time>-check."""
    images: Annotated[ImageSettings, cli.section("data")] = dataclasses.field(
        default_factory=ImageSettings
    )
    """What is read, with the flags of training."""
    cached: Annotated[CacheSettings, cli.section("resources")] = dataclasses.field(
        default_factory=CacheSettings
    )
    """Where decoded pixels are kept."""


def main() -> None:
    job = cli.parse(CheckJob, __doc__)
    # Imported once the command line is known to be right: Ray and PyTorch take seconds.
    from cxr import cluster, storage
    from cxr.checking.job import check, summary

    output = storage.claim(job.output or storage.default_output("-check"))
    cluster.connect()
    report = check(job, job.images, job.cached, output)
    print(summary(report))
    print(f"report: {storage.join(output, 'report.html')}")
    if report.problems:
        raise DataError(f"training cannot start: {report.problems[0]}")
    print(f"next: {report.command}")


if __name__ == "__main__":
    cli.run(main)
