"""Decoded radiographs as cached shards of gray pixels."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import FAILED_FOLD, Shards, key, load_shards, write_shards
from cxr.errors import DataError, StorageError, UnavailableError
from cxr.images import decoding
from cxr.images.resize import resize

IMAGES_PER_BLOCK: Final = 64
"""Rows of one decoding task and one shard: on two cores 30 to 125 ran fastest, smaller blocks
spend their time on scheduling and larger ones starve the last core."""

FETCH_AHEAD: Final = 8
"""Files fetched while one is decoded: 500 objects of 60 kB took 27 s one by one, and 5 s so."""


def decode_shards(listing: pa.Table, folds: NDArray[np.int64], image_px: int, cache: str) -> Shards:
    """Decode every radiograph of a listing once, or take what an earlier run decoded.

    Args:
        listing: of schema `sources.LISTING`.
        folds: the fold of each radiograph, (N,), 0 or above.
        image_px: side of the stored squares.
        cache: folder or bucket prefix; on a cluster one that all nodes reach.

    Returns:
        Shards of gray pixels, uint8 (image_px, image_px), and the images that gave none.

    Raises:
        DataError: not one image could be decoded.
    """
    listing = listing.append_column("fold", pa.array(folds, pa.int64()))
    name = key("pixels", image_px, listing.to_pylist())
    folder = storage.join(storage.absolute(cache), "pixels", name)
    shards = load_shards(folder)
    if shards is None:
        rows = listing.select(["uri", "label", "patient", "subtype", "fold"]).append_column(
            "row", pa.array(np.arange(len(listing)))
        )
        blocks = [
            part.slice(start, IMAGES_PER_BLOCK)
            for fold in np.unique(folds)
            for part in [rows.filter(pc.equal(rows["fold"], int(fold)))]
            for start in range(0, len(part), IMAGES_PER_BLOCK)
        ]
        cluster.check_reach([folder], listing["uri"].to_pylist()[:1])
        with ClusterProgress(f"decoding to {image_px} px", len(listing)) as progress:
            dataset = ray.data.from_blocks(blocks).map_batches(
                _decode,
                batch_format="pyarrow",
                batch_size=None,
                fn_args=(image_px, progress.counter),
            )
            shards = write_shards(dataset, folder, (image_px, image_px), "uint8")
    if not len(shards.table):
        reasons = "; ".join(sorted(set(shards.failed["reason"].to_pylist()))[:3])
        raise DataError(f"none of the {len(listing)} radiographs can be read: {reasons}")
    return shards


def read_radiograph(uri: str, image_px: int) -> tuple[NDArray[np.uint8] | None, str, str]:
    """Read, decode and resize one radiograph: what training, evaluation and scoring all call.

    Returns:
        Gray pixels uint8 (image_px, image_px), or None with the reason; and the SHA-256 of the
        file's bytes, `""` where it could not be read.

    Raises:
        UnavailableError: the object store cannot be reached.
    """
    return _to_pixels(_fetch(uri), image_px)


def _fetch(uri: str) -> bytes | str:
    """A file's bytes, or the reason why there are none."""
    try:
        return storage.read_bytes(uri)
    except UnavailableError:
        raise
    except StorageError as error:
        return f"unreadable: {str(error).removeprefix(uri + ': ')}"


def _fetch_ahead(uris: Sequence[str]) -> Iterator[bytes | str]:
    """`_fetch` of each, some at once: in turn a bucket takes five times as long."""
    waiting: deque[Future[bytes | str]] = deque()
    with ThreadPoolExecutor(FETCH_AHEAD) as pool:
        for uri in uris:
            waiting.append(pool.submit(_fetch, uri))
            if len(waiting) > FETCH_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _to_pixels(data: bytes | str, image_px: int) -> tuple[NDArray[np.uint8] | None, str, str]:
    if isinstance(data, str):
        return None, data, ""
    sha256 = hashlib.sha256(data).hexdigest()
    decoded = decoding.decode(data, min_px=image_px)
    if decoded.pixels is None:
        return None, f"{decoded.status}: {decoded.reason}", sha256
    return resize(decoded.pixels, image_px), "", sha256


def _decode(batch: pa.Table, image_px: int, counter: "ActorHandle[Counter]") -> pa.Table:
    # rows in: {uri, label, patient, subtype, fold, row}; rows out: those, sha256, error, x
    read = [_to_pixels(data, image_px) for data in _fetch_ahead(batch["uri"].to_pylist())]
    folds = [
        FAILED_FOLD if error else fold
        for fold, (_, error, _) in zip(batch["fold"].to_pylist(), read, strict=True)
    ]
    batch = batch.set_column(batch.column_names.index("fold"), "fold", pa.array(folds, pa.int64()))
    batch = batch.append_column("sha256", pa.array([sha256 for _, _, sha256 in read]))
    batch = batch.append_column("error", pa.array([error for _, error, _ in read]))
    pixels = [None if x is None else x.tobytes() for x, _, _ in read]
    counter.add.remote(len(batch))
    return batch.append_column("x", pa.array(pixels, pa.binary()))
