"""Lists of radiographs that a user writes: CSV or Parquet with a column `uri` and others."""

import posixpath

import pyarrow as pa
from pyarrow import csv

from cxr import storage
from cxr.errors import DataError


def read_manifest(uri: str) -> pa.Table:
    """Read a CSV or Parquet manifest, the columns uri, label, patient and split of a CSV as text.

    Raises:
        DataError: it is neither.
    """
    if uri.lower().endswith(".parquet"):
        return storage.read_table(uri)
    types = dict.fromkeys(("uri", "label", "patient", "split"), pa.string())
    try:
        return csv.read_csv(
            pa.BufferReader(storage.read_bytes(uri)),
            convert_options=csv.ConvertOptions(column_types=types),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{uri}: not a folder, an archive or a manifest: {error}.") from None


def texts(table: pa.Table, column: str) -> list[str]:
    """The values of a column as text; empty for nulls, and if there is no such column."""
    if column not in table.column_names:
        return [""] * len(table)
    values = table[table.column_names.index(column)]
    return ["" if value is None else str(value).strip() for value in values.to_pylist()]


def required(uri: str, column: str, row: int, text: str) -> str:
    """The text of a cell; an empty one is refused with its row."""
    if not text:
        raise DataError(f"{uri}: row {row + 1} of the manifest has no {column}.")
    return text


def beside(manifest: str, uri: str) -> str:
    """Resolve an entry of a manifest: a relative path starts at the manifest's folder."""
    if "://" in uri or uri.startswith("/"):
        return storage.absolute(uri)
    return storage.join(posixpath.dirname(manifest), uri.removeprefix("./"))
