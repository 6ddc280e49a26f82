"""JPEG, PNG, TIFF and BMP, by Pillow."""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cxr.images.decoding.codestream import in_8_bits
from cxr.images.decoding.deep import GRAY_16, is_deep, teach_gray_alpha, to_8_bits
from cxr.images.decoding.gray import to_gray
from cxr.images.decoding.jpeg import decode_jpeg, jpeg_header
from cxr.images.decoding.tiff import check_tiff
from cxr.images.decoding.verdict import MAX_PIXELS, Facts, RejectedError

_PILLOW_FORMATS = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "bmp": "BMP"}


def decode_raster(data: bytes, facts: Facts, min_px: int) -> NDArray[np.uint8]:
    """Decode with Pillow; gray levels 0-255, uint8, (H, W)."""
    if not data:
        raise RejectedError("unreadable", "the file is empty")
    if not facts.format:
        raise RejectedError("unreadable", "not a JPEG, PNG, TIFF, BMP or DICOM file")
    if facts.format == "png":
        _check_png_chunks(data)
    header = jpeg_header(data) if facts.format == "jpeg" else None
    if facts.format == "tiff":
        teach_gray_alpha()
    # Pillow opens no JPEG of another precision; no more than the header is read of it.
    image = _open(in_8_bits(data, header) if header else data, facts.format)
    with image:
        facts.set_size(*image.size)
        if image.mode not in _MODES:
            raise RejectedError("refused", "neither 8-bit, 16-bit gray nor RGB pixels")
        if header:
            pixels = decode_jpeg(data, header, image, facts, min_px)
        else:
            if facts.format == "tiff":
                check_tiff(data, image)
            if is_deep(image):
                shallow = to_8_bits(image, lambda: _open(data, facts.format), facts)
            else:
                image.load()
                shallow = image
            pixels = to_gray(shallow, facts)
            if _has_second_page(image):
                facts.warnings.append("first of several pages")
        if facts.format != "tiff":  # Pillow has applied it to a TIFF already.
            pixels = _oriented(pixels, image, facts)
    return np.ascontiguousarray(pixels)


def _open(data: bytes, format: str) -> Image.Image:
    """The image with its header read and no more."""
    try:
        return Image.open(BytesIO(data), formats=[_PILLOW_FORMATS[format]])
    except Image.DecompressionBombError:
        limit = MAX_PIXELS // 1_000_000
        raise RejectedError("refused", f"more than {limit} million pixels") from None
    except UnidentifiedImageError:
        raise RejectedError("unreadable", f"the {format} header cannot be read") from None


# Not bilevel, CMYK, Lab, and 32-bit or float levels, which have no defined white.
_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", *GRAY_16)


def _check_png_chunks(data: bytes) -> None:
    """Reject a PNG with a damaged chunk or without its end: Pillow stops at the last pixel row."""
    view = memoryview(data)
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise RejectedError("unreadable", "damaged png file: a checksum is wrong")
        if name == b"IEND":
            return
        at = end + 4
    raise RejectedError("unreadable", "the png file is cut short")


def _has_second_page(image: Image.Image) -> bool:
    # Not `n_frames`, which visits all pages of a file that may claim millions.
    try:
        image.seek(1)
    except (EOFError, AttributeError):
        return False
    except Exception:
        return True
    return True


def _oriented(pixels: NDArray[np.uint8], image: Image.Image, facts: Facts) -> NDArray[np.uint8]:
    """Apply the EXIF orientation, such as of a film photographed with a phone."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Damaged EXIF data do not make the pixels wrong.
        return pixels
    if orientation in (5, 6, 7, 8):
        facts.width, facts.height = facts.height, facts.width
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.T
        case 6:
            return pixels.T[:, ::-1]
        case 7:
            return pixels[::-1, ::-1].T
        case 8:
            return pixels.T[::-1]
        case _:
            return pixels
