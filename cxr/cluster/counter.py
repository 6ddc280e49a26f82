"""Progress of a stage whose items are done by processes of the cluster."""

import time

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cxr.progress import Progress


@ray.remote(num_cpus=0)
class Counter:
    """Counts what workers report as done."""

    def __init__(self) -> None:
        self.done = 0
        self._marks: list[tuple[float, int]] = []

    def add(self, count: int) -> None:
        """Count more items as done."""
        self.done += count
        self._marks.append((time.time(), count))

    def total(self) -> int:
        """How many are done."""
        return self.done

    def marks(self) -> list[tuple[float, int]]:
        """When how many were added, seconds since 1970."""
        return self._marks


def start_counter() -> "ActorHandle[Counter]":
    """A counter on this node: on another it would take the job with it when that node leaves."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    counter: ActorHandle[Counter] = Counter.options(  # type: ignore[attr-defined]
        scheduling_strategy=here
    ).remote()
    return counter


class ClusterProgress(Progress):
    """Progress to which workers add: `progress.counter.add.remote(n)` as they finish n items."""

    def __init__(self, title: str, total: int, *, lines: bool = True) -> None:
        """Arguments as `Progress`'s."""
        super().__init__(title, total, lines=lines)
        self.counter = start_counter()

    def __enter__(self) -> "ClusterProgress":
        super().__enter__()
        return self

    def added(self) -> int:
        done: int = ray.get(self.counter.total.remote())  # type: ignore[assignment]
        return done
