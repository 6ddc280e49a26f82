"""Two jobs never write to one folder, and a dead one stops nobody."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxr import storage
from cxr.errors import StorageError
from cxr.storage import locks
from tests.support.faults import FaultyProxy
from tests.support.folders import as_nobody, readable_folder
from tests.support.s3 import Store
from tests.support.waiting import wait_until

HOLD = """
import sys, time
from cxr import storage
from cxr.errors import StorageError
from cxr.storage import locks
locks.RENEW_S, locks.SETTLE_S = 0.2, 0.1
try:
    with storage.lock_folder(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except StorageError as error:
    print(error)
"""


@contextmanager
def job(folder: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of a folder until its input is closed."""
    words = [sys.executable, "-c", HOLD, folder]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.fixture(params=["folder", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(locks, "RENEW_S", 0.2)
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)
    monkeypatch.setattr(locks, "LOOK_S", 0.1)
    if request.param == "folder":
        return str(tmp_path / "new" / "output")
    store: Store = request.getfixturevalue("s3")
    return f"{store.bucket()}/output"


def test_a_second_job_is_refused_while_the_first_lives(folder: str) -> None:
    with job(folder) as first:
        message = rf"output: another job is writing to it \(process {first.pid} on .+\)\. Wait for"
        for _ in range(2):
            with pytest.raises(StorageError, match=message), storage.lock_folder(folder):
                pass
        first.communicate()
    with storage.lock_folder(folder) as lock:
        lock.check()
    assert storage.list_files(folder) == []


def test_the_lock_of_a_killed_job_is_taken_at_once(folder: str) -> None:
    with job(folder) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    started = time.monotonic()
    with storage.lock_folder(folder):
        assert storage.is_empty(folder)
        with pytest.raises(StorageError, match="another job"), storage.lock_folder(folder):
            pass
    assert time.monotonic() - started < 30
    assert storage.list_files(folder) == []


@pytest.fixture
def elsewhere(s3: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lock of a job of another machine that has ended, in a bucket."""
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)
    monkeypatch.setattr(locks, "LOOK_S", 0.1)
    folder = f"{s3.bucket()}/output"
    holder = b'{"host": "other", "process": 7, "machine": "another", "started": 1.0, "token": "x"}'
    storage.write_bytes(f"{folder}/.lock", holder)
    return folder


def test_the_lock_of_another_machine_is_taken_when_it_is_not_renewed(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "DEAD_S", 2.5)
    started = time.monotonic()
    with storage.lock_folder(elsewhere):
        assert time.monotonic() - started > 1.4  # Stores tell times in whole seconds.


def test_a_lock_that_is_renewed_is_respected_wherever_its_holder_is(elsewhere: str) -> None:
    holder = storage.read_json(f"{elsewhere}/.lock")
    renewal = threading.Timer(
        1.0, storage.write_json, (f"{elsewhere}/.lock", {**holder, "renewals": 1})
    )
    renewal.start()
    with pytest.raises(StorageError, match=r"process 7 on other"), storage.lock_folder(elsewhere):
        pass
    renewal.join()


def test_of_many_jobs_at_once_one_gets_the_lock(folder: str) -> None:
    got: list[str] = []
    done = threading.Event()

    def try_it(name: str) -> None:
        try:
            with storage.lock_folder(folder):
                got.append(name)
                done.wait(30)
        except StorageError:
            pass

    threads = [threading.Thread(target=try_it, args=[f"{index}"]) for index in range(4)]
    for thread in threads:
        thread.start()
    while sum(thread.is_alive() for thread in threads) > 1:
        time.sleep(0.05)
    assert len(got) == 1
    done.set()
    for thread in threads:
        thread.join()


def lost(lock: storage.Lock) -> bool:
    try:
        lock.check()
    except StorageError as error:
        return "process 7 on other" in str(error)
    return False


def test_a_lock_that_was_lost_says_so(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = storage.read_json(f"{elsewhere}/.lock")
    storage.delete_file(f"{elsewhere}/.lock")
    monkeypatch.setattr(locks, "RENEW_S", 0.1)
    with storage.lock_folder(elsewhere) as lock:
        lock.check()
        storage.write_json(f"{elsewhere}/.lock", holder)
        wait_until(lambda: lost(lock))
    assert storage.read_json(f"{elsewhere}/.lock") == holder


def test_a_store_that_is_away_for_a_while_costs_no_lock(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "RENEW_S", 0.2)
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)
    with FaultyProxy(s3.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        folder = f"{s3.bucket()}/output"
        with storage.lock_folder(folder) as lock:
            proxy.for_a_while("unavailable", 1.0)
            time.sleep(1.5)
            lock.check()
            assert proxy.count["unavailable"] > 0
        assert storage.kind(f"{folder}/.lock") == "nothing"


def test_a_folder_that_cannot_be_written_is_named() -> None:
    message = r"x: cannot be written: Permission denied\.$"
    with readable_folder() as folder:
        held = storage.lock_folder(str(folder / "x"))
        with as_nobody(), pytest.raises(StorageError, match=message), held:
            pass
