"""List folders and bucket prefixes, and look up single files.

Local files are listed by Python itself: pyarrow rejects names that are not UTF-8.
"""

import os
import stat as status
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pyarrow import fs

from cxr.errors import StorageError, UnavailableError
from cxr.storage import s3
from cxr.storage.paths import absolute, cause, failure, is_bucket, printable, resolve

Result = TypeVar("Result")

REQUESTS_AT_ONCE: Final = 16
"""Concurrent requests to a bucket when many files are looked up: the time is mostly latency."""


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
    """List every file below a folder, sorted by URI.

    Links are followed, and a folder that is reached twice is listed once. Files and folders that
    cannot be read are listed with their problem.

    Args:
        uri: folder or bucket prefix.
        enter: given the path of a folder, whether to list it. In a bucket, only the folders of the
            first level are asked about: a request lists everything below them.

    Raises:
        StorageError: the folder itself cannot be listed.
    """
    uri = absolute(uri)
    if "://" not in uri:
        return sorted(_local_files(uri, enter), key=lambda file: file.uri)
    entries = info_below(uri, recursive=enter is _every_folder)
    if enter is not _every_folder:
        folders = [entry for entry in entries if entry.type == fs.FileType.Directory]
        for folder in folders:
            if enter(_uri_of(folder, uri)):
                entries += info_below(_uri_of(folder, uri), recursive=True)
    return sorted(
        (
            File(_uri_of(entry, uri), entry.size, entry.mtime_ns or 0)
            for entry in entries
            if entry.type == fs.FileType.File
        ),
        key=lambda file: file.uri,
    )


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


def _uri_of(entry: fs.FileInfo, listed: str) -> str:
    if root := s3.root(listed):
        return root + "/" + str(entry.path).partition("/")[2]
    return listed.split("://", 1)[0] + "://" + str(entry.path)


def _local_files(root: str, enter: Callable[[str], bool]) -> Iterator[File]:
    # Links last and in order: a folder that several paths lead to always gets the same path.
    folders, links, seen = [root], list[str](), set()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            info = Path(folder).stat()
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name, reverse=True)
        except FileNotFoundError:
            continue  # Deleted since its parent was listed, or it never existed.
        except (OSError, ValueError) as error:
            if folder == root:
                raise StorageError(f"{root}: cannot be listed: {cause(error)}.") from None
            reason = f"a folder that cannot be listed: {cause(error)}"
            yield File(printable(folder) + "/", -1, 0, reason)
            continue
        for entry in entries:
            if not _is_folder(entry):
                yield _local_file(entry.path)
            elif enter(entry.path):
                (links if entry.is_symlink() else folders).append(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _local_file(path: str) -> File:
    uri = printable(path)
    try:
        info = Path(path).stat()
    except (OSError, ValueError) as error:
        return File(uri, -1, 0, f"cannot be read: {cause(error)}")
    if not status.S_ISREG(info.st_mode):
        return File(uri, -1, 0, "cannot be read: not a regular file")
    return File(uri, info.st_size, info.st_mtime_ns)


def info_below(uri: str, *, recursive: bool) -> list[fs.FileInfo]:
    """pyarrow's information on what is below a folder; empty if there is no such folder."""
    system, path = resolve(uri)
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    try:
        return list(system.get_file_info(selector))
    except OSError as error:
        raise failure(uri, "cannot be listed", error) from None
