"""Sources, decoding and transforms as streaming Ray Datasets, kept as shards in a cache.

Shards are Parquet files below `CACHE/<kind>/<key>/`, apart by fold, so that any choice of training
and validation folds reads only its own files. An `index.json`, written last, names them: a folder
without one is not used. The key covers the listing (uri, size, time, label, patient, fold) and all
settings that the stored numbers depend on.
"""

import hashlib
import json
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import ray.data
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, decoding, storage
from cxr.errors import DataError, StorageError, UnavailableError
from cxr.progress import Counter, Progress
from cxr.resizing import resize

FORMAT: Final = 1
"""Raise it when decoding or the shards' layout changes, so that older caches are not read."""

IMAGES_PER_BLOCK: Final = 64
"""Rows of one decoding task and one shard: on two cores 30 to 125 ran fastest, smaller blocks
spend their time on scheduling and larger ones starve the last core."""

READ_CPUS: Final = 0.05
"""CPUs that a task which only copies shards into memory claims, so that it runs beside workers
which claim the rest."""

NUM_READERS: Final = 2
"""Such tasks at once in one stream: each is a process that takes seconds to start."""

FETCH_AHEAD: Final = 8
"""Files fetched while one is decoded: 500 objects of 60 kB took 27 s one by one, and 5 s so."""

FAILED_FOLD: Final = -1
"""The fold of images that gave no pixels; their rows hold the reason instead."""


_BY_FOLD = pds.partitioning(pa.schema([("fold", pa.int64())]), flavor="hive")


@dataclass(frozen=True)
class Shards:
    """A data set as arrays of one shape, in Parquet files by fold."""

    folder: str
    """Where they are."""
    shape: tuple[int, ...]
    """Shape of one row's array."""
    dtype: str
    """numpy dtype of one row's array."""
    parts: Mapping[int, tuple[str, ...]]
    """Parquet files by fold: columns row (int64), label (int64), x (binary)."""
    table: pa.Table
    """A row an image, in order of `row`: row, uri, label, patient, subtype, fold, sha256."""
    failed: pa.Table
    """Images that gave no pixels: uri, reason."""

    def rows(self, folds: Sequence[int]) -> pa.Table:
        """The rows of `table` in the given folds."""
        return self.table.filter(pc.is_in(self.table["fold"], pa.array(folds, pa.int64())))

    def dataset(
        self, folds: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> "ray.data.Dataset":
        """Stream the given folds, or all; the given columns, or all."""
        chosen = self.parts if folds is None else folds
        paths = [pa.table({"path": [path]}) for fold in chosen for path in self.parts.get(fold, ())]
        # Not read_parquet, and not from_arrow: both run tasks that claim a whole CPU, for which
        # they would wait for ever where training workers, actors or trials hold them.
        found: ray.data.Dataset = ray.data.from_blocks(paths).map_batches(
            _read_parts,
            fn_args=(columns,),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=READ_CPUS,
            compute=ray.data.TaskPoolStrategy(size=min(NUM_READERS, len(paths))),
        )
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content of all images with their labels, whatever their order."""
        lines = sorted(
            f"{sha256} {label}"
            for sha256, label in zip(
                self.table["sha256"].to_pylist(), self.table["label"].to_pylist(), strict=True
            )
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def to_arrays(batch: pa.Table, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """The column `x` of a batch as an array (N, *shape), without a copy and not writable."""
    column = batch["x"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    length = int(np.prod(shape)) * np.dtype(dtype).itemsize
    offsets, values = column.buffers()[1:3]
    first = np.frombuffer(offsets, np.int32, count=1, offset=4 * column.offset)[0]
    flat = np.frombuffer(values, np.uint8, count=len(column) * length, offset=first)
    return flat.view(dtype).reshape(len(column), *shape)


def decode_shards(listing: pa.Table, folds: NDArray[np.int64], image_px: int, cache: str) -> Shards:
    """Decode every radiograph of a listing once, or take what an earlier run decoded.

    Args:
        listing: of schema `sources.LISTING`.
        folds: the fold of each radiograph, (N,), 0 or above.
        image_px: side of the stored squares.
        cache: folder or bucket prefix; on a cluster one that all nodes reach.

    Returns:
        Shards of grey pixels, uint8 (image_px, image_px), and the images that gave none.

    Raises:
        DataError: not one image could be decoded.
    """
    listing = listing.append_column("fold", pa.array(folds, pa.int64()))
    key = _key("pixels", image_px, listing.to_pylist())
    folder = storage.join(storage.absolute(cache), "pixels", key)
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
        with Progress(f"decoding to {image_px} px", len(listing)) as progress:
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


def write_shards(
    dataset: "ray.data.Dataset", folder: str, shape: tuple[int, ...], dtype: str
) -> Shards:
    """Run a dataset and keep its rows; the folder counts only once all are written.

    Args:
        dataset: rows {row, uri, label, patient, subtype, fold, sha256, error, x}, `x` the bytes of
            an array, null in `FAILED_FOLD`.
        folder: where; several writers of the same shards do not disturb each other.
        shape: of one row's array.
        dtype: of one row's array.
    """
    parts_folder = storage.join(folder, uuid.uuid4().hex[:12])
    system, path = storage.resolve(parts_folder)
    try:
        cluster.execute(
            lambda: dataset.write_parquet(path, filesystem=system, partition_cols=["fold"])
        )
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error}.") from None
    parts: dict[int, list[str]] = {}
    for file in storage.list_files(parts_folder):
        fold = int(file.uri.rsplit("/fold=", 1)[1].split("/", 1)[0])
        parts.setdefault(fold, []).append(file.uri)
    columns = ["row", "uri", "label", "patient", "subtype", "fold", "sha256", "error"]
    written = pds.dataset(path, filesystem=system, partitioning=_BY_FOLD)
    table = written.to_table(columns=columns).sort_by("row")
    bad = pc.equal(table["fold"], FAILED_FOLD)
    failed = table.filter(bad).select(["uri", "error"]).rename_columns(["uri", "reason"])
    good = table.filter(pc.invert(bad)).drop_columns(["error"])
    parts.pop(FAILED_FOLD, None)
    return finish_shards(folder, shape, dtype, parts, good, failed)


def finish_shards(
    folder: str,
    shape: tuple[int, ...],
    dtype: str,
    parts: Mapping[int, Sequence[str]],
    table: pa.Table,
    failed: pa.Table,
) -> Shards:
    """Write what makes files of a folder into shards; arguments as the fields of `Shards`."""
    storage.write_table(storage.join(folder, "rows.parquet"), table)
    storage.write_table(storage.join(folder, "failed.parquet"), failed)
    relative = {
        str(fold): [file[len(folder) + 1 :] for file in parts[fold]] for fold in sorted(parts)
    }
    index = {"shape": shape, "dtype": dtype, "parts": relative}
    storage.write_json(storage.join(folder, "index.json"), index)
    shards = load_shards(folder)
    assert shards is not None
    return shards


def load_shards(folder: str) -> Shards | None:
    """The shards of a folder; None where they were never finished."""
    index_uri = storage.join(folder, "index.json")
    if storage.kind(index_uri) != "file":
        return None
    index = storage.read_json(index_uri)
    return Shards(
        folder=folder,
        shape=tuple(index["shape"]),
        dtype=index["dtype"],
        parts={
            int(fold): tuple(storage.join(folder, file) for file in files)
            for fold, files in index["parts"].items()
        },
        table=storage.read_table(storage.join(folder, "rows.parquet")),
        failed=storage.read_table(storage.join(folder, "failed.parquet")),
    )


def shards_key(shards: Shards, *settings: object) -> str:
    """The cache key of what is computed from shards with settings."""
    return _key(shards.folder.rsplit("/", 1)[1], *settings)


def read_radiograph(uri: str, image_px: int) -> tuple[NDArray[np.uint8] | None, str, str]:
    """Read, decode and resize one radiograph: what training, evaluation and scoring all call.

    Returns:
        Grey pixels uint8 (image_px, image_px), or None with the reason; and the SHA-256 of the
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


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of shards: {row, uri, label, patient, subtype, fold, sha256, x} or some of them."""
    system, path = storage.resolve(uri)
    dataset = pds.dataset(path, filesystem=system, partitioning=_BY_FOLD)
    names = columns or [name for name in dataset.schema.names if name != "error"]
    return dataset.to_table(columns=list(names))


def _read_parts(batch: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    # rows in: {path}; rows out: as read_part gives
    return pa.concat_tables(read_part(path, columns) for path in batch["path"].to_pylist())


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


def _key(*settings: object) -> str:
    text = json.dumps([FORMAT, *settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
