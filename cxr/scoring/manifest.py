"""What is to be scored: the settings and the listing of a scores folder, divided into parts."""

import functools
import time
from collections import Counter as Counts
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from cxr import cluster, sources, storage
from cxr.errors import DataError, SettingsError
from cxr.scoring import columns
from cxr.scoring.columns import ColumnSettings
from cxr.scoring.parts import FORMAT
from cxr.scoring.read import num_cpus, stream_of

PART_IMAGES: Final = 64
"""Images of a part, at most: a second or more of work, lost when a process is killed."""

ROWS_FOR_IMAGE: Final = 32
"""Rows of which it is known that there is nothing to decode, and that count as one image: writing
is all that they cost. A part of them has 2,048."""

PARTS_PER_CPU: Final = 4
"""Least number of parts for each CPU in a small archive, so that none waits for long."""


@dataclass(frozen=True)
class ScoreSettings:
    """What a scores folder was made of; the same for every job that works on it."""

    inputs: tuple[str, ...]
    any_body_part: bool
    any_view: bool
    checkpoint: str
    """Fingerprint."""
    operating_point: str
    """Its rule."""
    columns: ColumnSettings = columns.DEFAULTS
    key_digest: str = ""
    """Of the key that identifiers are hashed with."""
    format: int = FORMAT
    checkpoint_name: str = ""
    """Its folder and date, for the message when another checkpoint is refused."""

    def to_json(self) -> dict[str, Any]:
        """What `settings.json` holds."""
        return {
            "format": self.format,
            "checkpoint": self.checkpoint,
            "inputs": list(self.inputs),
            "any_body_part": self.any_body_part,
            "any_view": self.any_view,
            "operating_point": self.operating_point,
            "columns": list(self.columns.columns),
            "keep_columns": list(self.columns.keep_columns),
            "study_columns": self.columns.study_columns,
            "hash_key": self.key_digest,
            "checkpoint_name": self.checkpoint_name,
        }


def check_output(output: str, settings: ScoreSettings) -> None:
    """Accept a scores folder that is new, or that was begun with the same settings.

    Raises:
        SettingsError: it has another format, or was begun with other settings.
        StorageError: it holds something else.
    """
    settings_uri = storage.join(output, "settings.json")
    if storage.kind(settings_uri) == "file":
        kept = storage.read_json(settings_uri).get("format")
        if kept != settings.format:
            raise SettingsError(
                f"{output}: holds scores of format {kept}, and this version of cxr writes format"
                f" {settings.format}. Choose another --output, or use the version that wrote them."
            )
    storage.check_same(
        output, "settings.json", settings.to_json(), "scores", {"checkpoint": "checkpoint_name"}
    )


def open_manifest(
    output: str, settings: ScoreSettings, *, update: bool
) -> tuple[pa.Table, dict[str, int]]:
    """The manifest of a scores folder; listed by the first job, and to be updated.

    Args:
        output: the scores folder.
        settings: of the folder.
        update: list the inputs again, and append what is new.

    Returns:
        Rows of schema `sources.INVENTORY` with their `part` and, if columns are kept, `kept`; and
        the files that were passed over, by type.

    Raises:
        DataError: the inputs name nothing.
        SettingsError: a column cannot be kept, or an update would keep others.
    """
    manifest_uri = storage.join(output, "manifest.parquet")
    listing_uri = storage.join(output, "listing.json")
    known = storage.read_table(manifest_uri) if storage.kind(manifest_uri) == "file" else None
    if known is not None and not update:
        skipped: dict[str, int] = storage.read_json(listing_uri)["skipped"]
        return known, skipped
    began = time.monotonic()
    table, skipped = list_images(settings)
    print(f"listed {len(table):,} images in {time.monotonic() - began:.1f} s", flush=True)
    if known is not None:
        if (now := kept_columns(table)) != (kept := kept_columns(known)):
            raise SettingsError(
                f"{output}: keeps columns {', '.join(kept)}, and the manifests now give"
                f" {', '.join(now)}. Name those to keep, and choose another --output."
            )
        is_new = pc.invert(pc.is_in(table["uri"], known["uri"]))
        table = table.filter(is_new)
        gone = len(known) + pc.sum(is_new).as_py() - len(is_new)
        print(f"update: {len(table):,} new; {gone:,} of the {len(known):,} known are gone")
    first = 0 if known is None else pc.max(known["part"]).as_py() + 1
    table = table.append_column("part", pa.array(first + number_parts(table)))
    if known is not None:
        table = pa.concat_tables([known, table])
    # Not before: inputs that name nothing leave nothing behind.
    storage.write_json(storage.join(output, "settings.json"), settings.to_json())
    storage.write_json(listing_uri, {"skipped": skipped})
    # Last: an existing manifest is complete.
    storage.write_table(manifest_uri, table)
    return table, skipped


def kept_columns(manifest: pa.Table) -> list[str]:
    """The columns of the user's manifests that the rows of a listing keep."""
    if "kept" not in manifest.column_names:
        return []
    return [field.name for field in manifest.schema.field("kept").type]


def list_images(settings: ScoreSettings) -> tuple[pa.Table, dict[str, int]]:
    """List every image that the inputs name, and count the files that were passed over by type.

    Files by uri come first, then archives by uri, their members in the order of the archive. The
    cluster lists archives, one task each: a compressed tar has to be read to its end.

    Raises:
        DataError: an input does not exist, or they name nothing.
        SettingsError: a column cannot be kept.
    """
    asked = settings.columns
    listed = sources.list_inputs(settings.inputs, asked.columns)
    kept = columns.choose_kept(asked, listed.manifests)
    columns.choose_group(asked, kept)
    skipped = listed.skipped
    tables = {"": listed.table().sort_by("uri")}
    if listed.archives:
        task: Any = ray.remote(sources.list_archive)
        refs = {file: task.remote(file, paths) for file, paths in listed.archives.items()}
        for file, ref in refs.items():
            members, passed_over = cluster.execute(functools.partial(ray.get, ref))
            tables[file] = listed.join_entries(members)
            skipped.update(passed_over)
    table = pa.concat_tables(tables[file] for file in sorted(tables))
    if not len(table):
        inputs = ", ".join(settings.inputs)
        raise DataError(f"{inputs}: no radiographs found in the archives.")
    if kept:
        table = columns.append_kept(table, listed.manifests, kept)
    return table, dict(skipped)


def number_parts(listed: pa.Table) -> NDArray[np.int64]:
    """The part of each listed row, (N,), from 0 on.

    Parts are small enough for every CPU to get some, and a long compressed tar begins a new one, so
    that hardly any part needs two of them.
    """
    costs = np.where(np.asarray(pc.equal(listed["status"], "")), ROWS_FOR_IMAGE, 1)
    most = PART_IMAGES * ROWS_FOR_IMAGE
    limit = int(np.clip(costs.sum() / (PARTS_PER_CPU * num_cpus()), ROWS_FOR_IMAGE, most))
    streams = _streams(listed)
    lengths = Counts(streams)
    numbers: NDArray[np.int64] = np.zeros(len(listed), np.int64)
    size = number = 0
    before = ""
    for index, (stream, cost) in enumerate(zip(streams, costs.tolist(), strict=True)):
        longest = max(lengths[name] if name else 0 for name in {stream, before})
        if index and (
            size + cost > limit or (stream != before and longest * ROWS_FOR_IMAGE > limit)
        ):
            size, number = 0, number + 1
        numbers[index] = number
        size, before = size + cost, stream
    return numbers


def _streams(listed: pa.Table) -> list[str]:
    """For each row what `stream_of` says."""
    streams = [""] * len(listed)
    members = np.flatnonzero(np.asarray(pc.list_value_length(listed["place"])) > 0)
    rows = listed.select(["file", "place"]).take(pa.array(members)).to_pylist()
    for index, row in zip(members.tolist(), rows, strict=True):
        streams[index] = stream_of(row)
    return streams
