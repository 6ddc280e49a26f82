"""Where images come from: files, folders, buckets, archives, manifests, and labeled sets of them.

A listing travels, the bytes of the images do not: workers open each file where they decode it.
"""

from cxr.sources.archives import SEPARATOR, Reader, Step, archive_kind, is_sequential
from cxr.sources.digests import Digests, digest
from cxr.sources.inputs import (
    INVENTORY,
    NO_ENTRY,
    Entry,
    InputPages,
    Inputs,
    Page,
    archive_pages,
    in_words,
    join_entries,
    list_archive,
    list_inputs,
    member_address,
)
from cxr.sources.labeled import LISTING, LabeledSet, column, list_radiographs, list_set
from cxr.sources.names import passed_over
from cxr.sources.patients import PatientSource

__all__ = [
    "INVENTORY",
    "LISTING",
    "NO_ENTRY",
    "SEPARATOR",
    "Digests",
    "Entry",
    "InputPages",
    "Inputs",
    "LabeledSet",
    "Page",
    "PatientSource",
    "Reader",
    "Step",
    "archive_kind",
    "archive_pages",
    "column",
    "digest",
    "in_words",
    "is_sequential",
    "join_entries",
    "list_archive",
    "list_inputs",
    "list_radiographs",
    "list_set",
    "member_address",
    "passed_over",
]
