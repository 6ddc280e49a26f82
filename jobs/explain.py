"""Explain images: where a trained checkpoint looked, as heatmaps.

python jobs/explain.py --checkpoint runs/first/v2/checkpoint --input xrays --output explained
python jobs/explain.py --checkpoint DIR --input a.dcm old.zip --output DIR --method occlusion

It computes on this machine's CPUs, without Ray.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from cxr import cli
from cxr.errors import SettingsError
from cxr.explanations.settings import Method
from cxr.sources.settings import parse_columns


@dataclass(frozen=True)
class ExplainJob:
    """What to explain, and how."""

    checkpoint: str
    """Folder of a trained classifier, as jobs/train.py printed it."""
    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI [URI ...]")]
    """Files, folders, globs, bucket prefixes, archives and manifests, as jobs/score.py takes
    them."""
    output: str
    """Folder or bucket prefix for heatmaps and page; must be empty or not exist."""
    method: Method = "grad_cam"
    """grad_cam: one pass back through the network. occlusion: a pass for each of 169 places that
    are covered; about a hundred times slower, and the same for every network."""
    limit: int = 100
    """At most so many images, the first of the listing."""
    columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="uri=COLUMN")] = ()
    """The column of a manifest with the addresses, where it is not called uri."""
    any_body_part: bool = False
    """Explain DICOM files whose header names another body part than the chest, too."""
    any_view: bool = False
    """Explain DICOM files whose header names a lateral or oblique view, too."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        if not self.input:
            raise SettingsError("input: give at least one file, folder, archive or manifest.")
        if self.limit < 1:
            raise SettingsError(f"limit: {self.limit} is below 1.")


def main() -> None:
    job = cli.parse(ExplainJob, __doc__)
    # Imported once the command line is known to be right: PyTorch takes seconds.
    from cxr import storage
    from cxr.explanations.job import explain_inputs
    from cxr.models import checkpoint

    trained = checkpoint.load(job.checkpoint)
    output = storage.claim(job.output)
    done = explain_inputs(
        job.input, trained, output, method=job.method, limit=job.limit, columns=job.columns,
        any_body_part=job.any_body_part, any_view=job.any_view,
    )  # fmt: skip
    if done.num_listed > job.limit:
        print(f"the first {job.limit:,} of {done.num_listed:,} listed images; --limit takes more")
    print(
        f"explained {done.num_explained:,}; refused {done.num_refused:,}; unreadable"
        f" {done.num_unreadable:,} -> {output}"
    )
    print(f"report: {done.report}")
    words = ["--checkpoint", job.checkpoint, "--input", *job.input, "--output", f"{output}-scores"]
    words += ["--columns", *job.columns] if job.columns else []
    print(f"next: {cli.command('score', words)}")


if __name__ == "__main__":
    cli.run(main)
