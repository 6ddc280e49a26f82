"""Tasks whose results come in the order of their calls, a bounded number of them at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

RESULTS_AHEAD: Final = 4
"""Results of a task that are kept before they are taken."""


def run_in_order(
    function: Callable[..., Iterator[Any]],
    calls: Iterable[Sequence[object]],
    num_cpus: float,
    *,
    here: bool = False,
) -> Iterator[Iterator[Any]]:
    """Call a generator function in tasks of the cluster.

    As many tasks run as the cluster has CPUs, and two more, so that what they yield waits for what
    comes before: at most `RESULTS_AHEAD` results of each.

    Args:
        function: what it yields is a result.
        calls: its arguments.
        num_cpus: that a task claims.
        here: call it in this process, for calls so few that they are done before a process starts.

    Yields:
        For each call its results, as references, to be taken before those of the next one. An error
        of the task is raised after the last of them, also if that one was not looked at.
    """
    import ray

    if here:
        for arguments in calls:
            yield map(ray.put, function(*arguments))
        return
    task: Any = ray.remote(function).options(
        num_cpus=num_cpus, num_returns="streaming",
        _generator_backpressure_num_objects=RESULTS_AHEAD,
    )  # fmt: skip
    running: deque[Any] = deque()
    for arguments in calls:
        running.append(task.remote(*arguments))
        if len(running) >= ray.cluster_resources().get("CPU", 1) + 2:
            yield _results(running.popleft())
    while running:
        yield _results(running.popleft())


def _results(stream: Any) -> Iterator[Any]:
    import ray

    yield from stream
    ray.get(stream.completed())
