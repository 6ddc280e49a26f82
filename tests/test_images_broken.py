"""An archive of broken, hostile and odd files: every one has its row, and nothing else happens."""

import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cxr import sources
from cxr.images import decoding
from cxr.images.read import read_images
from tests.support.broken import DICOM, JPEG, PNG, TABLE, TIFF, Broken
from tests.support.folders import as_nobody, readable_folder
from tests.support.radiographs import PATIENT

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of the table's files."""

    folder: Path
    rows: list[Row]
    skipped: dict[str, Counter[str]]
    """By the file that was passed over or the archive that holds it."""
    before: dict[str, tuple[int, int]]
    after: dict[str, tuple[int, int]]


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that is in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_size, facts.st_mtime_ns)
    return found


def score_all(folder: Path) -> tuple[list[Row], dict[str, Counter[str]]]:
    """List a folder, let happen what happens meanwhile, and read what was listed."""
    with as_nobody():
        found = sources.list_inputs([str(folder)])
        listed: list[Row] = found.table().to_pylist()
        skipped = {uri: Counter([kind]) for uri, kind in found.other_files.items()}
        for archive, wanted in sorted(found.archives.items()):
            table, counts = sources.list_archive(archive, wanted)
            listed += table.to_pylist()
            skipped[archive] = Counter(counts)
    for broken in TABLE:
        if broken.then:
            broken.then(folder / broken.name)
    with as_nobody():
        images = list(read_images(listed, 64))
    rows: list[Row] = [
        {
            "uri": row["uri"],
            "status": "scored" if image.status == "ok" else image.status,
            "reason": image.reason,
            "warnings": image.warnings,
            "x": image.pixels,
        }
        for row, image in zip(listed, images, strict=True)
    ]
    return rows, skipped


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    with readable_folder() as place:
        folder = place / "around" / "archive"
        folder.mkdir(parents=True)
        for broken in TABLE:
            path = folder / broken.name
            if isinstance(broken.content, bytes):
                path.write_bytes(broken.content)
            else:
                broken.content(path)
        # Imports what nobody may not: Python itself may lie in root's home.
        for data in (PNG, JPEG, TIFF, DICOM):
            assert decoding.decode(data).status == "ok"
        assert len(sources.list_archive(str(folder / "sound.zip"), None)[0]) == 2
        before = everything(place)
        rows, skipped = score_all(folder)
        yield Outcome(folder, rows, skipped, before, everything(place))


def uri_of(folder: Path, broken: Broken) -> str:
    path = folder / broken.name
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.as_uri()
    return str(path)


@pytest.mark.parametrize("broken", TABLE, ids=[ascii(broken.name) for broken in TABLE])
def test_every_file_is_scored_or_explained(outcome: Outcome, broken: Broken) -> None:
    uri = uri_of(outcome.folder, broken)
    rows = {row["uri"]: row for row in outcome.rows if is_of(row, uri)}
    assert {each: row["status"] for each, row in rows.items()} == {
        uri + row.suffix: row.status for row in broken.rows
    }
    for expected in broken.rows:
        row = rows[uri + expected.suffix]
        is_scored = row["status"] == "scored"
        said = "; ".join(row["warnings"]) if is_scored else row["reason"]
        assert expected.words in said
        assert bool(said) == (bool(expected.words) or not is_scored)
        assert (row["reason"] == "") == is_scored
        assert (row["x"] is not None) == is_scored
    assert outcome.skipped.get(uri, Counter()) == broken.skipped


def is_of(row: Row, uri: str) -> bool:
    return bool(row["uri"] == uri or row["uri"].startswith((f"{uri}!/", f"{uri}/")))


def test_nothing_is_listed_twice_or_from_nowhere(outcome: Outcome) -> None:
    uris = [row["uri"] for row in outcome.rows]
    assert len(uris) == len(set(uris)) == sum(len(broken.rows) for broken in TABLE)
    assert (
        not set(outcome.skipped)
        - {uri_of(outcome.folder, broken) for broken in TABLE}
        - {uri for uri, counts in outcome.skipped.items() if not counts}
    )


def test_nothing_is_written_or_changed_anywhere_around(outcome: Outcome) -> None:
    changed = {str(outcome.folder / broken.name) for broken in TABLE if broken.then}
    changed.add(str(outcome.folder))  # Whose files vanish.
    assert set(outcome.after) <= set(outcome.before)
    assert {path for path in outcome.before if outcome.after.get(path) != outcome.before[path]} == (
        changed
    )
    for name in ("/tmp/absolute.png", "/tmp/escaped.png", "/tmp/up.png"):
        assert not Path(name).exists()


def test_the_table_is_long_enough_to_mean_something(outcome: Outcome) -> None:
    assert len(TABLE) >= 45
    assert len({broken.name for broken in TABLE}) == len(TABLE)
    statuses = Counter(row["status"] for row in outcome.rows)
    assert min(statuses["scored"], statuses["refused"], statuses["unreadable"]) > 10


def test_neither_reasons_nor_warnings_quote_a_patient(outcome: Outcome) -> None:
    for row in outcome.rows:
        text = f"{row['reason']} {row['warnings']}"
        for value in PATIENT.values():
            assert value not in text


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_thirty_thousand_members_take_seconds(tmp_path: Path) -> None:
    """No time is asserted: what takes a time that grows with the square would not end."""
    path = tmp_path / "many.zip"
    names = [f"{i % 100}/{i}.png" for i in range(30_000)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"")
    some = names[::10]
    for wanted in (some, None):
        table, skipped = sources.list_archive(str(path), wanted)
        assert table["uri"].to_pylist() == [f"{path}!/{name}" for name in wanted or names]
        assert set(table["reason"].to_pylist()) == {"the file is empty"}
        assert skipped == {}
    images = read_images(table.to_pylist(), 64)
    num_read = 0
    for image, name, uri in zip(images, names, table["uri"].to_pylist(), strict=True):
        num_read += uri == f"{path}!/{name}" and image.status == "unreadable"
    assert num_read == len(names)
