"""Decoding into shards, and the frozen part over them, on a local cluster."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cxr import sources
from cxr.datasets import features
from cxr.datasets.folds import assign_folds
from cxr.datasets.pixels import decode_shards, read_radiograph
from cxr.datasets.shards import Shards, load_shards
from cxr.errors import DataError
from cxr.models import classifier, transforms
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array

IMAGE_PX = 64

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def broken_set(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set with five files that give no pixels."""
    folder = tmp_path_factory.mktemp("broken")
    for source in sorted((small_set / "train").rglob("*.jpeg")):
        target = folder / "train" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    normal = folder / "train" / "NORMAL"
    whole = next(normal.iterdir()).read_bytes()
    (normal / "IM-9001-0001.jpeg").write_bytes(whole[: len(whole) // 2])
    (normal / "IM-9002-0001.jpeg").write_bytes(b"")
    (normal / "IM-9003-0001.jpeg").write_bytes(b"this is not a radiograph" * 99)
    (normal / "IM-9004-0001.png").write_bytes(_pixel_bomb())
    (normal / "IM-9005-0001.jpeg").symlink_to(normal / "nothing-here.jpeg")
    return folder


def _pixel_bomb() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def shards(broken_set: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return decode(broken_set, tmp_path_factory.mktemp("cache"))


def decode(folder: Path, cache: Path) -> Shards:
    listing = sources.list_radiographs(str(folder), "train")
    folds = assign_folds(sources.column(listing, "label"), sources.column(listing, "patient"), 3)
    return decode_shards(listing, folds, IMAGE_PX, str(cache))


def test_every_listed_file_has_pixels_or_a_reason(shards: Shards, broken_set: Path) -> None:
    listed = {str(p) for p in (broken_set / "train").rglob("*.*")}
    good, bad = shards.table["uri"].to_pylist(), shards.failed["uri"].to_pylist()
    assert {Path(uri).name for uri in bad} == {
        "IM-9001-0001.jpeg", "IM-9002-0001.jpeg", "IM-9003-0001.jpeg", "IM-9004-0001.png",
        "IM-9005-0001.jpeg",
    }  # fmt: skip
    assert all(reason for reason in shards.failed["reason"].to_pylist())
    assert set(good) | set(bad) == listed
    assert len(good) + len(bad) == len(set(good) | set(bad))


def test_pixels_are_those_of_the_one_reading_function(shards: Shards) -> None:
    seen = pa.concat_tables(shards.dataset().iter_batches(batch_size=None, batch_format="pyarrow"))
    arrays = to_array(seen["x"], shards.shape, shards.dtype)
    for index in (0, len(seen) - 1):
        expected, _, _ = read_radiograph(seen["uri"][index].as_py(), IMAGE_PX)
        assert expected is not None
        assert np.array_equal(arrays[index], expected)


def test_folds_are_apart_on_disk_and_hold_what_the_table_says(shards: Shards) -> None:
    for fold in range(3):
        seen = shards.dataset([fold], ["row"]).take_all()
        expected = shards.rows([fold])["row"].to_pylist()
        assert sorted(row["row"] for row in seen) == sorted(expected)
        assert all(f"fold={fold}" in part for part in shards.parts[fold])


def test_what_was_decoded_is_not_decoded_again(shards: Shards, broken_set: Path) -> None:
    cache = Path(shards.folder).parent.parent
    written = {p: p.stat().st_mtime_ns for p in cache.rglob("*.parquet")}
    again = decode(broken_set, cache)
    assert again.folder == shards.folder
    assert again.fingerprint == shards.fingerprint
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.parquet")} == written


def test_shards_that_were_not_finished_are_not_used(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(Path(shards.folder, "rows.parquet").read_bytes())
    assert load_shards(str(tmp_path)) is None


def test_fingerprint_follows_content_and_not_place(
    shards: Shards, broken_set: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    for source in (broken_set / "train").rglob("*.*"):
        if source.is_file():
            target = moved / source.relative_to(broken_set)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    assert decode(moved, tmp_path / "cache").fingerprint == shards.fingerprint


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "train" / name / f"IM-{number}{len(name)}-1.jpeg").write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 6 radiographs can be read"):
        decode(tmp_path, tmp_path / "cache")


def test_features_are_what_the_prefix_gives(shards: Shards, tmp_path: Path) -> None:
    recipe = Recipe(
        backbone="alexnet", frozen=3, image_px=IMAGE_PX, normalization="imagenet",
        hidden=(), dropout=(0.0,),
    )  # fmt: skip
    model = classifier.build(recipe)
    wanted = [features.Pass(shards, recipe, model)]
    [found] = features.extract(wanted, str(tmp_path))
    assert found.shape == model.prefix_shape(IMAGE_PX)
    assert found.table.equals(shards.table)
    seen = pa.concat_tables(found.dataset().iter_batches(batch_size=None, batch_format="pyarrow"))
    arrays = to_array(seen["x"], found.shape, found.dtype)
    pixels, _, _ = read_radiograph(seen["uri"][3].as_py(), IMAGE_PX)
    assert pixels is not None
    images = transforms.normalize(torch.from_numpy(pixels.copy())[None, None], "imagenet")
    with torch.inference_mode():
        expected = model.prefix(images)[0].numpy()
    assert np.allclose(arrays[3], expected, rtol=1e-4, atol=1e-5)
    assert features.extract(wanted, str(tmp_path))[0].folder == found.folder


def test_a_small_image_is_stretched_to_the_square(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    Image.fromarray(ramp).save(tmp_path / "wide.png")
    pixels, error, sha256 = read_radiograph(str(tmp_path / "wide.png"), IMAGE_PX)
    assert (error, len(sha256)) == ("", 64)
    assert pixels is not None
    assert pixels.shape == (IMAGE_PX, IMAGE_PX)
