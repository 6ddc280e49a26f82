"""Decoded radiographs as cached shards of gray pixels."""

import functools
from collections import Counter as Counts
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, sources, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import PART_ROWS, Shards, key, load_shards, write_shards
from cxr.errors import DataError
from cxr.images.read import COLUMNS, read_all, without_numbers

SPARSE_READ_BYTES: Final = 2**18
"""Bytes requested at a time from an archive in a bucket: a task reads members that are far apart,
and most radiographs of the published set are smaller than this."""

PASS_BYTES: Final = 64 * 2**20
"""Pixels held by a task that reads a compressed tar, which is decompressed from its beginning for
each task."""

_KEPT: Final = ("row", "uri", "label", "patient", "subtype", "fold")


def decode_shards(listing: pa.Table, folds: NDArray[np.int64], image_px: int, cache: str) -> Shards:
    """Decode every radiograph of a listing once, or take what an earlier run decoded.

    Args:
        listing: of schema `sources.LISTING`.
        folds: the fold of each radiograph, (N,), 0 or above.
        image_px: side of the stored squares.
        cache: folder or bucket prefix; on a cluster one that all nodes reach.

    Returns:
        Shards of gray pixels, uint8 (image_px, image_px), and the images that were skipped.

    Raises:
        DataError: not one image could be decoded.
    """
    listing = listing.append_column("fold", pa.array(folds, pa.int64()))
    name = key("pixels", image_px, listing.to_pylist())
    folder = storage.join(storage.absolute(cache), "pixels", name)
    shards = load_shards(folder)
    if shards is None:
        rows = listing.append_column("row", pa.array(np.arange(len(listing))))
        cluster.check_reach([folder], listing["file"].to_pylist()[:1])
        with ClusterProgress(f"decoding to {image_px} px", len(listing)) as progress:
            decode = functools.partial(_decode, image_px=image_px, counter=progress.counter)
            shards = write_shards(
                rows.select([*_KEPT, *COLUMNS]), decode, folder, (image_px, image_px), "uint8",
                _pass_rows(image_px) if _is_sequential(listing) else PART_ROWS,
            )  # fmt: skip
    if not len(shards.table):
        reasons = "; ".join(list(count_reasons(shards.failed["reason"].to_pylist()))[:3])
        raise DataError(f"none of the {len(listing)} radiographs can be read: {reasons}")
    return shards


def count_reasons(reasons: list[str]) -> dict[str, int]:
    """How many images were skipped for each reason, the most frequent first."""
    return dict(Counts(map(without_numbers, reasons)).most_common())


def _pass_rows(image_px: int) -> int:
    return max(1, PASS_BYTES // image_px**2 // PART_ROWS) * PART_ROWS


def _is_sequential(listing: pa.Table) -> bool:
    return any(
        sources.is_sequential([sources.Step(**step) for step in steps])
        for steps in listing["place"].to_pylist()
    )


def _decode(batch: pa.Table, image_px: int, counter: "ActorHandle[Counter]") -> pa.Table:
    # rows in: {row, uri, label, patient, subtype, fold, file, place, status, reason, warnings};
    # rows out: {row, uri, label, patient, subtype, fold, sha256, error, x}
    ahead = storage.READ_AHEAD_BYTES if _is_sequential(batch) else SPARSE_READ_BYTES
    images = read_all(batch.select(COLUMNS).to_pylist(), image_px, read_ahead_bytes=ahead)
    counter.add.remote(len(images))
    pixels = [None if image.pixels is None else image.pixels.tobytes() for image in images]
    return (
        batch.select(_KEPT)
        .append_column("sha256", pa.array([image.sha256 for image in images], pa.string()))
        .append_column("error", pa.array([image.problem for image in images], pa.string()))
        .append_column("x", pa.array(pixels, pa.binary()))
    )
