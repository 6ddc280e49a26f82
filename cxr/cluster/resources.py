"""What a job may use of the cluster, and how it is divided among processes."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cxr.errors import SettingsError

if TYPE_CHECKING:
    import ray.data

SPARE_CPUS: Final = 0.2
"""CPUs that a process which computes leaves unclaimed, for the tasks that feed it: if training
workers claimed every CPU, the tasks that read their data would wait forever."""

MAX_THREADS: Final = 16
"""Threads of one process at most; a bound, not a measurement."""

NODES_WAIT_S: Final = 900.0
"""How long a job waits for nodes that an autoscaler may start: a GPU machine of a cloud takes 3 to
10 minutes until its software is installed."""

UseGpu = Literal["auto", "on", "off"]
"""`auto`: where the cluster has a GPU; `on`: wait for one; `off`: never."""


@dataclass(frozen=True)
class Share:
    """What each of several equal processes gets of the cluster."""

    threads: int
    """Threads that it computes with."""
    num_cpus: float
    """CPUs that it claims from Ray."""
    num_gpus: int
    """GPUs that it claims from Ray, 0 or 1."""

    @property
    def claim(self) -> dict[str, float]:
        """The same as options of an actor."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}

    @property
    def bundle(self) -> dict[str, float]:
        """The same as an autoscaler is asked for it."""
        claimed = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {resource: number for resource, number in claimed.items() if number}


@dataclass(frozen=True)
class Pool:
    """Equal processes that share the work of a dataset."""

    min_size: int
    """Processes that the cluster has room for, if there is work for so many."""
    max_size: int
    """Processes that there is work for, should nodes join; `min_size` on a cluster of our own."""
    share: Share
    """What each gets."""

    def map(
        self,
        dataset: "ray.data.Dataset",
        actor: type,
        args: Sequence[object],
        batch_size: int | None = None,
    ) -> "ray.data.Dataset":
        """Send the batches of a dataset, as Arrow tables, through actors of the pool.

        Args:
            dataset: read lazily, as the result is.
            actor: a class whose instances are called with a batch.
            args: of its constructor.
            batch_size: rows of a batch; None for as many as come together, or on a GPU, where Ray
                Data demands a number, for one.
        """
        import ray.data

        mapped: ray.data.Dataset = dataset.map_batches(
            actor,
            fn_constructor_args=args,
            batch_format="pyarrow",
            batch_size=batch_size or (1 if self.share.num_gpus else None),
            compute=ray.data.ActorPoolStrategy(min_size=self.min_size, max_size=self.max_size),
            num_cpus=self.share.num_cpus,
            num_gpus=self.share.num_gpus,
        )
        return mapped


@dataclass(frozen=True)
class Workers:
    """How many processes train together."""

    min: int
    """Training waits until so many fit the cluster."""
    max: int
    """More join where nodes do; `min` for a fixed number."""


def parse_workers(text: str) -> Workers:
    """What `--workers` means: `4`, or `1:4` for any number between.

    Raises:
        SettingsError: neither of the two.
    """
    fewest, _, most = text.partition(":")
    try:
        workers = Workers(int(fewest), int(most or fewest))
    except ValueError:
        raise SettingsError(f"workers: {text!r} is no number. Give 4, or 1:4 for 1 to 4.") from None
    if not 1 <= workers.min <= workers.max:
        raise SettingsError(f"workers: {text} does not go up from 1. Give 4, or 1:4 for 1 to 4.")
    return workers


def is_joined() -> bool:
    """Whether the cluster is one that was there before, and whose nodes may come and go."""
    return "RAY_ADDRESS" in os.environ


def wait_for(resource: Literal["CPU", "GPU"], num: int) -> int:
    """Wait until the cluster has so many, and ask its autoscaler for them, if it has one.

    A cluster of our own has what it has.

    Returns:
        How many it has in the end: fewer where they have not come after `NODES_WAIT_S`.
    """
    import ray

    available = int(ray.cluster_resources().get(resource, 0))
    if available >= num or not is_joined():
        return available
    print(
        f"waiting for nodes: {resource}s needed {num}, in the cluster {available}; at most"
        f" {NODES_WAIT_S / 60:.0f} minutes",
        flush=True,
    )
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{resource: 1}] * num)
    started = time.monotonic()
    try:
        while available < num and time.monotonic() - started < NODES_WAIT_S:
            time.sleep(1)
            available = int(ray.cluster_resources().get(resource, 0))
    finally:
        request_resources(bundles=[])  # Else they would be kept forever, also by a stopped job.
    return available


def use_gpu(asked: UseGpu) -> bool:
    """Whether to compute on GPUs: `auto` where the cluster has one now, `on` waits for one.

    Raises:
        SettingsError: `on`, and the cluster has none.
    """
    import ray

    if asked == "on" and not wait_for("GPU", 1):
        raise SettingsError("gpu: this cluster has no GPU. Give --gpu off, or let one join.")
    return asked != "off" and ray.cluster_resources().get("GPU", 0) >= 1


def pool(num_tasks: int, threads: int, *, gpu: bool) -> Pool:
    """The processes for a number of tasks.

    Args:
        num_tasks: no more processes than these.
        threads: of each process, where it computes on CPUs.
        gpu: a GPU for each.
    """
    import ray

    resources = ray.cluster_resources()
    room = resources.get("GPU", 0) if gpu else resources.get("CPU", 1) / threads
    size = max(1, min(int(room), num_tasks))
    return Pool(size, max(num_tasks, 1) if is_joined() else size, share(size, gpu=gpu))


def share(num_processes: int, *, gpu: bool) -> Share:
    """Divide the cluster's CPUs among equal processes."""
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    total = sum(node["CPU"] for node in nodes)
    smallest = min((node["CPU"] for node in nodes), default=1.0)
    threads = int(max(1, min(total // num_processes, smallest, MAX_THREADS)))
    if gpu:
        threads = 1
    return Share(threads, threads - SPARE_CPUS, int(gpu))
