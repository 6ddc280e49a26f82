"""An S3 server on the loopback interface for tests: OpenStack Swift, or moto where it is missing.

    python -m tests.support.s3        # start one by hand; prints its environment

Swift is a real object store (Debian: apt-get install swift-proxy swift-account swift-container
swift-object), moto a mock that comes with the test dependencies.
"""

import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

SWIFT_PYTHON = "/usr/bin/python3"
"""Debian's, which has Debian's packages."""

FIND_SWIFT = (
    "import importlib.metadata as m, swift.proxy.server, swift.account.server,"
    " swift.container.server, swift.obj.server; print(m.version('swift'))"
)

RUN_MOTO = """
import os, sys, threading
from moto.server import main
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
main(sys.argv[1:])
"""

PORTS = range(20_000, 32_000)
"""Below what systems hand out by themselves, so that a port stays free while it is not in use."""

START_S = 60.0
"""Longest time that a server may take to answer."""


def swift_version() -> str:
    """The version of the installed Swift, empty without it."""
    if not Path(SWIFT_PYTHON).exists():
        return ""
    words = [SWIFT_PYTHON, "-W", "ignore", "-c", FIND_SWIFT]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port was found")


def wait_for(port: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait until something listens on a port.

    Raises:
        RuntimeError: nothing does, or the process that should has ended.
    """
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"no server has started on port {port}")


class Store:
    """An S3 server that can be stopped and started again.

    `endpoint` is its URL; `environment` what a client needs; `is_swift` tells a real store, which
    checks credentials and keeps its data over a restart, from the mock, which does neither.
    """

    def __init__(self, folder: Path) -> None:
        version = swift_version()
        self.is_swift = bool(version)
        self.name = f"OpenStack Swift {version}" if version else "moto, a mock"
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.num_buckets = 0

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables by which pyarrow finds and enters the store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Swift 2.30 knows no checksums but MD5.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def start(self) -> None:
        """Start the server and wait until it listens."""
        words = [sys.executable, "-c", RUN_MOTO, "-H", "127.0.0.1", "-p", str(self.port)]
        if self.is_swift:
            script = str(Path(__file__).with_name("swift_server.py"))
            words = [SWIFT_PYTHON, script, str(self.folder), str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            # It ends with its input: also where this process is killed.
            self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.PIPE)
        wait_for(self.port, self.process)

    def stop(self) -> None:
        """End the server; its connections are cut."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def bucket(self) -> str:
        """The URI of a new bucket."""
        from pyarrow import fs

        self.num_buckets += 1
        name = f"tests-{self.num_buckets}"
        system = fs.S3FileSystem(
            endpoint_override=self.endpoint, region="us-east-1", access_key="test:tester",
            secret_key="testing", allow_bucket_creation=True,
        )  # fmt: skip
        system.create_dir(name)
        return f"s3://{name}"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        store = Store(Path(folder))
        store.start()
        print(f"# {store.name} on {store.endpoint} with {store.bucket()}; it ends with Ctrl-C")
        for name, value in store.environment.items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            store.stop()


if __name__ == "__main__":
    main()
