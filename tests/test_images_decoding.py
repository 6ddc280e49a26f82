"""Files of all kinds in, gray pixels or a reason out; Pillow and pydicom are the references."""

import functools
import importlib.util
import logging
import logging.handlers
import random
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import jpeg_ls
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageFile, ImageOps
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from cxr.errors import SettingsError
from cxr.images.decoding import Decoded, decode, levels
from cxr.images.decoding import dicom as dicom_room
from tests.support.encoders import (
    CHANNELS,
    bmp_with_alpha,
    deep_png,
    deep_tiff,
    in_channels,
    lossless_jpeg,
    sequential_jpeg,
)
from tests.support.radiographs import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    dicom,
    drawn,
    gray_rgb,
    in_16_bits,
    png_claiming,
    saved,
)


def texts(decoded: Decoded) -> str:
    """All but the pixels, as one string."""
    return repr([getattr(decoded, f.name) for f in fields(decoded) if f.name != "pixels"])


def assert_shows(decoded: Decoded, expected: np.ndarray, levels: float = 1) -> None:
    assert (decoded.status, decoded.reason) == ("ok", "")
    assert decoded.pixels is not None
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags["C_CONTIGUOUS"]
    assert decoded.pixels.flags["WRITEABLE"]
    assert decoded.pixels.shape == expected.shape
    assert np.abs(decoded.pixels - expected.astype(np.float64)).max() <= levels


# --- JPEG, PNG, TIFF, BMP ------------------------------------------------------------------------


FORMATS = {
    "jpeg gray": ("jpeg", saved(drawn(), "JPEG", quality=90)),
    "jpeg rgb": ("jpeg", saved(gray_rgb(), "JPEG", quality=90)),
    "jpeg progressive": ("jpeg", saved(drawn(), "JPEG", progressive=True)),
    "png gray": ("png", saved(drawn(), "PNG")),
    "png rgb": ("png", saved(gray_rgb(), "PNG")),
    "png palette": ("png", saved(Image.fromarray(drawn()).convert("P"), "PNG")),
    "png opaque alpha": ("png", saved(Image.fromarray(drawn()).convert("RGBA"), "PNG")),
    "tiff gray": ("tiff", saved(drawn(), "TIFF")),
    "tiff lzw": ("tiff", saved(drawn(), "TIFF", compression="tiff_lzw")),
    "tiff deflate": ("tiff", saved(drawn(), "TIFF", compression="tiff_adobe_deflate")),
    "bmp gray": ("bmp", saved(drawn(), "BMP")),
    "bmp rgb": ("bmp", saved(gray_rgb(), "BMP")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_equals_pillows_own_decoding(name: str) -> None:
    kind, data = FORMATS[name]
    decoded = decode(data)
    assert_shows(decoded, np.asarray(Image.open(BytesIO(data)).convert("L")), levels=0)
    assert (decoded.format, decoded.width, decoded.height) == (kind, 130, 150)
    assert decoded.warnings == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_full_range_goes_to_8(kind: str) -> None:
    levels = in_16_bits(16)
    assert levels.max() > 2**15
    decoded = decode(saved(levels, kind))
    assert_shows(decoded, np.rint(levels / 257), levels=0)
    assert decoded.warnings == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_12_bits_in_16_do_not_go_black_and_warn(kind: str) -> None:
    decoded = decode(saved(in_16_bits(12), kind))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("12 of 16 bits in use; scaled by 4095",)


@pytest.mark.parametrize("levels", [drawn(), in_16_bits(16)])
def test_tiff_with_white_as_zero_is_inverted(levels: np.ndarray) -> None:
    written = np.iinfo(levels.dtype).max - levels
    image = Image.fromarray(written)
    buffer = BytesIO(saved(image, "TIFF"))
    data = bytearray(buffer.getvalue())
    entry = data.find(struct.pack("<HHI", 262, 3, 1))
    struct.pack_into("<H", data, entry + 8, 0)  # WhiteIsZero
    assert_shows(decode(bytes(data)), drawn())


def test_float_and_bilevel_pictures_are_refused() -> None:
    for image in (Image.fromarray(drawn().astype(np.float32)), Image.fromarray(drawn() > 120)):
        decoded = decode(saved(image, "TIFF"))
        assert decoded.status == "refused"
        assert decoded.reason == "neither 8-bit, 16-bit gray nor RGB pixels"


def test_transparent_pixels_are_black_and_warned_of() -> None:
    alpha = np.full_like(drawn(), 255)
    alpha[:40] = 0
    image = Image.merge("LA", (Image.fromarray(drawn()), Image.fromarray(alpha)))
    decoded = decode(saved(image, "PNG"))
    assert_shows(decoded, np.where(alpha == 0, 0, drawn()))
    assert decoded.warnings == ("transparent pixels taken as black",)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(drawn(), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    decoded = decode(data)
    assert_shows(decoded, expected, levels=0)
    assert (decoded.height, decoded.width) == expected.shape


def test_second_page_is_ignored_and_warned_of() -> None:
    other = Image.fromarray(255 - drawn())
    decoded = decode(saved(drawn(), "TIFF", save_all=True, append_images=[other]))
    assert_shows(decoded, drawn(), levels=0)
    assert decoded.warnings == ("first of several pages",)


@pytest.mark.parametrize(
    ("mode", "progressive"), [("L", False), ("RGB", False), ("L", True), ("RGB", True)]
)
@pytest.mark.parametrize(
    ("size", "min_px", "shape"),
    [
        ((1400, 1000), 224, (250, 350)),  # 1/4: 1/8 would leave 125 rows
        ((512, 513), 64, (65, 64)),  # 1/8, both sides still at least 64
        ((511, 520), 64, (130, 128)),  # 1/4: 511 // 8 = 63
        ((129, 128), 64, (64, 65)),
        ((127, 900), 64, (900, 127)),  # the short side forbids any reduction
        ((224, 224), 224, (224, 224)),
        ((100, 1000), 224, (1000, 100)),  # smaller than asked for already
    ],
)
def test_jpeg_is_reduced_but_never_below_min_px(
    size: tuple[int, int], min_px: int, shape: tuple[int, int], mode: str, progressive: bool
) -> None:
    image = Image.fromarray(drawn(size[1], size[0])).convert(mode)
    data = saved(image, "JPEG", quality=92, progressive=progressive)
    decoded = decode(data, min_px=min_px)
    assert (decoded.width, decoded.height) == size
    assert decoded.pixels is not None
    assert decoded.pixels.shape == shape
    averaged = Image.open(BytesIO(data)).convert("L").reduce(round(size[1] / shape[0]))
    # Reduced in the inverse DCT instead of by averaging pixels: the same but for the grain.
    assert np.abs(decoded.pixels - np.asarray(averaged, dtype=np.float64)).mean() < 2.5


def test_min_px_below_one_is_a_setting_error() -> None:
    with pytest.raises(SettingsError, match="min_px 0"):
        decode(saved(drawn(), "JPEG"), min_px=0)


def test_color_photographs_are_refused() -> None:
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    for photograph in Path(spec.origin).parent.glob("datasets/images/*.jpg"):
        data = photograph.read_bytes()
        for variant in (data, saved(Image.open(BytesIO(data)), "PNG")):
            assert decode(variant).status == "refused"
            assert decode(variant).reason == "a color picture, not a radiograph"
    cmyk = saved(Image.fromarray(gray_rgb()).convert("CMYK"), "JPEG")
    assert decode(cmyk).status == "refused"


def test_small_colored_marks_and_tinted_film_are_accepted() -> None:
    marked = gray_rgb()
    marked[:15, :15] = (255, 0, 0)
    for kind in ("PNG", "JPEG"):
        decoded = decode(saved(marked, kind))
        assert decoded.status == "ok"
        assert decoded.warnings == ("colored marks taken as gray",)
    blue = (gray_rgb() * np.array([0.9, 0.95, 1.0])).astype(np.uint8)
    assert decode(saved(blue, "JPEG")).status == "ok"


def test_flat_and_small_pictures_are_refused() -> None:
    flat = np.full((300, 300), 90, np.uint8)
    flat[:10, :10] = 255  # a marker on an empty plate
    assert decode(saved(flat, "PNG")).reason == "a nearly constant picture"
    assert decode(saved(drawn(63, 500), "PNG")).reason == "500 x 63 pixels; a side is below 64"
    assert decode(saved(drawn(64, 64), "PNG")).status == "ok"


def test_pixel_bombs_are_refused_from_the_header() -> None:
    jpeg = bytearray(saved(drawn(), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 60000, 60000)
    bmp = bytearray(saved(drawn(), "BMP"))
    struct.pack_into("<ii", bmp, 18, 60000, 60000)
    tiff = bytearray(saved(drawn(), "TIFF"))
    for tag in (256, 257):
        entry = tiff.index(
            struct.pack("<HH", tag, 3 if struct.pack("<HHI", tag, 3, 1) in tiff else 4)
        )
        struct.pack_into("<HI", tiff, entry + 2, 4, 1)
        struct.pack_into("<I", tiff, entry + 8, 60000)
    huge = (png_claiming(60000, 60000), bytes(jpeg), bytes(bmp), bytes(tiff))
    for data in huge:
        assert decode(data).status == "refused"
        assert decode(data).reason == "more than 80 million pixels"
    # Between our limit and the one from which Pillow raises, it warns: that must not leak.
    for side in (9000, 13000):
        decoded = decode(png_claiming(side, side))
        assert decoded.reason == f"{side} x {side} pixels; the limit is 80 million"
    assert decode(png_claiming(8000, 8000)).status == "unreadable"


def test_jpeg_with_thousands_of_scans_is_refused() -> None:
    data = FORMATS["jpeg progressive"][1]
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 200 + data[-2:]
    assert decode(bomb).reason == "a JPEG with more than 100 scans"
    # Nor has a sequential one any reason for more than its components.
    gray = sequential_jpeg(drawn(), 8, 16)
    frame, scan = gray.index(b"\xff\xc1"), gray.index(b"\xff\xda")
    components = b"\1\x11\0\2\x11\0\3\x11\0"
    length = struct.pack(">H", 8 + len(components))
    header = gray[:frame] + b"\xff\xc1" + length + gray[frame + 4 : frame + 9] + b"\3" + components
    tables, body = gray[frame + 13 : scan], gray[scan + 10 : -2]
    scans = [b"\xff\xda\0\x08\1" + bytes((number, 0)) + b"\0\x3f\0" + body for number in (1, 2, 3)]
    data = header + tables + b"".join(scans)
    assert decode(data + b"\xff\xd9").reason == "a color picture, not a radiograph"
    bomb = data + scans[2] * 200 + b"\xff\xd9"
    assert decode(bomb).reason == "a JPEG with more than 100 scans"
    assert decode(gray + bomb).status == "ok"  # Behind the end, anything may stand.
    progressive = FORMATS["jpeg progressive"][1]
    assert decode(progressive + bomb).status == "ok"


def test_the_name_that_a_file_pretends_by_its_content_is_not_believed() -> None:
    # `decode` is given no name: a PNG called .jpg is a PNG, text called .jpg is no picture.
    for text in (
        b"not a picture",
        b"<html>404</html>" * 50,
        b"\0" * 1000,
        b"%PDF-1.7" + b" " * 999,
    ):
        decoded = decode(text)
        assert (decoded.status, decoded.format) == ("unreadable", "")
        assert decoded.reason == "not a JPEG, PNG, TIFF, BMP or DICOM file"
    assert decode(b"").reason == "the file is empty"


def test_random_bytes_behind_any_magic_number_are_unreadable() -> None:
    rng = np.random.default_rng(1)
    for magic in (
        b"",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"BM",
        b"\0" * 128 + b"DICM",
    ):
        for size in (1, 30, 3000):
            decoded = decode(magic + rng.bytes(size))
            assert decoded.status == "unreadable"
            assert decoded.pixels is None
            assert decoded.reason


# --- truncation ----------------------------------------------------------------------------------


def small_dicoms() -> dict[str, bytes]:
    jpeg, j2k = saved(drawn(), "JPEG"), saved(drawn(), "JPEG2000", no_jp2=True)
    rle = pydicom.dcmread(BytesIO(dicom(drawn())))
    rle.compress(RLE, generate_instance_uid=False)
    buffer = BytesIO()
    rle.save_as(buffer)
    return {
        "dicom explicit": dicom(in_16_bits()),
        "dicom implicit": dicom(in_16_bits(), IMPLICIT),
        "dicom big endian": dicom(in_16_bits(), BIG_ENDIAN),
        "dicom deflated": dicom(drawn(), DEFLATED),
        "dicom jpeg": dicom(drawn(), JPEG_BASELINE, jpeg),
        "dicom jpeg 2000": dicom(drawn(), JPEG_2000, j2k),
        "dicom jp2": dicom(drawn(), JPEG_2000, saved(drawn(), "JPEG2000")),
        "dicom rle": buffer.getvalue(),
    }


FILES = {name: data for name, (_, data) in FORMATS.items()} | small_dicoms()


# Bytes that follow the last pixel: a delimiter, the offset of a next page, the padding of a row.
# Without them the picture is whole.
ENDS = {
    "dicom jpeg": 4,
    "dicom jpeg 2000": 4,
    "dicom jp2": 4,
    "dicom rle": 4,
    "tiff lzw": 4,
    "tiff deflate": 4,
    "bmp gray": 2,
    "bmp rgb": 2,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_unreadable_wherever_it_is_cut(name: str) -> None:
    data = FILES[name]
    whole = decode(data).pixels
    cuts = {*range(0, len(data), max(1, len(data) // 50)), *range(len(data) - 30, len(data))}
    for cut in sorted(cuts):
        decoded = decode(data[:cut])
        if decoded.status == "ok" and cut >= len(data) - ENDS.get(name, 0):
            np.testing.assert_array_equal(decoded.pixels, whole)
        else:
            assert (decoded.status, decoded.pixels) == ("unreadable", None), (cut, len(data))


@pytest.mark.parametrize("name", FILES)
def test_bytes_after_the_end_do_no_harm(name: str) -> None:
    whole, padded = decode(FILES[name]), decode(FILES[name] + b"\0" * 64)
    assert whole.pixels is not None
    if padded.pixels is not None:
        np.testing.assert_array_equal(padded.pixels, whole.pixels)
    else:  # A deflated stream or a DICOM data set may be damaged by them.
        assert name.startswith("dicom")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_jpeg_cut_short_and_closed_again_is_unreadable(kept: float) -> None:
    for mode, px in (("L", 150), ("RGB", 150), ("L", 1800)):
        data = saved(Image.fromarray(drawn(px, px)).convert(mode), "JPEG")
        decoded = decode(data[: int(kept * len(data))] + b"\xff\xd9")
        assert decoded.status == "unreadable"
        assert decoded.reason == DAMAGED


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_that_claims_more_rows_than_it_holds_is_unreadable(compression: str | None) -> None:
    data = bytearray(saved(drawn(), "TIFF", compression=compression))
    entry = data.index(struct.pack("<HHI", 257, 3 if compression else 4, 1))
    struct.pack_into("<I", data, entry + 8, 1500)
    assert decode(bytes(data)).status == "unreadable"


def test_png_with_a_wrong_checksum_is_unreadable() -> None:
    data = bytearray(FORMATS["png gray"][1])
    data[len(data) // 2] ^= 1
    assert decode(bytes(data)).reason == "damaged png file: a checksum is wrong"


# --- damage inside compressed data ---------------------------------------------------------------

DAMAGED = "the compressed data are damaged or cut short"
WINDOW_12 = {"WindowCenter": 2047.5, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
WINDOW_8 = {"WindowCenter": 127.5, "WindowWidth": 256}


def grained() -> np.ndarray:
    """The drawn picture, larger, with the grain of a detector of 12 bits, (H, W)."""
    grain = np.random.default_rng(1).integers(0, 16, (600, 500))
    pixels: np.ndarray = (drawn(600, 500).astype(np.uint16) * 16 + grain).astype(np.uint16)
    return pixels


def in_dicom(syntax: str, stream: bytes, deep: bool = True) -> bytes:
    pixels = grained() if deep else (grained() >> 4).astype(np.uint8)
    return dicom(pixels, syntax, stream, **(WINDOW_12 if deep else WINDOW_8))


@functools.cache
def compressed() -> dict[str, tuple[bytes, bytes]]:
    """Files with much compressed data: the file, and the compressed data alone."""
    deep = grained()
    gray = (deep >> 4).astype(np.uint8)
    image = Image.fromarray(gray)
    files = {
        "jpeg gray": saved(gray, "JPEG", quality=90),
        "jpeg rgb": saved(image.convert("RGB"), "JPEG", quality=90),
        "jpeg progressive": saved(gray, "JPEG", quality=90, progressive=True),
        "jpeg optimized": saved(gray, "JPEG", quality=90, optimize=True),
        "jpeg restart markers": saved(gray, "JPEG", quality=90, restart_marker_rows=1),
        "jpeg lossless": lossless_jpeg(gray, 8),
        "jpeg 12 bits": sequential_jpeg(deep, 12, 24),
    }
    tiff = saved(gray, "TIFF", compression="jpeg", quality=90)
    files["tiff jpeg"] = tiff
    files["tiff deflate"] = saved(gray, "TIFF", compression="tiff_adobe_deflate")
    pairs = {name: (data, data) for name, data in files.items()}
    streams = {
        "jpeg baseline": (JPEG_BASELINE, files["jpeg gray"], False),
        "jpeg extended": (JPEG_EXTENDED, files["jpeg 12 bits"], True),
        "jpeg lossless": (JPEG_LOSSLESS, lossless_jpeg(deep, 12), True),
        "jpeg lossless of 16 bits": (JPEG_LOSSLESS, lossless_jpeg(deep, 16), True),
        "jpeg lossless with restarts": (JPEG_LOSSLESS, lossless_jpeg(deep, 12, 25), True),
        "jpeg-ls": (JPEG_LS, bytes(jpeg_ls.encode_array(deep)), True),
        "jpeg-ls near": (JPEG_LS[:-1] + "1", bytes(jpeg_ls.encode_array(deep, 3)), True),
    }
    for name, (syntax, stream, is_deep) in streams.items():
        pairs[f"dicom {name}"] = (in_dicom(syntax, stream, is_deep), stream)
    return pairs


def with_hole(name: str, share: float, hole: bytes) -> bytes:
    """A file of `compressed` with other bytes at a share of its compressed data."""
    data, stream = compressed()[name]
    at = data.index(stream[:512]) + int(share * len(stream))
    return data[:at] + hole + data[at + len(hole) :]


# What may pass of twenty holes: a stream whose code falls into step again with as many blocks is
# valid. In a progressive one, that is in the last bits of coefficients, and hardly to be seen.
MAY_PASS = {"jpeg rgb": 1, "jpeg progressive": 4}


@pytest.mark.parametrize("name", compressed())
def test_a_hole_in_compressed_data_is_unreadable_wherever_it_is(name: str) -> None:
    whole = decode(compressed()[name][0])
    assert (whole.status, whole.warnings) == ("ok", ())
    assert whole.pixels is not None
    chance = random.Random(0)
    num_passed = 0
    for share in (0.15, 0.3, 0.5, 0.7, 0.9):
        for num_bytes in (512, 1500):
            for hole in (bytes(num_bytes), chance.randbytes(num_bytes)):
                decoded = decode(with_hole(name, share, hole))
                num_passed += decoded.status == "ok"
                if decoded.status == "unreadable":
                    assert decoded.reason == DAMAGED or "jpeg-ls" in name
                elif name == "jpeg progressive":
                    assert decoded.pixels is not None
                    assert np.abs(decoded.pixels - whole.pixels.astype(np.float64)).mean() < 2
    assert num_passed <= MAY_PASS.get(name, 0)


@pytest.mark.parametrize("lossy", [False, True])
def test_a_hole_in_jpeg_2000_is_unreadable(lossy: bool) -> None:
    rates = {"irreversible": True, "quality_mode": "rates", "quality_layers": [8, 4, 2]}
    options = rates if lossy else {"tile_size": (256, 256)}
    stream = saved(grained(), "JPEG2000", no_jp2=True, **options)
    whole = in_dicom(JPEG_2000, stream)
    assert (decode(whole).status, decode(whole).warnings) == ("ok", ())
    at = whole.index(stream[:512]) + len(stream) // 2
    for hole in (bytes(512), random.Random(0).randbytes(4096)):
        decoded = decode(whole[:at] + hole + whole[at + len(hole) :])
        assert (decoded.status, decoded.reason) == ("unreadable", DAMAGED)


def test_run_lengths_that_do_not_give_the_picture_are_unreadable(
    capfd: pytest.CaptureFixture[str],
) -> None:
    native = pydicom.dcmread(BytesIO(dicom(grained(), **WINDOW_12)))
    native.compress(RLE, generate_instance_uid=False)
    buffer = BytesIO()
    native.save_as(buffer)
    whole = buffer.getvalue()
    expected = np.rint(grained() / 4095 * 255)
    assert_shows(decode(whole), expected)
    chance = random.Random(0)
    for share in (0.15, 0.3, 0.5, 0.7, 0.9):
        for hole in (bytes(512), chance.randbytes(512), b"\xff" * 512):
            at = int(share * len(whole))
            decoded = decode(whole[:at] + hole + whole[at + 512 :])
            assert (decoded.status, decoded.reason) == ("unreadable", DAMAGED)
    assert capfd.readouterr().err == ""  # Not a panic of the decoder, which would be printed.


def test_blank_jpeg_2000_pictures_are_not_taken_for_holes() -> None:
    # Of nothing but empty packets, zeros all, in many layers and tiles.
    pixels = np.zeros((600, 500), np.uint16)
    pixels[:, :250] = grained()[:, :250]
    for options in ({"quality_layers": list(range(60, 1, -1))}, {"tile_size": (64, 64)}, {}):
        stream = saved(pixels, "JPEG2000", no_jp2=True, **options)
        assert decode(in_dicom(JPEG_2000, stream)).status == "ok"


def test_lossless_streams_give_the_picture() -> None:
    expected = np.rint(grained() / 4095 * 255)
    for name in ("jpeg lossless", "jpeg lossless of 16 bits", "jpeg lossless with restarts"):
        assert_shows(decode(compressed()[f"dicom {name}"][0]), expected)
    assert_shows(decode(compressed()["dicom jpeg-ls"][0]), expected)
    assert_shows(decode(compressed()["dicom jpeg-ls near"][0]), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"quality": 5}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("min_px", [1, 100, 224, 600])
def test_jpeg_pixels_are_those_of_pillows_draft_bit_for_bit(
    mode: str, options: dict[str, object], min_px: int
) -> None:
    # Cached pixels and published figures were made with them.
    tinted = np.dstack([drawn(801, 700)] * 3) - np.array([0, 3, 9], np.uint8)
    image = Image.fromarray(tinted).convert(mode)
    data = saved(image, "JPEG", **options)
    with Image.open(BytesIO(data)) as reference:
        reference.draft(None, (min_px, min_px))
        expected = np.asarray(reference.convert("L"))
    assert_shows(decode(data, min_px=min_px), expected, levels=0)


def test_a_lossless_jpeg_is_decoded_at_its_full_size() -> None:
    # simplejpeg itself would write it behind the end of a buffer of the reduced size.
    gray = drawn(900, 800)
    assert_shows(decode(lossless_jpeg(gray, 8), min_px=64), gray, levels=0)
    # Nor does a header that announces two processes, of which libjpeg believes the first.
    frame = lossless_jpeg(gray, 8)
    baseline = saved(gray, "JPEG")
    at = baseline.index(b"\xff\xc0")
    hidden = b"\xff\xe5" + struct.pack(">H", 15) + frame[2:15]
    for data in (baseline[:2] + hidden + baseline[2:], baseline[:at] + frame[2:15] + baseline[at:]):
        assert decode(data, min_px=64).status in ("ok", "unreadable")


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_jpeg_of_more_than_8_bits_is_scaled_by_its_precision(bits: int) -> None:
    levels = in_16_bits(bits)
    assert_shows(decode(lossless_jpeg(levels, bits)), drawn())
    assert decode(lossless_jpeg(levels, bits)).warnings == ()
    if bits == 12:
        assert_shows(decode(sequential_jpeg(levels, bits, 16)), drawn(), levels=3)
        # Above 15 bits the bits in use count, as in PNG.
        in_16 = decode(lossless_jpeg(levels, 16))
        assert_shows(in_16, drawn())
        assert in_16.warnings == ("12 of 16 bits in use; scaled by 4095",)


def test_scan_parameters_that_a_process_cannot_have_are_mended() -> None:
    # Zeros, as in radiographs of the nineties: libjpeg warns, pylibjpeg raises.
    odd, usual = (sequential_jpeg(grained(), 12, 24, scan) for scan in (b"\0\0\0", b"\0\x3f\0"))
    assert odd != usual
    for first, second in (
        (odd, usual),
        (in_dicom(JPEG_EXTENDED, odd), in_dicom(JPEG_EXTENDED, usual)),
    ):
        decoded = decode(first)
        expected = decode(second).pixels
        assert expected is not None
        assert_shows(decoded, expected, levels=0)
        assert decoded.warnings == ()


def test_other_kinds_of_jpeg_are_named() -> None:
    ls = bytes(jpeg_ls.encode_array(drawn()))
    assert decode(ls).reason == "a JPEG-LS file, which is read within DICOM only"
    hierarchical = FORMATS["jpeg gray"][1].replace(b"\xff\xc0", b"\xff\xc5", 1)
    assert decode(hierarchical).reason == "a JPEG process that cannot be decoded"
    at = FORMATS["jpeg rgb"][1].index(b"\xff\xc0") + 4
    deep = FORMATS["jpeg rgb"][1][:at] + b"\x0c" + FORMATS["jpeg rgb"][1][at + 1 :]
    assert decode(deep).reason == "a JPEG in color of 12 bits to a channel"
    assert decode(deep).status == "refused"


def test_jpeg_headers_that_libjpeg_finds_odd_are_warned_of() -> None:
    data = FORMATS["jpeg rgb"][1]
    version = data.index(b"JFIF\0") + 5
    newer = data[:version] + b"\x09" + data[version + 1 :]
    warned = ("an unusual JPEG: damage in it would not be noticed",)
    assert_shows(decode(newer), np.asarray(Image.open(BytesIO(data)).convert("L")), levels=0)
    assert decode(newer).warnings == warned
    # A subsampling that simplejpeg does not know; to what is written it does not apply.
    sampling = data.index(b"\xff\xc0") + 11
    assert decode(data[:sampling] + b"\x31" + data[sampling + 1 :]).warnings == warned


def test_letterboxing_with_mid_gray_is_no_damage() -> None:
    # libjpeg fills what is missing with the same level.
    framed = np.full((150, 190), 128, np.uint8)
    framed[:, 30:160] = drawn()
    boxed = np.full((200, 130), 128, np.uint8)
    boxed[25:175] = drawn()
    for pixels in (framed, boxed):
        data = saved(pixels, "JPEG", quality=90)
        assert_shows(decode(data), np.asarray(Image.open(BytesIO(data))), levels=0)
        assert decode(data).warnings == ()


# --- 16 bits, alpha and tint ---------------------------------------------------------------------

LAYOUTS: dict[str, Callable[[np.ndarray], bytes]] = {
    "png": deep_png,
    "tiff little endian": deep_tiff,
    "tiff big endian": lambda levels: deep_tiff(levels, ">"),
    "tiff deflated": lambda levels: deep_tiff(levels, deflated=True),
    "tiff big endian deflated": lambda levels: deep_tiff(levels, ">", deflated=True),
}


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_in_use_are_scaled_in_every_layout(layout: str, channels: str, bits: int) -> None:
    decoded = decode(LAYOUTS[layout](in_channels(in_16_bits(bits), channels)))
    assert_shows(decoded, drawn())
    expected = (f"{bits} of 16 bits in use; scaled by {2**bits - 1}",) if bits < 16 else ()
    assert decoded.warnings == expected


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dead", [False, True])
def test_a_few_pixels_do_not_decide_the_scale(layout: str, channels: str, dead: bool) -> None:
    levels = in_16_bits(12)
    levels[5:11, 5:11] = np.random.default_rng(0).integers(20000, 65535, (6, 6)) if dead else 65535
    decoded = decode(LAYOUTS[layout](in_channels(levels, channels)))
    expected = drawn().copy()
    expected[5:11, 5:11] = 255
    assert_shows(decoded, expected)
    assert decoded.warnings == ("12 of 16 bits in use but for a few pixels; scaled by 4095",)


def test_a_marker_one_bit_above_the_rest_does_not_decide_either() -> None:
    levels = in_16_bits(15)
    levels[:5, :5] = 65535
    decoded = decode(saved(levels, "PNG"))
    assert decoded.warnings == ("15 of 16 bits in use but for a few pixels; scaled by 32767",)


def test_a_bright_tail_is_no_marker() -> None:
    levels = np.sort(in_16_bits(15).ravel())
    levels[-90:] = np.linspace(32768, 65535, 90)  # of 19,500
    decoded = decode(saved(levels.reshape(150, 130), "PNG"))
    assert_shows(decoded, np.rint(levels.reshape(150, 130) / 257), levels=0)
    assert decoded.warnings == ()


def test_16_bits_in_separate_planes_are_not_misread() -> None:
    decoded = decode(deep_tiff(in_channels(in_16_bits(16), "rgb"), planes=2))
    assert decoded.status == "unreadable"
    assert decoded.reason == "a TIFF of 16 bits with its channels in separate planes"


@pytest.mark.parametrize("alpha", [0, 128])
def test_the_same_alpha_everywhere_is_opaque(alpha: int) -> None:
    plane = np.full_like(drawn(), alpha)
    bgra = np.dstack([drawn()] * 3 + [plane])
    gray = Image.merge("LA", (Image.fromarray(drawn()), Image.fromarray(plane)))
    deep = in_channels(in_16_bits(16), "gray and alpha")
    deep[..., 1] = alpha * 257
    variants = [bmp_with_alpha(bgra), deep_png(deep), deep_tiff(deep)]
    for kind in ("PNG", "TIFF"):
        variants += [saved(gray, kind), saved(gray.convert("RGBA"), kind)]
    for data in variants:
        decoded = decode(data)
        assert_shows(decoded, drawn())
        assert decoded.warnings == ("the same transparency everywhere, taken as opaque",)


TINTS = {
    "sepia": ((1.07, 0.95, 0.75), 0),
    "strong sepia": ((1.0, 0.8, 0.5), 0),
    "blue base": ((0.6, 0.75, 1.0), 0),
    "blue in the dark": ((0.75, 0.8, 0.6), (10, 25, 80)),
    "green": ((0.7, 1.0, 0.7), 0),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("tint", TINTS)
def test_film_of_one_hue_is_gray_and_warned_of(tint: str, kind: str) -> None:
    factors, base = TINTS[tint]
    film = (gray_rgb() * np.array(factors) + base).clip(0, 255).astype(np.uint8)
    data = saved(film, kind)
    decoded = decode(data)
    assert_shows(decoded, np.asarray(Image.open(BytesIO(data)).convert("L")), levels=0)
    assert decoded.warnings == ("tinted in one hue, taken as gray",)


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param((0.5, 0.5), id="two hues"),
        pytest.param((0.85, 0.15), id="a hue and something of another"),
    ],
)
def test_two_hues_are_a_color_picture(shares: tuple[float, float]) -> None:
    warm, cold = gray_rgb() * np.array([1, 0.8, 0.5]), gray_rgb() * np.array([0.5, 0.8, 1])
    at = int(shares[0] * 130)
    picture = np.concatenate((warm[:, :at], cold[:, at:]), axis=1).astype(np.uint8)
    decoded = decode(saved(picture, "PNG"))
    assert (decoded.status, decoded.reason) == ("refused", "a color picture, not a radiograph")


# --- DICOM ---------------------------------------------------------------------------------------


def rendering(data: bytes, low: float, high: float) -> np.ndarray:
    """pydicom's own rendering, its output range `low`-`high` brought to 0-255, bone bright."""
    header = pydicom.dcmread(BytesIO(data))
    shown = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header)
    gray = np.clip((shown.astype(np.float64) - low) / (high - low), 0, 1) * 255
    return 255 - gray if header.PhotometricInterpretation == "MONOCHROME1" else gray


@pytest.mark.parametrize("name", small_dicoms())
def test_every_encoding_of_a_dicom_file_gives_the_picture(name: str) -> None:
    decoded = decode(FILES[name])
    assert (decoded.format, decoded.width, decoded.height) == ("dicom", 130, 150)
    assert decoded.warnings == ("no window in the file",)
    assert decoded.pixels is not None
    # Without a window, 12 bits are stretched to the range in use; lossy coding adds its noise.
    assert np.corrcoef(decoded.pixels.ravel(), drawn().ravel())[0, 1] > 0.98


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_equals_pydicoms_rendering(function: str, syntax: str, photometric: str) -> None:
    data = dicom(
        in_16_bits(12),
        syntax,
        BitsStored=12,
        HighBit=11,
        WindowCenter=[1700, 40],
        WindowWidth=[1900, 400],
        VOILUTFunction=function,
        PhotometricInterpretation=photometric,
    )
    decoded = decode(data)
    assert_shows(decoded, rendering(data, 0, 4095))
    assert decoded.warnings == ()


def test_signed_rescaled_values_equal_pydicoms_rendering() -> None:
    levels = (in_16_bits(12).astype(np.int32) - 2048).astype(np.int16)
    scaling = {"RescaleSlope": 2, "RescaleIntercept": -100}
    data = dicom(levels, WindowCenter=-400, WindowWidth=5000, **scaling)
    assert_shows(decode(data), rendering(data, -(2**15) * 2 - 100, (2**15 - 1) * 2 - 100))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_lookup_tables_equal_pydicoms_rendering(syntax: str) -> None:
    def table(keyword: str, first: int, levels: np.ndarray) -> dict[str, Sequence]:
        item = Dataset()
        item.add_new(0x00283002, "US", [len(levels), first, 16])
        item.add_new(0x00283006, "US", [int(level) for level in levels])
        if keyword == "ModalityLUTSequence":
            item.ModalityLUTType = "US"
        return {keyword: Sequence([item])}

    curved = np.rint(65535 * np.linspace(0, 1, 3000) ** 1.7)
    voi = table("VOILUTSequence", 700, curved)
    data = dicom(in_16_bits(12), syntax, BitsStored=12, HighBit=11, **voi)
    assert_shows(decode(data), rendering(data, 0, 65535))
    # The table goes before a window that stands beside it.
    both = dicom(in_16_bits(12), syntax, WindowCenter=9, WindowWidth=9, **voi)
    assert_shows(decode(both), rendering(data, 0, 65535))
    modality = table("ModalityLUTSequence", 0, np.rint(curved / 2))
    data = dicom(in_16_bits(12), syntax, WindowCenter=16000, WindowWidth=30000, **modality)
    assert_shows(decode(data), rendering(data, 0, 65535))


def test_damaged_lookup_table_falls_back_to_the_window() -> None:
    item = Dataset()
    item.add_new(0x00283002, "US", [3000, 0, 16])
    item.add_new(0x00283006, "US", [1, 2, 3])
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = decode(dicom(in_16_bits(12), **window))
    decoded = decode(dicom(in_16_bits(12), VOILUTSequence=Sequence([item]), **window))
    assert plain.pixels is not None
    assert_shows(decoded, plain.pixels, levels=0)
    assert decoded.warnings == ("damaged VOI table in the file, ignored",)


def test_monochrome1_and_2_of_one_picture_look_the_same() -> None:
    window = {"WindowCenter": 2047.5, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
    two = decode(dicom(in_16_bits(12), **window))
    one = decode(dicom(4095 - in_16_bits(12), PhotometricInterpretation="MONOCHROME1", **window))
    assert_shows(two, drawn())
    assert_shows(one, drawn())


def test_without_a_window_the_range_in_use_is_shown_and_warned_of() -> None:
    levels = in_16_bits(12) // 2 + 700
    levels[:2, :2] = 65535  # dead pixels do not darken the rest
    decoded = decode(dicom(levels))
    assert decoded.pixels is not None
    assert decoded.warnings == ("no window in the file",)
    low, high = np.percentile(levels, (0.5, 99.5))
    assert_shows(decoded, ((levels - low) / (high - low)).clip(0, 1) * 255, levels=1)
    eight = decode(dicom(drawn()))
    assert_shows(eight, drawn(), levels=0)
    assert eight.warnings == ("no window in the file",)


def test_padding_does_not_count_for_the_range() -> None:
    levels = in_16_bits(12)
    levels[:, :30] = 60000
    low, high = np.percentile(levels[:, 30:], (0.5, 99.5))
    expected = ((levels - low) / (high - low)).clip(0, 1) * 255
    expected[:, :30] = 0
    assert_shows(decode(dicom(levels, PixelPaddingValue=60000)), expected)


@pytest.mark.parametrize(
    ("written", "warning"),
    [
        (b"0       ", "impossible window in the file, ignored"),
        (b"-4096   ", "impossible window in the file, ignored"),
        (b"NaN     ", "impossible window in the file, ignored"),
        (b"inf     ", "impossible window in the file, ignored"),
        (b"Wilhelm ", "impossible window in the file, ignored"),
        (b"        ", "no window in the file"),
    ],
)
def test_impossible_windows_are_ignored_and_warned_of(written: bytes, warning: str) -> None:
    data = dicom(in_16_bits(12), WindowCenter=2000, WindowWidth="12345678")
    decoded = decode(data.replace(b"12345678", written))
    without = decode(dicom(in_16_bits(12)))
    assert without.pixels is not None
    assert_shows(decoded, without.pixels, levels=0)
    assert decoded.warnings == (warning,)


def test_window_that_shows_nothing_is_ignored_and_warned_of() -> None:
    decoded = decode(dicom(in_16_bits(12), WindowCenter=60000, WindowWidth=10))
    assert decoded.status == "ok"
    assert decoded.warnings == (
        "a window or VOI table in the file makes the image nearly constant, ignored",
    )


def test_first_of_several_frames_is_taken_and_said() -> None:
    frames = np.stack([drawn(), 255 - drawn(), np.zeros_like(drawn())])
    decoded = decode(dicom(frames, NumberOfFrames=3, WindowCenter=127.5, WindowWidth=256))
    assert_shows(decoded, drawn())
    assert decoded.warnings == ("first of 3 frames",)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "CT"}, "modality CT, not CR, DX, DR or RG"),
        ({"Modality": "WILHELM"}, "modality of another kind, not CR, DX, DR or RG"),
        ({"SamplesPerPixel": 4, "PhotometricInterpretation": "CMYK"}, "a color picture, not a"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "neither 8 nor 16 bits allocated for a pixel"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels; the limit is 80 million"),
        ({"Rows": 60}, "130 x 60 pixels; a side is below 64"),
    ],
)
def test_other_dicom_pictures_are_refused(tags: dict[str, object], reason: str) -> None:
    decoded = decode(dicom(drawn(), **tags), any_body_part=True)
    assert decoded.status == "refused"
    assert decoded.reason.startswith(reason)


@pytest.mark.parametrize("modality", ["CR", "DX", "DR", "RG"])
def test_radiography_is_accepted(modality: str) -> None:
    assert decode(dicom(drawn(), Modality=modality)).status == "ok"


@pytest.mark.parametrize("part", ["CHEST", "Chest ", "CHEST PA", "THORAX", "LUNG", "CHESTABDOMEN"])
def test_chest_by_any_name_is_accepted(part: str) -> None:
    data = dicom(drawn(), BodyPartExamined="A" * len(part)).replace(b"A" * len(part), part.encode())
    assert decode(data).status == "ok"


@pytest.mark.parametrize(
    ("part", "named"),
    [("HIP", "HIP"), ("TSPINE", "TSPINE"), ("RIBS", "RIBS")],
)
def test_other_body_parts_are_refused_unless_wanted(part: str, named: str) -> None:
    data = dicom(drawn(), BodyPartExamined=part)
    assert decode(data).status == "refused"
    assert decode(data).reason == f"body part {named}, not the chest"
    assert decode(data, any_body_part=True).status == "ok"


def test_missing_modality_and_body_part_are_warned_of() -> None:
    decoded = decode(dicom(drawn(), Modality=None, BodyPartExamined=None))
    assert decoded.status == "ok"
    assert decoded.warnings[:2] == ("no modality in the file", "no body part in the file")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_dicom_without_preamble_is_recognized(syntax: str) -> None:
    data = dicom(drawn(), syntax)
    assert_shows(decode(data[132:]), drawn(), levels=0)
    bare = data[data.index(b"\x08\0\x16\0") :]  # nor any meta information
    assert_shows(decode(bare), drawn(), levels=0)


def test_dicomdir_is_refused_and_not_followed() -> None:
    data = dicom(drawn()).replace(
        b"1.2.840.10008.5.1.4.1.1.1\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0"
    )
    decoded = decode(data)
    assert decoded.status == "refused"
    assert decoded.reason == "a DICOMDIR index; its references are not followed"


def test_dicom_without_a_decodable_picture_is_unreadable() -> None:
    assert decode(dicom(drawn(), PixelData=None)).reason == "the DICOM file holds no pixel data"
    assert decode(dicom(drawn(), Rows=None)).reason == "the DICOM file holds no pixel data"
    short = decode(dicom(drawn(), Rows=151))
    assert short.reason == "less pixel data than the header claims"
    assert decode(dicom(drawn(), NumberOfFrames=2)).reason == short.reason
    unknown = dicom(drawn()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    assert decode(unknown).reason == "a transfer syntax that cannot be decoded"
    for data in (dicom(drawn(), PixelData=None), dicom(drawn(), Rows=151), unknown):
        assert decode(data).status == "unreadable"


def test_bomb_in_the_code_stream_is_not_decoded() -> None:
    j2k = bytearray(saved(drawn(), "JPEG2000", no_jp2=True))
    for at in (8, 12, 24, 28):  # the sizes of the picture and of its only tile
        struct.pack_into(">I", j2k, at, 60000)
    jpeg = bytearray(saved(drawn(), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 60000, 60000)
    for syntax, frame in ((JPEG_2000, bytes(j2k)), (JPEG_BASELINE, bytes(jpeg))):
        decoded = decode(dicom(drawn(), syntax, frame))
        assert decoded.status == "unreadable"
        assert decoded.reason == "header and pixel data disagree on the size"


def test_empty_box_in_a_jp2_file_does_not_hang() -> None:
    frame = bytearray(saved(drawn(), "JPEG2000"))
    struct.pack_into(">I", frame, 12, 0)  # pydicom 3.0.2 itself never returns from this
    assert decode(dicom(drawn(), JPEG_2000, bytes(frame))).status == "ok"


def test_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dicom(np.zeros((3000, 3000), np.uint8), DEFLATED)
    assert len(data) < 20_000
    monkeypatch.setattr(dicom_room, "MAX_INFLATED_BYTES", 1_000_000)
    assert decode(data).status == "refused"
    assert decode(data).reason == "inflates to more than 1 MB"


def test_no_patient_data_leave(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.handlers.BufferingHandler(capacity=1000)
    monkeypatch.setattr(logging.root, "handlers", [log])
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    whole = dicom(in_16_bits(12), WindowCenter=2000, WindowWidth=4000)
    planted = {"BodyPartExamined": "WILHELM", "StudyDescription": "Wilhelm P4711"}
    variants = [
        whole,
        dicom(drawn(), Modality="CT"),
        dicom(drawn(), Modality="WILHELM"),
        dicom(drawn(), **planted),
        dicom(drawn(), PixelData=None),
        dicom(drawn(), Rows=151),
        dicom(drawn(), JPEG_BASELINE, b"Wilhelm P4711"),
        whole.replace(b"MONOCHROME2 ", b"Wilhelm P471"),
        whole.replace(b"1.2.840.10008.1.2.1\0", b"Wilhelm 18450327 \0\0\0"),
        whole.replace(b"2000", b"P471").replace(b"4000", b"P471"),
        *(whole[:cut] for cut in range(200, 1000, 7)),
    ]
    seen = set()
    for data in variants:
        decoded = decode(data)
        seen.add(decoded.status)
        for secret in ("roentgen", "wilhelm", "p471", "18450327"):
            assert secret not in texts(decoded).lower()
    assert seen == {"ok", "refused", "unreadable"}
    assert log.buffer == []
    assert capfd.readouterr() == ("", "")


# --- any bytes, any thread -----------------------------------------------------------------------


def test_mutated_files_always_return() -> None:
    chance = random.Random(0)
    for number in range(600):
        data = bytearray(FILES[chance.choice(list(FILES))])
        for _ in range(chance.choice((1, 1, 3, 20))):
            # Headers are a small part of the bytes and the larger part of what can go wrong.
            at = chance.randrange(chance.choice((len(data), min(len(data), 1000))))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0"))
                case 2:
                    del data[at : at + chance.randrange(1, 9)]
                case _:
                    data[at:at] = chance.randbytes(chance.randrange(1, 9))
        decoded = decode(bytes(data))
        assert (decoded.pixels is not None) == (decoded.status == "ok"), number
        assert (decoded.reason == "") == (decoded.status == "ok"), number
        assert "wilhelm" not in texts(decoded).lower(), number


def test_threads_leave_warnings_and_logs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters, level = list(warnings.filters), logging.getLogger("pydicom").level
    truncated = FORMATS["jpeg gray"][1][:-500]
    files = [FILES["dicom explicit"], FILES["dicom jpeg"], truncated] * 5
    found: list[Decoded] = []

    def work() -> None:
        found.extend(decode(data) for data in files)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [d.status for d in found].count("ok") == 40
    assert [d.status for d in found].count("unreadable") == 20
    assert warnings.filters == filters
    assert logging.getLogger("pydicom").level == level
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


# --- real radiographs ----------------------------------------------------------------------------


def test_real_radiographs_decode(real_data: Path) -> None:
    full_size = sorted((real_data / "fullsize").glob("*/*.jpeg"))
    sample = sorted((real_data / "chest_xray" / "train").glob("*/*.jpeg"))[::26]
    assert len(full_size) == 240
    assert len(sample) >= 200
    for path in [*full_size, *sample]:
        decoded = decode(path.read_bytes())
        assert (decoded.status, decoded.reason, decoded.warnings) == ("ok", "", ()), path.name
        assert decoded.pixels is not None
        assert min(decoded.pixels.shape) >= 224
        # The flattest has 85 levels: far from the 16 below which a picture is refused.
        assert levels.contrast(decoded.pixels) > 60, path.name


@pytest.mark.parametrize(
    ("name", "status", "reason", "any_status"),
    [
        ("chest_mono1_15bit_jpeg2000", "ok", "", "ok"),
        ("chest_mono2_8bit_jpeg", "ok", "", "ok"),
        ("hip_mono2_10bit_rle", "refused", "body part HIP, not the chest", "ok"),
        ("extremity_mono1_10bit_jpegll", "refused", "body part EXTREMITY, not the chest", "ok"),
        ("ct_j2k", "refused", "modality CT, not CR, DX, DR or RG", "refused"),
        ("rgb_jpegls", "refused", "a color picture, not a radiograph", "refused"),
        (
            "undecodable_jpeg_extended_12bit",
            "refused",
            "body part EXTREMITY, not the chest",
            "ok",
        ),
    ],
)
def test_real_dicom_files(
    real_data: Path, name: str, status: str, reason: str, any_status: str
) -> None:
    data = (real_data / "dicom" / f"{name}.dcm").read_bytes()
    decoded = decode(data)
    assert (decoded.status, decoded.reason) == (status, reason)
    assert (decoded.pixels is not None) == (status == "ok")
    assert decode(data, any_body_part=True).status == any_status


@pytest.mark.parametrize(
    ("name", "white"), [("chest_mono1_15bit_jpeg2000", 2**15 - 1), ("chest_mono2_8bit_jpeg", 255)]
)
def test_real_dicom_chests_equal_pydicoms_rendering(real_data: Path, name: str, white: int) -> None:
    data = (real_data / "dicom" / f"{name}.dcm").read_bytes()
    assert_shows(decode(data), rendering(data, 0, white))
