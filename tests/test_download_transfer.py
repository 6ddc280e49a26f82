"""A file is fetched whole or not at all, never joined from two; a local server is the other end."""

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from cxr.download import transfer
from cxr.download.transfer import Origin
from cxr.errors import DownloadError, StorageError
from tests.support.folders import as_nobody, readable_folder
from tests.support.publisher import Publisher, serving

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ADVICE = "Or do without."


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Publisher({"a.bin": CONTENT})) as served:
        yield served


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(transfer, "wait", waited.append)
    return waited


def fetch(publisher: Publisher, folder: Path, **known: object) -> Path:
    place = folder / "here" / "a.bin"
    transfer.fetch(Origin(f"{publisher.url}/a.bin", **known), place, ADVICE)  # type: ignore[arg-type]
    return place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def ranges(publisher: Publisher) -> list[str]:
    return [request.get("Range", "") for request in publisher.requests]


def test_a_file_is_fetched_checked_and_not_fetched_again(
    tmp_path: Path, publisher: Publisher
) -> None:
    for _ in range(2):
        place = fetch(publisher, tmp_path, size=len(CONTENT), sha256=SHA256)
    assert place.read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin"]
    assert len(publisher.requests) == 1
    assert publisher.requests[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("validator", ["etags", "dates", "none"])
def test_a_connection_cut_at_every_tenth_is_taken_up_there(
    tmp_path: Path, publisher: Publisher, pauses: list[float], validator: str
) -> None:
    publisher.etags, publisher.dates = validator == "etags", validator == "dates"
    publisher.cuts = [len(CONTENT) // 10] * 9
    place = fetch(publisher, tmp_path, sha256=SHA256)
    assert place.read_bytes() == CONTENT
    assert len(publisher.requests) == 10
    assert publisher.num_sent <= len(CONTENT) + 9 * transfer.PIECE_BYTES
    assert all(("If-Range" in each) == (validator != "none") for each in publisher.requests[1:])
    # Each got further than the one before, so none waits longer.
    assert pauses == [1.0] * 9


def test_a_killed_process_is_taken_up_by_the_next(tmp_path: Path, publisher: Publisher) -> None:
    publisher.cuts = [32_768] + [0] * (transfer.ATTEMPTS - 1)
    with pytest.raises(DownloadError, match=r"32,768 bytes are here; the same command resumes"):
        fetch(publisher, tmp_path)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    publisher.requests.clear()
    assert fetch(publisher, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert ranges(publisher) == ["bytes=32768-"]
    assert names(tmp_path) == ["a.bin"]


def test_a_server_without_ranges_sends_all_of_it_again(
    tmp_path: Path, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher.ranges, publisher.cuts = False, [50_000, 10_000]
    assert fetch(publisher, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert publisher.num_sent == len(CONTENT) + 60_000
    assert "the server sends all of it again" in capsys.readouterr().out


def test_a_server_without_ranges_that_always_breaks_is_given_up(
    tmp_path: Path, publisher: Publisher, pauses: list[float]
) -> None:
    publisher.ranges, publisher.cuts = False, [50_000] * 20
    with pytest.raises(
        DownloadError, match=r"a\.bin: cannot be fetched \(ChunkedEncodingError, 6 "
    ):
        fetch(publisher, tmp_path)
    assert pauses == [1, 2, 4, 8, 16]
    assert len(publisher.requests) == transfer.ATTEMPTS


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT) // 2, 10_000, len(CONTENT) * 2])
def test_a_file_that_changed_on_the_way_is_begun_anew(
    tmp_path: Path, publisher: Publisher, etags: bool, size: int
) -> None:
    other = b"other" * (size // 5)
    publisher.etags, publisher.cuts, publisher.then = etags, [32_768], {2: {"a.bin": other}}
    assert fetch(publisher, tmp_path).read_bytes() == other
    assert names(tmp_path) == ["a.bin"]


def test_a_file_of_the_same_size_that_changed_is_begun_anew(
    tmp_path: Path, publisher: Publisher
) -> None:
    other = bytes(len(CONTENT))
    publisher.cuts, publisher.then = [32_768], {2: {"a.bin": other}}
    assert fetch(publisher, tmp_path).read_bytes() == other


def test_a_file_that_never_stays_the_same_is_given_up(tmp_path: Path, publisher: Publisher) -> None:
    publisher.etags, publisher.cuts = False, [50_000] * 50
    publisher.then = {n: {"a.bin": CONTENT[: 900_000 + n]} for n in range(50)}
    with pytest.raises(DownloadError, match=r"a\.bin: became another file 4 times"):
        fetch(publisher, tmp_path)
    assert names(tmp_path) == []


def test_parts_of_another_address_are_not_used(tmp_path: Path, publisher: Publisher) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.bin.part").write_bytes(b"x" * 1000)
    notes = {"address": "http://other/a.bin", "size": len(CONTENT)}
    notes |= {"etag": "", "modified": "", "md5": ""}
    (tmp_path / "here" / "a.bin.part.json").write_text(json.dumps(notes))
    assert fetch(publisher, tmp_path).read_bytes() == CONTENT
    assert ranges(publisher) == [""]


def test_another_checksum_is_kept_aside_and_not_used(tmp_path: Path, publisher: Publisher) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(publisher, tmp_path, sha256="0" * 64)
    aside = tmp_path / "here" / "a.bin.wrong"
    assert str(caught.value) == (
        f"{publisher.url}/a.bin: 1,024,000 bytes with SHA-256 {SHA256[:16]}..., not"
        f" 0000000000000000...: damaged, or another file than the published one. Kept aside as"
        f" {aside}, not used. {ADVICE}"
    )
    assert aside.read_bytes() == CONTENT
    assert names(tmp_path) == ["a.bin.wrong"]


@pytest.mark.parametrize("right", [True, False])
def test_the_checksum_that_googles_storage_sends_is_checked(
    tmp_path: Path, publisher: Publisher, right: bool
) -> None:
    published = CONTENT if right else b"other"
    publisher.md5 = base64.b64encode(hashlib.md5(published).digest()).decode()
    publisher.cuts = [1_000]
    if right:
        assert fetch(publisher, tmp_path).read_bytes() == CONTENT
    else:
        with pytest.raises(DownloadError, match=r"not what its server says\.\.\.: damaged"):
            fetch(publisher, tmp_path)
        assert names(tmp_path) == ["a.bin.wrong"]


def test_another_size_than_the_published_is_refused_at_once(
    tmp_path: Path, publisher: Publisher
) -> None:
    with pytest.raises(DownloadError, match=r"a\.bin: has 1,024,000 bytes, not 5: another file"):
        fetch(publisher, tmp_path, size=5)
    assert publisher.num_sent <= len(CONTENT)
    assert names(tmp_path) == []


def test_a_web_page_is_no_file(tmp_path: Path, publisher: Publisher) -> None:
    publisher.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match=r"a web page came instead of the file.*Or do without"):
        fetch(publisher, tmp_path)
    assert names(tmp_path) == []


def test_a_web_page_in_the_middle_leaves_what_was_there(
    tmp_path: Path, publisher: Publisher
) -> None:
    publisher.cuts = [32_768] + [0] * transfer.ATTEMPTS
    with pytest.raises(DownloadError):
        fetch(publisher, tmp_path)
    publisher.ranges, publisher.content_type = False, "text/html"
    with pytest.raises(DownloadError, match="a web page"):
        fetch(publisher, tmp_path)
    assert (tmp_path / "here" / "a.bin.part").read_bytes() == CONTENT[:32_768]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "wants a name and a password"),
        (403, "does not allow it"),
        (404, "nothing is there"),
        (410, "nothing is there any more"),
        (418, "an answer that is no file"),
    ],
)
def test_a_refusal_is_final(
    tmp_path: Path, publisher: Publisher, pauses: list[float], status: int, words: str
) -> None:
    publisher.answers = [(status, {})]
    with pytest.raises(
        DownloadError, match=rf"a\.bin: cannot be fetched \(HTTP {status}\): .*{words}.*Or do"
    ):
        fetch(publisher, tmp_path)
    assert pauses == []
    assert names(tmp_path) == []


def test_a_busy_server_is_given_the_rest_that_it_asks_for(
    tmp_path: Path, publisher: Publisher, pauses: list[float]
) -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    publisher.answers = [
        (429, {"Retry-After": "17"}), (503, {"Retry-After": soon}), (503, {"Retry-After": "soon"}),
        (500, {}),
    ]  # fmt: skip
    assert fetch(publisher, tmp_path).read_bytes() == CONTENT
    assert pauses[0] == 17
    assert 30 < pauses[1] <= 60
    assert pauses[2:] == [4, 8]


def test_a_server_that_asks_for_an_hour_ends_it(
    tmp_path: Path, publisher: Publisher, pauses: list[float]
) -> None:
    publisher.answers = [(429, {"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match=r"asks to wait for 3,600 s \(HTTP 429\)"):
        fetch(publisher, tmp_path)
    assert pauses == []


def test_a_file_of_unknown_length_is_fetched(tmp_path: Path, publisher: Publisher) -> None:
    publisher.lengths = False
    assert fetch(publisher, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_no_network_is_said_so(tmp_path: Path, publisher: Publisher, pauses: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: a connection is refused.
        publisher.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DownloadError) as caught:
            fetch(publisher, tmp_path)
    assert str(caught.value) == (
        f"{publisher.url}/a.bin: cannot be fetched (ConnectionError, 6 times in a row). {ADVICE}"
    )
    assert pauses == [1, 2, 4, 8, 16]
    assert names(tmp_path) == []


def test_an_address_that_is_none_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"htp://a/b: cannot be fetched \(InvalidSchema\)"):
        transfer.fetch(Origin("htp://a/b"), tmp_path / "a", ADVICE)


def test_what_a_signature_has_is_neither_shown_nor_kept(
    tmp_path: Path, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    host = publisher.url.removeprefix("http://")
    publisher.files = {f"a.bin?signature={word}": CONTENT for word in ("first", "second")}
    publisher.cuts = [300_000] + [0] * (transfer.ATTEMPTS - 1)
    url = f"http://ann:secret@{host}/a.bin?signature=first"
    with pytest.raises(DownloadError) as caught:
        transfer.fetch(Origin(url), tmp_path / "a.bin", ADVICE)
    kept = (tmp_path / "a.bin.part.json").read_text()
    for text in (str(caught.value), capsys.readouterr().out, kept):
        assert f"http://{host}/a.bin" in text
        assert "secret" not in text
        assert "signature" not in text
    # Another signature, the same file.
    origin = Origin(f"{publisher.url}/a.bin?signature=second", sha256=SHA256)
    transfer.fetch(origin, tmp_path / "a.bin", ADVICE)
    assert publisher.requests[-1]["Range"] != ""
    assert publisher.num_sent <= len(CONTENT) + transfer.PIECE_BYTES


def test_the_proxy_of_the_variables_is_asked(
    tmp_path: Path, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", publisher.url)
    origin = Origin("http://publisher.invalid/a.bin", sha256=SHA256)
    transfer.fetch(origin, tmp_path / "a.bin", ADVICE)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [each["path"] for each in publisher.requests] == ["http://publisher.invalid/a.bin"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_the_certificates_of_the_variable_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2",
            "-subj", "/CN=firewall", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Publisher({"a.bin": CONTENT}), (certificate, key)) as publisher:
        assert publisher.url.startswith("https://")
        with pytest.raises(DownloadError, match=r"certificate is not trusted.*REQUESTS_CA_BUNDLE"):
            fetch(publisher, tmp_path)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert fetch(publisher, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_a_password_is_sent_to_its_own_host_alone(tmp_path: Path, publisher: Publisher) -> None:
    publisher.password = ("ann", "secret")
    with pytest.raises(DownloadError, match="HTTP 401"):
        fetch(publisher, tmp_path)
    with serving(Publisher({"moved": CONTENT})) as other:
        assert fetch(publisher, tmp_path, auth=("ann", "secret")).read_bytes() == CONTENT
        # As Kaggle does: to the storage, which is another host.
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        publisher.answers = [(302, {"Location": f"{elsewhere}/moved"})]
        origin = Origin(f"{publisher.url}/a.bin", auth=("ann", "secret"))
        transfer.fetch(origin, tmp_path / "b.bin", ADVICE)
        assert (tmp_path / "b.bin").read_bytes() == CONTENT
        assert [each["path"] for each in other.requests] == ["/moved"]
        assert "Authorization" not in other.requests[0]
    assert "Authorization" in publisher.requests[-1]


def test_a_full_disk_keeps_what_came_and_the_next_call_goes_on(
    tmp_path: Path, publisher: Publisher
) -> None:
    # In a process of its own, in which no file may grow beyond 50,000 bytes.
    url = f"{publisher.url}/a.bin"
    program = f"""
import resource, sys
from pathlib import Path
from cxr.download import transfer
from cxr.errors import StorageError
sys.dont_write_bytecode = True
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
try:
    transfer.fetch(transfer.Origin({url!r}), Path({str(tmp_path)!r}, "a.bin"), "")
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert f"{tmp_path}/a.bin: cannot be written: File too large. Free space" in done.stdout
    assert 0 < (tmp_path / "a.bin.part").stat().st_size <= 50_000
    publisher.requests.clear()
    transfer.fetch(Origin(f"{publisher.url}/a.bin", sha256=SHA256), tmp_path / "a.bin", ADVICE)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert ranges(publisher) == ["bytes=50000-"]


def test_a_place_that_cannot_be_written_is_said_so(publisher: Publisher) -> None:
    words = r"a\.bin: cannot be written: Permission denied"
    with readable_folder() as folder, as_nobody(), pytest.raises(StorageError, match=words):
        fetch(publisher, folder)
    assert publisher.requests == []


def test_of_two_that_fetch_to_one_place_one_asks(tmp_path: Path, publisher: Publisher) -> None:
    publisher.cuts = [2**15] * 5
    both = [
        threading.Thread(target=fetch, args=(publisher, tmp_path), kwargs={"sha256": SHA256})
        for _ in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert (tmp_path / "here" / "a.bin").read_bytes() == CONTENT
    assert publisher.num_sent < 1.2 * len(CONTENT)
    assert names(tmp_path) == ["a.bin"]
