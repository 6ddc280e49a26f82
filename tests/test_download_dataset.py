"""The download job: from a publisher to a checked set, through everything that goes wrong."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cxr import sources, storage
from cxr.download import dataset, publishers, transfer
from cxr.download.publishers import Archive
from cxr.download.transfer import Origin
from cxr.errors import DownloadError
from cxr.models import weights
from tests.support.archives import zipped
from tests.support.folders import as_nobody, readable_folder
from tests.support.jobs import Ended
from tests.support.publisher import Publisher, serving
from tests.support.radiographs import radiograph
from tests.support.s3 import Store

IMAGES = {
    f"{split}/{name}": radiograph(10 * i + j)
    for i, split in enumerate(("train", "test"))
    for j, name in enumerate(
        (
            f"NORMAL/IM-011{i}-0001.jpeg",
            f"NORMAL/IM-022{i}-0001.jpeg",
            f"PNEUMONIA/person1{i}_bacteria_1.jpeg",
            f"PNEUMONIA/person2{i}_virus_2.jpeg",
        )
    )
}
ARCHIVE = zipped(
    {
        "chest_xray.zip": zipped(
            {f"chest_xray/{name}": data for name, data in IMAGES.items()}
            | {"__MACOSX/chest_xray/._train": b"\0", "chest_xray/.DS_Store": b"\0"}
        ),
        "__MACOSX/._chest_xray.zip": b"\0",
    }
)
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()
BESIDE = {"LICENSE.txt", "source.json", "manifest.parquet", "classes.png"}


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Publisher]:
    """Mendeley Data on this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))
    monkeypatch.setattr(transfer, "wait", lambda _: None)
    with serving(Publisher({"a.zip": ARCHIVE})) as served:
        yield served


def files_of(folder: str | Path) -> dict[str, bytes]:
    root = storage.absolute(str(folder))
    found = storage.list_files(root)
    return {file.uri[len(root) + 1 :]: storage.read_bytes(file.uri) for file in found}


def images_of(folder: str | Path) -> dict[str, bytes]:
    return {path: data for path, data in files_of(folder).items() if path not in BESIDE}


def test_the_set_arrives_through_three_cuts_and_is_not_fetched_again(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    publisher.cuts = [len(ARCHIVE) // 4] * 3
    to = tmp_path / "set"
    words = ("--to", str(to), "--url", f"{publisher.url}/a.zip", "--sha256", SHA256)
    done = run_job("download", *words)
    assert (done.code, done.err) == (0, "")
    assert images_of(to) == IMAGES
    assert set(files_of(to)) - set(IMAGES) == BESIDE
    assert publisher.num_sent <= len(ARCHIVE) + 3 * transfer.PIECE_BYTES
    assert len(publisher.requests) == 4
    assert "CC BY 4.0" in done.out
    assert "doi: 10.17632/rscbjbr9sj.2" in done.out
    assert (to / "LICENSE.txt").read_text() in done.out
    assert json.loads((to / "source.json").read_text())["sha256"] == SHA256
    assert "counts: NOT as published" in done.out
    assert f"next: python jobs/train.py --data {to}/manifest.parquet" in done.out
    for split in ("train", "test"):
        assert len(sources.list_radiographs(f"{to}/manifest.parquet", split)) == 4

    before = {path: path.stat().st_mtime_ns for path in to.rglob("*.jpeg")}
    again = run_job("download", *words)
    assert again.code == 0
    assert "all 8 files are there and unchanged; nothing is fetched." in again.out
    assert len(publisher.requests) == 4
    assert before == {path: path.stat().st_mtime_ns for path in to.rglob("*.jpeg")}


def test_the_set_arrives_in_a_bucket(
    tmp_path: Path, publisher: Publisher, s3: Store, run_job: Callable[..., Ended]
) -> None:
    publisher.cuts = [len(ARCHIVE) // 4] * 3
    to = f"{s3.bucket()}/set"
    words = ("--to", to, "--url", f"{publisher.url}/a.zip", "--sha256", SHA256)
    assert run_job("download", *words).code == 0
    assert images_of(to) == IMAGES
    assert set(files_of(to)) - set(IMAGES) == BESIDE
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    again = run_job("download", *words)
    assert "all 8 files are there and unchanged; nothing is fetched." in again.out
    assert len(publisher.requests) == 4


def test_a_missing_bucket_is_said_before_anything_is_fetched(
    publisher: Publisher, s3: Store, run_job: Callable[..., Ended]
) -> None:
    done = run_job("download", "--to", "s3://nowhere/set", "--url", f"{publisher.url}/a.zip")
    assert done.code == 1
    assert re.search(r"^error: .*(bucket .*nowhere|nowhere.*bucket)", done.err)
    assert publisher.requests == []


def test_a_changed_file_is_found_and_mended(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    words = ("--to", str(tmp_path / "set"), "--url", f"{publisher.url}/a.zip")
    run_job("download", *words)
    changed, gone = (tmp_path / "set" / name for name in sorted(IMAGES)[:2])
    changed.write_bytes(radiograph(77))
    gone.unlink()
    done = run_job("download", *words)
    assert f"2 files are missing, new or changed, the first {sorted(IMAGES)[0]}" in done.out
    assert "2 files written, 6 were there" in done.out
    assert images_of(tmp_path / "set") == IMAGES


@pytest.mark.parametrize("form", ["path", "file:", "s3:"])
def test_a_file_that_is_here_already_is_read_in_its_place(
    tmp_path: Path, s3: Store, run_job: Callable[..., Ended], form: str
) -> None:
    place = f"{s3.bucket()}/a.zip" if form == "s3:" else str(tmp_path / "a.zip")
    storage.write_bytes(place, ARCHIVE)
    url = Path(place).as_uri() if form == "file:" else place
    done = run_job("download", "--to", str(tmp_path / "set"), "--url", url, "--sha256", SHA256)
    assert (done.code, done.err) == (0, "")
    assert images_of(tmp_path / "set") == IMAGES
    assert storage.read_bytes(place) == ARCHIVE


def test_a_file_that_is_here_and_another_is_not_used(
    tmp_path: Path, run_job: Callable[..., Ended]
) -> None:
    (tmp_path / "a.zip").write_bytes(ARCHIVE)
    words = ("--to", str(tmp_path / "set"), "--url", str(tmp_path / "a.zip"))
    done = run_job("download", *words, "--sha256", "0" * 64)
    assert done.code == 1
    assert f"a.zip: has SHA-256 {SHA256}, not 0000" in done.err
    assert images_of(tmp_path / "set") == {}


def test_an_archive_that_proves_damaged_is_kept_aside_and_fetched_anew(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    publisher.files["a.zip"] = ARCHIVE[: len(ARCHIVE) // 2]
    words = ("--to", str(tmp_path / "set"), "--url", f"{publisher.url}/a.zip")
    done = run_job("download", *words)
    assert done.code == 1
    aside = tmp_path / "set" / ".download" / "a.zip.wrong"
    assert f"The file is kept aside as {aside} and not used again." in done.err
    assert aside.is_file()
    assert not (tmp_path / "set" / "manifest.parquet").exists()
    publisher.files["a.zip"] = ARCHIVE
    assert run_job("download", *words).code == 0
    aside.unlink()
    assert images_of(tmp_path / "set") == IMAGES


def test_a_wrong_checksum_leaves_no_radiograph(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    words = ("--to", str(tmp_path / "set"), "--url", f"{publisher.url}/a.zip")
    done = run_job("download", *words, "--sha256", "0" * 64)
    assert done.code == 1
    assert re.search(r"not 0{16}\.\.\.: damaged.*Kept aside as .*give --url FILE", done.err)
    assert list(images_of(tmp_path / "set")) == [".download/a.zip.wrong"]


def test_a_place_with_other_radiographs_is_refused(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    (tmp_path / "mine/train/NORMAL").mkdir(parents=True)
    (tmp_path / "mine/train/NORMAL/a.jpeg").write_bytes(b"")
    words = ("--to", str(tmp_path / "mine"), "--url", f"{publisher.url}/a.zip")
    done = run_job("download", *words)
    assert done.code == 1
    assert "mine: has a folder 'train' that this job did not make. Choose another" in done.err
    words = ("--to", str(tmp_path / "set"), "--url", f"{publisher.url}/a.zip")
    assert run_job("download", *words).code == 0
    done = run_job("download", *words[:-1], f"{publisher.url}/b.zip")
    assert done.code == 1
    assert re.search(r"set: holds what came from http.*/a\.zip, not http.*/b\.zip", done.err)
    assert images_of(tmp_path / "set") == IMAGES


def test_a_place_that_cannot_be_written_is_said_before_anything_is_fetched(
    publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    with readable_folder() as folder, as_nobody():
        done = run_job("download", "--to", f"{folder}/set", "--url", f"{publisher.url}/a.zip")
    assert done.code == 1
    assert re.search(r"^error: .*LICENSE\.txt: cannot be written: .*denied", done.err)
    assert publisher.requests == []


def test_settings_that_cannot_be_are_refused(run_job: Callable[..., Ended]) -> None:
    assert "to: give a folder or bucket prefix" in run_job("download").err
    assert "sha256: belongs to --url" in run_job("download", "--to", "a", "--sha256", "b").err


# --- publishers ----------------------------------------------------------------------------------


def test_the_published_file_is_known_by_size_and_checksum() -> None:
    file = publishers.archive("mendeley")
    assert file.name == "ChestXRay2017.zip"
    assert file.origin.url == (
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
    )
    assert file.origin.size == 1_235_512_464
    assert len(file.origin.sha256) == len(publishers.archive("mendeley3").origin.sha256) == 64
    mirrored = publishers.archive("mendeley", "http://intranet/files/")
    assert mirrored.origin.url == "http://intranet/files/ChestXRay2017.zip"
    assert mirrored.origin.sha256 == file.origin.sha256


def test_another_file_than_the_published_is_refused_by_its_size(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    publisher.files = {"ChestXRay2017.zip": ARCHIVE}
    done = run_job("download", "--to", str(tmp_path / "set"), "--mirror", publisher.url)
    assert done.code == 1
    assert f"has {len(ARCHIVE):,} bytes, not 1,235,512,464: another file" in done.err


def test_kaggle_is_asked_with_the_users_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher,
    run_job: Callable[..., Ended],
) -> None:  # fmt: skip
    path = "api/v1/datasets/download/paultimothymooney/chest-xray-pneumonia"
    publisher.files, publisher.password = {path: ARCHIVE}, ("ann", "secret")
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", publisher.url)
    words = ("--to", str(tmp_path / "set"), "--source", "kaggle")
    (tmp_path / "kaggle").mkdir()
    token = tmp_path / "kaggle" / "kaggle.json"

    none = run_job("download", *words)
    assert none.code == 1
    assert "set KAGGLE_USERNAME and KAGGLE_KEY, or put its kaggle.json at" in none.err
    for content in ('{"username": "ann", "secret', '{"username": "ann"}', '"secret"'):
        token.write_text(content)
        damaged = run_job("download", *words)
        assert "kaggle.json: not a token of Kaggle's. Expected JSON" in damaged.err
        assert "secret" not in damaged.err + damaged.out
    token.write_text(json.dumps({"username": "ann", "key": "wrong"}))
    assert "(HTTP 401): the server wants a name" in run_job("download", *words).err
    assert not (tmp_path / "set" / "train").exists()

    token.write_text(json.dumps({"username": "ann", "key": "secret"}))
    done = run_job("download", *words)
    assert images_of(tmp_path / "set") == IMAGES
    # Nothing else tells Kaggle's file from another.
    assert done.code == 3
    assert "error: the counts are not those that were published" in done.err
    monkeypatch.setenv("KAGGLE_USERNAME", "ann")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    token.unlink()
    assert publishers.archive("kaggle").origin.auth == ("ann", "secret")
    assert "secret" not in done.out + (tmp_path / "set" / "source.json").read_text()


def test_two_jobs_into_buckets_do_not_share_what_is_on_its_way(
    publisher: Publisher, s3: Store
) -> None:
    publisher.files["b/a.zip"] = b"another file of this name"
    to = s3.bucket()
    for path, words in (("a.zip", ""), ("b/a.zip", "another")):
        source = dataset.ArchiveSource(Archive("a.zip", Origin(f"{publisher.url}/{path}")))
        place = dataset.obtain(source, f"{to}/{words}")
        assert Path(place).read_bytes() == publisher.files[path]
    publisher.files.clear()
    with pytest.raises(DownloadError):
        dataset.obtain(source, f"{to}/elsewhere")


# --- weights -------------------------------------------------------------------------------------


def test_weights_are_fetched_from_a_mirror_and_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher,
    run_job: Callable[..., Ended],
) -> None:  # fmt: skip
    import torch

    torch.save(
        {"features.0.weight": torch.zeros(3), "classifier.0.weight": torch.zeros(9)},
        tmp_path / "a.pth",
    )
    content = (tmp_path / "a.pth").read_bytes()
    name = f"alexnet-{hashlib.sha256(content).hexdigest()[:8]}"
    publisher.files[f"{name}.pth"] = content
    monkeypatch.setattr(weights, "imagenet_url", lambda _: f"https://publisher/{name}.pth")
    words = ("--what", "weights", "--backbone", "alexnet", "--mirror", publisher.url)
    done = run_job("download", *words, "--features-only", "True")
    assert (done.code, done.err) == (0, "")
    # Without --to, where --weights imagenet looks.
    place = tmp_path / "cache" / "cxr" / "weights" / f"{name}-features.safetensors"
    assert f"next: python jobs/train.py --backbone alexnet --weights {place}" in done.out
    assert {path.name for path in place.parent.iterdir()} == {f"{name}.pth", place.name}
    assert run_job("download", *words, "--to", str(tmp_path / "to")).code == 0
    assert (tmp_path / "to" / "weights" / f"{name}.pth").read_bytes() == content
    assert len(publisher.requests) == 2
    both = ("--what", "all", *words[2:], "--url", f"{publisher.url}/a.zip")
    assert run_job("download", *both, "--to", str(tmp_path / "all")).code == 0
    assert (tmp_path / "all" / "weights" / f"{name}.pth").read_bytes() == content
    assert images_of(tmp_path / "all").items() >= IMAGES.items()


def test_the_manifest_has_each_image_with_its_checksum(
    tmp_path: Path, publisher: Publisher, run_job: Callable[..., Ended]
) -> None:
    run_job("download", "--to", str(tmp_path / "set"), "--url", f"{publisher.url}/a.zip")
    rows = pq.read_table(tmp_path / "set" / "manifest.parquet").to_pylist()
    assert {row["uri"]: row["sha256"] for row in rows} == {
        name: hashlib.sha256(data).hexdigest() for name, data in IMAGES.items()
    }
    assert list(rows[0]) == [
        "uri", "split", "label", "patient", "subtype", "width", "height", "bytes", "sha256",
    ]  # fmt: skip
