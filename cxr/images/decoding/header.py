"""What a DICOM header says of patient and examination, from the beginning of a file."""

import re
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from cxr.images.decoding import sniff
from cxr.images.decoding.anatomy import projections
from cxr.images.decoding.dicom import (
    DEFLATED,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    TRANSFER_SYNTAX,
    actual_syntax,
    read_meta,
)
from cxr.images.decoding.quiet import NO_LOGS, NO_WARNINGS
from cxr.images.decoding.tags import code, text, years
from cxr.images.decoding.views import MODALITIES

HEADER_BYTES: Final = 2**16
"""The beginning of a file in which the tags are, unless private elements before them are large."""

_TAGS: Final = tuple(
    Tag(keyword)
    for keyword in (
        "SpecificCharacterSet",
        "SOPInstanceUID",
        "StudyDate",
        "Modality",
        "PatientID",
        "PatientBirthDate",
        "PatientAge",
        "ViewPosition",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    )
)
"""In the order of files; the last is the last that is read."""

_VIEWS: Final = ("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO")
"""Defined terms of View Position, PS3.3 section C.8.1.2."""


@dataclass(frozen=True)
class Header:
    """What a header says; texts that may be anything are compared with fixed lists."""

    format: str
    """As `decode` names it; empty for what cannot be decoded. Other fields are those of DICOM."""
    complete: bool = True
    """Whether the bytes held all tags that are read."""
    patient_id: str = ""
    """In clear text: only its digest may be kept."""
    view: str = ""
    """A defined term of View Position, else the projection that it names, or `"other"`; empty if
    absent."""
    age_years: int | None = None
    """At the examination, completed years."""
    modality: str = ""
    """A known code, or `"other"`; empty if absent."""
    has_study_uid: bool = False
    has_series_uid: bool = False
    has_sop_uid: bool = False


def read_header(data: bytes) -> Header:
    """Read the header of a file, DICOM or not.

    Args:
        data: the file or its beginning.

    Returns:
        What it says; no exception for any bytes.
    """
    file_format = sniff(data)
    if file_format != "dicom":
        return Header(file_format)
    try:
        with NO_WARNINGS, NO_LOGS:
            return _read_dicom(data)
    except Exception:  # Damaged headers make pydicom raise anything.
        return Header("")


def _read_dicom(data: bytes) -> Header:
    meta, start = read_meta(data)
    syntax = meta.get(TRANSFER_SYNTAX, "")
    if syntax == DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], 4 * HEADER_BYTES)
        syntax, start = EXPLICIT_LITTLE, 0
    syntax = actual_syntax(data, start, syntax)
    stream = BytesIO(data)
    stream.seek(start)
    passed = False

    def stop(tag: Any, *_: object) -> bool:
        nonlocal passed
        passed = bool(tag > _TAGS[-1])
        return passed

    header: Any = read_dataset(
        stream, syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG, stop_when=stop,
        specific_tags=list(_TAGS),
    )  # fmt: skip
    return Header(
        format="dicom",
        complete=passed,
        patient_id=text(header, "PatientID").strip("\0 "),
        view=_view(header),
        age_years=_age_years(header),
        modality=_listed(code(header, "Modality"), MODALITIES),
        has_study_uid=bool(text(header, "StudyInstanceUID")),
        has_series_uid=bool(text(header, "SeriesInstanceUID")),
        has_sop_uid=bool(text(header, "SOPInstanceUID")),
    )


def _listed(value: str, choices: tuple[str, ...]) -> str:
    return value if not value or value in choices else "other"


def _view(header: Any) -> str:
    written = text(header, "ViewPosition")
    term = code(header, "ViewPosition")
    if term in _VIEWS:
        return term
    named = projections(written)
    return next((view for view in ("lateral", "oblique", "frontal") if view in named), "") or (
        "other" if written.strip() else ""
    )


def _age_years(header: Any) -> int | None:
    """By Patient Age, else by birth date and study date; None if neither is there."""
    if (given := years(header)) is not None:
        return given
    birth, study = code(header, "PatientBirthDate"), code(header, "StudyDate")
    if not re.fullmatch(r"\d{8}", birth) or not re.fullmatch(r"\d{8}", study):
        return None
    # Dates as numbers YYYYMMDD: a difference of 1,0000 is a year.
    age = (int(study) - int(birth)) // 10_000
    return age if 0 <= age <= 120 else None
