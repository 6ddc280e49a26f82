"""Members of a tar, within limits that `tarfile` itself does not have."""

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, cast

from cxr.sources.archives.members import (
    DAMAGE,
    MAX_INT,
    STORED,
    Member,
    Step,
    archive_kind,
    check_size,
    cut_short,
    is_storage_failure,
    printable,
)
from cxr.sources.archives.streams import BombError

_MAX_HEADER_BYTES: Final = 16 * 2**20
"""Header of one tar member, with its long name and attributes; `tarfile` has no limit."""


def tar_members(stream: Any, kind: str) -> Iterator[Member]:
    """Every file of a tar, decompressed already, in its order."""
    num_members = 0
    try:
        headers = _Headers(stream)
        # Never mode "r|": compressed content is skipped here, within limits.
        with tarfile.open(fileobj=cast(BinaryIO, headers), mode="r:") as archive:
            for entry in archive:
                # Otherwise tarfile keeps all of them.
                archive.members = []  # type: ignore[attr-defined]
                headers.begin_member()
                if not 0 <= entry.size <= MAX_INT - entry.offset_data:
                    raise tarfile.ReadError("an impossible size")
                num_members += 1
                name = printable(entry.name)
                step = Step(kind, entry.offset_data, entry.size, entry.size, STORED, -1)
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
    except BombError as error:
        yield Member("", None, 0, "refused", str(error))
    except DAMAGE as error:
        if is_storage_failure(error):
            raise
        # Arrow distinguishes a truncated stream from no Zstandard stream by its text alone.
        is_tar = num_members or isinstance(error, EOFError) or "Truncated" in str(error)
        no_tar = Member("", None, 0, "unreadable", f"not a {kind} archive")
        yield cut_short(num_members) if is_tar else no_tar


class _Headers:
    """The stream that `tarfile` reads headers from.

    By itself, `tarfile` follows a negative size back and reads the same members forever
    (CVE-2025-8194), reads names of any length into memory, and takes a damaged header for the end.
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
        if not self._at <= offset <= MAX_INT:
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
        """Refuse a tar without its end mark, or one that another archive follows."""
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end")
        while block := self._stream.read(2**20):
            if b"ustar" in block:
                raise tarfile.ReadError("more than one archive")
