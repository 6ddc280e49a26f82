"""Each of the seven jobs once, as a program, on a small set that is drawn for it.

    python -m tests.plain_jobs

It needs what `pip install -e .` installs and nothing else. The gate runs it before it installs any
extra, so that a job that imports what only an extra brings fails there.
"""

import csv
import json
import tempfile
import time
import zipfile
from pathlib import Path

import pyarrow.parquet as pq

from cxr import phantoms
from tests.support.jobs import SMALL, UNSTRESSED, command, run

DRAWN = phantoms.PhantomSettings(num_train=48, num_val=4, num_test=12, image_px=64)


def succeed(job: str, *words: object) -> None:
    """Run a job that must end with 0; what it printed is shown where it does not."""
    started = time.monotonic()
    ended = run(command(job, *words))
    print(f"{job}: exit code {ended.code} after {time.monotonic() - started:.0f} s", flush=True)
    if ended.code:
        raise SystemExit(f"{ended.out}{ended.err}")


def pack(folder: Path, archive: Path) -> None:
    """A zip of a set with the folder that the published one has around it."""
    with zipfile.ZipFile(archive, "w") as members:
        for path in sorted(folder.rglob("*.jpeg")):
            members.write(path, f"chest_xray/{path.relative_to(folder)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive, data, checkpoint = root / "set.zip", root / "data", root / "run/best/checkpoint"
        cache = ("--cache", root / "cache")
        pack(phantoms.write(DRAWN, root / "drawn"), archive)

        succeed("download", "--url", archive, "--to", data)
        assert pq.read_metadata(data / "manifest.parquet").num_rows == 64

        succeed("check", "--version", "v0", "--data", data, "--output", root / "checked", *cache)
        assert json.loads((root / "checked" / "check.json").read_text())["num_decoded"] == 64

        succeed(
            "train",
            *SMALL,
            "--epochs",
            1,
            "--data",
            data,
            "--output",
            root / "run",
            *cache,
            *UNSTRESSED,
        )
        assert (checkpoint / "model.safetensors").is_file()

        evaluated = root / "evaluated"
        succeed(
            "evaluate",
            "--checkpoint",
            checkpoint,
            "--data",
            data,
            "--output",
            evaluated,
            *cache,
            *UNSTRESSED,
        )
        assert json.loads((evaluated / "metrics.json").read_text())["num_images"] == 12

        scored = root / "scored"
        succeed("score", "--checkpoint", checkpoint, "--input", archive, "--output", scored)
        with (scored / "scores.csv").open(newline="") as file:
            assert [row["status"] for row in csv.DictReader(file)] == ["scored"] * 64

        explained = root / "explained"
        images = ("--input", archive, "--limit", 8)
        succeed("explain", "--checkpoint", checkpoint, *images, "--output", explained)
        assert len(list(explained.glob("*.map.npy"))) == 8

        search = (
            "--search",
            "class_weighting=none,balanced",
            "--epochs",
            1,
            "--output",
            root / "search",
        )
        succeed("tune", *SMALL, *search, "--data", data, *cache)
        trials = pq.read_table(root / "search" / "trials.parquet")
        assert trials["class_weighting"].to_pylist() == ["none", "balanced"]
        assert None not in trials["auc"].to_pylist()
    print("all seven jobs run on a plain installation")


if __name__ == "__main__":
    main()
