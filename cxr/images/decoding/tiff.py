"""Whether the strips or tiles of a TIFF are all there and not damaged."""

import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from cxr.images.decoding.codestream import (
    DAMAGED,
    NotCheckedError,
    decode_strictly,
    read_frame_header,
)
from cxr.images.decoding.verdict import RejectedError

_COMPRESSION = 259
_OFFSETS = (273, 324)
_LENGTHS = (279, 325)
_JPEG_TABLES = 347

_JPEG = 7
_DEFLATE = (8, 32946)


def check_tiff(data: bytes, image: Image.Image) -> None:
    """Reject a TIFF that lacks a part of the picture, or holds a damaged one.

    Pillow leaves a part black that the header does not name. libtiff inflates a damaged strip to
    its size and ignores the checksum behind, and passes no warning of libjpeg on. Nothing tells of
    damage in strips without compression, or with LZW or PackBits.
    """
    opened: Any = image
    # Compressed strips are a single tile to Pillow; libtiff itself misses those that lack.
    covered = 0
    for _, (left, top, right, bottom), *_ in opened.tile:
        covered += (right - left) * (bottom - top)
    if covered < image.width * image.height:
        raise RejectedError("unreadable", "the tiff file lacks a part of the picture")
    compression = opened.tag_v2.get(_COMPRESSION)
    if compression != _JPEG and compression not in _DEFLATE:
        return
    tables = opened.tag_v2.get(_JPEG_TABLES, b"")
    # 4 channels of 16 bits, and as much again for tiles that reach over the edges.
    budget = 16 * image.width * image.height + 2**20
    for strip in _strips(data, opened.tag_v2):
        if compression == _JPEG:
            _check_jpeg(tables[:-2] + strip[2:] if len(tables) > 4 else strip)
        else:
            budget -= _check_deflate(strip, budget)


def _strips(data: bytes, tags: Any) -> Iterator[bytes]:
    """The compressed strips or tiles, no more than the file has bytes for."""
    num_bytes = 0
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            num_bytes += length
            if num_bytes > len(data):
                return  # Each byte several times: hours of work in a small file.
            yield data[offset : offset + length]


def _check_jpeg(stream: bytes) -> None:
    header = read_frame_header(stream)
    if header is None:
        raise RejectedError("unreadable", DAMAGED)
    try:
        decode_strictly(stream, header, 1, 1)
    except NotCheckedError:
        return  # libtiff writes no such streams.


def _check_deflate(strip: bytes, max_bytes: int) -> int:
    """The number of bytes that a strip inflates to, its checksum compared."""
    inflater = zlib.decompressobj()
    num_bytes = 0
    try:
        while strip and not inflater.eof:
            num_bytes += len(inflater.decompress(strip, 2**20))
            strip = inflater.unconsumed_tail
            if num_bytes > max_bytes:
                raise RejectedError("unreadable", DAMAGED)
    except zlib.error:
        raise RejectedError("unreadable", DAMAGED) from None
    return num_bytes
