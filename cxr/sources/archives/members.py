"""What an archive holds: names and offsets of its members, and which of them are refused."""

import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeGuard

MAX_FILE_BYTES: Final = 512 * 2**20
"""Larger files and members are refused unread: the largest image that is decoded has 160 MB at 16
bits."""

MAX_RATIO: Final = 200
RATIO_COUNTS_FROM: Final = 16 * 2**20
"""Members above this size that were compressed to less than 1 / `MAX_RATIO` are taken for a bomb. A
black image may shrink a thousandfold, but is refused as constant anyway."""

SUFFIXES: Final = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar.gz", ".tgz": "tar.gz",
    ".tar.bz2": "tar.bz2", ".tbz2": "tar.bz2",
    ".tar.xz": "tar.xz", ".txz": "tar.xz",
    ".tar.zst": "tar.zst", ".tzst": "tar.zst",
}  # fmt: skip
"""The kind of archive by the suffix of its name."""

_ANY_SUFFIX: Final = tuple(SUFFIXES)

SEPARATOR: Final = "!/"
"""Between an archive and the path in it, as in `archive.zip!/folder/image.dcm`."""

DAMAGE: Final = (
    OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip
"""What libraries raise for a damaged archive."""

DAMAGED: Final = "the archive is damaged or cut short here"
BOMB: Final = f"unpacks to more than {MAX_RATIO} times its size, as zip bombs do"

SEEKABLE: Final = ("zip", "tar")
"""Kinds of archives whose members can be read in any order."""

MAX_INT: Final = 2**63 - 1
"""The largest value of an int64 column."""

STORED: Final = 0
"""Compression method of a zip member that is not compressed."""

DEFLATED: Final = 8
"""Compression method of a zip member, the usual one."""


class Step(NamedTuple):
    """From an archive to the bytes of one of its members."""

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
    """One file of an archive, or why the archive cannot be listed to its end."""

    name: str
    """Path in the archive, printable; empty for the archive as a whole."""
    step: Step | None
    """The way to its bytes; None if it cannot be read."""
    size: int
    status: str = ""
    """`"refused"` or `"unreadable"` if that is known without reading it."""
    reason: str = ""
    link: bool = False
    """A link or device: it has no bytes of its own."""


def archive_kind(name: str) -> str:
    """The kind of archive by its name, a value of `SUFFIXES`; empty for any other file."""
    lower = name.lower()
    if not lower.endswith(_ANY_SUFFIX):
        return ""
    return next(kind for suffix, kind in SUFFIXES.items() if lower.endswith(suffix))


def check_size(size: int) -> str:
    """Why a file of this size in bytes is refused; empty if it is not."""
    return f"larger than {MAX_FILE_BYTES // 2**20} MiB" if size > MAX_FILE_BYTES else ""


def printable(name: str) -> str:
    """A name in which bytes that are not UTF-8 are written as `\\xff`."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text or "(no name)"


def cut_short(num_members: int) -> Member:
    """The last entry in the list of a damaged archive's members."""
    reason = f"the archive is cut short or damaged; {num_members:,} members were found"
    return Member("", None, 0, "unreadable", reason)


def is_storage_failure(error: BaseException) -> TypeGuard[OSError]:
    """Whether the storage failed, as opposed to damaged content. Damage may make a library seek
    to an offset that does not exist: EINVAL."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
