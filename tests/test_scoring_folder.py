"""A scores folder is resumed or refused in one line, and what was computed is never deleted."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import sources, storage
from cxr.errors import SettingsError, StorageError
from cxr.scoring import parts
from cxr.scoring.columns import ColumnSettings
from cxr.scoring.manifest import ScoreSettings, check_output
from cxr.scoring.parts import FORMAT, SCORES

pytestmark = pytest.mark.cluster

STEPS = (
    "list<element: struct<kind: string, offset: int64, packed: int64, size: int64,"
    " method: int64, crc: int64>>"
)
FORMATS: dict[int, dict[str, Any]] = {
    1: {
        "scores": {
            "uri": "string", "sha256": "string", "status": "string", "reason": "string",
            "prob_pneumonia": "double", "logit": "double", "prediction": "string",
            "warnings": "list<element: string>", "width": "int64", "height": "int64",
            "format": "string",
        },
        "manifest": {
            "uri": "string", "file": "string", "place": STEPS, "size": "int64",
            "modified_ns": "int64", "status": "string", "reason": "string",
            "warnings": "list<element: string>",
        },
        "settings": ["format", "checkpoint", "inputs", "any_body_part"],
    },
}  # fmt: skip
FORMATS[2] = FORMATS[1] | {"settings": [*FORMATS[1]["settings"], "any_view"]}
FORMATS[3] = {
    "scores": {"uri": "string", "file": "string", **FORMATS[1]["scores"], "view": "string"},
    "manifest": FORMATS[1]["manifest"]
    | {"written": "string", "manifest": "string", "manifest_row": "int64"},
    "settings": [
        *FORMATS[2]["settings"], "operating_point", "columns", "keep_columns", "study_columns",
        "hash_key", "checkpoint_name",
    ],
}  # fmt: skip
# The manifest is a folder of files, too.
FORMATS[4] = FORMATS[3] | {
    "scores": FORMATS[3]["scores"] | {"unusual": "double", "unusual_warning": "bool"}
}
FORMATS[5] = FORMATS[4] | {"settings": [*FORMATS[4]["settings"], "dicom_sr", "begun"]}
"""What is on disk in each format. Another column is another format, and has an entry of its own."""

SETTINGS = ScoreSettings(
    ("/in",), any_body_part=False, any_view=False, checkpoint="abc", operating_point="youden"
)


def columns(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type).replace("item:", "element:") for field in schema}


def test_columns_are_those_of_the_format() -> None:
    assert max(FORMATS) == FORMAT
    written = {
        "scores": columns(SCORES),
        "manifest": columns(sources.INVENTORY),
        "settings": list(SETTINGS.to_json()),
    }
    assert written == FORMATS[FORMAT]
    assert SETTINGS.to_json()["format"] == FORMAT


def scores(*uris: str) -> pa.Table:
    row: dict[str, object] = {
        "sha256": "", "status": "unreadable", "reason": "the file is empty", "warnings": [],
        "prob_pneumonia": None, "logit": None, "prediction": None, "width": 0, "height": 0,
        "format": "", "view": "",
    }  # fmt: skip
    rows = [row | {"uri": uri, "file": uri} for uri in uris]
    return pa.Table.from_pylist(rows, schema=SCORES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scores folder of four parts with two rows each."""
    for part in range(4):
        uri = parts.part_file(str(tmp_path / "scores"), part)
        storage.write_table(uri, scores(f"{part}a", f"{part}b"))
    storage.write_json(str(tmp_path / "settings.json"), SETTINGS.to_json())
    return tmp_path


@pytest.fixture
def listed() -> dict[int, pa.Table]:
    rows = [{"uri": f"{part}{name}", "part": part} for part in range(4) for name in "ab"]
    return parts.by_part(pa.Table.from_pylist(rows))


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_finished_parts_are_taken_as_they_are(folder: Path, listed: dict[int, pa.Table]) -> None:
    before = everything(folder)
    assert parts.find_missing(str(folder / "scores"), listed, SCORES) == ([], 0)
    assert parts.remove_others(str(folder / "scores"), np.ones(4, dtype=bool)) == 0
    assert everything(folder) == before
    assert parts.read_parts(str(folder / "scores"), {3: listed[3]}, SCORES)[3].equals(
        scores("3a", "3b")
    )


def test_a_folder_that_is_not_there_has_no_parts(
    tmp_path: Path, listed: dict[int, pa.Table]
) -> None:
    assert parts.find_missing(str(tmp_path / "scores"), listed, SCORES) == ([0, 1, 2, 3], 0)
    assert parts.read_parts(str(tmp_path / "scores"), listed, SCORES) == {}
    assert parts.remove_others(str(tmp_path / "scores"), np.ones(4, dtype=bool)) == 0


def test_only_the_parts_of_a_file_of_the_manifest_are_looked_at(
    folder: Path, listed: dict[int, pa.Table]
) -> None:
    for name in ("000000000", "000000003", "000000010", "000000011"):
        (folder / "scores" / f"part-{name}.parquet").write_bytes(b"damaged")
    two = {part: listed[part] for part in (1, 2)}
    assert parts.find_missing(str(folder / "scores"), two, SCORES) == ([], 0)
    assert not (folder / "damaged").exists()


def test_damaged_parts_are_moved_and_nothing_is_lost(
    folder: Path, listed: dict[int, pa.Table]
) -> None:
    """A file cut short, another part's rows, and a part that the manifest does not have."""
    first, second, third, _ = sorted((folder / "scores").iterdir())
    first.write_bytes(first.read_bytes()[:300])
    second.write_bytes(third.read_bytes())
    unknown = folder / "scores" / "part-000000999.parquet"
    unknown.write_bytes(third.read_bytes())
    (folder / "scores" / "notes.txt").write_text("mine")
    unfinished = folder / "scores" / "part-000000001.parquet.0123abcd.part"
    unfinished.write_bytes(b"cut")
    before = everything(folder)
    assert parts.find_missing(str(folder / "scores"), listed, SCORES) == ([0, 1], 2)
    assert parts.remove_others(str(folder / "scores"), np.ones(4, dtype=bool)) == 1
    names = {path.name for path in (folder / "scores").iterdir()}
    assert names == {"part-000000002.parquet", "part-000000003.parquet", "notes.txt"}
    moved = {path.name[:22]: path.read_bytes() for path in (folder / "damaged").iterdir()}
    assert moved == {path.name: before[f"scores/{path.name}"] for path in (first, second, unknown)}


def test_reports_of_a_part_that_the_manifest_does_not_have_are_deleted(folder: Path) -> None:
    for part in (2, 3):
        report = storage.join(parts.reports_folder(str(folder / "scores"), part), "2.25.1.dcm")
        storage.write_bytes(report, b"report")
    parts.remove_others(str(folder / "scores"), np.array([True, True, True, False]))
    assert [path.name for path in (folder / "structured-reports").iterdir()] == ["part-000000002"]


def test_a_part_damaged_twice_is_kept_twice(folder: Path, listed: dict[int, pa.Table]) -> None:
    for data in (b"one", b"two"):
        (folder / "scores" / "part-000000001.parquet").write_bytes(data)
        assert parts.find_missing(str(folder / "scores"), listed, SCORES) == ([1], 1)
    assert sorted(path.read_bytes() for path in (folder / "damaged").iterdir()) == [b"one", b"two"]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns(["logit"]),
        lambda table: table.append_column("heat", pa.array([0.0, 0.0])),
        lambda table: table.cast(
            table.schema.set(table.schema.get_field_index("width"), pa.field("width", pa.int32()))
        ),
    ],
    ids=["one less", "one more", "another type"],
)
def test_a_part_with_other_columns_is_refused_and_kept(
    folder: Path, listed: dict[int, pa.Table], change: object
) -> None:
    path = folder / "scores" / "part-000000002.parquet"
    pq.write_table(change(pq.read_table(path)), path)  # type: ignore[operator]
    before = everything(folder)
    message = (
        rf"part-000000002\.parquet: does not have the columns of scores of format {FORMAT}\. Choose"
    )
    with pytest.raises(SettingsError, match=message):
        parts.find_missing(str(folder / "scores"), listed, SCORES)
    assert everything(folder) == before


@pytest.mark.parametrize("format", [0, FORMAT - 1, FORMAT + 1, None])
def test_a_folder_of_another_format_is_refused_and_kept(folder: Path, format: int | None) -> None:
    storage.write_json(str(folder / "settings.json"), SETTINGS.to_json() | {"format": format})
    before = everything(folder)
    message = (
        rf"holds scores of format {format}, and this version of cxr writes format {FORMAT}\."
        r" Choose another --output, or use the version that wrote them\.$"
    )
    with pytest.raises(SettingsError, match=message):
        check_output(str(folder), SETTINGS)
    assert everything(folder) == before


def test_a_folder_of_the_same_settings_is_resumed(folder: Path, tmp_path: Path) -> None:
    assert check_output(str(folder), SETTINGS)
    assert not check_output(str(tmp_path / "new"), SETTINGS)
    for option, other in (
        ("any_body_part", dataclasses.replace(SETTINGS, any_body_part=True)),
        ("any_view", dataclasses.replace(SETTINGS, any_view=True)),
    ):
        with pytest.raises(SettingsError, match=f"holds scores with {option} False, not True"):
            check_output(str(folder), other)
    kept = ColumnSettings(keep_columns=("Site",))
    for option, other in (
        ("operating_point youden", dataclasses.replace(SETTINGS, operating_point="sensitivity=1")),
        ("keep_columns", dataclasses.replace(SETTINGS, columns=kept)),
        ("hash_key , not abc", dataclasses.replace(SETTINGS, key_digest="abc")),
    ):
        with pytest.raises(SettingsError, match=f"holds scores with {option}"):
            check_output(str(folder), other)
    (folder / "settings.json").unlink()
    with pytest.raises(StorageError, match="exists already"):
        check_output(str(folder), SETTINGS)


def test_another_checkpoint_is_named_by_folder_and_date(tmp_path: Path) -> None:
    first = dataclasses.replace(SETTINGS, checkpoint_name="/runs/1 (written 2026-05-01)")
    storage.write_json(str(tmp_path / "settings.json"), first.to_json())
    check_output(str(tmp_path), dataclasses.replace(first, checkpoint_name="/copy of it"))
    other = dataclasses.replace(
        SETTINGS, checkpoint="0123abcd", checkpoint_name="/runs/2 (written 2026-06-01)"
    )
    with pytest.raises(SettingsError) as refused:
        check_output(str(tmp_path), other)
    assert str(refused.value) == (
        f"{tmp_path}: holds scores with checkpoint /runs/1 (written 2026-05-01), not /runs/2"
        " (written 2026-06-01). Choose another --output, or repeat the first command."
    )
