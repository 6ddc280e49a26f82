"""Weights are fetched once, checked and kept; a local server plays the publisher."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from cxr import download, models
from cxr.errors import SettingsError, WeightsError

CONTENT = b"weights of a network" * 1000
NAME = f"alexnet-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Publisher:
    """A server on this machine that gives `files`, and notes every request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_short = False
        self.requests: list[str] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.requests.append(self.path)
                content = publisher.files.get(self.path.removeprefix("/models/"))
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2 if publisher.cut_short else None])

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/models"


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    served = Publisher()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=served.server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def publish(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(download, "imagenet_url", lambda _: url)


def test_addresses_are_torchvisions() -> None:
    url = download.imagenet_url("alexnet")
    assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


@pytest.mark.parametrize("backbone", ["vgg17", "mnist"])
def test_a_network_without_published_weights_is_refused(backbone: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"no ImageNet weights for '{backbone}'\. Give --weights FILE"
    ):
        download.imagenet_url(backbone)


def test_weights_are_fetched_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    publisher.files[NAME] = CONTENT
    publish(monkeypatch, f"{publisher.url}/{NAME}")
    place = download.imagenet_weights("alexnet", str(tmp_path))
    assert place == f"{tmp_path}/weights/{NAME}"
    assert Path(place).read_bytes() == CONTENT
    assert download.imagenet_weights("alexnet", str(tmp_path)) == place
    assert publisher.requests == [f"/models/{NAME}"]
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [NAME]


def test_fetched_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    torch.save({"features.0.weight": torch.arange(3.0)}, tmp_path / "a.pth")
    publisher.files["a.pth"] = (tmp_path / "a.pth").read_bytes()
    publish(monkeypatch, f"{publisher.url}/a.pth")
    state, place = models.read_weights("imagenet", "alexnet", str(tmp_path / "cache"))
    assert place == f"{tmp_path}/cache/weights/a.pth"
    assert state["features.0.weight"].tolist() == [0.0, 1.0, 2.0]


def test_another_file_than_the_published_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    publisher.files[NAME] = b"<html>Please log in.</html>"
    publish(monkeypatch, f"{publisher.url}/{NAME}")
    with pytest.raises(WeightsError, match=r"27 bytes with SHA-256 .*, not .*a proxy's page") as e:
        download.imagenet_weights("alexnet", str(tmp_path))
    assert f"Put the file at {tmp_path}/weights/{NAME}, or give it as --weights FILE" in str(
        e.value
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cut_short", "cause"), [(False, "HTTP 404"), (True, "ChunkedEncodingError")]
)
def test_what_the_publisher_does_not_give_whole_is_not_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    publisher: Publisher,
    cut_short: bool,
    cause: str,
) -> None:
    publisher.cut_short = cut_short
    publisher.files["b.pth" if cut_short else "other.pth"] = CONTENT
    publish(monkeypatch, f"{publisher.url}/b.pth")
    with pytest.raises(WeightsError, match=rf"b\.pth: cannot be fetched \({cause}\)"):
        download.imagenet_weights("alexnet", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_publisher_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: a connection is refused.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}"
        publish(monkeypatch, url)
        with pytest.raises(WeightsError) as caught:
            download.imagenet_weights("alexnet", str(tmp_path))
    assert str(caught.value) == (
        f"{url}: cannot be fetched (ConnectionError). Put the file at"
        f" {tmp_path}/weights/{NAME}, or give it as --weights FILE (or --weights none)."
    )
