"""Streams within streams: a part of one, and the decompressed content of one."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import pyarrow as pa

from cxr.errors import DataError
from cxr.sources.archives.members import BOMB, MAX_INT, MAX_RATIO


class Window(io.RawIOBase):
    """A part of a stream as a stream of its own."""

    def __init__(self, stream: Any, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        self._stream.seek(self._start + self._at)
        data = self._stream.read(length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Forward:
    """A decompressed stream: seeks forward by reading, backward by starting again."""

    def __init__(self, packed: BinaryIO, kind: str, free: int) -> None:
        self._packed, self._unpack = packed, UNPACKERS[kind]
        self._limit = max(free, MAX_RATIO * packed.seek(0, io.SEEK_END))
        self._stream: Any = None
        self._at = MAX_INT

    def seek(self, offset: int) -> None:
        if offset > self._limit:
            raise BombError(BOMB)
        if offset < self._at:
            self._packed.seek(0)
            self._stream, self._at = self._unpack(self._packed), 0
        while self._at < offset and self.read(min(offset - self._at, 2**20)):
            pass

    def read(self, size: int) -> bytes:
        # If reading fails, the next seek starts from the beginning.
        at, self._at = self._at, MAX_INT
        data = bytes(self._stream.read(size))
        self._at = at + len(data)
        if self._at > self._limit:
            raise BombError(BOMB)
        return data


class BombError(DataError):
    """A stream that decompresses to more than any archive of radiographs."""


class _Borrowed:
    """A stream that Arrow can read but not close: it closes what it is given."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read

    def close(self) -> None:
        pass


def _zstd(packed: BinaryIO) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(_Borrowed(packed), mode="r"), "zstd")


class _Inflated:
    """The content of a deflated member of a zip, from front to back."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._inflater = packed, zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and not self._inflater.eof:
            block = self._inflater.unconsumed_tail or self._packed.read(2**16)
            piece = self._inflater.decompress(block, size)
            if not block and not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


INFLATED: Final = "deflated"
"""A deflated member of a zip, as if it were a kind of archive."""

UNPACKERS: Final[dict[str, Callable[[BinaryIO], Any]]] = {
    "tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open, "tar.zst": _zstd,
    INFLATED: _Inflated,
}  # fmt: skip
"""The function that decompresses a stream from front to back, by kind of archive."""
