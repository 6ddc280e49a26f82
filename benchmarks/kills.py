"""Is a large archive scored alike after the job was killed in each of its phases?

    python -m benchmarks.kills --rows 1000000

A CSV names files which do not exist, so that nothing is read or decoded. One job is left alone.
Three others get SIGKILL, with all their processes: while the manifest is written, while parts are
scored, and while the results are written. The same command then continues each, and the bytes of
its scores.csv (unpacked, where it is scores.csv.gz) are compared.
"""

import gzip
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.archive import write_rows
from cxr import cli
from cxr.errors import CxrError
from tests.support.checkpoints import write_checkpoint
from tests.support.jobs import Job

POLL_S: Final = 0.02


@dataclass(frozen=True)
class KillsBenchmark:
    """How large the archive is."""

    rows: int = 1_000_000
    """Rows of the CSV: more than the 100,000 of one file of the manifest."""
    output: Path | None = None
    """JSON file for the results."""


@dataclass(frozen=True)
class Killed:
    """A job that was killed and continued."""

    phase: str
    manifest_files: int
    """Written when it was killed."""
    parts: int
    """Written when it was killed."""
    resumed_s: float
    rows: int
    is_equal: bool
    """Whether its scores have the bytes of the undisturbed job's."""


def _is_listing(output: Path) -> bool:
    return _count(output / "manifest") >= 2


def _is_scoring(output: Path) -> bool:
    return (output / "listing.json").exists()


def _is_writing(output: Path) -> bool:
    return any(output.glob("scores.csv*"))


PHASES: Final[dict[str, Callable[[Path], bool]]] = {
    "listing": _is_listing,
    "scoring": _is_scoring,
    "results": _is_writing,
}


def main() -> None:
    job = cli.parse(KillsBenchmark, str(__doc__))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_checkpoint(str(root / "checkpoint"))
        rows = write_rows(root, job.rows)
        started = time.monotonic()
        if code := start(root, rows, root / "whole").wait():
            raise CxrError(f"the job ended with {code}.")
        print(f"undisturbed: {time.monotonic() - started:.1f} s", flush=True)
        expected = digest(root / "whole")
        killed = [kill(root, rows, phase, expected) for phase in PHASES]
    if job.output:
        job.output.write_text(json.dumps([asdict(one) for one in killed], indent=2) + "\n")


def start(root: Path, rows: Path, output: Path) -> Job:
    """Score the rows in a job of its own."""
    return Job("score", "--checkpoint", root / "checkpoint", "--input", rows, "--output", output)


def kill(root: Path, rows: Path, phase: str, expected: tuple[str, int]) -> Killed:
    """Kill a job in a phase and continue it.

    Args:
        root: folder of the jobs.
        rows: the CSV.
        phase: of `PHASES`.
        expected: what `digest` gives for an undisturbed job.
    """
    output = root / phase
    job = start(root, rows, output)
    while not PHASES[phase](output):
        if job.process.poll() is not None:
            raise CxrError(f"the job ended before its {phase} was seen. Give more --rows.")
        time.sleep(POLL_S)
    job.kill()
    manifest_files, parts = _count(output / "manifest"), _count(output / "scores")
    started = time.monotonic()
    if code := start(root, rows, output).wait():
        raise CxrError(f"the job that was killed in its {phase} ended with {code}.")
    seconds, found = time.monotonic() - started, digest(output)
    killed = Killed(phase, manifest_files, parts, seconds, found[1], found == expected)
    print(
        f"killed in its {phase} ({manifest_files} manifest files, {parts:,} parts): continued in"
        f" {seconds:.1f} s, {killed.rows:,} rows, {'equal' if killed.is_equal else 'NOT EQUAL'}",
        flush=True,
    )
    return killed


def _count(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


def digest(output: Path) -> tuple[str, int]:
    """SHA-256 of the scores as CSV, and the number of its rows."""
    packed = output / "scores.csv.gz"
    sha256, lines = hashlib.sha256(), 0
    with gzip.open(packed) if packed.exists() else (output / "scores.csv").open("rb") as file:
        for line in file:
            sha256.update(line)
            lines += 1
    return sha256.hexdigest(), lines - 1  # Without the names of the columns.


if __name__ == "__main__":
    cli.run(main)
