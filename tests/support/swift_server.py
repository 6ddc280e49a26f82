"""OpenStack Swift with its S3 interface, whole in one process, for tests.

    /usr/bin/python3 tests/support/swift_server.py FOLDER PORT

Debian's Python runs it, with the packages swift-proxy, swift-account, swift-container and
swift-object. Configuration, rings and data lie below FOLDER, and stay there when it is stopped;
all ports are on the loopback interface. Nothing of the system's own Swift is read or written. It
ends with its standard input.
The S3 key is `test:tester`, its secret `testing`.
"""

import hashlib
import os
import sys
import time
import warnings
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import eventlet
import eventlet.wsgi
from swift.common import utils

REGION = "us-east-1"

# Data need to outlive this process and not a power cut, and tests share the disk with others.
os.fsync = os.fdatasync = lambda fd: None  # noqa: ARG005

SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""

BACKEND_CONF = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY_CONF = """
[DEFAULT]
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors gatekeeper cache digest s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
paste.filter_factory = swift_server:cache
[filter:digest]
paste.filter_factory = swift_server:digest
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""


Application = Callable[[dict[str, Any], Any], Any]
Filter = Callable[[Application], Application]


class Cache:
    """What Swift keeps in memcached, in a dict: for one process that is enough."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, **_: Any) -> Any:
        value, expires = self.values.get(key, (None, 0))
        return value if expires == 0 or expires > time.time() else None

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        self.values[key] = value, _expiry(time)

    def incr(self, key: str, delta: int = 1, time: float = 0, **_: Any) -> int:
        value: int = max(0, (self.get(key) or 0) + delta)
        self.set(key, value, time=time)
        return value

    def delete(self, key: str, **_: Any) -> None:
        self.values.pop(key, None)


def _expiry(seconds: float) -> float:
    return time.time() + seconds if seconds else 0


def cache(conf: Any, **_: Any) -> Filter:
    """A filter that gives requests their cache."""
    kept = Cache()

    def made(app: Application) -> Application:
        def handle(environ: dict[str, Any], start_response: Any) -> Any:
            environ["swift.cache"] = kept
            return app(environ, start_response)

        return handle

    return made


def digest(conf: Any, **_: Any) -> Filter:
    """A filter that adds the Content-MD5 which s3api wants of batch deletes, and AWS no longer."""

    def made(app: Application) -> Application:
        def handle(environ: dict[str, Any], start_response: Any) -> Any:
            names = {part.partition("=")[0] for part in environ.get("QUERY_STRING", "").split("&")}
            if environ["REQUEST_METHOD"] == "POST" and "delete" in names:
                body = environ["wsgi.input"].read()
                environ["wsgi.input"] = BytesIO(body)
                environ["CONTENT_LENGTH"] = str(len(body))
                environ["HTTP_CONTENT_MD5"] = b64encode(hashlib.md5(body).digest()).decode()
            return app(environ, start_response)

        return handle

    return made


def write_ring(folder: Path, name: str, port: int) -> None:
    """A ring of one device."""
    from swift.common.ring import RingBuilder

    builder = RingBuilder(part_power=2, replicas=1, min_part_hours=0)
    builder.add_dev(
        {
            "id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "one",
            "weight": 1.0, "meta": "", "replication_ip": "127.0.0.1", "replication_port": port,
        }
    )  # fmt: skip
    builder.rebalance(seed=0)
    builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def serve(sock: Any, conf: Path, log: Any) -> None:
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    # The AWS SDK looks for ETag; eventlet would write Etag, and warns where it may not.
    warnings.filterwarnings("ignore", message="capitalize_response_headers")
    eventlet.wsgi.server(
        sock,
        loadapp(str(conf), global_conf={"log_name": conf.stem}),
        log,
        log_output=False,
        protocol=SwiftHttpProtocol,
        capitalize_response_headers=False,
    )


def end_with_input() -> None:
    """End this process once nobody holds the other end of its standard input."""
    threads = eventlet.patcher.original("threading")
    threads.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()


def main() -> None:
    end_with_input()
    folder, port = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    (folder / "devices" / "one").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    utils.eventlet_monkey_patch()
    utils.set_swift_dir(str(folder))
    os.environ["TZ"] = "UTC+0"  # As Swift's own start does: times are compared as text.
    time.tzset()
    sockets = {}
    for kind in ("account", "container", "object"):
        sockets[kind] = eventlet.listen(("127.0.0.1", 0))
        conf = folder / f"{kind}-server.conf"
        conf.write_text(BACKEND_CONF.format(folder=folder, kind=kind))
        write_ring(folder, kind, sockets[kind].getsockname()[1])
    (folder / "proxy-server.conf").write_text(PROXY_CONF.format(folder=folder, region=REGION))
    sockets["proxy"] = eventlet.listen(("127.0.0.1", port))
    log = utils.NullLogger()
    threads = [
        eventlet.spawn(serve, sock, folder / f"{kind}-server.conf", log)
        for kind, sock in sockets.items()
    ]
    for thread in threads:
        thread.wait()


if __name__ == "__main__":
    main()
