"""Columns of the scores beyond those of every folder: what they are joined by, where asked.

The columns of a manifest that are kept, as text, and the identifiers of DICOM files, as they are or
hashed with a key. Columns that are not kept are stored nowhere, and neither is the key.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import pyarrow as pa
import tyro

from cxr import storage
from cxr.errors import SettingsError
from cxr.images.decoding import Uids
from cxr.images.read import Image
from cxr.scoring.parts import REPORT, SCORES
from cxr.scoring.studies import STUDIES
from cxr.sources.manifests import find_column
from cxr.sources.settings import parse_columns

ALL: Final = "all"
"""In `--keep-columns`: every column of the manifests."""

MIN_KEY_LENGTH: Final = 32
"""Characters of a key: 128 bits where they are hexadecimal. Identifiers can be guessed, so a key
that can be guessed as well would protect nothing."""

MAKE_KEY: Final = (
    'python -c "import secrets; print(secrets.token_hex(32))" > ~/hash.key && chmod 600 ~/hash.key'
)

_MISSING_UID: Final = {
    "study_instance_uid": "no valid Study Instance UID in the file",
    "series_instance_uid": "no valid Series Instance UID in the file",
    "sop_instance_uid": "no valid SOP Instance UID in the file",
}


@dataclass(frozen=True)
class ColumnSettings:
    """Which columns the scores have beyond their own."""

    columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=COLUMN [NAME=COLUMN ...]")] = ()
    """Columns of the manifest, where it names them otherwise: uri=File patient=PatientID. With
    patient, studies.parquet has a row for each patient."""
    keep_columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="all|NAME [NAME ...]")] = ()
    """Columns of the manifest that the scores keep, as text; all keeps every one."""
    study_columns: Literal["uids", "hashed"] | None = None
    """Add study_instance_uid, series_instance_uid and sop_instance_uid of DICOM files, as they are
    or hashed (HMAC-SHA256) with the key of --hash-key-file; studies.parquet then has a row for each
    study."""
    hash_key_file: str | None = None
    """File with the key of --study-columns hashed, of at least 32 characters; it stays with you."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        for name in self.keep_columns:
            refuse_own_name(name)
        if self.hash_key_file and self.study_columns != "hashed":
            raise SettingsError("hash_key_file: belongs to --study-columns hashed.")
        if self.study_columns == "hashed" and not self.hash_key_file:
            raise SettingsError(
                "study_columns: hashed needs --hash-key-file. Make a key once, and keep it:"
                f" {MAKE_KEY}"
            )

    def uid_columns(self) -> "UidColumns | None":
        """How identifiers become columns; reads the key.

        Raises:
            SettingsError: the key is too short.
            StorageError: its file cannot be read.
        """
        if not self.hash_key_file:
            return UidColumns() if self.study_columns else None
        key = storage.read_bytes(storage.absolute(self.hash_key_file)).strip()
        if len(key) < MIN_KEY_LENGTH:
            raise SettingsError(
                f"{self.hash_key_file}: a key of {len(key)} characters; at least {MIN_KEY_LENGTH}"
                f" are needed. Make one: {MAKE_KEY}"
            )
        return UidColumns(key)


DEFAULTS: Final = ColumnSettings()
"""The scores' own columns, and no others."""


class UidColumns:
    """Makes columns of the identifiers of DICOM files: as they are, or hashed with a key.

    Not a dataclass: Ray Data may export the arguments of its functions, dataclasses with all their
    fields, and the key must not be among them.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key

    @property
    def key_digest(self) -> str:
        """Tells keys apart without telling the key; empty where there is none."""
        return self._hash("key of cxr scores")[:16] if self._key else ""

    def values(self, image: Image) -> tuple[dict[str, str | None], list[str]]:
        """The columns of an image, and a warning for each that its DICOM header lacks."""
        if image.uids is None:
            return dict.fromkeys(Uids._fields), []
        columns = {
            name: (self._hash(uid) if self._key else uid) if uid else None
            for name, uid in image.uids._asdict().items()
        }
        return columns, [_MISSING_UID[name] for name, uid in columns.items() if uid is None]

    def _hash(self, text: str) -> str:
        return hmac.new(self._key or b"", text.encode(), hashlib.sha256).hexdigest()


def refuse_own_name(name: str) -> None:
    """Refuse to keep a column that is named as one of ours.

    Raises:
        SettingsError: the name is taken.
    """
    if name in {*SCORES.names, REPORT, *Uids._fields, *STUDIES.names}:
        raise SettingsError(
            f"keep_columns: {name} is a column of the scores themselves. Rename it in the manifest,"
            " or name the columns to keep without it."
        )


def scores_schema(
    uid_columns: UidColumns | None, kept: Sequence[str], *, dicom_sr: bool = False
) -> pa.Schema:
    """The columns of a folder's scores.

    `SCORES`, the path of the report if reports are written, identifiers, and the kept columns of
    manifests.
    """
    names = [*([REPORT] if dicom_sr else ()), *(Uids._fields if uid_columns else ()), *kept]
    return pa.schema([*SCORES, *((name, pa.string()) for name in names)])


def choose_kept(settings: ColumnSettings, manifests: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of the columns to keep; all are those of every manifest but of the addresses.

    Args:
        settings: name the columns.
        manifests: the columns of each, by URI.

    Raises:
        SettingsError: there is no manifest, a manifest lacks a column, or it is named as one of
            ours.
    """
    keep_columns = settings.keep_columns
    if not keep_columns:
        return []
    if not manifests:
        raise SettingsError("keep_columns: no input is a manifest, so there are none to keep.")
    if keep_columns != (ALL,):
        for uri, names in manifests.items():
            choices = ", ".join(names)
            for name in keep_columns:
                if name not in names:
                    raise SettingsError(f"{uri}: no column {name} to keep. Choices: {choices}.")
        return list(dict.fromkeys(keep_columns))
    uri_column = parse_columns(settings.columns).get("uri", "uri")
    kept: dict[str, None] = {}
    for names in manifests.values():
        address = find_column(names, uri_column)
        kept |= dict.fromkeys(name for name in names if name != address)
    for name in kept:
        refuse_own_name(name)
    return list(kept)


def choose_group(settings: ColumnSettings, kept: Sequence[str]) -> str:
    """The column that the rows of `studies.parquet` stand for; empty if there is none.

    Raises:
        SettingsError: it is a patient column that is not kept.
    """
    if settings.study_columns:
        return "study_instance_uid"
    named = parse_columns(settings.columns).get("patient", "")
    group = find_column(kept, named or "patient")
    if named and not group:
        raise SettingsError(
            f"columns: patient={named} is stored only where it is kept. Add --keep-columns {named}."
        )
    return group


def append_kept(
    table: pa.Table, kept: Sequence[str], cells: pa.Table | None = None, first_row: int = 0
) -> pa.Table:
    """Append `kept`, a struct of the columns to keep, null for rows that no manifest names.

    A struct, so that no name of a manifest meets one of an inventory.

    Args:
        table: has a column `manifest_row`.
        kept: names of columns; null where a manifest lacks one. Without any, nothing is appended.
        cells: the rows of a manifest that name those of the table; None if none does.
        first_row: the number of the first of these rows.
    """
    if not kept:
        return table
    if cells is None:
        types = pa.struct([(name, pa.string()) for name in kept])
        return table.append_column("kept", pa.nulls(len(table), types))
    columns = [
        cells[name].combine_chunks()
        if name in cells.column_names
        else pa.nulls(len(cells), pa.string())
        for name in kept
    ]
    structs = pa.StructArray.from_arrays(columns, list(kept))
    rows = [row - first_row if row >= 0 else None for row in table["manifest_row"].to_pylist()]
    return table.append_column("kept", structs.take(pa.array(rows, pa.int64())))
