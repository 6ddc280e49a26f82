"""Members of zip and tar archives: listed once, then read by their offsets; nothing is unpacked.

A `Step` leads from an archive to a member: the offset of its bytes in the archive, or for a
compressed tar in the decompressed stream. A member of an archive within an archive takes two steps.
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, NamedTuple

from cxr import storage
from cxr.errors import DataError, StorageError
from cxr.sources.archives.members import (
    DAMAGE,
    DAMAGED,
    DEFLATED,
    RATIO_COUNTS_FROM,
    SEEKABLE,
    STORED,
    Member,
    Step,
    is_storage_failure,
)
from cxr.sources.archives.streams import INFLATED, UNPACKERS, Forward, Window
from cxr.sources.archives.tar import tar_members
from cxr.sources.archives.zip import data_offset, zip_members
from cxr.sources.names import type_by_content

STREAM_RATIO_COUNTS_FROM: Final = 2**30
"""As `RATIO_COUNTS_FROM`, for a whole compressed tar, which may hold many copies of an image; about
a second of decompression."""

MAX_NESTED_BYTES: Final = 2 * 2**30
"""A zip or tar within a compressed tar is read into memory, up to this size."""

HELD_BYTES: Final = 64 * 2**20
"""An archive compressed in a zip is read into memory up to this size; a larger one is inflated from
its beginning for each seek backward, at about 200 MB/s."""


def is_sequential(steps: Sequence[Step]) -> bool:
    """Whether reading a member means decompressing everything before it."""
    if any(step.kind not in SEEKABLE for step in steps):
        return True
    return len(steps) > 1 and _in_memory(steps[0], steps[1].kind)


class _Layer(NamedTuple):
    """An open archive."""

    key: tuple[str | Step, str]
    """The file, or the step from the archive that it is in; the kind."""
    packed: BinaryIO
    stream: Any
    """What members are read from: the archive itself, or the `Forward` stream that unpacks it."""


class Reader:
    """Lists archives and reads their members; keeps the last archive open.

    Members are best read in the order of their archive: going back in a compressed tar starts
    again at its beginning.
    """

    def __init__(self, read_ahead_bytes: int = storage.READ_AHEAD_BYTES) -> None:
        """Open nothing yet.

        Args:
            read_ahead_bytes: bytes requested at a time from a bucket: many if the next member is
                usually close, few if only some members of an archive are read.
        """
        self._read_ahead_bytes = read_ahead_bytes
        self._layers: list[_Layer] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the open archive; the next call opens it again."""
        while self._layers:
            self._layers.pop().packed.close()

    def members(self, file: str, steps: Sequence[Step], kind: str) -> Iterator[Member]:
        """List every file of an archive, in the archive's order.

        The list of a damaged archive ends with a member without a name, which has the reason.

        Args:
            file: path or URI of a file.
            steps: from there to the archive; none for the file itself.
            kind: of the archive, a value of `SUFFIXES`.

        Raises:
            DataError: the archive around this one is damaged, or this one is too large for memory.
            StorageError: the file cannot be read.
        """
        with self._explained(file):
            layer = self._opened(file, steps, kind)
            if not layer.packed.seek(0, io.SEEK_END):
                yield Member("", None, 0, "unreadable", "the archive is empty")
            elif other := _other_type(layer.packed, kind):
                reason = f"not a {kind} archive, but a file of type {other}"
                yield Member("", None, 0, "unreadable", reason)
            elif kind == "zip":
                yield from zip_members(layer.stream)
            else:
                yield from tar_members(layer.stream, kind)

    def read(self, file: str, steps: Sequence[Step]) -> bytes:
        """Read a file, or a member of it.

        Args:
            file: path or URI of the file.
            steps: from there to the member; none for the file itself.

        Raises:
            DataError: the member is damaged.
            StorageError: the file cannot be read.
        """
        if not steps:
            return storage.read_bytes(file)
        with self._explained(file):
            return _read_member(self._opened(file, steps[:-1], steps[-1].kind).stream, steps[-1])

    def _opened(self, file: str, steps: Sequence[Step], kind: str) -> _Layer:
        kinds = (*(step.kind for step in steps), kind)
        keys: list[tuple[str | Step, str]] = [
            (file, kinds[0]), *zip(steps, kinds[1:], strict=True),
        ]  # fmt: skip
        while [layer.key for layer in self._layers] != keys[: len(self._layers)]:
            self._layers.pop().packed.close()
        for source, inner in keys[len(self._layers) :]:
            if isinstance(source, Step):
                packed = _open_nested(self._layers[-1].stream, source, inner)
            else:
                packed = storage.open_file(source, self._read_ahead_bytes)
            free = RATIO_COUNTS_FROM if self._layers else STREAM_RATIO_COUNTS_FROM
            stream = Forward(packed, inner, free) if inner in UNPACKERS else packed
            self._layers.append(_Layer((source, inner), packed, stream))
        return self._layers[-1]

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            if is_storage_failure(error):
                self.close()
                raise StorageError(f"{file}: cannot be read: {error.strerror}.") from None
            raise DataError(DAMAGED) from None


def _other_type(packed: BinaryIO, kind: str) -> str:
    """The type of a file if it is not what its suffix says, but a known one; else empty."""
    packed.seek(0)
    found = type_by_content(packed.read(8))
    expected = {"zip": "zip", "tar.gz": "gzip", "tar.bz2": "bzip2", "tar.xz": "xz",
                "tar.zst": "Zstandard"}  # fmt: skip
    return found if found != expected.get(kind) else ""


def _read_member(stream: Any, step: Step) -> bytes:
    stream.seek(data_offset(stream, step))
    data = bytes(stream.read(step.packed))
    if len(data) < step.packed:
        raise DataError(DAMAGED)
    if step.method == DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, step.size + 1)
        except zlib.error:
            raise DataError("the member is damaged") from None
    if len(data) != step.size:
        raise DataError("the member's size is not what the archive says")
    if step.crc >= 0 and zlib.crc32(data) != step.crc:
        raise DataError("the member's checksum is wrong")
    return data


def _open_nested(stream: Any, step: Step, kind: str) -> BinaryIO:
    """Open a member that is an archive itself."""
    if not _in_memory(step, kind):
        window = Window(stream, data_offset(stream, step), step.size)
        return io.BufferedReader(window, 2**13)
    if step.method == DEFLATED and max(step.size, step.packed) > HELD_BYTES:
        packed = Window(stream, data_offset(stream, step), step.packed)
        inflated = Forward(io.BufferedReader(packed, 2**16), INFLATED, RATIO_COUNTS_FROM)
        return io.BufferedReader(Window(inflated, 0, step.size), 2**13)
    if max(step.size, step.packed) > MAX_NESTED_BYTES:
        raise DataError(
            f"an archive of more than {MAX_NESTED_BYTES // 2**30} GiB within a compressed one:"
            " unpack the outer one first"
        )
    return io.BytesIO(_read_member(stream, step))


def _in_memory(outer: Step, inner: str) -> bool:
    """Whether an inner archive is read whole, or again for each seek backward: it is compressed in
    the outer file, and not read from front to back either."""
    if outer.kind == "zip":
        return outer.method != STORED
    return outer.kind not in SEEKABLE and inner in SEEKABLE
