"""Patients and images of a training run are recognized again, and none is named."""

import hashlib
from pathlib import Path

import pyarrow as pa

from cxr import storage
from cxr.datasets.splits import Splits, collect
from cxr.sources.patients import digest


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


LISTING = pa.table({"patient_digest": [digest(name) for name in ("ann", "bea", "cid", "cid")]})

HELD_OUT = pa.table({"patient_digest": [digest("dan"), digest("dan"), digest("eve")]})

IMAGES = pa.table(
    {
        "row": [0, 1, 3],
        "fold": [0, 1, 2],
        "sha256": [checksum(f"file {i}") for i in (0, 1, 3)],
        "pixels_sha256": [checksum(f"pixels {i}") for i in (0, 1, 3)],
    }
)
"""The third image of the listing could not be decoded."""


def test_patients_are_recognized_by_their_role(tmp_path: Path) -> None:
    splits = collect(IMAGES, LISTING, HELD_OUT, fold=1)
    storage.write_table(str(tmp_path / "splits.parquet"), splits.table)
    read = Splits(storage.read_table(str(tmp_path / "splits.parquet")))
    assert read.table.equals(splits.table)
    names = ["ann", "bea", "cid", "dan", "eve", "fay"]
    digests = pa.chunked_array([[digest(name) for name in names]])

    def known(*roles: object) -> list[str]:
        flags = read.has_patient(digests, *roles)  # type: ignore[arg-type]
        return [name for name, flag in zip(names, flags, strict=True) if flag]

    assert known("train") == ["ann", "cid"]
    assert known("validation") == ["bea"]
    assert known("test") == ["dan", "eve"]
    assert known("train", "validation") == ["ann", "bea", "cid"]


def test_where_each_fold_validated_one_member_all_others_are_of_training() -> None:
    splits = collect(IMAGES, LISTING, HELD_OUT, fold=None)
    assert splits.patients("validation") == frozenset()
    assert len(splits.patients("train")) == 3
    assert len(splits.patients("test")) == 2


def test_images_are_recognized_by_bytes_or_pixels() -> None:
    splits = collect(IMAGES, LISTING, HELD_OUT, fold=1)
    images = pa.table(
        {
            "sha256": [checksum(text) for text in ("file 0", "x", "y", "file 1")],
            "pixels_sha256": [checksum(text) for text in ("z", "pixels 3", "v", "pixels 1")],
        }
    )
    assert splits.has_image(images, "train").tolist() == [True, True, False, False]
    assert splits.has_image(images, "validation").tolist() == [False, False, False, True]
    assert splits.has_image(images, "test").tolist() == [False] * 4


def test_the_same_run_writes_the_same_table_and_another_set_other_digests() -> None:
    splits = collect(IMAGES, LISTING, HELD_OUT, fold=1)
    again = collect(IMAGES, LISTING, HELD_OUT, fold=1)
    assert again.table.equals(splits.table)
    assert again.table.schema.metadata == splits.table.schema.metadata
    other = collect(IMAGES, LISTING, HELD_OUT.slice(0, 2), fold=1)
    assert not other.patients("train") & splits.patients("train")


def test_no_digest_of_a_listing_is_kept() -> None:
    text = str(collect(IMAGES, LISTING, HELD_OUT, fold=1).table.to_pylist())
    for row in (*LISTING.to_pylist(), *HELD_OUT.to_pylist()):
        assert row["patient_digest"][:16] not in text
