"""List folders and bucket prefixes, and look up single files.

Local files are listed by Python itself: pyarrow rejects names that are not UTF-8.
"""

import itertools
import os
import posixpath
import stat as status
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pyarrow import fs

from cxr.errors import StorageError, UnavailableError
from cxr.storage import s3
from cxr.storage.buckets import list_objects
from cxr.storage.paths import absolute, cause, failure, is_bucket, printable, resolve

Result = TypeVar("Result")

REQUESTS_AT_ONCE: Final = 16
"""Concurrent requests to a bucket when many files are looked up: the time is mostly latency."""


PAGE_FILES: Final = 1000
"""Files of a page, as many as object stores list by one request."""


@dataclass(frozen=True)
class File:
    """A listed file."""

    uri: str
    """Path or URI: a `file://` URI for a local file whose name is not UTF-8; with a trailing slash
    for a folder that cannot be listed."""
    size: int
    """Bytes; -1 if it cannot be read."""
    modified_ns: int
    """Last modification, nanoseconds since 1970; 0 if unknown."""
    problem: str = ""
    """Why it cannot be read: a folder that cannot be listed, a broken link, a device."""


def kind(uri: str) -> str:
    """`"file"`, `"folder"` or `"nothing"`."""
    system, path = resolve(uri)
    try:
        if isinstance(system, fs.LocalFileSystem):
            # Not by pyarrow, which rejects names that are not UTF-8.
            return "folder" if status.S_ISDIR(Path(path).stat().st_mode) else "file"
        file_type = system.get_file_info(path).type
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: not a valid name.
        return "nothing"
    except OSError as error:
        raise failure(uri, "cannot be reached", error) from None
    return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(file_type, "nothing")


def _every_folder(_: str) -> bool:
    return True


def list_files(uri: str, enter: Callable[[str], bool] = _every_folder) -> list[File]:
    """List every file below a folder, sorted by URI: `list_pages` in one list.

    Raises:
        StorageError: the folder itself cannot be listed.
    """
    pages = list_pages(uri, enter)
    return sorted((file for page in pages for file in page), key=lambda file: file.uri)


def list_pages(
    uri: str, enter: Callable[[str], bool] = _every_folder, after: str = ""
) -> Iterator[list[File]]:
    """List every file below a folder, page by page, in the order of paths.

    The order depends on nothing but the names. Memory does not grow with the number of files: it
    holds the names of one local folder (and of the folders around it), or `LISTED_AT_ONCE` parts of
    a bucket's listing with `PAGES_AHEAD` pages each.

    Links are followed, and a folder that is reached twice is listed once. Files and folders that
    cannot be read are listed with their problem.

    Args:
        uri: folder or bucket prefix.
        enter: given the path of a folder, whether to list it. In a bucket, only the folders of the
            first level are asked about.
        after: URI of a file: list what comes after it, whether it still exists or not. A listing
            that a failing store has ended is continued so, without gaps or duplicates.

    Yields:
        1 to `PAGE_FILES` files.

    Raises:
        StorageError: the folder itself cannot be listed.
    """
    uri = absolute(uri)
    after = absolute(after) if after else ""
    if is_bucket(uri):
        yield from _bucket_pages(uri, enter, after)
        return
    root = resolve(uri)[1]
    try:
        files = _local_files(root, enter, after)
        while page := list(itertools.islice(files, PAGE_FILES)):
            yield page
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise StorageError(f"{root}: cannot be listed: {cause(error)}.") from None


def for_all(function: Callable[[str], Result], uris: Sequence[str]) -> list[Result]:
    """Call a function for every URI; in parallel if any is in a bucket."""
    if not any(map(is_bucket, uris)):
        return [function(uri) for uri in uris]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(function, uris))


def look_up(uri: str) -> File:
    """Size and modification time of a file, or its problem.

    Raises:
        StorageError: the scheme is neither `file` nor `s3`.
        UnavailableError: the object store cannot be reached, or has no such bucket.
    """
    system, path = resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        return _local_file(path)
    try:
        info = system.get_file_info(path)
    except (OSError, ValueError) as error:
        failed = failure(uri, "cannot be read", error)
        if isinstance(failed, UnavailableError):
            raise failed from None
        return File(uri, -1, 0, f"cannot be read: {cause(error)}")
    if info.type != fs.FileType.File:
        return File(uri, -1, 0, "cannot be read: no such file")
    return File(uri, info.size, info.mtime_ns or 0)


def _bucket_pages(uri: str, enter: Callable[[str], bool], after: str) -> Iterator[list[File]]:
    root = s3.root(uri)
    asked = None if enter is _every_folder else enter
    for objects in list_objects(uri, asked, after[len(root) + 1 :]):
        yield [
            File(f"{root}/{key}", size, modified_ns)
            if not key.endswith("/")
            else File(f"{root}/{key}", -1, 0, "cannot be read: its name ends with a slash")
            for key, size, modified_ns in objects
        ]


def _local_files(root: str, enter: Callable[[str], bool], after: str) -> Iterator[File]:
    real_root = os.path.realpath(root)
    # Folders that links lead to, and those below them.
    linked: set[tuple[int, int]] = set()
    link = ""  # The path of the link that the walk has followed.
    # The folders that are open, and the names in them that have not been visited.
    opened = [(root, iter(_names(root, enter)))]
    while opened:
        folder, names = opened[-1]
        if (name := next(names, None)) is None:
            opened.pop()
            continue
        path = posixpath.join(folder, name)
        if not name.endswith("/"):
            if path > after:
                yield _local_file(path)
            continue
        path = path[:-1]
        link = link if link and path.startswith(link) else ""
        try:
            if link or Path(path).is_symlink():
                link = link or f"{path}/"
                info = Path(path).stat()
                if (info.st_dev, info.st_ino) in linked or _is_below(path, root, real_root, enter):
                    continue
                linked.add((info.st_dev, info.st_ino))
            opened.append((path, iter(_names(path, enter))))
        except FileNotFoundError:
            continue  # Deleted since its parent was listed.
        except (OSError, ValueError) as error:
            if f"{path}/" > after:
                reason = f"a folder that cannot be listed: {cause(error)}"
                yield File(printable(path) + "/", -1, 0, reason)


def _names(folder: str, enter: Callable[[str], bool]) -> list[str]:
    """The names of what is in a folder, those of folders to be listed with a trailing slash.

    Sorted so, files come in the order of their whole paths.
    """
    with os.scandir(folder) as scanned:
        return sorted(
            f"{entry.name}/" if is_folder else entry.name
            for entry in scanned
            if not (is_folder := _is_folder(entry)) or enter(entry.path)
        )


def _is_below(path: str, root: str, real_root: str, enter: Callable[[str], bool]) -> bool:
    """Whether what a path leads to is listed by its real path below the root."""
    real = os.path.realpath(path)
    if real == real_root:
        return True
    below = real_root.rstrip("/") + "/"
    if not real.startswith(below):
        return False
    folders = real[len(below) :].split("/")
    return all(enter(posixpath.join(root, *folders[: depth + 1])) for depth in range(len(folders)))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _local_file(path: str) -> File:
    uri = printable(path)
    try:
        info = os.stat(path)  # noqa: PTH116 - a third of the time, for each listed file.
    except (OSError, ValueError) as error:
        return File(uri, -1, 0, f"cannot be read: {cause(error)}")
    if not status.S_ISREG(info.st_mode):
        return File(uri, -1, 0, "cannot be read: not a regular file")
    return File(uri, info.st_size, info.st_mtime_ns)
