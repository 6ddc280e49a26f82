"""Files are written whole or not at all, and every failure says where and why."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cxr import storage
from cxr.errors import StorageError


def on_a_full_disk(call: str) -> str:
    """The error of a call in a process in which no file may grow beyond 1,000 bytes.

    Not in this process: Ray, which other tests start in it, ends it when its logs cannot grow.
    """
    program = f"""
import resource, sys
from pathlib import Path
from cxr import storage
from cxr.errors import StorageError
sys.dont_write_bytecode = True
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
try:
    {call}
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    place = str(tmp_path / "new" / "folder" / "file.bin")
    storage.write_bytes(place, b"first")
    storage.write_bytes(place, b"second")
    assert storage.read_bytes(place) == b"second"
    assert names(tmp_path / "new" / "folder") == ["file.bin"]


def test_compressed_names_are_not_unpacked(tmp_path: Path) -> None:
    place = str(tmp_path / "file.gz")
    storage.write_bytes(place, b"plain")
    assert (tmp_path / "file.gz").read_bytes() == b"plain"
    assert storage.read_bytes(place) == b"plain"


def test_a_failing_write_leaves_the_previous_content(tmp_path: Path) -> None:
    place = tmp_path / "file.bin"
    storage.write_bytes(str(place), b"previous")
    error = on_a_full_disk(f"storage.write_bytes({str(place)!r}, bytes(5000))")
    assert re.search(r"file\.bin: cannot be written: .*Choose another place", error)
    assert place.read_bytes() == b"previous"
    assert names(tmp_path) == ["file.bin"]


def test_a_write_onto_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match=r"taken: cannot be written: .*directory"):
        storage.write_bytes(str(tmp_path / "taken"), b"data")
    assert names(tmp_path) == ["taken"]


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StorageError,
        match=r"file/below/x: cannot be written: Cannot create directory .*Choose another place\.$",
    ):
        storage.write_bytes(str(tmp_path / "file" / "below" / "x"), b"data")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none", "No such file"), ("folder", "directory"), ("file/below", "Not a directory")],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=f"{name}: cannot be read: .*{reason}") as caught:
        storage.read_bytes(str(tmp_path / name))
    assert "errno" not in str(caught.value).lower()


def test_files_are_listed_in_order_with_size_and_time(tmp_path: Path) -> None:
    for name in ("b/2", "a", "b/10", "c/d/e"):
        storage.write_bytes(str(tmp_path / name), name.encode())
    (tmp_path / "empty").mkdir()
    files = storage.list_files(str(tmp_path))
    assert [file.uri for file in files] == [
        f"{tmp_path}/{n}" for n in ("a", "b/10", "b/2", "c/d/e")
    ]
    assert [file.size for file in files] == [1, 4, 3, 5]
    assert files[0].modified_ns == (tmp_path / "a").stat().st_mtime_ns
    assert storage.stat([files[1].uri, str(tmp_path / "none"), str(tmp_path)]) == [
        files[1],
        None,
        None,
    ]


def test_listing_what_is_not_there_finds_nothing(tmp_path: Path) -> None:
    assert storage.list_files(str(tmp_path / "none")) == []
    assert storage.stat([]) == []


def test_a_file_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file: cannot be listed: .*\(Not a directory\)\.$"):
        storage.list_files(str(tmp_path / "file"))


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    kinds = [storage.kind(str(tmp_path / name)) for name in ("file", "folder", "none", "file/x")]
    assert kinds == ["file", "folder", "nothing", "nothing"]
    empty = [storage.is_empty(str(tmp_path / name)) for name in ("file", "folder", "none", ".")]
    assert empty == [False, True, True, False]


def test_a_folder_is_deleted_with_all_in_it(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b" / "c"), b"")
    storage.delete(str(tmp_path / "a"))
    storage.delete(str(tmp_path / "never"))
    assert names(tmp_path) == []


def test_a_file_is_deleted_and_a_folder_is_not(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b"), b"")
    for name in ("a", "a/b", "a/b", "never"):
        storage.delete_file(str(tmp_path / name))
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == []


def test_a_local_file_is_moved_in_whole(tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"new")
    storage.write_bytes(str(tmp_path / "folder" / "file"), b"previous")
    storage.move_in(tmp_path / "local", str(tmp_path / "folder" / "file"))
    assert storage.read_bytes(str(tmp_path / "folder" / "file")) == b"new"
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["file"]


def test_a_failing_move_keeps_both_files(tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(bytes(5000))
    storage.write_bytes(str(tmp_path / "folder" / "file"), b"previous")
    source, target = str(tmp_path / "local"), str(tmp_path / "folder" / "file")
    error = on_a_full_disk(f"storage.move_in(Path({source!r}), {target!r})")
    assert re.search(r"folder/file: cannot be written: ", error)
    assert storage.read_bytes(str(tmp_path / "folder" / "file")) == b"previous"
    assert names(tmp_path) == ["folder", "local"]
    assert names(tmp_path / "folder") == ["file"]


def test_a_place_for_results_is_claimed_where_nothing_lies(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"kept")
    assert storage.claim(f"{tmp_path}/new/") == f"{tmp_path}/new"
    assert names(tmp_path / "new") == []
    for taken in ("full", "full/file"):
        with pytest.raises(StorageError, match=rf"{taken}: exists already.*another --output"):
            storage.claim(str(tmp_path / taken))
    with pytest.raises(StorageError, match=r"file/below/\.cxr: cannot be written"):
        storage.claim(str(tmp_path / "full" / "file" / "below"))
    assert (tmp_path / "full" / "file").read_bytes() == b"kept"


def test_file_uris_are_paths(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    storage.write_bytes(f"{folder.as_uri()}/a b.txt", b"data")
    assert (folder / "a b.txt").read_bytes() == b"data"
    assert [file.uri for file in storage.list_files(folder.as_uri())] == [f"{folder}/a b.txt"]
    assert storage.read_bytes((folder / "a b.txt").as_uri()) == b"data"
    assert storage.kind(folder.as_uri()) == "folder"
    assert storage.absolute("file:///a%20b/") == "/a b"
    assert storage.absolute("file://localhost/a") == "/a"


def test_a_file_uri_of_another_machine_is_refused() -> None:
    with pytest.raises(StorageError, match="lies on host 'server'"):
        storage.absolute("file://server/share/a")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b/") == f"{tmp_path}/a/b"
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert storage.join("s3://bucket/", "a", "b") == "s3://bucket/a/b"
    assert storage.join("/", "a") == "/a"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match=r"foo://b/a: .*Give a path, or an s3:// or gs:// URI"):
        storage.read_bytes("foo://b/a")


def test_json_and_tables_survive(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "a.json"), {"a": [1, 2.5, None, "x"]})
    assert storage.read_json(str(tmp_path / "a.json")) == {"a": [1, 2.5, None, "x"]}
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    storage.write_table(str(tmp_path / "a.parquet"), table)
    assert storage.read_table(str(tmp_path / "a.parquet")).equals(table)


@pytest.mark.parametrize("content", [b"x", b"PAR1" + bytes(40) + b"PAR1", b"\xff\xfe"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(StorageError, match="file: not a Parquet file"):
        storage.read_table(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="file: not JSON"):
        storage.read_json(str(tmp_path / "file"))
