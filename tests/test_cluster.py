"""Clusters that jobs join: several nodes, a node that vanishes, places that not all reach."""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import cluster
from cxr.cluster import Workers, parse_workers, resources
from cxr.errors import CxrError, SettingsError
from cxr.storage.paths import SUBMITTED_JOB
from tests.support.jobs import ROOT, run

NODES = """
import json, os, sys, threading, time
from pathlib import Path
os.environ.update(json.loads(sys.argv[1]))
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
os.environ["RAY_ADDRESS"] = nodes.address

from cxr import cluster
from cxr.cluster import resources
from cxr.errors import CxrError
from cxr.models import checkpoint
from cxr.scoring.job import score

wait_s, resources.NODES_WAIT_S = resources.NODES_WAIT_S, 0.5
try:
    cluster.connect()
except CxrError as error:
    print("head alone:", error)
resources.NODES_WAIT_S = wait_s
leaving = nodes.add_node(num_cpus=1)
nodes.add_node(num_cpus=1)
os.chdir(sys.argv[2])  # The nodes stay where they were started.
cluster.connect()
print("CPUs:", cluster.wait_for("CPU", 2))

Path("cache").mkdir()
try:
    cluster.check_reach(["/proc/self/cwd/cache"])
except CxrError as error:
    print("refused:", error)
cluster.check_reach([str(Path("cache").absolute())], [str(Path("cache/nothing").absolute())])
print("left behind:", list(Path("cache").iterdir()))


def leave():
    while not list(Path("out").glob("scores/*")):
        time.sleep(0.02)
    print("a node leaves", flush=True)
    nodes.remove_node(leaving, allow_graceful=False)


leaves = threading.Thread(target=leave, daemon=True)
leaves.start()
trained = checkpoint.load(sys.argv[3])
summary = score(
    [sys.argv[4]], trained, str(Path("out").absolute()), operating_point=trained.operating_point
)
leaves.join()
print("summary:", summary.num_listed, summary.num_scored)


class Slow:
    def __call__(self, batch):
        time.sleep(0.3)
        return batch.append_column("node", [[ray.get_runtime_context().get_node_id()]])


while ray.cluster_resources().get("CPU") != 1:  # Until the head knows that the node has left.
    time.sleep(0.1)
pool = cluster.pool(1000, 1, gpu=False)
print("pool:", pool.min_size, pool.max_size)
blocks = [pa.table({"part": [number]}) for number in range(1000)]
stream = pool.map(ray.data.from_blocks(blocks), Slow, (), 1)
seen = set()
for number, row in enumerate(stream.iter_rows()):
    if number == 4:
        nodes.add_node(num_cpus=1)
    seen.add(row["node"])
    if len(seen) == 2:
        break
print("nodes:", len(seen))
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.cluster
def test_nodes_are_waited_for_may_leave_and_may_join(
    small_checkpoint: str, small_set: Path, tmp_path: Path
) -> None:
    """A head alone computes nothing, and says so; a folder on one node's disk is refused; a job
    outlives a node and has each row once; a pool takes in a node that joins."""
    copies = tmp_path / "in"
    for index in range(12):
        folder = copies / str(index)
        folder.mkdir(parents=True)
        for file in sorted((small_set / "train").rglob("*.jpeg")):
            (folder / file.name).symlink_to(file)
    environment = json.dumps(cluster.ENVIRONMENT)
    ended = run(
        [sys.executable, "-c", NODES, environment, str(tmp_path), small_checkpoint, str(copies)],
        timeout_s=300,
    )
    assert ended.code == 0, ended.out + ended.err
    for line in (
        "no node with a CPU has joined this cluster", "CPUs: 2",
        "refused: /proc/self/cwd/cache: is not reached by node ", "left behind: []",
        "a node leaves", "summary: 576 576", "pool: 1 1000", "nodes: 2",
    ):  # fmt: skip
        assert line in ended.out
    for native in ("core_worker.cc", "logging.cc"):
        assert native not in ended.err  # Ray's native log stays in its files.
    parts = sorted((tmp_path / "out" / "scores").glob("*.parquet"))
    uris = [uri for part in parts for uri in pq.read_table(part)["uri"].to_pylist()]
    expected = sorted(str(path) for path in copies.rglob("*.jpeg"))
    assert sorted(uris) == expected


class Nothing:
    """An actor that returns what it gets."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_ray_data_accepts_every_pool(ray_cluster: None, num_gpus: int) -> None:
    """Ray Data refuses actors on GPUs without a batch size when the stage is added, not run."""
    import ray.data

    pool = cluster.Pool(1, 1, cluster.Share(1, 0.8, num_gpus))
    mapped = pool.map(ray.data.from_blocks([pa.table({"x": [1]})]), Nothing, ("a",))
    if not num_gpus:
        assert mapped.take_all() == [{"x": 1}]


def test_actors_get_their_batches_from_a_pool_alone() -> None:
    """What Ray Data demands of actors on GPUs is met in one place."""
    paths = (ROOT / "cxr").rglob("*.py")
    naming = {
        path.relative_to(ROOT).as_posix() for path in paths if "num_gpus=" in path.read_text()
    }
    assert naming == {"cxr/cluster/resources.py"}


@pytest.mark.cluster
def test_a_submitted_job_is_known_by_the_variable_that_ray_sets() -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    assert SUBMITTED_JOB == RAY_JOB_CONFIG_JSON_ENV_VAR


@pytest.mark.parametrize("before", ["http://127.0.0.1:8265", None])
def test_ray_train_is_told_the_address_of_its_own_cluster(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    import ray
    from ray.dashboard.utils import get_address_for_submission_client
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    if before:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", before)
    with cluster.own_address():
        own = get_env_vars_to_propagate()["RAY_API_SERVER_ADDRESS"]
        asked = get_address_for_submission_client(None)
    assert own == ray.get_runtime_context().gcs_address
    # The port of any dashboard: a cluster of our own has none, and must not name another's.
    assert not asked.endswith(":8265")
    assert os.environ.get("RAY_API_SERVER_ADDRESS") == before


def test_workers_are_a_number_or_a_range() -> None:
    assert parse_workers("4") == Workers(4, 4)
    assert parse_workers("1:4") == Workers(1, 4)
    for text in ("four", "", "0", "3:2", "1:x"):
        with pytest.raises(SettingsError, match="Give 4, or 1:4 for 1 to 4"):
            parse_workers(text)


@pytest.mark.cluster
def test_a_cluster_that_cannot_be_joined_is_one_line() -> None:
    """In a process of its own, where no cluster runs yet; Ray's answers are made up."""
    program = """
import os, socket
import ray
from cxr import cluster
from cxr.errors import CxrError

def refuse(cause):
    def init(**_):
        os.write(2, b"[gcs_client.cc: Failed to get cluster ID]")
        raise ConnectionError("Failed to connect to Ray cluster at x") from RuntimeError(cause)
    return init

listens = socket.create_server(("127.0.0.1", 0))
address = f"127.0.0.1:{listens.getsockname()[1]}"
for address, cause in (
    ("http://127.0.0.1:8265", ""), ("127.0.0.1:9", ""),
    (address, "RPC error: InvalidAuthToken: Authentication token is missing"), (address, "?"),
):
    os.environ["RAY_ADDRESS"] = address
    ray.init = refuse(cause)
    try:
        cluster.connect()
    except CxrError as error:
        print(error)

def start_too_slowly(**_):
    raise Exception("The current node timed out during startup.")

os.environ["RAY_ADDRESS"] = "local"
ray.init = start_too_slowly
try:
    cluster.connect()
except CxrError as error:
    print(error)
"""
    ended = run([sys.executable, "-c", program], timeout_s=120)
    assert ended.code == 0, ended.err
    assert not ended.err
    dashboard, gone, token, other, slow = ended.out.splitlines()
    assert "takes submitted jobs. Run ray job submit" in dashboard
    assert "RAY_ADDRESS=127.0.0.1:9: cannot be joined" in gone
    assert "the cluster's token is missing here, or is another one. Set RAY_AUTH_MODE" in token
    assert "cannot be joined: Failed to connect to Ray cluster at x. Restart" in other
    assert "did not start on this machine: The current node timed out" in slow


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
    monkeypatch.setattr(resources, "NODES_WAIT_S", 0.5)
    with pytest.raises(CxrError, match="this cluster has no GPU"):
        cluster.use_gpu("on")


def test_what_is_imported_beside_the_cluster_is_complete_when_it_is_joined(tmp_path: Path) -> None:
    """Of modules that import each other, two threads can see one that is not complete."""
    (tmp_path / "slow_to_import.py").write_text("import time; time.sleep(0.5); COMPLETE = True")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import ray
from cxr import cluster
from cxr.cluster import connection
ray.init, connection.wait_for = lambda **_: None, lambda *_: 1
cluster.connect(importing=("slow_to_import",))
assert sys.modules["slow_to_import"].COMPLETE
"""
    ended = run([sys.executable, "-c", program])
    assert ended.code == 0, ended.err
