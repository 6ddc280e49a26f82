"""Memory of unpacking an archive into a folder or a bucket, by the size of the archive.

    python -m benchmarks.unpack --to s3://bucket/unpacked

The archives have the form of the data set's own, a zip in a zip, with files of random bytes, since
unpacking does not read their content. Each is unpacked by its own process, whose peak resident set
is reported, with the resident set before it began.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cxr import cli, storage
from cxr.download import unpacking
from cxr.errors import CxrError

ROOT = Path(__file__).parent.parent
FILE_BYTES: Final = 200_000
"""About the size of an original file of the data set: 1.24 GB in 5,856 files."""

PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from benchmarks import unpack
unpack.measured(*sys.argv[1:])
"""


@dataclass(frozen=True)
class UnpackBenchmark:
    """How large the archives are, and where to unpack them."""

    to: str
    """Folder or bucket prefix; the files remain there."""
    files: int = 500
    """Files of the smaller archive: 100 MB."""
    times: int = 4
    """How many times as many files the larger archive has."""
    output: Path | None = None
    """JSON file for the results."""


def write_archive(path: Path, count: int) -> None:
    """A zip in a zip, both deflated, with `count` files."""
    random = np.random.default_rng(0)
    inner = path.with_name("chest_xray.zip")
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(count):
            name = f"chest_xray/train/NORMAL/IM-{index:06}-0001.jpeg"
            archive.writestr(name, random.bytes(FILE_BYTES))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, inner.name)
    inner.unlink()


def peak_bytes() -> int:
    """Peak resident set of this process so far, in bytes (Linux).

    Not `ru_maxrss`, which a process inherits from the one that starts it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measured(archive: str, to: str) -> None:
    """Unpack, and print the memory as the last line."""
    storage.is_empty(to)  # Connected.
    before = peak_bytes()
    done = unpacking.unpack(archive, unpacking.plan(archive), to)
    print(json.dumps({"written": done.num_written, "before": before, "peak": peak_bytes()}))


def main() -> None:
    job = cli.parse(UnpackBenchmark, str(__doc__))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for count in (job.files, job.times * job.files):
            archive = root / f"{count}.zip"
            write_archive(archive, count)
            place = storage.join(job.to, str(count))
            process = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(archive), place],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if process.returncode:
                raise CxrError(f"unpacking {count:,} files failed: {process.stderr[-500:]}")
            result = json.loads(process.stdout.splitlines()[-1])
            results.append(result | {"files": count, "archive": archive.stat().st_size})
            archive.unlink()
            print(
                f"{count:7,} files, {count * FILE_BYTES / 1e6:6,.0f} MB: peak"
                f" {result['peak'] / 2**20:6.0f} MiB, {result['before'] / 2**20:.0f} MiB before",
                flush=True,
            )
    if job.output:
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
