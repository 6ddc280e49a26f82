"""Score an archive with a trained checkpoint: every image once, every failure explained.

python jobs/score.py --checkpoint runs/first/v2/checkpoint --input archive --output scores
python jobs/score.py --input archive --output scores          # the model of this package
python jobs/score.py --checkpoint DIR --input s3://bucket/2024 old.zip more.tar.gz --output URI

Killed, it resumes when the same command is run again.
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from cxr import cli
from cxr.cluster.settings import ComputeSettings
from cxr.errors import SettingsError
from cxr.models.precision import Precision, check_precision
from cxr.scoring.columns import ColumnSettings
from cxr.scoring.report_settings import check_installed

TOO_MANY_FAILED = 3


@dataclass(frozen=True)
class ScoreJob:
    """What to score, and with what."""

    input: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI [URI ...]")]
    """Files, folders (with all folders below), globs, bucket prefixes, zip or tar archives (.zip
    .tar .tgz .tar.gz .tar.zst .tar.bz2 .tar.xz; also inside folders and one inside another),
    members (archive.zip!/path), and manifests with a column uri (.csv .tsv .csv.gz .parquet
    .xlsx)."""
    output: str
    """Folder or bucket prefix for the scores: empty, or that of the same command before."""
    checkpoint: str | None = None
    """Folder of a trained classifier, as jobs/train.py printed it. Default: the model that this
    package ships, for research on radiographs of children alone."""
    operating_point: str | None = None
    """Another rule for the threshold than the checkpoint's, chosen on its validation images:
    youden, sensitivity=X, specificity=X, or cost=FN:FP,prevalence=P for the costs of a false
    negative and a false positive."""
    any_body_part: bool = False
    """Score DICOM files whose header names another body part than the chest, too."""
    any_view: bool = False
    """Score DICOM files whose header names a lateral or oblique view, too."""
    update: bool = False
    """List the inputs again and score what is new in them."""
    heatmaps: bool = False
    """Show where the network looked in the images on the page; takes a few seconds at the end."""
    dicom_sr: bool = False
    """Write a DICOM Structured Report for each scored DICOM image, which names its patient as the
    image does; for research use only. Needs pip install -e '.[dicom]'."""
    max_failed_fraction: float = 1.0
    """Exit with code 3 when more than this share of the listed images has no score."""
    columns: Annotated[ColumnSettings, cli.section("columns")] = dataclasses.field(
        default_factory=ColumnSettings
    )
    """Which columns the scores have beyond their own."""
    precision: Precision = "float32"
    """int8: in 8-bit integers, on CPUs only, with a checkpoint of jobs/train.py --int8."""
    compute: Annotated[ComputeSettings, cli.section("resources")] = dataclasses.field(
        default_factory=ComputeSettings
    )
    """What the job computes on."""

    def __post_init__(self) -> None:
        check_precision(self.precision, self.compute.gpu)
        if self.dicom_sr:
            check_installed()
        if not self.input:
            raise SettingsError("input: give at least one file, folder, archive or manifest.")
        if not 0 <= self.max_failed_fraction <= 1:
            raise SettingsError(f"max_failed_fraction: {self.max_failed_fraction} is not 0 to 1.")


def main() -> None:
    job = cli.parse(ScoreJob, __doc__)
    # Imported once the command line is known to be right: Ray takes seconds.
    from cxr import cluster, storage
    from cxr.models import checkpoint
    from cxr.scoring.job import score

    trained = checkpoint.load(job.checkpoint or checkpoint.STARTER).at(job.precision)
    if trained.note:
        print(f"checkpoint: {trained.note}")
    point = trained.choose(job.operating_point)
    output = storage.absolute(job.output)
    cluster.connect(importing=("cxr.reports",))
    gpu = job.precision == "float32" and cluster.use_gpu(job.compute.gpu)
    done = score(
        job.input, trained, output, operating_point=point, columns=job.columns,
        any_body_part=job.any_body_part, any_view=job.any_view, update=job.update,
        heatmaps=job.heatmaps, dicom_sr=job.dicom_sr, gpu=gpu,
    )  # fmt: skip
    if job.operating_point:
        print(
            f"operating point: {point.rule} -> threshold {point.threshold:.4f}; on {point.reached}"
        )
    print(f"report: {storage.join(output, 'index.html')}")
    print(
        f"scored {done.num_scored:,} of {done.num_listed:,}; refused {done.num_refused:,};"
        f" unreadable {done.num_unreadable:,} -> {output}",
        flush=True,
    )
    if done.failed_fraction > job.max_failed_fraction:
        print(
            f"error: {done.failed_fraction:.1%} have no score, more than the"
            f" {job.max_failed_fraction:.1%} of --max-failed-fraction.",
            file=sys.stderr,
        )
        sys.exit(TOO_MANY_FAILED)


if __name__ == "__main__":
    cli.run(main)
