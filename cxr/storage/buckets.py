"""The listing of a bucket: page by page, several parts of it at once, in the order of keys.

Requests of one listing follow each other, since each begins where the last one ended. So the keys
are divided at the folders of the first level that has more than one, and ranges of them are listed
side by side, each up to a number of pages ahead of those that the caller has taken.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from cxr.errors import StorageError
from cxr.storage import s3

LISTED_AT_ONCE: Final = 8
"""Ranges of a bucket that are listed concurrently."""

PAGES_AHEAD: Final = 8
"""Pages of a range, of 1,000 objects each, that are kept until those before it have come."""

_LAST: Final = "\U0010ffff"
"""Sorts after all characters of keys."""


class Object(NamedTuple):
    """An object of a bucket."""

    key: str
    size: int
    """Bytes."""
    modified_ns: int
    """Last modification, nanoseconds since 1970."""


@dataclass(frozen=True)
class _Range:
    """Keys that are listed by requests one after the other."""

    prefix: str
    after: str
    """The keys are greater than this one."""
    last: str = ""
    """None is greater than this one; empty for all with the prefix."""


def list_objects(
    uri: str, enter: Callable[[str], bool] | None, after: str
) -> Iterator[list[Object]]:
    """List the objects below a prefix, in the order of their keys.

    Args:
        uri: canonical URI of the bucket or prefix; a key that equals the prefix is not listed.
        enter: given the URI of a folder of the first level, whether to list it; None for all.
        after: key after which to begin, or empty.

    Yields:
        1 to 1,000 objects.

    Raises:
        StorageError: the prefix cannot be listed.
        UnavailableError: the store cannot be reached, or has no such bucket.
    """
    path = uri[len(s3.root(uri)) :].strip("/")
    prefix = f"{path}/" if path else ""
    ranges = _divide(uri, prefix, after) if enter is None else _entered(uri, prefix, after, enter)
    stop = threading.Event()
    with ThreadPoolExecutor(LISTED_AT_ONCE, "list") as pool:
        running: deque[queue.Queue[list[Object] | Exception | None]] = deque()
        try:
            while True:
                while len(running) < LISTED_AT_ONCE and (part := next(ranges, None)) is not None:
                    pages: queue.Queue[list[Object] | Exception | None] = queue.Queue(PAGES_AHEAD)
                    running.append(pages)
                    pool.submit(_fill, pages, uri, part, stop)
                if not running:
                    return
                while (page := running[0].get()) is not None:
                    if isinstance(page, Exception):
                        raise page
                    yield page
                running.popleft()
        finally:
            stop.set()


def _fill(
    pages: "queue.Queue[list[Object] | Exception | None]",
    uri: str,
    part: "_Range | list[Object]",
    stop: threading.Event,
) -> None:
    """Put the pages of a range into a queue, then None; an exception instead if one is raised."""

    def put(item: list[Object] | Exception | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                pages.put(item, timeout=0.1)
                return

    try:
        if isinstance(part, list):
            put(part)
        else:
            for objects in _pages(uri, part):
                if stop.is_set():
                    return
                put(objects)
        put(None)
    except Exception as error:
        put(error)


def _pages(uri: str, part: _Range) -> Iterator[list[Object]]:
    for objects, _, _ in _requests(uri, part.prefix, part.after, ""):
        below = [item for item in objects if item.key <= part.last] if part.last else objects
        if below:
            yield below
        if len(below) < len(objects):
            return


def _divide(uri: str, prefix: str, after: str) -> Iterator[_Range | list[Object]]:
    """Ranges that hold every key once, in order."""
    if below := _folder_of(after, prefix):
        yield _Range(prefix, after, below + _LAST)
        after = below + _LAST
    first = True
    for objects, folders, truncated in _requests(uri, prefix, after, "/"):
        ends = sorted([item.key for item in objects] + [folder + _LAST for folder in folders])
        if first and not objects and not truncated and len(folders) == 1 and not after:
            yield from _divide(uri, folders[0], after)
            return
        first = False
        if not folders:
            if objects:
                yield objects
                after = ends[-1]
            continue
        # A page full of folders is one range: a folder of a few objects is not worth a request.
        step = len(ends) if truncated else -(-len(ends) // LISTED_AT_ONCE)
        for last in ends[step - 1 :: step]:
            yield _Range(prefix, after, last)
            after = last
        if after < ends[-1]:
            yield _Range(prefix, after, ends[-1])
            after = ends[-1]


def _entered(
    uri: str, prefix: str, after: str, enter: Callable[[str], bool]
) -> Iterator[_Range | list[Object]]:
    """As `_divide`, without the folders that are not to be listed."""
    if below := _folder_of(after, prefix):
        yield _Range(below, after)
        after = below + _LAST
    for objects, folders, _ in _requests(uri, prefix, after, "/"):
        items: Sequence[tuple[str, Object | None]] = sorted(
            [(item.key, item) for item in objects] + [(folder, None) for folder in folders]
        )
        loose: list[Object] = []
        for name, item in items:
            if item is not None:
                loose.append(item)
            elif enter(f"{s3.root(uri)}/{name}".rstrip("/")):
                if loose:
                    yield loose
                    loose = []
                yield _Range(name, "")
        if loose:
            yield loose


def _folder_of(key: str, prefix: str) -> str:
    """The folder of the first level below a prefix in which a key is; empty if in none."""
    name, slash, _ = key[len(prefix) :].partition("/")
    return prefix + name + slash if slash and key.startswith(prefix) else ""


def _requests(
    uri: str, prefix: str, after: str, delimiter: str
) -> Iterator[tuple[list[Object], list[str], bool]]:
    """Objects, folders (common prefixes), and whether there are more; of each request."""
    from botocore.exceptions import BotoCoreError, ClientError

    arguments: dict[str, Any] = {"Bucket": s3.store(uri).bucket, "Prefix": prefix}
    if after:
        arguments["StartAfter"] = after
    if delimiter:
        arguments["Delimiter"] = delimiter
    while True:
        try:
            answer = s3.request(uri, lambda client: client.list_objects_v2(**arguments))
        except (BotoCoreError, ClientError) as error:
            raise StorageError(f"{uri}: cannot be listed: {s3.cause(str(error))}.") from None
        objects = [
            Object(item["Key"], item["Size"], _nanoseconds(item["LastModified"]))
            for item in answer.get("Contents", ())
            if item["Key"] != prefix and (item["Size"] or not item["Key"].endswith("/"))
        ]
        prefixes = (item["Prefix"] for item in answer.get("CommonPrefixes", ()))
        # Some stores list the folder of the key to begin after again.
        folders = [folder for folder in prefixes if folder + _LAST > after]
        truncated = bool(answer["IsTruncated"])
        yield objects, folders, truncated
        if not truncated:
            return
        arguments["ContinuationToken"] = answer["NextContinuationToken"]


def _nanoseconds(time: str) -> int:
    """Of an ISO 8601 time in UTC, with milliseconds or without."""
    seconds = int(datetime.fromisoformat(f"{time[:19]}+00:00").timestamp())
    milliseconds = int(time[20:23]) if time[19:20] == "." else 0
    return seconds * 10**9 + milliseconds * 10**6
