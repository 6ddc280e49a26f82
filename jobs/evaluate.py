"""Evaluate a trained checkpoint on a split that it was not trained on.

python jobs/evaluate.py --checkpoint runs/first/v2/checkpoint --data chest_xray
python jobs/evaluate.py --checkpoint DIR --data URI --split validation
python jobs/evaluate.py --checkpoint DIR --data URI --operating-point sensitivity=0.95
python jobs/evaluate.py --checkpoint DIR --data list.csv --by sex,age_band,scanner
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import tyro

from cxr import cli
from cxr.cluster.settings import CachedComputeSettings
from cxr.metrics import DEFAULT_STRESSED, check_stress_images
from cxr.models.precision import Precision, check_precision
from cxr.sources.settings import SetSettings, Split, parse_columns


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate, and on what."""

    checkpoint: str
    """Folder of a trained classifier, as jobs/train.py printed it."""
    split: Split = "test"
    """What to evaluate on: a split of the data, or the images that validated the checkpoint. Where
    the data have no test split, test are the patients whom --test-fraction held out."""
    operating_point: str | None = None
    """Another rule for the threshold than the checkpoint's, still chosen on its validation images:
    youden, sensitivity=X, specificity=X, or cost=FN:FP,prevalence=P for the costs of a false
    negative and a false positive."""
    by: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN[,COLUMN]")] = ()
    """Columns of the manifest, such as sex,age_band,scanner: each of their values is evaluated by
    itself, too."""
    stress_images: int = DEFAULT_STRESSED
    """Images, at most, that are scored under each acquisition change, for the robustness table; 0:
    none."""
    output: str | None = None
    """Folder for the results; must be empty or not exist. Default: runs/<time>-evaluate."""
    precision: Precision = "float32"
    """int8: in 8-bit integers, on CPUs only, with a checkpoint of jobs/train.py --int8."""
    settings: Annotated[SetSettings, cli.section("data")] = dataclasses.field(
        default_factory=SetSettings
    )
    """What is read, and how; what is not given is as in training, but for --data."""
    compute: Annotated[CachedComputeSettings, cli.section("resources")] = dataclasses.field(
        default_factory=CachedComputeSettings
    )
    """What the job computes on."""

    def __post_init__(self) -> None:
        check_precision(self.precision, self.compute.gpu)
        check_stress_images(self.stress_images)


def main() -> None:
    job = cli.parse(EvaluateJob, __doc__)
    # Imported once the command line is known to be right: Ray and PyTorch take seconds.
    from cxr import cluster, evaluation, phantoms, storage
    from cxr.models import checkpoint

    trained = checkpoint.load(job.checkpoint).at(job.precision)
    point = trained.choose(job.operating_point)
    settings = evaluation.read_as_trained(job.settings, trained)
    data, name = phantoms.data_or_default(settings.data, job.compute.cache)
    output = storage.claim(job.output or storage.default_output("-evaluate"))
    columns = [name for names in job.by for name in names.split(",")]
    cluster.connect()
    gpu = job.precision == "float32" and cluster.use_gpu(job.compute.gpu)
    done = evaluation.evaluate(
        trained, data, job.split, output, settings=settings, operating_point=point,
        cache=job.compute.cache, name=name, by=columns,
        stress_images=job.stress_images, gpu=gpu,
    )  # fmt: skip
    print(evaluation.summary(done.examination, done.subgroups, done.robustness))
    if done.num_skipped:
        print(f"skipped: {done.num_skipped:,} images; the report names them with the reason")
    print(f"report: {done.report}")
    words = ["--checkpoint", job.checkpoint, "--input", data, "--output", f"{output}-scores"]
    if column := parse_columns(settings.columns).get("uri"):
        words += ["--columns", f"uri={column}"]
    print(f"next: {cli.command('score', words)}")


if __name__ == "__main__":
    cli.run(main)
