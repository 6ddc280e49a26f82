"""What `jobs/score.py` itself costs, against the size of the archive: memory, rates, times.

    python -m benchmarks.archive --rows 100000 1000000
    python -m benchmarks.archive --rows --members --images 2000 20000 --names 100000

Rows: a CSV that names files which do not exist, so that nothing is read or decoded. Members: zips
of 50,000 stored members of 4 bytes, which are read, and are no images. Images: small JPEG files
(copies of 50 synthetic radiographs), for an AlexNet at 64 px with random weights. The driver's
memory is its own (USS: without what it shares with others, such as Ray's object store), that of all
processes the sum of proportional set sizes, in which shared memory counts once; sampled
twice a second.
"""

import dataclasses
import json
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cxr import cli, phantoms, sources
from cxr.errors import CxrError
from tests.support.checkpoints import write_checkpoint
from tests.support.files import repeat
from tests.support.jobs import command, environment

NUM_DRAWN = 50

ZIP_MEMBERS = 50_000

SAMPLE_S = 0.5


@dataclass(frozen=True)
class ArchiveBenchmark:
    """How large the archives are; nothing after a flag leaves its measurement out."""

    rows: tuple[int, ...] = (100_000, 1_000_000)
    """Rows of CSVs."""
    members: tuple[int, ...] = (100_000, 1_000_000)
    """Members of zips, 50,000 in each."""
    images: tuple[int, ...] = ()
    """Images of folders."""
    names: int = 0
    """Files of a folder that is listed alone."""
    output: Path | None = None
    """JSON file for the results."""


@dataclass(frozen=True)
class Measured:
    """What one job took."""

    what: str
    size: int
    rows_per_second: float
    """With starting and ending."""
    seconds: float
    first_part_s: float
    """From the start until the first part was written."""
    results_s: float
    """From the last part to the last file."""
    driver_peak_mib: float
    """Of its own."""
    all_peak_mib: float
    """Of the driver and every process that it started."""


class Memory:
    """The peak memory of a process and its descendants, as far as it was sampled."""

    def __init__(self) -> None:
        self.driver_mib = self.all_mib = 0.0

    def sample(self, pid: int) -> None:
        """Look once."""
        try:
            driver = psutil.Process(pid)
            processes = [driver, *driver.children(recursive=True)]
            self.driver_mib = max(self.driver_mib, driver.memory_full_info().uss / 2**20)
        except psutil.Error:
            return
        self.all_mib = max(self.all_mib, sum(map(_pss, processes)) / 2**20)


def _pss(process: psutil.Process) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def write_rows(folder: Path, size: int) -> Path:
    """A CSV of files that do not exist."""
    path = folder / f"rows-{size}.csv"
    with path.open("w") as file:
        file.write("uri,site\n")
        file.writelines(f"images/{n // 1000:06}/{n:09}.dcm,{n % 7}\n" for n in range(size))
    return path


def write_members(folder: Path, size: int) -> Path:
    """A folder of zips."""
    root = folder / f"members-{size}"
    root.mkdir()
    for first in range(0, size, ZIP_MEMBERS):
        with zipfile.ZipFile(root / f"{first:09}.zip", "w", zipfile.ZIP_STORED) as archive:
            for number in range(first, min(first + ZIP_MEMBERS, size)):
                archive.writestr(f"{number // 1000:06}/{number:09}.dcm", b"none")
    return root


def write_images(folder: Path, size: int) -> Path:
    """A folder of copies of a few radiographs."""
    settings = phantoms.PhantomSettings(num_train=NUM_DRAWN, image_px=128)
    drawn = sorted(phantoms.write(settings, folder / "drawn").rglob("train/*/*.jpeg"))
    repeat(drawn, size, folder / f"images-{size}")
    return folder / f"images-{size}"


def measure(what: str, size: int, given: Path, root: Path) -> Measured:
    """Score an archive in a job of its own."""
    output, memory = root / f"out-{what}-{size}", Memory()
    started, began = time.time(), time.monotonic()
    words = ("--checkpoint", root / "checkpoint", "--input", given, "--output", output)
    process = subprocess.Popen(
        command("score", *words), env=environment(), stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        memory.sample(process.pid)
        time.sleep(SAMPLE_S)
    seconds = time.monotonic() - began
    if process.returncode:
        raise CxrError(f"the job over {size:,} {what} ended with {process.returncode}.")
    if (listed := json.loads((output / "summary.json").read_text())["listed"]) != size:
        raise CxrError(f"the job over {size:,} {what} listed {listed:,}.")
    times = [path.stat().st_mtime for path in (output / "scores").iterdir()]
    ended = (output / "index.html").stat().st_mtime
    measured = Measured(
        what, size, size / seconds, seconds, min(times) - started, ended - max(times),
        memory.driver_mib, memory.all_mib,
    )  # fmt: skip
    print(
        f"{size:10,} {what}: {measured.rows_per_second:,.0f}/s, first part after"
        f" {measured.first_part_s:.1f} s, results in {measured.results_s:.1f} s; driver"
        f" {measured.driver_peak_mib:,.0f} MiB, all processes {measured.all_peak_mib:,.0f} MiB",
        flush=True,
    )
    return measured


def main() -> None:
    job = cli.parse(ArchiveBenchmark, str(__doc__))
    makers: dict[str, tuple[tuple[int, ...], Callable[[Path, int], Path]]] = {
        "rows": (job.rows, write_rows),
        "members": (job.members, write_members),
        "images": (job.images, write_images),
    }
    results: dict[str, Any] = {"jobs": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_checkpoint(root / "checkpoint")
        for what, (sizes, write) in makers.items():
            for size in sizes:
                measured = measure(what, size, write(root, size), root)
                results["jobs"].append(dataclasses.asdict(measured))
        if job.names:
            (root / "empty.jpeg").write_bytes(b"")
            repeat([root / "empty.jpeg"], job.names, root / "names")
            began = time.monotonic()
            count = sum(len(page.files) for page in sources.InputPages([str(root / "names")]))
            results |= {"names": count, "listed_s": time.monotonic() - began}
            print(f"{count:10,} names listed in {results['listed_s']:.1f} s")
    if job.output:
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
