"""What lies in a folder or below a prefix, and what one file is.

Local files are listed by Python itself: pyarrow refuses names that are not UTF-8.
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

Answer = TypeVar("Answer")

REQUESTS_AT_ONCE: Final = 16
"""Questions to a bucket at once, where many files are asked for: each mostly waits."""


@dataclass(frozen=True)
class File:
    """A file that a listing found."""

    uri: str
    """Of a local file whose name is not UTF-8, a `file://` URI; of a folder that cannot be listed,
    with a slash at the end."""
    size: int
    """Bytes; -1 where nothing can be read."""
    modified_ns: int
    """Last change, nanoseconds since 1970; 0 where the storage does not say."""
    problem: str = ""
    """Why nothing can be read: a folder that cannot be listed, a link to nothing, a device."""


def kind(uri: str) -> str:
    """`"file"`, `"folder"` or `"nothing"`."""
    system, path = resolve(uri)
    try:
        if isinstance(system, fs.LocalFileSystem):
            # Not pyarrow's, which refuses names that are no UTF-8.
            return "folder" if status.S_ISDIR(Path(path).stat().st_mode) else "file"
        found = system.get_file_info(path).type
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name can be so.
        return "nothing"
    except OSError as error:
        raise failure(uri, "cannot be reached", error) from None
    return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(found, "nothing")


def _everything(_: str) -> bool:
    return True


def list_files(uri: str, enter: Callable[[str], bool] = _everything) -> list[File]:
    """Every file below a folder, sorted by URI.

    Links are followed, and a folder that is reached twice is listed once. What cannot be read
    stands in the list with its problem.

    Args:
        uri: the folder or bucket prefix.
        enter: whether to list a folder below it, by its path; in a bucket, where a listing takes
            the folders below along, only the first folders are asked about.

    Raises:
        StorageError: the folder itself cannot be listed.
    """
    uri = absolute(uri)
    if "://" not in uri:
        return sorted(_local_files(uri, enter), key=lambda file: file.uri)
    entries = info_below(uri, recursive=enter is _everything)
    if enter is not _everything:
        folders = [each for each in entries if each.type == fs.FileType.Directory]
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


def stat(uris: Sequence[str]) -> list[File | None]:
    """Size and time of each file; None for one that is not there."""
    return [None if file.problem else file for file in for_all(look_up, uris)]


def for_all(ask: Callable[[str], Answer], uris: Sequence[str]) -> list[Answer]:
    """What a function says of each file; where some are in buckets, of many at once."""
    if not any(map(is_bucket, uris)):
        return [ask(uri) for uri in uris]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(ask, uris))


def look_up(uri: str) -> File:
    """Size and time of a file, or its problem.

    Raises:
        StorageError: a scheme that pyarrow does not know.
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
    # Links last and in order: a folder that two ways lead to has the same name every time.
    folders, links, seen = [root], list[str](), set()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        try:
            facts = Path(folder).stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except FileNotFoundError:
            continue  # Deleted since its own folder was listed, or never there.
        except (OSError, ValueError) as error:
            if folder == root:
                raise StorageError(f"{root}: cannot be listed: {cause(error)}.") from None
            reason = f"a folder that cannot be listed: {cause(error)}"
            yield File(printable(folder) + "/", -1, 0, reason)
            continue
        for entry in found:
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
        facts = Path(path).stat()
    except (OSError, ValueError) as error:
        return File(uri, -1, 0, f"cannot be read: {cause(error)}")
    if not status.S_ISREG(facts.st_mode):
        return File(uri, -1, 0, "cannot be read: not a regular file")
    return File(uri, facts.st_size, facts.st_mtime_ns)


def info_below(uri: str, *, recursive: bool) -> list[fs.FileInfo]:
    """What the file system says of all below a folder; of none, nothing."""
    system, path = resolve(uri)
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    try:
        return list(system.get_file_info(selector))
    except OSError as error:
        raise failure(uri, "cannot be listed", error) from None
