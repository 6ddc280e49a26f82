"""What the DICOM Structured Reports of a scores folder have in common.

They are written by `scoring.structured_reports`, which needs highdicom; this module does not.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from cxr.errors import SettingsError
from cxr.metrics import OperatingPoint


@dataclass(frozen=True)
class ReportSettings:
    """What the reports of a scores folder have in common."""

    folder: str
    """Of the parts."""
    model: str
    """The checkpoint's title."""
    fingerprint: str
    """Of the checkpoint."""
    operating_point: OperatingPoint
    begun: str
    """When the scores folder was begun, local time, `2026-01-31T23:59:59`: the time of all its
    reports, so that a repeated attempt writes the same bytes."""


def check_installed() -> None:
    """Refuse to write reports without the package that does it.

    Raises:
        SettingsError: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise SettingsError("dicom_sr: highdicom is not installed. pip install -e '.[dicom]'")
