"""Many small objects for a bucket of `swift_server.py`, written below it: S3 would take minutes.

    /usr/bin/python3 tests/support/swift_fill.py FOLDER BUCKET FIRST LAST NUM_FOLDERS SIZE

Objects `xrays/FOLDER/NUMBER.png` with the numbers from FIRST up to LAST, of SIZE bytes that look
random, as the object server would store them and the container server would list them. The server
may run meanwhile. Debian's Python runs it, as the server.
"""

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import Any

from swift.common import utils

ACCOUNT = "AUTH_test"

PAGE = 1000
"""Objects that are added to the listing at a time."""

os.fsync = os.fdatasync = lambda fd: None  # noqa: ARG005


def main() -> None:
    folder, bucket = Path(sys.argv[1]).absolute(), sys.argv[2]
    first, last, num_folders, size = map(int, sys.argv[3:])
    utils.set_swift_dir(str(folder))
    utils.drop_buffer_cache = lambda *_: None
    from swift.common.ring import Ring
    from swift.common.storage_policy import POLICIES
    from swift.container.backend import ContainerBroker
    from swift.obj.diskfile import DiskFileManager

    devices = folder / "devices"
    manager = DiskFileManager(
        {"devices": str(devices), "mount_check": "false", "disable_fallocate": "true"},
        utils.NullLogger(),
    )
    objects, containers = (Ring(str(folder), ring_name=name) for name in ("object", "container"))
    part, hashed = containers.get_part(ACCOUNT, bucket), utils.hash_path(ACCOUNT, bucket)
    database = utils.storage_directory(str(devices / "one" / "containers"), part, hashed)
    broker = ContainerBroker(f"{database}/{hashed}.db")
    items: list[dict[str, Any]] = []
    for number in range(first, last):
        name = f"xrays/{number % num_folders:03}/{number:08}.png"
        data = random.Random(number).randbytes(size)
        stamp = utils.Timestamp.now().internal
        etag = hashlib.md5(data).hexdigest()
        file = manager.get_diskfile(
            "one", objects.get_part(ACCOUNT, bucket, name), ACCOUNT, bucket, name,
            policy=POLICIES[0],
        )  # fmt: skip
        with file.create() as writer:
            writer.write(data)
            writer.put({
                "X-Timestamp": stamp, "Content-Type": "image/png", "ETag": etag,
                "Content-Length": str(size),
            })  # fmt: skip
            writer.commit(utils.Timestamp(stamp))
        items.append({
            "name": name, "created_at": stamp, "size": size, "content_type": "image/png",
            "etag": etag, "deleted": 0, "storage_policy_index": 0,
        })  # fmt: skip
        if len(items) == PAGE or number == last - 1:
            broker.merge_items(items)
            items.clear()


if __name__ == "__main__":
    main()
