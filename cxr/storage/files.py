"""Read, write, move and delete files; a file is written completely or not at all."""

import errno
import io
import json
import posixpath
import shutil
import stat as status
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cxr.errors import StorageError, UnavailableError
from cxr.storage import s3
from cxr.storage.listing import kind
from cxr.storage.paths import absolute, cause, failure, is_bucket, resolve

READ_AHEAD_BYTES: Final = 8 * 2**20
"""Bytes requested at a time from a file in a bucket: the latency of a request is about the transfer
time of these, and they usually contain the next members of an archive."""

COPY_BYTES: Final = 8 * 2**20
"""Bytes copied at a time."""


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        StorageError: it does not exist or cannot be read.
    """
    if is_bucket(uri) and (data := s3.read_object(absolute(uri))) is not None:
        return data
    # Of an object that the store does not give, this says why.
    with open_file(uri) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise failure(uri, "cannot be read", error) from None


def open_file(uri: str, read_ahead_bytes: int = READ_AHEAD_BYTES) -> BinaryIO:
    """Open a file for random access; reading from it may raise `OSError`.

    Args:
        uri: path or URI.
        read_ahead_bytes: bytes requested at a time from a bucket.

    Raises:
        StorageError: it does not exist or cannot be opened.
    """
    system, path = resolve(uri)
    try:
        if isinstance(system, fs.LocalFileSystem):
            if not status.S_ISREG(Path(path).stat().st_mode):
                # Opening a pipe would block forever.
                raise StorageError(f"{uri}: cannot be read: not a regular file.")
            return Path(path).open("rb")
        return io.BufferedReader(_RemoteFile(uri, system.open_input_file(path)), read_ahead_bytes)
    except (OSError, ValueError) as error:
        raise failure(uri, "cannot be read", error) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically: a reader sees all of it or none of it.

    Raises:
        StorageError: it cannot be written.
    """
    with write_stream(uri) as stream:
        stream.write(data)


@contextmanager
def write_stream(uri: str) -> Iterator[BinaryIO]:
    """Write a file piece by piece, atomically: it appears once all of it is written.

    Raises:
        StorageError: it cannot be written.
    """
    with (
        _atomic_target(uri) as (system, path),
        system.open_output_stream(path, compression=None) as stream,
    ):
        yield stream


def move_in(file: Path, uri: str) -> None:
    """Move a local file to a path or URI, atomically and without holding it in memory.

    Raises:
        StorageError: the file cannot be read or the target cannot be written.
    """
    # Not pyarrow's copy_files, which returns without an error when an upload failed (26.0.1).
    with (
        _atomic_target(uri) as (system, path),
        file.open("rb") as source,
        system.open_output_stream(path, compression=None) as stream,
    ):
        shutil.copyfileobj(source, stream, COPY_BYTES)
    file.unlink()


def move_file(uri: str, target: str) -> None:
    """Rename a file within its file system; a file that has the new name is replaced.

    Raises:
        StorageError: it cannot be moved.
    """
    system, path = resolve(uri)
    target_path = resolve(target)[1]
    try:
        system.create_dir(posixpath.dirname(target_path), recursive=True)
        system.move(path, target_path)
    except OSError as error:
        raise failure(uri, "cannot be moved", error) from None


def delete(uri: str) -> None:
    """Delete a folder and its contents; nothing happens if there is none."""
    if kind(uri) == "folder":
        system, path = resolve(uri)
        try:
            system.delete_dir(path)
        except OSError as error:
            raise failure(uri, "cannot be deleted", error) from None


def delete_file(uri: str) -> None:
    """Delete a file; nothing happens if there is none."""
    if kind(uri) == "file":
        system, path = resolve(uri)
        try:
            system.delete_file(path)
        except OSError as error:
            raise failure(uri, "cannot be deleted", error) from None


def read_json(uri: str) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"{uri}: not JSON: {error}.") from None


def write_json(uri: str, value: object) -> None:
    """Write a value as indented JSON."""
    write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode())


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, checksums verified.

    Args:
        uri: path or URI.
        columns: names of the columns to read; all if None.

    Raises:
        StorageError: it does not exist, cannot be read or is damaged.
    """
    source = pa.BufferReader(read_bytes(uri))
    try:
        return pq.read_table(
            source,
            columns=None if columns is None else list(columns),
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{uri}: not a Parquet file: {str(error).strip()}") from None


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as one Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(uri, sink.getvalue().to_pybytes())


@contextmanager
def _atomic_target(uri: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """Where to write a file, which gets its name once all of it is written."""
    system, path = resolve(uri)
    local = isinstance(system, fs.LocalFileSystem)
    # In an object store, a file becomes visible once it is complete.
    target = f"{path}.{uuid.uuid4().hex[:8]}.part" if local else path
    try:
        if local:
            system.create_dir(posixpath.dirname(path), recursive=True)
        try:
            yield system, target
            if local:
                system.move(target, path)
        except BaseException as error:
            # In a store, closing the stream has completed the file. One that failed has none.
            if local or not isinstance(error, OSError):
                with suppress(OSError):
                    system.delete_file(target)
            raise
    except OSError as error:
        failed = failure(uri, "cannot be written", error)
        if isinstance(failed, UnavailableError):
            raise failed from None
        raise StorageError(f"{failed} Choose another path.") from None


class _RemoteFile(io.RawIOBase):
    """A pyarrow file whose errors are storage failures, not damage of what was read."""

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
        with self._translated():
            return int(self._file.readinto(buffer))

    def readall(self) -> bytes:  # The default reads 8 KiB at a time, one request for each.
        with self._translated():
            return bytes(self._file.read())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            failed = failure(self._uri, "cannot be read", error)
            if isinstance(failed, UnavailableError):
                raise failed from None
            raise OSError(errno.EIO, cause(error)) from None

    def close(self) -> None:
        self._file.close()
        super().close()
