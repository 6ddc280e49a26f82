"""The reading stage: from the rows of parts to their pixels."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cxr import sources
from cxr.images.read import Image, read_images
from cxr.scoring.columns import UidColumns
from cxr.scoring.parts import REPORT, unpack

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_STREAMS: Final = 8
"""How often a compressed tar is read, each time for another range of its members."""

PREDICTED: Final = ("prob_pneumonia", "logit", "prediction", "unusual", "unusual_warning")
"""The columns of the scores that are not known before a part is predicted."""


@dataclass(frozen=True)
class ReadSettings:
    """How the images of a scores folder are read, and what is kept of them."""

    image_px: int
    """Side of the square that the model takes."""
    any_body_part: bool
    """Accept DICOM files of a body part other than the chest."""
    any_view: bool
    """Accept DICOM files of lateral and oblique views."""
    schema: pa.Schema
    """Of the folder's scores."""
    uid_columns: UidColumns | None
    """Of DICOM files, where asked."""
    keep_evidence: bool = False
    """Keep what a report on a DICOM image copies from its header."""

    @property
    def known(self) -> pa.Schema:
        """The columns of the scores that are known of a part that was read."""
        added = (*PREDICTED, REPORT)
        return pa.schema([field for field in self.schema if field.name not in added])


@dataclass(frozen=True)
class ReadPart:
    """A part whose images were read."""

    number: int
    known: pa.Table
    """The scores without the columns of `PREDICTED` and `REPORT`; images are those with the status
    `scored`."""
    pixels: NDArray[np.uint8]
    """Gray levels of the images, uint8 (N, image_px, image_px)."""
    evidence: Sequence["Dataset | None"] = ()
    """Of each image, for its report; None if it is not DICOM. Empty unless asked for."""


def tasks(parts: Mapping[int, pa.Table]) -> list[list[pa.Table]]:
    """The parts of each task: one, or of a compressed tar a range in one pass.

    Args:
        parts: rows of the manifest by part, in order.
    """
    streams: dict[str, list[pa.Table]] = {}
    singles = []
    for table in parts.values():
        last = table.slice(len(table) - 1).select(["file", "place"]).to_pylist()[0]
        if stream := stream_of(last):
            streams.setdefault(stream, []).append(table)
        else:
            singles.append([table])
    ranges = [
        [tables[i] for i in indices]
        for tables in streams.values()
        for indices in np.array_split(
            np.arange(len(tables)), min(MAX_STREAMS, num_cpus(), len(tables))
        )
    ]
    return ranges + singles  # The longest tasks first.


def stream_of(row: Mapping[str, Any]) -> str:
    """The archive of a row if it can be read from front to back only, else empty."""
    steps = [sources.Step(**step) for step in row["place"]]
    return str(row["file"]) if sources.is_sequential(steps) else ""


def is_seekable(kind: str) -> bool:
    """Whether the members of an archive of this kind are read in any order."""
    return not sources.is_sequential([sources.Step(kind, 0, 0, 0, 0, 0)])


def num_cpus() -> int:
    """CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def read_packed(settings: ReadSettings, *packed: bytes) -> Iterator[ReadPart]:
    """Fetch, decode and resize the images of one or more parts in one pass.

    Args:
        settings: how.
        packed: rows of schema `sources.INVENTORY` with their `part`, of each part, in order.
    """
    parts = [unpack(rows).to_pylist() for rows in packed]
    images = read_images(
        itertools.chain.from_iterable(parts),
        settings.image_px,
        any_body_part=settings.any_body_part,
        any_view=settings.any_view,
        keep_evidence=settings.keep_evidence,
    )
    for rows in parts:
        read = list(itertools.islice(images, len(rows)))
        known = [
            _known(row, image, settings.uid_columns) for row, image in zip(rows, read, strict=True)
        ]
        pixels = [image.pixels for image in read if image.pixels is not None]
        evidence = [image.evidence for image in read if image.pixels is not None]
        side = settings.image_px
        yield ReadPart(
            number=rows[0]["part"],
            known=pa.Table.from_pylist(known, schema=settings.known),
            pixels=np.stack(pixels) if pixels else np.empty((0, side, side), np.uint8),
            evidence=evidence if settings.keep_evidence else (),
        )


def _known(row: Mapping[str, Any], image: Image, uid_columns: UidColumns | None) -> dict[str, Any]:
    uids, warnings = uid_columns.values(image) if uid_columns else ({}, [])
    return {
        "uri": row["written"].strip() or row["uri"],
        "file": row["uri"],
        "sha256": image.sha256,
        "status": "scored" if image.status == "ok" else image.status,
        "reason": image.reason,
        "warnings": [*image.warnings, *warnings],
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "view": image.view,
        **uids,
        **(row.get("kept") or {}),
    }
