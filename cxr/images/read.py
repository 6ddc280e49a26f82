"""The one way to an image: fetch a listed file, decode it, resize it.

Training, evaluation, scoring and the download's check all read images with these functions. A file
that cannot be used is a value with its reason, never an exception.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cxr import storage
from cxr.errors import CxrError, UnavailableError
from cxr.images.decoding import Status, Uids, View, decode
from cxr.images.resize import resize
from cxr.sources import Reader, Step

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FETCH_AHEAD: Final = 8
"""Files fetched while one is decoded: 500 objects of 60 kB took 27 s one by one, and 5 s so."""

COLUMNS: Final = ("file", "place", "status", "reason", "warnings")
"""The columns of `sources.INVENTORY` that a row needs to be read."""

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Image:
    """A listed file as an image, or why it is none."""

    status: Status
    """`"ok"`; `"refused"`: a sound file, but no radiograph of a chest; `"unreadable"`."""
    reason: str
    """Empty if ok, otherwise one short sentence without patient data."""
    warnings: tuple[str, ...]
    """What was assumed, such as `"no window in the file"`; without patient data."""
    sha256: str
    """Of the file's bytes; empty if they could not be read."""
    width: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    height: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    format: str
    """`"jpeg"`, `"png"`, `"tiff"`, `"bmp"`, `"dicom"`, or empty if unknown."""
    view: View
    """The projection that a DICOM header names; empty if none."""
    uids: Uids | None
    """Of a DICOM file whose header could be read, else None."""
    pixels: NDArray[np.uint8] | None
    """Gray levels 0-255, (image_px, image_px), bone bright; None unless ok."""
    evidence: "Dataset | None" = None
    """What a report on a DICOM image copies from its header; None unless asked for, and ok."""

    @property
    def problem(self) -> str:
        """Status and reason in one; empty if ok."""
        return f"{self.status}: {self.reason}" if self.reason else ""


def read_image(
    row: Row, image_px: int, *, any_body_part: bool = False, any_view: bool = False
) -> Image:
    """Fetch, decode and resize one listed file.

    Args:
        row: of a listing, with the values of `COLUMNS`.
        image_px: side of the square.
        any_body_part: accept DICOM files of a body part other than the chest.
        any_view: accept DICOM files of lateral and oblique views.

    Raises:
        UnavailableError: the object store cannot be reached; the file may be read later.
    """
    with Reader() as reader:
        return _to_image(row, _fetch(reader, row), image_px, any_body_part, any_view)


def read_images(
    rows: Iterable[Row],
    image_px: int,
    *,
    any_body_part: bool = False,
    any_view: bool = False,
    keep_evidence: bool = False,
    read_ahead_bytes: int = storage.READ_AHEAD_BYTES,
) -> Iterator[Image]:
    """Read listed files in their order, fetching the next ones while one is decoded.

    Args:
        rows: of a listing, with the values of `COLUMNS`; members of an archive best in its order.
        image_px: side of the square.
        any_body_part: accept DICOM files of a body part other than the chest.
        any_view: accept DICOM files of lateral and oblique views.
        keep_evidence: keep what a report on a DICOM image copies from its header, the patient, too.
        read_ahead_bytes: as `Reader` takes them.

    Raises:
        UnavailableError: the object store cannot be reached; the files may be read later.
    """
    waiting: deque[tuple[Row, Future[bytes | str] | None]] = deque()

    def take() -> Image:
        row, fetched = waiting.popleft()
        data = str(row["reason"]) if fetched is None else fetched.result()
        return _to_image(row, data, image_px, any_body_part, any_view, keep_evidence)

    # Archive members in turn, by one thread, which keeps the archive open; other files at once.
    with (
        Reader(read_ahead_bytes) as reader,
        ThreadPoolExecutor(1) as in_turn,
        ThreadPoolExecutor(FETCH_AHEAD) as at_once,
    ):
        for row in rows:
            pool = in_turn if row["place"] else at_once
            waiting.append((row, None if row["status"] else pool.submit(_fetch, reader, row)))
            if len(waiting) > FETCH_AHEAD:
                yield take()
        while waiting:
            yield take()


def read_all(
    rows: Sequence[Row],
    image_px: int,
    *,
    any_body_part: bool = False,
    any_view: bool = False,
    read_ahead_bytes: int = storage.READ_AHEAD_BYTES,
) -> list[Image]:
    """Read listed files of any order: archive members are read in the order of their archive.

    Args:
        rows: of a listing, with the values of `COLUMNS`.
        image_px: side of the square.
        any_body_part: accept DICOM files of a body part other than the chest.
        any_view: accept DICOM files of lateral and oblique views.
        read_ahead_bytes: as `Reader` takes them.

    Returns:
        An image for each row, in the order of the rows.

    Raises:
        UnavailableError: the object store cannot be reached; the files may be read later.
    """
    order = sorted(range(len(rows)), key=lambda index: _position(rows[index]))
    images = read_images(
        [rows[index] for index in order],
        image_px,
        any_body_part=any_body_part,
        any_view=any_view,
        read_ahead_bytes=read_ahead_bytes,
    )
    by_index = dict(zip(order, images, strict=True))
    return [by_index[index] for index in range(len(rows))]


def _position(row: Row) -> tuple[str, list[int]]:
    """A key that sorts members as their archive holds them, after all other files."""
    steps = row["place"]
    return (row["file"], [step["offset"] for step in steps]) if steps else ("", [])


def without_numbers(reason: str) -> str:
    """A reason or warning with its numbers replaced by N, so that like cases count together."""
    return re.sub(r"\d[\d,]*", "N", reason)


def _fetch(reader: Reader, row: Row) -> bytes | str:
    """The bytes of a listed file, or the reason why there are none."""
    if row["status"]:
        return str(row["reason"])
    try:
        return reader.read(row["file"], [Step(**step) for step in row["place"]])
    except UnavailableError:
        raise
    except CxrError as error:
        return str(error).removeprefix(f"{row['file']}: ").rstrip(".")
    except Exception as error:
        return f"cannot be read ({type(error).__name__})"


def _to_image(
    row: Row,
    data: bytes | str,
    image_px: int,
    any_body_part: bool,
    any_view: bool,
    keep_evidence: bool = False,
) -> Image:
    warnings = tuple(row["warnings"])
    if isinstance(data, str):
        status: Status = row["status"] or "unreadable"
        return Image(status, data, warnings, "", 0, 0, "", "", None, None)
    decoded = decode(data, min_px=image_px, any_body_part=any_body_part, any_view=any_view)
    evidence = None
    if keep_evidence and decoded.status == "ok" and decoded.format == "dicom":
        from cxr.images.decoding.evidence import read_evidence

        evidence = read_evidence(data)
    return Image(
        decoded.status,
        decoded.reason,
        warnings + decoded.warnings,
        hashlib.sha256(data).hexdigest(),
        decoded.width,
        decoded.height,
        decoded.format,
        decoded.view,
        decoded.uids,
        None if decoded.pixels is None else resize(decoded.pixels, image_px),
        evidence,
    )
