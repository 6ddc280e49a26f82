"""Files are written whole or not at all, and every failure says where and why."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cxr import storage
from cxr.errors import SettingsError, StorageError
from tests.support.folders import as_nobody, bucket, readable_folder


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
    assert re.search(r"file\.bin: cannot be written: .*Choose another path", error)
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
        match=r"file/below/x: cannot be written: Cannot create directory .*Choose another path\.$",
    ):
        storage.write_bytes(str(tmp_path / "file" / "below" / "x"), b"data")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("file/below", "Not a directory"),
        ("null\0byte", "embedded null byte"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match=f"{name}: cannot be read: .*{reason}") as caught:
        storage.read_bytes(str(tmp_path / name))
    assert "errno" not in str(caught.value).lower()
    file = storage.look_up(str(tmp_path / name))
    assert (file.size, file.modified_ns) == (-1, 0)
    assert file.problem.startswith("cannot be read: ")
    assert reason in file.problem


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
    assert storage.for_all(storage.look_up, [file.uri for file in files]) == files


def test_listing_what_is_not_there_finds_nothing(tmp_path: Path) -> None:
    assert storage.list_files(str(tmp_path / "none")) == []


def test_a_file_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file: cannot be listed: Not a directory\.$"):
        storage.list_files(str(tmp_path / "file"))


def test_links_are_followed_and_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "b" / "c" / "file"), b"data")
    (tmp_path / "a").symlink_to("b/c")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "broken").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    files = {Path(file.uri).name: file for file in storage.list_files(str(tmp_path))}
    assert {name: file.problem for name, file in files.items()} == {
        "file": "",
        "broken": "cannot be read: No such file or directory",
        "loop": "cannot be read: Too many levels of symbolic links",
        "pipe": "cannot be read: not a regular file",
    }
    assert files["file"].uri == f"{tmp_path}/b/c/file"
    assert {file.size for file in files.values()} == {4, -1}


def test_pages_come_in_the_order_of_paths_wherever_they_begin(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    names = ["a!", "a-b/x", "a.txt", "a/x", "a/y/z", "a0", "b/c/d", "ü/ø"]
    for name in names:
        storage.write_bytes(str(root / name), b"x")
    storage.write_bytes(str(outside / "below" / "file"), b"x")
    (root / "link").symlink_to(outside)
    (root / "other").symlink_to(outside / "below")
    (root / "again").symlink_to("a")
    (outside / "up").symlink_to(root)
    whole = sorted(f"{root}/{name}" for name in [*names, "link/below/file"])
    assert [file.uri for file in storage.list_files(str(root))] == whole
    for index, uri in enumerate(whole):
        rest = [file.uri for page in storage.list_pages(str(root), after=uri) for file in page]
        assert rest == whole[index + 1 :]


def test_a_link_is_entered_where_the_folder_that_it_leads_to_is_not(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "real" / "file"), b"x")
    (tmp_path / "link").symlink_to("real")
    files = storage.list_files(str(tmp_path), enter=lambda folder: "real" not in folder)
    assert [file.uri for file in files] == [f"{tmp_path}/link/file"]
    assert [file.uri for file in storage.list_files(str(tmp_path))] == [f"{tmp_path}/real/file"]


def test_a_page_holds_a_thousand_files(tmp_path: Path) -> None:
    for number in range(2001):
        (tmp_path / f"{number:04}").touch()
    pages = list(storage.list_pages(str(tmp_path)))
    assert [len(page) for page in pages] == [1000, 1000, 1]
    assert [Path(file.uri).name for page in pages for file in page] == [
        f"{number:04}" for number in range(2001)
    ]


def test_a_folder_that_cannot_be_listed_stands_in_the_list() -> None:
    with readable_folder() as folder:
        storage.write_bytes(str(folder / "closed" / "file"), b"data")
        storage.write_bytes(str(folder / "open"), b"data")
        (folder / "closed").chmod(0)
        with as_nobody():
            closed, opened = storage.list_files(str(folder))
            with pytest.raises(StorageError, match=r"closed: cannot be listed: Permission denied"):
                storage.list_files(str(folder / "closed"))
        assert closed == storage.File(
            f"{folder}/closed/", -1, 0, "a folder that cannot be listed: Permission denied"
        )
        assert (opened.uri, opened.problem) == (f"{folder}/open", "")
        assert storage.list_files(str(folder), enter=lambda path: "closed" not in path) == [opened]


def test_names_that_are_not_utf_8_are_uris(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff #%.bin")
    path.write_bytes(b"data")
    [file] = storage.list_files(str(tmp_path))
    assert file.uri == path.as_uri() == f"file://{tmp_path}/%FF%20%23%25.bin"
    assert storage.absolute(file.uri) == str(path)
    assert storage.printable(str(path)) == file.uri
    assert storage.read_bytes(file.uri) == storage.read_bytes(str(path)) == b"data"
    assert storage.look_up(file.uri) == file
    assert storage.kind(file.uri) == "file"
    assert storage.printable("/größer") == "/größer"


def test_a_file_is_read_from_any_place_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket(monkeypatch, tmp_path)
    data = bytes(range(256)) * 400
    (tmp_path / "file.gz").write_bytes(data)
    for uri in (f"{tmp_path}/file.gz", "mock://file.gz"):
        with storage.open_file(uri) as file:
            assert file.seek(0, 2) == len(data)
            assert file.read(1) == b""
            for at in (70_000, 5, 99_999, 0):
                assert file.seek(at) == at
                assert file.read(3) == data[at : at + 3]
                assert file.tell() == at + 3
        assert file.closed
        assert storage.read_bytes(uri) == data
    with pytest.raises(StorageError, match=r"mock://none: cannot be read: .*No such file"):
        storage.open_file("mock://none")


def test_an_open_file_of_a_bucket_is_read_by_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handle:
        requests = 0
        fails = False

        def read(self) -> bytes:
            self.requests += 1
            if self.fails:
                raise OSError("Timeout. Detail: [unknown] The bucket is gone")
            return b"data"

        def tell(self) -> int:
            return 0

        def close(self) -> None:
            pass

    class Bucket:
        def open_input_file(self, _: str) -> Handle:
            return handle

    handle = Handle()
    monkeypatch.setattr(storage.files, "resolve", lambda uri: (Bucket(), uri))
    assert storage.open_file("s3://bucket/file").read() == b"data"
    assert handle.requests == 1
    handle.fails = True
    with pytest.raises(OSError, match=r"Timeout \(The bucket is gone\)$"):
        storage.open_file("s3://bucket/file").read()


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "broken").symlink_to("gone")
    paths = ("file", "folder", "link", "none", "file/x", "broken", "null\0byte")
    kinds = [storage.kind(str(tmp_path / path)) for path in paths]
    assert kinds == ["file", "folder", "folder", *["nothing"] * 4]
    empty = [storage.is_empty(str(tmp_path / name)) for name in ("file", "folder", "none", ".")]
    assert empty == [False, True, True, False]


def test_a_moved_file_has_its_new_name_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    storage.move_file(str(tmp_path / "a"), str(tmp_path / "new" / "b"))
    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new" / "b").read_bytes() == b"data"
    with pytest.raises(StorageError, match=r"a: cannot be moved: .*No such file"):
        storage.move_file(str(tmp_path / "a"), str(tmp_path / "c"))


def test_columns_of_a_table_are_read_alone(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.parquet")
    storage.write_table(uri, pa.table({"a": [1, 2], "b": ["x", "y"], "c": [3, 4]}))
    assert storage.read_table(uri, ["c", "a"]).to_pydict() == {"c": [3, 4], "a": [1, 2]}


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
    assert storage.absolute("~no user/a") == f"{tmp_path}/~no user/a"
    assert storage.absolute("~/a") == f"{Path.home()}/a"


SETTINGS = {
    "digest": "a1", "digest_of": "/runs/1 of May", "recipe": {"epochs": 3, "head": {"width": 8}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"digest_of": "/copy/1 of May"}, ""),
        ({"digest": "b2", "digest_of": "/runs/2 of June"}, "digest /runs/1 of May, not /runs/2 of"),
        ({"recipe": {"epochs": 4, "head": {"width": 8}}}, r"recipe\.epochs 3, not 4\. Choose"),
        ({"recipe": {"epochs": 3, "head": {"width": 4}}}, r"recipe\.head\.width 8, not 4\. Choose"),
    ],
)
def test_work_is_resumed_with_the_same_settings_alone(
    tmp_path: Path, changes: dict[str, object], difference: str
) -> None:
    storage.write_json(str(tmp_path / "s.json"), SETTINGS)
    asked = (str(tmp_path), "s.json", SETTINGS | changes, "work", {"digest": "digest_of"})
    if not difference:
        assert storage.check_same(*asked)
        return
    with pytest.raises(SettingsError, match=f"holds work with {difference}"):
        storage.check_same(*asked)


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary working directory of a submitted job, with a recipe that was sent with it."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "best.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("path", ["chest_xray", "jobs", ".", "../cache", "x.zip!/a.png", "*.png"])
def test_a_relative_path_in_a_submitted_job_is_refused(submitted: Path, path: str) -> None:
    for call in (storage.absolute, storage.kind, storage.claim, storage.read_bytes):
        with pytest.raises(SettingsError, match=re.escape(f"{path}: is a relative path, and a")):
            call(path)
    assert names(submitted) == ["best.json", "jobs"]


def test_a_submitted_job_reads_what_was_sent_and_absolute_paths(submitted: Path) -> None:
    assert storage.read_bytes("best.json") == b"{}"
    for path in (str(submitted / "new"), "s3://bucket/new"):
        assert storage.absolute(path) == path


def test_a_submitted_job_has_no_default_output(submitted: Path) -> None:
    with pytest.raises(SettingsError, match=r"^output: a submitted job needs --output; the def"):
        storage.default_output("-tune")


def test_the_default_output_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(rf"{tmp_path}/runs/\d{{8}}-\d{{6}}-tune", storage.default_output("-tune"))


def test_a_way_up_leads_where_the_system_goes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    assert storage.absolute(f"{tmp_path}/a/../c") == f"{tmp_path}/c"
    assert storage.absolute(f"{tmp_path}/link/../c") == f"{tmp_path}/a/c"
    assert storage.absolute(f"{tmp_path}/link/c") == f"{tmp_path}/link/c"
    assert storage.absolute(f"{tmp_path}/a/../link") == f"{tmp_path}/link"


@pytest.mark.parametrize("scheme", ["foo", "gs"])
def test_an_unsupported_scheme_is_refused(scheme: str) -> None:
    message = (
        rf"^{scheme}://b/a: scheme '{scheme}' is not supported\. Give a path or an s3:// URI\.$"
    )
    with pytest.raises(StorageError, match=message):
        storage.read_bytes(f"{scheme}://b/a")


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
