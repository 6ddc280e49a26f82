"""Score every radiograph of a folder with a trained checkpoint.

python jobs/score.py --checkpoint runs/first/v2/checkpoint --input archive --output scores
"""

from dataclasses import dataclass
from typing import Literal

from cxr import checkpoint, cli, cluster, scoring, storage


@dataclass(frozen=True)
class ScoreJob:
    """What to score, and with what."""

    checkpoint: str
    """Folder of a trained classifier, as jobs/train.py printed it."""
    input: str
    """Folder or bucket prefix, searched through all its folders, or one file."""
    output: str
    """Folder for the scores, Parquet with a row a file; must be empty or not exist."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Compute on GPUs: auto where the cluster has one."""


def main() -> None:
    job = cli.parse(ScoreJob, __doc__)
    trained = checkpoint.load(job.checkpoint)
    output = storage.claim(job.output)
    cluster.connect()
    done = scoring.score_folder(job.input, trained, output, gpu=cluster.use_gpu(job.gpu))
    for uri, reason in list(done.failures.items())[:5]:
        print(f"  {uri}: {reason}")
    total = done.num_scored + len(done.failures)
    print(
        f"scored {done.num_scored:,} of {total:,}; without score {len(done.failures)} -> {output}"
    )


if __name__ == "__main__":
    cli.run(main)
