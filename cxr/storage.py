"""Files and folders, on disk or in a bucket, by path or URI.

Everything that the project reads or writes goes through pyarrow's file systems, so that a path may
stand wherever an `s3://` or `gs://` URI may. A file that is not there and a store that cannot be
reached are told apart everywhere: the second is an `UnavailableError`.
Local files are listed and opened by Python itself: pyarrow refuses names that are not UTF-8.
"""

import errno
import io
import json
import os
import posixpath
import shutil
import stat as status
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cxr import buckets
from cxr.errors import SettingsError, StorageError, UnavailableError

Answer = TypeVar("Answer")

READ_AHEAD_BYTES: Final = 8 * 2**20
"""Bytes of one request for a part of a file in a bucket: a request takes about as long as these
do, and the next members of an archive are mostly among them."""

COPY_BYTES: Final = 8 * 2**20
"""Pieces in which a file is copied."""

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


def absolute(uri: str) -> str:
    """The URI itself, or the absolute path, also of a `file://` URI; without a slash at the end.

    Options of an `s3://` URI come to stand behind the bucket, see `cxr.buckets`.
    """
    if uri.startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"{uri}: lies on host {parts.netloc!r}. Write file:///path.")
        # Bytes that are no UTF-8 become what Python's file functions take.
        uri = unquote(parts.path, errors="surrogateescape")
    if "://" in uri:
        return buckets.canonical(uri).rstrip("/")
    path = Path(uri)
    with suppress(RuntimeError):  # The name of a file, not of a user's folder.
        path = path.expanduser()
    path = path.absolute()
    if ".." in path.parts:
        # As the system takes it: the folder above the one that a link leads to.
        below = len(path.parts) - path.parts[::-1].index("..")
        path = Path(os.path.realpath(Path(*path.parts[:below])), *path.parts[below:])
    return str(path)


def printable(path: str) -> str:
    """The path, or where it is not UTF-8 a `file://` URI that means it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def join(uri: str, *parts: str) -> str:
    """A path below a folder."""
    return posixpath.join(buckets.canonical(uri).rstrip("/") or "/", *parts)


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        StorageError: a scheme that pyarrow does not know.
        UnavailableError: the object store cannot be reached, or has no such bucket.
    """
    uri = absolute(uri)
    if uri.startswith(buckets.SCHEME):
        return buckets.enter(uri)
    try:
        if "://" in uri:
            system, path = fs.FileSystem.from_uri(uri)
            return system, path.rstrip("/")
        return fs.LocalFileSystem(), uri
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: {error}. Give a path, or an s3:// or gs:// URI.") from None


def run_storage(uri: str) -> dict[str, Any]:
    """A folder as Ray's `RunConfig` takes it, which would give a bucket its own retries, of 2 s."""
    system, path = resolve(uri)
    if isinstance(system, fs.LocalFileSystem):
        return {"storage_path": path}
    return {"storage_path": path, "storage_filesystem": system}


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
        raise _failure(uri, "cannot be reached", error) from None
    return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(found, "nothing")


def is_empty(uri: str) -> bool:
    """True where nothing is, or a folder without anything in it."""
    what = kind(uri)
    return what == "nothing" or (what == "folder" and not _entries(uri, recursive=False))


def check_empty(uri: str) -> None:
    """Refuse a place for results at which something lies.

    Raises:
        StorageError: it is a file, or a folder that is not empty.
    """
    if not is_empty(uri):
        raise StorageError(f"{uri}: exists already. Choose another --output.")


def claim(uri: str) -> str:
    """The absolute form of a place for results, at which nothing lies yet and which is writable.

    Raises:
        StorageError: something is there, or it cannot be written.
    """
    place = absolute(uri)
    check_empty(place)
    probe = join(place, ".cxr")
    write_bytes(probe, b"")
    delete_file(probe)
    return place


def check_same(folder: str, name: str, asked: Mapping[str, Any], what: str) -> bool:
    """Accept a place where nothing lies, or one whose work was asked for in the same terms.

    Args:
        folder: the place for results.
        name: of the JSON file in it that keeps what was asked for.
        asked: what is asked for now; more may be kept.
        what: lies there, for the message.

    Returns:
        Whether work lies there to go on with.

    Raises:
        SettingsError: it was asked for in other terms.
        StorageError: something else lies there.
    """
    place = join(folder, name)
    if kind(place) == "nothing":
        check_empty(folder)
        return False
    kept = read_json(place)
    for key, value in asked.items():
        if kept.get(key) != value:
            raise SettingsError(
                f"{folder}: holds {what} with {key} {kept.get(key)}, not {value}. Choose another"
                " --output, or repeat the first command."
            )
    return True


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
    entries = _entries(uri, recursive=enter is _everything)
    if enter is not _everything:
        folders = [each for each in entries if each.type == fs.FileType.Directory]
        for folder in folders:
            if enter(_uri_of(folder, uri)):
                entries += _entries(_uri_of(folder, uri), recursive=True)
    return sorted(
        (
            File(_uri_of(entry, uri), entry.size, entry.mtime_ns or 0)
            for entry in entries
            if entry.type == fs.FileType.File
        ),
        key=lambda file: file.uri,
    )


def _uri_of(entry: fs.FileInfo, listed: str) -> str:
    if root := buckets.root(listed):
        return root + "/" + str(entry.path).partition("/")[2]
    return listed.split("://", 1)[0] + "://" + str(entry.path)


def stat(uris: Sequence[str]) -> list[File | None]:
    """Size and time of each file; None for one that is not there."""
    return [None if file.problem else file for file in for_all(look_up, uris)]


def for_all(ask: Callable[[str], Answer], uris: Sequence[str]) -> list[Answer]:
    """What a function says of each file; where some are in buckets, of many at once."""
    if not any(map(_is_bucket, uris)):
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
        failed = _failure(uri, "cannot be read", error)
        if isinstance(failed, UnavailableError):
            raise failed from None
        return File(uri, -1, 0, f"cannot be read: {_cause(error)}")
    if info.type != fs.FileType.File:
        return File(uri, -1, 0, "cannot be read: no such file")
    return File(uri, info.size, info.mtime_ns or 0)


def read_bytes(uri: str) -> bytes:
    """The whole of a file.

    Raises:
        StorageError: it is not there or cannot be read.
    """
    with open_file(uri) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise _failure(uri, "cannot be read", error) from None


def open_file(uri: str) -> BinaryIO:
    """Open a file for reading from any place in it; reads of its own may raise `OSError`.

    Raises:
        StorageError: it is not there or cannot be opened.
    """
    system, path = resolve(uri)
    try:
        if isinstance(system, fs.LocalFileSystem):
            if not status.S_ISREG(Path(path).stat().st_mode):
                # A pipe would be waited for without end.
                raise StorageError(f"{uri}: cannot be read: not a regular file.")
            return Path(path).open("rb")
        return io.BufferedReader(_Remote(uri, system.open_input_file(path)), READ_AHEAD_BYTES)
    except (OSError, ValueError) as error:
        raise _failure(uri, "cannot be read", error) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole: a reader finds all of it or none of it.

    Raises:
        StorageError: the place cannot be written.
    """
    with _whole(uri) as (system, path), system.open_output_stream(path, compression=None) as stream:
        stream.write(data)


def move_in(file: Path, uri: str) -> None:
    """Bring a local file to a place, without holding it in memory, and whole or not at all.

    Raises:
        StorageError: the file cannot be read or the place cannot be written.
    """
    # Not pyarrow's copy_files, which returns as if all were well when an upload failed (26.0.1).
    with (
        _whole(uri) as (system, path),
        file.open("rb") as source,
        system.open_output_stream(path, compression=None) as stream,
    ):
        shutil.copyfileobj(source, stream, COPY_BYTES)
    file.unlink()


def delete(uri: str) -> None:
    """Delete a folder and all that is in it; nothing happens where there is none."""
    if kind(uri) == "folder":
        system, path = resolve(uri)
        try:
            system.delete_dir(path)
        except OSError as error:
            raise _failure(uri, "cannot be deleted", error) from None


def delete_file(uri: str) -> None:
    """Delete a file; nothing happens where there is none."""
    if kind(uri) == "file":
        system, path = resolve(uri)
        try:
            system.delete_file(path)
        except OSError as error:
            raise _failure(uri, "cannot be deleted", error) from None


def read_json(uri: str) -> Any:
    """A JSON file's value."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: not JSON: {error}.") from None


def write_json(uri: str, value: object) -> None:
    """Write a value as indented JSON."""
    write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode())


def read_table(uri: str) -> pa.Table:
    """A Parquet file's table."""
    try:
        return pq.read_table(pa.BufferReader(read_bytes(uri)), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: not a Parquet file: {str(error).strip()}") from None


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(uri, sink.getvalue().to_pybytes())


def default_cache() -> str:
    """The user's cache folder for this project: `$XDG_CACHE_HOME/cxr` or `~/.cache/cxr`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "cxr")


def scratch(name: str) -> Path:
    """Where a file on its way to a bucket is kept on this machine: below the cache folder."""
    return Path(default_cache(), "download", name)


@contextmanager
def _whole(uri: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """Where to write a file, which takes its place once all of it is there."""
    system, path = resolve(uri)
    local = isinstance(system, fs.LocalFileSystem)
    # Object stores show a file only once it is whole.
    target = f"{path}.{uuid.uuid4().hex[:8]}.part" if local else path
    try:
        if local:
            system.create_dir(posixpath.dirname(path), recursive=True)
        try:
            yield system, target
            if local:
                system.move(target, path)
        except BaseException:
            if local:
                with suppress(OSError):
                    system.delete_file(target)
            raise
    except OSError as error:
        failed = _failure(uri, "cannot be written", error)
        if isinstance(failed, UnavailableError):
            raise failed from None
        raise StorageError(f"{failed} Choose another place.") from None


class _Remote(io.RawIOBase):
    """A file of pyarrow's, whose errors say that reading failed, and not what was read."""

    def __init__(self, uri: str, file: Any) -> None:
        self._uri, self._file = uri, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with self._failing():
            return int(self._file.readinto(buffer))

    def readall(self) -> bytes:  # Else in pieces of 8 KiB, a request each.
        with self._failing():
            return bytes(self._file.read())

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            failed = _failure(self._uri, "cannot be read", error)
            if isinstance(failed, UnavailableError):
                raise failed from None
            raise OSError(errno.EIO, _cause(error)) from None

    def close(self) -> None:
        self._file.close()
        super().close()


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
                raise StorageError(f"{root}: cannot be listed: {_cause(error)}.") from None
            reason = f"a folder that cannot be listed: {_cause(error)}"
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
        return File(uri, -1, 0, f"cannot be read: {_cause(error)}")
    if not status.S_ISREG(facts.st_mode):
        return File(uri, -1, 0, "cannot be read: not a regular file")
    return File(uri, facts.st_size, facts.st_mtime_ns)


def _entries(uri: str, *, recursive: bool) -> list[fs.FileInfo]:
    system, path = resolve(uri)
    selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
    try:
        return list(system.get_file_info(selector))
    except OSError as error:
        raise _failure(uri, "cannot be listed", error) from None


def _is_bucket(uri: str) -> bool:
    return uri.startswith(buckets.SCHEME)


def _failure(uri: str, what: str, error: OSError | ValueError) -> StorageError:
    """What a failed request comes to: that of one file, or of the whole store."""
    if isinstance(error, OSError) and _is_bucket(uri):
        unavailable = buckets.failure(absolute(uri), error)
        if unavailable is not None:
            return unavailable
    return StorageError(f"{uri}: {what}: {_cause(error)}.")


def _cause(error: OSError | ValueError) -> str:
    # pyarrow: "Failed to open local file '/a'. Detail: [errno 2] No such file or directory"
    said, _, detail = (getattr(error, "strerror", "") or str(error)).partition(". Detail: ")
    reason = detail.partition("] ")[2] or detail
    return buckets.cause(said.rstrip(".") + (f" ({reason})" if reason else ""))
