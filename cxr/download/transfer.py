"""Download one file to this disk: resumed, verified, and under its name only when complete.

What has been received so far lies beside the destination as `NAME.part`, with the address, the size
and the validators of that very file in `NAME.part.json`: bytes of two files are never joined.
Proxies, certificates and passwords come from the variables and the .netrc that `requests` reads.
"""

import base64
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import requests

from cxr.errors import DownloadError, StorageError
from cxr.progress import Progress

TIMEOUT_S: Final = (10.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""

ATTEMPTS: Final = 6
"""Tries in a row that bring nothing new; one that gets further than any before counts anew."""

MAX_PAUSE_S: Final = 300.0
"""The longest that is waited for a server that asks for it."""

MAX_STARTS: Final = 4
"""Times that a file is begun from its first byte because it became another on the way."""

PIECE_BYTES: Final = 2**14
"""Bytes of one read: where a connection breaks, what came of the last one is lost."""

_HASHED_BYTES: Final = 2**20
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REASONS: Final = {
    401: "the server wants a name and a password, or does not take these",
    403: "the server does not allow it",
    404: "nothing is there",
    410: "nothing is there any more",
    407: "the proxy wants a name and a password: set them in HTTPS_PROXY",
}
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)$")


def wait(seconds: float) -> None:
    """Let a server rest."""
    time.sleep(seconds)


@dataclass(frozen=True)
class Origin:
    """Where a file comes from, and how the right one is known."""

    url: str
    """http or https."""
    size: int | None = None
    """Bytes, where the publisher says so."""
    sha256: str = ""
    """In hexadecimal; the first digits where no more is known, empty for nothing."""
    auth: tuple[str, str] | None = None
    """Name and password; never sent on to another host."""

    @property
    def address(self) -> str:
        """The URL as it may be shown and kept: without what a user or a signature has in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class _Validators:
    """What tells one state of a file at an address from another."""

    address: str
    size: int | None
    etag: str
    modified: str
    md5: str

    @property
    def condition(self) -> dict[str, str]:
        """The header that lets a server send the rest of this very file only (RFC 9110, 13.1.5);
        a weak entity tag may not be used for it."""
        strong = self.etag if not self.etag.startswith("W/") else ""
        value = strong or self.modified
        return {"If-Range": value} if value else {}


class _InterruptedError(Exception):
    """This try is over; another may succeed."""

    def __init__(self, cause: str, pause_s: float | None = None) -> None:
        super().__init__(cause)
        self.pause_s = pause_s


class _ChangedError(Exception):
    """What is there is not the file whose beginning is here."""


def fetch(origin: Origin, destination: Path, advice: str) -> None:
    """Download a file to this disk; nothing happens where it exists already.

    A connection that breaks is taken up where it broke, in this call and in later ones. Of two
    processes that fetch to one destination, the second waits for the first.

    Args:
        origin: the address, and what is known of the file.
        destination: its final path; the folder is created.
        advice: what the user can do when it cannot be had; ends every error.

    Raises:
        DownloadError: it cannot be reached, or is not the file that was published; that one is
            kept aside as `NAME.wrong`.
        StorageError: the destination cannot be written.
    """
    with _written(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _alone(destination) as part:
            if part is not None:
                _complete(origin, destination, part, advice)


def sha256(file: BinaryIO) -> str:
    """SHA-256 of all that a stream gives, in hexadecimal."""
    sha = hashlib.sha256()
    while piece := file.read(_HASHED_BYTES):
        sha.update(piece)
    return sha.hexdigest()


def _complete(origin: Origin, destination: Path, part: BinaryIO, advice: str) -> None:
    notes = destination.with_name(destination.name + ".part.json")
    known = _read_notes(notes)
    if known is None or known.address != origin.address:
        part.truncate(0)
        known = None
    best, failures, starts = part.seek(0, os.SEEK_END), 0, 0
    while known is None or not part.tell() or part.tell() != known.size:
        cause, pause_s = "", None
        try:
            known = _attempt(origin, known, part, notes, advice)
            break
        except _ChangedError:
            starts += 1
            part.truncate(0)
            known = None
            if starts == MAX_STARTS:
                raise DownloadError(
                    f"{origin.address}: became another file {starts} times on the way. {advice}"
                ) from None
            print(f"  {origin.address}: has changed since; from the beginning", flush=True)
            continue
        except _InterruptedError as interrupted:
            cause, pause_s = str(interrupted), interrupted.pause_s
        known = _read_notes(notes)
        reached = part.seek(0, os.SEEK_END)
        failures = 1 if reached > best else failures + 1
        best = max(best, reached)
        if failures == ATTEMPTS:
            begun = f" {reached:,} bytes are here; the same command resumes." if reached else ""
            raise DownloadError(
                f"{origin.address}: cannot be fetched ({cause}, {ATTEMPTS} times in a row).{begun}"
                f" {advice}"
            )
        seconds = 2.0 ** (failures - 1) if pause_s is None else pause_s
        print(f"  {origin.address}: {cause}; again in {seconds:.0f} s", flush=True)
        wait(seconds)
    _accept(origin, known, destination, part, notes, advice)


def _attempt(
    origin: Origin, known: _Validators | None, part: BinaryIO, notes: Path, advice: str
) -> _Validators:
    """One request for what is missing; returns when the last byte is here."""
    here = part.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"}
    if known is not None and here:
        headers |= {"Range": f"bytes={here}-"} | known.condition
    try:
        with requests.get(
            origin.url, headers=headers, stream=True, timeout=TIMEOUT_S, auth=origin.auth
        ) as answer:
            _check_status(answer, origin.address, advice)
            if answer.status_code == 206:
                current = _check_continued(answer, known, here)
            else:
                current = _begin(origin, answer, part, notes, advice)
                if here and known is not None and current != known:
                    print(f"  {origin.address}: has changed since; from the beginning", flush=True)
                elif here:
                    print(f"  {origin.address}: the server sends all of it again", flush=True)
                here = 0
            # Not the address, whose last part need not be a name: "file_downloaded".
            name = Path(part.name).stem
            with Progress(name, current.size, unit="bytes", done=here) as progress:
                for piece in answer.iter_content(PIECE_BYTES):
                    part.write(piece)
                    progress.add(len(piece))
    except (requests.ConnectionError, requests.Timeout,
            requests.exceptions.ChunkedEncodingError) as error:  # fmt: skip
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise DownloadError(
                f"{origin.address}: its certificate is not trusted. Behind a firewall, set"
                f" REQUESTS_CA_BUNDLE to the file with the firewall's certificates. {advice}"
            ) from None
        raise _InterruptedError(type(error).__name__) from None
    except requests.RequestException as error:
        raise DownloadError(
            f"{origin.address}: cannot be fetched ({type(error).__name__}). {advice}"
        ) from None
    finally:
        part.flush()
    if current.size is not None and part.tell() != current.size:
        raise _InterruptedError(f"{part.tell():,} of {current.size:,} bytes")
    return current


def _check_status(answer: requests.Response, address: str, advice: str) -> None:
    status = answer.status_code
    if status in (200, 206):
        return
    if status == 416:
        raise _ChangedError
    if status in _TRANSIENT:
        pause_s = _retry_after_s(answer.headers.get("Retry-After", ""))
        if pause_s is not None and pause_s > MAX_PAUSE_S:
            raise DownloadError(
                f"{address}: the server asks to wait for {pause_s:,.0f} s (HTTP {status}). The same"
                f" command resumes then. {advice}"
            )
        raise _InterruptedError(f"HTTP {status}", pause_s)
    reason = _REASONS.get(status, "an answer that is no file")
    raise DownloadError(f"{address}: cannot be fetched (HTTP {status}): {reason}. {advice}")


def _check_continued(
    answer: requests.Response, known: _Validators | None, here: int
) -> _Validators:
    """The rest of a file must begin where its beginning ends, and be of the same file."""
    match = _RANGE.match(answer.headers.get("Content-Range", ""))
    if known is None or not match or int(match[1]) != here or int(match[2]) != known.size:
        raise _ChangedError
    etag = answer.headers.get("ETag", known.etag)
    if etag != known.etag:
        raise _ChangedError
    return known


def _begin(
    origin: Origin, answer: requests.Response, part: BinaryIO, notes: Path, advice: str
) -> _Validators:
    """Make room for a file from its first byte, once its answer looks like the file."""
    if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise DownloadError(
            f"{origin.address}: a web page came instead of the file: that of a proxy, or one to log"
            f" in at. {advice}"
        )
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    length = answer.headers.get("Content-Length", "")
    current = _Validators(
        origin.address,
        int(length) if length.isdigit() and not encoded else None,
        answer.headers.get("ETag", ""),
        answer.headers.get("Last-Modified", ""),
        _published_md5(answer.headers),
    )
    if origin.size is not None and current.size not in (None, origin.size):
        raise DownloadError(
            f"{origin.address}: has {current.size:,} bytes, not {origin.size:,}: another file than"
            f" the published one. {advice}"
        )
    part.truncate(0)
    part.seek(0)
    notes.write_text(json.dumps(asdict(current)))
    return current


def _accept(
    origin: Origin, known: _Validators, destination: Path, part: BinaryIO, notes: Path, advice: str
) -> None:
    """Give a whole file its name, or put it aside."""
    part.flush()
    os.fsync(part.fileno())
    temporary = destination.with_name(destination.name + ".part")
    with temporary.open("rb") as file:
        digest = sha256(file)
    wrong = not digest.startswith(origin.sha256)
    if not origin.sha256 and known.md5:
        with temporary.open("rb") as file:
            md5 = hashlib.md5(usedforsecurity=False)
            while piece := file.read(_HASHED_BYTES):
                md5.update(piece)
        wrong = base64.b64encode(md5.digest()).decode() != known.md5
    if wrong:
        aside = destination.with_name(destination.name + ".wrong")
        size = temporary.stat().st_size
        temporary.replace(aside)
        notes.unlink()
        expected = origin.sha256[:16] or "what its server says"
        raise DownloadError(
            f"{origin.address}: {size:,} bytes with SHA-256 {digest[:16]}..., not {expected}...:"
            f" damaged, or another file than the published one. Kept aside as {aside}, not used."
            f" {advice}"
        )
    temporary.replace(destination)
    notes.unlink()


@contextmanager
def _alone(destination: Path) -> Iterator[BinaryIO | None]:
    """The open `.part` of a file, locked against other processes; None if the file is complete."""
    temporary = destination.with_name(destination.name + ".part")
    while not destination.is_file():
        with temporary.open("ab") as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _is_at(part, temporary):
                continue  # Another process finished it, or put it aside, while this one waited.
            try:
                yield part
            finally:
                part.flush()
                if _is_at(part, temporary) and not os.fstat(part.fileno()).st_size:
                    temporary.unlink()
                    temporary.with_name(temporary.name + ".json").unlink(missing_ok=True)
            return
    yield None


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _written(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{destination}: cannot be written: {error.strerror or error}. Free space or choose"
            " another destination; the same command resumes from where it stopped."
        ) from None


def _read_notes(notes: Path) -> _Validators | None:
    try:
        return _Validators(**json.loads(notes.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _published_md5(headers: Mapping[str, str]) -> str:
    """MD5 in base64 as Google Cloud Storage, where Kaggle keeps its files, sends it; or empty."""
    match = re.search(r"\bmd5=([A-Za-z0-9+/]{22}==)", headers.get("x-goog-hash", ""))
    return match[1] if match else ""


def _retry_after_s(text: str) -> float | None:
    """Seconds that a `Retry-After` asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if text.strip().isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000" says no more than that it is UTC.
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
