"""Values of single DICOM tags, whatever the file has there."""

import re
from contextlib import suppress
from typing import Any

from pydicom.charset import convert_encodings

# Of a text, which the standard limits to 64, and of a sequence: a damaged header may hold millions.
_MAX_LENGTH = 256
_MAX_ITEMS = 8

_DAYS_PER_UNIT = {"Y": 365.25, "M": 30.44, "W": 7, "D": 1}


def code(header: Any, keyword: str) -> str:
    """A code string in capitals, letters and digits only; empty if absent or damaged."""
    try:
        return re.sub(r"\W", "", str(header.get(keyword) or "")).upper()
    except Exception:
        return ""


def text(header: Any, keyword: str) -> str:
    """The beginning of a text of any language; empty if absent or damaged.

    The standard reserves code strings for ASCII, so pydicom reads them as Latin-1. Devices write
    them, and texts in headers without a Specific Character Set, in whatever they use otherwise.
    """
    try:
        value = str(header.get(keyword) or "")[:_MAX_LENGTH]
    except Exception:
        return ""
    if value.isascii() or any(ord(letter) > 255 for letter in value):
        return value
    written = value.encode("latin-1")
    declared = []
    with suppress(Exception):
        declared = convert_encodings(header.get("SpecificCharacterSet"))
    for encoding in ("utf-8", *declared, "latin-1"):
        with suppress(UnicodeDecodeError, LookupError):
            return written.decode(encoding)
    return value


def identifier(header: Any, keyword: str) -> str:
    """A unique identifier; empty if absent, damaged or not of digits and dots.

    Source: DICOM PS3.5 section 9.1: up to 64 of them. Other text may be anything, a name too.
    """
    try:
        value = str(header.get(keyword) or "").strip("\0 ")
    except Exception:
        return ""
    return value if re.fullmatch(r"[0-9.]{1,64}", value) else ""


def items(header: Any, keyword: str) -> list[Any]:
    """The first items of a sequence; none if absent or damaged."""
    try:
        return list(header.get(keyword) or [])[:_MAX_ITEMS]
    except Exception:
        return []


def whole(header: Any, keyword: str) -> int:
    """A whole number, 0 if absent or damaged."""
    try:
        return int(header.get(keyword) or 0)
    except Exception:
        return 0


def years(header: Any) -> int | None:
    """Patient Age in whole years; None if absent or damaged.

    Source: age strings, DICOM PS3.5 section 6.2: three digits and the unit.
    """
    match = re.fullmatch(r"(\d{1,3})([YMWD])", code(header, "PatientAge"))
    if not match:
        return None
    return int(int(match[1]) * _DAYS_PER_UNIT[match[2]] / _DAYS_PER_UNIT["Y"])


def numbers(header: Any, keyword: str) -> list[float]:
    """All numbers of a tag; none if absent, one NaN if damaged."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return []
        return [float(value)] if isinstance(value, str | float | int) else [float(v) for v in value]
    except Exception:
        return [float("nan")]


def number(header: Any, keyword: str) -> float | None:
    """The first of one or more numbers, `None` if absent, NaN if damaged."""
    return next(iter(numbers(header, keyword)), None)
