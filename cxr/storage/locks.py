"""A lock on an output folder, so that no two jobs write to it at once.

On a file system the kernel holds the lock (flock), and releases it when the process ends, in
whatever way. In a bucket the lock is an object that its holder renews every 10 s. A job that finds
one watches it: if it is renewed, the job is refused; if it is not renewed for 90 s, or was left by
a process of this machine that has ended, the job takes it over.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import psutil

from cxr.errors import StorageError
from cxr.storage import s3
from cxr.storage.paths import absolute, failure, is_bucket, join, resolve

NAME: Final = ".lock"
"""Name of the lock in its folder."""

RENEW_S: Final = 10.0
"""Between two renewals of a lock in a bucket."""

DEAD_S: Final = 90.0
"""A lock in a bucket that is older was left by a dead job. A living one may be late by the 50 s for
which a failing store is retried."""

LOOK_S: Final = 1.0
"""Between two looks at a lock that may be alive."""

SETTLE_S: Final = 1.0
"""Until a lock that was written is read again: of two jobs that write at once to a store without
conditional writes, both then see the last one."""

_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of a file system that has no locks."""


class Lock:
    """A lock that is held."""

    def __init__(self) -> None:
        self._lost_to = ""

    def check(self) -> None:
        """Do nothing if the lock is still held.

        Raises:
            StorageError: another job has taken it, since it was not renewed for `DEAD_S`.
        """
        if self._lost_to:
            raise StorageError(self._lost_to)


@contextmanager
def lock_folder(uri: str) -> Iterator[Lock]:
    """Hold the lock of an output folder, path or URI; a local folder is created, and deleted in the
    end if nothing was written to it.

    Raises:
        StorageError: another job holds it, or the folder cannot be written.
        UnavailableError: the object store cannot be reached.
    """
    folder = absolute(uri)
    held = _held_in_bucket(folder) if is_bucket(folder) else _held_by_kernel(folder)
    with held as lock:
        yield lock


def _holder() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": psutil.Process().create_time(),
    }


def _machine() -> str:
    """What processes with comparable numbers have in common: a running kernel and a namespace."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine, and is none any more."""
    if not holder.get("machine") or holder["machine"] != _machine():
        return False
    try:
        started = psutil.Process(int(holder["process"])).create_time()
    except psutil.NoSuchProcess:
        return True
    return abs(started - float(holder["started"])) > 2  # The number was given to another process.


def _refusal(folder: str, holder: dict[str, Any]) -> StorageError:
    by = f" (process {holder['process']} on {holder['host']})" if holder else ""
    return StorageError(
        f"{folder}: another job is writing to it{by}. Wait for its end, or choose another --output."
    )


def _parse(data: bytes) -> dict[str, Any]:
    """The holder that a lock names; empty if the lock is damaged or just being written."""
    try:
        holder = json.loads(data)
        return holder if {"host", "process", "started"} <= holder.keys() else {}
    except (ValueError, AttributeError):
        return {}


# ---------------------------------------------------------------- file systems


@contextmanager
def _held_by_kernel(folder: str) -> Iterator[Lock]:
    path = Path(resolve(folder)[1], NAME)
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path, folder)
    except OSError as error:
        raise failure(folder, "cannot be written", error) from None
    try:
        yield Lock()
    finally:
        # Deleted while it is locked: whoever waits for it sees that its file has gone.
        with suppress(OSError):
            path.unlink()
            if is_new:
                path.parent.rmdir()  # Unless something was written.
        file.close()


def _open_locked(path: Path, folder: str) -> BinaryIO:
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise _refusal(folder, _parse(file.read())) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            print(f"{folder}: its file system has no locks; start no second job on it", flush=True)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        file.close()  # The lock of a job that has just ended.
    file.truncate(0)
    file.write(json.dumps(_holder()).encode())
    file.flush()
    return file


# ---------------------------------------------------------------- buckets


class _Found(NamedTuple):
    """A lock as it is in a bucket."""

    holder: dict[str, Any]
    etag: str
    age_s: float
    """Since it was renewed, by the clock of the store."""


@contextmanager
def _held_in_bucket(folder: str) -> Iterator[Lock]:
    uri, holder = join(folder, NAME), {**_holder(), "token": uuid.uuid4().hex}
    _acquire(folder, uri, holder)
    lock, stop = Lock(), threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(folder, uri, holder, lock, stop), name="lock", daemon=True
    )
    renewing.start()
    try:
        yield lock
    finally:
        stop.set()
        renewing.join()
        with suppress(StorageError):  # What is not deleted counts as dead soon.
            found = _look(uri)
            if found and found.holder.get("token") == holder["token"]:
                _call(uri, "delete_object")


def _acquire(folder: str, uri: str, holder: dict[str, Any]) -> None:
    watched, since = None, time.monotonic()
    while True:
        found = _look(uri)
        if found is None:
            if _write(uri, holder, IfNoneMatch="*"):
                return
        elif max(
            found.age_s, time.monotonic() - since if watched == found.etag else 0
        ) > DEAD_S or _has_ended(found.holder):
            if _write(uri, holder, IfMatch=found.etag):
                return
        elif watched is None:
            watched, since = found.etag, time.monotonic()
        elif watched != found.etag:
            raise _refusal(folder, found.holder)
        time.sleep(LOOK_S)


def _renew(
    folder: str, uri: str, holder: dict[str, Any], lock: Lock, stop: threading.Event
) -> None:
    renewals = 0
    while not stop.wait(RENEW_S):
        with suppress(StorageError):  # Tried again after a while.
            found = _look(uri)
            if found and found.holder.get("token") != holder["token"]:
                lock._lost_to = str(_refusal(folder, found.holder))
                return
            renewals += 1
            _call(uri, "put_object", Body=json.dumps({**holder, "renewals": renewals}).encode())


def _look(uri: str) -> _Found | None:
    answer = _call(uri, "get_object")
    if answer is None:
        return None
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    age_s = 0.0
    if "date" in headers and "last-modified" in headers:
        now, then = (parsedate_to_datetime(headers[name]) for name in ("date", "last-modified"))
        age_s = (now - then).total_seconds()
    return _Found(_parse(answer["Body"]), answer["ETag"], age_s)


def _write(uri: str, holder: dict[str, Any], **condition: str) -> bool:
    """Write a lock if it is as expected; False if another job was faster."""
    body = json.dumps(holder).encode()
    if _call(uri, "put_object", Body=body, **condition) is None:
        return False
    time.sleep(SETTLE_S)
    found = _look(uri)
    return found is not None and found.holder.get("token") == holder["token"]


def _call(uri: str, operation: str, **arguments: Any) -> dict[str, Any] | None:
    """Make a request for an object; None if there is no such object, or a condition is not met.

    A store that has no conditional writes writes without the condition.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    where = {"Bucket": s3.store(uri).bucket, "Key": uri[len(s3.root(uri)) + 1 :]}

    def call(client: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(client, operation)(**where, **arguments)
        if operation == "get_object":
            answer["Body"] = answer["Body"].read()
        return answer

    try:
        return s3.request(uri, call)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status in (404, 409, 412):
            return None
        plain = {name: value for name, value in arguments.items() if not name.startswith("If")}
        if status == 501 and plain != arguments:
            return _call(uri, operation, **plain)
        raise StorageError(f"{uri}: cannot be written: {s3.cause(str(error))}.") from None
    except BotoCoreError as error:
        raise StorageError(f"{uri}: cannot be written: {error}.") from None
