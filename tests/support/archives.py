"""Archives of every kind that is read, and of every way in which one is written."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from cxr.sources import Step

Files = dict[str, bytes]
Row = dict[str, Any]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no compression makes smaller."""
    return np.random.default_rng(seed).bytes(size)


FILES: Files = {
    "first.png": noise(1),
    "folder/second.dcm": noise(70_000, 2),
    "folder/deeper/third": b"soft " * 40_000,
    "Thorax größer 胸.jpeg": noise(3_000, 4),
    "last.png": b"\0" * 5_000 + noise(500, 5),
}


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """A place to write to that cannot be sought: `zipfile` then writes sizes after the data."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def zipped_to_pipe(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return bytes(pipe.data)


def zipped_64(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return buffer.getvalue()


def tarred(files: Files, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def in_two(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Compress as two streams one after another, as parallel programs do."""
    return lambda data: compress(data[:40_000]) + compress(data[40_000:])


Maker = Callable[[Files], bytes]

MAKERS: dict[str, tuple[str, Maker]] = {
    "zip stored": ("zip", lambda files: zipped(files, zipfile.ZIP_STORED)),
    "zip deflated": ("zip", zipped),
    "tar": ("tar", tarred),
    "tar.gz": ("tar.gz", lambda files: gzip.compress(tarred(files))),
    "tar.bz2": ("tar.bz2", lambda files: bz2.compress(tarred(files))),
    "tar.xz": ("tar.xz", lambda files: lzma.compress(tarred(files))),
    "tar.zst": ("tar.zst", lambda files: zstd(tarred(files))),
}
"""One of each way in which members are read."""

VARIANTS: dict[str, tuple[str, Maker]] = {
    "zip to a pipe": ("zip", zipped_to_pipe),
    "zip stored to a pipe": ("zip", lambda files: zipped_to_pipe(files, zipfile.ZIP_STORED)),
    "zip64": ("zip", zipped_64),
    "zip after a program": ("zip", lambda files: b"#!/bin/sh\n" * 50 + zipped(files)),
    "tar gnu": ("tar", lambda files: tarred(files, tarfile.GNU_FORMAT)),
    "tar.gz of two": ("tar.gz", lambda files: in_two(gzip.compress)(tarred(files))),
    "tar.bz2 of two": ("tar.bz2", lambda files: in_two(bz2.compress)(tarred(files))),
    "tar.xz of two": ("tar.xz", lambda files: in_two(lzma.compress)(tarred(files))),
    "tar.zst of two": ("tar.zst", lambda files: in_two(zstd)(tarred(files))),
}
EVERY = MAKERS | VARIANTS


def place(row: Row) -> list[Step]:
    return [Step(**step) for step in row["place"]]


def inside(row: Row) -> str:
    """The path in the archive, empty for the archive itself."""
    return str(row["uri"])[len(row["file"]) + 2 :]
