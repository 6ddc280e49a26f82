"""Actors share calls: each call is made once, or again where its actor died."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cxr.cluster import crew
from cxr.cluster.crew import Crew, read_ahead
from cxr.errors import CxrError, DataError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


class Doubler:
    """Yields the double of each item; dies once at 13, and always at 99."""

    def __init__(self, folder: str) -> None:
        self.mark = Path(folder, "died")

    def ready(self) -> None:
        """Nothing to do."""

    def double(self, *items: int) -> Iterator[int]:
        for item in items:
            if item == 99 or (item == 13 and not self.mark.exists()):
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item == 7:
                raise DataError("seven: not today.")
            yield 2 * item


class Unready(Doubler):
    """Cannot load what it needs."""

    def ready(self) -> None:
        raise DataError("the network: cannot be loaded.")


def start(folder: Path, num_calls: int, actor: type = Doubler) -> Crew:
    return Crew(actor, (str(folder),), num_calls, 1, gpu=False)


def test_every_item_is_yielded_once_although_an_actor_died(tmp_path: Path) -> None:
    """Between two items of a call: the first one is not made again."""
    calls = [(1, 2), (11, 13, 15), (), (3,)]
    done = list(start(tmp_path, len(calls)).run("double", calls))
    assert sorted(done) == [2, 4, 6, 22, 26, 30]
    assert (tmp_path / "died").exists()


def test_an_error_of_an_actor_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^seven: not today\.$"):
        list(start(tmp_path, 3).run("double", [(1,), (7,), (2,)]))
    with pytest.raises(DataError, match=r"^the network: cannot be loaded\.$"):
        list(start(tmp_path, 1, Unready).run("double", [(1,)]))


def test_a_call_that_ends_every_actor_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MAX_DEATHS", 2)
    with pytest.raises(CxrError, match=r"^2 processes ended in the same task \(Actor"):
        list(start(tmp_path, 1).run("double", [(99,)]))


def test_what_tasks_read_ahead_reaches_the_actors(tmp_path: Path) -> None:
    def read(first: int) -> Iterator[int]:
        yield first
        yield first + 1

    # The actors claim most of both CPUs, as on a GPU they do not.
    read_items = read_ahead(read, ((10 * i,) for i in range(1, 9)), 0.1)
    done = list(start(tmp_path, 8).run("double", ((item,) for item in read_items)))
    assert sorted(done) == sorted(2 * (10 * i + k) for i in range(1, 9) for k in (0, 1))


def test_the_cpus_are_free_when_the_calls_are_made(tmp_path: Path) -> None:
    assert list(start(tmp_path, 2).run("double", [(1,), (2,)])) in ([2, 4], [4, 2])
    claimed = ray.remote(num_cpus=2)(lambda: 1).remote()
    assert ray.get(claimed, timeout=60) == 1
