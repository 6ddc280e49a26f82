"""Bytes of one file -> gray uint8 pixels of one radiograph; errors as values.

Files are told by their content, never by their name. Whatever the bytes, `decode` returns a
`Decoded`: pixels, or one sentence that says why there are none. No patient data leave this room:
reasons and warnings are fixed sentences, never the text of a library's error, which may quote
the header.
"""

import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder

from cxr.errors import SettingsError

MAX_PIXELS = 80_000_000
"""Larger pictures are refused from their header. A 14 x 17 inch film scanned at 50 um has 61
million pixels, the largest digital detectors (43 cm at 100 um) 18 million. Below the 89 million
from which Pillow warns, so Pillow's own limit never speaks first."""

MIN_SIDE_PX = 64
"""Smaller pictures are thumbnails or icons, not radiographs."""

_MAX_JPEG_SCANS = 100
# A progressive JPEG has about ten scans. Each scan passes over the whole picture and can be a few
# bytes long, so a small file with thousands of them would keep a core busy for hours.

_MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 16 * 2**20
# A deflated DICOM file may grow to the largest accepted picture of 16 bits and its header.

_COLOR_SPREAD = 32
_COLOR_SHARE = 0.05
# A color photograph: channels more than 32 levels apart in over 5 % of the pixels. All 5,239 RGB
# files at hand (Kermany et al. 2018) have equal channels everywhere: spread 0. Three photographs
# that come with scikit-learn and matplotlib have shares of 0.34, 0.51 and 0.79. The gap is for
# tinted film and for small colored marks.

_MIN_CONTRAST = 16
# Nearly constant: the 1st and 99th percentiles of the gray levels lie less than 16 levels apart.
# The flattest of 5,472 radiographs at hand has 85.

_WINDOWLESS_PERCENTILES = (0.5, 99.5)
# Robust ends of the scale of a DICOM picture without a window: burnt-in markers and dead pixels
# are a fraction of a percent.

_PILLOW_FORMATS = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "bmp": "BMP"}

Status = Literal["ok", "refused", "unreadable"]


@dataclass(frozen=True, eq=False)
class Decoded:
    """One file's picture, or why there is none."""

    pixels: NDArray[np.uint8] | None
    """Gray levels 0-255, (H, W), bone bright; `None` unless `status` is `"ok"`."""
    status: Status
    """`"refused"`: a sound file, but not a radiograph of a chest. `"unreadable"`: no picture."""
    reason: str
    """Empty when ok, otherwise one short sentence without patient data."""
    warnings: tuple[str, ...]
    """What was assumed, such as `"no window in the file"`; without patient data."""
    width: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    height: int
    """Of the original as displayed, in pixels; 0 if unknown."""
    format: str
    """`"jpeg"`, `"png"`, `"tiff"`, `"bmp"`, `"dicom"`, or empty if unknown."""


def decode(data: bytes, *, min_px: int = 224, any_body_part: bool = False) -> Decoded:
    """Decode one radiograph from the bytes of its file.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where both sides stay at `min_px` or more
    (libjpeg scales inside its inverse DCT), so `pixels` may be smaller than the original, but no
    side is below `min_px` unless the original's is. EXIF orientation is applied, as every viewer
    does. A file that is cut short is unreadable, never a partial picture.

    Args:
        data: the whole file.
        min_px: side of the square that the caller will resize to.
        any_body_part: accept DICOM files whose header names another body part than the chest.

    Returns:
        The picture or the reason why not; for bytes of any kind, an exception never.

    Raises:
        SettingsError: `min_px` is below 1.
    """
    if min_px < 1:
        raise SettingsError(f"min_px {min_px}: must be at least 1.")
    facts = _Facts(_sniff(data))
    status: Status
    try:
        with _NO_WARNINGS:
            if facts.format == "dicom":
                with _NO_LOGS:
                    pixels = _decode_dicom(data, facts, any_body_part)
            else:
                pixels = _decode_raster(data, facts, min_px)
        _refuse_flat(pixels)
    except _RejectedError as rejected:
        status, reason = rejected.status, rejected.reason
    except Exception as error:
        # The class only: the text may quote the header, and with it the patient.
        status = "unreadable"
        reason = f"damaged or cut short {facts.format} file ({type(error).__name__})"
    except BaseException as error:
        # pylibjpeg-rle is written in Rust, whose panics are no `Exception`.
        if type(error).__name__ != "PanicException":
            raise
        status, reason = "unreadable", f"damaged {facts.format} file (PanicException)"
    else:
        return facts.decoded(pixels, "ok", "")
    return facts.decoded(None, status, reason)


class _RejectedError(Exception):
    """The verdict on a file, on its way up to `decode`."""

    def __init__(self, status: Literal["refused", "unreadable"], reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


@dataclass
class _Facts:
    """What is known of a file so far; reported with any verdict."""

    format: str
    width: int = 0
    height: int = 0
    warnings: list[str] = field(default_factory=list)

    def decoded(self, pixels: NDArray[np.uint8] | None, status: Status, reason: str) -> Decoded:
        warned = tuple(dict.fromkeys(self.warnings))
        return Decoded(pixels, status, reason, warned, self.width, self.height, self.format)

    def set_size(self, width: int, height: int) -> None:
        """Record the size from the header, and refuse it before anything is allocated."""
        self.width, self.height = width, height
        if width * height > MAX_PIXELS:
            limit = MAX_PIXELS // 1_000_000
            raise _RejectedError(
                "refused", f"{width} x {height} pixels; the limit is {limit} million"
            )
        if min(width, height) < MIN_SIDE_PX:
            raise _RejectedError(
                "refused", f"{width} x {height} pixels; a side is below {MIN_SIDE_PX}"
            )


class _WhileAnyThread:
    """A change to the state of the whole process, in force while any thread is inside.

    The first thread in makes the change, the last one out undoes it: the standard
    `warnings.catch_warnings` restores the wrong state when two threads leave in another order
    than they came.
    """

    def __init__(self, change: Callable[[ExitStack], None]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._depth = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._change(self._undo)
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._undo.close()


def _silence_warnings(undo: ExitStack) -> None:
    undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    # Other libraries switch this on for the whole process.
    undo.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def _silence_logs(undo: ExitStack) -> None:
    for name in ("pydicom", "pylibjpeg", "openjpeg"):
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)


# Warnings and logs may quote the header. Logs apart, for DICOM alone: setting a level makes
# `logging` forget what it knows of every logger.
_NO_WARNINGS = _WhileAnyThread(_silence_warnings)
_NO_LOGS = _WhileAnyThread(_silence_logs)


def _sniff(data: bytes) -> str:
    """The format that the first bytes announce, empty if none that we read."""
    # DICOM first: its preamble of 128 bytes may imitate a TIFF header.
    if data[128:132] == b"DICM" or _is_bare_dicom(data):
        return "dicom"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if data.startswith(b"BM"):
        return "bmp"
    return ""


def _is_bare_dicom(data: bytes) -> bool:
    """Whether the bytes plausibly are a DICOM data set that lacks preamble and `DICM`.

    Such a file starts with an element of group 0002 or 0008: explicit with a two-letter value
    representation, or implicit with the small length of a code, date or identifier.
    """
    if len(data) < 16:
        return False
    group, element, length = struct.unpack_from("<HHI", data)
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    if data[4:6] in (b"UL", b"OB", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"AE"):
        return True
    return bool(group == 0x0008 and element <= 0x0020 and length <= 128)


# --- JPEG, PNG, TIFF, BMP ------------------------------------------------------------------------


def _decode_raster(data: bytes, facts: _Facts, min_px: int) -> NDArray[np.uint8]:
    """Decode with Pillow; gray levels 0-255, uint8, (H, W)."""
    if not data:
        raise _RejectedError("unreadable", "the file is empty")
    if not facts.format:
        raise _RejectedError("unreadable", "not a JPEG, PNG, TIFF, BMP or DICOM file")
    if facts.format == "png":
        _check_png_chunks(data)
    try:
        image = Image.open(BytesIO(data), formats=[_PILLOW_FORMATS[facts.format]])
    except Image.DecompressionBombError:
        limit = MAX_PIXELS // 1_000_000
        raise _RejectedError("refused", f"more than {limit} million pixels") from None
    except UnidentifiedImageError:
        raise _RejectedError("unreadable", f"the {facts.format} header cannot be read") from None
    with image:
        facts.set_size(*image.size)
        if image.mode not in _MODES:
            raise _RejectedError("refused", "neither 8-bit, 16-bit gray nor RGB pixels")
        if facts.format == "jpeg":
            if "progressive" in image.info and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
                raise _RejectedError("refused", f"a JPEG with more than {_MAX_JPEG_SCANS} scans")
            # Chroma is decoded too, at the reduced size, to tell color photographs: on gray
            # content, RGB to L gives back the luma plane exactly.
            image.draft(None, (min_px, min_px))
        elif facts.format == "tiff":
            _check_tiff_strips(image)
        image.load()
        pixels = _to_gray(image, facts)
        if facts.format == "jpeg":
            _check_jpeg_tail(pixels, facts.height)
        if facts.format != "tiff":  # Pillow has turned a TIFF already.
            pixels = _oriented(pixels, image, facts)
        if facts.format != "jpeg" and _has_second_page(image):
            facts.warnings.append("first of several pages")
    return np.ascontiguousarray(pixels)


_MODES = ("L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I;16", "I;16L", "I;16B")
_TIFF_PHOTOMETRIC = 262
# Not among the modes: bilevel, CMYK, Lab, and 32-bit or float levels, which have no defined white.


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
            raise _RejectedError("unreadable", "damaged png file: a checksum is wrong")
        if name == b"IEND":
            return
        at = end + 4
    raise _RejectedError("unreadable", "the png file is cut short")


def _check_tiff_strips(image: Image.Image) -> None:
    """Reject a TIFF whose strips or tiles leave a part of the picture out: Pillow leaves it black.

    Compressed ones are a single tile to Pillow; libtiff itself misses the strips.
    """
    covered = 0
    for _, (left, top, right, bottom), *_ in getattr(image, "tile", ()):
        covered += (right - left) * (bottom - top)
    if covered < image.width * image.height:
        raise _RejectedError("unreadable", "the tiff file lacks a part of the picture")


def _check_jpeg_tail(pixels: NDArray[np.uint8], height: int) -> None:
    """Reject a JPEG whose data ended early although its end marker is in place.

    libjpeg then fills the blocks that are missing with the level 128 and only notes a warning,
    which Pillow does not pass on. No radiograph at hand has a last row of blocks of that level
    (at most 5 % of it). Not seen: a loss within the last row, and missing refinements of a
    progressive JPEG.
    """
    last_row = ((height - 1) % 8 + 1) * pixels.shape[0] // height
    if (pixels[-max(1, last_row) :] == 128).all():
        raise _RejectedError("unreadable", "the jpeg data end before the picture does")


def _to_gray(image: Image.Image, facts: _Facts) -> NDArray[np.uint8]:
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
    # 64 x 64 single pixels tell a share of 5 % to within 1 %.
    sample = np.asarray(image.resize((64, 64), resample=Image.Resampling.NEAREST))
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    # Fifteen times as fast as a maximum over the last axis.
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    colored = highest - lowest > _COLOR_SPREAD
    if colored.mean() > _COLOR_SHARE:
        raise _RejectedError("refused", "a color picture, not a radiograph")
    if colored.any():
        facts.warnings.append("colored marks taken as gray")
    return np.array(image.convert("L"))


def _from_16_bits(image: Image.Image, facts: _Facts) -> NDArray[np.uint8]:
    """Scale 16-bit levels by the bits in use, so that 12-bit levels in 16 bits do not go black.

    The brightest pixel tells the bits: levels up to 4095 are divided by 4095, not by 65535.
    """
    levels = np.asarray(image)
    bits = max(8, int(levels.max()).bit_length())
    if bits < 16:
        facts.warnings.append(f"{bits} of 16 bits in use; scaled by {2**bits - 1}")
    table = np.arange(2**bits) / (2**bits - 1)
    if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:
        table = 1 - table  # White is zero, which Pillow undoes at 8 bits only.
    pixels: NDArray[np.uint8] = _as_bytes(table)[levels]
    return pixels


def _has_second_page(image: Image.Image) -> bool:
    # Not `n_frames`, which walks through all pages of a file that may claim millions.
    try:
        image.seek(1)
    except (EOFError, AttributeError):
        return False
    except Exception:
        return True
    return True


def _oriented(pixels: NDArray[np.uint8], image: Image.Image, facts: _Facts) -> NDArray[np.uint8]:
    """Apply the EXIF orientation, such as of a film photographed with a phone."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Damaged EXIF data say nothing about the pixels.
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


# --- DICOM ---------------------------------------------------------------------------------------

_TAGS: list[Any] = [
    "SOPClassUID",
    "Modality",
    "PresentationIntentType",
    "BodyPartExamined",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
]
# All that is kept of the header: nothing that names a patient.

_DEFLATED = "1.2.840.10008.1.2.1.99"
_DICOMDIR = "1.2.840.10008.1.3.10"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_NATIVE = (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG)
_RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))

_RADIOGRAPHY = ("CR", "DX", "DR", "RG")
# Computed radiography, digital radiography (DR: its retired code) and scanned film.

_CHEST = re.compile("CHEST|THORAX|TORAX|LUNG")
# In any part of the name: CHEST, CHEST PA, CHESTABDOMEN (infants). Not ribs or thoracic spine,
# which are exposed and angled for bone.

# The values that a reason may quote. Any other is not quoted: a wrongly filled tag may hold a name.
_MODALITIES = (
    "CT ECG ES IO IVUS MG MR NM OCT OP OPT OT PR PT PX RF RTDOSE RTIMAGE RTPLAN RTSTRUCT SC SEG "
    "SM SR US XA XC"
)
_BODY_PARTS = (
    "ABDOMEN ANKLE ARM BREAST CALCANEUS CERVICALSPINE CLAVICLE COCCYX CSPINE ELBOW EXTREMITY EYE "
    "FEMUR FINGER FOOT FOREARM HAND HEAD HIP HUMERUS JAW KNEE LEG LSPINE LUMBARSPINE NECK PELVIS "
    "RIB RIBS SACRUM SCAPULA SHOULDER SKULL SPINE STERNUM THIGH THORACICSPINE THUMB TIBIA TOE "
    "TSPINE WRIST"
)


def _decode_dicom(data: bytes, facts: _Facts, any_body_part: bool) -> NDArray[np.uint8]:
    """Decode the first frame; gray levels 0-255, uint8, (H, W)."""
    header = _read_header(data)
    if header.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
        raise _RejectedError("refused", "a DICOMDIR index; its references are not followed")
    rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
    facts.width, facts.height = columns, rows
    _refuse_other_views(header, facts, any_body_part)
    if "PixelData" not in header or not rows or not columns:
        raise _RejectedError("unreadable", "the DICOM file holds no pixel data")
    facts.set_size(columns, rows)
    stored = _read_first_frame(header, rows, columns, facts)
    return _shown(stored, header, facts)


def _read_header(data: bytes) -> Any:
    """The data set with `_TAGS` only and a transfer syntax, inflated within bounds."""
    syntax, start = _transfer_syntax(data)
    if syntax == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflater.decompress(data[start:], _MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            megabytes = _MAX_INFLATED_BYTES // 10**6
            raise _RejectedError("refused", f"inflates to more than {megabytes} MB")
        if not inflater.eof:
            raise _RejectedError("unreadable", "the deflated DICOM file is cut short")
        data, syntax = inflated, _EXPLICIT_LITTLE
    elif _DEFLATED.encode() in data:
        # pydicom would inflate it without a bound.
        raise _RejectedError("unreadable", "the DICOM file's meta information is damaged")
    header: Any = pydicom.dcmread(BytesIO(data), force=True, specific_tags=_TAGS)
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        guess = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
        header.file_meta.TransferSyntaxUID = syntax or guess
    return header


def _transfer_syntax(data: bytes) -> tuple[str, int]:
    """The transfer syntax in the file meta information, and the offset of the data set after it.

    Source: DICOM PS3.10 section 7.1: group 0002, always explicit little endian.
    """
    syntax = ""
    at = 132 if data[128:132] == b"DICM" else 0
    while at + 12 <= len(data) and data[at : at + 2] == b"\x02\0":
        element = struct.unpack_from("<H", data, at + 2)[0]
        if data[at + 4 : at + 6] in (b"OB", b"UN", b"UT", b"SQ", b"OW"):
            value, length = at + 12, struct.unpack_from("<I", data, at + 8)[0]
        else:
            value, length = at + 8, struct.unpack_from("<H", data, at + 6)[0]
        if element == 0x0010:
            syntax = data[value : value + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = value + length
    return syntax, at


def _refuse_other_views(header: Dataset, facts: _Facts, any_body_part: bool) -> None:
    """Refuse what the header says is no gray radiograph of a chest."""
    modality = _code(header, "Modality")
    if not modality:
        facts.warnings.append("no modality in the file")
    elif modality not in _RADIOGRAPHY:
        named = modality if modality in _MODALITIES.split() else "of another kind"
        raise _RejectedError("refused", f"modality {named}, not CR, DX, DR or RG")
    body_part = _code(header, "BodyPartExamined")
    if body_part in ("", "UNKNOWN", "NONE"):
        facts.warnings.append("no body part in the file")
    elif not _CHEST.search(body_part) and not any_body_part:
        named = body_part if body_part in _BODY_PARTS.split() else "another"
        raise _RejectedError("refused", f"body part {named}, not the chest")
    color = (_whole(header, "SamplesPerPixel") or 1) > 1
    photometric = _code(header, "PhotometricInterpretation")
    if color or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise _RejectedError("refused", "a color picture, not a radiograph")
    if not photometric and "PixelData" in header:
        facts.warnings.append("no photometric interpretation in the file; taken as bone bright")
    if _code(header, "PresentationIntentType") == "FORPROCESSING":
        facts.warnings.append("raw detector levels, not processed for viewing")


def _read_first_frame(
    header: Any, rows: int, columns: int, facts: _Facts
) -> NDArray[np.integer[Any]]:
    """Stored values of the first frame, (rows, columns), 8 or 16 bits, signed or not."""
    bits = _whole(header, "BitsAllocated")
    bits_stored = _whole(header, "BitsStored") or bits
    if bits not in (8, 16) or not 1 <= bits_stored <= bits:
        raise _RejectedError("refused", "neither 8 nor 16 bits allocated for a pixel")
    header.BitsStored = bits_stored
    header.PixelRepresentation = 1 if _whole(header, "PixelRepresentation") == 1 else 0
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = _code(header, "PhotometricInterpretation") or "MONOCHROME2"
    frames = max(1, _whole(header, "NumberOfFrames"))
    header.NumberOfFrames = frames
    if frames > 1:
        facts.warnings.append(f"first of {frames} frames")

    syntax = str(header.file_meta.TransferSyntaxUID)
    if syntax in _NATIVE:
        if len(header.PixelData) < frames * rows * columns * bits // 8:
            raise _RejectedError("unreadable", "less pixel data than the header claims")
    elif syntax in (*_JPEG, *_JPEG_2000, _RLE):
        frame = _first_code_stream(header, syntax, rows, columns, frames)
        # Alone, so that what is decoded is what was checked.
        header.PixelData = encapsulate([frame])
        header.NumberOfFrames = 1
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            header.pop(keyword, None)
    else:
        raise _RejectedError("unreadable", "a transfer syntax that cannot be decoded")
    try:
        stored, _ = get_decoder(syntax).as_array(header, index=0)
    except Exception as error:
        kind = type(error).__name__
        raise _RejectedError("unreadable", f"the pixel data cannot be decoded ({kind})") from None
    if stored.shape != (rows, columns) or stored.dtype.kind not in "iu" or stored.itemsize > 2:
        raise _RejectedError("unreadable", "header and pixel data disagree on the size")
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _first_code_stream(header: Any, syntax: str, rows: int, columns: int, frames: int) -> bytes:
    """The compressed bytes of the first frame, checked to be whole and of the header's size.

    The decoders believe the code stream and not the header: a bomb may hide there.
    """
    offsets = None
    if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
        offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    frame = get_frame(header.PixelData, 0, number_of_frames=frames, extended_offsets=offsets)
    if syntax == _RLE:  # Carries no size of its own.
        return frame
    if syntax in _JPEG_2000:
        # Past the boxes of a JP2 file, which DICOM forbids and some write: pydicom 3.0.2 loops
        # forever over a box of length 0.
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
        frame = frame[max(0, start) :]
    elif frame.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise _RejectedError("refused", f"a JPEG with more than {_MAX_JPEG_SCANS} scans")
    if _coded_shape(frame) != (rows, columns, 1):
        raise _RejectedError("unreadable", "header and pixel data disagree on the size")
    frame = frame.rstrip(b"\0\xff")  # Padding.
    if not frame.endswith(b"\xff\xd9"):
        raise _RejectedError("unreadable", "the pixel data are cut short")
    return frame


def _coded_shape(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and components in the header of a code stream; zeros if there is none.

    Source: ITU-T T.81 table B.1 (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000).
    """
    if frame.startswith(b"\xff\x4f\xff\x51") and len(frame) >= 42:
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left, struct.unpack_from(">H", frame, 40)[0]
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return rows, columns, components
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return 0, 0, 0


def _shown(stored: NDArray[np.integer[Any]], header: Any, facts: _Facts) -> NDArray[np.uint8]:
    """Stored values as they are meant to be shown: gray levels 0-255, uint8, bone bright.

    Modality LUT or rescaling, then VOI LUT or window, then inversion of MONOCHROME1 (DICOM PS3.4
    annex N.2). All are worked out once for each of the at most 65,536 values that a pixel can
    have, then looked up.
    """
    unsigned = np.dtype(f"u{stored.itemsize}")
    values = np.arange(256**stored.itemsize).astype(unsigned).view(stored.dtype).astype(np.float64)
    values = _modality(values, header, facts)
    index = stored.view(unsigned)
    gray = _voi(values, header, facts)
    if gray is not None and _contrast(_as_bytes(gray)[index]) < _MIN_CONTRAST:
        facts.warnings.append("the window in the file shows nothing, ignored")
        gray = None
    if gray is None:
        gray = _windowless(values, index, stored, header)
    if header.PhotometricInterpretation == "MONOCHROME1":
        gray = 1 - gray
    pixels: NDArray[np.uint8] = _as_bytes(gray)[index]
    return pixels


def _modality(values: NDArray[np.float64], header: Any, facts: _Facts) -> NDArray[np.float64]:
    try:
        if header.get("ModalityLUTSequence"):
            return _look_up(values, header.ModalityLUTSequence[0], header)[0]
        slope, intercept = _number(header, "RescaleSlope"), _number(header, "RescaleIntercept")
        if slope is not None and intercept is not None:
            if slope != 0 and np.isfinite(slope) and np.isfinite(intercept):
                return values * slope + intercept
            facts.warnings.append("impossible rescaling in the file, ignored")
    except Exception:
        facts.warnings.append("damaged modality table in the file, ignored")
    return values


def _voi(values: NDArray[np.float64], header: Any, facts: _Facts) -> NDArray[np.float64] | None:
    """Brightness 0-1 of each value by the first VOI LUT or else window; `None` without either."""
    try:
        if header.get("VOILUTSequence"):
            levels, white = _look_up(values, header.VOILUTSequence[0], header)
            return np.clip(levels / white, 0, 1)
    except Exception:
        facts.warnings.append("damaged VOI table in the file, ignored")
    center, width = _number(header, "WindowCenter"), _number(header, "WindowWidth")
    if center is None or width is None:
        facts.warnings.append("no window in the file")
        return None
    function = _code(header, "VOILUTFunction") or "LINEAR"
    # PS3.3 section C.11.2.1.2: at least 1 for LINEAR, above 0 for the others.
    possible = width >= 1 if function == "LINEAR" else width > 0
    if not (possible and np.isfinite(width) and np.isfinite(center)):
        facts.warnings.append("impossible window in the file, ignored")
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _windowless(
    values: NDArray[np.float64],
    index: NDArray[np.unsignedinteger[Any]],
    stored: NDArray[np.integer[Any]],
    header: Any,
) -> NDArray[np.float64]:
    """Brightness 0-1 of each value by the range that the picture itself uses."""
    if stored.dtype == np.uint8 and np.array_equal(values, np.arange(256)):
        return values / 255  # Eight bits are ready to be shown, like a JPEG's.
    present = _thinned(index, 256).ravel()
    padding = _whole(header, "PixelPaddingValue")
    if "PixelPaddingValue" in header:
        kept = present[present != padding % 256**stored.itemsize]
        present = kept if kept.size else present
    low, high = np.percentile(values[present], _WINDOWLESS_PERCENTILES)
    gray: NDArray[np.float64] = (values - low) / max(float(high - low), 1e-9)
    return gray.clip(0, 1)


def _look_up(
    values: NDArray[np.float64], item: Any, header: Any
) -> tuple[NDArray[np.float64], float]:
    """Send values through a LUT of a sequence; the results and their largest possible level.

    Source: DICOM PS3.3 sections C.11.1.1 and C.11.2.1.1: entries, first value mapped, bits.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if first >= 2**15 and header.PixelRepresentation == 1:
        first -= 2**16
    raw = item.LUTData
    if isinstance(raw, bytes):
        little = header.original_encoding[1] is not False
        width = 1 if bits <= 8 and len(raw) < 2 * entries else 2
        raw = np.frombuffer(raw, dtype=f"{'<' if little else '>'}u{width}")
    levels = np.asarray(raw, dtype=np.float64)[:entries]
    if levels.size < entries or not 1 <= bits <= 16:
        raise ValueError("a LUT shorter than its descriptor says")
    index = np.clip(values - first, 0, entries - 1).astype(np.intp)
    return levels[index], 2.0**bits - 1


def _code(header: Any, keyword: str) -> str:
    """A code string in capitals, letters and digits only; empty if absent or damaged."""
    try:
        return re.sub(r"\W", "", str(header.get(keyword) or "")).upper()
    except Exception:
        return ""


def _whole(header: Any, keyword: str) -> int:
    """A whole number, 0 if absent or damaged."""
    try:
        return int(header.get(keyword) or 0)
    except Exception:
        return 0


def _number(header: Any, keyword: str) -> float | None:
    """The first of one or more numbers, `None` if absent, NaN if damaged."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return None
        return float(value if isinstance(value, str | float | int) else value[0])
    except Exception:
        return float("nan")


# --- gray levels ---------------------------------------------------------------------------------


def _as_bytes(brightness: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(brightness * 255).astype(np.uint8)


def _thinned(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Every n-th pixel of every n-th row: at least about `side` x `side` of them."""
    step = max(1, min(pixels.shape) // side)
    return pixels[::step, ::step]


def _contrast(pixels: NDArray[np.uint8]) -> int:
    """Gray levels between the 1st and the 99th percentile."""
    counts = np.bincount(_thinned(pixels, 64).ravel(), minlength=256).cumsum()
    low, high = np.searchsorted(counts, counts[-1] * np.array([0.01, 0.99]))
    return int(high - low)


def _refuse_flat(pixels: NDArray[np.uint8]) -> None:
    if _contrast(pixels) < _MIN_CONTRAST:
        raise _RejectedError("refused", "a nearly constant picture")
