"""What Ray Train calls in each worker.

A module of its own, without PyTorch, because Ray Train's controller imports it too.
"""

from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from cxr.training.worker import WorkerConfig


def train_worker(config: "dict[str, ray.ObjectRef[WorkerConfig]]") -> None:
    """Train what `config["worker"]` says, from the last epoch that was reported."""
    from cxr.training import worker

    worker.train(ray.get(config["worker"]))
