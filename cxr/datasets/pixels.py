"""Decoded radiographs as cached shards of gray pixels."""

import functools
import hashlib
from collections import Counter as Counts
from collections import defaultdict
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, sources, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import PART_ROWS, Shards, key, load_shards, write_shards
from cxr.errors import DataError
from cxr.images.read import COLUMNS, read_all, without_numbers
from cxr.sources import texts

SPARSE_READ_BYTES: Final = 2**18
"""Bytes requested at a time from an archive in a bucket: a task reads members that are far apart,
and most radiographs of the published set are smaller than this."""

PASS_BYTES: Final = 64 * 2**20
"""Pixels held by a task that reads a compressed tar, which is decompressed from its beginning for
each task."""

IN_ANOTHER_FOLD: Final = "left out: a duplicate of an image in another fold"

CONTRADICTING: Final = "left out: a duplicate of an image with another label"

_KEPT: Final = ("row", "uri", "label", "patient", "subtype", "fold")


def decode_shards(listing: pa.Table, folds: NDArray[np.int64], image_px: int, cache: str) -> Shards:
    """Decode a listing as `decode_listing` does, and refuse one without a usable image.

    Raises:
        DataError: not one image could be decoded.
    """
    shards = decode_listing(listing, folds, image_px, cache)
    if not len(shards.table):
        reasons = "; ".join(list(count_reasons(shards.failed["reason"].to_pylist()))[:3])
        raise DataError(f"none of the {len(listing)} radiographs can be read: {reasons}")
    return shards


def decode_listing(
    listing: pa.Table, folds: NDArray[np.int64], image_px: int, cache: str
) -> Shards:
    """Decode every radiograph of a listing once, or take what an earlier run decoded.

    Args:
        listing: of schema `sources.LISTING`.
        folds: the fold of each radiograph, (N,), 0 or above.
        image_px: side of the stored squares.
        cache: folder or bucket prefix; on a cluster one that all nodes reach.

    Returns:
        Shards of gray pixels, uint8 (image_px, image_px), and the images that were skipped: those
        that could not be decoded, and exact duplicates that would be on both sides of a split.
    """
    listing = listing.append_column("fold", pa.array(folds, pa.int64()))
    name = key("pixels", image_px, listing)
    folder = storage.join(storage.absolute(cache), "pixels", name)
    shards = load_shards(folder)
    if shards is None:
        rows = listing.append_column("row", pa.array(np.arange(len(listing))))
        rows = rows.select([*_KEPT, *COLUMNS])
        # Blocks of a few rows would each carry all texts of a dictionary.
        rows = rows.cast(pa.schema([_without_dictionary(column) for column in rows.schema]))
        cluster.check_reach([folder], listing["file"].slice(0, 1).to_pylist())
        with ClusterProgress(f"decoding to {image_px} px", len(listing)) as progress:
            decode = functools.partial(_decode, image_px=image_px, counter=progress.counter)
            shards = write_shards(
                rows, decode, folder, (image_px, image_px), "uint8",
                _pass_rows(image_px) if _is_sequential(listing) else PART_ROWS, find_duplicates,
            )  # fmt: skip
    return shards


def find_duplicates(table: pa.Table) -> dict[int, str]:
    """Images that are left out since others have the same pixels, and so perhaps the same bytes.

    Of duplicates in several folds, those in the fold of the first by uri stay. Of duplicates with
    several labels, none stays.

    Args:
        table: columns row, uri, label, fold and pixels_sha256.

    Returns:
        The reason for each row that is left out, by `row`.
    """
    counts = pc.value_counts(table["pixels_sha256"])
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    rows = table.filter(pc.is_in(table["pixels_sha256"], repeated))
    columns = ["row", "uri", "label", "fold", "pixels_sha256"]
    for row in rows.select(columns).sort_by("uri").to_pylist():
        groups[row["pixels_sha256"]].append(row)
    reasons: dict[int, str] = {}
    for group in groups.values():
        if len({row["label"] for row in group}) > 1:
            reasons |= {row["row"]: CONTRADICTING for row in group}
        else:
            others = [row for row in group if row["fold"] != group[0]["fold"]]
            reasons |= {row["row"]: IN_ANOTHER_FOLD for row in others}
    return reasons


def describe_duplicates(shards: Shards) -> str:
    """How many exact duplicates there are, and what became of them; empty if there are none."""
    reasons = Counts(shards.failed["reason"].to_pylist())
    num_kept = len(shards.table) - pc.count_distinct(shards.table["pixels_sha256"]).as_py()
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (num_kept, "used, in the fold of their first copy"),
            (reasons[IN_ANOTHER_FOLD], "left out, since the first copy is in another fold"),
            (reasons[CONTRADICTING], "left out, since copies have different labels"),
        )
        if count
    ]
    return f"Exact duplicates (equal pixels): {'; '.join(parts)}." if parts else ""


def count_reasons(reasons: list[str]) -> dict[str, int]:
    """How many images were skipped for each reason, the most frequent first."""
    return dict(Counts(map(without_numbers, reasons)).most_common())


def _pass_rows(image_px: int) -> int:
    return max(1, PASS_BYTES // image_px**2 // PART_ROWS) * PART_ROWS


def _is_sequential(listing: pa.Table) -> bool:
    in_archives = pc.greater(pc.list_value_length(listing["place"]), 0)
    places = listing["place"].filter(in_archives)
    return any(
        sources.is_sequential([sources.Step(**step) for step in steps])
        for rows in texts.batches(places)
        for (steps,) in rows
    )


def _without_dictionary(column: pa.Field) -> pa.Field:
    """The column with its texts in each row; a label is an int64, as in caches that are there."""
    if pa.types.is_dictionary(column.type):
        return pa.field(column.name, column.type.value_type)
    return pa.field(column.name, pa.int64()) if column.name == "label" else column


def _decode(batch: pa.Table, image_px: int, counter: "ActorHandle[Counter]") -> pa.Table:
    # rows in: {row, uri, label, patient, subtype, fold, file, place, status, reason, warnings};
    # rows out: {..., error, x}, as `Shards.table`
    ahead = storage.READ_AHEAD_BYTES if _is_sequential(batch) else SPARSE_READ_BYTES
    images = read_all(batch.select(COLUMNS).to_pylist(), image_px, read_ahead_bytes=ahead)
    counter.add.remote(len(images))
    pixels = [None if image.pixels is None else image.pixels.tobytes() for image in images]
    return (
        batch.select(_KEPT)
        .append_column("sha256", pa.array([image.sha256 for image in images], pa.string()))
        .append_column("pixels_sha256", pa.array(map(_checksum, pixels), pa.string()))
        .append_column("format", pa.array([image.format for image in images], pa.string()))
        .append_column("width", pa.array([image.width for image in images], pa.int64()))
        .append_column("height", pa.array([image.height for image in images], pa.int64()))
        .append_column("error", pa.array([image.problem for image in images], pa.string()))
        .append_column("x", pa.array(pixels, pa.binary()))
    )


def _checksum(pixels: bytes | None) -> str:
    return "" if pixels is None else hashlib.sha256(pixels).hexdigest()
