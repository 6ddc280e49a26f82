"""Members of zip and tar archives: found once, then read from their place; nothing is unpacked.

A member's place is a `Step`: where its bytes stand in the archive, or for a compressed tar in the
stream that its decompression gives. A member of an archive within an archive has two.
"""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, cast

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

MAX_NESTED_BYTES: Final = 2 * 2**30
"""An archive within a compressed one is read into memory, up to this size."""

SUFFIXES: Final = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar.gz", ".tgz": "tar.gz",
    ".tar.bz2": "tar.bz2", ".tbz2": "tar.bz2",
    ".tar.xz": "tar.xz", ".txz": "tar.xz",
    ".tar.zst": "tar.zst", ".tzst": "tar.zst",
}  # fmt: skip
"""The kind of archive that a name announces."""

SEPARATOR: Final = "!/"
"""Between an archive and the path in it, as in `archive.zip!/folder/image.dcm`."""

_DAMAGE: Final = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError)
_STORED: Final = 0
_DEFLATED: Final = 8
_ENCRYPTED: Final = 0x1
_SIZES_FOLLOW: Final = 0x8
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, packed, size, lengths of name and extra:
section 4.3.7 of the ZIP File Format Specification."""


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
    """Path in the archive, printable; empty for the archive as a whole."""
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
    return next((kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix)), "")


def is_sequential(place: Sequence[Step]) -> bool:
    """Whether reading a member means passing over all that stands before it."""
    if not place:
        return False
    return place[0].kind not in ("zip", "tar") or (len(place) > 1 and _in_memory(*place[:2]))


def list_members(stream: BinaryIO, kind: str) -> Iterator[Member]:
    """Every file of an archive, in the archive's order.

    What is damaged ends the list with a member without a name that says so.

    Args:
        stream: the archive, seekable.
        kind: a value of `SUFFIXES`.
    """
    return _zip_members(stream) if kind == "zip" else _tar_members(stream, kind)


def _zip_members(stream: BinaryIO) -> Iterator[Member]:
    if (start := stream.read(4)) not in (b"PK\x03\x04", b"PK\x05\x06"):
        reason = "the archive is empty" if not start else "not a zip archive"
        yield Member("", None, 0, "unreadable", reason)
        return
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, EOFError, NotImplementedError, OSError):
        found = 0
        for member in _walk_local_headers(stream):
            found += 1
            yield member
        reason = f"the archive is cut short or damaged; {found:,} members were found"
        yield Member("", None, 0, "unreadable", reason)
        return
    overlapping = _overlapping(entries)
    for entry in entries:
        if entry.is_dir():
            continue
        name = _printable(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            yield Member(name, None, 0, link=True)
            continue
        step = Step(
            "zip", entry.header_offset, entry.compress_size, entry.file_size,
            entry.compress_type, entry.CRC,
        )  # fmt: skip
        status, reason = _verdict(step, bool(entry.flag_bits & _ENCRYPTED))
        if entry.header_offset in overlapping:
            status, reason = "refused", "shares its bytes with another member, as zip bombs do"
        yield Member(name, step, entry.file_size, status, reason)


def _overlapping(entries: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Offsets of members whose bytes reach into another's."""
    found, end = set(), 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if entry.header_offset < end:
            found.add(entry.header_offset)
        header = _LOCAL_HEADER.size + len(entry.orig_filename)
        end = max(end, entry.header_offset + header + entry.compress_size)
    return found


def _verdict(step: Step, encrypted: bool) -> tuple[str, str]:
    if encrypted:
        return "unreadable", "encrypted"
    if step.method not in (_STORED, _DEFLATED):
        return "unreadable", f"zip compression method {step.method} is not supported"
    if too_large := check_size(step.size):
        return "refused", too_large
    if step.size > _RATIO_COUNTS_FROM and step.size > MAX_RATIO * step.packed:
        return "refused", f"unpacks to more than {MAX_RATIO} times its size, as zip bombs do"
    return "", ""


def check_size(size: int) -> str:
    """Why a file of so many bytes is refused, empty where it is not."""
    return f"larger than {MAX_FILE_BYTES // 2**20} MiB" if size > MAX_FILE_BYTES else ""


def _walk_local_headers(stream: BinaryIO) -> Iterator[Member]:
    """The whole members of a zip archive whose directory is lost."""
    offset = 0
    while True:
        stream.seek(offset)
        header = stream.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            return
        _, _, flags, method, _, _, crc, packed, size, name_length, extra = _LOCAL_HEADER.unpack(
            header
        )
        name = stream.read(name_length).decode("utf-8" if flags & 0x800 else "cp437", "replace")
        data = offset + _LOCAL_HEADER.size + name_length + extra
        if flags & _SIZES_FOLLOW:
            if method != _DEFLATED or flags & _ENCRYPTED:
                return
            ended = _inflated_end(stream, data)
            if ended is None:
                return
            packed, size, crc = ended
        following = data + packed
        if stream.seek(0, io.SEEK_END) < following:
            return
        if flags & _SIZES_FOLLOW:
            stream.seek(following)
            # The descriptor may begin with a signature.
            following += 16 if stream.read(4) == b"PK\x07\x08" else 12
        step = Step("zip", offset, packed, size, method, crc)
        status, reason = _verdict(step, bool(flags & _ENCRYPTED))
        offset = following
        if not name.endswith("/"):
            yield Member(_printable(name), step, size, status, reason)


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


def _tar_members(stream: BinaryIO, kind: str) -> Iterator[Member]:
    found = 0
    end = 0
    try:
        inner = _decompressed(stream, kind)
        # A plain tar is sought through, a compressed one passed over.
        with tarfile.open(fileobj=inner, mode="r:" if kind == "tar" else "r|") as archive:
            for entry in archive:
                # Else tarfile keeps all of them.
                archive.members = []  # type: ignore[attr-defined]
                found += 1
                end = entry.offset_data + entry.size
                if entry.isdir():
                    continue
                name = _printable(entry.name)
                step = Step(kind, entry.offset_data, entry.size, entry.size, _STORED, -1)
                if entry.issparse():
                    yield Member(name, None, entry.size, "unreadable", "a sparse member of a tar")
                elif not entry.isreg():
                    yield Member(name, None, 0, link=True)
                else:
                    too_large = check_size(entry.size)
                    status = "refused" if too_large else ""
                    yield Member(name, step, entry.size, status, too_large)
        if kind == "tar" and stream.seek(0, io.SEEK_END) < end:
            raise tarfile.ReadError("the last member is cut short")
        if kind != "tar":
            _exhaust(inner)
    except _DAMAGE:
        if found:
            reason = f"the archive is cut short or damaged; {found:,} members were found"
        else:
            reason = f"not a {kind} archive"
        yield Member("", None, 0, "unreadable", reason)


def _exhaust(stream: Any) -> None:
    """Read to the end, so that a compressed stream shows whether it has one."""
    while stream.read(2**20):
        pass


class Reader:
    """Reads files and members one after another and keeps the archive at hand open.

    Members are best asked for in the order in which they stand in their archive: going back in a
    compressed tar starts it from its beginning.
    """

    def __init__(self) -> None:
        self._key: tuple[str, tuple[Step, ...], str] | None = None
        self._stream: Any = None

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
        key = (file, tuple(place[:-1]), place[-1].kind)
        if key != self._key:
            self._close()
            archive = open_archive(file, place[:-1], place[-1].kind)
            self._stream, self._key = _decompressed(archive, place[-1].kind), key
        try:
            return _read_member(self._stream, place[-1])
        except _DAMAGE as error:
            self._close()
            if isinstance(error, OSError) and error.errno is not None:
                raise StorageError(f"{file}: cannot be read: {error.strerror}.") from None
            raise DataError("the archive is damaged or cut short here") from None

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._key = self._stream = None


def open_archive(file: str, place: Sequence[Step], kind: str) -> BinaryIO:
    """Open an archive as it stands, or one that is a member of another.

    Args:
        file: path or URI.
        place: the step to the inner archive; empty for the file itself.
        kind: of the archive that is opened.

    Raises:
        DataError: the outer archive is damaged, or memory would not hold the inner one.
        StorageError: the file cannot be read.
    """
    stream: BinaryIO = storage.open_file(file)
    try:
        for step in place:
            stream = _open_nested(_decompressed(stream, step.kind), step, kind)
        return stream
    except _DAMAGE:
        raise DataError("the archive is damaged or cut short here") from None


def _decompressed(stream: BinaryIO, kind: str) -> Any:
    """What a tar is read from, seekable; a zip itself."""
    openers: dict[str, Callable[[BinaryIO], Any]] = {
        "tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open, "tar.zst": _Forward,
    }  # fmt: skip
    return openers[kind](stream) if kind in openers else stream


def _read_member(stream: Any, step: Step) -> bytes:
    offset = step.offset
    if step.kind == "zip":
        stream.seek(offset)
        header = stream.read(_LOCAL_HEADER.size)
        if not header.startswith(b"PK\x03\x04") or len(header) < _LOCAL_HEADER.size:
            raise DataError("the archive is damaged or cut short here")
        offset += _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[-2:])
    stream.seek(offset)
    data = bytes(stream.read(step.packed))
    if len(data) < step.packed:
        raise DataError("the archive is damaged or cut short here")
    if step.method == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflater.decompress(data, step.size + 1)
    if len(data) != step.size:
        raise DataError("the member's size is not what the archive says")
    if step.crc >= 0 and zlib.crc32(data) != step.crc:
        raise DataError("the member's checksum is wrong")
    return data


def _open_nested(stream: Any, step: Step, kind: str) -> BinaryIO:
    """Open a member that is an archive itself, of what `_decompressed` gave of the outer one."""
    inner = Step(kind, 0, 0, 0, _STORED, -1)
    if _in_memory(step, inner):
        if step.size > MAX_NESTED_BYTES:
            raise DataError(
                f"an archive of more than {MAX_NESTED_BYTES // 2**30} GiB within a compressed one:"
                " unpack the outer one first"
            )
        return io.BytesIO(_read_member(stream, step))
    offset = step.offset
    if step.kind == "zip":
        stream.seek(offset)
        header = stream.read(_LOCAL_HEADER.size)
        offset += _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header)[-2:])
    return cast(BinaryIO, io.BufferedReader(_Window(stream, offset, step.size), 2**16))


def _in_memory(outer: Step, inner: Step) -> bool:
    """Whether an inner archive has to be read whole: its bytes are not in the outer file as they
    are, and it is not read from front to back either."""
    if outer.kind == "zip":
        return outer.method != _STORED
    return outer.kind != "tar" and inner.kind in ("zip", "tar")


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
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        self._stream.seek(self._start + self._at)
        data = self._stream.read(length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Forward(io.RawIOBase):
    """A Zstandard stream that can be sought, forward by reading, backward from the beginning."""

    def __init__(self, stream: BinaryIO) -> None:
        self._packed = stream
        self._restart()

    def _restart(self) -> None:
        self._packed.seek(0)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._packed), "zstd")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise ValueError("only from the beginning")
        if offset < self._at:
            self._restart()
        while self._at < offset:
            skipped = len(self._stream.read(min(offset - self._at, 2**20)))
            if not skipped:
                break
            self._at += skipped
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


def _printable(name: str) -> str:
    """A name without what cannot be written as UTF-8; its bytes stand as `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
