"""A proxy before an HTTP server on the loopback interface, which does damage on order."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections import Counter
from types import TracebackType

from tests.support.s3 import free_port
from tests.support.waiting import wait_until

UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n"
)

CHUNK = 1 << 16


class FaultyProxy:
    """Passes everything on, until it is told otherwise.

    `fault` is one of
        ""            all is well
        "unavailable" answers requests with 503
        "silent"      takes requests and never answers
        "cut"         cuts the connection after `after` bytes of an answer
        "refused"     takes no connections, and cuts those that are open
    and may be changed at any time; `delay_s` holds every answer back. A request is spared if its
    first line does not contain `only`. `count` tells how often each fault was done,
    how often the server was "unreachable", how many requests were "asked", and how many bytes of
    answers were `passed` on.
    """

    def __init__(self, target_port: int) -> None:
        self.target = ("127.0.0.1", target_port)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.fault, self.only, self.after, self.delay_s = "", b"", 0, 0.0
        self.count: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "FaultyProxy":
        self._start(self._listen)
        wait_until(self._probe)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def for_a_while(self, fault: str, seconds: float) -> None:
        """Do damage for some seconds from now on, while the caller goes on."""
        self.fault = fault

        def end() -> None:
            self._stopped.wait(seconds)
            self.fault = ""

        self._start(end)

    def _start(self, work: "threading.Thread | object", *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _probe(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _listen(self) -> None:
        listener: socket.socket | None = None
        while not self._stopped.is_set():
            if self.fault == "refused":
                if listener is not None:
                    listener.close()
                    listener = None
                    self.count["refused"] += 1
                time.sleep(0.02)
                continue
            if listener is None:
                listener = socket.create_server(("127.0.0.1", self.port))
                listener.settimeout(0.02)
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            self._start(self._serve, client)
        if listener is not None:
            listener.close()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self.target)
            except OSError:
                self.count["unreachable"] += 1
                _reset(client)
                return
            with server, contextlib.suppress(OSError):
                self._pass_on(client, server)
                return
            _reset(client)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        answered, hit = 0, False
        while not self._stopped.is_set() and self.fault != "refused":
            ready, _, _ = select.select([client, server], [], [], 0.02)
            if client in ready:
                if not (data := client.recv(CHUNK)):
                    return
                first = data.split(b"\r\n", 1)[0]
                if first.endswith(b"HTTP/1.1"):
                    answered, hit = 0, bool(self.fault) and self.only in first
                    self.count["asked"] += 1
                if hit and self.fault == "unavailable":
                    self.count["unavailable"] += 1
                    client.sendall(UNAVAILABLE)
                    _drain(client)
                    return
                if hit and self.fault == "silent":
                    self.count["silent"] += 1
                    while self.fault == "silent" and not self._stopped.wait(0.02):
                        pass
                    return
                server.sendall(data)
            if server in ready:
                if not (data := server.recv(CHUNK)):
                    return
                time.sleep(self.delay_s)
                if hit and self.fault == "cut" and answered + len(data) > self.after:
                    self.count["cut"] += 1
                    client.sendall(data[: max(0, self.after - answered)])
                    _reset(client)
                    return
                answered += len(data)
                client.sendall(data)
                self.count["passed"] += len(data)
        _reset(client)


def _drain(client: socket.socket) -> None:
    """Read what still comes, so that the answer is not lost by a reset."""
    client.shutdown(socket.SHUT_WR)
    client.settimeout(1.0)
    try:
        while client.recv(CHUNK):
            pass
    except OSError:
        pass


def _reset(client: socket.socket) -> None:
    """Cut a connection so that the other side sees an error, not an end."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
