"""How far a distributed pass is, as lines that read well in a terminal and in a job's log."""

import threading
import time
from types import TracebackType

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LINE_EVERY_S = 5.0
"""Seconds between two lines: often enough to see life, seldom enough for a log."""


@ray.remote(num_cpus=0)
class Counter:
    """Counts what workers report as done."""

    def __init__(self) -> None:
        self.done = 0
        self._marks: list[tuple[float, int]] = []

    def add(self, count: int) -> None:
        """Count some more."""
        self.done += count
        self._marks.append((time.time(), count))

    def total(self) -> int:
        """What was counted so far."""
        return self.done

    def marks(self) -> list[tuple[float, int]]:
        """When how many were added, seconds since 1970."""
        return self._marks


class Progress:
    """A context in which lines tell how far a pass over `total` items is.

    Workers call `progress.counter.add.remote(n)` as they finish `n` items.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        # Beside the job: on another node it would take the job with it when that node leaves.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.counter: ActorHandle[Counter] = Counter.options(  # type: ignore[attr-defined]
            scheduling_strategy=here
        ).remote()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        seconds = time.monotonic() - self._started
        if error is None:
            rate = self.total / max(seconds, 1e-9)
            print(f"  {self.title}: {self.total:,} done in {seconds:.1f} s ({rate:.1f}/s)")

    def _watch(self) -> None:
        while not self._stopped.wait(LINE_EVERY_S):
            done: int = ray.get(self.counter.total.remote())  # type: ignore[assignment]
            seconds = time.monotonic() - self._started
            left = f", {seconds / done * (self.total - done):.0f} s left" if done else ""
            share = done / max(self.total, 1)
            print(
                f"  {self.title}: {done:,} of {self.total:,} ({share:.0%}),"
                f" {done / seconds:.1f}/s{left}",
                flush=True,
            )
