"""Memory of `jobs/score.py` against the size of the archive, and the time to list many names.

    python -m benchmarks.archive --sizes 2000 20000 --names 100000

The archive is a folder of small JPEG files (copies of 50 synthetic radiographs); the model is an
AlexNet at 64 px with random weights. The memory is that of the job and of every process that it
started, including Ray's own: the sum of their proportional set sizes, in which shared memory
counts once, sampled once per second.
"""

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from cxr import cli, phantoms, sources
from cxr.errors import CxrError
from tests.support.checkpoints import write_checkpoint
from tests.support.files import repeat
from tests.support.jobs import command, environment

NUM_DRAWN = 50


@dataclass(frozen=True)
class ArchiveBenchmark:
    """How large the archives are."""

    sizes: tuple[int, ...] = (2000, 20000)
    """Images per scored archive."""
    names: int = 100_000
    """Files in the folder that is listed."""
    output: Path | None = None
    """JSON file for the results."""


def peak_mib(process: "subprocess.Popen[bytes]") -> float:
    """Peak memory of a process and its descendants until it ends, in MiB."""
    peak = 0.0
    while process.poll() is None:
        pids = [process.pid, *(each.pid for each in _descendants(process.pid))]
        peak = max(peak, sum(_pss(pid) for pid in pids) / 2**20)
        time.sleep(1)
    return peak


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _pss(pid: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


def main() -> None:
    job = cli.parse(ArchiveBenchmark, str(__doc__))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        settings = phantoms.PhantomSettings(num_train=NUM_DRAWN, image_px=128)
        drawn = sorted(phantoms.write(settings, root / "drawn").rglob("train/*/*.jpeg"))
        write_checkpoint(root / "checkpoint")
        for size in job.sizes:
            repeat(drawn, size, root / f"{size}")
            process = subprocess.Popen(
                command("score", "--checkpoint", root / "checkpoint", "--input", root / f"{size}",
                        "--output", root / f"out-{size}"),
                env=environment(), stdout=subprocess.DEVNULL,
            )  # fmt: skip
            peak = peak_mib(process)
            if process.returncode:
                raise CxrError(f"the job over {size} images ended with {process.returncode}.")
            summary = json.loads((root / f"out-{size}" / "summary.json").read_text())
            results.append(
                {
                    "images": size,
                    "peak_mib": peak,
                    "images_per_second": summary["images_per_second"],
                }
            )
            print(f"{size:8,} images: peak {peak:8,.0f} MiB of all processes,"
                  f" {summary['images_per_second']:.0f} images/s", flush=True)  # fmt: skip
        (root / "empty.jpeg").write_bytes(b"")
        repeat([root / "empty.jpeg"], job.names, root / "names")
        started = time.monotonic()
        count = len(sources.list_inputs([str(root / "names")]).table())
        listed_s = time.monotonic() - started
        print(f"{count:8,} names listed in {listed_s:.1f} s")
    if job.output:
        content = {"jobs": results, "names": count, "listed_s": listed_s}
        job.output.write_text(json.dumps(content, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
