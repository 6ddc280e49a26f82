"""Parts of the manifest and their scores: one Parquet file for each part.

A part is a run of rows of the manifest, known by its number. It is read, predicted and written as
one. Its file is written atomically and always under the same name, so a retry replaces it, and the
names alone say what is done.
"""

import posixpath
import re
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pyarrow as pa

from cxr import storage
from cxr.errors import CxrError, SettingsError, UnavailableError

FORMAT: Final = 4
"""Raised when the columns of the scores or of the manifest change, or the settings: a folder of
another format is refused."""

SCORES: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("prob_pneumonia", pa.float64()),
        ("logit", pa.float64()),
        ("prediction", pa.string()),
        ("unusual", pa.float64()),
        ("unusual_warning", pa.bool_()),
        ("warnings", pa.list_(pa.string())),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("format", pa.string()),
        ("view", pa.string()),
    ]
)
"""The columns of every folder's scores, one row per listed file; `columns.scores_schema` adds those
that are asked for. `uri` is the address as the manifest wrote it, `file` where it was read, and of
other inputs the same; `sha256` is of the file's bytes, empty if they could not be read; `status` is
`scored`, `refused` or `unreadable`, with a `reason` unless scored; `prob_pneumonia` is calibrated;
`prediction` is the class at the operating point; `unusual` is the percentile, among validation
images, of the distance to the training images, `unusual_warning` whether it is above 99, both null
if the checkpoint does not know its training images; `width` and `height` of the original in pixels;
`view` is `frontal`, `lateral`, `oblique`, or empty if the header does not say."""

_NAME: Final = re.compile(r"part-(\d{7,})\.parquet")

_UNFINISHED: Final = re.compile(r"part-\d{7,}\.parquet\.\w+\.part")
"""What a killed process leaves of a local file that it was writing."""

READERS: Final = 8
"""Files read concurrently."""


def pack(table: pa.Table) -> bytes:
    """A table as bytes, in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(packed: bytes) -> pa.Table:
    """The inverse of `pack`."""
    return pa.ipc.open_stream(packed).read_all()


def by_part(manifest: pa.Table) -> dict[int, pa.Table]:
    """The rows of each part of a manifest, whose column `part` never decreases."""
    numbers = np.asarray(manifest["part"])
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = [*starts[1:], len(manifest)]
    return {
        int(numbers[start]): manifest.slice(start, end - start)
        for start, end in zip(starts, ends, strict=True)
    }


def part_name(part: int) -> str:
    """Name of the file of a part's scores."""
    return f"part-{part:07}.parquet"


def part_file(folder: str, part: int) -> str:
    """Path or URI of a part's scores."""
    return storage.join(folder, part_name(part))


def open_parts(
    folder: str, listed: Mapping[int, pa.Table], schema: pa.Schema
) -> dict[int, pa.Table]:
    """The scores that earlier jobs have computed; nothing that was computed is deleted.

    Files that cannot be read, or that hold other rows than the manifest's, are moved to the folder
    `damaged` beside this one.

    Args:
        folder: of the parts.
        listed: the rows of each part.
        schema: of the folder's scores.

    Returns:
        The scores of each part that is complete.

    Raises:
        SettingsError: a file has other columns.
    """
    names = [file.uri.rsplit("/", 1)[1] for file in storage.list_files(folder)]
    numbers = {int(match[1]): name for name in names if (match := _NAME.fullmatch(name))}
    done = read_parts(folder, {part: listed[part] for part in numbers if part in listed}, schema)
    for name in names:
        if _UNFINISHED.fullmatch(name):
            storage.delete_file(storage.join(folder, name))
    damaged = [name for part, name in numbers.items() if part not in done]
    aside = storage.join(posixpath.dirname(folder), "damaged")
    for name in damaged:
        unique = f"{name}.{uuid.uuid4().hex[:8]}"
        storage.move_file(storage.join(folder, name), storage.join(aside, unique))
    if damaged:
        print(f"damaged: {len(damaged):,} parts, moved to {aside} and computed again", flush=True)
    return done


def count_rows(folder: str, listed: Mapping[int, pa.Table]) -> int:
    """Rows of the listed parts that have a file."""
    names = {file.uri.rsplit("/", 1)[1] for file in storage.list_files(folder)}
    return sum(len(rows) for part, rows in listed.items() if part_name(part) in names)


def read_parts(
    folder: str, listed: Mapping[int, pa.Table], schema: pa.Schema
) -> dict[int, pa.Table]:
    """The scores of those of the listed parts whose files are complete.

    Args:
        folder: of the parts.
        listed: the rows of each part.
        schema: of the folder's scores.

    Raises:
        SettingsError: a file has other columns.
    """
    files = [part_file(folder, part) for part in listed]
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda uri: _read(uri, schema), files)
        return {
            part: table
            for (part, rows), table in zip(listed.items(), tables, strict=True)
            if table is not None and table["file"].equals(rows["uri"])
        }


def _read(uri: str, schema: pa.Schema) -> pa.Table | None:
    try:
        table = storage.read_table(uri)
    except UnavailableError:
        raise
    except CxrError:
        return None
    if not table.schema.equals(schema):
        raise SettingsError(
            f"{uri}: does not have the columns of scores of format {FORMAT}. Choose another"
            " --output, or use the version of cxr that wrote it."
        )
    return table
