"""Values of single DICOM tags, whatever the file has there."""

import re
from typing import Any


def code(header: Any, keyword: str) -> str:
    """A code string in capitals, letters and digits only; empty if absent or damaged."""
    try:
        return re.sub(r"\W", "", str(header.get(keyword) or "")).upper()
    except Exception:
        return ""


def whole(header: Any, keyword: str) -> int:
    """A whole number, 0 if absent or damaged."""
    try:
        return int(header.get(keyword) or 0)
    except Exception:
        return 0


def number(header: Any, keyword: str) -> float | None:
    """The first of one or more numbers, `None` if absent, NaN if damaged."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return None
        return float(value if isinstance(value, str | float | int) else value[0])
    except Exception:
        return float("nan")
