"""What arrived is read once and counted; what is odd is named."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from cxr import sources, storage
from cxr.download import checking, dataset
from cxr.download.publishers import PUBLISHED_COUNTS
from cxr.reports import class_distribution
from tests.support.radiographs import radiograph
from tests.support.s3 import Store

FILES = {
    "train/NORMAL/IM-0115-0001.jpeg": radiograph(1),
    "train/NORMAL/IM-0115-0002.jpeg": radiograph(2),
    "train/NORMAL/NORMAL-1234567-0001.jpeg": radiograph(3),
    "train/PNEUMONIA/person1_bacteria_1.jpeg": radiograph(4),
    "train/PNEUMONIA/person1_virus_6.jpeg": radiograph(5, width=200),
    "train/PNEUMONIA/person2_virus_7.jpeg": radiograph(5, width=200),
    "test/NORMAL/IM-0115-0003.jpeg": radiograph(6),
    "test/PNEUMONIA/person3_bacteria_9.jpeg": radiograph(4),
    "test/PNEUMONIA/person4_bacteria_9.jpeg": b"not an image",
}


def plant(root: str, files: dict[str, bytes]) -> str:
    for path, data in files.items():
        storage.write_bytes(storage.join(root, path), data)
    return root


@pytest.fixture
def findings(tmp_path: Path) -> checking.Findings:
    others = {"train/NORMAL/.DS_Store": b"", "train/OTHER/a.jpeg": b"", "weights/a.jpeg": b""}
    return checking.examine(plant(str(tmp_path), FILES | others))


def test_every_file_has_its_row(findings: checking.Findings) -> None:
    table = findings.manifest
    assert table.schema == checking.MANIFEST
    assert table["uri"].to_pylist() == sorted(FILES)
    rows = {row["uri"]: row for row in table.to_pylist()}
    path = "train/PNEUMONIA/person1_virus_6.jpeg"
    assert rows[path] == {
        "uri": path, "split": "train", "label": "PNEUMONIA", "patient": "person1_virus",
        "subtype": "virus", "width": 200, "height": 150, "bytes": len(FILES[path]),
        "sha256": hashlib.sha256(FILES[path]).hexdigest(),
    }  # fmt: skip
    assert rows["train/NORMAL/NORMAL-1234567-0001.jpeg"]["patient"] == "1234567"
    broken = rows["test/PNEUMONIA/person4_bacteria_9.jpeg"]
    assert (broken["width"], broken["height"], broken["bytes"]) == (0, 0, 12)


def test_counts_and_oddities_are_found(findings: checking.Findings) -> None:
    assert findings.counts == {"train": (3, 3), "test": (1, 2)}
    assert findings.subtypes["train", "virus"] == 2
    assert findings.num_patients == {"train": 5, "test": 3}
    assert findings.patients_across == ["IM-0115"]
    assert list(findings.problems) == ["test/PNEUMONIA/person4_bacteria_9.jpeg"]
    within, across = findings.duplicates
    assert within == [
        ["train/PNEUMONIA/person1_virus_6.jpeg", "train/PNEUMONIA/person2_virus_7.jpeg"]
    ]
    assert across == [
        ["test/PNEUMONIA/person3_bacteria_9.jpeg", "train/PNEUMONIA/person1_bacteria_1.jpeg"]
    ]
    assert not findings.as_published


def test_the_summary_says_what_differs_from_what_was_published(
    findings: checking.Findings,
) -> None:
    assert checking.summary(findings).splitlines() == [
        "split    NORMAL  PNEUMONIA  bacteria   virus  patients",
        "train         3          3         1       2         5   published: 1,349 and 3,883",
        "test          1          2         2       0         3   published: 234 and 390",
        "counts: NOT as published (Mendeley Data's splits)",
        "unreadable: 1: test/PNEUMONIA/person4_bacteria_9.jpeg"
        " (not a JPEG, PNG, TIFF, BMP or DICOM file)",
        "same bytes twice within a split: 1: train/PNEUMONIA/person1_virus_6.jpeg ="
        " train/PNEUMONIA/person2_virus_7.jpeg",
        "same bytes in two splits: 1: test/PNEUMONIA/person3_bacteria_9.jpeg ="
        " train/PNEUMONIA/person1_bacteria_1.jpeg",
        "patients in two splits: 1: IM-0115",
    ]


@pytest.mark.parametrize("layout", PUBLISHED_COUNTS)
def test_the_published_counts_are_recognised(layout: str) -> None:
    rows = [
        {"uri": f"{split}/{i}/{n}", "split": split, "label": name, "patient": f"{split}{i}{n}",
         "subtype": "", "width": 1, "height": 1, "bytes": 1, "sha256": f"{split}{i}{n}"}
        for split, both in PUBLISHED_COUNTS[layout].items()
        for i, name in enumerate(("NORMAL", "PNEUMONIA"))
        for n in range(both[i])
    ]  # fmt: skip
    assert len(rows) == 5_856
    table = pa.Table.from_pylist(rows, schema=checking.MANIFEST)
    found = checking.Findings(table, {})
    assert (found.layout, found.as_published) == (layout, True)
    summary = checking.summary(found)
    assert f"counts: as published ({layout}'s splits)" in summary
    assert "published: " not in summary
    assert summary.count("none") == 4
    assert not checking.Findings(table.slice(1), {}).as_published


def test_changes_since_a_manifest_are_found(tmp_path: Path) -> None:
    root = plant(str(tmp_path), FILES)
    before = checking.examine(root).manifest
    assert checking.differences(before, before) == []
    (tmp_path / "train/NORMAL/IM-0115-0001.jpeg").unlink()
    (tmp_path / "train/NORMAL/IM-0115-0002.jpeg").write_bytes(radiograph(9))
    (tmp_path / "train/NORMAL/IM-0116-0001.jpeg").write_bytes(radiograph(9))
    assert checking.differences(before, checking.examine(root).manifest) == [
        f"train/NORMAL/IM-{number}.jpeg" for number in ("0115-0001", "0115-0002", "0116-0001")
    ]


def test_the_manifest_is_what_the_other_jobs_read(tmp_path: Path) -> None:
    root = plant(str(tmp_path / "set"), FILES)
    manifest = storage.join(root, dataset.MANIFEST)
    storage.write_table(manifest, checking.examine(root).manifest)
    (tmp_path / "set").rename(tmp_path / "moved")
    root, manifest = (path.replace("/set", "/moved") for path in (root, manifest))
    for split in ("train", "test"):
        assert sources.list_radiographs(manifest, split) == sources.list_radiographs(root, split)
    found = sources.list_inputs([manifest]).table()
    assert sorted(found["uri"].to_pylist()) == sorted(f"{root}/{path}" for path in FILES)


def test_a_bucket_is_checked_alike(tmp_path: Path, s3: Store) -> None:
    bucket = plant(f"{s3.bucket()}/set", FILES)
    local = checking.examine(plant(str(tmp_path), FILES))
    found = checking.examine(bucket)
    assert found.manifest == local.manifest
    storage.write_table(storage.join(bucket, dataset.MANIFEST), found.manifest)
    listed = sources.list_radiographs(storage.join(bucket, dataset.MANIFEST), "train")
    assert listed["uri"].to_pylist() == sorted(
        f"{bucket}/{path}" for path in FILES if path.startswith("train/")
    )


def test_the_picture_shows_each_split(tmp_path: Path) -> None:
    picture = class_distribution({"train": (1341, 3875), "val": (8, 8), "test": (234, 390)})
    assert picture.startswith(b"\x89PNG")
    assert picture != class_distribution({"train": (1341, 3875)})
