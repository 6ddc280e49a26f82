"""What an archive holds: a member's name and place, and what is refused of it."""

import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeGuard

MAX_FILE_BYTES: Final = 512 * 2**20
"""Larger files and members are refused unread: 160 MB hold the largest picture that is decoded, at
16 bits."""

MAX_RATIO: Final = 200
RATIO_COUNTS_FROM: Final = 16 * 2**20
"""Members of more bytes than this that were packed to less than 1 / `MAX_RATIO` are taken for a
bomb. A black picture may shrink a thousandfold, but is refused as constant anyway."""

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

DAMAGE: Final = (
    OSError, EOFError, ValueError, struct.error, zlib.error, lzma.LZMAError, tarfile.TarError,
    zipfile.BadZipFile, NotImplementedError,
)  # fmt: skip
"""What libraries raise at an archive that is not as it should be."""

DAMAGED: Final = "the archive is damaged or cut short here"
BOMB: Final = f"unpacks to more than {MAX_RATIO} times its size, as zip bombs do"

SEEKABLE: Final = ("zip", "tar")
"""Archives whose members can be read in any order."""

MAX_INT: Final = 2**63 - 1
"""Of an int64 column."""

STORED: Final = 0
DEFLATED: Final = 8
"""Compression methods of a zip."""


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


def check_size(size: int) -> str:
    """Why a file of so many bytes is refused, empty where it is not."""
    return f"larger than {MAX_FILE_BYTES // 2**20} MiB" if size > MAX_FILE_BYTES else ""


def printable(name: str) -> str:
    """A name without what cannot be written as UTF-8; its bytes stand as `\\xff`."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text or "(no name)"


def cut_short(found: int) -> Member:
    """The last of the members of a damaged archive."""
    reason = f"the archive is cut short or damaged; {found:,} members were found"
    return Member("", None, 0, "unreadable", reason)


def is_storage_failure(error: BaseException) -> TypeGuard[OSError]:
    """Whether reading itself failed, and not what was read. What is damaged may make a library
    seek to where nothing is: EINVAL."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
