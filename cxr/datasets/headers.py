"""DICOM headers of a listing, read once on the cluster and cached without what names a patient."""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.actor import ActorHandle

from cxr import cluster, sources, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import key
from cxr.errors import CxrError, UnavailableError
from cxr.images.decoding.header import HEADER_BYTES, Header, read_header
from cxr.sources import LabeledSet, Reader, Step, texts
from cxr.sources.patients import digest
from cxr.sources.settings import SetSettings

HEADERS: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("format", pa.string()),
        ("patient_digest", pa.string()),
        ("view", pa.string()),
        ("age_years", pa.int64()),
        ("modality", pa.string()),
        ("has_study_uid", pa.bool_()),
        ("has_series_uid", pa.bool_()),
        ("has_sop_uid", pa.bool_()),
    ]
)
"""The columns of a table of headers, see `Header`; `row` is that of the listing, `patient_digest`
is empty without a PatientID."""

TASK_ROWS: Final = 256
"""Files of one task; of a compressed tar, one task reads all members."""

READ_AT_ONCE: Final = 16
"""Files requested at once by a task."""

_KEYED: Final = ("file", "place", "size", "modified_ns", "status", "reason")
"""The columns of a listing that are read here."""

_OPENED: Final = ("row", "file", "place", "status")


def list_labeled_set(data: str, settings: SetSettings, cache: str) -> LabeledSet:
    """List a set; where nothing else identifies patients, their DICOM headers are read.

    Args:
        data: as `sources.list_set` takes it.
        settings: how it is read.
        cache: folder or bucket prefix of the headers that were read before.

    Raises:
        DataError: as `sources.list_set` does.
    """
    return sources.list_set(data, settings, functools.partial(read_headers, cache=cache))


def read_headers(listing: pa.Table, cache: str) -> pa.Table:
    """Read the header of every file of a listing once, or take what an earlier call has read.

    Args:
        listing: with the columns of `sources.INVENTORY`.
        cache: folder or bucket prefix.

    Returns:
        A table of schema `HEADERS`, a row for each of the listing, in its order.

    Raises:
        UnavailableError: the object store cannot be reached.
    """
    name = key("headers", listing.select(_KEYED))
    uri = storage.join(storage.absolute(cache), "headers", f"{name}.parquet")
    if storage.kind(uri) == "file":
        return storage.read_table(uri)
    numbers = pa.array(np.arange(len(listing)))
    rows = listing.select(_KEYED).append_column("row", numbers).select(_OPENED)
    done: list[pa.Table] = []
    with ClusterProgress("reading DICOM headers", len(rows)) as progress:
        dataset = ray.data.from_blocks(_tasks(rows)).map_batches(
            _read, fn_args=(progress.counter,), batch_format="pyarrow", batch_size=None
        )
        cluster.execute(
            lambda: done.extend(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        )
    table = pa.concat_tables(done).sort_by("row")
    storage.write_table(uri, table)
    return table


def _tasks(rows: pa.Table) -> list[pa.Table]:
    """Rows in pieces, those of a compressed tar in one."""
    rows = _in_order(rows)
    files, _ = texts.encode(rows["file"])
    is_sequential = texts.compute(_is_sequential, rows["place"], dtype=pa.bool_())
    is_next = np.diff(files, prepend=-1) == 0
    joined = is_next & np.asarray(is_sequential, dtype=bool)
    starts = [0]
    for row in np.flatnonzero(~joined).tolist():
        if row - starts[-1] >= TASK_ROWS:
            starts.append(row)
    ends = [*starts[1:], len(rows)]
    return [rows.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _in_order(rows: pa.Table) -> pa.Table:
    """Rows by file, and those of a file as they come in it."""
    depth = pc.max(pc.list_value_length(rows["place"])).as_py()
    keys = rows.select(["file"])
    for level in range(depth):
        offset = functools.partial(_offset, level)
        keys = keys.append_column(
            str(level), texts.compute(offset, rows["place"], dtype=pa.int64())
        )
    return rows.take(pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]))


def _offset(level: int, place: list[dict[str, Any]]) -> int:
    return place[level]["offset"] if level < len(place) else -1


def _is_sequential(place: list[dict[str, Any]]) -> bool:
    return sources.is_sequential([Step(**step) for step in place])


def _steps(row: dict[str, Any]) -> list[Step]:
    return [Step(**step) for step in row["place"]]


def _read(batch: pa.Table, counter: "ActorHandle[Counter]") -> pa.Table:
    # rows in: {row, file, place, status}; rows out: of HEADERS
    rows = batch.to_pylist()
    with Reader(HEADER_BYTES) as reader:
        members = {row["row"]: _header(reader, row) for row in rows if row["place"]}
        files = [row for row in rows if not row["place"]]
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:
            headers = list(pool.map(functools.partial(_header, reader), files))
    by_row = members | dict(zip((row["row"] for row in files), headers, strict=True))
    counter.add.remote(len(rows))
    return pa.Table.from_pylist([_facts(row["row"], by_row[row["row"]]) for row in rows], HEADERS)


def _header(reader: Reader, row: dict[str, Any]) -> Header:
    """The header of a file; that of one that cannot be decoded if it cannot be read."""
    if row["status"]:
        return Header("")
    try:
        if row["place"]:
            header = read_header(reader.read(row["file"], _steps(row)))
        else:
            with storage.open_file(row["file"], HEADER_BYTES) as stream:
                start = stream.read(HEADER_BYTES)
                header = read_header(start)
                if not header.complete and len(start) == HEADER_BYTES:
                    header = read_header(start + stream.read())
        return header if header.complete else Header("")
    except UnavailableError:
        raise
    except (CxrError, OSError):
        return Header("")


def _facts(row: int, header: Header) -> dict[str, Any]:
    facts = {name: getattr(header, name) for name in HEADERS.names if hasattr(header, name)}
    text = digest(header.patient_id) if header.patient_id else ""
    return facts | {"row": row, "patient_digest": text}
