"""DICOM, by pydicom: the header, what it is refused for, and the first frame's stored values."""

import re
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder

from cxr.images.decoding.codestream import check_rle, checked
from cxr.images.decoding.presentation import shown
from cxr.images.decoding.tags import code, whole
from cxr.images.decoding.verdict import MAX_JPEG_SCANS, MAX_PIXELS, Facts, RejectedError

# The largest accepted image of 16 bits, and its header.
MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 16 * 2**20

# All that is kept of the header: nothing that names a patient.
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

_DEFLATED = "1.2.840.10008.1.2.1.99"

_DICOMDIR = "1.2.840.10008.1.3.10"

_IMPLICIT_LITTLE = "1.2.840.10008.1.2"

_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"

_EXPLICIT_BIG = "1.2.840.10008.1.2.2"

_NATIVE = (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG)

_RLE = "1.2.840.10008.1.2.5"

_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))

_JPEG_LS = _JPEG[-2:]

_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))

# Computed radiography, digital radiography (DR: its retired code) and scanned film.
_RADIOGRAPHY = ("CR", "DX", "DR", "RG")

# In any part of the name: CHEST, CHEST PA, CHESTABDOMEN (infants). Not ribs or thoracic spine,
# which are exposed and angled for bone.
_CHEST = re.compile("CHEST|THORAX|TORAX|LUNG")

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


def decode_dicom(data: bytes, facts: Facts, any_body_part: bool) -> NDArray[np.uint8]:
    """Decode the first frame; gray levels 0-255, uint8, (H, W)."""
    header = _read_header(data)
    if header.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
        raise RejectedError("refused", "a DICOMDIR index; its references are not followed")
    rows, columns = whole(header, "Rows"), whole(header, "Columns")
    facts.width, facts.height = columns, rows
    _refuse_other_views(header, facts, any_body_part)
    if "PixelData" not in header or not rows or not columns:
        raise RejectedError("unreadable", "the DICOM file holds no pixel data")
    facts.set_size(columns, rows)
    stored = _read_first_frame(header, rows, columns, facts)
    return shown(stored, header, facts)


def _read_header(data: bytes) -> Any:
    """The data set with `_TAGS` only and a transfer syntax, inflated within limits."""
    syntax, start = _transfer_syntax(data)
    if syntax == _DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflater.decompress(data[start:], MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            megabytes = MAX_INFLATED_BYTES // 10**6
            raise RejectedError("refused", f"inflates to more than {megabytes} MB")
        if not inflater.eof:
            raise RejectedError("unreadable", "the deflated DICOM file is cut short")
        data, syntax = inflated, _EXPLICIT_LITTLE
    elif _DEFLATED.encode() in data:
        # pydicom would inflate it without a limit.
        raise RejectedError("unreadable", "the DICOM file's meta information is damaged")
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


def _refuse_other_views(header: Dataset, facts: Facts, any_body_part: bool) -> None:
    """Refuse a file whose header says that it is no gray radiograph of a chest."""
    modality = code(header, "Modality")
    if not modality:
        facts.warnings.append("no modality in the file")
    elif modality not in _RADIOGRAPHY:
        named = modality if modality in _MODALITIES.split() else "of another kind"
        raise RejectedError("refused", f"modality {named}, not CR, DX, DR or RG")
    body_part = code(header, "BodyPartExamined")
    if body_part in ("", "UNKNOWN", "NONE"):
        facts.warnings.append("no body part in the file")
    elif not _CHEST.search(body_part) and not any_body_part:
        named = body_part if body_part in _BODY_PARTS.split() else "another"
        raise RejectedError("refused", f"body part {named}, not the chest")
    color = (whole(header, "SamplesPerPixel") or 1) > 1
    photometric = code(header, "PhotometricInterpretation")
    if color or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise RejectedError("refused", "a color picture, not a radiograph")
    if not photometric and "PixelData" in header:
        facts.warnings.append("no photometric interpretation in the file; taken as bone bright")
    if code(header, "PresentationIntentType") == "FORPROCESSING":
        facts.warnings.append("raw detector levels, not processed for viewing")


def _read_first_frame(
    header: Any, rows: int, columns: int, facts: Facts
) -> NDArray[np.integer[Any]]:
    """Stored values of the first frame, (rows, columns), 8 or 16 bits, signed or not."""
    bits = whole(header, "BitsAllocated")
    bits_stored = whole(header, "BitsStored") or bits
    if bits not in (8, 16) or not 1 <= bits_stored <= bits:
        raise RejectedError("refused", "neither 8 nor 16 bits allocated for a pixel")
    header.BitsStored = bits_stored
    header.PixelRepresentation = 1 if whole(header, "PixelRepresentation") == 1 else 0
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = code(header, "PhotometricInterpretation") or "MONOCHROME2"
    frames = max(1, whole(header, "NumberOfFrames"))
    header.NumberOfFrames = frames
    if frames > 1:
        facts.warnings.append(f"first of {frames} frames")

    syntax = str(header.file_meta.TransferSyntaxUID)
    if syntax in _NATIVE:
        if len(header.PixelData) < frames * rows * columns * bits // 8:
            raise RejectedError("unreadable", "less pixel data than the header claims")
    elif syntax in (*_JPEG, *_JPEG_2000, _RLE):
        frame = _first_code_stream(header, syntax, rows, columns, frames)
        if syntax == _RLE:
            check_rle(frame, rows * columns)
        else:
            frame = checked(frame, facts)
        # Alone, so that what is decoded is what was checked.
        header.PixelData = encapsulate([frame])
        header.NumberOfFrames = 1
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            header.pop(keyword, None)
    else:
        raise RejectedError("unreadable", "a transfer syntax that cannot be decoded")
    try:
        # pydicom would ask one decoder after another until one does not notice the damage.
        plugin = "pyjpegls" if syntax in _JPEG_LS else ""
        stored, _ = get_decoder(syntax).as_array(header, index=0, decoding_plugin=plugin)
    except Exception as error:
        name = type(error).__name__
        raise RejectedError("unreadable", f"the pixel data cannot be decoded ({name})") from None
    if stored.shape != (rows, columns) or stored.dtype.kind not in "iu" or stored.itemsize > 2:
        raise RejectedError("unreadable", "header and pixel data disagree on the size")
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _first_code_stream(header: Any, syntax: str, rows: int, columns: int, frames: int) -> bytes:
    """The compressed bytes of the first frame, checked to be complete and of the header's size.

    The decoders use the size in the code stream, not in the header: it may be a bomb.
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
    elif frame.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise RejectedError("refused", f"a JPEG with more than {MAX_JPEG_SCANS} scans")
    if _coded_shape(frame) != (rows, columns, 1):
        raise RejectedError("unreadable", "header and pixel data disagree on the size")
    frame = frame.rstrip(b"\0\xff")  # Padding.
    if not frame.endswith(b"\xff\xd9"):
        raise RejectedError("unreadable", "the pixel data are cut short")
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
