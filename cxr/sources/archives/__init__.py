"""Members of zip and tar archives, read where they are; nothing is unpacked to disk."""

from cxr.sources.archives.members import (
    SEPARATOR,
    Member,
    Step,
    archive_kind,
    check_size,
    printable,
)
from cxr.sources.archives.reader import Reader, is_sequential

__all__ = [
    "SEPARATOR",
    "Member",
    "Reader",
    "Step",
    "archive_kind",
    "check_size",
    "is_sequential",
    "printable",
]
