"""A listing of any size is the same rows in the same parts, however often it is cut or damaged."""

import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import sources, storage
from cxr.errors import CxrError, StorageError
from cxr.scoring import work
from cxr.scoring.columns import ColumnSettings
from cxr.scoring.listing import RowLister
from cxr.scoring.manifest import Manifest, ScoreSettings, check_output
from cxr.scoring.parts import SCORES, by_part, part_file
from cxr.scoring.work import Work
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

FILE_ROWS = 7


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the manifest of a few rows."""
    monkeypatch.setattr(work, "FILE_ROWS", FILE_ROWS)
    monkeypatch.setattr(work, "MAX_COST", 3 * 32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """12 files in a folder, one of them in a manifest with 4 members of zips, 10 members in all."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "folder").mkdir()
    for number in range(12):
        (root / "folder" / f"{number:02}.jpeg").write_bytes(b"x")
    (root / "folder" / "notes.txt").write_bytes(b"x")
    for name in ("whole", "some"):
        with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
            for number in range(10):
                archive.writestr(f"{number}.jpeg", b"x")
    (root / "list.csv").write_text(
        "uri,Site\nsome.zip!/9.jpeg,N\nfolder/03.jpeg,O\ngone.jpeg,P\nsome.zip!/2.jpeg,Q\n"
        "folder/03.jpeg,R\nsome.zip!/4.jpeg,S\nsome.zip!/gone.jpeg,T\n"
    )
    return tuple(str(root / name) for name in ("whole.zip", "folder", "list.csv"))


ASKED = ColumnSettings(keep_columns=("Site",))


def settings(inputs: tuple[str, ...]) -> ScoreSettings:
    return ScoreSettings(
        inputs, any_body_part=False, any_view=False, checkpoint="abc", operating_point="youden",
        columns=ASKED,
    )  # fmt: skip


def list_all(
    output: Path, inputs: tuple[str, ...], *, update: bool = False, lister: Any = None
) -> list[int]:
    """List as a job does; the parts that it would compute."""
    asked = settings(inputs)
    resumed = check_output(str(output), asked)
    manifest = Manifest(str(output))
    if lister is None and (update or not manifest.is_complete):
        lister = RowLister(inputs, ASKED)
    parts: list[int] = []
    with Work(
        str(output), asked, manifest, SCORES, lister, resumed=resumed, update=update
    ) as found:
        for batch in found.tasks():
            for task in batch or []:
                parts += [rows["part"][0].as_py() for rows in task]
    assert found.listing is not None
    assert found.num_listed == found.listing.num_rows
    return sorted(parts)


def tables(output: Path) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted((output / "manifest").iterdir())]


def write_scores(output: Path, *parts: int) -> None:
    """Scores of some parts, as if they were computed."""
    listed = by_part(pa.concat_tables(tables(output)))
    for part in parts:
        blank = {"status": "unreadable", "warnings": [], "format": "", "view": "", "reason": "x"}
        rows = [blank | {"uri": uri, "file": uri} for uri in listed[part]["uri"].to_pylist()]
        uri = part_file(str(output / "scores"), part)
        storage.write_table(uri, pa.Table.from_pylist(rows, schema=SCORES))


@pytest.fixture(scope="module")
def whole(inputs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a listing that nothing has cut."""
    output = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "FILE_ROWS", FILE_ROWS)
        patch.setattr(work, "MAX_COST", 3 * 32)
        list_all(output, inputs)
    return output


def test_each_file_is_listed_once_in_a_stable_order(whole: Path, inputs: tuple[str, ...]) -> None:
    """What manifests name, then folders, then members of archives by the archive's name."""
    root = Path(inputs[0]).parent
    rows = pa.concat_tables(tables(whole)).to_pylist()
    folder = [f"folder/{number:02}.jpeg" for number in range(12) if number != 3]
    members = [f"some.zip!/{name}.jpeg" for name in ("2", "4", "9", "gone")]
    expected = ["folder/03.jpeg", "gone.jpeg", *folder, *members]
    expected += [f"whole.zip!/{number}.jpeg" for number in range(10)]
    assert [row["uri"].removeprefix(f"{root}/") for row in rows] == expected
    sites = {row["uri"].removeprefix(f"{root}/"): row["kept"] for row in rows if row["manifest"]}
    assert {uri: kept["Site"] for uri, kept in sites.items()} == {
        "folder/03.jpeg": "O", "gone.jpeg": "P", "some.zip!/9.jpeg": "N", "some.zip!/2.jpeg": "Q",
        "some.zip!/4.jpeg": "S", "some.zip!/gone.jpeg": "T",
    }  # fmt: skip
    assert {row["kept"] is None for row in rows if not row["manifest"]} == {True}
    sizes = [len(table) for table in tables(whole)]
    assert sizes == [7, 7, 7, 6]
    parts = [row["part"] for row in rows]
    assert parts == sorted(parts)
    assert set(parts) == set(range(parts[-1] + 1))
    content = json.loads((whole / "listing.json").read_text())
    assert (content["rows"], content["skipped"]) == (27, {".txt": 1})
    assert [file["num_rows"] for file in content["files"]] == sizes


class CutLister(RowLister):
    """A lister whose store fails after some rows."""

    def __init__(self, inputs: tuple[str, ...], num_rows: int) -> None:
        super().__init__(inputs, ASKED)
        self.left = num_rows

    def pages(self) -> Iterator[pa.Table]:
        for page in super().pages():
            yield page.slice(0, self.left)
            self.left -= len(page)
            if self.left <= 0:
                raise StorageError("s3://bucket: cannot be listed: 503.")


@pytest.mark.parametrize("num_rows", [1, 8, 22])
def test_a_listing_that_was_cut_continues_with_the_same_rows_and_parts(
    whole: Path, inputs: tuple[str, ...], num_rows: int, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with pytest.raises(CxrError, match="cannot be listed: 503"):
        list_all(output, inputs, lister=CutLister(inputs, num_rows))
    written = tables(output) if (output / "manifest").exists() else []
    assert len(written) == num_rows // FILE_ROWS
    assert not (output / "listing.json").exists()
    if written:
        write_scores(output, 0)
    parts = list_all(output, inputs)
    assert tables(output) == tables(whole)
    assert (output / "listing.json").read_text() == (whole / "listing.json").read_text()
    last = pa.concat_tables(tables(whole))["part"][-1].as_py()
    assert parts == list(range(1 if written else 0, last + 1))


@pytest.mark.parametrize("lost", [(0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_files_of_the_manifest_that_are_lost_are_listed_again_and_no_score_is(
    whole: Path, inputs: tuple[str, ...], lost: tuple[int, ...], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    list_all(output, inputs)
    last = pa.concat_tables(tables(whole))["part"][-1].as_py()
    write_scores(output, *range(last))
    for number in lost:
        path = output / "manifest" / f"manifest-{number:05}.parquet"
        if number % 2:
            path.write_bytes(path.read_bytes()[:-20])
        else:
            path.unlink()
    capsys.readouterr()
    assert list_all(output, inputs) == [last]
    assert tables(output) == tables(whole)
    lines = capsys.readouterr().out
    assert lines.count("damaged or missing; the inputs are listed again") == len(lost)
    assert len(list(output.glob("damaged/*"))) == sum(number % 2 for number in lost)


def test_an_update_appends_what_is_new_to_a_manifest_of_several_files(
    inputs: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpeg").write_bytes(b"x")
    named = (str(folder), inputs[2])
    first = list_all(output, named)
    before = tables(output)
    (folder / "4.jpeg").unlink()
    (folder / "00.jpeg").write_bytes(b"x")
    (folder / "99.jpeg").write_bytes(b"x")
    write_scores(output, *first)
    again = list_all(output, named, update=True)
    assert "update: 2 new; 1 of the 16 known are gone" in capsys.readouterr().out
    *kept, new = tables(output)
    assert kept == before
    assert [Path(uri).name for uri in new["uri"].to_pylist()] == ["00.jpeg", "99.jpeg"]
    assert set(again) == set(new["part"].to_pylist())
    assert min(again) == max(first) + 1
    assert list_all(output, named) == again


def test_scoring_begins_before_the_listing_has_ended(
    inputs: tuple[str, ...], tmp_path: Path
) -> None:
    """The folder's rows are handed over while the lister waits before the archives."""
    goes_on = threading.Event()

    class Waiting(RowLister):
        def pages(self) -> Iterator[pa.Table]:
            pages = super().pages()
            yield next(pages)
            yield next(pages)
            assert goes_on.wait(60)
            yield from pages

    asked = settings(inputs)
    manifest = Manifest(str(tmp_path))
    with Work(
        str(tmp_path), asked, manifest, SCORES, Waiting(inputs, ASKED), resumed=False, update=False
    ) as found:
        batches = found.tasks()
        first = next(batches)
        assert first
        assert not (tmp_path / "listing.json").exists()
        assert found.total is None
        goes_on.set()
        num_rows = sum(len(rows) for batch in [first, *batches] for t in batch or [] for rows in t)
    assert num_rows == found.total == 27


def test_a_listing_ends_with_its_job_and_writes_no_rows_of_a_piece(
    inputs: tuple[str, ...], tmp_path: Path
) -> None:
    class Endless(RowLister):
        def pages(self) -> Iterator[pa.Table]:
            for page in super().pages():
                yield page
                yield page.slice(0, 0)
            while True:
                time.sleep(0.01)
                yield page.slice(0, 0)

    found = Work(
        str(tmp_path), settings(inputs), Manifest(str(tmp_path)), SCORES, Endless(inputs, ASKED),
        resumed=False, update=False,
    )  # fmt: skip
    with found:
        wait_until(lambda: found.num_listed == 21, 60)
    assert not found.is_alive()
    assert [len(table) for table in tables(tmp_path)] == [7, 7, 7]
    assert not (tmp_path / "listing.json").exists()


def test_inputs_that_name_nothing_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(CxrError, match=r"in: no radiographs found\. Passed over: nothing\."):
        list_all(tmp_path / "out", (str(tmp_path / "in"),), lister=RowLister(
            (str(tmp_path / "in"),), ColumnSettings()))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_pages_of_an_archive_are_its_list(inputs: tuple[str, ...]) -> None:
    table, skipped = sources.list_archive(inputs[0], ["3.jpeg", "gone"])
    assert [uri.rpartition("/")[2] for uri in table["uri"].to_pylist()] == ["3.jpeg", "gone"]
    assert skipped == {}
