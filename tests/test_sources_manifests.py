"""Manifests are read as people have them, or refused in one line that shows none of their cells."""

import codecs
import datetime
import gzip
import sys
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import sources
from cxr.errors import CxrError, DataError, SettingsError
from cxr.sources.manifests import read_manifest
from cxr.sources.settings import SetSettings, parse_columns, parse_labels

SECRET = "Doe^Jane"
"""Stands in cells; no message may repeat it."""

ROWS = [
    ["Größe, cm", "uri", "label", "patient", "note"],
    ["3", "images/a 1.png", "0", "007", "two\nlines"],
    ["", "b.png", "1", "0012", 'a "word"; and, more|'],
]
"""A manifest whose cells contain every delimiter, quotation marks and a line break."""


def quoted(rows: list[list[str]], delimiter: str, end: str = "\n") -> str:
    lines = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return end.join(lines) + end


def write(folder: Path, name: str, data: bytes | str) -> str:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder / name)


def write_workbook(path: Path, rows: list[list[object]]) -> str:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.create_sheet("second").append(["uri"])
    book.save(path)
    return str(path)


def cells(uri: str) -> list[list[str]]:
    table = read_manifest(uri).table
    assert set(table.schema.types) == {pa.string()}
    return [table.column_names, *(list(row.values()) for row in table.to_pylist())]


# Forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("cp1252", b""),
    ],
)
def test_any_delimiter_and_encoding_is_read(
    tmp_path: Path, delimiter: str, encoding: str, mark: bytes
) -> None:
    data = mark + quoted(ROWS, delimiter).encode(encoding)
    assert cells(write(tmp_path, "m.csv", data)) == ROWS
    assert cells(write(tmp_path, "m.CSV.GZ", gzip.compress(data, mtime=0))) == ROWS
    assert cells(write(tmp_path, "m.tsv", data)) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nuri;label\r\na.png;0\r\nb, c.png;1\r\n",
        "uri;label;;\r\na.png;0;;\r\n;;;\r\nb, c.png;1;;\r\n;;;\r\n",
        ";;\r\n\r\nuri;label;\r\n;;\r\na.png;0\r\n\r\nb, c.png;1\r\n",
        " uri ;label\na.png;0\nb, c.png;1",
        "uri;label\ra.png;0\rb, c.png;1\r",
        '"uri";"label"\n"a.png";0\n"b, c.png";1\n',
    ],
)
def test_what_excel_leaves_behind_is_dropped(tmp_path: Path, text: str) -> None:
    uri = write(tmp_path, "m.csv", text)
    assert cells(uri) == [["uri", "label"], ["a.png", "0"], ["b, c.png", "1"]]


def test_the_delimiter_is_the_one_that_gives_the_columns(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.csv", "File;Size, cm, of the film, as read\na.png;3\n")
    manifest = read_manifest(uri, ["uri=file"])
    assert manifest.columns == {"uri": "File"}
    assert manifest.cells("uri").to_pylist() == ["a.png"]


def test_rows_that_are_cut_short_end_in_empty_cells(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.csv", "uri,label,note\na.png,0\nb.png,1,x\n")
    assert cells(uri)[1:] == [["a.png", "0", ""], ["b.png", "1", "x"]]


def test_columns_get_unique_names(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.csv", ",uri,site,site, ,\n0,a.png,x,y,,\n1,b.png,x,y,,z\n")
    assert cells(uri)[0] == ["column 1", "uri", "site", "site.1", "column 6"]


def test_a_cell_may_be_as_long_as_the_file(tmp_path: Path) -> None:
    note = "a line\n" * 500_000
    uri = write(tmp_path, "m.csv", f'uri,note\na.png,"{note}"\nb.png,\n')
    manifest = read_manifest(uri)
    assert manifest.table["note"].to_pylist() == [note, ""]
    assert manifest.locate([0, 1]) == "row 1 (line 2), row 2 (line 500003)"


def test_columns_are_compared_without_case_where_none_is_spelled_the_same(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.csv", "URI,Label,label,Patient\na.png,x,0,007\n")
    manifest = read_manifest(uri)
    assert manifest.columns == {"uri": "URI", "label": "label", "patient": "Patient"}


def test_a_workbook_reads_as_the_same_csv(tmp_path: Path) -> None:
    date = datetime.datetime(2024, 5, 1)
    rows: list[list[object]] = [
        [None, None],
        [" uri ", "label", "patient", "score", "taken", None],
        ["a.png", 0, "007", 1.5, date],
        [None, None, " "],
        ["b.png", 1.0, 12, None, None, None],
    ]
    uri = write_workbook(tmp_path / "m.XLSX", rows)
    assert cells(uri) == [
        ["uri", "label", "patient", "score", "taken"],
        ["a.png", "0", "007", "1.5", "2024-05-01 00:00:00"],
        ["b.png", "1", "12", "", ""],
    ]
    assert read_manifest(uri).locate([1]) == "row 2 (sheet row 5)"


def test_a_parquet_file_reads_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": pa.array(["a.png", "b.png"]).dictionary_encode(),
            "label": [1.0, None],
            "patient": ["007", None],
            "views": [["PA"], []],
            "raw": [b"x", b"\xff"],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    assert cells(str(tmp_path / "m.parquet"))[1:] == [
        ["a.png", "1", "007", "['PA']", "x"],
        ["b.png", "", "", "[]", "\N{REPLACEMENT CHARACTER}"],
    ]
    assert read_manifest(str(tmp_path / "m.parquet")).locate([1]) == "row 2"


def test_manifests_of_the_shared_cases_are_read(real_data: Path) -> None:
    folder = real_data / "cases" / "manifests"
    assert cells(str(folder / "utf16.csv")) == [["uri"], ["images/img0.png"]]
    assert cells(str(folder / "latin1_header.csv")) == [["uri", "Größe"], ["images/img0.png", "3"]]
    settings = SetSettings(patients="file")
    listed = sources.list_radiographs(str(folder / "semicolon.csv"), "train", settings)
    assert sorted(listed["label"].to_pylist()) == [0, 0, 0, 1, 1, 1]


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", b"", r"not a folder, an archive or a manifest: it is empty\.$"),
        ("m.csv", b" \n;;\n", r"manifest: it is empty\.$"),
        ("m.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "manifest: it is not text"),
        ("m.csv", bytes(128) + b"DICM", "manifest: it is not text"),
        ("m.csv", b"PK\3\4 \0\1", "manifest: it is not text"),
        ("m.csv", codecs.BOM_UTF16_LE + b"uri", "it is not text in UTF-8, UTF-16"),
        (
            "m.csv",
            f'uri,note\na.png,x\nb.png,"{SECRET}\nc.png',
            r"row that begins in line 3 is not",
        ),
        ("m.csv", f'uri,note\na.png,"x" {SECRET}\n', r"row that begins in line 2 is not CSV"),
        (
            "m.csv",
            "uri,note\n" + f"a.png,{SECRET},x\n" * 5,
            r"more cells than columns in row 1 \(line 2\), row 2 \(line 3\), row 3 \(line 4\) and 2"
            r" more\. Put",
        ),
        ("m.csv.gz", b"uri\na.png\n", "not a gzip file, or damaged"),
        (
            "m.csv.gz",
            gzip.compress(b"uri\na.png\n" * 99, mtime=0)[:-12],
            "not a gzip file, or damaged",
        ),
        ("m.parquet", b"uri\na.png\n", "not a Parquet file"),
        ("m.xlsx", b"uri\na.png\n", r"not a readable \.xlsx workbook \(BadZipFile\)\. If it opens"),
        ("m.csv", f"images/0001.png,0,{SECRET}\n", "its first line seems to hold data"),
        ("m.csv", f"{SECRET},0,images/0001\n", "its first line seems to hold data"),
        ("m.csv", f"image,2024-05-01,{SECRET}\n", "its first line seems to hold data"),
        ("m.csv", f"image,p10000032,{SECRET}\n", "its first line seems to hold data"),
        (
            "m.csv",
            f"Path,Frontal/Lateral\na.png,{SECRET}\n",
            r"lacks column uri; found Path, Frontal/Lateral\. .*--columns uri=COLUMN\.$",
        ),
        ("m.csv", ",".join(f"c{i}" for i in range(50)), r"found c0, .*, c39 and 10 more\."),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, name: str, data: bytes | str, message: str
) -> None:
    uri = write(tmp_path, name, data)
    with pytest.raises(CxrError, match=message) as caught:
        read_manifest(uri)
    assert str(caught.value).startswith(f"{uri}: ")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_damaged_workbook_is_refused(tmp_path: Path) -> None:
    uri = write_workbook(tmp_path / "m.xlsx", [["uri"], ["a.png"]])
    data = Path(uri).read_bytes()
    for damaged in (data[: len(data) // 2], data.replace(b"workbook.xml", b"workbook.xmm")):
        Path(uri).write_bytes(damaged)
        with pytest.raises(DataError, match=r"m\.xlsx: not a readable \.xlsx workbook"):
            read_manifest(uri)


def test_a_workbook_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_workbook(tmp_path / "m.xlsx", [["uri"]])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"openpyxl is not installed\. pip install -e '\.\[xlsx\]'"):
        read_manifest(uri)


def test_a_column_that_was_given_has_to_be_there(tmp_path: Path) -> None:
    uri = write(tmp_path, "m.csv", "File,Finding\na.png,0\n")
    message = r"lacks column Datei, PatientID; found File, Finding\. .*uri=COLUMN patient=COLUMN"
    with pytest.raises(DataError, match=message):
        read_manifest(uri, ["uri=Datei", "patient=PatientID"])


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        (("File",), (), "columns: 'File' is not NAME=VALUE with a name of uri, label, patient"),
        (("file=File",), (), "columns: 'file=File' is not NAME=VALUE with a name of uri, label"),
        (("uri=",), (), "columns: 'uri=' is not NAME=VALUE"),
        (("uri=A", "uri=B"), (), "columns: uri is given 2 times"),
        ((), ("healthy=0",), "labels: 'healthy=0' is not NAME=VALUE with a name of NORMAL, PNEUM"),
        ((), ("normal=a", "Pneumonia=b, A"), "labels: 'a' stands for both classes"),
        ((), ("normal=1",), "labels: '1' stands for both classes"),
    ],
)
def test_settings_of_manifests_are_checked(
    columns: tuple[str, ...], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{message}"):
        SetSettings(columns=columns, labels=labels)


def test_settings_of_manifests_are_parsed() -> None:
    assert parse_columns(["URI=Image Path", "label=a=b"]) == {"uri": "Image Path", "label": "a=b"}
    normal, pneumonia = "NORMAL", "PNEUMONIA"
    by_default = {"normal": normal, "0": normal, "pneumonia": pneumonia, "1": pneumonia}
    assert parse_labels(()) == by_default
    given = ["normal=No finding", "Normal=clear ", "pneumonia=Pneumonia,Infiltrate"]
    assert parse_labels(given) == {
        "no finding": normal,
        "clear": normal,
        "pneumonia": pneumonia,
        "infiltrate": pneumonia,
    }
    assert parse_labels(["pneumonia=Pneumonie"]) == {
        "normal": normal,
        "0": normal,
        "pneumonie": pneumonia,
    }
