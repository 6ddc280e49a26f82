"""Lists of radiographs that a user writes: CSV or Parquet with a column `uri` and others."""

import posixpath

import pyarrow as pa
from pyarrow import csv

from cxr import storage
from cxr.errors import DataError


def read_manifest(uri: str) -> pa.Table:
    """A CSV or Parquet manifest, its columns uri, label, patient and split as text.

    Raises:
        DataError: it is neither.
    """
    if uri.lower().endswith(".parquet"):
        return storage.read_table(uri)
    texts = dict.fromkeys(("uri", "label", "patient", "split"), pa.string())
    try:
        return csv.read_csv(
            pa.BufferReader(storage.read_bytes(uri)),
            convert_options=csv.ConvertOptions(column_types=texts),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{uri}: neither a folder nor a manifest: {error}.") from None


def texts(table: pa.Table, column: str) -> list[str]:
    """The values of a column as text, empty where there is none."""
    if column not in table.column_names:
        return [""] * len(table)
    values = table[table.column_names.index(column)]
    return ["" if value is None else str(value).strip() for value in values.to_pylist()]


def required(uri: str, column: str, row: int, text: str) -> str:
    """The value itself; empty, it is refused with its place."""
    if not text:
        raise DataError(f"{uri}: row {row + 1} of the manifest has no {column}.")
    return text


def beside(manifest: str, uri: str) -> str:
    """The place that a manifest's entry means: relative ones lie beside the manifest."""
    if "://" in uri or uri.startswith("/"):
        return storage.absolute(uri)
    return storage.join(posixpath.dirname(manifest), uri.removeprefix("./"))
