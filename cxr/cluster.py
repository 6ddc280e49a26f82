"""The Ray cluster that a job runs on: the one it was submitted to, or one of its own."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cxr.errors import SettingsError

SPARE_CPUS: Final = 0.2
"""CPUs that a process which computes leaves unclaimed, for the tasks that feed it: if training
workers claimed every CPU, the tasks that read their data would wait for ever."""

MAX_THREADS: Final = 16
"""Threads of one process at most; a bound, not a measurement."""


ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # A hospital expects that nothing calls home.
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # Else Ray Train prints every line twice.
    "RAY_AIR_NEW_OUTPUT": "0",  # Else Ray Tune frames its settings, whatever its verbosity.
    "RAY_DATA_LOGGING_CONFIG": str(Path(__file__).with_name("ray_data_logging.yaml")),
}
"""Environment of the job and of a cluster that it starts; what is set already stays."""


LOCAL_ENVIRONMENT: Final = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""For a cluster of one machine, which nobody preempts or scrapes: a process less to start each."""


@dataclass(frozen=True)
class Share:
    """What each of several equal processes gets of the cluster."""

    threads: int
    """Threads that it computes with."""
    num_cpus: float
    """CPUs that it claims from Ray."""
    num_gpus: int
    """GPUs that it claims from Ray, 0 or 1."""


@dataclass(frozen=True)
class Workers:
    """How many processes train together."""

    least: int
    """Training waits until so many fit the cluster."""
    most: int
    """More join where nodes do; as many as `least` for a fixed number."""


def parse_workers(text: str) -> Workers:
    """What `--workers` means: `4`, or `1:4` for any number between.

    Raises:
        SettingsError: neither of the two.
    """
    least, _, most = text.partition(":")
    try:
        workers = Workers(int(least), int(most or least))
    except ValueError:
        raise SettingsError(f"workers: {text!r} is no number. Give 4, or 1:4 for 1 to 4.") from None
    if not 1 <= workers.least <= workers.most:
        raise SettingsError(f"workers: {text} does not go up from 1. Give 4, or 1:4 for 1 to 4.")
    return workers


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster that this job was submitted to, or start one on this machine.

    Without `RAY_ADDRESS`, which Ray sets for submitted jobs, a local cluster is started: never the
    one that a stale file in the temporary folder names, which would be waited for in vain.

    Args:
        num_cpus: CPUs of a cluster that is started; all of the machine's where None.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    wanted = ENVIRONMENT | (LOCAL_ENVIRONMENT if address == "local" else {})
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    if ray.is_initialized():
        return
    # Workers and actors log errors alone; what a job has to say, it prints.
    ray.init(
        address=address,
        num_cpus=num_cpus,
        include_dashboard=False if address == "local" else None,
        logging_level=logging.ERROR,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)


def use_gpu(wanted: Literal["auto", "on", "off"]) -> bool:
    """Whether to compute on GPUs.

    Raises:
        SettingsError: they are wanted, and the cluster has none.
    """
    import ray

    have = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "on" and not have:
        raise SettingsError("gpu: this cluster has no GPU. Give --gpu off, or let one join.")
    return wanted != "off" and have > 0


def num_processes(wanted: int, threads: int, *, gpu: bool) -> int:
    """How many processes of so many threads, or of one GPU, the cluster holds; at least 1."""
    import ray

    resources = ray.cluster_resources()
    room = resources.get("GPU", 0) if gpu else resources.get("CPU", 1) / threads
    return max(1, min(int(room), wanted))


def share(num_processes: int, *, gpu: bool) -> Share:
    """Divide the cluster's CPUs among processes of one kind."""
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    total = sum(node["CPU"] for node in nodes)
    smallest = min((node["CPU"] for node in nodes), default=1.0)
    threads = int(max(1, min(total // num_processes, smallest, MAX_THREADS)))
    if gpu:
        threads = 1
    return Share(threads, threads - SPARE_CPUS, int(gpu))
