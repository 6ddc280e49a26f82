"""What is said of a file: its picture, or one sentence without patient data."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 80_000_000
"""Larger pictures are refused from their header. A 14 x 17 inch film scanned at 50 um has 61
million pixels, the largest digital detectors (43 cm at 100 um) 18 million. Below the 89 million
from which Pillow warns, so Pillow's own limit never speaks first."""

MIN_SIDE_PX = 64
"""Smaller pictures are thumbnails or icons, not radiographs."""

MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten scans. Each scan passes over the whole picture and can be a few
bytes long, so a small file with thousands of them would keep a core busy for hours."""

Status = Literal["ok", "refused", "unreadable"]


@dataclass(frozen=True, eq=False)
class Decoded:
    """One file's picture, or why there is none."""

    pixels: NDArray[np.uint8] | None
    """Gray levels 0-255, (H, W), bone bright; `None` unless `status` is `"ok"`."""
    status: Status
    """`"refused"`: a sound file, but not a radiograph of a chest. `"unreadable"`: no picture."""
    reason: str
    """Empty when ok, otherwise one short sentence without patient data."""
    warnings: tuple[str, ...]
    """What was assumed, such as `"no window in the file"`; without patient data."""
    width: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    height: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    format: str
    """`"jpeg"`, `"png"`, `"tiff"`, `"bmp"`, `"dicom"`, or empty if unknown."""


class RejectedError(Exception):
    """The verdict on a file, on its way up to `decode`."""

    def __init__(self, status: Literal["refused", "unreadable"], reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


@dataclass
class Facts:
    """What is known of a file so far; reported with any verdict."""

    format: str
    width: int = 0
    height: int = 0
    warnings: list[str] = field(default_factory=list)

    def decoded(self, pixels: NDArray[np.uint8] | None, status: Status, reason: str) -> Decoded:
        warned = tuple(dict.fromkeys(self.warnings))
        return Decoded(pixels, status, reason, warned, self.width, self.height, self.format)

    def set_size(self, width: int, height: int) -> None:
        """Record the size from the header, and refuse it before anything is allocated."""
        self.width, self.height = width, height
        if width * height > MAX_PIXELS:
            limit = MAX_PIXELS // 1_000_000
            raise RejectedError(
                "refused", f"{width} x {height} pixels; the limit is {limit} million"
            )
        if min(width, height) < MIN_SIDE_PX:
            raise RejectedError(
                "refused", f"{width} x {height} pixels; a side is below {MIN_SIDE_PX}"
            )
