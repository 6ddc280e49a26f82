"""Whether every node reaches the folders that a job reads and writes."""

import uuid
from collections.abc import Sequence

from cxr import storage
from cxr.errors import SettingsError


def check_reach(written: Sequence[str], read: Sequence[str] = ()) -> None:
    """Refuse folders on one machine's own disk where other nodes take part.

    Args:
        written: folders that every node writes to.
        read: files that every node reads; one that is missing here is not asked for.

    Raises:
        SettingsError: a node does not reach one of them; says which node and path.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != own
    }
    probes = {storage.join(folder, f".cxr-{uuid.uuid4().hex}"): folder for folder in written}
    asked_for = probes | {path: path for path in read if not _missing([path])}
    local = [path for path in asked_for if "://" not in path]
    if not nodes or not local:
        return
    task = ray.remote(num_cpus=0)(_missing)
    local_probes = [path for path in local if path in probes]
    try:
        for probe in local_probes:
            storage.write_bytes(probe, b"")
        answers = {
            node: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(local)
            for node in nodes
        }
        for node, answer in answers.items():
            try:
                missing = ray.get(answer)
            except ray.exceptions.RayError:
                continue  # It has left in the meantime.
            if missing:
                raise SettingsError(
                    f"{asked_for[missing[0]]}: is not reached by node {nodes[node]}. Give a folder"
                    " that all nodes share, or an s3:// prefix, for data, --cache and --output."
                )
    finally:
        for probe in local_probes:
            storage.delete_file(probe)


def _missing(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if storage.kind(path) == "nothing"]
