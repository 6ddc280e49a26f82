"""Examine a trained checkpoint on a split that it never saw.

python jobs/evaluate.py --checkpoint runs/first/v2/checkpoint --data chest_xray
python jobs/evaluate.py --checkpoint DIR --data URI --operating-point sensitivity=0.95
"""

import time
from dataclasses import dataclass, field
from typing import Literal

from cxr import cli, cluster, evaluation, phantoms, storage
from cxr.models import checkpoint
from cxr.storage import default_cache
from cxr.training import run


@dataclass(frozen=True)
class EvaluateJob:
    """What to examine, and on what."""

    checkpoint: str
    """Folder of a trained classifier, as jobs/train.py printed it."""
    data: str | None = None
    """Folder, s3:// prefix, zip or tar archive with train|val|test / NORMAL|PNEUMONIA in it, or a
    manifest. Without it, the synthetic radiographs that jobs/train.py draws."""
    split: Literal["train", "val", "test"] = "test"
    """The split to examine on."""
    operating_point: str | None = None
    """Another rule for the threshold than the checkpoint's, still chosen on its validation images:
    youden, sensitivity=X or specificity=X."""
    output: str | None = None
    """Folder for the results; must be empty or not exist. Default: runs/<time>-evaluate."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Compute on GPUs: auto where the cluster has one."""
    cache: str = field(default_factory=default_cache)
    """Where decoded pixels are kept; on a cluster a place that all nodes reach."""


def main() -> None:
    job = cli.parse(EvaluateJob, __doc__)
    trained = checkpoint.load(job.checkpoint)
    point = trained.choose(job.operating_point)
    where = job.data or phantoms.kept(run.PHANTOMS, job.cache)
    output = storage.claim(job.output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-evaluate")
    cluster.connect()
    done = evaluation.evaluate(
        trained, where, job.split, output, operating_point=point, cache=job.cache,
        name="phantoms" if job.data is None else where.rstrip("/").rsplit("/", 1)[-1],
        gpu=cluster.use_gpu(job.gpu),
    )  # fmt: skip
    print(evaluation.summary(done.examination))
    if done.num_left_out:
        print(f"skipped: {done.num_left_out:,} images; the report names them with the reason")
    print(f"report: {done.report}")
    print(f"next: python jobs/score.py --checkpoint {job.checkpoint} --input <folder> --output DIR")


if __name__ == "__main__":
    cli.run(main)
