"""Clusters that jobs join: several nodes, a node that vanishes, places that not all reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cxr import cluster
from cxr.cluster import Workers, parse_workers
from cxr.errors import CxrError, SettingsError
from tests.support.jobs import ROOT, Ended

PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
os.environ.update(json.loads(sys.argv[2]))
import ray
from ray.cluster_utils import Cluster

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
leaving = nodes.add_node(num_cpus=1)
nodes.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = nodes.address
os.chdir(sys.argv[1])  # The nodes stay where they were started.

from cxr import checkpoint, cluster, scoring
from cxr.errors import SettingsError

cluster.connect()
Path("cache").mkdir()
try:
    cluster.check_reach(["/proc/self/cwd/cache"])
except SettingsError as error:
    print("refused:", error)
cluster.check_reach([str(Path("cache").absolute())], [str(Path("cache/nothing").absolute())])
print("left behind:", list(Path("cache").iterdir()))


def leave():
    while not list(Path("out").glob("scores/*")):
        time.sleep(0.02)
    print("a node leaves", flush=True)
    nodes.remove_node(leaving, allow_graceful=False)


leaves = threading.Thread(target=leave)
leaves.start()
trained = checkpoint.load(sys.argv[3])
summary = scoring.score([sys.argv[4]], trained, str(Path("out").absolute()))
leaves.join()
print("summary:", summary.num_listed, summary.num_scored)
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.cluster
def test_several_nodes_and_one_that_vanishes(
    small_checkpoint: str, small_set: Path, tmp_path: Path
) -> None:
    """A place on one machine's disk is refused, and a job outlives a node, each row once."""
    copies = tmp_path / "in"
    for index in range(12):
        folder = copies / str(index)
        folder.mkdir(parents=True)
        for file in sorted((small_set / "train").rglob("*.jpeg")):
            (folder / file.name).symlink_to(file)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(cluster.ENVIRONMENT),
         small_checkpoint, str(copies)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refused: /proc/self/cwd/cache: is not reached by node " in done.stdout
    assert "left behind: []" in done.stdout
    assert "a node leaves" in done.stdout
    assert "summary: 576 576" in done.stdout
    parts = sorted((tmp_path / "out" / "scores").glob("*.parquet"))
    uris = [uri for part in parts for uri in pq.read_table(part)["uri"].to_pylist()]
    expected = sorted(str(path) for path in copies.rglob("*.jpeg"))
    assert sorted(uris) == expected


def test_workers_are_a_number_or_a_range() -> None:
    assert parse_workers("4") == Workers(4, 4)
    assert parse_workers("1:4") == Workers(1, 4)
    for text in ("four", "", "0", "3:2", "1:x"):
        with pytest.raises(SettingsError, match="Give 4, or 1:4 for 1 to 4"):
            parse_workers(text)


def run_in_new_process(environment: dict[str, str]) -> Ended:
    """`cluster.connect` where no cluster runs yet."""
    program = f"""
import os
os.environ.update({environment!r})
from cxr import cli, cluster
cli.run(cluster.connect)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.cluster
def test_the_address_of_a_dashboard_is_no_cluster_to_join() -> None:
    ended = run_in_new_process({"RAY_ADDRESS": "http://127.0.0.1:8265"})
    assert ended.code == 1
    assert "takes submitted jobs. Run ray job submit" in ended.err


@pytest.mark.cluster
def test_a_cluster_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_in_new_process(
        {"RAY_ADDRESS": "127.0.0.1:9", "RAY_gcs_rpc_server_reconnect_timeout_s": "2"}
    )
    assert ended.code == 1
    assert "RAY_ADDRESS=127.0.0.1:9: cannot be joined" in ended.err


def test_a_cluster_of_our_own_is_not_waited_for(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.wait_for("GPU", 3) == 0
    with pytest.raises(SettingsError, match="this cluster has no GPU"):
        cluster.use_gpu("on")


def test_a_node_that_joins_late_is_waited_for(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    resources = iter([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 2.0, "GPU": 2.0}])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(resources))
    assert cluster.wait_for("GPU", 2) == 2
    assert "waiting for nodes: GPUs needed 2, in the cluster 0" in capsys.readouterr().out


def test_a_node_that_does_not_come_is_given_up(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(cluster, "NODES_WAIT_S", 0.5)
    with pytest.raises(CxrError, match="this cluster has no GPU"):
        cluster.use_gpu("on")


JOINING = """
import json, os, sys
os.environ.update(json.loads(sys.argv[1]))
import numpy as np
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
os.environ["RAY_ADDRESS"] = nodes.address
from cxr import cluster
from cxr.errors import CxrError

wait_s, cluster.NODES_WAIT_S = cluster.NODES_WAIT_S, 0.5
try:
    cluster.connect()
except CxrError as error:
    print("refused:", error)
nodes.add_node(num_cpus=4)
cluster.NODES_WAIT_S = wait_s
cluster.connect()
assert cluster.wait_for("CPU", 4) == 4


class Slow:
    def __call__(self, batch):
        import time

        time.sleep(0.3)
        return batch | {"node": np.array([ray.get_runtime_context().get_node_id()] * 1)}


pool = cluster.pool(1000, 1, gpu=False)
print("pool:", pool.least, pool.most)
blocks = [pa.table({"part": [number]}) for number in range(1000)]
stream = ray.data.from_blocks(blocks).map_batches(
    Slow, batch_size=1, compute=pool.strategy, num_cpus=pool.share.num_cpus
)
seen = set()
for number, row in enumerate(stream.iter_rows()):
    if number == 4:
        nodes.add_node(num_cpus=4)
    seen.add(row["node"])
    if len(seen) == 2:
        break
print("nodes:", len(seen))
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.cluster
def test_a_cluster_without_a_node_that_computes_is_said_so_and_a_pool_takes_in_one_that_joins(
) -> None:  # fmt: skip
    """First a head alone, and nothing that would bring nodes; then one node, then another."""
    done = subprocess.run(
        [sys.executable, "-c", JOINING, json.dumps(cluster.ENVIRONMENT)], cwd=ROOT,
        capture_output=True, text=True, timeout=180, env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no node with a CPU has joined this cluster" in done.stdout
    assert "pool: 4 1000" in done.stdout
    assert "nodes: 2" in done.stdout
