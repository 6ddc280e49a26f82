"""Scoring on more nodes: images per second of `jobs/score.py` on 1 and 2 nodes of one CPU each.

    python -m benchmarks.nodes --num-images 2000 200 --output nodes.json    # v0, v1: VGG16 is slow

The nodes are raylets on this machine, with one CPU each; the head has none. The files are full-size
JPEG files, repeated under other names until there are enough; the networks have random weights. The
rate is the steady one in summary.json. Ray's own processes share the machine's cores with the
nodes; on a real cluster they would run on the head.
"""

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cxr import cli, cluster, recipes
from cxr.errors import CxrError, SettingsError
from tests.support.checkpoints import write_checkpoint
from tests.support.files import repeat
from tests.support.jobs import ROOT, command, run

REAL_DATA: Final = Path(os.environ.get("CXR_REAL_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class NodesBenchmark:
    """What to score, and on how many nodes."""

    data: Path = REAL_DATA / "fullsize"
    """Folder of JPEG files, searched through all its folders."""
    versions: tuple[str, ...] = ("v0", "v1")
    """Recipes whose networks score."""
    num_images: tuple[int, ...] = (2000, 200)
    """Files to score, per version."""
    nodes: tuple[int, ...] = (1, 2)
    """Numbers of nodes."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not self.data.is_dir():
            raise SettingsError(f"data: no folder {self.data}. Name one with JPEG files.")
        if len(self.num_images) != len(self.versions):
            raise SettingsError("num_images: give a number for each version.")


def rate(folder: Path, checkpoint_folder: str, output: Path, num_nodes: int) -> float:
    """Images per second of a job on a cluster with that many nodes."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(num_nodes):
            nodes.add_node(num_cpus=1)
        words = ("--checkpoint", checkpoint_folder, "--input", folder, "--output", output)
        ended = run(command("score", *words), RAY_ADDRESS=nodes.address)
    finally:
        nodes.shutdown()
    if ended.code:
        raise CxrError(f"the job ended with {ended.code}: {ended.err[-2000:]}")
    return float(json.loads((output / "summary.json").read_text())["images_per_second"])


def main() -> None:
    job = cli.parse(NodesBenchmark, str(__doc__))
    os.environ.update(cluster.ENVIRONMENT)
    files = sorted(path for path in job.data.rglob("*.jp*g"))
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for version, num in zip(job.versions, job.num_images, strict=True):
            repeat(files, num, root / version)
            recipe = dataclasses.replace(recipes.named(version), image_px=224)
            trained = write_checkpoint(root / f"{version}-checkpoint", recipe)
            first = 0.0
            for count in job.nodes:
                output = root / f"{version}-out-{count}"
                found = rate(root / version, trained, output, count)
                first = first or found
                results.append({"version": version, "nodes": count, "images_per_second": found})
                print(f"{version} {recipes.named(version).backbone:8} {count} nodes: {found:6.2f}"
                      f" images/s, {found / first:.2f} times", flush=True)  # fmt: skip
    if job.output:
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
