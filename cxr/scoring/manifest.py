"""What is to be scored: the listing, kept as a manifest, and its division into parts and tasks."""

import json
import time
from collections import Counter as Counts
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray

from cxr import sources, storage
from cxr.errors import DataError
from cxr.scoring import parts

FORMAT: Final = 1

PART_ROWS: Final = 64
"""Rows of a part, at most: work of a second or more, lost when a process is killed."""

PARTS_PER_CPU: Final = 4
"""Parts that each CPU has to compute of a small archive, at least, so that none waits for long."""

MAX_STREAMS: Final = 8
"""Times that a compressed tar is read, each for another range of its members."""


@dataclass(frozen=True)
class ScoreSettings:
    """What a scores folder was made of; the same for every job that works on it."""

    inputs: tuple[str, ...]
    any_body_part: bool
    checkpoint: str
    """Fingerprint."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "checkpoint": self.checkpoint,
            "inputs": list(self.inputs),
            "any_body_part": self.any_body_part,
        }


def manifest_of(
    output: str, settings: ScoreSettings, *, update: bool
) -> tuple[pa.Table, dict[str, int]]:
    """What is to be scored, listed at the first job and where an update is wanted."""
    place = storage.join(output, "manifest.parquet")
    known = storage.read_table(place) if storage.kind(place) == "file" else None
    listing = storage.join(output, "listing.json")
    if known is not None and not update:
        skipped: dict[str, int] = storage.read_json(listing)["skipped"]
        return known, skipped
    began = time.monotonic()
    table, skipped = list_everything(settings.inputs)
    print(f"listed {len(table):,} images in {time.monotonic() - began:.1f} s", flush=True)
    if known is not None:
        new = pc.invert(pc.is_in(table["uri"], known["uri"]))
        table = table.filter(new)
        gone = len(known) + pc.sum(new).as_py() - len(new)
        print(f"update: {len(table):,} new; {gone:,} of the {len(known):,} known are gone")
    first = 0 if known is None else pc.max(known["part"]).as_py() + 1
    table = table.append_column("part", pa.array(first + number_parts(table)))
    if known is not None:
        table = pa.concat_tables([known, table])
    # Not before: inputs that name nothing leave nothing behind.
    storage.write_json(storage.join(output, "settings.json"), settings.to_json())
    storage.write_json(listing, {"skipped": skipped})
    # Last: a manifest that is there is whole.
    storage.write_table(place, table)
    return table, skipped


def list_everything(inputs: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """Every image that the inputs name, and the files passed over by kind.

    Files of their own by uri, then archives by uri, their members in the order in which they stand
    in them. Archives are listed by the cluster, one task each: a compressed tar has to be read
    whole.
    """
    found = sources.list_inputs(inputs)
    skipped = found.skipped
    tables = {"": found.table().sort_by("uri")}
    if found.archives:
        asked = [
            pa.table({"file": [file], "wanted": pa.array([wanted], pa.list_(pa.string()))})
            for file, wanted in sorted(found.archives.items())
        ]
        listed = ray.data.from_blocks(asked).map_batches(
            parts.list_archives, batch_format="pyarrow", batch_size=None, num_cpus=1
        )
        for row in listed.iter_rows():
            tables[row["file"]] = parts.unpack(row["rows"])
            skipped.update(json.loads(row["skipped"]))
    table = pa.concat_tables(tables[file] for file in sorted(tables))
    if not len(table):
        raise DataError(f"{', '.join(inputs)}: no radiographs found in the archives.")
    return table, dict(skipped)


def number_parts(listed: pa.Table) -> NDArray[np.int64]:
    """The part of each listed row, (N,), from 0 on.

    Parts are small enough to give every CPU some, and a long compressed tar begins a new one, so
    that hardly any part needs two of them.
    """
    rows = int(np.clip(len(listed) / (PARTS_PER_CPU * _num_cpus()), 1, PART_ROWS))
    streams = [_stream(row) for row in listed.select(["file", "place"]).to_pylist()]
    lengths = Counts(streams)
    numbers: NDArray[np.int64] = np.zeros(len(listed), np.int64)
    size = number = 0
    for index, stream in enumerate(streams):
        before = streams[max(0, index - 1)]
        alone = stream != before and max(lengths[stream] if stream else 0,
                                         lengths[before] if before else 0) > rows  # fmt: skip
        if size == rows or alone:
            size, number = 0, number + 1
        numbers[index] = number
        size += 1
    return numbers


def tasks(missing: pa.Table) -> list[pa.Table]:
    """The rows of each task: one part, or of a compressed tar a range of parts in one pass."""
    streams: dict[str, list[pa.Table]] = {}
    singles = []
    for table in parts.by_part(missing).values():
        stream = _stream(table.slice(len(table) - 1).select(["file", "place"]).to_pylist()[0])
        if stream:
            streams.setdefault(stream, []).append(table)
        else:
            singles.append(table)
    ranges = [
        pa.concat_tables([tables[i] for i in indices])
        for tables in streams.values()
        for indices in np.array_split(
            np.arange(len(tables)), min(MAX_STREAMS, _num_cpus(), len(tables))
        )
    ]
    return ranges + singles  # What takes longest first.


def _stream(row: dict[str, Any]) -> str:
    """The archive that a row is read from, if only from front to back; else empty."""
    steps = [sources.Step(**step) for step in row["place"]]
    return str(row["file"]) if sources.is_sequential(steps) else ""


def _num_cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
