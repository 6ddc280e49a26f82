"""Whether the strips or tiles of a TIFF are all there and not damaged."""

import zlib
from typing import Any

from PIL import Image

from cxr.images.decoding.codestream import NotCheckedError, decode_strictly, read_frame_header
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
    for strip in _strips(data, opened.tag_v2):
        if compression == _JPEG:
            _check_jpeg(tables[:-2] + strip[2:] if len(tables) > 4 else strip)
        else:
            # Of 4 bytes at most in a 16-bit RGBA picture, and of padded tiles.
            _check_deflate(strip, 16 * image.width * image.height + 2**20)


def _strips(data: bytes, tags: Any) -> list[bytes]:
    for offsets, lengths in zip(_OFFSETS, _LENGTHS, strict=True):
        if offsets in tags and lengths in tags:
            pairs = zip(tags[offsets], tags[lengths], strict=False)
            return [data[offset : offset + length] for offset, length in pairs]
    return []


def _check_jpeg(stream: bytes) -> None:
    header = read_frame_header(stream)
    if header is None:
        raise RejectedError("unreadable", "the compressed data are damaged or cut short")
    try:
        decode_strictly(stream, header, 1, 1)
    except NotCheckedError:
        return  # libtiff writes no such streams.


def _check_deflate(strip: bytes, max_bytes: int) -> None:
    inflater = zlib.decompressobj()
    inflated = 0
    try:
        while strip and not inflater.eof and inflated < max_bytes:
            inflated += len(inflater.decompress(strip, 2**20))
            strip = inflater.unconsumed_tail
    except zlib.error:
        raise RejectedError("unreadable", "the compressed data are damaged or cut short") from None
