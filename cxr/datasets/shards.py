"""Arrays of one shape as Parquet files by fold in a cache, and streams of them.

Shards are Parquet files below `CACHE/<kind>/<key>/`, apart by fold, so that any choice of training
and validation folds reads only its own files. An `index.json`, written last, names them: a folder
without one is not used. The key covers the listing (uri, size, time, label, patient, fold) and all
settings that the stored numbers depend on.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import ray.data

from cxr import cluster, storage
from cxr.errors import StorageError

FORMAT: Final = 1
"""Raise it when decoding or the shards' layout changes, so that older caches are not read."""

READ_CPUS: Final = 0.05
"""CPUs that a task which only copies shards into memory claims, so that it runs beside workers
which claim the rest."""

NUM_READERS: Final = 2
"""Such tasks at once in one stream: each is a process that takes seconds to start."""

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
    return key(shards.folder.rsplit("/", 1)[1], *settings)


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of shards: {row, uri, label, patient, subtype, fold, sha256, x} or some of them."""
    system, path = storage.resolve(uri)
    dataset = pds.dataset(path, filesystem=system, partitioning=_BY_FOLD)
    names = columns or [name for name in dataset.schema.names if name != "error"]
    return dataset.to_table(columns=list(names))


def _read_parts(batch: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    # rows in: {path}; rows out: as read_part gives
    return pa.concat_tables(read_part(path, columns) for path in batch["path"].to_pylist())


def key(*settings: object) -> str:
    text = json.dumps([FORMAT, *settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
