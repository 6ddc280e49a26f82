"""The Ray cluster that a job runs on: the one it was submitted to, or one of its own."""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cxr import storage
from cxr.errors import CxrError, SettingsError

if TYPE_CHECKING:
    import ray.data

SPARE_CPUS: Final = 0.2
"""CPUs that a process which computes leaves unclaimed, for the tasks that feed it: if training
workers claimed every CPU, the tasks that read their data would wait for ever."""

MAX_THREADS: Final = 16
"""Threads of one process at most; a bound, not a measurement."""

CONNECT_S: Final = 10.0
"""Longest time until a cluster's head takes a connection."""

NODES_WAIT_S: Final = 900.0
"""How long a job waits for nodes that an autoscaler may start: a GPU machine of a cloud takes 3 to
10 minutes until its software is installed."""


ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # A hospital expects that nothing calls home.
    "RAY_TRAIN_V2_ENABLED": "1",
    # Seconds until a group of workers is tried with another size. After a node is gone, Ray's
    # elastic policy decides for a while by what it had, and then waits for it: 60 by default.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # Between two looks at the workers, which a report waits for: 2 by default, and an epoch of a
    # head takes less.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Before a node ends an idle process: 1,000 by default, so that short tasks beside actors that
    # hold every CPU each started a process anew, which on two nodes took a third of their time.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
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
class Pool:
    """Equal processes that share the work of a dataset."""

    least: int
    """Processes that the cluster has room for, if there is work for so many."""
    most: int
    """Processes that there is work for, should nodes join; as `least` on a cluster of our own."""
    share: Share
    """What each gets."""

    @property
    def strategy(self) -> "ray.data.ActorPoolStrategy":
        """Ray Data's name for it."""
        import ray.data

        return ray.data.ActorPoolStrategy(min_size=self.least, max_size=self.most)


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


def is_joined() -> bool:
    """Whether the cluster is one that was there before, and whose nodes may come and go."""
    return "RAY_ADDRESS" in os.environ


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster that this job was submitted to, or start one on this machine.

    Without `RAY_ADDRESS`, which Ray sets for submitted jobs, a local cluster is started: never the
    one that a stale file in the temporary folder names, which would be waited for in vain.

    Args:
        num_cpus: CPUs of a cluster that is started; all of the machine's where None.

    Raises:
        CxrError: the cluster cannot be joined, or no node with a CPU joins it.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    wanted = ENVIRONMENT | (LOCAL_ENVIRONMENT if address == "local" else {})
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    if ray.is_initialized():
        return
    if address.startswith(("http://", "https://")):
        raise CxrError(
            f"RAY_ADDRESS={address}: takes submitted jobs. Run ray job submit --working-dir . --"
            " python jobs/..., or unset RAY_ADDRESS to compute on this machine."
        )
    _check_listens(address)
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
    if not wait_for("CPU", 1):
        raise CxrError(
            f"RAY_ADDRESS={address}: no node with a CPU has joined this cluster. See ray status."
        )


def _check_listens(address: str) -> None:
    """Find out in seconds what Ray itself finds out in minutes."""
    host, _, port = address.rpartition(":")
    if host.startswith("ray://") or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise CxrError(
            f"RAY_ADDRESS={address}: cannot be joined: {error}. Start the cluster, or unset"
            " RAY_ADDRESS to compute on this machine."
        ) from None


def wait_for(kind: Literal["CPU", "GPU"], num: int) -> int:
    """Wait until the cluster has so many, and ask its autoscaler for them, if it has one.

    A cluster of our own has what it has.

    Returns:
        How many it has in the end: fewer where they have not come after `NODES_WAIT_S`.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    have = int(ray.cluster_resources().get(kind, 0))
    if have >= num or not is_joined():
        return have
    print(
        f"waiting for nodes: {kind}s needed {num}, in the cluster {have}; at most"
        f" {NODES_WAIT_S / 60:.0f} minutes",
        flush=True,
    )
    request_resources(bundles=[{kind: 1}] * num)
    started = time.monotonic()
    try:
        while have < num and time.monotonic() - started < NODES_WAIT_S:
            time.sleep(1)
            have = int(ray.cluster_resources().get(kind, 0))
    finally:
        request_resources(bundles=[])  # Else they would be kept for ever, also by a stopped job.
    return have


def check_reach(written: Sequence[str], read: Sequence[str] = ()) -> None:
    """Refuse places on one machine's own disk where other nodes take part.

    Args:
        written: folders that every node writes to.
        read: files that every node reads; one that is missing here is not asked for.

    Raises:
        SettingsError: a node does not find what lies there; says which node and place.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != own
    }
    probes = {storage.join(place, f".cxr-{uuid.uuid4().hex}"): place for place in written}
    places = probes | {place: place for place in read if not _missing([place])}
    local = [probe for probe in places if "://" not in probe]
    if not nodes or not local:
        return
    task = ray.remote(num_cpus=0)(_missing)
    mine = [probe for probe in local if probe in probes]
    try:
        for probe in mine:
            storage.write_bytes(probe, b"")
        asked = {
            node: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(local)
            for node in nodes
        }
        for node, answer in asked.items():
            try:
                missing = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # It has left in the meantime.
            if missing:
                raise SettingsError(
                    f"{places[missing[0]]}: is not reached by node {nodes[node]}. Give a folder"
                    " that all nodes share, or an s3:// prefix, for data, --cache and --output."
                )
    finally:
        for probe in mine:
            storage.delete_file(probe)


def _missing(places: Sequence[str]) -> list[str]:
    return [place for place in places if storage.kind(place) == "nothing"]


def use_gpu(wanted: Literal["auto", "on", "off"]) -> bool:
    """Whether to compute on GPUs: `auto` where the cluster has one now, `on` waits for one.

    Raises:
        SettingsError: they are wanted, and the cluster has none.
    """
    import ray

    if wanted == "on" and not wait_for("GPU", 1):
        raise SettingsError("gpu: this cluster has no GPU. Give --gpu off, or let one join.")
    return wanted != "off" and ray.cluster_resources().get("GPU", 0) >= 1


def execute(dataset_call: Callable[[], None]) -> None:
    """Run what executes a dataset; what a worker raised is raised as itself.

    Raises:
        CxrError: of a worker, without the traces of the machinery around it.
    """
    import ray

    try:
        dataset_call()
        return
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, CxrError):
            raise
        cause = error.cause
    # Out here, where it does not keep `error`, whose frames hold the actors and their CPUs.
    raise cause


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
    least = max(1, min(int(room), num_tasks))
    return Pool(least, max(num_tasks, 1) if is_joined() else least, share(least, gpu=gpu))


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
