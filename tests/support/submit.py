"""Submit the jobs to a cluster of two nodes, with everything in a bucket of a real S3 server.

    python -m tests.support.submit --data chest_xray [--limit 300]

As a user would: `ray job submit --working-dir .`, once for each of download, train, evaluate, score
and tune; then a training and a scoring that are stopped and go on. At the end it says what lies in
the bucket, and which files the jobs left on this machine's disk.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

from cxr import cluster, sources, storage
from cxr.labels import CLASSES
from tests.support.s3 import Store, free_port

ROOT = Path(__file__).parents[2]


def fill(data: str, bucket: str, num_train: int) -> None:
    """Some of train, and the 16 images of val, also as the test split."""
    train = sources.list_radiographs(data, "train").to_pylist()
    chosen = train[:: max(1, len(train) // num_train)]
    for split, rows in (
        ("train", chosen),
        ("test", sources.list_radiographs(data, "val").to_pylist()),
    ):
        for row in rows:
            name = f"{split}/{CLASSES[row['label']]}/{row['uri'].rsplit('/', 1)[1]}"
            storage.write_bytes(f"{bucket}/data/{name}", storage.read_bytes(row["uri"]))


def pack(data: str, archive: Path) -> None:
    """The 16 images of val as a zip in the form of the set's own."""
    with zipfile.ZipFile(archive, "w") as packed:
        for row in sources.list_radiographs(data, "val").to_pylist():
            name = f"chest_xray/val/{CLASSES[row['label']]}/{row['uri'].rsplit('/', 1)[1]}"
            packed.writestr(name, storage.read_bytes(row["uri"]))


RAY_JOB = (sys.executable, "-m", "ray.scripts.scripts", "job")


def submit(address: str, environment: dict[str, str], *words: str, stop_at: str = "") -> int:
    """Submit a job, show what its client shows, and give the client's exit code.

    At the first line that matches `stop_at`, the job is stopped.
    """
    name = f"job-{time.time_ns()}"
    command = [*RAY_JOB, "submit", "--address", address, "--submission-id", name, "--working-dir",
               ".", "--", "python", *words]  # fmt: skip
    print("\n$ ray job submit --working-dir . -- python", *words, flush=True)
    started = time.monotonic()
    client = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert client.stdout is not None
    for line in client.stdout:
        print(line, end="", flush=True)
        if stop_at and re.search(stop_at, line):
            stop_at = ""
            print(f"$ ray job stop {name}", flush=True)
            subprocess.run([*RAY_JOB, "stop", "--address", address, name], cwd=ROOT,
                           env=environment, check=True)  # fmt: skip
    code = client.wait()
    print(f"exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=300)
    job = parser.parse_args()
    data = str(Path(job.data).absolute())
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.start()
        home = Path(folder) / "home"
        home.mkdir()
        # The nodes have the store's variables, as docs/cluster.md tells.
        own = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        os.environ.update(cluster.ENVIRONMENT | dict(store.environment) | own)
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.environ.pop("PYTHONPATH", None)
        bucket = store.bucket()
        fill(data, bucket, job.limit)
        pack(data, Path(folder) / "val.zip")
        from ray.cluster_utils import Cluster

        port = free_port()
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": port},
        )
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        address = f"http://127.0.0.1:{port}"
        environment = os.environ | {"RAY_API_SERVER_ADDRESS": address}
        stranger = environment | {"RAY_AUTH_TOKEN": "1" * 64}
        cache = ("--cache", f"{bucket}/cache")
        checkpoint = ("--checkpoint", f"{bucket}/run/v2/checkpoint")
        try:
            codes = [
                submit(address, environment, *words)
                for words in (
                    ("jobs/download.py", "--url", f"{folder}/val.zip", "--to", f"{bucket}/fetched"),
                    ("jobs/train.py", "--version", "v2", "--data", f"{bucket}/data", "--limit",
                     str(job.limit), "--weights", "none", *cache, "--output", f"{bucket}/run"),
                    ("jobs/evaluate.py", *checkpoint, "--data", f"{bucket}/data", *cache,
                     "--output", f"{bucket}/test"),
                    ("jobs/score.py", *checkpoint, "--input", f"{bucket}/data", "--output",
                     f"{bucket}/scores"),
                    ("jobs/score.py", "--checkpoint", f"{bucket}/none", "--input",
                     f"{bucket}/data", "--output", f"{bucket}/never"),
                )
            ]  # fmt: skip
            small = ("--version", "frozen", "--name", "best", "--backbone", "alexnet",
                     "--image-px", "64", "--data", f"{bucket}/data", "--weights", "none",
                     *cache)  # fmt: skip
            search = ("--search", "normalization=none,imagenet", "--folds", "2")
            train = (*small, "--epochs", "40", "--patience", "40", "--output", f"{bucket}/stopped")
            score = (*checkpoint, "--input", f"{bucket}/data", "--output", f"{bucket}/stopped-too")
            codes += [
                submit(address, environment, "jobs/tune.py", *small, *search, "--output",
                       f"{bucket}/search"),
                submit(address, environment, "jobs/train.py", *train, stop_at="epoch 5 of 40"),
                submit(address, environment, "jobs/train.py", "--resume", f"{bucket}/stopped"),
                submit(address, environment, "jobs/score.py", *score, stop_at="scoring .*: [1-9]"),
                submit(address, environment, "jobs/score.py", *score),
            ]  # fmt: skip
            print("\nwith another token:")
            codes.append(submit(address, stranger, "-c", "print('in')"))
        finally:
            nodes.shutdown()
        found = Counter(
            file.uri.removeprefix(f"{bucket}/").split("/")[0] for file in storage.list_files(bucket)
        )
        print("\nin the bucket:", dict(found))
        left = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        print("in the home folder:", left)
        print("exit codes:", codes)
        store.stop()


if __name__ == "__main__":
    main()
