"""Archives in, a row for every listed image out: once, bitwise the same, however often killed."""

import contextlib
import csv
import dataclasses
import gc
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from cxr import sources, storage
from cxr.images import decoding
from cxr.images.resize import resize
from cxr.models import checkpoint, transforms
from cxr.models.outputs import logit
from cxr.scoring import manifest, parts, read
from tests.support.jobs import ROOT, Ended, Job, execute
from tests.support.radiographs import PATIENT, dicom, drawn, radiograph
from tests.support.waiting import wait_until

PLANTED = ("Roentgen", *PATIENT.values())

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 images in a folder, a zip, a tar.gz and a zip within a zip; 3 of them broken."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "loose" / "deep").mkdir(parents=True)
    for i in range(6):
        (folder / "loose" / "deep" / f"{i}.jpeg").write_bytes(radiograph(i))
    (folder / "loose" / "DICOM").write_bytes(dicom(drawn(seed=6), ViewPosition="PA"))
    (folder / "loose" / "half.jpeg").write_bytes(radiograph(7)[:2000])
    (folder / "loose" / "empty.dcm").write_bytes(b"")
    (folder / "loose" / "readme.txt").write_text("not an image")
    (folder / "loose" / ".DS_Store").write_bytes(b"junk")
    with zipfile.ZipFile(folder / "old.zip", "w", zipfile.ZIP_DEFLATED) as members:
        members.comment = b"Roentgen P4711"
        for i in range(10, 20):
            members.writestr(f"scans/{i}.jpeg", radiograph(i))
        members.writestr("__MACOSX/scans/._10.jpeg", b"junk")
    with tarfile.open(folder / "more.tar.gz", "w:gz", pax_headers={"comment": "P4711"}) as tar:
        for i in range(20, 40):
            data = radiograph(i) if i != 30 else b"no image at all"
            entry = tarfile.TarInfo(f"{60 - i}.jpeg")
            entry.size = len(data)
            entry.uname = "Roentgen"
            tar.addfile(entry, io.BytesIO(data))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as members:
        for i in range(40, 43):
            members.writestr(f"{i}.jpeg", radiograph(i))
    with zipfile.ZipFile(folder / "outer.zip", "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("inner.zip", inner.getvalue())
    return folder


@pytest.fixture(scope="module")
def expected(archive: Path) -> dict[str, bytes]:
    """The bytes of every image by its address."""
    found = {
        str(path): path.read_bytes()
        for path in (archive / "loose").rglob("*")
        if path.is_file() and path.name not in ("readme.txt", ".DS_Store")
    }
    for i in range(10, 20):
        found[f"{archive}/old.zip!/scans/{i}.jpeg"] = radiograph(i)
    for i in range(20, 40):
        data = radiograph(i) if i != 30 else b"no image at all"
        found[f"{archive}/more.tar.gz!/{60 - i}.jpeg"] = data
    for i in range(40, 43):
        found[f"{archive}/outer.zip!/inner.zip!/{i}.jpeg"] = radiograph(i)
    return found


def score(checkpoint_folder: str, output: Path, *words: str) -> Ended:
    return execute("score", "--checkpoint", checkpoint_folder, "--output", str(output), *words)


def rows(output: Path) -> dict[str, dict[str, object]]:
    """The rows of all parts by uri."""
    table = pq.read_table(output / "scores").to_pylist()
    by_uri = {row["uri"]: row for row in table}
    assert len(by_uri) == len(table)
    return by_uri


@pytest.fixture(scope="module")
def undisturbed(
    archive: Path, small_checkpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    """A job that nothing interrupted."""
    output = tmp_path_factory.mktemp("scored") / "out"
    return score(small_checkpoint, output, "--input", str(archive)), output


@pytest.fixture
def copied(undisturbed: tuple[Ended, Path], tmp_path: Path) -> Path:
    """The undisturbed job's output, to do harm to."""
    shutil.copytree(undisturbed[1], tmp_path / "out")
    return tmp_path / "out"


def test_every_listed_image_has_one_row_that_says_what_became_of_it(
    undisturbed: tuple[Ended, Path], expected: dict[str, bytes]
) -> None:
    ended, output = undisturbed
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == (f"scored 39 of 42; refused 0; unreadable 3 -> {output}")
    found = rows(output)
    assert found.keys() == expected.keys()
    for uri, row in found.items():
        data = expected[uri]
        broken = uri.endswith(("half.jpeg", "empty.dcm", "!/30.jpeg"))
        assert row["status"] == ("unreadable" if broken else "scored"), uri
        if data:
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
        if broken:
            assert row["reason"]
            assert row["prob_pneumonia"] is row["logit"] is row["prediction"] is None
        else:
            assert row["reason"] == ""
            assert 0 < row["prob_pneumonia"] < 1  # type: ignore[operator]
            assert (row["width"], row["height"]) == (130, 150)


def test_scores_are_what_the_checkpoints_model_gives(
    undisturbed: tuple[Ended, Path], expected: dict[str, bytes], small_checkpoint: str
) -> None:
    saved = checkpoint.load(small_checkpoint)
    found = rows(undisturbed[1])
    for uri in [uri for uri in expected if found[uri]["status"] == "scored"][::7]:
        pixels = decoding.decode(expected[uri], min_px=64).pixels
        assert pixels is not None
        images = transforms.normalize(
            torch.from_numpy(resize(pixels, 64).copy())[None, None], saved.recipe.normalization
        )
        with torch.no_grad():
            expected_logit = logit(saved.model(images)).item()
        assert found[uri]["logit"] == pytest.approx(expected_logit, abs=1e-4)
        scaled = expected_logit / saved.scaling.temperature + saved.scaling.bias
        prob = 1 / (1 + np.exp(-scaled))
        assert found[uri]["prob_pneumonia"] == pytest.approx(prob, abs=1e-5)
        called = prob >= saved.operating_point.threshold
        assert found[uri]["prediction"] == ("PNEUMONIA" if called else "NORMAL")


def test_the_csv_is_the_parts_in_the_order_of_the_manifest(
    undisturbed: tuple[Ended, Path],
) -> None:
    output = undisturbed[1]
    with (output / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = rows(output)
    [listed] = (output / "manifest").iterdir()
    assert [line["uri"] for line in lines] == pq.read_table(listed)["uri"].to_pylist()
    assert lines[0].keys() == next(iter(found.values())).keys()
    for line in lines:
        row = found[line["uri"]]
        assert line["status"] == row["status"]
        assert line["logit"] == "" if row["logit"] is None else float(line["logit"]) == row["logit"]
        assert line["warnings"] == "; ".join(row["warnings"])  # type: ignore[arg-type]


def test_the_summary_counts_everything(
    undisturbed: tuple[Ended, Path], small_checkpoint: str
) -> None:
    summary = json.loads((undisturbed[1] / "summary.json").read_text())
    saved = checkpoint.load(small_checkpoint)
    assert (summary["listed"], summary["scored"]) == (42, 39)
    assert (summary["refused"], summary["unreadable"]) == (0, 3)
    assert sum(summary["reasons"]["unreadable"].values()) == 3
    assert summary["skipped"] == {".txt": 1, "hidden or system file": 2}
    assert summary["formats"] == {"jpeg": 39, "dicom": 1, "": 2}
    assert summary["checkpoint"]["fingerprint"] == saved.fingerprint
    point = summary["checkpoint"]["operating_point"]
    assert point["sensitivity"] == saved.operating_point.sensitivity
    assert point["n"] == 6
    assert summary["start_up_seconds"] > 0
    called = [row["prediction"] for row in rows(undisturbed[1]).values()]
    assert summary["called_pneumonia"] == called.count("PNEUMONIA")


def texts(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            yield str(pq.read_table(path).to_pylist())
        if path.is_file():
            yield path.read_bytes().decode("latin-1")


def test_no_patient_data_leave(undisturbed: tuple[Ended, Path]) -> None:
    """Planted in DICOM tags, a zip's comment, a tar's headers: none is in any output or line."""
    ended, output = undisturbed
    assert "DICOM" in ended.out or any("DICOM" in text for text in texts(output))
    for text in [*texts(output), ended.out, ended.err]:
        assert not [planted for planted in PLANTED if planted in text]


def test_a_job_goes_on_where_it_was_stopped_and_explains_what_has_vanished(
    copied: Path, undisturbed: tuple[Ended, Path], archive: Path, small_checkpoint: str
) -> None:
    """Parts are missing, one half written, one damaged, one of other rows, and one of nothing."""
    vanished = archive / "loose" / "deep" / "1.jpeg"
    files = sorted((copied / "scores").iterdir())
    missing = next(f for f in files if str(vanished) in pq.read_table(f)["uri"].to_pylist())
    missing.unlink()
    halved, damaged, *others = [path for path in files if path != missing]
    data = halved.read_bytes()
    halved.with_name(f"{halved.name}.1234.part").write_bytes(data[:300])
    halved.write_bytes(data[:300])
    wrong = bytearray(damaged.read_bytes())
    wrong[40:60] = bytes(byte ^ 0x55 for byte in wrong[40:60])
    damaged.write_bytes(wrong)
    others[0].with_name("part-000000999.parquet").write_bytes(data)
    others[-1].write_bytes(data)
    (copied / "summary.json").unlink()
    with changed(vanished.parent, [vanished.name], []):
        ended = score(small_checkpoint, copied, "--input", str(archive))
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1].startswith("scored 38 of 42; refused 0; unreadable 4 ->")
    expected, found = rows(undisturbed[1]), rows(copied)
    explained = found.pop(str(vanished))
    assert explained["reason"] == "cannot be read: No such file or directory"
    del expected[str(vanished)]
    assert found == expected


def test_results_that_are_missing_are_written_again(
    copied: Path, undisturbed: tuple[Ended, Path], archive: Path, small_checkpoint: str
) -> None:
    (copied / "scores.csv").unlink()
    (copied / "summary.json").unlink()
    ended = score(small_checkpoint, copied, "--input", str(archive))
    assert ended.code == 0, ended.err
    csvs = [(folder / "scores.csv").read_bytes() for folder in (copied, undisturbed[1])]
    assert csvs[0] == csvs[1]


def test_ctrl_c_says_how_many_rows_are_kept(
    copied: Path, archive: Path, small_checkpoint: str
) -> None:
    part = min((copied / "scores").iterdir())
    num_kept = 42 - len(pq.read_table(part))
    part.unlink()
    with mock.patch("cxr.scoring.job._run", side_effect=KeyboardInterrupt):
        ended = score(small_checkpoint, copied, "--input", str(archive))
    assert ended.code == 130
    kept = f"{num_kept} of 42 rows are kept; the same command continues"
    assert ended.own_err == [f"interrupted: {kept}"]


def test_a_finished_job_does_nothing_and_says_so(
    copied: Path, archive: Path, small_checkpoint: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    ended = score(small_checkpoint, copied, "--input", str(archive))
    assert "nothing to do" in ended.out
    assert ended.out.splitlines()[-1].startswith("scored 39 of 42; refused 0; unreadable 3 ->")
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_other_settings_into_the_same_output_are_refused(
    copied: Path, archive: Path, small_checkpoint: str, tmp_path: Path
) -> None:
    saved = checkpoint.load(small_checkpoint)
    other = str(tmp_path / "other")
    recipe = dataclasses.replace(saved.recipe, seed=1)
    checkpoint.save(other, recipe, saved.model, saved.validation, {})
    for checkpoint_folder, words, named in (
        (other, ("--input", str(archive)), "checkpoint"),
        (small_checkpoint, ("--input", str(archive / "loose")), "inputs"),
        (small_checkpoint, ("--input", str(archive), "--any-body-part", "True"), "any_body_part"),
        (small_checkpoint, ("--input", str(archive), "--any-view"), "any_view"),
    ):
        ended = score(checkpoint_folder, copied, *words)
        assert ended.code == 1
        assert f"holds scores with {named}" in ended.err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("years of work")
    ended = score(small_checkpoint, foreign, "--input", str(archive))
    assert "exists already" in ended.err
    assert [path.name for path in foreign.iterdir()] == ["thesis.doc"]


def test_update_scores_only_what_is_new(
    copied: Path, undisturbed: tuple[Ended, Path], archive: Path, small_checkpoint: str
) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (copied / "scores").iterdir()}
    with changed(archive / "loose" / "deep", ["3.jpeg"], range(50, 53)):
        words = ("--input", str(archive))
        assert "nothing to do" in score(small_checkpoint, copied, *words).out
        ended = score(small_checkpoint, copied, *words, "--update", "True")
        assert "update: 3 new; 1 of the 42 known are gone" in ended.out
        assert ended.out.splitlines()[-1].startswith("scored 42 of 45;")
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        first, again = rows(undisturbed[1]), rows(copied)
        assert {uri: again[uri] for uri in first} == first
        assert len(again) == 45
        ended = score(small_checkpoint, copied, *words, "--update", "True")
        assert "nothing to do" in ended.out


@contextlib.contextmanager
def changed(folder: Path, gone: Iterable[str], new: Iterable[int]) -> Iterator[None]:
    """A folder in which files are missing, and radiographs new, for a while."""
    added = [folder / f"{number}.jpeg" for number in new]
    for number, path in zip(new, added, strict=True):
        path.write_bytes(radiograph(number))
    aside = folder.parent.parent.parent / "aside"
    aside.mkdir(exist_ok=True)
    for name in gone:
        (folder / name).rename(aside / name)
    try:
        yield
    finally:
        for name in gone:
            (aside / name).rename(folder / name)
        for path in added:
            path.unlink()


def test_two_jobs_do_not_write_to_the_same_output(
    copied: Path, archive: Path, small_checkpoint: str
) -> None:
    with storage.lock_folder(str(copied)):
        ended = score(small_checkpoint, copied, "--input", str(archive))
        assert ended.code == 1
        assert "another job is writing to it (process " in ended.own_err[0]
        assert len(ended.own_err) == 1
    assert score(small_checkpoint, copied, "--input", str(archive)).code == 0


def test_too_many_failures_are_an_exit_code_of_their_own(
    copied: Path, archive: Path, small_checkpoint: str
) -> None:
    words = ("--input", str(archive), "--max-failed-fraction")
    assert score(small_checkpoint, copied, *words, "0.08").code == 0
    ended = score(small_checkpoint, copied, *words, "0.07")
    assert ended.code == 3
    assert "7.1% have no score, more than the 7.0%" in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input", "/nowhere/at/all"), "/nowhere/at/all: not found. Give files, folders"),
        (("--input",), "input: give at least one"),
        (("--input", "x", "--max-failed-fraction", "2"), "max_failed_fraction: 2.0 is not 0 to 1"),
    ],
)
def test_bad_input_is_one_clear_message(
    words: tuple[str, ...], message: str, small_checkpoint: str, tmp_path: Path
) -> None:
    ended = score(small_checkpoint, tmp_path / "out", *words)
    assert ended.code == 1
    assert message in ended.err
    assert ended.own_err[0].startswith("error: ")


def test_a_folder_without_radiographs_is_one_clear_message(
    small_checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_text("words")
    ended = score(small_checkpoint, tmp_path / "out", "--input", str(tmp_path / "in"))
    assert ended.code == 1
    assert "in: no radiographs found. Passed over: 2 .txt." in ended.err
    assert not (tmp_path / "out").exists()


def test_a_changed_checkpoint_is_refused(small_checkpoint: str, tmp_path: Path) -> None:
    for name, message in (("model.safetensors", "changed since"), ("checkpoint.json", "missing")):
        folder = tmp_path / name
        shutil.copytree(small_checkpoint, folder)
        if name == "checkpoint.json":
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(b"\0" + (folder / name).read_bytes()[1:])
        ended = score(str(folder), tmp_path / "out", "--input", str(ROOT))
        assert ended.code == 1
        assert message in ended.err


def test_a_full_disk_is_one_clear_message_and_the_job_goes_on_when_there_is_room(
    archive: Path, small_checkpoint: str, tmp_path: Path, undisturbed: tuple[Ended, Path]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount")
    try:
        ended = score(small_checkpoint, disk / "out", "--input", str(archive))
        assert ended.code == 1
        assert "cannot be written" in ended.err
        assert "No space left on device" in ended.err
        assert "Traceback" not in ended.err
        gc.collect()  # Frames of the error hold the actors of that job, and with them the CPUs.
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert score(small_checkpoint, disk / "out", "--input", str(archive)).code == 0
        assert rows(disk / "out") == rows(undisturbed[1])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def listing(num_loose: int, num_in_tar: int, kind: str = "tar.gz", status: str = "") -> pa.Table:
    """An inventory of so many files, and members of a compressed tar."""
    step = {"kind": kind, "offset": 0, "packed": 1, "size": 1, "method": 0, "crc": -1}
    facts = {
        "size": 1, "modified_ns": 0, "status": status, "reason": "", "warnings": [],
        "written": "", "manifest": "", "manifest_row": -1,
    }  # fmt: skip
    table = [
        {"uri": f"{i:05}", "file": f"{i:05}", "place": [], **facts} for i in range(num_loose)
    ] + [
        {"uri": f"t!/{i:05}", "file": "t", "place": [step | {"offset": i}], **facts}
        for i in range(num_in_tar)
    ]
    return pa.Table.from_pylist(table, schema=sources.INVENTORY)


@pytest.mark.parametrize(("num_loose", "num_in_tar"), [(1, 0), (7, 3), (500, 0), (300, 700)])
def test_every_row_is_in_one_task_and_parts_stay_whole(num_loose: int, num_in_tar: int) -> None:
    table = listing(num_loose, num_in_tar)
    numbers = manifest.number_parts(table, manifest.max_part_cost(table))
    assert numbers[0] == 0
    assert set(np.diff(numbers)) <= {0, 1}
    assert np.bincount(numbers).max() <= manifest.PART_IMAGES
    tasks = [
        pa.concat_tables(task)
        for task in read.tasks(parts.by_part(table.append_column("part", pa.array(numbers))))
    ]
    seen = [uri for task in tasks for uri in task["uri"].to_pylist()]
    assert sorted(seen) == table["uri"].to_pylist()
    owners: dict[int, int] = {}
    for index, task in enumerate(tasks):
        for part in set(task["part"].to_pylist()):
            assert owners.setdefault(part, index) == index
    # Two CPUs read a compressed tar twice, each another half.
    streams = [t for t in tasks if t["uri"][len(t) - 1].as_py().startswith("t!/")]
    assert len(streams) <= 2 or num_in_tar < 10
    for task in streams:
        assert task["uri"].to_pylist() == sorted(task["uri"].to_pylist())


def test_rows_without_pixels_share_large_parts_and_images_do_not() -> None:
    def sizes_of_parts(table: pa.Table) -> NDArray[np.int64]:
        return np.bincount(manifest.number_parts(table, manifest.max_part_cost(table)))

    known = listing(10_000, 0, status="unreadable")
    assert sizes_of_parts(known).tolist() == [1250] * 8  # Four for each CPU.
    assert sizes_of_parts(pa.concat_tables([known, known, known])).max() == 2048
    sizes = sizes_of_parts(pa.concat_tables([listing(500, 0), known]))
    assert sizes[:7].tolist() == [64] * 7
    assert sizes.sum() == 10_500


def test_parts_survive_packing() -> None:
    table = listing(3, 2)
    assert parts.unpack(parts.pack(table)).equals(table)


def test_killed_actor_and_killed_driver_end_with_the_rows_of_an_undisturbed_job(
    small_checkpoint: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pictures = [radiograph(i) for i in range(50)]
    for i in range(1600):
        (folder / f"{i:05}.jpeg").write_bytes(pictures[i % 50])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["--checkpoint", small_checkpoint, "--input", str(folder), "--output"]
    first = Job("score", *words, killed)
    wait_for_parts(first, killed, 2)
    first.kill_worker("PartPredictor")
    wait_for_parts(first, killed, num_parts(killed) + 4)
    first.kill()
    assert num_parts(killed) < 22, "too late to test anything"
    ended = score(small_checkpoint, killed, "--input", str(folder))
    assert ended.code == 0, ended.err
    assert "resumed: " in ended.out
    assert score(small_checkpoint, whole, "--input", str(folder)).code == 0
    assert len(rows(killed)) == 1600
    assert rows(killed) == rows(whole)


def num_parts(output: Path) -> int:
    return len(list(output.glob("scores/part-*.parquet")))


def wait_for_parts(job: Job, output: Path, count: int) -> None:
    wait_until(lambda: num_parts(output) >= count or job.process.poll() is not None, 120)
    assert job.process.poll() is None, "the job has ended"
