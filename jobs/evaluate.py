"""Evaluate a trained checkpoint on a split that it was not trained on.

python jobs/evaluate.py --checkpoint runs/first/v2/checkpoint --data chest_xray
python jobs/evaluate.py --checkpoint DIR --data URI --operating-point sensitivity=0.95
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from cxr import cli
from cxr.cluster.settings import CachedComputeSettings
from cxr.models.precision import Precision, check_precision


@dataclass(frozen=True)
class EvaluateJob:
    """What to evaluate, and on what."""

    checkpoint: str
    """Folder of a trained classifier, as jobs/train.py printed it."""
    data: str | None = None
    """Folder, s3:// prefix, zip or tar archive with train|val|test / NORMAL|PNEUMONIA in it, or a
    manifest. Without it, the synthetic radiographs that jobs/train.py draws."""
    split: Literal["train", "val", "test"] = "test"
    """The split to evaluate on."""
    operating_point: str | None = None
    """Another rule for the threshold than the checkpoint's, still chosen on its validation images:
    youden, sensitivity=X or specificity=X."""
    output: str | None = None
    """Folder for the results; must be empty or not exist. Default: runs/<time>-evaluate."""
    precision: Precision = "float32"
    """int8: in 8-bit integers, on CPUs only, with a checkpoint of jobs/train.py --int8."""
    compute: Annotated[CachedComputeSettings, cli.section("resources")] = dataclasses.field(
        default_factory=CachedComputeSettings
    )
    """What the job computes on."""

    def __post_init__(self) -> None:
        check_precision(self.precision, self.compute.gpu)


def main() -> None:
    job = cli.parse(EvaluateJob, __doc__)
    # Imported once the command line is known to be right: Ray and PyTorch take seconds.
    from cxr import cluster, evaluation, phantoms, storage
    from cxr.models import checkpoint

    trained = checkpoint.load(job.checkpoint).at(job.precision)
    point = trained.choose(job.operating_point)
    data, name = phantoms.data_or_default(job.data, job.compute.cache)
    output = storage.claim(job.output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-evaluate")
    cluster.connect()
    gpu = job.precision == "float32" and cluster.use_gpu(job.compute.gpu)
    done = evaluation.evaluate(
        trained, data, job.split, output, operating_point=point, cache=job.compute.cache,
        name=name, gpu=gpu,
    )  # fmt: skip
    print(evaluation.summary(done.examination))
    if done.num_skipped:
        print(f"skipped: {done.num_skipped:,} images; the report names them with the reason")
    print(f"report: {done.report}")
    print(f"next: python jobs/score.py --checkpoint {job.checkpoint} --input <folder> --output DIR")


if __name__ == "__main__":
    cli.run(main)
