"""What parts add up to is what all rows together do, in whatever pieces they are counted."""

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest

from cxr import storage
from cxr.scoring.parts import SCORES, by_part, part_file
from cxr.scoring.totals import NUM_SHOWN, Totals, count, count_file, csv_lines

THRESHOLD = 0.5

KEPT = pa.schema([*SCORES, ("who", pa.string())])


def scores(num_rows: int) -> pa.Table:
    """Rows of all kinds; every seventh image has the same score."""
    rows: list[dict[str, Any]] = []
    for number in range(num_rows):
        name = f"/x/{number:03}, 'a'.dcm"
        row: dict[str, Any] = {
            "uri": name, "file": name, "sha256": "", "warnings": [], "width": 1, "height": 1,
            "format": "dicom" if number % 3 else "", "view": "", "who": f"p{number % 11}",
        }  # fmt: skip
        if number % 4:
            logit = float(number % 7)
            row |= {
                "status": "scored", "reason": "", "logit": logit, "prob_pneumonia": logit / 7,
                "prediction": "PNEUMONIA" if logit / 7 >= THRESHOLD else "NORMAL",
                "warnings": [f"{number} pixels, padded"] * (number % 5 == 0),
            }  # fmt: skip
        elif number % 8:
            row |= {"status": "refused", "reason": f"an image of {number} x 3 pixels"}
        else:
            row |= {"status": "unreadable", "reason": "the file is empty"}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=KEPT)


def listed(table: pa.Table) -> pa.Table:
    return pa.table({"uri": table["file"], "part": pa.array(range(len(table)))})


def facts(totals: Totals) -> list[Any]:
    return [
        list(totals.statuses.items()),
        [(key, value.count, value.examples) for key, value in totals.failures.items()],
        totals.warnings, list(totals.formats.items()), totals.num_predicted,
        totals.histogram.tolist(), [image.score["file"] for image in totals.highest],
        [image.score["file"] for image in totals.nearest],
        [image.listed["uri"] for image in totals.highest],
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 9, 40])
def test_pieces_add_up_to_the_whole(size: int) -> None:
    table = scores(120)
    whole = count(table, listed(table), THRESHOLD)
    pieces = Totals(THRESHOLD)
    for start in range(0, len(table), size):
        piece = table.slice(start, size)
        pieces.add(count(piece, listed(piece), THRESHOLD))
    assert facts(pieces) == facts(whole)


def test_counts_are_those_of_the_rows() -> None:
    table = scores(120)
    rows = table.to_pylist()
    totals = count(table, listed(table), THRESHOLD)
    scored = [row for row in rows if row["status"] == "scored"]
    assert totals.num_rows == 120
    assert totals.statuses == {"scored": 90, "refused": 15, "unreadable": 15}
    assert {key: value.count for key, value in totals.failures.items()} == {
        ("unreadable", "the file is empty"): 15,
        ("refused", "an image of N x N pixels"): 15,
    }
    assert totals.failures["unreadable", "the file is empty"].examples == [
        rows[number]["file"] for number in (0, 8, 16)
    ]
    assert sum(totals.warnings.values()) == sum(len(row["warnings"]) for row in scored)
    assert len(totals.warnings) == 1
    assert totals.num_predicted == sum(row["prediction"] == "PNEUMONIA" for row in scored)
    assert totals.histogram.sum() == 90
    assert len(totals.highest) == len(totals.nearest) == NUM_SHOWN
    # The same score: as the manifest has them.
    best = [row["file"] for row in scored if row["logit"] == 6][:NUM_SHOWN]
    assert [image.score["file"] for image in totals.highest] == best
    distances = sorted(abs(row["prob_pneumonia"] - THRESHOLD) for row in scored)
    near = [abs(image.score["prob_pneumonia"] - THRESHOLD) for image in totals.nearest]
    assert near == distances[:NUM_SHOWN]


def test_nothing_is_counted_where_nothing_was_scored() -> None:
    table = scores(120).filter(pa.array([number % 4 == 0 for number in range(120)]))
    totals = count(table, listed(table), THRESHOLD)
    assert (totals.highest, totals.nearest, totals.num_predicted) == ([], [], 0)
    assert totals.histogram.sum() == 0


@pytest.mark.parametrize("compressed", [False, True])
def test_lines_of_pieces_are_one_csv(compressed: bool, tmp_path: Path) -> None:
    """Also where they are compressed one by one, and for who reads them."""
    table = scores(120)
    path = tmp_path / ("scores.csv.gz" if compressed else "scores.csv")
    pieces = [table.slice(0, 50), table.slice(50, 0), table.slice(50)]
    path.write_bytes(
        csv_lines(table.slice(0, 0), compressed=compressed, header=True)
        + b"".join(csv_lines(piece, compressed=compressed) for piece in pieces)
    )
    data = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    assert data == csv_lines(table, compressed=False, header=True)
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert [row["uri"] for row in rows] == table["uri"].to_pylist()
    assert rows[5]["warnings"] == "5 pixels, padded"
    for uris in (
        pandas.read_csv(path)["uri"].to_list(),
        polars.read_csv(path)["uri"].to_list(),
        [uri for (uri,) in duckdb.execute(f"SELECT uri FROM read_csv('{path}')").fetchall()],
    ):
        assert uris == table["uri"].to_pylist()


def test_a_file_without_studies_has_a_table_for_each_partition(tmp_path: Path) -> None:
    table = scores(4).set_column(KEPT.get_field_index("who"), "who", pa.nulls(4, pa.string()))
    uri, folder = str(tmp_path / "manifest-00000.parquet"), str(tmp_path / "scores")
    storage.write_table(uri, pa.table({"uri": table["file"], "part": pa.array([0] * 4)}))
    storage.write_table(part_file(folder, 0), table)
    counted: list[Any] = list(count_file(uri, folder, KEPT, THRESHOLD, "who", 3, False))
    assert [len(partition) for partition in counted[1:4]] == [0, 0, 0]
    assert counted[4] == csv_lines(table, compressed=False)


def test_a_file_of_the_manifest_is_counted_and_missing_parts_are_named(tmp_path: Path) -> None:
    table = scores(120)
    rows = pa.table({"uri": table["file"], "part": pa.array([i // 30 for i in range(120)])})
    uri, folder = str(tmp_path / "manifest-00000.parquet"), str(tmp_path / "scores")
    storage.write_table(uri, rows)
    for part, of_part in by_part(rows).items():
        start = 30 * part
        storage.write_table(part_file(folder, part), table.slice(start, len(of_part)))
    arguments = (uri, folder, KEPT, THRESHOLD, "who", 3, False)
    counted: list[Any] = list(count_file(*arguments))
    totals, *groups, lines = counted
    assert isinstance(totals, Totals)
    assert facts(totals) == facts(count(table, rows, THRESHOLD))
    assert totals.missing == []
    assert lines == csv_lines(table, compressed=False)
    names = [set(group["who"].to_pylist()) for group in groups]
    assert sorted(name for group in names for name in group) == sorted({f"p{i}" for i in range(11)})
    # The same study is in the same partition, whatever file of the manifest it is in.
    storage.write_table(part_file(folder, 2), table.slice(0, 1))
    counted = list(count_file(*arguments))
    totals, *again, lines = counted
    assert totals.missing == [2]
    assert all(
        set(group["who"].to_pylist()) <= other for group, other in zip(again, names, strict=True)
    )
