"""A bucket is as good as a folder, and a store that fails is never taken for an empty one.

They run on the object store that the head of pytest's output names.
"""

import io
import os
import pickle
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from cxr import sources, storage
from cxr.errors import DataError, StorageError, UnavailableError
from cxr.storage import buckets, s3
from tests.support.faults import FaultyProxy
from tests.support.s3 import Store, free_port, wait_for

NAMES = ("a b", "a#b", "a?b=c", "a%20b", "a%b", "a+b", "a&b", "ü/ø", "x\\y", "[1]*?", "a!b'c(d)")


@pytest.fixture(scope="module")
def bucket(s3: Store) -> str:
    return s3.bucket()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon, so that a test of giving up is short."""
    monkeypatch.setattr(s3, "FIRST_CONTACT_S", 0.0)
    monkeypatch.setattr(s3, "CONNECT_S", 0.5)
    monkeypatch.setattr(s3, "SILENCE_S", 1.0)
    monkeypatch.setattr(s3, "RETRIES", 1)


def keys(uri: str) -> list[str]:
    """The keys below a URI as the store lists them, empty objects for folders too."""
    system, path = storage.resolve(uri)
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(entry.path[len(path) + 1 :] for entry in found)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_is_what_stands_in_the_uri(bucket: str, name: str) -> None:
    folder = f"{bucket}/names/{NAMES.index(name)}"
    uri = storage.join(folder, name)
    storage.write_bytes(uri, name.encode())
    [file] = storage.list_files(folder)
    assert (file.uri, file.size) == (uri, len(name.encode()))
    assert storage.read_bytes(file.uri) == name.encode()
    assert storage.look_up(uri) == file
    assert storage.kind(uri) == "file"
    assert keys(folder)[-1] == name
    storage.delete_file(uri)
    assert storage.kind(uri) == "nothing"


def test_a_bucket_is_written_listed_and_deleted_like_a_folder(bucket: str, tmp_path: Path) -> None:
    root = f"{bucket}/tree"
    assert storage.kind(bucket) == "folder"
    assert storage.is_empty(root)
    assert storage.claim(f"{root}/") == root
    for name in ("b/2", "a", "b/10", "c/d/e"):
        storage.write_bytes(f"{root}/{name}", name.encode())
    assert keys(root) == ["a", "b", "b/10", "b/2", "c", "c/d", "c/d/e"]
    files = storage.list_files(root)
    assert [file.uri for file in files] == [f"{root}/{n}" for n in ("a", "b/10", "b/2", "c/d/e")]
    assert [file.size for file in files] == [1, 4, 3, 5]
    assert all(abs(file.modified_ns / 1e9 - time.time()) < 600 for file in files)
    names = [files[1].uri, f"{root}/none", f"{root}/b"]
    problems = [file.problem for file in storage.for_all(storage.look_up, names)]
    assert problems == ["", *["cannot be read: no such file"] * 2]
    assert [storage.kind(f"{root}/{n}") for n in ("a", "b", "none", "a/b")] == [
        "file", "folder", "nothing", "nothing",
    ]  # fmt: skip
    with pytest.raises(StorageError, match=r"tree: exists already"):
        storage.check_empty(root)
    (tmp_path / "large").write_bytes(large := os.urandom(12 * 2**20))
    storage.move_in(tmp_path / "large", f"{root}/b/2")
    assert storage.read_bytes(f"{root}/b/2") == large
    assert not (tmp_path / "large").exists()
    storage.move_file(f"{root}/b/2", f"{root}/aside/2")
    assert storage.kind(f"{root}/b/2") == "nothing"
    storage.move_file(f"{root}/aside/2", f"{root}/b/2")
    with storage.open_file(f"{root}/b/2") as file:
        file.seek(9 * 2**20)
        assert file.read(5) == large[9 * 2**20 :][:5]
    storage.delete_file(f"{root}/b")
    storage.delete_file(f"{root}/b/10")
    storage.delete_file(f"{root}/b/10")
    assert [file.uri for file in storage.list_files(root)] == [
        f"{root}/{n}" for n in ("a", "b/2", "c/d/e")
    ]
    storage.delete(f"{root}/a")
    storage.delete(f"{root}/b")
    storage.delete(f"{root}/none")
    assert [file.uri for file in storage.list_files(root)] == [f"{root}/a", f"{root}/c/d/e"]
    storage.delete(root)
    assert storage.kind(root) == "nothing"


def test_what_is_not_there_says_so(bucket: str) -> None:
    assert storage.list_files(f"{bucket}/none") == []
    assert storage.look_up(f"{bucket}/none").problem == "cannot be read: no such file"
    with pytest.raises(StorageError, match=r"/none: cannot be read: .*No such file") as caught:
        storage.read_bytes(f"{bucket}/none")
    assert not isinstance(caught.value, UnavailableError)
    for name in ("double//slash", "none"):
        with pytest.raises(StorageError, match="cannot be read") as caught:
            storage.read_bytes(f"{bucket}/{name}")
        assert not isinstance(caught.value, UnavailableError)


def test_globs_and_prefixes_end_where_they_say(bucket: str) -> None:
    root = f"{bucket}/glob"
    for name in ("2024-01/a.png", "2024-01/b/c.dcm", "2024-02/a.png", "2023/a.png", "2024.txt"):
        storage.write_bytes(f"{root}/{name}", b"x")
    found = sources.list_inputs([f"{root}/2024-*"])
    assert [uri[len(root) :] for uri in found.files] == [
        "/2024-01/a.png", "/2024-01/b/c.dcm", "/2024-02/a.png",
    ]  # fmt: skip
    assert list(sources.list_inputs([f"{root}/202?/*.png"]).files) == [f"{root}/2023/a.png"]
    with pytest.raises(DataError, match="2024: not found"):
        sources.list_inputs([f"{root}/2024"])
    with pytest.raises(DataError, match="no file matches"):
        sources.list_inputs([f"{root}/2025*"])


def test_empty_objects_for_folders_are_no_files(bucket: str) -> None:
    system, path = storage.resolve(f"{bucket}/markers")
    fs.S3FileSystem.create_dir(system, f"{path}/with", recursive=True)
    fs.S3FileSystem.create_dir(system, f"{path}/alone", recursive=True)
    storage.write_bytes(f"{bucket}/markers/with/a.png", b"x")
    assert [file.uri for file in storage.list_files(f"{bucket}/markers")] == [
        f"{bucket}/markers/with/a.png"
    ]
    assert storage.is_empty(f"{bucket}/markers/alone")
    assert list(sources.list_inputs([f"{bucket}/markers"]).files) == [
        f"{bucket}/markers/with/a.png"
    ]


def test_a_store_can_be_named_in_the_uri(
    s3: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket}/named/a b.png", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    host = s3.endpoint.removeprefix("http://")
    for options in (f"endpoint_override={host}&scheme=http", f"endpoint_override={s3.endpoint}"):
        folder = f"{bucket}/named?{options}"
        whole = f"{bucket}?endpoint_override={host}&scheme=http/named"
        assert storage.absolute(folder) == storage.absolute(whole) == whole
        assert storage.join(folder, "a b.png") == f"{whole}/a b.png"
        [file] = storage.list_files(folder)
        assert file.uri == f"{whole}/a b.png"
        assert storage.read_bytes(file.uri) == b"x"
        assert list(sources.list_inputs([f"{bucket}/named/*.png?{options}"]).files) == [file.uri]


def test_what_no_bucket_is_called_is_refused() -> None:
    for uri in ("s3://", "s3:///a", "s3://ab/c", "s3://bucket?what=ever/c"):
        with pytest.raises(StorageError, match=r"cannot be a bucket\. Give s3://bucket/path"):
            storage.kind(uri)
    with pytest.raises(StorageError, match="a secret does not belong in a URI") as caught:
        storage.kind("s3://key:verysecret@bucket/c")
    assert "verysecret" not in str(caught.value)


def test_one_file_system_serves_a_bucket_and_keeps_its_retries(bucket: str) -> None:
    system, path = storage.resolve(f"{bucket}/a")
    assert storage.resolve(f"{bucket}/b")[0] is system
    assert path == f"{bucket[5:]}/a"
    sent = pickle.loads(pickle.dumps(system))
    assert (type(sent), sent.__reduce__()) == (s3.Bucket, system.__reduce__())
    assert system.__reduce__()[1][-1] == s3.RETRIES
    fork = os.fork()
    if fork == 0:
        os._exit(0 if storage.resolve(f"{bucket}/a")[0] is not system else 1)
    assert os.waitpid(fork, 0)[1] == 0


def test_threads_that_start_together_open_one_file_system(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket}/together", b"x")
    monkeypatch.setattr(s3, "_entered", {})
    monkeypatch.setattr(s3, "_clients", {})
    opened: list[str] = []

    class Counted(s3.Bucket):
        def __init__(self, *args: Any, **options: Any) -> None:
            opened.append("")
            super().__init__(*args, **options)

    monkeypatch.setattr(s3, "Bucket", Counted)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(storage.read_bytes, [f"{bucket}/together"] * 32)) == {b"x"}
    assert len(opened) == 2  # The one that is kept, and one to ask for the bucket.


class SmallPages:
    """A client that asks for two objects at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def list_objects_v2(self, **arguments: Any) -> Any:
        return self._client.list_objects_v2(**arguments, MaxKeys=2)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store lists two objects by one request, where it would list a thousand."""
    request = s3.request
    monkeypatch.setattr(
        s3, "request", lambda uri, call: request(uri, lambda client: call(SmallPages(client)))
    )


def test_pages_are_those_of_one_listing_wherever_they_begin(bucket: str, small_pages: None) -> None:
    root = f"{bucket}/pages"
    names = [
        *(f"only/{folder}/{name}" for folder in "abc" for name in range(4)),
        *("only/a-file", "only/a0", "only/d/deep/er/x", "only/e/ü ß", "only/zz"),
    ]
    storage.for_all(lambda uri: storage.write_bytes(uri, b"12"), [f"{root}/{n}" for n in names])
    whole = [f"{root}/{name}" for name in sorted(names)]
    system, path = storage.resolve(root)
    infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    sizes = {f"s3://{info.path}": (info.size, info.mtime_ns) for info in infos}
    pages = list(storage.list_pages(root))
    assert {len(page) for page in pages} == {1, 2}
    assert [file.uri for page in pages for file in page] == whole
    assert all((file.size, file.modified_ns) == sizes[file.uri] for page in pages for file in page)
    for index, uri in enumerate(whole):
        rest = [file.uri for page in storage.list_pages(root, after=uri) for file in page]
        assert rest == whole[index + 1 :]
    between = storage.list_pages(root, after=f"{root}/only/c/zzz")
    assert next(between)[0].uri == f"{root}/only/d/deep/er/x"
    some = storage.list_pages(f"{root}/only", lambda folder: folder[-1] in "be")
    assert [file.uri for page in some for file in page] == [
        uri for uri in whole if not uri.startswith(tuple(f"{root}/only/{n}/" for n in "acd"))
    ]


def test_keys_that_no_path_has_are_listed_and_read(bucket: str) -> None:
    root = f"{bucket}/odd"
    client, name = s3.client(root), s3.store(root).bucket
    for key in ("a//b", "./c", "d/../e", "f/"):
        client.put_object(Bucket=name, Key=f"odd/{key}", Body=b"x")
    files = {file.uri[len(root) + 1 :]: file for file in storage.list_files(root)}
    assert list(files) == ["./c", "a//b", "d/../e", "f/"]
    assert files.pop("f/").problem == "cannot be read: its name ends with a slash"
    assert {storage.read_bytes(file.uri) for file in files.values()} == {b"x"}


# ---------------------------------------------------------------- a store that fails


def questions(bucket: str, tmp_path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    (tmp_path / "file").write_bytes(b"x")
    uri = f"{bucket}/a"
    yield "kind", lambda: storage.kind(uri)
    yield "list_files", lambda: storage.list_files(uri)
    yield "look_up", lambda: storage.look_up(uri)
    yield "for_all", lambda: storage.for_all(storage.look_up, [uri, uri])
    yield "read_bytes", lambda: storage.read_bytes(uri)
    yield "open_file", lambda: storage.open_file(uri)
    yield "write_bytes", lambda: storage.write_bytes(uri, b"x")
    yield "move_in", lambda: storage.move_in(tmp_path / "file", uri)
    yield "delete", lambda: storage.delete(uri)
    yield "delete_file", lambda: storage.delete_file(uri)
    yield "is_empty", lambda: storage.is_empty(uri)


def refuse_all(bucket: str, tmp_path: Path, message: str) -> None:
    for _, ask in questions(bucket, tmp_path):
        with pytest.raises(UnavailableError, match=message):
            ask()


def test_a_missing_bucket_is_named(s3: Store, tmp_path: Path) -> None:
    refuse_all(
        "s3://never-made", tmp_path, r"^s3://never-made: http://127\S+ has no bucket of this name"
    )


def test_wrong_credentials_are_named(
    s3: Store, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not s3.is_swift:
        pytest.skip("the mock checks no credentials")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message = r"^s3://tests-\d+: http://127\S+ refuses access \(.+\)\. Check the credentials"
    refuse_all(bucket, tmp_path, message)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    refuse_all(bucket, tmp_path, message)


def test_a_closed_port_is_named(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    message = r"^s3://tests-\d+: http://127\S+ cannot be reached \(.*onnect.*\)\. Check AWS_E"
    refuse_all(bucket, tmp_path, message)


def test_an_address_that_never_answers_is_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    # Its queue is full, so that connections are neither accepted nor refused.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = silent.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{address[1]}")
        with pytest.raises(UnavailableError, match=r"cannot be reached \(.*[Tt]ime.*\)"):
            storage.kind(bucket)
        for each in waiting:
            each.close()


@pytest.fixture
def proxy(s3: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The store behind a proxy that does damage."""
    with FaultyProxy(s3.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


def test_a_whole_object_is_one_request(bucket: str, proxy: FaultyProxy) -> None:
    storage.write_bytes(f"{bucket}/whole", b"x")
    before = proxy.count["asked"]
    assert [storage.read_bytes(f"{bucket}/whole") for _ in range(5)] == [b"x"] * 5
    assert proxy.count["asked"] == before + 5


def test_a_listing_that_a_failing_store_ended_is_continued(
    bucket: str,
    proxy: FaultyProxy,
    hasty: None,
    small_pages: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = f"{bucket}/ended"
    uris = [f"{root}/{folder}/{name}" for folder in range(12) for name in range(2)]
    storage.for_all(lambda uri: storage.write_bytes(uri, b"x"), uris)
    monkeypatch.setattr(buckets, "LISTED_AT_ONCE", 2)
    monkeypatch.setattr(buckets, "PAGES_AHEAD", 1)
    listed: list[str] = []

    def take(pages: Iterator[list[storage.File]]) -> None:
        for page in pages:
            listed.extend(file.uri for file in page)

    pages = storage.list_pages(root)
    take(iter([next(pages)]))
    proxy.fault = "unavailable"
    with pytest.raises(UnavailableError, match="answers with errors"):
        take(pages)
    proxy.fault = ""
    assert len(listed) < len(uris)
    take(storage.list_pages(root, after=listed[-1]))
    assert listed == sorted(uris)


def test_a_member_of_an_archive_is_read_without_the_rest(bucket: str, proxy: FaultyProxy) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for index in range(16):
            archive.writestr(f"{index}.dcm", os.urandom(4 * 2**20))
    storage.write_bytes(f"{bucket}/large.zip", sink.getvalue())
    before = proxy.count["passed"]
    rows = sources.list_archive(f"{bucket}/large.zip", None)[0].to_pylist()
    with sources.Reader() as reader:
        steps = [sources.Step(**step) for step in rows[8]["place"]]
        read = reader.read(rows[8]["file"], steps)
    assert (len(rows), read) == (16, zipfile.ZipFile(sink).read("8.dcm"))
    assert proxy.count["passed"] - before < 30 * 2**20 < len(sink.getvalue())


@pytest.mark.parametrize("fault", ["unavailable", "refused", "cut"])
def test_a_store_that_comes_back_is_waited_for(
    bucket: str, tmp_path: Path, proxy: FaultyProxy, fault: str
) -> None:
    root = f"{bucket}/{fault}"
    large = os.urandom(6 * 2**20)
    storage.write_bytes(f"{root}/large", large)
    storage.write_bytes(f"{root}/a", b"a")
    storage.write_bytes(f"{root}/gone", b"")
    (tmp_path / "file").write_bytes(large)
    proxy.after = 100
    opened = storage.open_file(f"{root}/large")
    answers: dict[str, object] = {}
    asked: dict[str, Callable[[], object]] = {
        "read on": opened.read,
        "kind": lambda: storage.kind(f"{root}/a"),
        "nothing": lambda: storage.kind(f"{root}/none"),
        "read": lambda: storage.read_bytes(f"{root}/large"),
        "write": lambda: storage.write_bytes(f"{root}/new", b"new"),
        "move": lambda: storage.move_in(tmp_path / "file", f"{root}/moved"),
        "look_up": lambda: storage.look_up(f"{root}/none").problem,
        "delete": lambda: storage.delete_file(f"{root}/gone"),
        "first contact": lambda: storage.kind(f"{root}/a?endpoint_override={proxy.endpoint}"),
    }
    proxy.for_a_while(fault, 1.0)

    def ask(name: str) -> None:
        answers[name] = asked[name]()

    threads = [threading.Thread(target=ask, args=[name]) for name in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {
        "read on": large, "kind": "file", "nothing": "nothing", "read": large, "write": None,
        "move": None, "look_up": "cannot be read: no such file", "delete": None,
        "first contact": "file",
    }  # fmt: skip
    assert proxy.count[fault] >= 1
    names = ["a", "large", "moved", "new"]
    assert [file.uri for file in storage.list_files(root)] == [f"{root}/{n}" for n in names]
    assert storage.read_bytes(f"{root}/moved") == large
    assert storage.read_bytes(f"{root}/new") == b"new"


def test_a_request_without_an_answer_is_asked_again(
    bucket: str, proxy: FaultyProxy, hasty: None
) -> None:
    storage.write_bytes(f"{bucket}/silent", b"x")
    assert storage.read_bytes(f"{bucket}/silent") == b"x"
    proxy.for_a_while("silent", 0.5)
    assert storage.read_bytes(f"{bucket}/silent") == b"x"
    assert proxy.count["silent"] == 1
    proxy.delay_s = 0.3
    assert storage.read_bytes(f"{bucket}/silent") == b"x"


def test_a_store_that_stays_away_is_named_and_nothing_is_taken_for_missing(
    bucket: str, tmp_path: Path, proxy: FaultyProxy, hasty: None
) -> None:
    storage.write_bytes(f"{bucket}/a", b"x" * 2**20)
    opened = storage.open_file(f"{bucket}/a")
    messages = {
        "unavailable": r"http://127\S+ answers with errors \(.*503.*\)",
        "refused": r"http://127\S+ cannot be reached",
    }
    for fault, message in messages.items():
        proxy.fault = fault
        time.sleep(0.1)  # Until nothing is taken any more.
        refuse_all(bucket, tmp_path, message)
        with pytest.raises(UnavailableError, match=message):
            opened.read()
        proxy.fault = ""
        wait_for(proxy.port)
    assert storage.read_bytes(f"{bucket}/a") == b"x" * 2**20
    assert (tmp_path / "file").exists()


def test_a_store_is_the_same_after_a_restart(s3: Store, bucket: str) -> None:
    if not s3.is_swift:
        pytest.skip("the mock keeps nothing")
    storage.write_bytes(f"{bucket}/kept", b"before")
    with storage.open_file(f"{bucket}/kept") as file:
        s3.stop()
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(file.read()))
        reader.start()
        time.sleep(1.0)
        assert read == []
        s3.start()
        reader.join()
    assert read == [b"before"]
    storage.write_bytes(f"{bucket}/kept", b"after")
    assert storage.read_bytes(f"{bucket}/kept") == b"after"


def test_an_object_that_is_closed_to_us_says_nothing_of_the_store(
    bucket: str, proxy: FaultyProxy
) -> None:
    denied = OSError("When reading 'a': AWS Error ACCESS_DENIED during HeadObject operation: No.")
    assert s3.failure(f"{bucket}/a", denied) is None
    missing = OSError("When uploading: AWS Error NO_SUCH_BUCKET during PutObject operation: none")
    assert "has no bucket" in str(s3.failure(f"{bucket}/a", missing))
    assert s3.failure(f"{bucket}/a", OSError("something else")) is None
    assert s3.failure("/local/path", denied) is None
