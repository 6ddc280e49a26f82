"""Folders that a user may not read, and a bucket whose objects lie in a folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

from cxr import storage

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Lose root's right to read everything, for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def readable_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="cxr-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def bucket(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make `mock://` a bucket whose files lie in a folder; pyarrow's own handles read them."""
    system, resolve = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), storage.resolve
    for room in (storage.files, storage.listing):
        monkeypatch.setattr(
            room,
            "resolve",
            lambda uri: (system, uri[7:]) if uri.startswith("mock://") else resolve(uri),
        )
