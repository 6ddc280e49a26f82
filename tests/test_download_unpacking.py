"""Archives become the set's folders; what is hostile, damaged or cut off becomes nothing."""

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from cxr import storage
from cxr.download import unpacking
from cxr.errors import DataError, StorageError
from cxr.sources.archives import reader
from tests.support.archives import Files, noise, tarred, zipped, zipped_to_pipe
from tests.support.folders import as_nobody, readable_folder
from tests.support.s3 import Store

NAMES = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0666-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_6.jpeg",
    "val/NORMAL/IM-0200-0001.jpeg",
    "test/PNEUMONIA/person9_virus_1.jpeg",
)
IMAGES: Files = {name: noise(3_000 + 100 * i, i) for i, name in enumerate(NAMES)}
APPLES: Files = {
    "chest_xray/.DS_Store": bytes(6148),
    "__MACOSX/chest_xray/train/NORMAL/._IM-0115-0001.jpeg": bytes(120),
    "__MACOSX/._chest_xray": bytes(120),
    "chest_xray/train/.DS_Store": bytes(6148),
}
INNER = {f"chest_xray/{name}": data for name, data in IMAGES.items()} | APPLES


def original(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The form in which the set came to Kaggle: a zip in a zip, and a Mac's own files."""
    inner = zipped(INNER)
    return zipped({"chest_xray.zip": inner, "__MACOSX/._chest_xray.zip": bytes(120)}, method)


def kaggle() -> bytes:
    """Its form today: everything twice."""
    twice = {f"chest_xray/{name}": data for name, data in INNER.items()}
    return zipped(twice | {f"chest_xray/{name}": data for name, data in IMAGES.items()})


FORMS = {
    "mendeley.zip": zipped(INNER),
    "nested.zip": original(),
    "nested-stored.zip": original(zipfile.ZIP_STORED),
    "kaggle.zip": kaggle(),
    "written-to-a-pipe.zip": zipped_to_pipe(INNER),
    "plain.zip": zipped(IMAGES),
    "a.tar": tarred(INNER),
    "of-windows.zip": zipped({name.replace("/", "\\"): data for name, data in IMAGES.items()}),
    "version3.zip": zipped(
        {f"CellData/{name}": data for name, data in INNER.items()}
        | {"CellData/OCT/train/NORMAL/NORMAL-1-1.jpeg": b"retina"}
        | {"CellData/OCT/train/CNV/CNV-1-1.jpeg": b"retina"}
    ),
}


def put(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def files_of(folder: str | Path) -> Files:
    root = storage.absolute(str(folder))
    found = storage.list_files(root)
    return {file.uri[len(root) + 1 :]: storage.read_bytes(file.uri) for file in found}


def unpack(archive: str, to: str | Path) -> unpacking.Unpacked:
    return unpacking.unpack(archive, unpacking.plan(archive), str(to))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("held", [2**10, 2**26])
def test_every_form_becomes_the_sets_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, held: int
) -> None:
    monkeypatch.setattr(reader, "HELD_BYTES", held)
    archive = put(tmp_path, form, FORMS[form])
    assert unpack(archive, tmp_path / "set") == (len(NAMES), 0)
    assert files_of(tmp_path / "set") == IMAGES


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    planned = unpacking.plan(put(tmp_path, "a.zip", FORMS["kaggle.zip"]))
    assert planned.passed_over == {"hidden or system file": 4, "second copies": 6}
    planned = unpacking.plan(put(tmp_path, "b.zip", FORMS["version3.zip"]))
    assert planned.passed_over == {"hidden or system file": 4, "other files": 2}
    assert unpacking.listed(planned.passed_over) == "4 hidden or system file, 2 other files"


def test_nothing_is_written_twice_and_what_is_damaged_is_written_again(tmp_path: Path) -> None:
    archive = put(tmp_path, "a.zip", original())
    unpack(archive, tmp_path / "set")
    right, damaged, gone, short = (tmp_path / "set" / name for name in NAMES[:4])
    before = right.stat()
    damaged.write_bytes(bytes(len(IMAGES[NAMES[1]])))
    gone.unlink()
    short.write_bytes(IMAGES[NAMES[3]][:100])
    left = right.with_name(right.name + ".0123abcd.part")
    left.write_bytes(b"half")
    assert unpack(archive, tmp_path / "set") == (3, 3)
    assert files_of(tmp_path / "set") == IMAGES
    assert (right.stat().st_ino, right.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_several_files_are_written_at_a_time_and_not_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"train/NORMAL/IM-{i:04}-0001.jpeg": noise(100, i) for i in range(40)}
    archive = put(tmp_path, "a.zip", zipped(files))
    at_once, most, lock, write = 0, 0, threading.Lock(), storage.write_bytes
    two = threading.Barrier(2)

    def slow(uri: str, data: bytes) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        two.wait(10)  # Passed only if two are here.
        write(uri, data)
        with lock:
            at_once -= 1

    monkeypatch.setattr(storage, "write_bytes", slow)
    unpack(archive, tmp_path / "set")
    assert 2 <= most <= unpacking.THREADS
    assert files_of(tmp_path / "set") == files


EVIL = (
    "../train/NORMAL/IM-1-1.jpeg",
    "chest_xray/../../train/NORMAL/IM-1-1.jpeg",
    "/train/NORMAL/IM-1-1.jpeg",
    "C:\\train\\NORMAL\\IM-1-1.jpeg",
    "..\\..\\train\\NORMAL\\IM-1-1.jpeg",
    "train/NORMAL/IM-1\n-1.jpeg",
    "__MACOSX/../../../.ssh/authorized_keys",
)


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("nested", [False, True])
def test_an_evil_name_ends_it_before_anything_is_written(
    tmp_path: Path, name: str, nested: bool
) -> None:
    data = zipped(IMAGES | {name: b"evil"})
    archive = put(tmp_path, "a.zip", zipped({"chest_xray.zip": data}) if nested else data)
    with pytest.raises(DataError, match=r"a\.zip.*to land outside of its folder\. Nothing was"):
        unpack(archive, tmp_path / "set" / "deep")
    assert os.listdir(tmp_path) == ["a.zip"]  # noqa: PTH208


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO(zipped(IMAGES))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("train/NORMAL/IM-9999-0001.jpeg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    unpack(put(tmp_path, "a.zip", buffer.getvalue()), tmp_path / "set")
    assert files_of(tmp_path / "set") == IMAGES


@pytest.mark.parametrize("share", [0.05, 0.4, 0.7])
@pytest.mark.parametrize("form", ["mendeley.zip", "nested.zip", "nested-stored.zip", "a.tar"])
def test_an_archive_that_is_cut_off_ends_it(tmp_path: Path, form: str, share: float) -> None:
    whole = FORMS[form]
    archive = put(tmp_path, form, whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"cut (short|off)|damaged"):
        unpack(archive, tmp_path / "set")
    assert os.listdir(tmp_path) == [form]  # noqa: PTH208


def test_a_damaged_member_ends_it_and_is_not_written(tmp_path: Path) -> None:
    data = bytearray(zipped(IMAGES, zipfile.ZIP_STORED))
    at = data.index(IMAGES[NAMES[3]]) + 50
    data[at] ^= 255
    archive = put(tmp_path, "a.zip", bytes(data))
    with pytest.raises(
        DataError, match=r"a\.zip: train/PNEUMONIA/person1_virus_6\.jpeg: .*checksum is wrong"
    ):
        unpack(archive, tmp_path / "set")
    written = files_of(tmp_path / "set")
    assert NAMES[3] not in written
    assert written.items() <= IMAGES.items()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train/NORMAL/IM-1-1.jpeg": bytes(64 * 2**20)}, "200 times its size, as zip bombs do"),
        ({"chest_xray.zip": bytes(64 * 2**20)}, "200 times its size, as zip bombs do"),
        ({"a.txt": b""}, r"no radiographs found\. Expected train\|val\|test"),
        (
            {"a/train/NORMAL/IM-1-1.jpeg": b"one", "b/train/NORMAL/IM-1-1.jpeg": b"two"},
            r"two different files are called train/NORMAL/IM-1-1\.jpeg",
        ),
    ],
)
def test_what_cannot_be_the_set_is_refused(tmp_path: Path, files: Files, words: str) -> None:
    with pytest.raises(DataError, match=words):
        unpack(put(tmp_path, "a.zip", zipped(files)), tmp_path / "set")
    assert os.listdir(tmp_path) == ["a.zip"]  # noqa: PTH208


def test_more_than_the_set_can_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_TOTAL_BYTES", 10_000)
    with pytest.raises(DataError, match=r"unpacks to 19,500 bytes, more than 10,000"):
        unpack(put(tmp_path, "a.zip", zipped(IMAGES)), tmp_path / "set")


@pytest.mark.parametrize("data", [b"<html>Log in.</html>", b"", b"PK"])
def test_what_is_no_archive_is_said_so(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.zip: not a zip archive, and not named like a tar"):
        unpack(put(tmp_path, "a.zip", data), tmp_path / "set")


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=19_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        StorageError, match=r"set: has room for 19,000 bytes, and 19,500 are to come"
    ):
        unpack(put(tmp_path, "a.zip", zipped(IMAGES)), tmp_path / "set")
    assert os.listdir(tmp_path) == ["a.zip"]  # noqa: PTH208


def test_a_disk_that_fills_up_leaves_whole_files_only(tmp_path: Path) -> None:
    big = {NAMES[0]: IMAGES[NAMES[0]], NAMES[3]: noise(60_000)}
    archive = put(tmp_path, "a.zip", zipped(big))
    # In a process of its own, in which no file may grow beyond 50,000 bytes.
    program = f"""
import resource, sys
from cxr.download import unpacking
from cxr.errors import StorageError
sys.dont_write_bytecode = True
planned = unpacking.plan({archive!r})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
try:
    unpacking.unpack({archive!r}, planned, {str(tmp_path / "set")!r})
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert re.search(r"person1_virus_6\.jpeg: cannot be written: .*File too large", done.stdout)
    assert files_of(tmp_path / "set") == {NAMES[0]: IMAGES[NAMES[0]]}
    assert unpack(archive, tmp_path / "set") == (1, 1)
    assert files_of(tmp_path / "set") == big


def test_a_destination_that_cannot_be_written_is_said_so() -> None:
    with readable_folder() as folder:
        archive = put(folder, "a.zip", zipped(IMAGES))
        with as_nobody(), pytest.raises(StorageError, match=r"jpeg: cannot be written: .*denied"):
            unpack(archive, folder / "set")
        assert os.listdir(folder) == ["a.zip"]  # noqa: PTH208


def test_a_bucket_gets_the_same_files_and_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Store
) -> None:
    monkeypatch.setattr(reader, "HELD_BYTES", 2**10)
    archive, to = put(tmp_path, "a.zip", original()), f"{s3.bucket()}/deep/set"
    write, left = storage.write_bytes, [3]

    def failing(uri: str, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StorageError(f"{uri}: cannot be written: the network is down.")
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", failing)
        with pytest.raises(StorageError, match="the network is down"):
            unpack(archive, to)
    assert len(files_of(to)) == 3
    assert files_of(to).items() <= IMAGES.items()
    assert unpack(archive, to) == (3, 3)
    assert files_of(to) == IMAGES


def test_a_bucket_that_is_missing_is_said_so(tmp_path: Path, s3: Store) -> None:
    archive = put(tmp_path, "a.zip", original())
    with pytest.raises(StorageError, match=r"s3://nowhere: .* has no bucket"):
        unpack(archive, "s3://nowhere/set")
