"""What is to be scored: the settings of a scores folder, and its manifest, divided into parts.

The manifest is a folder of Parquet files of `FILE_ROWS` rows each, in the order of the listing. A
file is written once. `listing.json` is written last, and says how many files and rows there are.
"""

import posixpath
import re
from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import storage
from cxr.errors import SettingsError, StorageError, UnavailableError
from cxr.scoring import columns
from cxr.scoring.columns import ColumnSettings
from cxr.scoring.parts import FORMAT, move_aside
from cxr.scoring.read import is_seekable, num_cpus, stream_of

FILE_ROWS: Final = 100_000
"""Rows of a file of the manifest: some 40 MB in memory."""

PART_IMAGES: Final = 64
"""Images of a part, at most: a second or more of work, lost when a process is killed."""

ROWS_FOR_IMAGE: Final = 32
"""Rows of which it is known that there is nothing to decode, and that count as one image: writing
is all that they cost. A part of them has 2,048."""

PARTS_PER_CPU: Final = 4
"""Least number of parts for each CPU in a small archive, so that none waits for long."""

MAX_COST: Final = PART_IMAGES * ROWS_FOR_IMAGE
"""Rows of a part, at most; an image counts as `ROWS_FOR_IMAGE` of them."""

_METADATA: Final = (b"first_part", b"max_cost")
"""What a file says of itself beside its rows."""

_NAME: Final = re.compile(r"manifest-(\d{5,})\.parquet")


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
    dicom_sr: bool = False
    """Whether Structured Reports are written."""
    format: int = FORMAT
    checkpoint_name: str = ""
    """Its folder and date, for the message when another checkpoint is refused."""
    begun: str = ""
    """When the folder was begun, local time, `2026-01-31T23:59:59`; later jobs keep it."""

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
            "dicom_sr": self.dicom_sr,
            "begun": self.begun,
        }


def check_output(output: str, settings: ScoreSettings) -> bool:
    """Accept a scores folder that is new, or that was begun with the same settings.

    Returns:
        Whether it was begun.

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
    compared = {name: value for name, value in settings.to_json().items() if name != "begun"}
    return storage.check_same(
        output, "settings.json", compared, "scores", {"checkpoint": "checkpoint_name"}
    )


def when_begun(output: str) -> str:
    """When a scores folder was begun, as `ScoreSettings.begun`."""
    return str(storage.read_json(storage.join(output, "settings.json"))["begun"])


@dataclass(frozen=True)
class ManifestFile:
    """A file of the manifest."""

    number: int
    num_rows: int
    max_cost: int
    """Of its parts, see `number_parts`."""
    first_part: int
    num_parts: int

    @property
    def end(self) -> int:
        """The number after its last part."""
        return self.first_part + self.num_parts


@dataclass(frozen=True)
class Listing:
    """A complete listing."""

    files: tuple[ManifestFile, ...]
    skipped: dict[str, int]
    """Files that were passed over, by type."""

    @property
    def num_rows(self) -> int:
        """Rows of the manifest."""
        return sum(file.num_rows for file in self.files)


class Manifest:
    """The manifest of a scores folder, as far as it is written."""

    def __init__(self, output: str) -> None:
        """Look at what there is.

        Args:
            output: the scores folder.

        Raises:
            StorageError: the folder cannot be listed.
        """
        self.folder = storage.join(output, "manifest")
        self._listing_uri = storage.join(output, "listing.json")
        self._aside = storage.join(output, "damaged")
        self.listing = self._read_listing()
        """Of the last complete listing; None if there was none, or it is damaged."""
        names = (posixpath.basename(file.uri) for file in storage.list_files(self.folder))
        self.numbers = {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
        """Of the files that are there."""

    @property
    def num_files(self) -> int:
        """Files that there are or were."""
        num_listed = len(self.listing.files) if self.listing else 0
        return max(num_listed, max(self.numbers, default=-1) + 1)

    @property
    def is_complete(self) -> bool:
        """Whether a listing has come to its end, and none was begun since."""
        return self.listing is not None and self.num_files == len(self.listing.files)

    def uri(self, number: int) -> str:
        """Path or URI of a file."""
        return storage.join(self.folder, f"manifest-{number:05}.parquet")

    def kept_columns(self) -> list[str] | None:
        """The columns of the user's manifests that its rows keep; None if there is no file."""
        for number in sorted(self.numbers):
            if (rows := read_file(self.uri(number))) is not None:
                return kept_columns(rows)
        return None

    def check_kept(self, kept: list[str]) -> list[str]:
        """Accept the columns that a new listing keeps.

        Raises:
            SettingsError: the rows keep others.
        """
        before = self.kept_columns()
        if before is not None and kept != before:
            raise SettingsError(
                f"{posixpath.dirname(self.folder)}: keeps columns {', '.join(before)}, and the"
                f" manifests now give {', '.join(kept)}. Name those to keep, and choose another"
                " --output."
            )
        return kept

    def write(
        self, number: int, rows: pa.Table, parts: NDArray[np.int64], first_part: int, max_cost: int
    ) -> ManifestFile:
        """Write a file; one that is there is damaged, and moved aside.

        Args:
            number: of the file.
            rows: of schema `sources.INVENTORY`, and `kept` if columns are kept.
            parts: of the rows, from 0 on, see `number_parts`.
            first_part: number of the first of them.
            max_cost: that they were made with.
        """
        table = rows.append_column("part", pa.array(first_part + parts)).replace_schema_metadata(
            dict(zip(_METADATA, (str(first_part), str(max_cost)), strict=True))
        )
        if storage.kind(self.uri(number)) == "file":
            move_aside(self.uri(number), self._aside)
        storage.write_table(self.uri(number), table)
        return describe(number, table)

    def read(self, number: int) -> pa.Table:
        """The rows of a file, with their `part`.

        Raises:
            StorageError: it is damaged or missing.
        """
        return storage.read_table(self.uri(number))

    def finish(self, files: Iterable[ManifestFile], skipped: dict[str, int]) -> Listing:
        """Write that the listing is complete."""
        self.listing = Listing(tuple(files), skipped)
        content = {
            "rows": self.listing.num_rows,
            "files": [vars(file) for file in self.listing.files],
            "skipped": skipped,
        }
        storage.write_json(self._listing_uri, content)
        return self.listing

    def _read_listing(self) -> Listing | None:
        try:
            content = storage.read_json(self._listing_uri)
            files = tuple(ManifestFile(**file) for file in content["files"])
            return Listing(files, content["skipped"])
        except UnavailableError:
            raise
        except (StorageError, KeyError, TypeError):
            return None  # The inputs are listed again.


def read_file(uri: str) -> pa.Table | None:
    """The rows of a file of the manifest, with their `part`; None if it is damaged or missing."""
    try:
        rows = storage.read_table(uri)
    except UnavailableError:
        raise
    except StorageError:
        return None
    return rows if set(_METADATA) <= set(rows.schema.metadata or ()) else None


def describe(number: int, rows: pa.Table) -> ManifestFile:
    """What a file of the manifest holds.

    Args:
        number: of the file.
        rows: of the file, as `read_file` gives them.
    """
    first_part, max_cost = (int(rows.schema.metadata[name]) for name in _METADATA)
    last = rows["part"][-1].as_py() if len(rows) else first_part - 1
    return ManifestFile(number, len(rows), max_cost, first_part, last + 1 - first_part)


def kept_columns(manifest: pa.Table) -> list[str]:
    """The columns of the user's manifests that the rows of a listing keep."""
    if "kept" not in manifest.column_names:
        return []
    return [field.name for field in manifest.schema.field("kept").type]


def in_files(pages: Iterable[pa.Table], sizes: Iterator[int]) -> Iterator[pa.Table]:
    """Rows divided into tables of so many rows each; the last one may have fewer.

    Args:
        pages: tables of any number of rows.
        sizes: of the tables, without end.
    """
    waiting: list[pa.Table] = []
    size = next(sizes)
    for page in pages:
        waiting.append(page)
        while sum(map(len, waiting)) >= size:
            rows = pa.concat_tables(waiting)
            yield rows.slice(0, size).combine_chunks()
            waiting = [rows.slice(size)]
            size = next(sizes)
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()


def max_part_cost(rows: pa.Table) -> int:
    """The `max_cost` of `number_parts` for the last rows of a listing.

    Parts of a small archive are small enough for every CPU of the cluster to get some.
    """
    cost = int(_costs(rows).sum())
    return int(np.clip(cost / (PARTS_PER_CPU * num_cpus()), ROWS_FOR_IMAGE, MAX_COST))


def number_parts(listed: pa.Table, max_cost: int) -> NDArray[np.int64]:
    """The part of each listed row, (N,), from 0 on.

    A long compressed tar begins a new part, so that hardly any part needs two of them.

    Args:
        listed: of schema `sources.INVENTORY`.
        max_cost: rows of a part; an image counts as `ROWS_FOR_IMAGE` of them.
    """
    costs = _costs(listed)
    streams = _streams(listed)
    lengths = Counts(streams)
    numbers: NDArray[np.int64] = np.zeros(len(listed), np.int64)
    size = number = 0
    before = ""
    for index, (stream, cost) in enumerate(zip(streams, costs.tolist(), strict=True)):
        longest = max(lengths[name] if name else 0 for name in {stream, before})
        if index and (
            size + cost > max_cost or (stream != before and longest * ROWS_FOR_IMAGE > max_cost)
        ):
            size, number = 0, number + 1
        numbers[index] = number
        size, before = size + cost, stream
    return numbers


def _costs(listed: pa.Table) -> NDArray[np.int64]:
    return np.where(np.asarray(pc.equal(listed["status"], "")), ROWS_FOR_IMAGE, 1)


def _streams(listed: pa.Table) -> list[str]:
    """For each row what `stream_of` says."""
    streams = [""] * len(listed)
    place = listed["place"].combine_chunks()
    lengths = np.asarray(pc.list_value_length(place))
    kinds = pc.struct_field(pc.list_flatten(place), "kind")
    # Members of a zip or tar, nearly all that there are, in one pass.
    seekable = pa.array([kind for kind in pc.unique(kinds).to_pylist() if is_seekable(kind)])
    of_one = np.asarray(pc.is_in(kinds, seekable.cast(pa.string())))
    rest = np.ones(len(listed), dtype=bool)
    rest[np.asarray(pc.list_parent_indices(place))[of_one]] = False
    others = np.flatnonzero((lengths > 1) | ((lengths == 1) & rest))
    rows = listed.select(["file", "place"]).take(pa.array(others)).to_pylist()
    for index, row in zip(others.tolist(), rows, strict=True):
        streams[index] = stream_of(row)
    return streams
