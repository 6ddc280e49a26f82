"""What failures cost: training and scoring while the cluster or the object store fails.

    python -m benchmarks.failures --data chest_xray

All data are in a bucket of a real S3 server on this machine, reached through a proxy that injects
faults. The jobs run on a cluster of several raylets: a head without CPUs and two nodes of one CPU
each. Each job runs undisturbed first, then once per failure, and the results are compared. Seconds
are the wall time of the whole command, including reruns.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from cxr import cli, cluster, sources, storage
from cxr.errors import SettingsError
from cxr.labels import CLASSES
from tests.support.faults import FaultyProxy
from tests.support.jobs import Job, history, process_named
from tests.support.s3 import Store

TOLERANCE: Final = 1e-4
"""Of losses: any number of workers takes the same steps, up to rounding."""


@dataclass(frozen=True)
class FailureBenchmark:
    """What to train and score."""

    data: str
    """Labeled radiographs; a part of them is copied to the bucket."""
    checkpoint: str
    """A trained classifier to score with."""
    train_images: int = 300
    """Images to train on."""
    score_images: int = 1500
    """Images to score."""
    epochs: int = 12
    """Epochs of each training run."""
    outage_s: float = 20.0
    """Seconds for which the store answers 503."""
    jobs: tuple[Literal["train", "score"], ...] = ("train", "score")
    """The jobs to run."""
    only: tuple[str, ...] = ()
    """Substrings of the names of failures to run; all if empty."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        for name in ("train_images", "score_images", "epochs"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: {getattr(self, name)} is below 1.")


class Site:
    """A cluster and a store, and the failures that they can have."""

    def __init__(self, store: Store, proxy: FaultyProxy, num_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self.store, self.proxy = store, proxy
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(num_nodes)]
        self.job: Job | None = None

    def kill_worker(self) -> None:
        """Kill a worker process."""
        os.kill(process_named("^ray::.*(RayTrainWorker|PartPredictor)"), signal.SIGKILL)

    def remove_node(self) -> None:
        """Kill a node with everything that runs on it."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def add_node(self) -> None:
        """Let a node join."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def outage(self, seconds: float) -> None:
        """Answer 503 for a while."""
        self.proxy.for_a_while("unavailable", seconds)

    def restart_store(self) -> None:
        """Kill the store and start it again after five seconds."""
        self.store.stop()
        time.sleep(5)
        self.store.start()

    def kill_driver(self) -> None:
        """Kill the job itself."""
        assert self.job is not None
        self.job.kill()

    def close(self) -> None:
        """End the cluster."""
        self.cluster.shutdown()


@dataclass(frozen=True)
class Failure:
    """A failure in the middle of a job."""

    name: str
    happens: Callable[[Site], None]
    num_nodes: int = 2
    workers: str = "2"
    """Of training."""


def failures(outage_s: float) -> list[Failure]:
    return [
        Failure("worker process killed", Site.kill_worker),
        Failure("node removed", Site.remove_node, workers="1:2"),
        Failure("node added", Site.add_node, num_nodes=1, workers="1:2"),
        Failure(f"store answers 503 for {outage_s:.0f} s", lambda site: site.outage(outage_s)),
        Failure("store restarted", Site.restart_store),
        Failure("driver killed and rerun", Site.kill_driver),
    ]


def run(
    words: list[str], site: Site, trigger: str, happens: Callable[[Site], None] | None
) -> tuple[int, float, str]:
    """Run a job, and inject a failure at the first line that matches.

    Returns:
        Exit code, seconds, and what it printed.
    """
    started = time.monotonic()
    name, *flags = words
    site.job = Job(name, *flags, variables={"RAY_ADDRESS": site.cluster.address})
    if happens is not None:
        site.job.read_until(trigger)
        happens(site)
    code = site.job.wait()
    return code, time.monotonic() - started, site.job.printed


@dataclass(frozen=True)
class Command:
    """A job that runs both undisturbed and with failures."""

    name: Literal["train", "score"]
    words: Callable[[str, str], list[str]]
    """By output and number of workers."""
    rerun: Callable[[list[str], str], list[str]]
    """The command that resumes after the driver was killed, by the first command and output."""
    trigger: str
    result: Callable[[str], Any]
    """What is compared, by output."""
    same: Callable[[Any, Any], bool]


def same_history(one: list[dict[str, float]], other: list[dict[str, float]]) -> bool:
    """Whether two training runs took the same steps."""
    return len(one) == len(other) and all(
        abs(a[name] - b[name]) <= TOLERANCE
        for a, b in zip(one, other, strict=True)
        for name in ("epoch", "train_loss", "val_loss")
    )


def scores(output: str) -> list[dict[str, Any]]:
    """The rows of a scoring job, which holds each listed image once."""
    rows: list[dict[str, Any]] = []
    for file in storage.list_files(storage.join(output, "scores")):
        rows += storage.read_table(file.uri).to_pylist()
    listed: list[str] = []
    for file in storage.list_files(storage.join(output, "manifest")):
        listed += storage.read_table(file.uri, ["uri"])["uri"].to_pylist()
    if sorted(row["uri"] for row in rows) != sorted(listed):
        raise RuntimeError(f"{output}: {len(rows)} rows, {len(listed)} listed")
    return sorted(rows, key=lambda row: str(row["uri"]))


def jobs(job: FailureBenchmark, bucket: str) -> list[Command]:
    return [
        Command(
            "train",
            lambda output, workers: [
                "train", "--version", "frozen", "--name", "best", "--backbone", "alexnet",
                "--weights", "none", "--image-px", "64",
                # Each worker draws its own dropout, so their number would change it.
                "--dropout", "0.0", "--data", f"{bucket}/train-set", "--cache", f"{output}-cache",
                "--folds", "3", "--epochs", str(job.epochs), "--patience", str(job.epochs),
                "--workers", workers, "--output", output, "--stress-images", "0",
            ],
            lambda _, output: ["train", "--resume", output],
            r"epoch 3 of",
            history,
            same_history,
        ),
        Command(
            "score",
            lambda output, _: [
                "score", "--checkpoint", f"{bucket}/checkpoint", "--input",
                f"{bucket}/archive", "--output", output,
            ],
            lambda words, _: words,
            r"scoring.*: [1-9][\d,]* of",
            scores,
            lambda one, other: [without_place(r) for r in one] == [without_place(r) for r in other],
        ),
    ]  # fmt: skip


def without_place(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "part"}


def measure(
    job: FailureBenchmark, store: Store, proxy: FaultyProxy, bucket: str
) -> Iterator[dict[str, Any]]:
    """One row per job and failure."""
    for each in (each for each in jobs(job, bucket) if each.name in job.jobs):
        references: dict[tuple[int, str], tuple[float, Any]] = {}
        every = failures(job.outage_s)
        chosen = [f for f in every if not job.only or any(part in f.name for part in job.only)]
        for failure in chosen:
            kind = (failure.num_nodes, failure.workers if each.name == "train" else "")
            if kind not in references:
                output = f"{bucket}/{each.name}-{kind[0]}-{len(references)}"
                site = Site(store, proxy, failure.num_nodes)
                try:
                    code, seconds, said = run(
                        each.words(output, failure.workers), site, each.trigger, None
                    )
                finally:
                    site.close()
                if code:
                    raise RuntimeError(f"undisturbed {each.name} ended with {code}:\n{said}")
                references[kind] = seconds, each.result(output)
            undisturbed_s, expected = references[kind]
            output = f"{bucket}/{each.name}-{failure.name.replace(' ', '-')}"
            words = each.words(output, failure.workers)
            site = Site(store, proxy, failure.num_nodes)
            try:
                code, seconds, said = run(words, site, each.trigger, failure.happens)
                if failure.happens is Site.kill_driver:
                    code, more, said = run(each.rerun(words, output), site, each.trigger, None)
                    seconds += more
            finally:
                site.close()
            found = each.result(output) if code == 0 else None
            yield {
                "job": each.name,
                "failure": failure.name,
                "exit_code": code,
                "same": found is not None and each.same(found, expected),
                "num": len(found) if found else 0,
                "seconds": seconds,
                "undisturbed_s": undisturbed_s,
                "said": "" if code == 0 else said[-2000:],
            }


def fill(job: FailureBenchmark, bucket: str) -> None:
    """Copy radiographs and the checkpoint into the bucket."""
    listing = sources.list_radiographs(storage.absolute(job.data), "train").to_pylist()
    order = np.random.default_rng(0).permutation(len(listing))
    for index, number in enumerate(order[: max(job.train_images, job.score_images)]):
        row = listing[number]
        data = storage.read_bytes(row["uri"])
        name = f"{CLASSES[row['label']]}/{row['uri'].rsplit('/', 1)[1]}"
        if index < job.train_images:
            storage.write_bytes(f"{bucket}/train-set/train/{name}", data)
        if index < job.score_images:
            storage.write_bytes(f"{bucket}/archive/{name}", data)
    for file in storage.list_files(job.checkpoint):
        name = file.uri.rsplit("/", 1)[1]
        storage.write_bytes(f"{bucket}/checkpoint/{name}", storage.read_bytes(file.uri))


def main() -> None:
    job = cli.parse(FailureBenchmark, str(__doc__))
    results = []
    os.environ.update(cluster.ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.start()
        with FaultyProxy(store.port) as proxy:
            # The nodes inherit it.
            os.environ.update({**store.environment, "AWS_ENDPOINT_URL": proxy.endpoint})
            bucket = store.bucket()
            fill(job, bucket)
            print(f"{store.name}; {job.train_images} images trained on, {job.score_images} scored")
            print(f"{'job':6} {'failure':28} {'ended':>6} {'rows':>6} {'same':>5} {'s':>7} lost")
            for row in measure(job, store, proxy, bucket):
                results.append(row)
                print(f"{row['job']:6} {row['failure']:28} {row['exit_code']:6} {row['num']:6,}"
                      f" {'yes' if row['same'] else 'NO':>5} {row['seconds']:7.1f}"
                      f" {row['seconds'] - row['undisturbed_s']:+.1f}", flush=True)  # fmt: skip
                if row["said"]:
                    print(row["said"])
        store.stop()
    if job.output:
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
