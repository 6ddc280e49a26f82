"""Decoding into shards, and the frozen part over them, on a local cluster."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from cxr import sources, storage
from cxr.datasets import features, headers
from cxr.datasets import shards as shards_module
from cxr.datasets.folds import assign_folds
from cxr.datasets.pixels import count_reasons, decode_shards, describe_duplicates
from cxr.datasets.shards import FORMAT, Shards, key, load_shards, read_part
from cxr.datasets.variation import NamedChange
from cxr.errors import DataError
from cxr.images.read import read_image
from cxr.models import classifier, transforms
from cxr.models.acquisition import change
from cxr.recipes import Recipe
from cxr.sources import texts
from cxr.sources.patients import digest
from cxr.sources.settings import SetSettings
from cxr.storage.arrays import to_array
from tests.support.archives import MAKERS, zipped
from tests.support.radiographs import dicom, drawn, radiograph, saved

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


def read(uri: str) -> np.ndarray:
    """The pixels of one file by the one reading function."""
    [row] = sources.list_inputs([uri]).table().to_pylist()
    image = read_image(row, IMAGE_PX)
    assert image.pixels is not None
    return image.pixels


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
        expected = read(seen["uri"][index].as_py())
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


def test_a_table_has_the_key_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By which what was decoded from earlier listings is found."""
    table = pa.table({"uri": ["a", "é", 'b"'], "place": [[], [{"kind": "zip"}], None]})
    keys = {key("pixels", 64, rows, 1.5) for rows in (table, table.to_pylist())}
    monkeypatch.setattr(texts, "BATCH_ROWS", 2)
    assert keys == {key("pixels", 64, table, 1.5)} == {"cf8104510e7a254fcf46"}
    assert key(table.slice(0, 0)) == key([])


def test_shards_that_were_not_finished_are_not_used(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(Path(shards.folder, "rows.parquet").read_bytes())
    assert load_shards(str(tmp_path)) is None


WRITTEN = {
    3: {
        "part": {
            "row": "int64", "uri": "string", "label": "int64", "patient": "string",
            "subtype": "string", "fold": "int64", "sha256": "string", "pixels_sha256": "string",
            "format": "string", "width": "int64", "height": "int64", "x": "binary",
        },
        "rows": {
            "row": "int64", "uri": "string", "label": "int64", "patient": "string",
            "subtype": "string", "fold": "int64", "sha256": "string", "pixels_sha256": "string",
            "format": "string", "width": "int64", "height": "int64",
        },
        "failed": {
            "row": "int64", "uri": "string", "label": "int64", "patient": "string",
            "subtype": "string", "fold": "int64", "sha256": "string", "pixels_sha256": "string",
            "format": "string", "width": "int64", "height": "int64", "reason": "string",
        },
        "index": ["shape", "dtype", "parts"],
    },
}  # fmt: skip
"""What is in a cache in each format. Other columns are another format, with an entry of its own."""


def test_what_is_written_is_that_of_the_format(shards: Shards) -> None:
    def columns(table: pa.Table) -> dict[str, str]:
        return {field.name: str(field.type) for field in table.schema}

    assert max(WRITTEN) == FORMAT
    assert WRITTEN[FORMAT] == {
        "part": columns(read_part(shards.parts[0][0])),
        "rows": columns(storage.read_table(f"{shards.folder}/rows.parquet")),
        "failed": columns(storage.read_table(f"{shards.folder}/failed.parquet")),
        "index": list(storage.read_json(f"{shards.folder}/index.json")),
    }


def test_finished_shards_are_what_is_loaded(shards: Shards) -> None:
    """The object that was written is returned, and not read back."""
    loaded = load_shards(shards.folder)
    assert loaded is not None
    assert (loaded.shape, loaded.dtype, loaded.parts) == (shards.shape, shards.dtype, shards.parts)
    assert loaded.table.equals(shards.table)
    assert loaded.failed.equals(shards.failed)
    assert shards.table["row"].to_pylist() == sorted(shards.table["row"].to_pylist())


def test_a_cache_of_another_format_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    now = key("pixels", IMAGE_PX, [])
    monkeypatch.setattr(shards_module, "FORMAT", FORMAT - 1)
    assert key("pixels", IMAGE_PX, []) != now


def test_an_archive_gives_the_shards_of_its_folder(
    shards: Shards, broken_set: Path, tmp_path: Path
) -> None:
    files = {
        f"chest_xray/{path.relative_to(broken_set)}": path.read_bytes()
        for path in sorted(broken_set.rglob("*.*"))
        if path.is_file()
    }
    for kind in ("zip deflated", "tar.gz"):
        suffix, make = MAKERS[kind]
        archive = tmp_path / f"set.{suffix}"
        archive.write_bytes(make(files))
        made = decode(archive, tmp_path / "cache")
        listed = {
            uri for name in ("table", "failed") for uri in getattr(made, name)["uri"].to_pylist()
        }
        assert listed == {f"{archive}!/{name}" for name in files}
        # The broken link has no member, so row numbers differ: what is compared are the images.
        for name in ("label", "subtype", "sha256"):
            assert made.table[name].equals(shards.table[name])
        assert made.fingerprint == shards.fingerprint
        assert len(made.failed) == len(shards.failed) - 1
        by_sha = {row["sha256"]: row["x"] for row in streamed(shards)}
        assert {row["sha256"]: row["x"] for row in streamed(made)} == by_sha


def streamed(shards: Shards) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = shards.dataset(columns=("sha256", "x")).take_all()
    return rows


def test_parts_of_a_compressed_tar_stay_small_and_in_order(tmp_path: Path) -> None:
    """Although a task has read many of them in one pass."""
    names = [
        f"PNEUMONIA/person{i}_virus_{i}.jpeg" if i % 3 else f"NORMAL/IM-{i:04}-0001.jpeg"
        for i in range(240)
    ]
    files = {f"train/{name}": radiograph(seed) for seed, name in enumerate(names)}
    (tmp_path / "set.tar.gz").write_bytes(MAKERS["tar.gz"][1](files))
    listing = sources.list_radiographs(str(tmp_path / "set.tar.gz"), "train")
    folds = np.arange(len(listing)) % 2
    shards = decode_shards(listing, folds, IMAGE_PX, str(tmp_path / "cache"))
    assert [len(parts) for parts in shards.parts.values()] == [2, 2]
    sizes = [len(read_part(part)) for fold in (0, 1) for part in shards.parts[fold]]
    assert sizes == [64, 56, 64, 56]
    rows = [row for part in shards.parts[1] for row in read_part(part)["row"].to_pylist()]
    assert rows == list(range(1, len(listing), 2))


def test_dicom_files_are_labeled_by_a_manifest(tmp_path: Path) -> None:
    """A folder without suffixes, and a DICOM member of an archive."""
    (tmp_path / "scans").mkdir()
    for number in range(4):
        data = dicom((drawn() // 2 + number).astype("uint8"))
        (tmp_path / "scans" / f"1.2.840.{number}").write_bytes(data)
    (tmp_path / "more.zip").write_bytes(zipped({"DICOM/IM5": dicom(drawn())}))
    (tmp_path / "labels.csv").write_text(
        "uri,label,patient\n"
        + "".join(f"scans/1.2.840.{i},{i % 2},p{i}\n" for i in range(4))
        + "more.zip!/DICOM/IM5,1,p5\n"
    )
    listing = sources.list_radiographs(str(tmp_path / "labels.csv"), "train")
    shards = decode_shards(listing, np.zeros(5, np.int64), IMAGE_PX, str(tmp_path / "cache"))
    assert len(shards.failed) == 0
    assert shards.table["patient"].to_pylist() == ["4", "0", "1", "2", "3"]
    assert shards.table["label"].to_pylist() == [1, 0, 1, 0, 1]


def test_duplicates_are_never_on_both_sides_of_a_split(tmp_path: Path) -> None:
    """Copies of bytes and of pixels, within a fold, across folds, and under two labels."""
    images = {name: drawn(seed=seed) for seed, name in enumerate("abcdef")}
    files = {f"{name}.png": saved(pixels, "PNG") for name, pixels in images.items()}
    files |= {
        "g of a.png": files["a.png"],
        "h of a.png": files["a.png"],
        "i of b.bmp": saved(images["b"], "BMP"),
        "j of c.png": files["c.png"],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    labels = dict.fromkeys(files, 0) | {"j of c.png": 1, "d.png": 1}
    rows = [f"{name},{label}" for name, label in labels.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["uri,label", *rows]))
    settings = SetSettings(patients="file")
    listing = sources.list_radiographs(str(tmp_path / "labels.csv"), "train", settings)
    names = [Path(uri).name for uri in listing["uri"].to_pylist()]
    fold_of = dict.fromkeys(names, 0) | {"h of a.png": 1, "i of b.bmp": 1}
    folds = np.array([fold_of[name] for name in names])
    shards = decode_shards(listing, folds, IMAGE_PX, str(tmp_path / "cache"))
    left_out = {
        Path(row["uri"]).name: row["reason"].partition("duplicate of an image ")[2]
        for row in shards.failed.to_pylist()
    }
    assert left_out == {
        "h of a.png": "in another fold",
        "i of b.bmp": "in another fold",
        "c.png": "with another label",
        "j of c.png": "with another label",
    }
    assert list(shards.parts) == [0]
    read = [row["uri"] for row in shards.dataset(columns=("uri",)).take_all()]
    assert sorted(read) == sorted(shards.table["uri"].to_pylist())
    assert {Path(uri).name for uri in read} == set(files) - set(left_out)
    assert describe_duplicates(shards) == (
        "Exact duplicates (equal pixels): 1 used, in the fold of their first copy; 2 left out,"
        " since the first copy is in another fold; 2 left out, since copies have different labels."
    )
    loaded = load_shards(shards.folder)
    assert loaded is not None
    assert loaded.parts == shards.parts


def test_headers_are_read_once_and_name_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and members of archives, patients who share a fold, and what is kept of them."""
    members = {}
    for number in range(6):
        data = dicom(
            drawn(), PatientID=f"roentgen-{number // 2}", PatientAge="034Y", ViewPosition="PA"
        )
        name = f"train/{('NORMAL', 'PNEUMONIA')[number % 2]}/1.2.840.{number}"
        if number < 3:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(data)
        else:
            members[name] = data
    (tmp_path / "set" / "train" / "NORMAL" / "damaged").write_bytes(dicom(drawn())[:200])
    archive = tmp_path / "set" / "train" / "PNEUMONIA" / "more.tar.gz"
    archive.write_bytes(MAKERS["tar.gz"][1]({Path(k).name: v for k, v in members.items()}))
    cache = tmp_path / "cache"
    # The set is listed without what is beside its folders, so the archive is read by itself.
    inputs = sources.list_inputs([str(tmp_path / "set" / "train" / "NORMAL")]).table()
    packed, _ = sources.list_archive(str(archive), None)
    listing = pa.concat_tables([inputs, packed])
    table = headers.read_headers(listing, str(cache))
    assert table.schema == headers.HEADERS
    assert table["row"].to_pylist() == list(range(len(listing)))
    by_name = {
        Path(uri).name: row
        for uri, row in zip(listing["uri"].to_pylist(), table.to_pylist(), strict=True)
    }
    assert by_name["damaged"]["format"] == ""
    assert by_name["1.2.840.4"]["patient_digest"] == digest("roentgen-2")
    assert by_name["1.2.840.5"]["age_years"] == 34
    [file] = cache.rglob("*.parquet")
    assert b"roentgen" not in file.read_bytes()
    monkeypatch.setattr(headers, "_read", None)
    assert headers.read_headers(listing, str(cache)).equals(table)


def test_a_folder_of_dicom_files_is_listed_by_patient(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "train" / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(drawn(), PatientID=f"roentgen-{number // 4}"))
    data = headers.list_labeled_set(str(tmp_path), SetSettings(), str(tmp_path / "cache"))
    assert data.patients.sentence == (
        "Patients are identified by PatientID in the DICOM files: 2 patients with at most 4 images"
        " each."
    )


def test_reasons_are_counted(shards: Shards) -> None:
    counts = count_reasons(shards.failed["reason"].to_pylist())
    assert sum(counts.values()) == 5
    assert counts["unreadable: the file is empty"] == 1
    assert counts["unreadable: cannot be read: No such file or directory"] == 1
    assert count_reasons(["a 1", "b", "a 2,000"]) == {"a N": 2, "b": 1}


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
    for form in ("NORMAL/IM-{}-1.jpeg", "PNEUMONIA/person{}_virus_1.jpeg"):
        for number in range(3):
            path = tmp_path / "train" / form.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no")
    with pytest.raises(DataError, match="none of the 6 radiographs can be read"):
        decode(tmp_path, tmp_path / "cache")


def test_features_are_what_the_prefix_gives(shards: Shards, tmp_path: Path) -> None:
    recipe = Recipe(
        backbone="alexnet", frozen=3, image_px=IMAGE_PX, normalization="imagenet",
        hidden=(), dropout=(0.0,),
    )  # fmt: skip
    model = classifier.build(recipe)
    wanted = [
        features.Pass(shards, recipe, model),
        features.Pass(shards, recipe, model, NamedChange("gamma_low", 3)),
    ]
    found, bright = features.extract(wanted, str(tmp_path))
    assert found.shape == model.prefix_shape(IMAGE_PX)
    assert found.table.equals(shards.table)
    seen = pa.concat_tables(found.dataset().iter_batches(batch_size=None, batch_format="pyarrow"))
    arrays = to_array(seen["x"], found.shape, found.dtype)
    pixels = read(seen["uri"][3].as_py())
    images = transforms.normalize(torch.from_numpy(pixels.copy())[None, None], "imagenet")
    with torch.inference_mode():
        expected = model.prefix(images)[0].numpy()
    assert np.allclose(arrays[3], expected, rtol=1e-4, atol=1e-5)
    seen = pa.concat_tables(bright.dataset().iter_batches(batch_size=None, batch_format="pyarrow"))
    pixels = read(seen["uri"][3].as_py())
    images = change(torch.from_numpy(pixels.copy())[None, None], "gamma_low", 3)
    with torch.inference_mode():
        expected = model.prefix(transforms.normalize(images, "imagenet"))[0].numpy()
    arrays = to_array(seen["x"], bright.shape, bright.dtype)
    assert np.allclose(arrays[3], expected, rtol=1e-4, atol=1e-5)
    assert features.extract(wanted, str(tmp_path))[0].folder == found.folder


def test_a_small_image_is_stretched_to_the_square(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    Image.fromarray(ramp).save(tmp_path / "wide.png")
    assert read(str(tmp_path / "wide.png")).shape == (IMAGE_PX, IMAGE_PX)


def test_features_of_another_version_of_the_transform_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = Recipe(backbone="squeezenet1_1", frozen=1, image_px=32, hidden=(), dropout=(0.0,))
    none = pa.table({})
    pixels = Shards("cache/pixels/a1", (32, 32), "uint8", {}, none, none)
    frozen = features.Pass(pixels, recipe, classifier.build(recipe))
    folder = frozen.folder(str(tmp_path), onnx=True)
    assert folder.startswith(f"{tmp_path}/features/")
    assert frozen.folder(str(tmp_path), onnx=True) == folder
    assert frozen.folder(str(tmp_path), onnx=False) != folder
    monkeypatch.setattr(transforms, "VERSION", transforms.VERSION + 1)
    assert frozen.folder(str(tmp_path), onnx=True) != folder
