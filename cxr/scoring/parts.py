"""The listed files in parts: read here, packed as single rows, written as files of their own.

A part is a run of rows of the listing, named by its number in file and pipeline, and it travels as
one row of a Ray Dataset: however Ray Data cuts and joins blocks, a part stays whole. Its file is
written whole or not at all and always under the same name, so a repeated attempt replaces it, and
the names alone say what is done. Nothing here imports PyTorch: the processes that read and write
start quickly.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
from ray.data import Datasink

from cxr import storage
from cxr.errors import CxrError, UnavailableError
from cxr.images import decoding
from cxr.images.resize import resize
from cxr.sources import Reader, Step, list_archive

READ_AHEAD: Final = 8
"""Files that are fetched while one is decoded: what a bucket's answers take, decoding does not."""

SCORES: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("prob_pneumonia", pa.float64()),
        ("logit", pa.float64()),
        ("prediction", pa.string()),
        ("warnings", pa.list_(pa.string())),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("format", pa.string()),
    ]
)
"""The columns of the scores, a row a listed file. `sha256` is of the file's bytes, empty where they
could not be read; `status` is `scored`, `refused` or `unreadable`, with a `reason` unless scored;
`prob_pneumonia` is calibrated; `prediction` is the class at the stored operating point; width and
height in pixels, of the original."""

_NAME: Final = re.compile(r"part-(\d{7,})\.parquet")


def pack(table: pa.Table) -> bytes:
    """A table as bytes, Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(packed: bytes) -> pa.Table:
    """What `pack` packed."""
    return pa.ipc.open_stream(packed).read_all()


def list_archives(batch: pa.Table) -> pa.Table:
    """List the members of archives; a stage of a pipeline."""
    # rows in: {file, wanted}; rows out: {file, rows: packed INVENTORY, skipped: JSON}
    listed = [list_archive(row["file"], row["wanted"]) for row in batch.to_pylist()]
    return pa.table(
        {
            "file": batch["file"],
            "rows": pa.array([pack(table) for table, _ in listed], pa.binary()),
            "skipped": [json.dumps(skipped) for _, skipped in listed],
        }
    )


def read_parts(batch: pa.Table, image_px: int, any_body_part: bool) -> Iterator[pa.Table]:
    """Read, decode and resize the files of one or more parts of a listing.

    Args:
        batch: rows of schema `sources.INVENTORY` with their `part`, in order.
        image_px: side of the square that the model takes.
        any_body_part: accept DICOM files of another body part than the chest.

    Yields:
        One row a part: {part, rows}, `rows` a packed table {uri, sha256, status, reason, warnings,
        width, height, format, x}, `x` gray pixels uint8 (image_px, image_px), null if none.
    """
    part, rows = None, []
    for row in read_rows(batch.to_pylist(), image_px, any_body_part):
        if part is not None and row["part"] != part:
            yield _part(part, rows)
            rows = []
        part = row.pop("part")
        rows.append(row)
    if part is not None:
        yield _part(part, rows)


def _part(part: int, rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        [SCORES.field(name) for name in rows[0] if name != "x"] + [("x", pa.binary())]
    )
    packed = pack(pa.Table.from_pylist(rows, schema=schema))
    return pa.table({"part": [part], "rows": pa.array([packed], pa.binary())})


def read_rows(
    listed: Iterable[dict[str, Any]], image_px: int, any_body_part: bool
) -> Iterator[dict[str, Any]]:
    """Read, decode and resize listed files one after another, fetching some ahead."""
    waiting: deque[tuple[dict[str, Any], Future[bytes | str]]] = deque()
    # Members in their archive's order, by one thread; files of their own, by several.
    with (
        Reader() as reader,
        ThreadPoolExecutor(1) as in_turn,
        ThreadPoolExecutor(READ_AHEAD) as at_once,
    ):
        for row in listed:
            pool = in_turn if row["place"] else at_once
            waiting.append((row, pool.submit(_fetch, reader, row)))
            if len(waiting) > READ_AHEAD:
                yield _decoded(*waiting.popleft(), image_px, any_body_part)
        while waiting:
            yield _decoded(*waiting.popleft(), image_px, any_body_part)


def _fetch(reader: Reader, row: dict[str, Any]) -> bytes | str:
    """The bytes of a listed file, or the reason why there are none.

    Raises:
        UnavailableError: the object store cannot be reached; a later job may read the file.
    """
    if row["status"]:
        return str(row["reason"])
    try:
        return reader.read(row["file"], [Step(**step) for step in row["place"]])
    except UnavailableError:
        raise
    except CxrError as error:
        return str(error).removeprefix(f"{row['file']}: ").rstrip(".")
    except Exception as error:
        return f"cannot be read ({type(error).__name__})"


def _decoded(
    row: dict[str, Any], fetched: "Future[bytes | str]", image_px: int, any_body_part: bool
) -> dict[str, Any]:
    facts = {"part": row.get("part"), "uri": row["uri"]}
    data = fetched.result()
    if isinstance(data, str):
        return facts | {
            "sha256": "", "status": row["status"] or "unreadable", "reason": data,
            "warnings": row["warnings"], "width": 0, "height": 0, "format": "", "x": None,
        }  # fmt: skip
    decoded = decoding.decode(data, min_px=image_px, any_body_part=any_body_part)
    pixels = None if decoded.pixels is None else resize(decoded.pixels, image_px).tobytes()
    return facts | {
        "sha256": hashlib.sha256(data).hexdigest(),
        "status": "scored" if decoded.status == "ok" else decoded.status,
        "reason": decoded.reason,
        "warnings": [*row["warnings"], *decoded.warnings],
        "width": decoded.width,
        "height": decoded.height,
        "format": decoded.format,
        "x": pixels,
    }  # fmt: skip


def pixels(row: dict[str, Any], image_px: int) -> Any:
    """The pixels of a row that `read_rows` gave, uint8 (image_px, image_px)."""
    return np.frombuffer(row["x"], np.uint8).reshape(image_px, image_px)


class PartSink(Datasink[None]):
    """Writes each part of a stream as a Parquet file of its own: {part, rows: packed SCORES}."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:  # noqa: ARG002
        for block in blocks:
            for part, rows in zip(
                block["part"].to_pylist(), block["rows"].to_pylist(), strict=True
            ):
                storage.write_table(part_file(self.folder, part), unpack(rows))


def part_file(folder: str, part: int) -> str:
    """Where a part's scores belong."""
    return storage.join(folder, f"part-{part:07}.parquet")


def by_part(listed: pa.Table) -> dict[int, pa.Table]:
    """The rows of each part of a listing, which has a column `part` in rising order."""
    numbers = np.asarray(listed["part"])
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = [*starts[1:], len(listed)]
    return {
        int(numbers[start]): listed.slice(start, end - start)
        for start, end in zip(starts, ends, strict=True)
    }


def finished_parts(folder: str, listed: Mapping[int, pa.Table]) -> dict[int, pa.Table]:
    """The scores of the parts that are there and whole; what else is called a part is deleted.

    Args:
        folder: of the parts.
        listed: the rows of each part; its scores have to be theirs.
    """
    done = {}
    found = [file.uri for file in storage.list_files(folder)]
    files = [uri for uri in found if uri.rsplit("/", 1)[1].startswith("part-")]
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for uri, table in zip(files, pool.map(_read, files), strict=True):
            match = _NAME.fullmatch(uri.rsplit("/", 1)[1])
            part = int(match[1]) if match else -1
            if table is not None and part in listed and table["uri"].equals(listed[part]["uri"]):
                done[part] = table
            else:
                storage.delete_file(uri)
    return done


def _read(uri: str) -> pa.Table | None:
    try:
        table = storage.read_table(uri)
    except UnavailableError:
        raise
    except CxrError:
        return None
    return table if table.schema.equals(SCORES) else None
