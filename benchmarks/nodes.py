"""Scoring on more nodes: images a second of `jobs/score.py` on 1 and on 2 nodes of one CPU each.

    python benchmarks/nodes.py --num-images 2000 200 --output nodes.json    # v0, v1: VGG16 is slow

The nodes are raylets on this machine, with one CPU each; the head has none. Scored are full-size
JPEG files, repeated under other names until there are enough, with networks of random weights. The
rate is the steady one of summary.json. Ray's own processes share the machine's cores with the
nodes, which a real cluster's head would bear instead.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from cxr import cli, cluster, recipes
from cxr.errors import CxrError, SettingsError
from cxr.models import checkpoint, classifier

ROOT: Final = Path(__file__).resolve().parents[1]
REAL_DATA: Final = Path(os.environ.get("CXR_REAL_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class NodesBenchmark:
    """What is scored, and on how many nodes."""

    data: Path = REAL_DATA / "fullsize"
    """Folder of JPEG files, searched through all its folders."""
    versions: tuple[str, ...] = ("v0", "v1")
    """Recipes whose networks score."""
    num_images: tuple[int, ...] = (2000, 200)
    """Files to score, for each version."""
    nodes: tuple[int, ...] = (1, 2)
    """Numbers of nodes."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not self.data.is_dir():
            raise SettingsError(f"data: no folder {self.data}. Name one with JPEG files.")
        if len(self.num_images) != len(self.versions):
            raise SettingsError("num_images: give a number for each version.")


def rate(folder: Path, checkpoint_folder: Path, output: Path, num_nodes: int) -> float:
    """Images a second of a job on a cluster of so many nodes."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(num_nodes):
            nodes.add_node(num_cpus=1)
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "score.py"), "--checkpoint",
             str(checkpoint_folder), "--input", str(folder), "--output", str(output)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": nodes.address},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        nodes.shutdown()
    if done.returncode:
        raise CxrError(f"the job ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(json.loads((output / "summary.json").read_text())["images_per_second"])


def write_checkpoint(folder: Path, version: str) -> None:
    """The network of a version with random weights."""
    recipe = dataclasses.replace(recipes.named(version), image_px=224)
    validation = pa.table(
        {"label": [0, 1], "logit": [-1.0, 1.0], "subtype": ["", ""], "patient": [0, 1]}
    )
    checkpoint.save(str(folder), recipe, classifier.build(recipe), validation, {})


def main() -> None:
    job = cli.parse(NodesBenchmark, str(__doc__))
    os.environ.update(cluster.ENVIRONMENT)
    files = sorted(path for path in job.data.rglob("*.jp*g"))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for version, num in zip(job.versions, job.num_images, strict=True):
            (root / version).mkdir()
            for index, file in enumerate(itertools.islice(itertools.cycle(files), num)):
                (root / version / f"{index:06}.jpeg").symlink_to(file.resolve())
            write_checkpoint(root / f"{version}-checkpoint", version)
            first = 0.0
            for count in job.nodes:
                output = root / f"{version}-out-{count}"
                found = rate(root / version, root / f"{version}-checkpoint", output, count)
                first = first or found
                results.append({"version": version, "nodes": count, "images_per_second": found})
                print(f"{version} {recipes.named(version).backbone:8} {count} nodes: {found:6.2f}"
                      f" images/s, {found / first:.2f} times", flush=True)  # fmt: skip
    if job.output:
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
