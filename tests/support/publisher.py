"""A publisher on this machine: a web server with ranges, and with every fault that one can have."""

import base64
import email.utils
import hashlib
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Publisher:
    """What it serves, how it fails, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path, without the slash."""
    ranges: bool = True
    etags: bool = True
    dates: bool = False
    md5: str = ""
    """Sent for every file as Google's storage does."""
    content_type: str = "application/zip"
    lengths: bool = True
    password: tuple[str, str] | None = None
    cuts: list[int] = field(default_factory=list)
    """Of each answer with a file, the bytes after which the connection breaks."""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers of the first answers, instead of the file."""
    then: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """The files from the n-th request on."""
    requests: list[dict[str, str]] = field(default_factory=list)
    """Headers of each request, with its path."""
    num_sent: int = 0
    """Bytes of files, in all."""
    url: str = ""


@contextmanager
def serving(
    publisher: Publisher, certificate: tuple[Path, Path] | None = None
) -> Iterator[Publisher]:
    """Serve in the background; with a certificate and its key by https."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # Who asked has heard enough.
                answer(publisher, self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    publisher.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield publisher
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(publisher: Publisher, to: BaseHTTPRequestHandler) -> None:
    publisher.requests.append({"path": to.path, **dict(to.headers.items())})
    if len(publisher.requests) in publisher.then:
        publisher.files = publisher.then[len(publisher.requests)]
    if publisher.answers:
        status, headers = publisher.answers.pop(0)
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name, value)
        to.send_header("Content-Length", "0")
        to.end_headers()
        return
    if publisher.password:
        name = base64.b64encode(":".join(publisher.password).encode()).decode()
        if to.headers.get("Authorization") != f"Basic {name}":
            to.send_error(401)
            return
    # As a proxy is asked, the whole address is the path.
    content = publisher.files.get(re.sub(r"^(http://[^/]+)?/", "", to.path))
    if content is None:
        to.send_error(404)
        return
    send(publisher, to, content)


def send(publisher: Publisher, to: BaseHTTPRequestHandler, content: bytes) -> None:
    sha = hashlib.sha256(content).hexdigest()
    etag, date = f'"{sha[:8]}"', email.utils.formatdate(int(sha[:6], 16), usegmt=True)
    start = 0
    asked = re.match(r"bytes=(\d+)-$", to.headers.get("Range", ""))
    condition = to.headers.get("If-Range")
    if asked and publisher.ranges and condition in (None, etag, date):
        start = int(asked[1])
        if start >= len(content):
            to.send_response(416)
            to.send_header("Content-Range", f"bytes */{len(content)}")
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        to.send_response(206)
        to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        to.send_response(200)
    to.send_header("Content-Type", publisher.content_type)
    if publisher.lengths:
        to.send_header("Content-Length", str(len(content) - start))
    if publisher.etags:
        to.send_header("ETag", etag)
    if publisher.dates:
        to.send_header("Last-Modified", date)
    if publisher.md5:
        to.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={publisher.md5}")
    to.end_headers()
    end = start + publisher.cuts.pop(0) if publisher.cuts else len(content)
    to.wfile.write(content[start:end])
    publisher.num_sent += len(content[start:end])
