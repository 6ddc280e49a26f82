"""Manifests: the lists of images that people write, as CSV in any of its forms, Parquet or Excel.

Every column is read as text, so that a patient number keeps its leading zeros. Text files are read
by Python's `csv`, not by pyarrow, which knows no line numbers and refuses the rows that Excel cuts
short.
"""

import codecs
import csv
import dataclasses
import gzip
import io
import itertools
import math
import posixpath
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TextIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cxr import storage
from cxr.errors import DataError, StorageError
from cxr.sources import texts
from cxr.sources.settings import COLUMNS, parse_columns

SUFFIXES: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".xlsx")
"""Suffixes of manifests, in lower case."""

DELIMITERS: Final = ",;\t|"

NUM_NAMED_ROWS: Final = 3
"""Rows named in a message."""

NUM_NAMED_COLUMNS: Final = 40
"""Columns named in a message; the widest public tables of radiographs have fewer."""

BATCH_ROWS: Final = 10_000
"""Rows that a `ManifestReader` reads at a time."""

MAX_CELL: Final = 64 * 2**20
"""Characters of the longest cell. A quotation mark that is not closed makes one cell of the rest of
a file, however long that is."""

HEAD: Final = 2**20
"""Characters in which the names of columns are looked for."""

_NO_MANIFEST: Final = "not a folder, an archive or a manifest"

_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f]")

_START: Final = 1024
"""Characters in which a file that is not text has one that no text has."""

_DATA: Final = re.compile(
    r"[\W\d_]+|.*\.(jpe?g|png|dcm|dicom|tiff?|bmp)|.*\d{4}.*|.*\d.*[/\\].*|.*[/\\].*\d.*",
    re.I | re.S,
)
"""A cell that is no column name: a number, a date, an identifier or a path."""

_NO_LINES: Final = np.empty(0, dtype=np.int64)

Record = tuple[int, list[str]]
"""A row of a file before its columns are known: the number of its line, and its cells."""


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was read."""

    uri: str
    table: pa.Table
    """Its rows without the empty ones; columns of text, as written, with unique names."""
    columns: dict[str, str]
    """The columns that mean something to us, by our names: uri, label, patient, ..."""
    lines: NDArray[np.int64]
    """The line of the file, or the row of the sheet, where each row begins; empty for Parquet."""
    first_row: int = 0
    """Rows of the file before these, if they were read in batches."""

    def cells(self, name: str) -> pa.ChunkedArray:
        """The cells of one of our columns, stripped; all empty if there is no such column."""
        if name not in self.columns:
            return pa.chunked_array([pa.repeat("", len(self.table))])
        return texts.compute(str.strip, self.table[self.columns[name]])

    def required_cells(self, name: str) -> pa.ChunkedArray:
        """The cells of one of our columns, stripped.

        Raises:
            DataError: one of them is empty.
        """
        cells = self.cells(name)
        if len(empty := np.flatnonzero(pc.equal(cells, ""))):
            raise DataError(
                f"{self.uri}: column {self.columns[name]} is empty in {self.locate(empty)}."
            )
        return cells

    def locate(self, rows: "Sequence[int] | NDArray[np.int64]") -> str:
        """Where rows stand, such as `row 7 (line 9), row 8 (line 10) and 3 more`.

        Args:
            rows: indices of rows of the table, from 0.
        """
        unit = "sheet row" if self.uri.lower().endswith(".xlsx") else "line"
        named = [
            f"row {self.first_row + row + 1}"
            + (f" ({unit} {self.lines[row]})" if len(self.lines) else "")
            for row in rows[:NUM_NAMED_ROWS]
        ]
        more = f" and {len(rows) - NUM_NAMED_ROWS:,} more" if len(rows) > NUM_NAMED_ROWS else ""
        return ", ".join(named) + more


def is_manifest(uri: str) -> bool:
    """Whether a file is a manifest by its name."""
    return uri.lower().endswith(SUFFIXES)


def read_manifest(
    uri: str, columns: Sequence[str] = (), required: Sequence[str] = ("uri",)
) -> Manifest:
    """Read a manifest: CSV, Parquet or an Excel workbook; empty rows and columns are dropped.

    CSV is delimited by comma, semicolon, tab or bar, whichever gives the most of the columns; it is
    UTF-8, UTF-16 or Windows-1252, compressed by gzip or not. Of a workbook, the first sheet is
    read. Names of columns are compared without blanks around them, and without case where none is
    spelled the same.

    Args:
        uri: path or URI; a file that is neither `.parquet` nor `.xlsx` is read as text.
        columns: what it calls our columns, where it does not call them by our names, each as
            `NAME=COLUMN`; see `settings.COLUMNS`.
        required: those of our columns that it must have.

    Raises:
        DataError: it cannot be read, lacks a column, or has a row with more cells than columns.
        SettingsError: `columns` are not what they should be.
        StorageError: the file cannot be read.
    """
    given = parse_columns(columns)
    lower = uri.lower()
    if lower.endswith(".parquet"):
        table = _text_table(storage.read_table(uri))
        found = _find_columns(uri, table.column_names, given, required)
        return Manifest(uri, table, found, _NO_LINES)
    records = _records(uri, given)
    names = _header(uri, records)
    found = _find_columns(uri, names, given, required)
    manifest = _collect(uri, names, found, records)
    table = manifest.table.drop_columns(sorted(_empty_columns(manifest.table)))
    return dataclasses.replace(manifest, table=table)


class ManifestReader:
    """A manifest that is read in batches, as often as asked: `read_manifest` for those of any size.

    All of it is checked before the first batch. A workbook is held in memory.
    """

    def __init__(self, uri: str, columns: Sequence[str] = ()) -> None:
        """Check a manifest.

        Args:
            uri: path or URI.
            columns: what it calls our columns, see `read_manifest`.

        Raises:
            DataError: it cannot be read, lacks a column, or has a row with more cells than columns
                or without a uri.
            SettingsError: `columns` are not what they should be.
            StorageError: the file cannot be read.
        """
        self.uri = uri
        self._given = parse_columns(columns)
        self._is_parquet = uri.lower().endswith(".parquet")
        self._sheet = list(_records(uri, self._given)) if uri.lower().endswith(".xlsx") else None
        if self._is_parquet:
            with _open_parquet(uri) as file:
                names = _unique_names(file.schema_arrow.names)
        else:
            names = _header(uri, self._records())
        self.columns = _find_columns(uri, names, self._given, ("uri",))
        """Our columns, see `Manifest`."""
        empty = set() if self._is_parquet else _unnamed(names)
        for batch in self._batches():
            batch.required_cells("uri")
            empty &= _empty_columns(batch.table)
        self.names = [name for name in names if name not in empty]
        """All its columns."""

    def batches(self) -> Iterator[Manifest]:
        """Its rows, at most `BATCH_ROWS` at a time.

        Raises:
            DataError: it has changed, or is damaged.
            StorageError: it cannot be read.
        """
        for batch in self._batches():
            yield dataclasses.replace(batch, table=batch.table.select(self.names))

    def _batches(self) -> Iterator[Manifest]:
        if self._is_parquet:
            with _open_parquet(self.uri) as file:
                yield from _parquet_batches(self.uri, self.columns, file)
            return
        records, first_row = self._records(), 0
        names = _header(self.uri, records)
        while chunk := list(itertools.islice(records, BATCH_ROWS)):
            yield _collect(self.uri, names, self.columns, iter(chunk), first_row)
            first_row += len(chunk)

    def _records(self) -> Iterator[Record]:
        return _records(self.uri, self._given) if self._sheet is None else iter(self._sheet)


def beside(manifest: str, uri: str) -> str:
    r"""Resolve an entry of a manifest: a relative path starts at the manifest's folder.

    An entry with backslashes and without slashes is a path of Windows: `images\a.png` is
    `images/a.png`. A file whose name has a backslash is written `./a\b.png`.

    Raises:
        StorageError: a path of Windows that is not relative, or a URI that is not supported.
    """
    if "\\" in uri and "/" not in uri:
        if re.match(r"\\|[a-z]:", uri, re.I):
            raise StorageError(
                f"{uri}: an absolute path of Windows. Write paths relative to the manifest, with"
                " the images beside it."
            )
        uri = uri.replace("\\", "/")
    if "://" in uri or uri.startswith("/"):
        return storage.absolute(uri)
    return storage.join(posixpath.dirname(manifest), uri.removeprefix("./"))


_BY_OUR_NAMES: Final = dict(zip(COLUMNS, COLUMNS, strict=True))


def _find_columns(
    uri: str, names: Sequence[str], given: dict[str, str], required: Sequence[str]
) -> dict[str, str]:
    """The names of our columns in a manifest.

    Raises:
        DataError: one of those that are required or given is not there.
    """
    columns: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name, wanted in {**_BY_OUR_NAMES, **given}.items():
        if column := find_column(names, wanted):
            columns[name] = column
        elif name in required or name in given:
            missing[name] = wanted
    if not missing:
        return columns
    if any(_CONTROL.search(name) for name in names):
        raise DataError(f"{uri}: {_NO_MANIFEST}: it is not text.")
    if any(_DATA.fullmatch(name) for name in names):
        listed = "its first line seems to hold data, not names of columns"
    else:
        listed = f"found {', '.join(names[:NUM_NAMED_COLUMNS])}"
        if len(names) > NUM_NAMED_COLUMNS:
            listed += f" and {len(names) - NUM_NAMED_COLUMNS} more"
    example = " ".join(f"{name}=COLUMN" for name in missing)
    raise DataError(
        f"{uri}: the manifest lacks column {', '.join(missing.values())}; {listed}. Give the"
        f" manifest's own name: --columns {example}."
    )


def find_column(names: Sequence[str], wanted: str) -> str:
    """The column of this name, else the first that differs in case alone; empty if none."""
    if wanted in names:
        return wanted
    return next((name for name in names if name.casefold() == wanted.casefold()), "")


def _unique_names(header: Sequence[str]) -> list[str]:
    """Names of columns: stripped, numbered where they repeat or are empty."""
    names: list[str] = []
    for number, cell in enumerate(header, 1):
        name = unique = cell.strip() or f"column {number}"
        copies = 0
        while unique in names:
            copies += 1
            unique = f"{name}.{copies}"  # As pandas numbers them.
        names.append(unique)
    return names


@contextmanager
def _open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    with storage.open_file(uri) as stream:
        try:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri}: not a Parquet file: {str(error).strip()}") from None
        yield file


def _parquet_batches(uri: str, columns: dict[str, str], file: pq.ParquetFile) -> Iterator[Manifest]:
    batches, first_row = file.iter_batches(BATCH_ROWS), 0
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"{uri}: not a Parquet file: {str(error).strip()}") from None
        if batch is None:
            return
        rows = _text_table(pa.Table.from_batches([batch]))
        yield Manifest(uri, rows, columns, _NO_LINES, first_row)
        first_row += len(batch)


def _records(uri: str, given: dict[str, str]) -> Iterator[Record]:
    """The rows of a text or workbook that are not empty, the names of columns first."""
    if uri.lower().endswith(".xlsx"):
        records = _sheet_records(uri, storage.read_bytes(uri))
    else:
        records = _text_records(uri, {**_BY_OUR_NAMES, **given}.values())
    return (record for record in records if any(map(str.strip, record[1])))


def _header(uri: str, records: Iterator[Record]) -> list[str]:
    """The names of columns, from the first row.

    Raises:
        DataError: there is none.
    """
    _, header = next(records, (0, []))
    if not header:
        raise DataError(f"{uri}: {_NO_MANIFEST}: it is empty.")
    return _unique_names(header)


def _unnamed(names: Sequence[str]) -> set[str]:
    """The columns that have no name in the file."""
    return {name for number, name in enumerate(names, 1) if name == f"column {number}"}


def _empty_columns(table: pa.Table) -> set[str]:
    """Columns without name and cells, as Excel leaves them behind."""
    return {
        name
        for name in _unnamed(table.column_names)
        if not any(map(str.strip, table[name].to_pylist()))
    }


def _collect(
    uri: str,
    names: Sequence[str],
    columns: dict[str, str],
    records: Iterator[Record],
    first_row: int = 0,
) -> Manifest:
    """The manifest of rows that are as wide as their columns, or shorter where cells are empty.

    Raises:
        DataError: a row has more cells.
    """
    width = len(names)
    schema = pa.schema([(name, pa.string()) for name in names])
    batches: list[pa.RecordBatch] = []
    lines = [_NO_LINES]
    too_wide: list[int] = []
    while chunk := list(itertools.islice(records, texts.BATCH_ROWS)):
        num_before = sum(map(len, lines))
        too_wide += [
            num_before + i
            for i, (_, cells) in enumerate(chunk)
            if any(map(str.strip, cells[width:]))
        ]
        rows = (cells[:width] + [""] * (width - len(cells)) for _, cells in chunk)
        arrays = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        batches.append(pa.record_batch(arrays, schema=schema))
        lines.append(np.array([line for line, _ in chunk], dtype=np.int64))
    table = pa.Table.from_batches(batches, schema)
    manifest = Manifest(uri, table, columns, np.concatenate(lines), first_row)
    if too_wide:
        raise DataError(
            f"{uri}: more cells than columns in {manifest.locate(too_wide)}. Put quotation marks"
            " around cells that contain the delimiter."
        )
    return manifest


def _text_table(table: pa.Table) -> pa.Table:
    """A table with all its columns as text, nulls as empty text."""
    names = _unique_names(table.column_names)
    return pa.table([texts.compute(_text, column) for column in table.columns], names=names)


def _text(value: Any) -> str:
    """A cell as text; whole numbers without `.0`: columns with gaps turn them into floats."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value) if value.is_integer() else value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


# Text ---------------------------------------------------------------------------------------------


@contextmanager
def _open_text(uri: str) -> Iterator[TextIO]:
    """A file as text; compressed by gzip if its name says so.

    Raises:
        DataError: it is no text, or no gzip file.
        StorageError: it cannot be read.
    """
    is_compressed = uri.lower().endswith(".gz")
    with storage.open_file(uri) as file:
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_compressed else file
        try:
            encoding = _find_encoding(uri, stream)
            stream.seek(0)
            with io.TextIOWrapper(stream, encoding, newline="") as text:
                yield text
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise DataError(f"{uri}: not a gzip file, or damaged.") from None
        except OSError as error:
            raise StorageError(f"{uri}: cannot be read: {error.strerror or error}.") from None


def _find_encoding(uri: str, stream: BinaryIO) -> str:
    """The encoding of a file: UTF-8, UTF-16, or Windows-1252 as Excel writes it in Europe."""
    data = stream.read(_START)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif len(data) > 1 and 0 in data[:2] and any(data[:2]):  # UTF-16 without its mark.
        encodings = ["utf-16-be" if data[0] == 0 else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            stream.seek(0)
            decoder = codecs.getincrementaldecoder(encoding)()
            start = decoder.decode(stream.read(_START))
            while chunk := stream.read(HEAD):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
            if encoding != "cp1252" or not _CONTROL.search(start):
                return encoding
    raise DataError(f"{uri}: {_NO_MANIFEST}: it is not text in UTF-8, UTF-16 or Windows-1252.")


def _text_records(uri: str, wanted: Iterable[str]) -> Iterator[Record]:
    """The rows of a text, each with its line.

    Raises:
        DataError: a quotation mark is not closed, or stands in a cell alone.
    """
    # The limit is of the module.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    first = 1
    with _open_text(uri) as stream:
        try:
            head = stream.read(HEAD)
            delimiter, start = _find_delimiter(head, wanted)
            stream.seek(0)
            stream.read(start)
            first += head.count("\n", 0, start)
            line = first
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            for cells in reader:
                yield first, cells
                first = line + reader.line_num
        except csv.Error:
            raise DataError(
                f"{uri}: the row that begins in line {first} is not CSV: a quotation mark is not"
                " closed, or not doubled within a cell."
            ) from None


def _find_delimiter(text: str, wanted: Iterable[str]) -> tuple[str, int]:
    """The delimiter that gives most of the columns, and where the rows begin.

    The line `sep=;`, which Excel reads and some programs write for it, says so itself.
    """
    if said := re.match(r'"?sep=([^"\r\n])"?\r?\n', text, re.I):
        return said[1], said.end()
    start = len(text) - len(text.lstrip(" \r\n\v\f" + DELIMITERS))
    start = max(text.rfind("\n", 0, start), text.rfind("\r", 0, start)) + 1
    wanted = [name.casefold() for name in wanted]

    def num_columns(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader(io.StringIO(text[start:], newline=""), delimiter=delimiter), [])
        names = [cell.strip().casefold() for cell in cells]
        return sum(name in names for name in wanted), len(names)

    return max(DELIMITERS, key=num_columns), start


# Excel --------------------------------------------------------------------------------------------


def _sheet_records(uri: str, data: bytes) -> Iterator[Record]:
    """The rows of a workbook's first sheet, each with its number there.

    Raises:
        DataError: openpyxl is not installed, or cannot read it.
    """
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{uri}: openpyxl is not installed. pip install -e '.[xlsx]', or save it as CSV."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of validations and styles, which are not read.
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # Which some programs write wrongly.
            rows = [[_text(value) for value in row] for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # A damaged workbook makes libraries raise anything.
        raise DataError(
            f"{uri}: not a readable .xlsx workbook ({type(error).__name__}). If it opens in Excel,"
            " save it without a password, or as CSV."
        ) from None
    yield from enumerate(rows, 1)
