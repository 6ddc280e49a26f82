"""Reading, writing and deleting files, each whole or not at all."""

import errno
import io
import json
import posixpath
import shutil
import stat as status
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cxr.errors import StorageError, UnavailableError
from cxr.storage.listing import kind
from cxr.storage.paths import cause, failure, resolve

READ_AHEAD_BYTES: Final = 8 * 2**20
"""Bytes of one request for a part of a file in a bucket: a request takes about as long as these
do, and the next members of an archive are mostly among them."""

COPY_BYTES: Final = 8 * 2**20
"""Pieces in which a file is copied."""


def read_bytes(uri: str) -> bytes:
    """The whole of a file.

    Raises:
        StorageError: it is not there or cannot be read.
    """
    with open_file(uri) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise failure(uri, "cannot be read", error) from None


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
        raise failure(uri, "cannot be read", error) from None


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
            raise failure(uri, "cannot be deleted", error) from None


def delete_file(uri: str) -> None:
    """Delete a file; nothing happens where there is none."""
    if kind(uri) == "file":
        system, path = resolve(uri)
        try:
            system.delete_file(path)
        except OSError as error:
            raise failure(uri, "cannot be deleted", error) from None


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
        failed = failure(uri, "cannot be written", error)
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
            failed = failure(self._uri, "cannot be read", error)
            if isinstance(failed, UnavailableError):
                raise failed from None
            raise OSError(errno.EIO, cause(error)) from None

    def close(self) -> None:
        self._file.close()
        super().close()
