"""Members of a zip: by its directory, or by their local headers if that is lost."""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, Final, NamedTuple

from cxr.errors import DataError
from cxr.sources.archives import members
from cxr.sources.archives.members import (
    BOMB,
    DAMAGE,
    DAMAGED,
    DEFLATED,
    MAX_INT,
    MAX_RATIO,
    RATIO_COUNTS_FROM,
    STORED,
    Member,
    Step,
    archive_kind,
    check_size,
    cut_short,
    is_storage_failure,
    printable,
)
from cxr.sources.archives.streams import Window
from cxr.sources.names import JOIN_ZIP

_ENCRYPTED: Final = 0x1
_SIZES_FOLLOW: Final = 0x8
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, packed, size, lengths of name and extra:
section 4.3.7 of the ZIP File Format Specification."""
_END_RECORD: Final = struct.Struct("<4s4H2IH")
"""Signature, this disk, disk of the directory, its entries here and in all, its size and offset,
length of the comment: section 4.3.16."""
_ZIP64_SIZE: Final = 2**32 - 1
_ZIP64_DISK: Final = 2**16 - 1
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_SPLIT_SIGNATURE: Final = b"PK\x07\x08"
_ENTRY_SIGNATURE: Final = b"PK\x01\x02"
_END_SIGNATURE: Final = b"PK\x05\x06"
_ZIP64_END_SIGNATURE: Final = b"PK\x06\x06"
_ZIP64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_DIRECTORY_SIGNATURES: Final = (
    _ENTRY_SIGNATURE, _END_SIGNATURE, _ZIP64_END_SIGNATURE, _ZIP64_LOCATOR_SIGNATURE,
)  # fmt: skip
_MAX_JOINED: Final = 100
"""Zips in one file, one behind the other."""


def zip_members(stream: BinaryIO) -> Iterator[Member]:
    """Every file of a zip, in the order of its directory; of several joined zips, of all."""
    problem = None
    for member in _members_before(stream, stream.seek(0, io.SEEK_END), _MAX_JOINED):
        if member.name:
            yield member
        else:
            problem = problem or member
    if problem:
        yield problem


def _members_before(
    stream: BinaryIO, total: int, max_zips: int, *, is_damaged_zip: bool = True
) -> Iterator[Member]:
    """Every file of the zips in the first `total` bytes: a reader sees the last zip alone.

    Args:
        stream: the file.
        total: bytes of it.
        max_zips: how many zips are read.
        is_damaged_zip: without a directory, the bytes are a damaged zip if they begin like one.
    """
    is_last = max_zips == _MAX_JOINED
    stream.seek(0)
    start = stream.read(len(_LOCAL_SIGNATURE))
    try:
        end = _read_end(stream, total)
        part = stream if is_last else io.BufferedReader(Window(stream, 0, total), 2**16)
        with zipfile.ZipFile(part) as archive:
            entries, first = archive.infolist(), archive.start_dir
    except DAMAGE as error:
        if is_storage_failure(error):
            raise
        if start == _SPLIT_SIGNATURE:
            yield Member("", None, 0, "unreadable", f"a part of a split zip; {JOIN_ZIP}")
        elif start == _LOCAL_SIGNATURE and is_damaged_zip:
            yield from _members_without_directory(stream, 0, total, is_only=is_last)
        elif is_last:  # Otherwise the program of a zip that unpacks itself.
            yield Member("", None, 0, "unreadable", "not a zip archive")
        return
    if end.disk:
        yield Member("", None, 0, "unreadable", f"the last part of a split zip; {JOIN_ZIP}")
        return
    first = min([first, *(entry.header_offset for entry in entries)])
    if first > 0:
        if max_zips > 1:
            # Where nothing was put before the zip, its own directory may be wrong.
            is_joined = archive.start_dir > end.directory
            yield from _members_before(stream, first, max_zips - 1, is_damaged_zip=is_joined)
        else:
            reason = f"more than {_MAX_JOINED} zips in one file"
            yield Member("", None, 0, "unreadable", reason)
    yield from _members_of_directory(stream, entries, total)
    if end.next_member:
        yield from _members_without_directory(stream, end.next_member, total, is_only=False)


def _members_without_directory(
    stream: BinaryIO, start: int, total: int, *, is_only: bool
) -> Iterator[Member]:
    """The complete members from an offset on, and a last entry that says that some are missing."""
    num_members = 0
    for member in _walk_local_headers(stream, start, total):
        num_members += 1
        yield member
    missing = cut_short(num_members)
    if not is_only:
        reason = f"one of the zips joined in this file is damaged; {num_members:,} members found"
        missing = replace(missing, reason=reason)
    yield missing


class _End(NamedTuple):
    """What the record says that ends a zip."""

    disk: int
    """Number of this part of a split zip, from 0."""
    directory: int
    """Offset of the directory from the beginning of this zip, as it says."""
    next_member: int
    """Offset of a member behind the record, of a zip that is cut short; 0 if there is none."""


def _read_end(stream: BinaryIO, total: int) -> _End:
    start = max(0, total - _END_RECORD.size - 2**16)
    stream.seek(start)
    tail = stream.read(total - start)
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) < at + _END_RECORD.size:
        raise zipfile.BadZipFile
    _, disk, *_, directory, comment_length = _END_RECORD.unpack_from(tail, at)
    behind = tail.find(_LOCAL_SIGNATURE, at + _END_RECORD.size + comment_length)
    next_member = start + behind if behind > 0 else 0
    return _End(disk if disk != _ZIP64_DISK else 0, directory, next_member)


def _members_of_directory(
    stream: BinaryIO, entries: Sequence[zipfile.ZipInfo], total: int
) -> Iterator[Member]:
    overlapping = _overlapping(stream, [entry for entry in entries if _is_within(entry, total)])
    for entry in entries:
        # `is_dir` fails where there is no name. Some Windows programs write backslashes.
        if entry.filename.endswith("/") or (entry.filename.endswith("\\") and not entry.file_size):
            continue
        name = printable(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            yield Member(name, None, 0, link=True)
            continue
        if not _is_within(entry, total):
            yield Member(name, None, -1, "unreadable", DAMAGED)
            continue
        step = Step(
            "zip", entry.header_offset, entry.compress_size, min(entry.file_size, MAX_INT),
            entry.compress_type, entry.CRC,
        )  # fmt: skip
        status, reason = _verdict(name, step, bool(entry.flag_bits & _ENCRYPTED))
        if entry.header_offset in overlapping:
            status, reason = "refused", "reaches into another member, as zip bombs do"
        yield Member(name, step, step.size, status, reason)


def _is_within(entry: zipfile.ZipInfo, total: int) -> bool:
    return 0 <= entry.header_offset <= total - entry.compress_size


def _overlapping(stream: BinaryIO, entries: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Offsets of members whose bytes reach into another one."""
    offsets: set[int] = set()
    later: list[int] = []
    for entry in sorted(entries, key=lambda entry: entry.header_offset, reverse=True):
        header = _LOCAL_HEADER.size + len(entry.orig_filename)
        end = entry.header_offset + header + entry.compress_size
        while later and end > later[-1]:
            stream.seek(later[-1])
            if stream.read(len(_LOCAL_SIGNATURE)) == _LOCAL_SIGNATURE:
                offsets.add(entry.header_offset)
                break
            later.pop()
        later.append(entry.header_offset)
    return offsets


def _verdict(name: str, step: Step, encrypted: bool) -> tuple[str, str]:
    if encrypted:
        return "unreadable", "encrypted"
    if step.method not in (STORED, DEFLATED):
        return "unreadable", f"zip compression method {step.method} is not supported"
    if step.size > RATIO_COUNTS_FROM and step.size > MAX_RATIO * step.packed:
        return "refused", BOMB
    # An archive within it has limits of its own.
    too_large = "" if archive_kind(name) else check_size(max(step.size, step.packed))
    return "refused" if too_large else "", too_large


def _walk_local_headers(stream: BinaryIO, start: int, total: int) -> Iterator[Member]:
    """The complete members of a zip archive whose directory is lost, and of those behind it."""
    offset = start
    while True:
        stream.seek(offset)
        header = stream.read(_LOCAL_HEADER.size)
        if header.startswith(_DIRECTORY_SIGNATURES):
            offset = min(_directory_end(stream, offset), total)
            continue
        if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
            return
        _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = (
            _LOCAL_HEADER.unpack(header)
        )
        name = stream.read(name_length).decode("utf-8" if flags & 0x800 else "cp437", "replace")
        extra = stream.read(extra_length)
        data = following = offset + _LOCAL_HEADER.size + name_length + extra_length
        if flags & _SIZES_FOLLOW:
            if method != DEFLATED or flags & _ENCRYPTED:
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
        step = Step("zip", offset, packed, min(size, MAX_INT), method, crc)
        status, reason = _verdict(name, step, bool(flags & _ENCRYPTED))
        offset = following
        if not name.endswith("/"):
            yield Member(printable(name), step, step.size, status, reason)


def _directory_end(stream: BinaryIO, offset: int) -> int:
    """Where a record of the directory ends: sections 4.3.12 to 4.3.16."""
    stream.seek(offset)
    record = stream.read(46).ljust(46, b"\0")
    if record.startswith(_ENTRY_SIGNATURE):
        return offset + 46 + int(sum(struct.unpack_from("<3H", record, 28)))
    if record.startswith(_END_SIGNATURE):
        return offset + _END_RECORD.size + int(_END_RECORD.unpack_from(record)[-1])
    if record.startswith(_ZIP64_END_SIGNATURE):
        return offset + 12 + int(struct.unpack_from("<Q", record, 4)[0])
    return offset + 20


def _inflated_end(stream: BinaryIO, start: int) -> tuple[int, int, int] | None:
    """Packed size, size and CRC of the deflated data at an offset; None if they do not end."""
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
        if size > members.MAX_FILE_BYTES:
            return None
    return packed, size, crc


def _descriptor_length(stream: BinaryIO, start: int) -> int:
    """Length of the data descriptor after a member: with a signature or not, 32 or 64 bits."""
    stream.seek(start)
    data = stream.read(28)
    for length in (16, 24, 12, 20):
        if data[length : length + 4] in (_LOCAL_SIGNATURE, *_DIRECTORY_SIGNATURES):
            return length
    return 16


def _zip64_sizes(extra: bytes) -> tuple[int, int]:
    """Size and packed size in the extra field of a large member."""
    while len(extra) >= 4:
        field, length = struct.unpack_from("<2H", extra)
        if field == 1 and length >= 16:
            size, packed = struct.unpack_from("<2Q", extra, 4)
            return size, packed
        extra = extra[4 + length :]
    return MAX_INT, MAX_INT


def data_offset(stream: Any, step: Step) -> int:
    """The offset at which the bytes of a member begin, in an archive of any kind."""
    if step.kind != "zip":
        return step.offset
    stream.seek(step.offset)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL_SIGNATURE):
        raise DataError(DAMAGED)
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return int(step.offset + len(header) + name_length + extra_length)
