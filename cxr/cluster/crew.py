"""Actors that share calls: each takes the next one, and what a dead one has left is taken over.

Plain actors of Ray, without Ray Data: to import that takes a second in the driver and in each
process, and the driver spends more on a task of it than a small part of an archive costs.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NoReturn

import ray
from ray.actor import ActorHandle
from ray.autoscaler.sdk import request_resources

from cxr.cluster.resources import SPARE_CPUS, Share, is_joined, pool
from cxr.errors import CxrError

GPU_CALLS: Final = 2
"""Calls of an actor on a GPU: the one that it makes, and one that waits, so that the GPU does not.
On a CPU a call takes a second, and a driver answers within milliseconds; a call that waited there
could be made by another."""

MAX_DEATHS: Final = 10
"""Actors that may die in the same call. Nodes that are taken away end actors, too; ten in a row
mean that the call itself does."""

RESIZE_EVERY_S: Final = 5.0
"""Seconds between two looks at how many actors the cluster has room for."""

MAX_REQUESTED: Final = 1000
"""Actors that an autoscaler is asked to make room for at once."""

LOOK_S: Final = 0.1
"""Seconds between two looks for calls that are still to come."""

_END: Final = object()


@dataclass
class _Call:
    items: Sequence[object]
    """What is left of it: its method yields once for each."""
    deaths: int = 0
    """Actors that died in it."""


class _Fed(Enum):
    """How far calls have been given to actors."""

    ALL = auto()
    """There are no more calls."""
    ALL_THAT_CAME = auto()
    """There may be more."""
    EVERY_ACTOR = auto()
    """No actor is free."""


class Crew:
    """As many actors as the cluster has room for, and as there are calls for."""

    def __init__(
        self, actor: type, args: Sequence[object], num_calls: int, threads: int, *, gpu: bool
    ) -> None:
        """Start the actors; they get ready while the caller goes on.

        Args:
            actor: a class with a method `ready`, which is called first, and one that makes calls.
            args: of its constructor.
            num_calls: no more actors than these; see `expect`.
            threads: of each actor, where it computes on CPUs.
            gpu: a GPU for each.
        """
        self._num_calls, self._threads, self._gpu = num_calls, threads, gpu
        self.num_first = pool(num_calls, threads, gpu=gpu).min_size
        """Actors that there is room for at the start."""
        # On a GPU an actor claims no CPU: those are for the tasks that read for it, which would
        # never start on a node with as many GPUs as CPUs.
        share = Share(threads, 0 if gpu else threads - SPARE_CPUS, int(gpu))
        self._class: Any = ray.remote(actor).options(**share.claim)
        self._args = args
        self._num_failed_starts = 0
        self._starting: dict[ray.ObjectRef[None], ActorHandle[Any]] = {}
        self._load: dict[ActorHandle[Any], int] = {}
        self._running: dict[Any, tuple[ActorHandle[Any], _Call]] = {}
        self._left_over: deque[_Call] = deque()
        self._bundle = share.bundle
        self._request()
        self._resize()

    def expect(self, num_calls: int) -> None:
        """Make room for more calls than were known at the start."""
        self._num_calls += num_calls
        self._request()

    def run(self, method: str, calls: Iterable[Sequence[object] | None]) -> Iterator[Any]:
        """Make calls; yields what they yield, in the order in which it comes.

        Args:
            method: of the actor: takes the items of a call, and yields once for each of them.
            calls: their items. The next ones are taken when an actor is free for them; None says
                that there is none yet.

        Raises:
            CxrError: of an actor, unchanged; or a call ended `MAX_DEATHS` actors.
        """
        coming = iter(calls)
        try:
            while True:
                fed = self._feed(method, coming)
                if fed is _Fed.ALL and not self._running and not self._left_over and self._load:
                    return
                ready = self._wait(LOOK_S if fed is _Fed.ALL_THAT_CAME else RESIZE_EVERY_S)
                for waitable in ready:
                    if waitable in self._starting:
                        self._welcome(waitable)
                    else:
                        yield from self._collect(waitable)
                if time.monotonic() - self._resized > RESIZE_EVERY_S or not self._load:
                    self._resize()
        finally:
            self._end()

    def _request(self) -> None:
        """Ask an autoscaler to make room."""
        if is_joined():
            request_resources(bundles=[self._bundle] * min(self._num_calls, MAX_REQUESTED))

    def _wait(self, timeout_s: float) -> list[Any]:
        if not (waited_for := [*self._starting, *self._running]):
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(waited_for, timeout=timeout_s, fetch_local=False)
        return list(ready)

    def _resize(self) -> None:
        self._resized = time.monotonic()
        size = pool(self._num_calls, self._threads, gpu=self._gpu).min_size
        for _ in range(size - len(self._starting) - len(self._load)):
            actor = self._class.remote(*self._args)
            self._starting[actor.ready.remote()] = actor

    def _welcome(self, ready: "ray.ObjectRef[None]") -> None:
        actor = self._starting.pop(ready)
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            _reraise(error)
        except ray.exceptions.RayError as error:  # Its node has left; another takes its place.
            self._num_failed_starts += 1
            if self._num_failed_starts == MAX_DEATHS:
                _give_up(error)
            return
        self._num_failed_starts = 0
        self._load[actor] = 0

    def _feed(self, method: str, coming: Iterator[Sequence[object] | None]) -> "_Fed":
        for rank in range(GPU_CALLS if self._gpu else 1):
            for actor in [actor for actor, load in self._load.items() if load == rank]:
                if self._left_over:
                    call = self._left_over.popleft()
                else:
                    items: Any = next(coming, _END)
                    if items is _END:
                        return _Fed.ALL
                    if items is None:
                        return _Fed.ALL_THAT_CAME
                    call = _Call(items)
                bound = getattr(actor, method)
                stream = bound.options(num_returns="streaming").remote(*call.items)
                self._running[stream] = actor, call
                self._load[actor] += 1
        return _Fed.EVERY_ACTOR

    def _collect(self, stream: Any) -> Iterator[Any]:
        """What has come of a call; takes note of its end, and of the death of its actor."""
        actor, call = self._running[stream]
        try:
            value = ray.get(next(stream))
        except StopIteration:
            del self._running[stream]
            if actor in self._load:
                self._load[actor] -= 1
            return
        except ray.exceptions.RayTaskError as error:
            _reraise(error)
        except ray.exceptions.RayError as error:
            del self._running[stream]
            self._load.pop(actor, None)
            call.deaths += 1
            if call.deaths == MAX_DEATHS:
                _give_up(error)
            self._left_over.append(call)
            return
        call.items = call.items[1:]
        yield value

    def _end(self) -> None:
        for actor in [*self._load, *self._starting.values()]:
            ray.kill(actor)
        self._running.clear()
        if is_joined():
            request_resources(bundles=[])  # Else they would be kept forever.


def read_ahead(
    function: Callable[..., Iterator[Any]],
    calls: Iterable[Sequence[object] | None],
    num_cpus: float,
) -> "Iterator[ray.ObjectRef[Any] | None]":
    """Call a generator function in tasks of the cluster, for whoever takes what they yield.

    The first tasks start with this call, and others as their results are taken.

    Args:
        function: yields what is taken, by `yield` and not from another iterator: Ray sends values.
        calls: its arguments; None says that there are none yet.
        num_cpus: that a task claims.

    Yields:
        A reference to each result, in the order in which they come; None if there is none yet.
    """
    task: Any = ray.remote(function).options(
        num_cpus=num_cpus, num_returns="streaming", max_retries=-1,
        _generator_backpressure_num_objects=GPU_CALLS,
    )  # fmt: skip
    coming = iter(calls)
    running: list[Any] = []

    def start_more() -> bool:
        """Whether there may be more calls."""
        room = int(ray.cluster_resources().get("CPU", 1) / num_cpus) + GPU_CALLS
        while len(running) < room:
            args: Any = next(coming, _END)
            if args is _END or args is None:
                return args is None
            running.append(task.remote(*args))
        return True

    def take(may_be_more: bool) -> "Iterator[ray.ObjectRef[Any] | None]":
        while running or may_be_more:
            if not running:
                yield None
                may_be_more = start_more()
                continue
            stream: Any = ray.wait(running, fetch_local=False)[0][0]
            try:
                yield next(stream)
            except StopIteration:
                running.remove(stream)
                may_be_more = start_more()

    return take(start_more())


def _give_up(error: "ray.exceptions.RayError") -> NoReturn:
    raise CxrError(
        f"{MAX_DEATHS} processes ended in the same task ({type(error).__name__}). See the logs of"
        " Ray; that the task needs more memory than there is would be the usual cause."
    ) from None


def _reraise(error: "ray.exceptions.RayTaskError") -> NoReturn:
    """Raise the error of an actor as it was raised there, without the traces around it."""
    if isinstance(error.cause, CxrError):
        raise error.cause from None
    raise error
