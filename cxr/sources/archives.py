"""Members of zip and tar archives: found once, then read from their place; nothing is unpacked.

A member's place is a `Step`: where its bytes stand in the archive, or for a compressed tar in the
stream that its decompression gives. A member of an archive within an archive has two.
"""

import bz2
import errno
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, TypeGuard, cast

import pyarrow as pa

from cxr import storage
from cxr.errors import DataError, StorageError

MAX_FILE_BYTES: Final = 512 * 2**20
"""Larger files and members are refused unread: 160 MB hold the largest picture that is decoded, at
16 bits."""

MAX_RATIO: Final = 200
_RATIO_COUNTS_FROM: Final = 16 * 2**20
"""Members of more bytes than this that were packed to less than 1 / `MAX_RATIO` are taken for a
bomb. A black picture may shrink a thousandfold, but is refused as constant anyway."""

_STREAM_RATIO_COUNTS_FROM: Final = 2**30
"""The same for a whole compressed tar, a second's work: one may hold many copies of a picture."""

_MAX_HEADER_BYTES: Final = 16 * 2**20
"""Of one tar member, with its long name and attributes; `tarfile` itself has no bound."""

MAX_NESTED_BYTES: Final = 2 * 2**30
"""A zip or tar within a compressed tar is read into memory, up to this size."""

HELD_BYTES: Final = 64 * 2**20
"""An archive that is packed in a zip is read into memory up to this size; a larger one is inflated
anew for each way back, at some 200 MB a second."""

SUFFIXES: Final = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar.gz", ".tgz": "tar.gz",
    ".tar.bz2": "tar.bz2", ".tbz2": "tar.bz2",
    ".tar.xz": "tar.xz", ".txz": "tar.xz",
    ".tar.zst": "tar.zst", ".tzst": "tar.zst",
}  # fmt: skip
"""The kind of archive that a name announces."""
_ANY_SUFFIX: Final = tuple(SUFFIXES)

SEPARATOR: Final = "!/"
"""Between an archive and the path in it, as in `archive.zip!/folder/image.dcm`."""

_DAMAGE: Final = (
    OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip
_DAMAGED: Final = "the archive is damaged or cut short here"
_BOMB: Final = f"unpacks to more than {MAX_RATIO} times its size, as zip bombs do"
_SEEKABLE: Final = ("zip", "tar")
_MAX_INT: Final = 2**63 - 1
_STORED: Final = 0
_DEFLATED: Final = 8
_ENCRYPTED: Final = 0x1
_SIZES_FOLLOW: Final = 0x8
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, packed, size, lengths of name and extra:
section 4.3.7 of the ZIP File Format Specification."""
_ZIP64_SIZE: Final = 2**32 - 1
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_DIRECTORY_SIGNATURES: Final = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x08")


class Step(NamedTuple):
    """Where one member stands in its archive."""

    kind: str
    """Of the archive, a value of `SUFFIXES`."""
    offset: int
    """zip: of the local header; tar: of the data, in the decompressed stream."""
    packed: int
    """Bytes in the archive."""
    size: int
    """Bytes when unpacked."""
    method: int
    """Compression method of a zip member; 0, stored, in a tar."""
    crc: int
    """CRC-32 of a zip member; -1 where there is none."""


@dataclass(frozen=True)
class Member:
    """One file of an archive, or what the archive lacks."""

    name: str
    """Path in the archive, printable; empty for the archive as a whole alone."""
    step: Step | None
    """Its place; None where it cannot be read."""
    size: int
    status: str = ""
    """`"refused"` or `"unreadable"` where that is known without reading it."""
    reason: str = ""
    link: bool = False
    """A link or device: there is nothing to read, and nothing is lost."""


def archive_kind(name: str) -> str:
    """The kind of archive that a name announces, empty for none."""
    lower = name.lower()
    if not lower.endswith(_ANY_SUFFIX):
        return ""
    return next(kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix))


def is_sequential(place: Sequence[Step]) -> bool:
    """Whether reading a member means passing over all that stands before it."""
    if any(step.kind not in _SEEKABLE for step in place):
        return True
    return len(place) > 1 and _in_memory(place[0], place[1].kind)


def check_size(size: int) -> str:
    """Why a file of so many bytes is refused, empty where it is not."""
    return f"larger than {MAX_FILE_BYTES // 2**20} MiB" if size > MAX_FILE_BYTES else ""


def printable(name: str) -> str:
    """A name without what cannot be written as UTF-8; its bytes stand as `\\xff`."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text or "(no name)"


# --- zip -----------------------------------------------------------------------------------------


def _zip_members(stream: BinaryIO) -> Iterator[Member]:
    total = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(len(_LOCAL_SIGNATURE))
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except _DAMAGE as error:
        if _is_storage_failure(error):
            raise
        if start != _LOCAL_SIGNATURE:
            yield Member("", None, 0, "unreadable", "not a zip archive")
            return
        found = 0
        for member in _walk_local_headers(stream, total):
            found += 1
            yield member
        yield _cut_short(found)
        return
    reaching = _reaching(stream, [entry for entry in entries if _is_within(entry, total)])
    for entry in entries:
        # `is_dir` fails where there is no name. Some Windows programs write backslashes.
        if entry.filename.endswith("/") or (entry.filename.endswith("\\") and not entry.file_size):
            continue
        name = printable(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            yield Member(name, None, 0, link=True)
            continue
        if not _is_within(entry, total):
            yield Member(name, None, -1, "unreadable", _DAMAGED)
            continue
        step = Step(
            "zip", entry.header_offset, entry.compress_size, min(entry.file_size, _MAX_INT),
            entry.compress_type, entry.CRC,
        )  # fmt: skip
        status, reason = _verdict(name, step, bool(entry.flag_bits & _ENCRYPTED))
        if entry.header_offset in reaching:
            status, reason = "refused", "reaches into another member, as zip bombs do"
        yield Member(name, step, step.size, status, reason)


def _is_within(entry: zipfile.ZipInfo, total: int) -> bool:
    return 0 <= entry.header_offset <= total - entry.compress_size


def _reaching(stream: BinaryIO, entries: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Offsets of members whose bytes reach into another, which really begins there."""
    found: set[int] = set()
    later: list[int] = []
    for entry in sorted(entries, key=lambda each: each.header_offset, reverse=True):
        header = _LOCAL_HEADER.size + len(entry.orig_filename)
        end = entry.header_offset + header + entry.compress_size
        while later and end > later[-1]:
            stream.seek(later[-1])
            if stream.read(len(_LOCAL_SIGNATURE)) == _LOCAL_SIGNATURE:
                found.add(entry.header_offset)
                break
            later.pop()
        later.append(entry.header_offset)
    return found


def _verdict(name: str, step: Step, encrypted: bool) -> tuple[str, str]:
    if encrypted:
        return "unreadable", "encrypted"
    if step.method not in (_STORED, _DEFLATED):
        return "unreadable", f"zip compression method {step.method} is not supported"
    if step.size > _RATIO_COUNTS_FROM and step.size > MAX_RATIO * step.packed:
        return "refused", _BOMB
    # An archive in it has bounds of its own.
    too_large = "" if archive_kind(name) else check_size(max(step.size, step.packed))
    return "refused" if too_large else "", too_large


def _walk_local_headers(stream: BinaryIO, total: int) -> Iterator[Member]:
    """The whole members of a zip archive whose directory is lost."""
    offset = 0
    while True:
        stream.seek(offset)
        header = stream.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
            return
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = (
            _LOCAL_HEADER.unpack(header)
        )
        name = stream.read(name_length).decode("utf-8" if flags & 0x800 else "cp437", "replace")
        extra = stream.read(extra_length)
        data = following = offset + _LOCAL_HEADER.size + name_length + extra_length
        if flags & _SIZES_FOLLOW:
            if method != _DEFLATED or flags & _ENCRYPTED:
                return
            ended = _inflated_end(stream, data)
            if ended is None:
                return
            packed, size, crc = ended
            following += packed + _descriptor_length(stream, data + packed)
        else:
            if _ZIP64_SIZE in (packed, size):
                size, packed = _zip64_sizes(extra)
            following += packed
        if total < following:
            return
        step = Step("zip", offset, packed, min(size, _MAX_INT), method, crc)
        status, reason = _verdict(name, step, bool(flags & _ENCRYPTED))
        offset = following
        if not name.endswith("/"):
            yield Member(printable(name), step, step.size, status, reason)


def _inflated_end(stream: BinaryIO, start: int) -> tuple[int, int, int] | None:
    """Packed bytes, bytes and CRC of the deflated data at an offset; None if they have no end."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    stream.seek(start)
    packed = size = crc = 0
    while not inflater.eof:
        block = inflater.unconsumed_tail or stream.read(2**16)
        try:
            data = inflater.decompress(block, 2**20)
        except zlib.error:
            return None
        if not block and not data:
            return None
        packed += len(block) - len(inflater.unconsumed_tail) - len(inflater.unused_data)
        size, crc = size + len(data), zlib.crc32(data, crc)
        if size > MAX_FILE_BYTES:
            return None
    return packed, size, crc


def _descriptor_length(stream: BinaryIO, start: int) -> int:
    """Bytes of the sizes that follow a member: with a signature or not, in 4 bytes each or 8."""
    stream.seek(start)
    read = stream.read(28)
    for length in (16, 24, 12, 20):
        if read[length : length + 4] in (_LOCAL_SIGNATURE, *_DIRECTORY_SIGNATURES):
            return length
    return 16


def _zip64_sizes(extra: bytes) -> tuple[int, int]:
    """Bytes unpacked and packed by the extra field of a large member."""
    while len(extra) >= 4:
        field, length = struct.unpack_from("<2H", extra)
        if field == 1 and length >= 16:
            size, packed = struct.unpack_from("<2Q", extra, 4)
            return size, packed
        extra = extra[4 + length :]
    return _MAX_INT, _MAX_INT


# --- tar -----------------------------------------------------------------------------------------


def _tar_members(stream: Any, kind: str) -> Iterator[Member]:
    found = 0
    try:
        headers = _Headers(stream)
        # Never its "r|": what is compressed is passed over here, within bounds.
        with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as archive:
            for entry in archive:
                # Else tarfile keeps all of them.
                archive.members = []  # type: ignore[attr-defined]
                headers.begin_member()
                if not 0 <= entry.size <= _MAX_INT - entry.offset_data:
                    raise tarfile.ReadError("an impossible size")
                found += 1
                name = printable(entry.name)
                step = Step(kind, entry.offset_data, entry.size, entry.size, _STORED, -1)
                if entry.isdir():
                    continue
                if entry.issparse():
                    yield Member(name, None, entry.size, "unreadable", "a sparse member of a tar")
                elif not entry.isreg() and (entry.type in tarfile.SUPPORTED_TYPES or not step.size):
                    yield Member(name, None, 0, link=True)
                else:
                    too_large = "" if archive_kind(name) else check_size(entry.size)
                    status = "refused" if too_large else ""
                    yield Member(name, step, entry.size, status, too_large)
        headers.check_end()
    except _BombError as error:
        yield Member("", None, 0, "refused", str(error))
    except _DAMAGE as error:
        if _is_storage_failure(error):
            raise
        # Arrow tells what is cut from what is no Zstandard stream by its text alone.
        is_one = found or isinstance(error, EOFError) or "Truncated" in str(error)
        not_one = Member("", None, 0, "unreadable", f"not a {kind} archive")
        yield _cut_short(found) if is_one else not_one


class _Headers:
    """What `tarfile` reads headers from.

    By itself it follows a negative size back to read the same members for ever (CVE-2025-8194),
    reads names of any length into memory, and takes a damaged header for the end.
    """

    def __init__(self, stream: Any) -> None:
        stream.seek(0)
        self._stream = stream
        self._at = 0
        self._last = b""
        self.begin_member()

    def begin_member(self) -> None:
        self._left = _MAX_HEADER_BYTES

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        if not self._at <= offset <= _MAX_INT:
            raise tarfile.ReadError("an impossible offset")
        self._stream.seek(offset)
        self._at = offset

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError("an impossible header")
        self._left -= size
        self._last = self._stream.read(size)
        self._at += len(self._last)
        return self._last

    def check_end(self) -> None:
        """Refuse an end without its mark, or one that another archive follows."""
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end")
        while block := self._stream.read(2**20):
            if b"ustar" in block:
                raise tarfile.ReadError("more than one archive")


def _cut_short(found: int) -> Member:
    reason = f"the archive is cut short or damaged; {found:,} members were found"
    return Member("", None, 0, "unreadable", reason)


# --- reading -------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """An archive that is open."""

    key: tuple[str | Step, str]
    """The file, or the step from the archive that it is in; the kind."""
    packed: BinaryIO
    stream: Any
    """What members are read from: the archive itself, or a `_Forward` of it."""


class Reader:
    """Lists archives and reads their members, and keeps open what the next may need.

    Members are best asked for in the order in which they stand in their archive: going back in a
    compressed tar starts it from its beginning.
    """

    def __init__(self) -> None:
        self._layers: list[_Layer] = []

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; the next reading opens it again."""
        while self._layers:
            self._layers.pop().packed.close()

    def members(self, file: str, place: Sequence[Step], kind: str) -> Iterator[Member]:
        """Every file of an archive, in the archive's order.

        What is damaged ends the list with a member without a name that says so.

        Args:
            file: path or URI of a file.
            place: the steps from there to the archive; none for the file itself.
            kind: of the archive, a value of `SUFFIXES`.

        Raises:
            DataError: the archive around this one is damaged, or memory would not hold this one.
            StorageError: the file cannot be read.
        """
        with self._explained(file):
            layer = self._opened(file, place, kind)
            if not layer.packed.seek(0, io.SEEK_END):
                yield Member("", None, 0, "unreadable", "the archive is empty")
            elif kind == "zip":
                yield from _zip_members(layer.stream)
            else:
                yield from _tar_members(layer.stream, kind)

    def read(self, file: str, place: Sequence[Step]) -> bytes:
        """The bytes of a file, or of a member of it.

        Args:
            file: path or URI of the file.
            place: steps from there, none for the file itself.

        Raises:
            DataError: the member is damaged.
            StorageError: the file cannot be read.
        """
        if not place:
            return storage.read_bytes(file)
        with self._explained(file):
            return _read_member(self._opened(file, place[:-1], place[-1].kind).stream, place[-1])

    def _opened(self, file: str, place: Sequence[Step], kind: str) -> _Layer:
        kinds = (*(step.kind for step in place), kind)
        keys: list[tuple[str | Step, str]] = [
            (file, kinds[0]), *zip(place, kinds[1:], strict=True),
        ]  # fmt: skip
        while [layer.key for layer in self._layers] != keys[: len(self._layers)]:
            self._layers.pop().packed.close()
        for what, inner in keys[len(self._layers) :]:
            if isinstance(what, Step):
                packed = _open_nested(self._layers[-1].stream, what, inner)
            else:
                packed = storage.open_file(what)
            free = _RATIO_COUNTS_FROM if self._layers else _STREAM_RATIO_COUNTS_FROM
            stream = _Forward(packed, inner, free) if inner in _UNPACKERS else packed
            self._layers.append(_Layer((what, inner), packed, stream))
        return self._layers[-1]

    @contextmanager
    def _explained(self, file: str) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            if _is_storage_failure(error):
                self.close()
                raise StorageError(f"{file}: cannot be read: {error.strerror}.") from None
            raise DataError(_DAMAGED) from None


def _is_storage_failure(error: BaseException) -> TypeGuard[OSError]:
    """Whether reading itself failed, and not what was read. What is damaged may make a library
    seek to where nothing is: EINVAL."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _read_member(stream: Any, step: Step) -> bytes:
    stream.seek(_data_offset(stream, step))
    data = bytes(stream.read(step.packed))
    if len(data) < step.packed:
        raise DataError(_DAMAGED)
    if step.method == _DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, step.size + 1)
        except zlib.error:
            raise DataError("the member is damaged") from None
    if len(data) != step.size:
        raise DataError("the member's size is not what the archive says")
    if step.crc >= 0 and zlib.crc32(data) != step.crc:
        raise DataError("the member's checksum is wrong")
    return data


def _data_offset(stream: Any, step: Step) -> int:
    if step.kind != "zip":
        return step.offset
    stream.seek(step.offset)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
        raise DataError(_DAMAGED)
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return int(step.offset + len(header) + name_length + extra_length)


def _open_nested(stream: Any, step: Step, kind: str) -> BinaryIO:
    """Open a member that is an archive itself."""
    if not _in_memory(step, kind):
        window = _Window(stream, _data_offset(stream, step), step.size)
        return io.BufferedReader(window, 2**13)
    if step.method == _DEFLATED and max(step.size, step.packed) > HELD_BYTES:
        packed = _Window(stream, _data_offset(stream, step), step.packed)
        inflated = _Forward(io.BufferedReader(packed, 2**16), _INFLATED, _RATIO_COUNTS_FROM)
        return io.BufferedReader(_Window(inflated, 0, step.size), 2**13)
    if max(step.size, step.packed) > MAX_NESTED_BYTES:
        raise DataError(
            f"an archive of more than {MAX_NESTED_BYTES // 2**30} GiB within a compressed one:"
            " unpack the outer one first"
        )
    return io.BytesIO(_read_member(stream, step))


def _in_memory(outer: Step, inner: str) -> bool:
    """Whether an inner archive has to be read whole, or again for each way back: its bytes are not
    in the outer file as they are, and it is not read from front to back either."""
    if outer.kind == "zip":
        return outer.method != _STORED
    return outer.kind not in _SEEKABLE and inner in _SEEKABLE


class _Window(io.RawIOBase):
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


class _Forward:
    """What a compressed tar unpacks to: sought forward by reading, backward from the beginning."""

    def __init__(self, packed: BinaryIO, kind: str, free: int) -> None:
        self._packed, self._unpack = packed, _UNPACKERS[kind]
        self._limit = max(free, MAX_RATIO * packed.seek(0, io.SEEK_END))
        self._stream: Any = None
        self._at = _MAX_INT

    def seek(self, offset: int) -> None:
        if offset > self._limit:
            raise _BombError(_BOMB)
        if offset < self._at:
            self._packed.seek(0)
            self._stream, self._at = self._unpack(self._packed), 0
        while self._at < offset and self.read(min(offset - self._at, 2**20)):
            pass

    def read(self, size: int) -> bytes:
        # Until it has succeeded, the next seek starts from the beginning.
        at, self._at = self._at, _MAX_INT
        data = bytes(self._stream.read(size))
        self._at = at + len(data)
        if self._at > self._limit:
            raise _BombError(_BOMB)
        return data


class _BombError(DataError):
    """A compressed tar that unpacks to more than any archive of radiographs."""


class _Borrowed:
    """A stream that others can read and not close: Arrow closes what it was given."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read

    def close(self) -> None:
        pass


def _zstd(packed: BinaryIO) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(_Borrowed(packed), mode="r"), "zstd")


class _Inflated:
    """What a deflated member of a zip unpacks to, from front to back."""

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


_INFLATED: Final = "deflated"
_UNPACKERS: Final[dict[str, Callable[[BinaryIO], Any]]] = {
    "tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open, "tar.zst": _zstd,
    _INFLATED: _Inflated,
}  # fmt: skip
