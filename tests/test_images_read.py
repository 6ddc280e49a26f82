"""The one way to an image: every listed file becomes pixels or a reason, in order."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr import sources, storage
from cxr.errors import UnavailableError
from cxr.images import decoding
from cxr.images.read import read_all, read_image, read_images, without_numbers
from cxr.images.resize import resize
from tests.support.archives import MAKERS, tarred, zipped
from tests.support.radiographs import drawn, in_16_bits, png_claiming, saved
from tests.support.s3 import Store

IMAGE_PX = 64


def radiograph(number: int) -> bytes:
    """A small JPEG, another one for each number."""
    return saved((drawn() // 2 + number).astype("uint8"), "JPEG")


FILES = {f"{i}.jpeg": radiograph(i) for i in range(20)} | {
    "half.jpeg": radiograph(1)[:900],
    "text.jpeg": b"this is not a radiograph" * 99,
    "bomb.png": png_claiming(100_000, 100_000),
    "empty.jpeg": b"",
}


def listed(*inputs: str | Path) -> list[dict[str, Any]]:
    found = sources.list_inputs([str(address) for address in inputs])
    rows: list[dict[str, Any]] = found.table().to_pylist()
    for archive, paths in found.archives.items():
        rows += sources.list_archive(archive, paths)[0].to_pylist()
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same files in a folder and in archives of every kind."""
    (tmp_path / "loose").mkdir()
    for name, data in FILES.items():
        (tmp_path / "loose" / name).write_bytes(data)
    for kind, make in MAKERS.values():
        (tmp_path / f"a.{kind}").write_bytes(make(FILES))
    (tmp_path / "nested.zip").write_bytes(zipped({"in.tar": tarred(FILES)}))
    return tmp_path


def test_a_file_is_decoded_and_resized_whatever_holds_it(folder: Path) -> None:
    rows = listed(folder)
    assert len(rows) == len(FILES) * 8
    for row, image in zip(rows, read_images(rows, IMAGE_PX), strict=True):
        data = FILES[Path(row["uri"]).name]
        decoded = decoding.decode(data, min_px=IMAGE_PX)
        assert (image.status, image.reason) == (decoded.status, decoded.reason)
        assert (image.width, image.height, image.format) == (
            (decoded.width, decoded.height, decoded.format) if data else (0, 0, "")
        )
        assert image.sha256 == (hashlib.sha256(data).hexdigest() if data else "")
        if decoded.pixels is None:
            assert image.pixels is None
        else:
            assert image.pixels is not None
            assert np.array_equal(image.pixels, resize(decoded.pixels, IMAGE_PX))


def test_any_order_of_rows_gives_the_same_images(folder: Path) -> None:
    rows = listed(folder)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = [rows[index] for index in order]
    images = read_all(shuffled, IMAGE_PX)
    for row, image in zip(shuffled, images, strict=True):
        single = read_image(row, IMAGE_PX)
        assert (image.sha256, image.problem) == (single.sha256, single.problem)
        if image.pixels is None:
            assert single.pixels is None
        else:
            assert single.pixels is not None
            assert np.array_equal(image.pixels, single.pixels)


def test_members_are_read_in_the_order_of_their_archive(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going back in a compressed tar starts it again."""
    rows = [row for row in listed(folder / "a.tar.gz") if not row["status"]]
    seen: list[int] = []
    read = sources.Reader.read

    def recorded(self: sources.Reader, file: str, steps: list[sources.Step]) -> bytes:
        seen.append(steps[-1].offset)
        return read(self, file, steps)

    monkeypatch.setattr(sources.Reader, "read", recorded)
    read_all(rows[::-1], IMAGE_PX)
    assert len(seen) == len(rows)
    assert seen == sorted(seen)


def test_what_the_listing_has_explained_is_not_read(folder: Path) -> None:
    [row] = listed(folder / "loose" / "3.jpeg")
    row |= {"status": "refused", "reason": "larger than allowed", "warnings": ["seen before"]}
    image = read_image(row, IMAGE_PX)
    assert (image.status, image.reason, image.sha256) == ("refused", "larger than allowed", "")
    assert image.problem == "refused: larger than allowed"
    assert image.warnings == ("seen before",)


def test_warnings_of_listing_and_decoding_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(in_16_bits(), "PNG"))
    [row] = listed(tmp_path / "a.png")
    image = read_image(row | {"warnings": ["seen before"]}, IMAGE_PX)
    assert image.warnings[0] == "seen before"
    assert "bits in use" in image.warnings[1]


def test_a_file_that_vanishes_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.jpeg").write_bytes(radiograph(0))
    [row] = listed(tmp_path)
    (tmp_path / "a.jpeg").unlink()
    image = read_image(row, IMAGE_PX)
    assert image.problem == "unreadable: cannot be read: No such file or directory"


def test_a_store_that_cannot_be_reached_is_no_problem_of_the_file(s3: Store) -> None:
    bucket = s3.bucket()
    storage.write_bytes(f"{bucket}/a.jpeg", radiograph(0))
    [row] = listed(f"{bucket}/a.jpeg")
    assert read_image(row, IMAGE_PX).status == "ok"
    with pytest.raises(UnavailableError):
        read_image(row | {"file": "s3://never-made/a.jpeg"}, IMAGE_PX)


def test_like_reasons_count_together() -> None:
    assert without_numbers("4,000 x 31 pixels; a side is below 64") == (
        "N x N pixels; a side is below N"
    )
