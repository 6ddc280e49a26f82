"""What a check finds in tables of images, and the job on sets with planted faults."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cxr.checking import findings
from cxr.labels import CLASSES
from tests.support.checkpoints import SMALL
from tests.support.jobs import execute
from tests.support.radiographs import PATIENT, dicom, drawn


def images(*rows: tuple[str, str, int, int, str, str]) -> pa.Table:
    """Rows of uri, split, fold, label, patient and a digest of the pixels; files all differ."""
    names = ("uri", "split", "fold", "label", "patient", "pixels_sha256")
    listed = [dict(zip(names, row, strict=True)) | {"sha256": row[0]} for row in rows]
    return pa.Table.from_pylist(listed)


def listing(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_duplicates_are_counted_by_what_they_cross() -> None:
    by_file, by_pixels = findings.find_duplicates(
        images(
            ("a", "train", 0, 0, "p1", "same fold"),
            ("b", "train", 0, 0, "p1", "same fold"),
            ("c", "train", 0, 0, "p2", "other fold"),
            ("d", "train", 1, 0, "p3", "other fold"),
            ("e", "train", 1, 1, "p4", "other split"),
            ("f", "test", 0, 1, "p4", "other split"),
            ("g", "test", 0, 0, "p5", "other label"),
            ("h", "test", 0, 1, "p5", "other label"),
            ("i", "test", 0, 1, "p5", "other label"),
            ("k", "test", 0, 1, "p6", "alone"),
        )
    )
    assert by_file.num_groups == by_file.num_images == 0
    assert by_file.examples == []
    assert (by_pixels.compared, by_pixels.num_groups, by_pixels.num_images) == (
        "decoded pixels",
        4,
        9,
    )
    assert by_pixels.across_patients == 1
    assert by_pixels.across_folds == 1  # Folds are those of training: a test split has none.
    assert by_pixels.across_splits == 1
    assert by_pixels.contradicting == 1
    assert by_pixels.examples == ["g = h", "e = f", "a = b"]  # The worst first.
    assert findings.describe_duplicates(by_pixels) == [
        "Duplicates (equal decoded pixels) with both labels: 1 group of images.",
        "Duplicates (equal decoded pixels) in several splits: 1 group of images.",
        "Duplicates (equal decoded pixels) of several patients: 1 group of images.",
    ]
    assert findings.describe_duplicates(by_file) == []


def test_patients_in_two_splits_are_counted_by_pair() -> None:
    listings = {
        "train": listing(patient=["1", "1", "2", "3"]),
        "val": listing(patient=["4"]),
        "test": listing(patient=["3", "1", "5"]),
    }
    assert findings.count_shared_patients(listings) == {"train and test": 2}


def test_a_split_counts_images_without_a_label_as_images() -> None:
    counts = findings.count_split(
        "train", listing(label=[0, 1, 1, None], patient=["1", "1", "2", "3"]), 3, 2
    )
    assert (counts.num_images, counts.num_normal, counts.num_pneumonia) == (4, 1, 2)
    assert (counts.num_patients, counts.num_decoded, counts.num_used) == (3, 3, 2)


def test_sizes_are_those_of_the_originals() -> None:
    sizes = findings.measure_sizes(listing(width=[100, 300, 2000], height=[500, 220, 1000]), 224)
    assert sizes is not None
    assert (sizes.width, sizes.height) == ((100, 300, 2000), (220, 500, 1000))
    assert sizes.num_enlarged == 2
    assert sizes.long_sides == [500, 300, 2000]
    assert findings.measure_sizes(listing(width=[], height=[]), 224) is None


def test_ages_are_bands_and_the_oldest_are_one() -> None:
    assert findings.count_ages([0, 9, 10, 89, None, 90, 104, 113]) == {
        "0-9": 2,
        "10-19": 1,
        "80-89": 1,
        "90 or older": 3,
        "not given": 1,
    }


def test_formats_count_what_was_decoded_and_what_was_not() -> None:
    assert findings.count_formats(["jpeg", "dicom", "jpeg"], ["dicom", ""]) == {
        "jpeg": (2, 0),
        "dicom": (1, 1),
        "unknown": (0, 1),
    }


def test_failures_are_grouped_by_reason_without_its_numbers() -> None:
    failed = listing(
        uri=["a", "b", "c"],
        reason=["refused: 12 frames, not one", "unreadable: empty", "refused: 3 frames, not one"],
    )
    [refused, unreadable] = findings.group_failures(failed)
    assert (refused.status, refused.reason, refused.count) == ("refused", "N frames, not one", 2)
    assert refused.examples == ["a", "c"]
    assert (unreadable.status, unreadable.reason) == ("unreadable", "empty")


def write_recipe(path: Path) -> str:
    """A recipe that trains in a second, as a file."""
    recipe = dataclasses.replace(SMALL, name="small", epochs=1, frozen=0, pretrained=0)
    path.write_text(recipe.to_json())
    return str(path)


@pytest.fixture(scope="module")
def faulty_set(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set with a damaged file, two duplicates and a DICOM file planted in it."""
    folder = tmp_path_factory.mktemp("faulty") / "set"
    shutil.copytree(small_set, folder)
    normal, pneumonia = (folder / "train" / name for name in CLASSES)
    first, second, *_ = sorted(normal.glob("*.jpeg"))
    test, *_ = sorted((folder / "test" / CLASSES[0]).glob("*.jpeg"))
    (normal / "IM-9001-0001.jpeg").write_bytes(first.read_bytes()[:900])
    shutil.copy(test, normal / "IM-9002-0001.jpeg")
    shutil.copy(second, pneumonia / "person9003_virus_1.jpeg")
    tags = {"PatientAge": "093Y", "ViewPosition": "PA"}
    (pneumonia / "person9004_virus_1.jpeg").write_bytes(dicom(drawn(), **tags))
    (folder / "notes.txt").write_text("Roentgen")
    return folder


@pytest.mark.cluster
def test_a_check_finds_what_was_planted_and_its_command_decodes_nothing_again(
    faulty_set: Path, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cache = write_recipe(tmp_path / "small recipe.json"), str(tmp_path / "cache")
    output = tmp_path / "checked"
    ended = execute(
        "check", "--recipe", recipe, "--data", str(faulty_set), "--cache", cache,
        "--output", str(output),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    content = json.loads((output / "check.json").read_text())
    num_listed = len(list(faulty_set.rglob("*.jpeg")))
    assert (content["num_images"], content["num_decoded"]) == (num_listed, num_listed - 1)
    assert content["formats"] == {
        "jpeg": {"decoded": num_listed - 2, "not_decoded": 1},
        "dicom": {"decoded": 1, "not_decoded": 0},
    }
    assert [group["compared"] for group in content["duplicates"]] == [
        "file content",
        "decoded pixels",
    ]
    for group in content["duplicates"]:
        assert group["num_groups"] >= 2
        assert (group["across_splits"], group["contradicting"]) == (1, 1)
    assert (content["views"], content["ages"]) == ({"PA": 1}, {"90 or older": 1})
    assert content["skipped"] == {".json": 1, ".txt": 1}
    assert [counts["split"] for counts in content["splits"]] == ["train", "val", "test"]
    page = (output / "report.html").read_text()
    for written in (ended.out, ended.err, page, (output / "check.json").read_text()):
        assert not [text for text in (*PATIENT.values(), "Roentgen") if text in written]

    [line] = [line for line in ended.out.splitlines() if line.startswith("next: ")]
    assert line == f"next: {content['command']}"
    python, script, *words = shlex.split(content["command"])
    assert (python, script) == ("python", "jobs/train.py")
    monkeypatch.chdir(tmp_path)
    trained = execute("train", *words, "--weights", "none")
    assert trained.code == 0, trained.err
    assert "small" in trained.out
    assert "decoding to" in ended.out
    assert "decoding to" not in trained.out


@pytest.mark.cluster
def test_a_set_that_cannot_be_trained_on_has_a_report_and_one_line(
    faulty_set: Path, ray_cluster: None, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(faulty_set / "train" / CLASSES[1], folder / "train" / CLASSES[1])
    ended = execute(
        "check", "--recipe", write_recipe(tmp_path / "recipe.json"), "--data", str(folder),
        "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "checked"),
    )  # fmt: skip
    assert ended.code == 1
    assert len(ended.own_err) == 1
    assert "training cannot start" in ended.own_err[0]
    assert "has no NORMAL" in ended.own_err[0]
    assert "next:" not in ended.out
    content = json.loads((tmp_path / "checked" / "check.json").read_text())
    assert content["command"] == ""
    assert content["num_decoded"] == content["num_images"] > 0
    assert "Training cannot start" in (tmp_path / "checked" / "report.html").read_text()
