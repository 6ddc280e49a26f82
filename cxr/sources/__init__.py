"""Where radiographs come from: labeled sets to learn from, archives of any form to score.

A listing travels, the bytes of the radiographs do not: workers open each file where they decode it.
"""

from cxr.sources.archives.members import SEPARATOR, Step, archive_kind
from cxr.sources.archives.reader import Reader, is_sequential
from cxr.sources.inputs import INVENTORY, Found, list_archive, list_inputs
from cxr.sources.labeled import LISTING, column, list_radiographs
from cxr.sources.names import may_be_image, passed_over

__all__ = [
    "INVENTORY",
    "LISTING",
    "SEPARATOR",
    "Found",
    "Reader",
    "Step",
    "archive_kind",
    "column",
    "is_sequential",
    "list_archive",
    "list_inputs",
    "list_radiographs",
    "may_be_image",
    "passed_over",
]
