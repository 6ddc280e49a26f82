"""JPEG, PNG, TIFF and BMP, by Pillow."""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cxr.images.decoding.levels import as_bytes
from cxr.images.decoding.verdict import MAX_JPEG_SCANS, MAX_PIXELS, Facts, RejectedError

# A color photograph has channels more than 32 levels apart in over 5 % of the pixels. All 5,239 RGB
# files of Kermany et al. 2018 have equal channels everywhere; three photographs that come with
# scikit-learn and matplotlib have shares of 0.34, 0.51 and 0.79. The gap is for tinted film and for
# small colored marks.
_COLOR_SPREAD = 32
_COLOR_SHARE = 0.05

_PILLOW_FORMATS = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "bmp": "BMP"}


def decode_raster(data: bytes, facts: Facts, min_px: int) -> NDArray[np.uint8]:
    """Decode with Pillow; gray levels 0-255, uint8, (H, W)."""
    if not data:
        raise RejectedError("unreadable", "the file is empty")
    if not facts.format:
        raise RejectedError("unreadable", "not a JPEG, PNG, TIFF, BMP or DICOM file")
    if facts.format == "png":
        _check_png_chunks(data)
    try:
        image = Image.open(BytesIO(data), formats=[_PILLOW_FORMATS[facts.format]])
    except Image.DecompressionBombError:
        limit = MAX_PIXELS // 1_000_000
        raise RejectedError("refused", f"more than {limit} million pixels") from None
    except UnidentifiedImageError:
        raise RejectedError("unreadable", f"the {facts.format} header cannot be read") from None
    with image:
        facts.set_size(*image.size)
        if image.mode not in _MODES:
            raise RejectedError("refused", "neither 8-bit, 16-bit gray nor RGB pixels")
        if facts.format == "jpeg":
            if "progressive" in image.info and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
                raise RejectedError("refused", f"a JPEG with more than {MAX_JPEG_SCANS} scans")
            # Chroma is decoded too, at the reduced size, to recognize color photographs: for gray
            # content, RGB to L gives exactly the luma plane.
            image.draft(None, (min_px, min_px))
        elif facts.format == "tiff":
            _check_tiff_strips(image)
        image.load()
        pixels = _to_gray(image, facts)
        if facts.format == "jpeg":
            _check_jpeg_tail(pixels, facts.height)
        if facts.format != "tiff":  # Pillow has applied it to a TIFF already.
            pixels = _oriented(pixels, image, facts)
        if facts.format != "jpeg" and _has_second_page(image):
            facts.warnings.append("first of several pages")
    return np.ascontiguousarray(pixels)


# Not bilevel, CMYK, Lab, and 32-bit or float levels, which have no defined white.
_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I;16", "I;16L", "I;16B")

# The tag PhotometricInterpretation.
_TIFF_PHOTOMETRIC = 262


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


def _check_tiff_strips(image: Image.Image) -> None:
    """Reject a TIFF whose strips or tiles do not cover the image: Pillow leaves the rest black.

    A compressed one is a single tile to Pillow; libtiff itself reports missing strips.
    """
    covered = 0
    for _, (left, top, right, bottom), *_ in getattr(image, "tile", ()):
        covered += (right - left) * (bottom - top)
    if covered < image.width * image.height:
        raise RejectedError("unreadable", "the tiff file lacks a part of the picture")


def _check_jpeg_tail(pixels: NDArray[np.uint8], height: int) -> None:
    """Reject a JPEG whose data ended early although its end marker is in place.

    libjpeg then fills the missing blocks with the level 128 and only records a warning, which
    Pillow does not report. In no radiograph of the set is more than 5 % of the last row of blocks
    of that level. Not detected: a loss within the last row, and missing refinements of a
    progressive JPEG.
    """
    last_row = ((height - 1) % 8 + 1) * pixels.shape[0] // height
    if (pixels[-max(1, last_row) :] == 128).all():
        raise RejectedError("unreadable", "the jpeg data end before the picture does")


def _to_gray(image: Image.Image, facts: Facts) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return _from_16_bits(image, facts)
    if image.mode == "L" and "transparency" not in image.info:
        return np.array(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            facts.warnings.append("transparent pixels taken as black")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    # 64 x 64 single pixels give a share of 5 % to within 1 %.
    sample = np.asarray(image.resize((64, 64), resample=Image.Resampling.NEAREST))
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    # Fifteen times as fast as a maximum over the last axis.
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    colored = highest - lowest > _COLOR_SPREAD
    if colored.mean() > _COLOR_SHARE:
        raise RejectedError("refused", "a color picture, not a radiograph")
    if colored.any():
        facts.warnings.append("colored marks taken as gray")
    return np.array(image.convert("L"))


def _from_16_bits(image: Image.Image, facts: Facts) -> NDArray[np.uint8]:
    """Scale 16-bit levels by the bits in use, so that 12-bit levels in 16 bits are not black.

    The brightest pixel gives the bits: levels up to 4095 are divided by 4095, not by 65535.
    """
    levels = np.asarray(image)
    bits = max(8, int(levels.max()).bit_length())
    if bits < 16:
        facts.warnings.append(f"{bits} of 16 bits in use; scaled by {2**bits - 1}")
    table = np.arange(2**bits) / (2**bits - 1)
    if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:
        table = 1 - table  # White is zero, which Pillow inverts for 8 bits only.
    pixels: NDArray[np.uint8] = as_bytes(table)[levels]
    return pixels


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
