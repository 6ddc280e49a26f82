"""DICOM files as devices and archives really write them, compared with their sound twins.

Expected pixels are those of the drawn picture, or follow the standard's formulas in NumPy.
"""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended
from pydicom.sequence import Sequence

from cxr.images.decoding import Decoded, decode
from cxr.images.decoding.anatomy import body_part, projections
from tests.support.radiographs import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000,
    JPEG_BASELINE,
    RLE,
    dicom,
    drawn,
    in_16_bits,
    saved,
)
from tests.test_images_decoding import assert_shows

JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.91"
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
STORED_12 = {"BitsStored": 12, "HighBit": 11}
Pixels = NDArray[Any]
Tags = dict[str, Any]

SHIFTED = "High Bit is not Bits Stored - 1; pixels shifted"
MASKED = "bits above the stored ones, such as an overlay, masked"
DISAGREE = "photometric interpretation and Presentation LUT Shape disagree; "
PADDING = "pixel padding shown as black"
FLAT_WINDOW = "a window or VOI table in the file makes the image nearly constant, ignored"
COLOR = "a color picture, not a radiograph"


def rle(pixels: Pixels, **tags: Any) -> bytes:
    """An RLE file; the tags count for its reader alone."""
    header = pydicom.dcmread(BytesIO(dicom(pixels)))
    header.compress(RLE, generate_instance_uid=False)
    for keyword, value in tags.items():
        setattr(header, keyword, value)
    buffer = BytesIO()
    header.save_as(buffer)
    return buffer.getvalue()


def shown(decoded: Decoded) -> Pixels:
    assert (decoded.status, decoded.reason) == ("ok", "")
    assert decoded.pixels is not None
    return decoded.pixels


# --- which bits are the stored value -------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, RLE, JPEG_2000])
@pytest.mark.parametrize(("bits", "high"), [(12, 15), (12, 13), (10, 15), (14, 15), (8, 15)])
def test_high_bit_above_bits_stored_shows_the_picture(
    bits: int, high: int, syntax: str, photometric: str
) -> None:
    values = in_16_bits(bits)
    if photometric == "MONOCHROME1":
        values = 2**bits - 1 - values
    cells = values << (high - bits + 1)
    cells[40:60, 40:60] |= 1  # An old overlay below the picture.
    tags: Tags = {
        "BitsStored": bits,
        "HighBit": high,
        "PhotometricInterpretation": photometric,
        "WindowCenter": 2 ** (bits - 1),
        "WindowWidth": 2**bits,
    }
    if syntax == RLE:
        data = rle(cells, **tags)
    else:
        frame = encode_array(cells, bits_stored=16) if syntax == JPEG_2000 else None
        data = dicom(cells, syntax, frame, **tags)
    decoded = decode(data)
    assert_shows(decoded, drawn())
    assert decoded.warnings == (SHIFTED,)


def test_signed_values_in_the_high_bits() -> None:
    values = in_16_bits(12).astype(np.int16) - 2048
    data = dicom(values << 4, BitsStored=12, HighBit=15, WindowCenter=0, WindowWidth=4096)
    assert_shows(decode(data), drawn())


def test_high_bit_of_a_code_stream_without_such_bits_is_ignored() -> None:
    frame = encode_array(in_16_bits(12), bits_stored=12)
    decoded = decode(dicom(in_16_bits(12), JPEG_2000, frame, BitsStored=12, HighBit=15, **WINDOW))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ()


@pytest.mark.parametrize(
    ("high", "warning"),
    [
        (15, "High Bit contradicts the pixels, ignored"),
        (3, "impossible High Bit in the file, ignored"),
        (16, "impossible High Bit in the file, ignored"),
    ],
)
def test_wrong_high_bit_is_ignored(high: int, warning: str) -> None:
    decoded = decode(dicom(in_16_bits(12), BitsStored=12, HighBit=high, **WINDOW))
    assert_shows(decoded, drawn())
    assert decoded.warnings == (warning,)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN, RLE, JPEG_2000, JPEG_2000_LOSSY])
@pytest.mark.parametrize(("bits", "plane"), [(12, 12), (12, 15), (10, 11)])
def test_overlays_in_high_bits_are_masked(bits: int, plane: int, syntax: str, signed: bool) -> None:
    values = in_16_bits(bits).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    cells = (values & (2**bits - 1)).astype(np.uint16)
    cells[20:60, 30:90] |= 1 << plane
    tags: Tags = {
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(signed),
        "WindowCenter": 0 if signed else 2 ** (bits - 1),
        "WindowWidth": 2**bits,
    }
    if syntax == RLE:
        data = rle(cells, **tags)
    else:
        compressed = syntax in (JPEG_2000, JPEG_2000_LOSSY)
        frame = encode_array(cells, bits_stored=16) if compressed else None
        data = dicom(cells, syntax, frame, **tags)
    decoded = decode(data)
    assert_shows(decoded, drawn())
    assert decoded.warnings == (MASKED,)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE, JPEG_2000])
@pytest.mark.parametrize("signed", [False, True])
def test_bits_stored_below_those_of_the_picture_are_ignored(syntax: str, signed: bool) -> None:
    cells = (in_16_bits(12) - (2048 if signed else 0)).astype(np.int16 if signed else np.uint16)
    tags: Tags = {"BitsStored": 10, "HighBit": 9, "PixelRepresentation": int(signed)}
    tags |= {"WindowCenter": 0 if signed else 2048, "WindowWidth": 4096}
    if syntax == RLE:
        data = rle(cells, **tags)
    else:
        frame = encode_array(cells, bits_stored=16) if syntax == JPEG_2000 else None
        data = dicom(cells, syntax, frame, **tags)
    decoded = decode(data)
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("Bits Stored contradicts the pixels, ignored",)


def test_copies_of_the_sign_are_no_overlay() -> None:
    values = in_16_bits(12).astype(np.int16) - 2048
    decoded = decode(dicom(values, WindowCenter=0, WindowWidth=4096, **STORED_12))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ()


def test_lossy_values_above_the_range_stay_white() -> None:
    stripes = np.where(np.arange(150)[:, None] % 2 == 0, 4095, 3000).astype(np.uint16)
    values = np.broadcast_to(stripes, (150, 130)).copy()
    values[:, ::7] = 100
    image = Image.fromarray(values)
    lossy = {"irreversible": True, "quality_mode": "rates", "quality_layers": [8]}
    frame = saved(image, "JPEG2000", no_jp2=True, **lossy)
    coded = np.asarray(Image.open(BytesIO(frame)))
    assert coded.max() > 4095
    decoded = shown(decode(dicom(values, JPEG_2000_LOSSY, frame, **STORED_12, **WINDOW)))
    assert (decoded[coded > 4095] == 255).all()


# --- a code stream of other bits than the header says --------------------------------------------


@pytest.mark.parametrize("coding", ["jpeg", "jpeg 2000", "rle"])
def test_8_bits_in_16_allocated(coding: str) -> None:
    tags: Tags = {"BitsAllocated": 16, "BitsStored": 8, "HighBit": 7}
    tags |= {"WindowCenter": 128, "WindowWidth": 256}
    if coding == "jpeg":
        frame = saved(drawn(), "JPEG", quality=100)
        expected: Pixels = np.asarray(Image.open(BytesIO(frame)))
        data = dicom(drawn(), JPEG_BASELINE, frame, **tags)
    elif coding == "jpeg 2000":
        expected = drawn()
        data = dicom(drawn(), JPEG_2000, encode_array(drawn(), bits_stored=8), **tags)
    else:
        expected = drawn()
        whole = pydicom.dcmread(BytesIO(rle(drawn())))
        frame = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
        data = dicom(drawn(), RLE, frame, **tags)
    decoded = decode(data)
    assert_shows(decoded, expected, levels=1)
    assert decoded.warnings == ()


def test_8_coded_bits_with_a_window_for_12_are_shown_by_their_range() -> None:
    frame = saved(drawn(), "JPEG", quality=100)
    tags: Tags = {"BitsAllocated": 16, **STORED_12, **WINDOW}
    decoded = decode(dicom(drawn(), JPEG_BASELINE, frame, **tags))
    assert_shows(decoded, np.asarray(Image.open(BytesIO(frame))), levels=1)
    assert decoded.warnings == (FLAT_WINDOW,)


def test_more_coded_bits_than_allocated() -> None:
    frame = encode_array(in_16_bits(12), bits_stored=12)
    tags: Tags = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    decoded = decode(dicom(in_16_bits(12), JPEG_2000, frame, **tags, **WINDOW))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("12 bits in the pixel data, more than the header says",)


# --- frames --------------------------------------------------------------------------------------


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def encapsulated(*items: bytes, **tags: Any) -> bytes:
    """A JPEG 2000 file whose pixel data are these items, the first one the offset table."""
    data = dicom(in_16_bits(12), JPEG_2000, b"place", **STORED_12, **WINDOW, **tags)
    place = b"".join(map(item, (table(0), b"place\0")))
    assert data.count(place) == 1
    return data.replace(place, b"".join(map(item, items)))


def table(*offsets: int) -> bytes:
    return struct.pack(f"<{len(offsets)}I", *offsets)


def padded(frame: bytes) -> bytes:
    return frame + b"\0" * (len(frame) % 2)


FRAME = padded(encode_array(in_16_bits(12), bits_stored=12))
OTHER = padded(encode_array(4095 - in_16_bits(12), bits_stored=12))


@pytest.mark.parametrize(
    "items",
    [
        (b"", FRAME),
        (table(0), FRAME),
        (table(12), FRAME),
        (table(0xFFFFFFF0), FRAME),
        (table(0, 5000), FRAME),
        (b"odd", FRAME),
        (FRAME,),
        (table(7), FRAME[:1000], FRAME[1000:]),
        (FRAME[:1000], FRAME[1000:]),
    ],
)
def test_offset_table_of_one_frame_is_not_needed(items: tuple[bytes, ...]) -> None:
    decoded = decode(encapsulated(*items))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ()


@pytest.mark.parametrize("wrong", ["offset", "length", "count"])
def test_extended_offset_table_of_one_frame_is_not_needed(wrong: str) -> None:
    offsets, lengths = struct.pack("<Q", 0), struct.pack("<Q", len(FRAME))
    match wrong:
        case "offset":
            offsets = struct.pack("<Q", 10**6)
        case "length":
            lengths = struct.pack("<Q", 12)
        case _:
            offsets *= 3
    tags = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    assert_shows(decode(encapsulated(b"", FRAME, **tags)), drawn())
    assert encapsulate_extended([FRAME])[1:] == (
        struct.pack("<Q", 0),
        struct.pack("<Q", len(FRAME)),
    )


@pytest.mark.parametrize(
    "items",
    [
        (table(0, 8 + len(FRAME)), FRAME, OTHER),
        (table(40, 0), FRAME, OTHER),
        (table(8 + len(FRAME), 0), FRAME, OTHER),
        (b"", FRAME[:1000], FRAME[1000:], OTHER),
        (table(5), FRAME[:1000], FRAME[1000:], OTHER[:500], OTHER[500:]),
    ],
)
def test_first_of_two_frames_whatever_the_table_says(items: tuple[bytes, ...]) -> None:
    decoded = decode(encapsulated(*items, NumberOfFrames=2))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("first of 2 frames",)


def test_compressed_pixels_without_a_transfer_syntax_are_unreadable() -> None:
    data = encapsulated(b"", FRAME)
    bare = data[data.index(b"\x08\0\x16\0") :]
    decoded = decode(bare)
    assert decoded.status == "unreadable"
    assert decoded.reason == "compressed, and the transfer syntax does not say how"


# --- transfer syntaxes ---------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["AvailableTransferSyntaxUID", "SOPInstanceUID", "StudyID"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, JPEG_2000])
def test_deflated_uid_elsewhere_does_no_harm(keyword: str, syntax: str) -> None:
    frame = FRAME if syntax == JPEG_2000 else None
    tags: Tags = {keyword: DEFLATED[:16] if keyword == "StudyID" else DEFLATED}
    data = dicom(in_16_bits(12), syntax, frame, **STORED_12, **WINDOW, **tags)
    assert_shows(decode(data), drawn())
    assert_shows(decode(data + DEFLATED.encode()), drawn())


def test_only_the_bounded_inflation_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = b"\x02\0\x10\0UI" + struct.pack("<H", 24) + DEFLATED.encode() + b"\0\0"
    hidden = zlib.compress(bytes(10**6))[2:]
    whole = dicom(in_16_bits(12), **STORED_12, **WINDOW)
    start = whole.index(b"\x08\0\x16\0")
    variants = (
        whole,
        # A second preamble where pydicom looks for one once the first is taken away.
        whole[:start] + bytes(128) + b"DICM" + meta + hidden,
        whole[start:][:128].ljust(128, b"\0") + meta + hidden,
        meta.replace(b"UI", b"LO") + bytes(128) + b"DICM" + meta + hidden,
    )

    inflated = []

    def inflate(data: bytes, *_: object, **__: object) -> bytes:
        inflated.append(data)
        return b""

    monkeypatch.setattr(zlib, "decompress", inflate)
    for data in variants:
        decode(data)
    assert inflated == []
    assert_shows(decode(dicom(in_16_bits(12), DEFLATED, **STORED_12, **WINDOW)), drawn())
    assert inflated == []


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_any_encoding_without_preamble(syntax: str, bits: int) -> None:
    pixels = drawn() if bits == 8 else in_16_bits(12)
    tags: Tags = {"BitsStored": 12, "HighBit": 11, **WINDOW} if bits == 16 else {}
    data = dicom(pixels, syntax, **tags)
    first = b"\0\x08\0\x16" if syntax == BIG_ENDIAN else b"\x08\0\x16\0"
    without_meta = data[data.index(first) :]
    for variant in (data, data[132:], without_meta, data[:132] + without_meta):
        assert_shows(decode(variant), drawn())


@pytest.mark.parametrize("written", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("claimed", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_encoding_is_read_from_the_data_set(written: str, claimed: str) -> None:
    data = dicom(in_16_bits(12), written, **STORED_12, **WINDOW)
    start = data.index(b"\0\x08\0\x16" if written == BIG_ENDIAN else b"\x08\0\x16\0")
    other = dicom(in_16_bits(12), claimed)
    meta = other[: other.index(b"\0\x08\0\x16" if claimed == BIG_ENDIAN else b"\x08\0\x16\0")]
    assert_shows(decode(meta + data[start:]), drawn())


def test_8_bits_in_words_of_big_endian() -> None:
    header = pydicom.dcmread(BytesIO(dicom(drawn(), BIG_ENDIAN)))
    header.PixelData = drawn().view("u2").byteswap().tobytes()
    header["PixelData"].VR = "OW"
    buffer = BytesIO()
    header.save_as(buffer)
    assert_shows(decode(buffer.getvalue()), drawn(), levels=0)


# --- lookup tables and windows -------------------------------------------------------------------


def voi(levels: Pixels, bits: int, first: int = 0, vr: str = "US") -> Dataset:
    lut = Dataset()
    lut.add_new(0x00283002, vr, [len(levels) % 2**16, first, bits])
    lut.add_new(0x00283006, "US", [int(level) for level in levels])
    return lut


CURVE = np.linspace(0, 1, 4096) ** 1.3


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("held", [8, 10, 12, 13, 15])
def test_voi_table_that_gives_its_storage(held: int, photometric: str, syntax: str) -> None:
    levels = np.rint(CURVE * (2**held - 1) * 0.98)
    values = in_16_bits(12)
    tags: Tags = {"PhotometricInterpretation": photometric, **STORED_12}
    wrong = dicom(values, syntax, VOILUTSequence=Sequence([voi(levels, 16)]), **tags)
    right = dicom(values, syntax, VOILUTSequence=Sequence([voi(levels, held)]), **tags)
    decoded = decode(wrong)
    gray = levels[values] / (2**held - 1) * 255
    assert_shows(decoded, 255 - gray if photometric == "MONOCHROME1" else gray)
    np.testing.assert_array_equal(shown(decode(right)), decoded.pixels)
    assert decoded.warnings == (f"a VOI table of 16 bits in the file holds {held}",)
    assert decode(right).warnings == ()


def test_voi_table_that_holds_more_than_it_says() -> None:
    levels = np.rint(CURVE * 4095)
    decoded = decode(dicom(in_16_bits(12), VOILUTSequence=Sequence([voi(levels, 8)]), **STORED_12))
    assert_shows(decoded, CURVE[in_16_bits(12)] * 255)
    assert decoded.warnings == ("a VOI table of 8 bits in the file holds 12",)


def test_dim_voi_table_of_12_bits_stays_dim() -> None:
    levels = np.rint(CURVE * 2000)
    decoded = decode(dicom(in_16_bits(12), VOILUTSequence=Sequence([voi(levels, 12)]), **STORED_12))
    assert_shows(decoded, CURVE[in_16_bits(12)] * 255 * 2000 / 4095)
    assert decoded.warnings == ()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_voi_table_of_8_bits_two_to_a_word(syntax: str) -> None:
    levels = np.rint(CURVE * 255).astype(np.uint8)
    lut = voi(levels, 8)
    lut.LUTData = levels.view("<u2").tolist()
    data = dicom(in_16_bits(12), syntax, VOILUTSequence=Sequence([lut]), **STORED_12)
    decoded = decode(data)
    assert_shows(decoded, levels[in_16_bits(12)], levels=0)
    assert decoded.warnings == ()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_voi_table_of_negative_values(syntax: str) -> None:
    levels = np.rint(CURVE * 65535)
    tags: Tags = {"RescaleSlope": 1, "RescaleIntercept": -2048, **STORED_12}
    for lut in (voi(levels, 16, 2**16 - 2048), voi(levels, 16, -2048, "SS")):
        if lut[0x00283002].VR == "SS":
            lut[0x00283002].value = [4096, -2048, 16]
        data = dicom(in_16_bits(12), syntax, VOILUTSequence=Sequence([lut]), **tags)
        assert_shows(decode(data), CURVE[in_16_bits(12)] * 255)


def test_empty_table_falls_back_to_the_window() -> None:
    flat = Sequence([voi(np.full(4096, 7.0), 12)])
    decoded = decode(dicom(in_16_bits(12), VOILUTSequence=flat, **STORED_12, **WINDOW))
    assert_shows(decoded, drawn())
    assert decoded.warnings == (FLAT_WINDOW,)


def by_range(values: Pixels) -> Pixels:
    low, high = np.percentile(values, (0.5, 99.5))
    gray: Pixels = ((values - low) / (high - low)).clip(0, 1) * 255
    return gray


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("bits", "center", "width"),
    [
        (10, 128, 256),
        (12, 128, 256),
        (14, 128, 256),
        (16, 128, 256),
        (16, 2048, 4096),
        (12, 32768, 65536),
        (12, 2048, 65536),
        (12, -500, 400),
    ],
)
def test_window_for_other_bits_is_noticed(
    bits: int, center: int, width: int, photometric: str, function: str
) -> None:
    values = in_16_bits(bits) // 4 * 3 + 2 ** (bits - 3)  # No drawn pixel is near zero.
    tags: Tags = {"PhotometricInterpretation": photometric, "VOILUTFunction": function}
    tags |= {"BitsStored": bits, "HighBit": bits - 1}
    decoded = decode(dicom(values, WindowCenter=center, WindowWidth=width, **tags))
    gray = by_range(values)
    assert_shows(decoded, 255 - gray if photometric == "MONOCHROME1" else gray)
    assert decoded.warnings == (FLAT_WINDOW,)


def test_second_window_is_used_where_the_first_shows_nothing() -> None:
    windows: Tags = {"WindowCenter": [128, 2048, 10], "WindowWidth": [256, 4096, 10]}
    decoded = decode(dicom(in_16_bits(12), **STORED_12, **windows))
    assert_shows(decoded, drawn())
    assert decoded.warnings == (FLAT_WINDOW,)
    impossible: Tags = {"WindowCenter": [128, 2048], "WindowWidth": [0, 4096]}
    decoded = decode(dicom(in_16_bits(12), **STORED_12, **impossible))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("impossible window in the file, ignored",)


@pytest.mark.parametrize(("low", "high"), [(1, 99), (5, 95), (10, 90), (20, 80), (30, 99)])
def test_narrow_windows_are_believed(low: float, high: float) -> None:
    values = in_16_bits(12)
    low, high = np.percentile(values, (low, high))
    tags: Tags = {"WindowCenter": (low + high) / 2, "WindowWidth": high - low}
    decoded = decode(dicom(values, VOILUTFunction="LINEAR_EXACT", **STORED_12, **tags))
    assert_shows(decoded, ((values - low) / (high - low)).clip(0, 1) * 255)
    assert decoded.warnings == ()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_negative_rescale_slope(photometric: str) -> None:
    tags: Tags = {"RescaleSlope": -1, "RescaleIntercept": 4095, **STORED_12}
    tags |= {"PhotometricInterpretation": photometric}
    values = in_16_bits(12) if photometric == "MONOCHROME1" else 4095 - in_16_bits(12)
    assert_shows(decode(dicom(values, WindowCenter=2047.5, WindowWidth=4096, **tags)), drawn())


# --- polarity and padding ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted", "warning"),
    [
        ("MONOCHROME1", None, True, ""),
        ("MONOCHROME1", "INVERSE", True, ""),
        ("MONOCHROME1", "IDENTITY", False, DISAGREE + "not inverted"),
        ("MONOCHROME1", "WILHELM", True, ""),
        ("MONOCHROME2", None, False, ""),
        ("MONOCHROME2", "IDENTITY", False, ""),
        ("MONOCHROME2", "INVERSE", True, DISAGREE + "inverted"),
        ("MONOCHROME2", "LIN OD", False, ""),
    ],
)
@pytest.mark.parametrize("windowed", [True, False])
def test_presentation_lut_shape_decides(
    photometric: str, shape: str | None, inverted: bool, warning: str, windowed: bool
) -> None:
    """As dcmtk 3.6.7 shows all of these."""
    tags: Tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    tags |= STORED_12 | (WINDOW if windowed else {})
    decoded = decode(dicom(in_16_bits(12), **tags))
    gray = drawn() if windowed else by_range(in_16_bits(12))
    assert_shows(decoded, 255 - gray if inverted else gray)
    expected = (warning,) if warning else ()
    assert decoded.warnings == (expected if windowed else ("no window in the file", *expected))


BORDER = np.zeros((150, 130), bool)
BORDER[:30], BORDER[:, -20:], BORDER[140:, :50] = True, True, True


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("padding", "value", "limit"),
    [
        (0, 0, None),
        (4095, 4095, None),
        (4090, 4080, 4095),
        (4090, 4095, 4080),
        (5, 0, 10),
        (5, 10, 0),
        (2000, 2000, None),
    ],
)
@pytest.mark.parametrize("signed", [True, False])
def test_padding_is_black_and_does_not_count(
    padding: int, value: int, limit: int | None, photometric: str, windowed: bool, signed: bool
) -> None:
    offset = 2048 if signed else 0
    values = (in_16_bits(12) // 4 * 3 + 512).clip(512, 3600)
    values = 4095 - values if photometric == "MONOCHROME1" else values
    inside = values[~BORDER].astype(float)
    values = np.where(BORDER, padding, values) - offset
    tags: Tags = {"PhotometricInterpretation": photometric, **STORED_12}
    tags |= {"PixelPaddingValue": value - offset}
    if limit is not None:
        tags |= {"PixelPaddingRangeLimit": limit - offset}
    if windowed:
        tags |= {"WindowCenter": 2047.5 - offset, "WindowWidth": 4096}
    decoded = decode(dicom(values.astype(np.int16 if signed else np.uint16), **tags))
    gray = np.zeros((150, 130))
    gray[~BORDER] = inside / 4095 * 255 if windowed else by_range(inside)
    gray[~BORDER] = 255 - gray[~BORDER] if photometric == "MONOCHROME1" else gray[~BORDER]
    assert_shows(decoded, gray, levels=2)
    assert (shown(decoded)[BORDER] == 0).all()


def test_padding_that_is_black_already_is_not_warned_of() -> None:
    values = np.where(BORDER, 0, in_16_bits(12))
    decoded = decode(dicom(values, PixelPaddingValue=0, **STORED_12, **WINDOW))
    assert decoded.warnings == ()
    one: Tags = {"PhotometricInterpretation": "MONOCHROME1"}
    decoded = decode(dicom(values, PixelPaddingValue=0, **one, **STORED_12, **WINDOW))
    assert decoded.warnings == (PADDING,)


def test_padding_value_within_the_picture_leaves_the_picture() -> None:
    values = in_16_bits(12)
    values[70:80, 60:70] = 2000
    decoded = decode(dicom(values, PixelPaddingValue=2000, **STORED_12, **WINDOW))
    assert np.abs(shown(decoded)[70:80, 60:70] - 2000 / 4095 * 255).max() <= 1


def test_padding_of_the_whole_range_is_ignored() -> None:
    tags: Tags = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}
    decoded = decode(dicom(in_16_bits(12), **tags, **STORED_12, **WINDOW))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("pixel padding covers the image, ignored",)


# --- color ---------------------------------------------------------------------------------------


def colored() -> Pixels:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (15, 13, 3)).astype(np.uint8))
    return np.asarray(small.resize((130, 150), Image.Resampling.BICUBIC))


def rgb_dicom(rgb: Pixels, coding: str) -> bytes:
    """An RGB picture as a DICOM file in any way in which color is written."""
    tags: Tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    tags |= {"Rows": 150, "Columns": 130, "PlanarConfiguration": 0}
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    match coding:
        case "RGB":
            return dicom(rgb, **tags)
        case "RGB without planar configuration":
            return dicom(rgb, **tags | {"PlanarConfiguration": None})
        case "RGB big endian":
            return dicom(rgb, BIG_ENDIAN, **tags)
        case "RGB planes":
            return dicom(np.moveaxis(rgb, 2, 0), **tags | {"PlanarConfiguration": 1})
        case "RGB of 12 bits":
            wide = (rgb.astype(np.uint16) << 4) + 3
            return dicom(wide, **tags | STORED_12)
        case "RGB RLE":
            header = pydicom.dcmread(BytesIO(dicom(rgb, **tags)))
            header.compress(RLE, generate_instance_uid=False)
            buffer = BytesIO()
            header.save_as(buffer)
            return buffer.getvalue()
        case "YBR_FULL":
            return dicom(ybr, **tags | {"PhotometricInterpretation": "YBR_FULL"})
        case "YBR_FULL planes":
            planes = np.moveaxis(ybr, 2, 0)
            ycc: Tags = {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 1}
            return dicom(planes, **tags | ycc)
        case "YBR_FULL_422":
            pairs = np.empty((150, 65, 4), np.uint8)
            pairs[..., 0], pairs[..., 1] = ybr[:, ::2, 0], ybr[:, 1::2, 0]
            pairs[..., 2], pairs[..., 3] = ybr[:, ::2, 1], ybr[:, ::2, 2]
            half: Tags = {"PhotometricInterpretation": "YBR_FULL_422"}
            return dicom(pairs, **tags | half)
        case "JPEG YBR_FULL_422" | "JPEG that says RGB":
            frame = saved(Image.fromarray(rgb), "JPEG", quality=100)
            named = "RGB" if coding.endswith("RGB") else "YBR_FULL_422"
            return dicom(rgb, JPEG_BASELINE, frame, **tags | {"PhotometricInterpretation": named})
        case "JPEG RGB" | "JPEG RGB that says YBR_FULL":
            frame = saved(Image.fromarray(rgb), "JPEG", quality=100, keep_rgb=True)
            named = "YBR_FULL" if coding.endswith("YBR_FULL") else "RGB"
            return dicom(rgb, JPEG_BASELINE, frame, **tags | {"PhotometricInterpretation": named})
        case "JPEG 2000 YBR_RCT":
            frame = encode_array(rgb, photometric_interpretation=1)
            return dicom(rgb, JPEG_2000, frame, **tags | {"PhotometricInterpretation": "YBR_RCT"})
        case "JPEG 2000 RGB":
            frame = encode_array(rgb, photometric_interpretation=1, use_mct=False)
            return dicom(rgb, JPEG_2000, frame, **tags)
    raise AssertionError(coding)


CODINGS = [
    *("RGB", "RGB without planar configuration", "RGB big endian", "RGB planes", "RGB of 12 bits"),
    *("RGB RLE", "YBR_FULL", "YBR_FULL planes", "YBR_FULL_422", "JPEG YBR_FULL_422"),
    *("JPEG that says RGB", "JPEG RGB", "JPEG RGB that says YBR_FULL"),
    *("JPEG 2000 YBR_RCT", "JPEG 2000 RGB"),
]


@pytest.mark.parametrize("coding", CODINGS)
def test_gray_in_color_is_the_gray_picture(coding: str) -> None:
    gray = np.repeat(drawn()[..., None], 3, axis=2)
    decoded = decode(rgb_dicom(gray, coding))
    assert_shows(decoded, drawn(), levels=2)
    assert decoded.warnings == ()


@pytest.mark.parametrize("coding", CODINGS)
def test_true_color_is_refused(coding: str) -> None:
    decoded = decode(rgb_dicom(colored(), coding))
    assert (decoded.status, decoded.reason) == ("refused", COLOR)


@pytest.mark.parametrize("coding", CODINGS)
def test_color_cut_short_is_unreadable(coding: str) -> None:
    data = rgb_dicom(np.repeat(drawn()[..., None], 3, axis=2), coding)
    for cut in (len(data) // 2, len(data) - 600):
        assert decode(data[:cut]).status == "unreadable"


def palette(
    indices: Pixels, red: Pixels, green: Pixels, blue: Pixels, bits: int, **tags: Any
) -> bytes:
    for name, levels in {"Red": red, "Green": green, "Blue": blue}.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [len(levels) % 2**16, 0, bits]
        dtype = np.uint8 if bits == 8 else np.uint16
        tags[f"{name}PaletteColorLookupTableData"] = levels.astype(dtype).tobytes()
    return dicom(indices, PhotometricInterpretation="PALETTE COLOR", **tags)


@pytest.mark.parametrize(
    ("bits", "factor"), [(8, 1), (16, 256), (16, 257), (16, 1)], ids=["8", "<< 8", "* 257", "8 in"]
)
def test_gray_palette(bits: int, factor: int) -> None:
    ramp = np.arange(255, -1, -1) * factor
    decoded = decode(palette(255 - drawn(), ramp, ramp, ramp, bits))
    assert_shows(decoded, drawn(), levels=0)
    assert decoded.warnings == ()
    other = decode(palette(255 - drawn(), ramp, ramp[::-1], ramp, bits))
    assert (other.status, other.reason) == ("refused", COLOR)


def test_gray_palette_of_12_bits() -> None:
    ramp = np.arange(4096) << 4
    decoded = decode(palette(in_16_bits(12), ramp, ramp, ramp, 16, **STORED_12))
    assert_shows(decoded, drawn())


def test_palette_without_tables_is_unreadable() -> None:
    decoded = decode(dicom(drawn(), PhotometricInterpretation="PALETTE COLOR"))
    assert decoded.status == "unreadable"
    assert decoded.reason.startswith("the palette cannot be decoded")


@pytest.mark.parametrize(
    ("photometric", "samples"),
    [("CMYK", 4), ("ARGB", 4), ("HSV", 3), ("RGB", 1), ("MONOCHROME2", 3), ("WILHELM", 1)],
)
def test_other_color_is_refused(photometric: str, samples: int) -> None:
    tags: Tags = {"SamplesPerPixel": samples, "PhotometricInterpretation": photometric}
    decoded = decode(dicom(drawn(), **tags))
    assert (decoded.status, decoded.reason) == ("refused", COLOR)


# --- body part and projection --------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        *("CHEST", "CHEST_AP", "CHESTABDOMEN", "THORAX", "Brustkorb", "BRUST", "POITRINE"),
        *("CAGE THORACIQUE", "POUMON", "TORACE", "Torace AP", "POLMONI", "TÓRAX", "PECHO"),
        *("PULMÃO", "PEITO", "BORSTKAS", "LONGEN", "KLATKA PIERSIOWA", "PŁUCA", "HRUDNÍK"),
        *("PLÍCE", "BRÖSTKORG", "LUNGOR", "BRYST", "BRYSTKASSE", "RINTAKEHÄ", "MELLKAS"),
        *("ГРУДНАЯ КЛЕТКА", "ОГК", "ЛЁГКИЕ", "ΘΩΡΑΚΑΣ", "ΘΏΡΑΚΑΣ", "GÖĞÜS", "AKCİĞER"),
        *("胸部", "胸", "肺", "흉부", "T-D3000", "51185008", "816094009"),
    ],
)
def test_names_of_the_chest(part: str) -> None:
    assert body_part(part) == "CHEST"


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("HIP", "HIP"), ("HÜFTE", "HIP"), ("HANCHE", "HIP"), ("ANCA", "HIP"), ("CADERA", "HIP")),
        *(("KNIE", "KNEE"), ("GENOU", "KNEE"), ("RODILLA", "KNEE"), ("Колено", "KNEE")),
        *(("膝", "KNEE"), ("手", "HAND"), ("MANO", "HAND"), ("Hand links", "HAND")),
        *(("HANDGELENK", "WRIST"), ("POIGNET", "WRIST"), ("FUSS", "FOOT"), ("PIED", "FOOT")),
        *(("ADDOME", "ABDOMEN"), ("BRZUCH", "ABDOMEN"), ("腹部", "ABDOMEN")),
        *(("BECKEN", "PELVIS"), ("BASSIN", "PELVIS"), ("SCHÄDEL", "SKULL"), ("CRÂNE", "SKULL")),
        *(("BWS", "TSPINE"), ("BRUSTWIRBELSÄULE", "TSPINE"), ("胸椎", "SPINE")),
        *(("COLUMNA TORACICA", "SPINE"), ("BRUSTBEIN", "STERNUM"), ("胸骨", "STERNUM")),
        *(("T-D9200", "KNEE"), ("72696002", "KNEE"), ("EXTREMITY", "EXTREMITY")),
        *(("WILHELM", ""), ("BABYGRAM", ""), ("", ""), ("XYZ", "")),
    ],
)
def test_names_of_other_body_parts(part: str, name: str) -> None:
    assert body_part(part) == name


@pytest.mark.parametrize("part", ["TORACE", "PECHO", "KLATKA PIERSIOWA", "POITRINE"])
def test_chest_in_any_language_is_scored_without_a_warning(part: str) -> None:
    decoded = decode(dicom(in_16_bits(12), BodyPartExamined=part, **STORED_12, **WINDOW))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ()


@pytest.mark.parametrize(
    ("charset", "encoding", "part"),
    [
        ("ISO_IR 144", "iso8859_5", "ГРУДЬ"),
        ("ISO_IR 126", "iso8859_7", "ΘΩΡΑΚΑΣ"),
        ("ISO_IR 148", "iso8859_9", "GÖĞÜS"),
        ("ISO_IR 100", "latin-1", "TÓRAX"),
        ("ISO_IR 192", "utf-8", "胸部"),
        ("GB18030", "gb18030", "胸部"),
        ("ISO_IR 13", "shift_jis", "胸部"),
        (None, "utf-8", "胸部"),
        (None, "latin-1", "TÓRAX"),
    ],
)
def test_chest_in_any_character_set(charset: str | None, encoding: str, part: str) -> None:
    written = part.encode(encoding)
    written += b" " * (len(written) % 2)
    data = dicom(
        in_16_bits(12),
        SpecificCharacterSet=charset,
        BodyPartExamined="A" * len(written),
        **STORED_12,
        **WINDOW,
    ).replace(b"A" * len(written), written)
    assert decode(data).warnings == ()


def coded(keyword: str, value: str, scheme: str, meaning: str) -> Tags:
    entry = Dataset()
    entry.CodeValue, entry.CodingSchemeDesignator, entry.CodeMeaning = value, scheme, meaning
    return {keyword: Sequence([entry])}


UNKNOWN_PART = "an unknown body part in the file; taken as the chest"


@pytest.mark.parametrize(
    ("tags", "status", "said"),
    [
        ({"BodyPartExamined": "WILHELM"}, "ok", UNKNOWN_PART),
        ({"BodyPartExamined": None}, "ok", "no body part in the file"),
        ({"BodyPartExamined": "UNKNOWN"}, "ok", "no body part in the file"),
        ({"BodyPartExamined": "GENOU"}, "refused", "body part KNEE, not the chest"),
        (
            {"BodyPartExamined": None}
            | coded("AnatomicRegionSequence", "T-D9200", "SRT", "Wilhelm"),
            "refused",
            "body part KNEE, not the chest",
        ),
        (
            {"BodyPartExamined": None}
            | coded("AnatomicRegionSequence", "99", "99WILHELM", "Linkes Knie"),
            "refused",
            "body part KNEE, not the chest",
        ),
        (
            {"BodyPartExamined": None}
            | coded("AnatomicRegionSequence", "816094009", "SCT", "Wilhelm"),
            "ok",
            "",
        ),
        (
            {"BodyPartExamined": "WILHELM"}
            | coded("AnatomicRegionSequence", "51185008", "SCT", "Chest"),
            "ok",
            "",
        ),
    ],
)
def test_body_part_of_the_file(tags: Tags, status: str, said: str) -> None:
    data = dicom(in_16_bits(12), **STORED_12, **WINDOW, **tags)
    decoded = decode(data)
    assert decoded.status == status
    assert (decoded.reason, decoded.warnings) == (
        (said, ()) if status != "ok" else ("", decoded.warnings)
    )
    if status == "ok":
        assert decoded.warnings == ((said,) if said else ())
    assert decode(data, any_body_part=True).status == "ok"
    assert "ilhelm" not in repr((decoded.reason, decoded.warnings)).lower()


LATERAL, OBLIQUE = "a lateral view, not a frontal one", "an oblique view, not a frontal one"
TWO_VIEWS = "a description in the file names a view that is not frontal"


@pytest.mark.parametrize(
    ("tags", "reason", "warning"),
    [
        ({"ViewPosition": "LL"}, LATERAL, ""),
        ({"ViewPosition": "RL"}, LATERAL, ""),
        ({"ViewPosition": "LATERAL"}, LATERAL, ""),
        ({"ViewPosition": "LAT"}, LATERAL, ""),
        ({"ViewPosition": "LEFT LATERAL"}, LATERAL, ""),
        ({"ViewPosition": "RAO"}, OBLIQUE, ""),
        ({"ViewPosition": "PA"}, "", ""),
        ({"ViewPosition": "AP"}, "", ""),
        ({"ViewPosition": None}, "", ""),
        ({"ViewPosition": "LLD"}, "", "a view in lateral decubitus"),
        (coded("ViewCodeSequence", "R-10236", "SRT", "Wilhelm"), LATERAL, ""),
        (coded("ViewCodeSequence", "399198007", "SCT", "Wilhelm"), LATERAL, ""),
        (coded("ViewCodeSequence", "399067008", "SCT", "lateral"), LATERAL, ""),
        (coded("ViewCodeSequence", "1", "99WILHELM", "seitlich"), LATERAL, ""),
        (coded("ViewCodeSequence", "R-10206", "SRT", "antero-posterior"), "", ""),
        (coded("ViewCodeSequence", "399182000", "SCT", "oblique"), OBLIQUE, ""),
        ({"SeriesDescription": "Thorax lateral Wilhelm"}, LATERAL, ""),
        ({"SeriesDescription": "Thorax seitlich"}, LATERAL, ""),
        ({"SeriesDescription": "THORAX DE PROFIL"}, LATERAL, ""),
        ({"SeriesDescription": "Torace LL"}, LATERAL, ""),
        ({"SeriesDescription": "Tórax perfil", "SpecificCharacterSet": "ISO_IR 100"}, LATERAL, ""),
        ({"SeriesDescription": "胸部 側面", "SpecificCharacterSet": "ISO_IR 192"}, LATERAL, ""),
        ({"SeriesDescription": "боковая", "SpecificCharacterSet": "ISO_IR 144"}, LATERAL, ""),
        ({"ProtocolName": "W033 Chest LAT."}, LATERAL, ""),
        ({"AcquisitionDeviceProcessingDescription": "CHEST,LAT"}, LATERAL, ""),
        ({"StudyDescription": "XR CHEST LATERAL"}, LATERAL, ""),
        ({"StudyDescription": "Chest PA and LAT", "SeriesDescription": "LAT"}, LATERAL, ""),
        ({"StudyDescription": "Chest PA and LAT", "SeriesDescription": "PA"}, "", ""),
        ({"StudyDescription": "Chest PA and LAT", "ViewPosition": "PA"}, "", ""),
        ({"StudyDescription": "Chest PA and LAT"}, "", TWO_VIEWS),
        ({"SeriesDescription": "Chest LAT", "ViewPosition": "PA"}, "", TWO_VIEWS),
        ({"SeriesDescription": "Chest PA", "ViewPosition": "LL"}, LATERAL, ""),
        ({"SeriesDescription": "bilateral infiltrates"}, "", ""),
        ({"SeriesDescription": "left lateral decubitus"}, "", "a view in lateral decubitus"),
        ({"PatientOrientation": ["A", "F"]}, LATERAL, ""),
        ({"PatientOrientation": ["P", "F"]}, LATERAL, ""),
        ({"PatientOrientation": ["L", "F"]}, "", ""),
        ({"PatientOrientation": ["A", "F"], "ViewPosition": "PA"}, "", ""),
    ],
)
def test_lateral_views_are_refused_unless_asked_for(tags: Tags, reason: str, warning: str) -> None:
    data = dicom(in_16_bits(12), **STORED_12, **WINDOW, **tags)
    decoded = decode(data)
    assert decoded.reason == reason
    assert decoded.status == ("refused" if reason else "ok")
    assert decoded.warnings == ((warning,) if warning else ())
    let_in = decode(data, any_view=True)
    assert_shows(let_in, drawn())
    assert let_in.warnings == ((reason.partition(",")[0] or warning,) if reason or warning else ())
    assert "ilhelm" not in repr((decoded, let_in)).lower()


@pytest.mark.parametrize(
    ("text", "views"),
    [
        *(("p.a.", {"frontal"}), ("P-A", {"frontal"}), ("Thorax ap/lat", {"frontal", "lateral"})),
        *(("collateral", set()), ("DOSE PROFILE", set()), ("Left side", set())),
        *(("Klatka boczna", {"lateral"}), ("sivukuva", {"lateral"}), ("侧位", {"lateral"})),
        *(("Thorax schräg", {"oblique"}), ("Tórax frente", {"frontal"}), ("正面", {"frontal"})),
    ],
)
def test_projections_of_a_text(text: str, views: set[str]) -> None:
    assert projections(text) == views


@pytest.mark.parametrize(
    ("age", "is_adult"),
    [("018Y", True), ("093Y", True), ("017Y", False), ("230M", True), ("012Y", False),
     ("006M", False), ("", False), (None, False)],
)  # fmt: skip
def test_an_adult_is_a_warning_and_the_age_is_not_kept(age: str | None, is_adult: bool) -> None:
    image = decode(dicom(in_16_bits(), PatientAge=age))
    assert image.status == "ok"
    assert ("an adult, by the age in the file" in image.warnings) == is_adult
    assert not any(character.isdigit() for warning in image.warnings for character in warning)
