"""One GPU fed by many CPU nodes, simulated: how busy it is, and what the object store holds.

    python -m benchmarks.simulated --cpu-nodes 4 8 16
    python -m benchmarks.simulated --cpu-nodes 8 --remove       # two nodes go on the way

The pipeline is that of `jobs/score.py`, on a cluster of raylets on this machine: a head without
CPUs, a node with a logical GPU, and CPU nodes of one logical CPU each. Reading an image is a sleep
of `--read-s`, and computing it one of `--gpu-s`, so the machine's own cores limit neither. Pixels
have their real size. The GPU's busy share is that between its first image and its last; what is
possible, given how much the CPU nodes read, stands beside it.
"""

import dataclasses
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.cluster_utils import Cluster

from cxr import cli, cluster, storage
from cxr.errors import CxrError
from cxr.images.read import Image, Row
from cxr.models import checkpoint
from cxr.scoring import job as scoring_job
from cxr.scoring import read
from tests.support.checkpoints import SMALL, write_checkpoint

METER = "benchmark-meter"

SAMPLE_S = 0.5
"""Between two looks at the object store."""

STORE_BYTES = 256 * 2**20
"""Object store of a node."""


@dataclass(frozen=True)
class SimulatedBenchmark:
    """The cluster, and what is computed on it."""

    cpu_nodes: tuple[int, ...] = (4, 8, 16)
    """Numbers of CPU nodes, one cluster after the other."""
    images: int = 6400
    """Images of the archive."""
    read_s: float = 0.08
    """Seconds of one CPU to read an image."""
    gpu_s: float = 0.01
    """Seconds of the GPU to compute an image."""
    remove: bool = False
    """Remove a CPU node after a quarter of the images, and the GPU node, which another replaces,
    after half of them."""
    output: Path | None = None
    """JSON file for the results."""


@dataclass(frozen=True)
class Simulated:
    """What was measured on one cluster."""

    cpu_nodes: int
    busy_share: float
    """Of the GPU, between its first image and its last."""
    possible_share: float
    """What the CPU nodes read of what the GPU could compute, at most 1."""
    seconds: float
    """Of the whole job."""
    images: int
    store_peak_mib: float
    """Of all nodes' object stores together."""
    spilled_mib: float
    """Written from the object stores to disks."""


@ray.remote(num_cpus=0)
class Meter:
    """Collects when the GPU was busy."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, start: float, end: float) -> None:
        self._spans.append((start, end))

    def spans(self) -> list[tuple[float, float]]:
        return self._spans


def reader(read_s: float) -> Any:
    """The reading stage, in which an image takes `read_s` and is noise."""

    def sleep_and_draw(rows: Iterable[Row], image_px: int, **_: Any) -> Iterator[Image]:
        for _row in rows:
            time.sleep(read_s)
            pixels = np.frombuffer(os.urandom(image_px**2), np.uint8).reshape(image_px, image_px)
            yield Image("ok", "", (), "", image_px, image_px, "jpeg", "", None, pixels)

    def read_packed(settings: read.ReadSettings, *packed: bytes) -> Iterator[read.ReadPart]:
        vars(read)["read_images"] = sleep_and_draw  # In the process that reads.
        yield from read.read_packed(settings, *packed)

    return read_packed


@dataclass(frozen=True)
class SleepingNetwork:
    """A network whose engine computes nothing."""

    gpu_s: float
    """Seconds for an image."""

    def open(self, threads: int) -> "SleepingNetwork":  # noqa: ARG002
        """The engine."""
        return self

    def run(
        self, pixels: NDArray[np.uint8], on_batch: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Logits of 0, float32 (N, 2), after a while; the time is told to the meter."""
        start = time.time()
        time.sleep(self.gpu_s * len(pixels))
        ray.get_actor(METER).add.remote(start, time.time())
        on_batch(len(pixels))
        return np.zeros((len(pixels), 2), np.float32)


class StoreWatch(threading.Thread):
    """Looks at the object stores of all nodes until it is stopped."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.peak_bytes, self.spilled_bytes = 0, 0
        self._address, self._stopped = address, threading.Event()

    def run(self) -> None:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(self._address)
        while not self._stopped.wait(SAMPLE_S):
            try:
                stats = get_memory_info_reply(state).store_stats
            except Exception:
                continue  # A node that is going.
            self.peak_bytes = max(self.peak_bytes, stats.object_store_bytes_used)
            self.spilled_bytes = max(self.spilled_bytes, stats.spilled_bytes_total)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


@contextmanager
def simulated_cluster(num_cpu_nodes: int) -> Iterator[tuple[Cluster, list[Any], Any]]:
    """The cluster, its CPU nodes and its GPU node; this process joins it."""
    # Ray's handlers at exit can be set by the main thread alone, and another adds a node later.
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}, shutdown_at_exit=False)
    try:
        gpu_node = add_gpu_node(nodes)
        cpu_nodes = [
            nodes.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False)
            for _ in range(num_cpu_nodes)
        ]
        nodes.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = nodes.address
        cluster.connect()
        yield nodes, cpu_nodes, gpu_node
    finally:
        ray.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
        nodes.shutdown()


def add_gpu_node(nodes: Cluster) -> Any:
    return nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES)


def remove_nodes(
    nodes: Cluster,
    cpu_node: Any,
    gpu_node: Any,
    output: Path,
    ended: threading.Event,
) -> None:
    """Remove a CPU node and replace the GPU node while parts are written."""

    def remove_cpu_node() -> None:
        nodes.remove_node(cpu_node)

    def replace_gpu_node() -> None:
        nodes.remove_node(gpu_node)
        add_gpu_node(nodes)

    listing = output / "listing.json"
    while not listing.exists():
        if ended.wait(0.2):
            return
    num_parts = sum(file["num_parts"] for file in storage.read_json(str(listing))["files"])
    for count, step in ((num_parts // 4, remove_cpu_node), (num_parts // 2, replace_gpu_node)):
        while len(list((output / "scores").glob("*.parquet"))) < count:
            if ended.wait(0.2):
                return
        step()


def simulate(job: SimulatedBenchmark, num_cpu_nodes: int, folder: Path) -> Simulated:
    output = folder / f"out-{num_cpu_nodes}"
    loaded = checkpoint.load(str(folder / "checkpoint"))
    ended = threading.Event()
    with simulated_cluster(num_cpu_nodes) as (nodes, cpu_nodes, gpu_node):
        meter: Any = Meter.options(name=METER).remote()  # type: ignore[attr-defined]
        watch = StoreWatch(nodes.address)
        watch.start()
        removal = threading.Thread(
            target=remove_nodes,
            args=(nodes, cpu_nodes[0], gpu_node, output, ended),
        )
        if job.remove:
            removal.start()
        started = time.monotonic()
        summary = scoring_job.score(
            [str(folder / "images")],
            loaded,
            str(output),
            operating_point=loaded.operating_point,
            gpu=True,
        )
        seconds = time.monotonic() - started
        ended.set()
        if job.remove:
            removal.join()
        watch.stop()
        spans = ray.get(meter.spans.remote())
    if summary.num_scored != job.images:
        raise CxrError(f"{summary.num_scored:,} of {job.images:,} images were scored.")
    busy = sum(end - start for start, end in spans)
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    return Simulated(
        num_cpu_nodes,
        busy / wall,
        min(1.0, num_cpu_nodes * job.gpu_s / job.read_s),
        seconds,
        summary.num_scored,
        watch.peak_bytes / 2**20,
        watch.spilled_bytes / 2**20,
    )


def main() -> None:
    job = cli.parse(SimulatedBenchmark, str(__doc__))
    # The job's own pipeline, but for these two of its stages.
    network = SleepingNetwork(job.gpu_s)
    stages = {
        "read_packed": reader(job.read_s),
        "send_classifier": lambda *_, **__: network,
    }
    for name, stage in stages.items():
        if not hasattr(scoring_job, name):
            raise CxrError(f"{scoring_job.__name__}: has no stage {name} to replace.")
        setattr(scoring_job, name, stage)
    results = []
    with tempfile.TemporaryDirectory(prefix="simulated-") as scratch:
        folder = Path(scratch)
        write_checkpoint(folder / "checkpoint", dataclasses.replace(SMALL, image_px=224))
        (folder / "images").mkdir()
        for index in range(job.images):
            (folder / "images" / f"{index:07}.jpeg").write_bytes(b"x")
        for num_cpu_nodes in job.cpu_nodes:
            result = simulate(job, num_cpu_nodes, folder)
            results.append(result)
            print(
                f"{num_cpu_nodes:3} CPU nodes: the GPU is busy {result.busy_share:.0%} of the time"
                f" (possible {result.possible_share:.0%}), {result.seconds:.0f} s; object stores"
                f" {result.store_peak_mib:,.0f} MiB at most, {result.spilled_mib:,.0f} MiB spilled",
                flush=True,
            )
    if job.output:
        job.output.write_text(
            json.dumps([dataclasses.asdict(result) for result in results], indent=2) + "\n"
        )
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
