"""The result of decoding a file: its pixels, or one sentence without patient data."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 80_000_000
"""Larger images are refused by their header. A 14 x 17 inch film scanned at 50 um has 61
million pixels, the largest digital detectors (43 cm at 100 um) 18 million. It is
below the 89 million from which Pillow warns, so that Pillow's own limit is never reached first."""

MIN_SIDE_PX = 64
"""Smaller images are thumbnails or icons, not radiographs."""

MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten scans. A scan covers the whole image and can have a few bytes,
so a small file with thousands of them would keep a core busy for hours."""

Status = Literal["ok", "refused", "unreadable"]

View = Literal["", "frontal", "lateral", "oblique"]
"""A projection; empty where the file does not say."""


class Uids(NamedTuple):
    """The identifiers of a DICOM file; empty where the header has none, or no valid one."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """The pixels of a file, or why there are none."""

    pixels: NDArray[np.uint8] | None
    """Gray levels 0-255, (H, W), bone bright; `None` unless `status` is `"ok"`."""
    status: Status
    """`"refused"`: a sound file, but no radiograph of a chest. `"unreadable"`: no image."""
    reason: str
    """Empty if ok, otherwise one short sentence without patient data."""
    warnings: tuple[str, ...]
    """What was assumed, such as `"no window in the file"`; without patient data."""
    width: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    height: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    format: str
    """`"jpeg"`, `"png"`, `"tiff"`, `"bmp"`, `"dicom"`, or empty if unknown."""
    view: View
    """The projection that the header names; empty if none."""
    uids: Uids | None
    """Of a DICOM file whose header could be read, else `None`."""


class RejectedError(Exception):
    """The rejection of a file; caught by `decode`."""

    def __init__(self, status: Literal["refused", "unreadable"], reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


@dataclass
class Facts:
    """What is known of a file so far; reported with any result."""

    format: str
    width: int = 0
    height: int = 0
    view: View = ""
    uids: Uids | None = None
    warnings: list[str] = field(default_factory=list)

    def decoded(self, pixels: NDArray[np.uint8] | None, status: Status, reason: str) -> Decoded:
        warned = tuple(dict.fromkeys(self.warnings))
        size = self.width, self.height
        return Decoded(pixels, status, reason, warned, *size, self.format, self.view, self.uids)

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
