"""DICOM, by pydicom: the header, what it is refused for, and the first frame's stored values."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.tag import Tag

from cxr.images.decoding.bits import read_cells
from cxr.images.decoding.codestream import check_rle, checked
from cxr.images.decoding.gray import to_gray
from cxr.images.decoding.presentation import to_display
from cxr.images.decoding.tags import code, identifier, whole, years
from cxr.images.decoding.verdict import MAX_JPEG_SCANS, MAX_PIXELS, Facts, RejectedError, Uids
from cxr.images.decoding.views import (
    refuse_other_body_parts,
    refuse_other_modalities,
    refuse_other_views,
)

# The largest accepted image of 16 bits, and its header.
MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 16 * 2**20

ADULT_YEARS = 18
"""The age from which a patient is an adult; the public training set is of children."""

# All that is read of the header. Texts are compared with fixed lists and never kept, and of the age
# only whether it is an adult's; the three instance identifiers go to the caller.
_TAGS = [
    Tag(keyword)
    for keyword in (
        "SpecificCharacterSet",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "Modality",
        "PresentationIntentType",
        "PatientAge",
        "StudyDescription",
        "SeriesDescription",
        "AnatomicRegionSequence",
        "BodyPartExamined",
        "ProtocolName",
        "AcquisitionDeviceProcessingDescription",
        "ViewPosition",
        "PatientOrientation",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "RescaleIntercept",
        "RescaleSlope",
        "ModalityLUTSequence",
        "VOILUTSequence",
        "RedPaletteColorLookupTableDescriptor",
        "GreenPaletteColorLookupTableDescriptor",
        "BluePaletteColorLookupTableDescriptor",
        "RedPaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
        "ViewCodeSequence",
        "PresentationLUTShape",
        "PixelData",
    )
]

DEFLATED = "1.2.840.10008.1.2.1.99"

_DICOMDIR = "1.2.840.10008.1.3.10"

IMPLICIT_LITTLE = "1.2.840.10008.1.2"

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"

EXPLICIT_BIG = "1.2.840.10008.1.2.2"

NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG)

_RLE = "1.2.840.10008.1.2.5"

_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))

_LOSSY_JPEG = _JPEG[:2]

_JPEG_LS = _JPEG[-2:]

_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))

_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def decode_dicom(
    data: bytes, facts: Facts, any_body_part: bool, any_view: bool
) -> NDArray[np.uint8]:
    """Decode the first frame; gray levels 0-255, uint8, (H, W)."""
    header = _read_header(data)
    rows, columns = whole(header, "Rows"), whole(header, "Columns")
    facts.width, facts.height = columns, rows
    facts.uids = Uids(
        identifier(header, "StudyInstanceUID"),
        identifier(header, "SeriesInstanceUID"),
        identifier(header, "SOPInstanceUID"),
    )
    refuse_other_modalities(header, facts)
    refuse_other_body_parts(header, facts, any_body_part)
    refuse_other_views(header, facts, any_view)
    if (years(header) or 0) >= ADULT_YEARS:
        facts.warnings.append("an adult, by the age in the file")
    samples = whole(header, "SamplesPerPixel") or 1
    photometric = code(header, "PhotometricInterpretation")
    in_color = samples == 3 and photometric in _COLOR
    if not in_color and (
        samples != 1 or photometric not in ("", "MONOCHROME1", "MONOCHROME2", "PALETTECOLOR")
    ):
        raise RejectedError("refused", "a color picture, not a radiograph")
    if code(header, "PresentationIntentType") == "FORPROCESSING":
        facts.warnings.append("raw detector levels, not processed for viewing")
    if "PixelData" not in header or not rows or not columns:
        raise RejectedError("unreadable", "the DICOM file holds no pixel data")
    facts.set_size(columns, rows)
    if not photometric:
        facts.warnings.append("no photometric interpretation in the file; taken as bone bright")
    header.SamplesPerPixel = samples
    cells, coded_bits, lossy = _decode_first_frame(header, rows, columns, facts)
    stored = read_cells(cells, coded_bits, lossy, header, facts)
    if in_color:
        rgb = (stored >> max(0, header.BitsStored - 8)).astype(np.uint8)
        return to_gray(Image.fromarray(rgb), facts)
    if photometric == "PALETTECOLOR":
        return to_gray(Image.fromarray(_colored(stored, header)), facts)
    return to_display(stored, header, facts)


def _colored(stored: NDArray[np.integer[Any]], header: Any) -> NDArray[np.uint8]:
    """The colors of a palette, RGB, uint8, (H, W, 3)."""
    try:
        rgb = apply_color_lut(stored, header)
    except Exception as error:
        name = type(error).__name__
        raise RejectedError("unreadable", f"the palette cannot be decoded ({name})") from None
    # Palettes of 8 bits in words of 16 often say 16.
    levels: NDArray[np.uint8] = (rgb >> (8 if rgb.max() > 255 else 0)).astype(np.uint8)
    return levels


def _read_header(data: bytes) -> Any:
    """The data set with `_TAGS` only and a transfer syntax."""
    stream, syntax = open_data_set(data)
    # Not `dcmread`, which decides by itself whether and where there is meta information.
    header: Any = read_dataset(
        stream, syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG, specific_tags=list(_TAGS)
    )
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    return header


def open_data_set(data: bytes) -> tuple[BytesIO, str]:
    """A stream at the start of a file's data set, inflated within limits; its transfer syntax."""
    meta, start = read_meta(data)
    if meta.get(_MEDIA_STORAGE) == _DICOMDIR:
        raise RejectedError("refused", "a DICOMDIR index; its references are not followed")
    syntax = meta.get(TRANSFER_SYNTAX, "")
    if syntax == DEFLATED:
        # Not by pydicom, which would inflate without a limit.
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflater.decompress(data[start:], MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            megabytes = MAX_INFLATED_BYTES // 10**6
            raise RejectedError("refused", f"inflates to more than {megabytes} MB")
        if not inflater.eof:
            raise RejectedError("unreadable", "the deflated DICOM file is cut short")
        data, syntax, start = inflated, EXPLICIT_LITTLE, 0
    syntax = actual_syntax(data, start, syntax)
    stream = BytesIO(data)
    stream.seek(start)
    return stream, syntax


_MEDIA_STORAGE, TRANSFER_SYNTAX = 0x0002, 0x0010


def read_meta(data: bytes) -> tuple[dict[int, str], int]:
    """The identifiers in the file meta information, and the offset of the data set after it.

    Source: DICOM PS3.10 section 7.1: group 0002, always explicit little endian.
    """
    identifiers = {}
    at = 132 if data[128:132] == b"DICM" else 0
    while at + 12 <= len(data) and data[at : at + 2] == b"\x02\0":
        element = struct.unpack_from("<H", data, at + 2)[0]
        if not data[at + 4 : at + 6].isalpha():  # Implicit, against the standard.
            value, length = at + 8, struct.unpack_from("<I", data, at + 4)[0]
        elif data[at + 4 : at + 6] in (b"OB", b"UN", b"UT", b"SQ", b"OW"):
            value, length = at + 12, struct.unpack_from("<I", data, at + 8)[0]
        else:
            value, length = at + 8, struct.unpack_from("<H", data, at + 6)[0]
        if element in (_MEDIA_STORAGE, TRANSFER_SYNTAX):
            written = data[value : value + length].rstrip(b"\0 ")
            identifiers[element] = written.decode("ascii", "replace")
        at = value + length
    return identifiers, at


def actual_syntax(data: bytes, start: int, syntax: str) -> str:
    """The transfer syntax of a data set: the native one that its first element shows, if any.

    Groups are below 0x0100 where a data set starts, so the zero of the two bytes comes last in
    little endian and first in big endian.

    Args:
        data: bytes of the file.
        start: where the data set begins.
        syntax: that the file names, or empty; one that is not native is believed.
    """
    if syntax not in ("", *NATIVE) or len(data) < start + 8:
        return syntax
    if not data[start + 4 : start + 6].isalpha():
        return IMPLICIT_LITTLE
    return EXPLICIT_BIG if data[start] == 0 and data[start + 1] else EXPLICIT_LITTLE


def _decode_first_frame(
    header: Any, rows: int, columns: int, facts: Facts
) -> tuple[NDArray[np.unsignedinteger[Any]], int, bool]:
    """Pixel cells of the first frame, their bits in the code stream, and whether it is lossy.

    The cells are unsigned, 8 or 16 bits, (H, W) or, of RGB, (H, W, 3).
    """
    samples = header.SamplesPerPixel
    bits = whole(header, "BitsAllocated")
    header.BitsStored = whole(header, "BitsStored") or bits
    if bits not in (8, 16) or not 1 <= header.BitsStored <= bits:
        raise RejectedError("refused", "neither 8 nor 16 bits allocated for a pixel")
    signed = samples == 1 and whole(header, "PixelRepresentation") == 1
    header.PixelRepresentation = int(signed)
    header.PlanarConfiguration = 1 if whole(header, "PlanarConfiguration") == 1 else 0
    photometric = code(header, "PhotometricInterpretation") or "MONOCHROME2"
    header.PhotometricInterpretation = photometric.replace("PALETTE", "PALETTE ")
    frames = max(1, whole(header, "NumberOfFrames"))
    header.NumberOfFrames = frames
    if frames > 1:
        facts.warnings.append(f"first of {frames} frames")

    syntax = str(header.file_meta.TransferSyntaxUID)
    stored = header.BitsStored
    lossy = False
    if syntax in NATIVE:
        if header["PixelData"].is_undefined_length:
            raise RejectedError(
                "unreadable", "compressed, and the transfer syntax does not say how"
            )
        length = rows * columns * bits // 8 * (2 if photometric == "YBR_FULL_422" else samples)
        if len(header.PixelData) < frames * length:
            raise RejectedError("unreadable", "less pixel data than the header claims")
    elif syntax in (*_JPEG, *_JPEG_2000, _RLE):
        frame = _first_code_stream(_first_frame(header), syntax, rows, columns, samples)
        if syntax == _RLE:
            check_rle(frame, rows * columns)
        else:
            frame = checked(frame, facts)
        # Alone, so that what is decoded is what was checked.
        header.PixelData = encapsulate([frame])
        header.NumberOfFrames = 1
        # The header is often wrong where a device has compressed afterwards.
        bits, lossy = _coded_bits(frame, syntax, samples)
        if not 1 <= bits <= 16:
            raise RejectedError(
                "unreadable", "header and pixel data disagree on the bits of a pixel"
            )
        if bits > header.BitsAllocated:
            facts.warnings.append(f"{bits} bits in the pixel data, more than the header says")
            stored, header.HighBit = bits, bits - 1
        header.BitsAllocated = 8 if bits <= 8 else 16
    else:
        raise RejectedError("unreadable", "a transfer syntax that cannot be decoded")
    # All bits: which of them count is decided afterwards, alike for all transfer syntaxes.
    header.BitsStored = bits
    try:
        # pydicom would ask one decoder after another until one does not notice the damage.
        plugin = "pyjpegls" if syntax in _JPEG_LS else ""
        decoded, _ = get_decoder(syntax).as_array(header, index=0, decoding_plugin=plugin)
    except Exception as error:
        name = type(error).__name__
        raise RejectedError("unreadable", f"the pixel data cannot be decoded ({name})") from None
    header.BitsStored = stored
    shape = (rows, columns) if samples == 1 else (rows, columns, samples)
    if decoded.shape != shape or decoded.dtype.kind not in "iu" or decoded.itemsize > 2:
        raise RejectedError("unreadable", "header and pixel data disagree on the size")
    decoded = decoded.astype(decoded.dtype.newbyteorder("="), copy=False)
    return decoded.view(f"u{decoded.itemsize}"), bits, lossy


def _first_frame(header: Any) -> bytes:
    """The compressed bytes of the first frame.

    Offset tables are not needed for it and are ignored, since they are often wrong: with one frame,
    all fragments belong to it; with as many fragments as frames, the first fragment does. Source:
    DICOM PS3.5 annex A.4.
    """
    frames, encapsulated = header.NumberOfFrames, header.PixelData
    fragments: list[bytes] = []
    at = 0
    while encapsulated[at : at + 4] == b"\xfe\xff\x00\xe0" and at + 8 <= len(encapsulated):
        end = at + 8 + struct.unpack_from("<I", encapsulated, at + 4)[0]
        if end > len(encapsulated):
            raise RejectedError("unreadable", "the pixel data are cut short")
        fragments.append(encapsulated[at + 8 : end])
        at = end
    if len(fragments) > 1 and not fragments[0].startswith((b"\xff\xd8", b"\xff\x4f")):
        del fragments[0]  # The basic offset table.
    if len(fragments) == frames:
        return fragments[0]
    last = 0
    while frames > 1 and last + 1 < len(fragments):
        if fragments[last].rstrip(b"\0\xff").endswith(b"\xff\xd9"):
            return b"".join(fragments[: last + 1])
        last += 1
    return b"".join(fragments)


def _first_code_stream(frame: bytes, syntax: str, rows: int, columns: int, samples: int) -> bytes:
    """A frame, checked to be a complete code stream of the header's size.

    The decoders use the size in the code stream, not in the header: it may be a bomb.
    """
    if syntax == _RLE:  # Carries no size of its own.
        return frame
    if syntax in _JPEG_2000:
        # Past the boxes of a JP2 file, which DICOM forbids and some write: pydicom 3.0.2 loops
        # forever over a box of length 0.
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
        frame = frame[max(0, start) :]
    elif frame.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise RejectedError("refused", f"a JPEG with more than {MAX_JPEG_SCANS} scans")
    if _coded_shape(frame)[:3] != (rows, columns, samples):
        raise RejectedError("unreadable", "header and pixel data disagree on the size")
    frame = frame.rstrip(b"\0\xff")  # Padding.
    if not frame.endswith(b"\xff\xd9"):
        raise RejectedError("unreadable", "the pixel data are cut short")
    return frame


def _coded_bits(frame: bytes, syntax: str, samples: int) -> tuple[int, bool]:
    """Bits of a sample in a code stream, and whether its values are approximate.

    Source: DICOM PS3.5 annex G (RLE: a segment for each byte); ITU-T T.800 section A.6.1 (JPEG
    2000: the wavelet).
    """
    if syntax == _RLE:
        return 8 * struct.unpack_from("<I", frame)[0] // samples, False
    lossy = syntax in _LOSSY_JPEG
    if syntax in _JPEG_2000:
        style = frame.find(b"\xff\x52", 42, 4096)
        lossy = style > 0 and frame[style + 13] == 0
    return _coded_shape(frame)[3], lossy


def _coded_shape(frame: bytes) -> tuple[int, int, int, int]:
    """Rows, columns, components and bits in the header of a code stream; zeros if there is none.

    Source: ITU-T T.81 table B.1 (JPEG), T.87 annex C (JPEG-LS), T.800 annex A (JPEG 2000).
    """
    if frame.startswith(b"\xff\x4f\xff\x51") and len(frame) > 42:
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        components, bits = struct.unpack_from(">HB", frame, 40)
        return bottom - top, right - left, components, (bits & 0x7F) + 1
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return rows, columns, components, bits
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return 0, 0, 0, 0
