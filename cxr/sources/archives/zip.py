"""Members of a zip: by its directory, or by their local headers if that is lost."""

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

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

_ENCRYPTED: Final = 0x1
_SIZES_FOLLOW: Final = 0x8
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, packed, size, lengths of name and extra:
section 4.3.7 of the ZIP File Format Specification."""
_ZIP64_SIZE: Final = 2**32 - 1
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_DIRECTORY_SIGNATURES: Final = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x08")


def zip_members(stream: BinaryIO) -> Iterator[Member]:
    """Every file of a zip, in the order of its directory."""
    total = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(len(_LOCAL_SIGNATURE))
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except DAMAGE as error:
        if is_storage_failure(error):
            raise
        if start != _LOCAL_SIGNATURE:
            yield Member("", None, 0, "unreadable", "not a zip archive")
            return
        num_members = 0
        for member in _walk_local_headers(stream, total):
            num_members += 1
            yield member
        yield cut_short(num_members)
        return
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


def _walk_local_headers(stream: BinaryIO, total: int) -> Iterator[Member]:
    """The complete members of a zip archive whose directory is lost."""
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
