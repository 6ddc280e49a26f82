"""Parts of the manifest and their scores: one Parquet file for each part.

A part is a run of rows of the manifest, known by its number. It is read, predicted and written as
one. Its file is written atomically and always under the same name, so a retry replaces it, and the
names alone say what is done.
"""

import posixpath
import re
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr import storage
from cxr.errors import CxrError, SettingsError, UnavailableError

FORMAT: Final = 5
"""Raised when the columns of the scores or of the manifest change, or the settings, or where they
are: a folder of another format is refused."""

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

REPORT: Final = "structured_report"
"""A column of the scores where Structured Reports are written: the path of the image's report,
relative to the scores folder; null if it has none."""

_SUFFIX: Final = ".parquet"

_NAME: Final = re.compile(r"part-(\d{9})\.parquet")

_UNFINISHED: Final = re.compile(r"part-\d{9}\.parquet\.\w+\.part")
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
    """Name of the file of a part's scores; in the order of names, parts are in order."""
    return f"part-{part:09}{_SUFFIX}"


def reports_folder(folder: str, part: int) -> str:
    """Path or URI of the folder of a part's Structured Reports.

    Args:
        folder: of the parts.
        part: its number.
    """
    name = part_name(part).removesuffix(_SUFFIX)
    return storage.join(posixpath.dirname(folder), "structured-reports", name)


def part_file(folder: str, part: int) -> str:
    """Path or URI of a part's scores."""
    return storage.join(folder, part_name(part))


def move_aside(uri: str, folder: str) -> None:
    """Move a damaged file to a folder, under a name that no other one has there."""
    unique = f"{posixpath.basename(uri)}.{uuid.uuid4().hex[:8]}"
    storage.move_file(uri, storage.join(folder, unique))


def find_missing(
    folder: str, listed: Mapping[int, pa.Table], schema: pa.Schema
) -> tuple[list[int], int]:
    """Find the parts that have no scores; nothing that was computed is deleted.

    Files that cannot be read, or that hold other rows than the manifest's, are moved to the folder
    `damaged` beside this one.

    Args:
        folder: of the parts.
        listed: the rows of each part of a run of numbers, in order.
        schema: of the folder's scores.

    Returns:
        The numbers of the parts, and how many damaged files were moved.

    Raises:
        SettingsError: a file has other columns.
    """
    if not listed:
        return [], 0
    there = set(part_numbers(folder, min(listed), max(listed)))
    done = read_parts(folder, {part: listed[part] for part in there & listed.keys()}, schema)
    damaged = sorted(there - done.keys())
    for part in damaged:
        move_aside(part_file(folder, part), damaged_folder(folder))
    return [part for part in listed if part not in done], len(damaged)


def part_numbers(folder: str, first: int, last: int) -> Iterator[int]:
    """The parts between two numbers that have a file."""
    after = storage.join(folder, part_name(first)[: -len(_SUFFIX)])
    for page in storage.list_pages(folder, after=after):
        for file in page:
            match = _NAME.fullmatch(posixpath.basename(file.uri))
            if match and int(match[1]) > last:
                return
            if match:
                yield int(match[1])


def remove_others(folder: str, is_part: NDArray[np.bool_]) -> int:
    """Delete what killed processes have left, and move parts that no manifest has to `damaged`.

    Args:
        folder: of the parts, none of which is being written.
        is_part: whether the manifest has a part of each number, (N,), from 0 on.

    Returns:
        How many were moved.
    """
    num_moved = 0
    for page in storage.list_pages(folder):
        for file in page:
            name = posixpath.basename(file.uri)
            match = _NAME.fullmatch(name)
            if _UNFINISHED.fullmatch(name):
                storage.delete_file(storage.join(folder, name))
            elif match and not is_part[int(match[1]) : int(match[1]) + 1].any():
                storage.delete(reports_folder(folder, int(match[1])))
                move_aside(storage.join(folder, name), damaged_folder(folder))
                num_moved += 1
    return num_moved


def damaged_folder(folder: str) -> str:
    """The folder of damaged files beside that of the parts."""
    return storage.join(posixpath.dirname(folder), "damaged")


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
