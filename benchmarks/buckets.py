"""Listing and reading many small objects of a bucket, beside boto3 and a thread pool.

    python -m benchmarks.buckets --objects 20000 --reads 2000
    python -m benchmarks.buckets --uri s3://bucket/prefix           # objects that are there

Without `--uri`, OpenStack Swift is started on this machine (moto where it is missing) and filled
with objects of 10 kB in 20 folders. Each figure is of a process of its own, in which the clients
have made their first request. CPU time is that of the client; a store on the same machine competes
with it for the cores.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cxr import cli, storage
from cxr.storage import s3
from tests.support.s3 import SWIFT_PYTHON, Store

NUM_FOLDERS = 20
OBJECT_BYTES = 10_000


@dataclass(frozen=True)
class BucketsBenchmark:
    """What is listed and read."""

    uri: str = ""
    """Bucket prefix; a bucket of our own if empty."""
    objects: int = 20_000
    """Objects in the bucket of our own."""
    reads: int = 2_000
    """Objects that are read."""
    threads: int = 8
    """Threads that read, as many as fetch ahead in every job."""
    output: Path | None = None
    """JSON file for the results."""


@dataclass(frozen=True)
class Measured:
    """A figure."""

    what: str
    objects: int
    seconds: float
    cpu_seconds: float
    """Of the client."""
    peak_mib: float
    """Resident memory of the client."""

    def __str__(self) -> str:
        return (
            f"{self.what:22} {self.objects:9,} objects {self.objects / self.seconds:9,.0f}/s"
            f" {1e6 * self.cpu_seconds / self.objects:8,.0f} us of CPU each"
            f" {self.peak_mib:6,.0f} MiB"
        )


def measure(what: str, call: Callable[[], int]) -> Measured:
    """Time a call that returns how many objects it was about."""
    started, cpu_started = time.monotonic(), time.process_time()
    count = call()
    return Measured(
        what,
        count,
        time.monotonic() - started,
        time.process_time() - cpu_started,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def list_with_cxr(job: BucketsBenchmark) -> Measured:
    next(storage.list_pages(job.uri))
    return measure("list: cxr", lambda: sum(map(len, storage.list_pages(job.uri))))


def list_with_pyarrow(job: BucketsBenchmark) -> Measured:
    from pyarrow import fs

    system, path = storage.resolve(job.uri)
    selector = fs.FileSelector(path, recursive=True)
    return measure("list: pyarrow", lambda: len(system.get_file_info(selector)))


def list_with_boto3(job: BucketsBenchmark) -> Measured:
    client, bucket, prefix = boto3_client(job)
    folders = [
        item["Prefix"]
        for page in client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, Delimiter="/"
        )
        for item in page.get("CommonPrefixes", ())
    ]

    def count(folder: str) -> int:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
        return sum(len(page.get("Contents", ())) for page in pages)

    with ThreadPoolExecutor(job.threads) as pool:
        return measure("list: boto3, threads", lambda: sum(pool.map(count, folders)))


def read_with_cxr(job: BucketsBenchmark) -> Measured:
    uris = first_uris(job)
    with ThreadPoolExecutor(job.threads) as pool:
        return measure(
            "read: cxr", lambda: sum(len(data) > 0 for data in pool.map(storage.read_bytes, uris))
        )


def read_with_pyarrow(job: BucketsBenchmark) -> Measured:
    uris = first_uris(job)

    def read(uri: str) -> bytes:
        system, path = storage.resolve(uri)
        with system.open_input_file(path) as file:
            return bytes(file.read())

    with ThreadPoolExecutor(job.threads) as pool:
        return measure("read: pyarrow", lambda: sum(len(data) > 0 for data in pool.map(read, uris)))


def read_with_boto3(job: BucketsBenchmark) -> Measured:
    uris = first_uris(job)
    client, bucket, _ = boto3_client(job)
    keys = [uri[len(s3.root(uri)) + 1 :] for uri in uris]

    def read(key: str) -> bytes:
        return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())

    with ThreadPoolExecutor(job.threads) as pool:
        return measure(
            "read: boto3, threads", lambda: sum(len(data) > 0 for data in pool.map(read, keys))
        )


def boto3_client(job: BucketsBenchmark) -> tuple[Any, str, str]:
    import boto3
    from botocore.config import Config

    uri = storage.absolute(job.uri)
    client = boto3.client("s3", config=Config(max_pool_connections=job.threads))
    return client, s3.store(uri).bucket, uri[len(s3.root(uri)) + 1 :] + "/"


def first_uris(job: BucketsBenchmark) -> list[str]:
    """The objects to be read; the store has been asked for one."""
    uris: list[str] = []
    for page in storage.list_pages(job.uri):
        uris += [file.uri for file in page]
        if len(uris) >= job.reads:
            break
    storage.read_bytes(uris[0])
    return uris[: job.reads]


MEASURES = (
    list_with_cxr, list_with_pyarrow, list_with_boto3, read_with_cxr, read_with_pyarrow,
    read_with_boto3,
)  # fmt: skip


@contextmanager
def filled_bucket(num_objects: int) -> Iterator[str]:
    """The URI of the objects in a store that lives as long as the context."""
    with tempfile.TemporaryDirectory(prefix="buckets-") as folder:
        store = Store(Path(folder))
        store.start()
        try:
            os.environ |= store.environment
            bucket = store.bucket()
            fill(store, bucket, num_objects)
            print(f"{num_objects:,} objects in {store.name}", flush=True)
            yield f"{bucket}/xrays"
        finally:
            store.stop()


def fill(store: Store, bucket: str, num_objects: int) -> None:
    if store.is_swift:
        script = Path(sys.modules[Store.__module__].__file__ or "").with_name("swift_fill.py")
        numbers = map(str, (0, num_objects, NUM_FOLDERS, OBJECT_BYTES))
        words = [SWIFT_PYTHON, str(script), str(store.folder), bucket.removeprefix("s3://")]
        subprocess.run([*words, *numbers], check=True)
        return
    data = os.urandom(OBJECT_BYTES)
    names = (f"xrays/{index % NUM_FOLDERS:03}/{index:08}.png" for index in range(num_objects))
    storage.for_all(lambda uri: storage.write_bytes(uri, data), [f"{bucket}/{n}" for n in names])


def run(job: BucketsBenchmark) -> list[Measured]:
    results = []
    for function in MEASURES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            results.append(process.submit(function, job).result())
        print(results[-1], flush=True)
    return results


def main() -> None:
    job = cli.parse(BucketsBenchmark, str(__doc__))
    if job.uri:
        results = run(job)
    else:
        with filled_bucket(job.objects) as uri:
            results = run(BucketsBenchmark(uri, job.objects, job.reads, job.threads))
    if job.output:
        content = [asdict(result) for result in results]
        job.output.write_text(json.dumps(content, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
