"""Arrays of one shape as Parquet files by fold in a cache, and streams of them.

Shards are Parquet files below `CACHE/pixels/<key>/` or `CACHE/features/<key>/`, separate for each
fold, so that any choice of training and validation folds reads only its own files. An `index.json`,
written last, names them: a folder without one is not used. The key covers the format, the listing
(uri, size, time, label, patient, fold) and all settings that the stored numbers depend on.
"""

import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from cxr import cluster, storage
from cxr.sources import texts

FORMAT: Final = 3
"""Raised when decoding, the listing or the layout of shards changes, so that older caches are not
read. 2: rows of archives; a part holds its own fold. 3: a checksum of the pixels; patients are
numbers; duplicates in other folds are left out; format and size of the originals."""

PART_ROWS: Final = 64
"""Rows of one file, and of one task that decodes: on two cores 30 to 125 ran fastest; smaller ones
spend their time on scheduling and larger ones leave the last core idle."""

READ_CPUS: Final = 0.05
"""CPUs claimed by a task that only copies shards into memory, so that it runs beside workers that
claim the rest."""

NUM_READERS: Final = 2
"""Concurrent tasks of that sort in one stream: a process takes seconds to start."""


@dataclass(frozen=True)
class Shards:
    """A data set as arrays of one shape, in Parquet files by fold."""

    folder: str
    """Their path or URI."""
    shape: tuple[int, ...]
    """Shape of one row's array."""
    dtype: str
    """numpy dtype of one row's array."""
    parts: Mapping[int, tuple[str, ...]]
    """Parquet files by fold: the columns of `table`, and `x`, the bytes of a row's array."""
    table: pa.Table
    """One row per image, in order of `row`: row, uri, label, patient, subtype, fold, sha256 of the
    file, pixels_sha256 of the decoded square, format, width and height of the original."""
    failed: pa.Table
    """Images that were skipped: the columns of `table`, as far as known, and reason."""

    def rows(self, folds: Sequence[int]) -> pa.Table:
        """The rows of `table` in the given folds."""
        return self.table.filter(pc.is_in(self.table["fold"], pa.array(folds, pa.int64())))

    def dataset(
        self,
        folds: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        rows: pa.ChunkedArray | None = None,
    ) -> "ray.data.Dataset":
        """Stream the given folds, columns (with `row`, if `rows` are given) and rows, or all."""
        chosen = self.parts if folds is None else folds
        paths = [pa.table({"path": [path]}) for fold in chosen for path in self.parts.get(fold, ())]
        # Not read_parquet or from_arrow: both run tasks that claim a whole CPU, and would wait for
        # it forever while training workers, actors or trials hold the CPUs.
        dataset: ray.data.Dataset = ray.data.from_blocks(paths).map_batches(
            _read_parts,
            fn_args=(columns, rows),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=READ_CPUS,
            compute=ray.data.TaskPoolStrategy(size=min(NUM_READERS, len(paths))),
        )
        return dataset

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content and label of all images, independent of their order."""
        labels = self.table["label"].cast(pa.string())
        lines = pc.binary_join_element_wise(self.table["sha256"], labels, " ")
        lines = lines.take(pc.sort_indices(lines))
        digest = hashlib.sha256()
        for number, rows in enumerate(texts.batches(lines)):
            text = "\n".join(line for (line,) in rows)
            digest.update(f"\n{text}".encode() if number else text.encode())
        return digest.hexdigest()


def write_shards(
    rows: pa.Table,
    compute: Callable[[pa.Table], pa.Table],
    folder: str,
    shape: tuple[int, ...],
    dtype: str,
    task_rows: int = PART_ROWS,
    leave_out: Callable[[pa.Table], Mapping[int, str]] | None = None,
) -> Shards:
    """Compute an array for every row on the cluster, and keep the arrays in a folder.

    The folder is used only once all are written; several writers of the same shards do not disturb
    each other.

    Args:
        rows: a row an image, with its `fold` and what `compute` needs.
        compute: rows in: some of `rows`; rows out: the same in the same order, with the columns of
            `Shards.table`, `error`, and `x`, the bytes of an array, null where there is an `error`.
        folder: where.
        shape: of one row's array.
        dtype: of one row's array.
        task_rows: rows of one task, a multiple of `PART_ROWS`.
        leave_out: of the `table` of all arrays, says by `row` which are not used, and why.

    Raises:
        CxrError: of a worker.
    """
    attempt = uuid.uuid4().hex[:12]
    tasks = []
    for fold in pc.unique(rows["fold"]).sort().to_pylist():
        own = rows.filter(pc.equal(rows["fold"], fold))
        own = own.append_column("part", pa.array(np.arange(len(own)) // PART_ROWS))
        tasks += [own.slice(start, task_rows) for start in range(0, len(own), task_rows)]
    dataset = ray.data.from_blocks(tasks).map_batches(
        _write_parts, fn_args=(compute, folder, attempt), batch_format="pyarrow", batch_size=None
    )
    done: list[pa.Table] = []
    cluster.execute(
        lambda: done.extend(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    )
    table = pa.concat_tables(done).sort_by("row")
    name_part = functools.partial(part_file, folder, attempt)
    if leave_out:
        reasons = leave_out(table.filter(pc.equal(table["error"], "")))
        table = _leave_out(table, reasons, name_part)
    is_failed = pc.not_equal(table["error"], "")
    failed = table.filter(is_failed).drop_columns(["part"])
    failed = failed.rename_columns({"error": "reason"})
    table = table.filter(pc.invert(is_failed))
    parts: dict[int, list[str]] = {}
    for fold, part in _parts(table):
        parts.setdefault(fold, []).append(name_part(fold, part))
    table = table.drop_columns(["error", "part"])
    return finish_shards(folder, shape, dtype, parts, table, failed)


def _parts(rows: pa.Table) -> list[tuple[int, int]]:
    """Folds of rows and numbers of the files in them, sorted."""
    counts = rows.group_by(["fold", "part"]).aggregate([])
    return sorted(zip(counts["fold"].to_pylist(), counts["part"].to_pylist(), strict=True))


def _leave_out(
    table: pa.Table, reasons: Mapping[int, str], name_part: Callable[[int, int], str]
) -> pa.Table:
    """Take rows out of the files that hold them, and give them the reason as their error."""
    if not reasons:
        return table
    chosen = pa.array(list(reasons), pa.int64())
    positions = pc.index_in(table["row"], chosen)
    for fold, part in _parts(table.filter(pc.is_valid(positions))):
        file = name_part(fold, part)
        held = read_part(file)
        kept = held.filter(pc.invert(pc.is_in(held["row"], chosen)))
        if len(kept):
            storage.write_table(file, kept)
        else:
            storage.delete_file(file)
    errors = pc.coalesce(
        pa.array(list(reasons.values()), pa.string()).take(positions), table["error"]
    )
    return table.set_column(table.column_names.index("error"), "error", errors)


def _write_parts(
    batch: pa.Table, compute: Callable[[pa.Table], pa.Table], folder: str, attempt: str
) -> pa.Table:
    # rows in: {..., fold, part}; rows out: {..., error, part}, as `Shards.table`
    computed = compute(batch)
    computed = computed.append_column("part", batch["part"])
    good = computed.filter(pc.equal(computed["error"], ""))
    for fold, part in _parts(good):
        rows = good.filter(pc.and_(pc.equal(good["fold"], fold), pc.equal(good["part"], part)))
        file = part_file(folder, attempt, fold, part)
        storage.write_table(file, rows.drop_columns(["error", "part"]))
    return computed.drop_columns(["x"])


def part_file(folder: str, attempt: str, fold: int, number: int) -> str:
    """Where a file of shards belongs; names sort by fold and number."""
    return storage.join(folder, attempt, f"fold={fold}", f"{number:06}.parquet")


def finish_shards(
    folder: str,
    shape: tuple[int, ...],
    dtype: str,
    parts: Mapping[int, Sequence[str]],
    table: pa.Table,
    failed: pa.Table,
) -> Shards:
    """Make shards of files below a folder; arguments as the fields of `Shards`."""
    storage.write_table(storage.join(folder, "rows.parquet"), table)
    storage.write_table(storage.join(folder, "failed.parquet"), failed)
    relative = {
        str(fold): [file[len(folder) + 1 :] for file in parts[fold]] for fold in sorted(parts)
    }
    index = {"shape": shape, "dtype": dtype, "parts": relative}
    # Last: shards that have an index are complete.
    storage.write_json(storage.join(folder, "index.json"), index)
    ordered = {fold: tuple(parts[fold]) for fold in sorted(parts)}
    return Shards(folder, shape, dtype, ordered, table, failed)


def load_shards(folder: str) -> Shards | None:
    """The shards of a folder; None if they were never finished."""
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


def take_first(shards: Shards, num_rows: int, cache: str) -> Shards:
    """The first rows of each fold, which are a random sample where the order is random.

    Args:
        shards: of a data set.
        num_rows: of each fold; all where it has fewer.
        cache: folder or bucket prefix for the copy.
    """
    folder = storage.join(storage.absolute(cache), "pixels", shards_key(shards, "first", num_rows))
    if taken := load_shards(folder):
        return taken
    attempt = uuid.uuid4().hex[:12]
    parts: dict[int, list[str]] = {}
    tables = []
    for fold, paths in shards.parts.items():
        num_left = num_rows
        for index, path in enumerate(paths):
            if num_left <= 0:
                break
            rows = read_part(path).slice(0, num_left)
            parts.setdefault(fold, []).append(part_file(folder, attempt, fold, index))
            storage.write_table(parts[fold][-1], rows)
            tables.append(rows.drop_columns(["x"]))
            num_left -= len(rows)
    table = pa.concat_tables(tables).sort_by("row").select(shards.table.column_names)
    return finish_shards(
        folder, shards.shape, shards.dtype, parts, table, shards.failed.slice(0, 0)
    )


def shards_key(shards: Shards, *settings: object) -> str:
    """The cache key of what is computed from shards with the given settings."""
    return key(shards.folder.rsplit("/", 1)[1], *settings)


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file of shards: the columns of `Shards.table` and `x`, or some of them."""
    return storage.read_table(uri, columns)


def _read_parts(
    batch: pa.Table, columns: Sequence[str] | None, rows: pa.ChunkedArray | None
) -> pa.Table:
    # rows in: {path}; rows out: as read_part gives
    table = pa.concat_tables(read_part(path, columns) for path in batch["path"].to_pylist())
    return table if rows is None else table.filter(pc.is_in(table["row"], rows))


def key(*settings: object) -> str:
    """A cache key of settings that can be written as JSON, and of `FORMAT`.

    A table stands for the list of its rows.
    """
    digest = hashlib.sha256()
    for number, setting in enumerate((FORMAT, *settings)):
        digest.update(b", " if number else b"[")
        if isinstance(setting, pa.Table):
            digest.update(b"[")
            for start in range(0, len(setting), texts.BATCH_ROWS):
                rows = setting.slice(start, texts.BATCH_ROWS).to_pylist()
                digest.update(b", " if start else b"")
                digest.update(_to_json(rows)[1:-1].encode())
            digest.update(b"]")
        else:
            digest.update(_to_json(setting).encode())
    digest.update(b"]")
    return digest.hexdigest()[:20]


def _to_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
