"""The reading stage: from the rows of parts to packed pixels."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray

from cxr import sources
from cxr.images.read import Image, read_images
from cxr.scoring.columns import UidColumns
from cxr.scoring.parts import PIXELS, pack

MAX_STREAMS: Final = 8
"""How often a compressed tar is read, each time for another range of its members."""

PREDICTED: Final = ("prob_pneumonia", "logit", "prediction")
"""The columns of the scores that are not known before a part is predicted."""


def pixels_schema(scores: pa.Schema) -> pa.Schema:
    """The columns of a part that was read.

    Those of the scores that are known, and as `PIXELS` the bytes of gray pixels, uint8 (image_px,
    image_px), null if there are none.
    """
    known = [field for field in scores if field.name not in PREDICTED]
    return pa.schema([*known, (PIXELS, pa.binary())])


def tasks(parts: Mapping[int, pa.Table]) -> list[pa.Table]:
    """The rows of each task: one part, or of a compressed tar a range of parts in one pass.

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
            singles.append(table)
    ranges = [
        pa.concat_tables([tables[i] for i in indices])
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


def num_cpus() -> int:
    """CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def read_parts(
    batch: pa.Table,
    image_px: int,
    any_body_part: bool,
    any_view: bool,
    schema: pa.Schema,
    uid_columns: UidColumns | None,
) -> Iterator[pa.Table]:
    """Fetch, decode and resize the images of one or more parts.

    Args:
        batch: rows of schema `sources.INVENTORY` with their `part`, in order.
        image_px: side of the square that the model takes.
        any_body_part: accept DICOM files of a body part other than the chest.
        any_view: accept DICOM files of lateral and oblique views.
        schema: of the folder's scores.
        uid_columns: of DICOM files, where asked.

    Yields:
        One row per part: {part, rows: packed, of `pixels_schema`}.
    """
    rows = batch.to_pylist()
    images = read_images(rows, image_px, any_body_part=any_body_part, any_view=any_view)
    pairs = zip(rows, images, strict=True)
    for part, pairs_of_part in itertools.groupby(pairs, key=lambda pair: pair[0]["part"]):
        read = [_pixels(row, image, uid_columns) for row, image in pairs_of_part]
        packed = pack(pa.Table.from_pylist(read, schema=pixels_schema(schema)))
        yield pa.table({"part": [part], "rows": pa.array([packed], pa.binary())})


def _pixels(row: Mapping[str, Any], image: Image, uid_columns: UidColumns | None) -> dict[str, Any]:
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
        PIXELS: None if image.pixels is None else image.pixels.tobytes(),
    }
