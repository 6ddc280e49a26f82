"""Broken, hostile and odd files, each with the rows that must become of it."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jpeg_ls
import numpy as np
from PIL import Image

from tests.support.archives import tarred, zipped, zipped_to_pipe, zstd
from tests.support.encoders import (
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
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS,
    JPEG_LS,
    dicom,
    drawn,
    gray_rgb,
    in_16_bits,
    png_claiming,
    saved,
)


@dataclass(frozen=True)
class Row:
    """What must become of a file or member."""

    suffix: str
    """Of its URI, after the name of the file in the table."""
    status: str
    words: str = ""
    """Of the reason; of a scored one, of its warning, and without words there must be none."""


@dataclass(frozen=True)
class Broken:
    """One file, and what must become of it."""

    name: str
    content: bytes | Callable[[Path], object]
    """Its bytes, or what makes it at its path."""
    rows: tuple[Row, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """What is passed over, by kind."""
    then: Callable[[Path], object] | None = None
    """What happens to it between listing and reading."""


SCORED = (Row("", "scored"),)


def scored(*members: str) -> tuple[Row, ...]:
    return tuple(Row(f"!/{member}", "scored") for member in members)


def warned(words: str) -> tuple[Row, ...]:
    return (Row("", "scored", words),)


def refused(words: str, member: str = "") -> tuple[Row, ...]:
    return (Row(f"!/{member}" if member else "", "refused", words),)


def unreadable(words: str, member: str = "") -> tuple[Row, ...]:
    return (Row(f"!/{member}" if member else "", "unreadable", words),)


# --- pictures ------------------------------------------------------------------------------------

PNG = saved(drawn(), "PNG")
JPEG = saved(drawn(), "JPEG", quality=90)
TIFF = saved(drawn(), "TIFF")
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
DICOM = dicom(in_16_bits(12), **WINDOW)
WITH_OVERLAY = in_16_bits(12) | np.where(np.indices((150, 130))[0] < 20, 1 << 12, 0).astype("u2")
PADDED = np.where(np.indices((150, 130))[0] < 20, 0, 4095 - in_16_bits(12)).astype("u2")
RAMP = np.arange(256, dtype="u2") * 257
PALETTE: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"} | {
    f"{color}PaletteColorLookupTable{part}": value
    for color in ("Red", "Green", "Blue")
    for part, value in {"Descriptor": [256, 0, 16], "Data": RAMP.tobytes()}.items()
}
TWO_FRAMES = dicom(np.stack([in_16_bits(12)] * 2), NumberOfFrames=2, **WINDOW)

LARGE_JPEG = saved(drawn(600, 500), "JPEG", quality=90)

CUT = "damaged or cut short"
DAMAGED_DATA = "the compressed data are damaged or cut short"
DAMAGED_HERE = "the archive is damaged or cut short here"
DAMAGED = "the archive is cut short or damaged"
NO_PICTURE = "not a JPEG, PNG, TIFF, BMP or DICOM file"


def jpeg_claiming(side: int) -> bytes:
    data = bytearray(JPEG)
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    return bytes(data)


def with_wrong_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def with_hole(data: bytes, share: float = 0.5) -> bytes:
    """A file that has lost a sector of 512 bytes."""
    at = int(share * len(data))
    return data[:at] + bytes(512) + data[at + 512 :]


def encoded_jpeg_ls(pixels: np.ndarray) -> bytes:
    return bytes(jpeg_ls.encode_array(pixels))


def letterboxed() -> np.ndarray:
    """The drawn picture in a square of mid gray."""
    square = np.full((200, 200), 128, np.uint8)
    square[25:175, 35:165] = drawn()
    return square


def marked(levels: np.ndarray) -> np.ndarray:
    """With a small marker as bright as can be."""
    marked = levels.copy()
    marked[5:11, 5:11] = 65535
    return marked


def with_alpha() -> bytes:
    image = Image.fromarray(drawn()).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(drawn() > 200, 0, 255).astype(np.uint8)))
    return saved(image, "PNG")


def colored() -> bytes:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (15, 15, 3)).astype(np.uint8))
    return saved(small.resize((150, 150), Image.Resampling.BICUBIC), "JPEG")


# --- archives ------------------------------------------------------------------------------------


def in_both_headers(data: bytes, field: str, local: int, central: int, value: int) -> bytes:
    """A zip with another value in the headers of its first member, at these offsets."""
    changed = bytearray(data)
    struct.pack_into(field, changed, changed.index(b"PK\3\4") + local, value)
    struct.pack_into(field, changed, changed.index(b"PK\1\2") + central, value)
    return bytes(changed)


def overlapping() -> bytes:
    """A zip whose directory names the bytes of its first member three times."""
    data = zipped({f"{i}.png": PNG for i in range(3)}, zipfile.ZIP_STORED)
    changed = bytearray(data)
    at = data.index(b"PK\1\2")
    for _ in range(2):
        at = data.index(b"PK\1\2", at + 4)
        struct.pack_into("<I", changed, at + 42, 0)
    return bytes(changed)


def last_part(data: bytes) -> bytes:
    """The same zip as if others came before: its number stands in the record that ends it."""
    at = data.rindex(b"PK\5\6")
    return data[: at + 4] + b"\1\0" + data[at + 6 :]


def linked() -> bytes:
    """A zip with a symbolic link in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", PNG)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A header and data as they stand in a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def sparse_entry(name: str) -> bytes:
    """A file of GNU tar's old sparse format: one piece at its beginning."""
    header = bytearray(entry(name, PNG, tarfile.GNUTYPE_SPARSE))
    header[386:410] = b"%011o\0%011o\0" % (0, len(PNG))
    header[483:495] = b"%011o\0" % (10 * len(PNG))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


NOISE = {f"{i}.png": saved(np.random.default_rng(i).integers(0, 256, (150, 150), np.uint8), "PNG")
         for i in range(4)}  # fmt: skip
"""Pictures that no compression makes smaller: `cut` cuts through the third of an archive."""

CUT_TAR = (*scored("0.png", "1.png"), *unreadable(DAMAGED_HERE, "2.png"), *unreadable(DAMAGED))
CUT_ZIP = (*scored("0.png", "1.png"), *unreadable(DAMAGED))


# --- things that are no files --------------------------------------------------------------------


def closed_file(path: Path) -> None:
    path.write_bytes(PNG)
    path.chmod(0)


def closed_folder(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(PNG)
    path.chmod(0)


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 513 * 2**20)


def loop(path: Path) -> None:
    path.mkdir()
    (path / "a.png").write_bytes(PNG)
    (path / "loop").symlink_to(path)


# --- the table -----------------------------------------------------------------------------------

TABLE: tuple[Broken, ...] = (
    # Sound, whatever their names say.
    Broken("sound.png", PNG, SCORED),
    Broken("sound.jpeg", JPEG, SCORED),
    Broken("sound.tif", TIFF, SCORED),
    Broken("sound.bmp", saved(drawn(), "BMP"), SCORED),
    Broken("sound.dcm", DICOM, SCORED),
    Broken("a JPEG called.png", JPEG, SCORED),
    Broken("a PNG called.dcm", PNG, SCORED),
    Broken("a DICOM without extension", DICOM, SCORED),
    Broken("1.2.840.10008.5.1.4", DICOM, SCORED),
    Broken("a JPEG and garbage.jpg", JPEG + b"garbage" * 50, SCORED),
    Broken("16 bits.png", saved(in_16_bits(16), "PNG"), SCORED),
    Broken("12 of 16 bits.png", saved(in_16_bits(12), "PNG"), warned("12 of 16 bits in use")),
    Broken("palette.png", saved(Image.fromarray(drawn()).convert("P"), "PNG"), SCORED),
    Broken("alpha.png", with_alpha(), warned("transparent pixels taken as black")),
    Broken("two pages.tif",
           saved(drawn(), "TIFF", save_all=True, append_images=[Image.fromarray(drawn())]),
           warned("first of several pages")),
    Broken("a line\nbreak.png", PNG, SCORED),
    Broken("x" * 251 + ".png", PNG, SCORED),
    Broken(os.fsdecode(b"not UTF-8 \xe9\xff.png"), PNG, SCORED),
    # Cut off.
    Broken("empty.png", b"", unreadable("the file is empty")),
    Broken("one byte.jpg", JPEG[:1], unreadable(NO_PICTURE)),
    Broken("JPEG cut in its header.jpg", JPEG[:200], unreadable(CUT)),
    Broken("JPEG cut half way.jpg", half(JPEG), unreadable(CUT)),
    Broken("JPEG without its end.jpg", JPEG[:-200], unreadable(CUT)),
    Broken("PNG cut in its header.png", PNG[:20], unreadable("cut short")),
    Broken("PNG cut half way.png", half(PNG), unreadable("cut short")),
    Broken("PNG without its end.png", PNG[:-12], unreadable("cut short")),
    Broken("TIFF cut half way.tif", half(TIFF), unreadable("")),
    Broken("DICOM cut in its preamble.dcm", DICOM[:100], unreadable(NO_PICTURE)),
    Broken("DICOM cut in its header.dcm", DICOM[:500], unreadable("")),
    Broken("DICOM cut in its pixels.dcm", DICOM[:-5000], unreadable("")),
    # Damaged.
    Broken("PNG with a wrong checksum.png", with_wrong_byte(PNG, len(PNG) // 2),
           unreadable("a checksum is wrong")),
    Broken("DICOM without pixels.dcm", dicom(drawn(), PixelData=None),
           unreadable("holds no pixel data")),
    Broken("DICOM with too many rows.dcm", dicom(drawn(), Rows=151),
           unreadable("less pixel data than the header claims")),
    Broken("DICOM with a wrong length.dcm",
           DICOM.replace(b"CS\6\0CHEST ", b"CS\xff\xffCHEST "), unreadable("")),
    Broken("DICOM of an unknown transfer syntax.dcm",
           DICOM.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
           unreadable("a transfer syntax that cannot be decoded")),
    Broken("DICOM with an impossible window.dcm",
           dicom(in_16_bits(12), WindowCenter=2048, WindowWidth=-1),
           warned("impossible window in the file, ignored")),
    Broken("DICOM of two frames.dcm", TWO_FRAMES, warned("first of 2 frames")),
    Broken("JPEG with a hole.jpg", with_hole(LARGE_JPEG), unreadable(DAMAGED_DATA)),
    Broken("progressive JPEG with a hole.jpg",
           with_hole(saved(drawn(600, 500), "JPEG", quality=90, progressive=True), 0.3),
           unreadable(DAMAGED_DATA)),
    Broken("lossless JPEG with a hole.jpg", with_hole(lossless_jpeg(drawn(600, 500), 8)),
           unreadable(DAMAGED_DATA)),
    Broken("DICOM of JPEG with a hole.dcm",
           dicom(drawn(600, 500), JPEG_BASELINE, with_hole(LARGE_JPEG)), unreadable(DAMAGED_DATA)),
    Broken("DICOM of lossless JPEG with a hole.dcm",
           dicom(drawn(600, 500), JPEG_LOSSLESS, with_hole(lossless_jpeg(drawn(600, 500), 8))),
           unreadable(DAMAGED_DATA)),
    Broken("DICOM of JPEG-LS with a hole.dcm",
           dicom(drawn(600, 500), JPEG_LS, with_hole(encoded_jpeg_ls(drawn(600, 500)))),
           unreadable("the pixel data cannot be decoded")),
    Broken("DICOM of JPEG 2000 with a hole.dcm",
           dicom(drawn(600, 500), JPEG_2000,
                 with_hole(saved(drawn(600, 500), "JPEG2000", no_jp2=True))),
           unreadable(DAMAGED_DATA)),
    Broken("TIFF of JPEG with a hole.tif",
           with_hole(saved(drawn(600, 500), "TIFF", compression="jpeg", quality=90)),
           unreadable(DAMAGED_DATA)),
    Broken("TIFF deflated with a hole.tif",
           with_hole(saved(drawn(600, 500), "TIFF", compression="tiff_adobe_deflate")),
           unreadable(DAMAGED_DATA)),
    Broken("a TIFF of 16 bits in planes.tif",
           deep_tiff(in_channels(in_16_bits(16), "rgb"), planes=2),
           unreadable("channels in separate planes")),
    Broken("a JPEG-LS file.jpg", encoded_jpeg_ls(drawn()), unreadable("a JPEG-LS file")),
    # Odd, and scored.
    Broken("letterboxed.jpg", saved(letterboxed(), "JPEG", quality=90), SCORED),
    Broken("12 bits.jpg", sequential_jpeg(in_16_bits(12), 12, 16), SCORED),
    Broken("lossless.jpg", lossless_jpeg(drawn(), 8), SCORED),
    Broken("14 of 16 bits in RGB.png", deep_png(in_channels(in_16_bits(14), "rgb")),
           warned("14 of 16 bits in use")),
    Broken("12 of 16 bits with alpha.tif",
           deep_tiff(in_channels(in_16_bits(12), "gray and alpha")),
           warned("12 of 16 bits in use")),
    Broken("12 of 16 bits and a marker.png", saved(marked(in_16_bits(12)), "PNG"),
           warned("12 of 16 bits in use but for a few pixels")),
    Broken("alpha of nothing.bmp",
           bmp_with_alpha(np.dstack([drawn()] * 3 + [np.zeros_like(drawn())])),
           warned("the same transparency everywhere")),
    Broken("sepia.jpg", saved((gray_rgb() * (1, 0.85, 0.6)).astype(np.uint8), "JPEG"),
           warned("tinted in one hue")),
    Broken("an odd JFIF version.jpg", JPEG.replace(b"JFIF\0\1", b"JFIF\0\7"),
           warned("damage in it would not be noticed")),
    # No chest radiographs.
    Broken("DICOMDIR",
           DICOM.replace(b"1.2.840.10008.5.1.4.1.1.1\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0"),
           refused("a DICOMDIR index")),
    Broken("CT.dcm", dicom(in_16_bits(12), Modality="CT", **WINDOW), refused("modality CT")),
    Broken("DICOM with High Bit 15.dcm",
           dicom(in_16_bits(12) << 4, BitsStored=12, HighBit=15, **WINDOW),
           warned("High Bit is not Bits Stored - 1")),
    Broken("DICOM with an overlay.dcm", dicom(WITH_OVERLAY, BitsStored=12, HighBit=11, **WINDOW),
           warned("such as an overlay, masked")),
    Broken("DICOM with Bits Stored 10 of 12.dcm",
           dicom(in_16_bits(12), BitsStored=10, HighBit=9, **WINDOW),
           warned("Bits Stored contradicts the pixels")),
    Broken("big endian without preamble.dcm",
           dicom(in_16_bits(12), BIG_ENDIAN, **WINDOW)[132:], SCORED),
    Broken("DICOM that names the deflated syntax elsewhere.dcm",
           dicom(in_16_bits(12), AvailableTransferSyntaxUID=DEFLATED, **WINDOW), SCORED),
    Broken("DICOM of two polarities.dcm",
           dicom(in_16_bits(12), PresentationLUTShape="INVERSE", **WINDOW),
           warned("Presentation LUT Shape disagree")),
    Broken("DICOM with padding.dcm",
           dicom(PADDED, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0, **WINDOW),
           warned("pixel padding shown as black")),
    Broken("DICOM with a window for 8 bits.dcm",
           dicom(in_16_bits(12), WindowCenter=128, WindowWidth=256),
           warned("makes the image nearly constant")),
    Broken("gray palette.dcm", dicom(drawn(), **PALETTE), SCORED),
    Broken("torace.dcm", dicom(in_16_bits(12), BodyPartExamined="TORACE", **WINDOW), SCORED),
    Broken("unknown part.dcm", dicom(in_16_bits(12), BodyPartExamined="WILHELM", **WINDOW),
           warned("an unknown body part")),
    Broken("genou.dcm", dicom(in_16_bits(12), BodyPartExamined="GENOU", **WINDOW),
           refused("body part KNEE, not the chest")),
    Broken("lateral.dcm", dicom(in_16_bits(12), ViewPosition="LL", **WINDOW),
           refused("a lateral view, not a frontal one")),
    Broken("seitlich.dcm", dicom(in_16_bits(12), SeriesDescription="Thorax seitl.", **WINDOW),
           refused("a lateral view, not a frontal one")),
    Broken("hip.dcm", dicom(in_16_bits(12), BodyPartExamined="HIP", **WINDOW),
           refused("body part HIP, not the chest")),
    Broken("color photograph.jpg", colored(), refused("a color picture, not a radiograph")),
    Broken("CMYK.jpg", saved(Image.fromarray(drawn()).convert("CMYK"), "JPEG"),
           refused("neither 8-bit, 16-bit gray nor RGB pixels")),
    Broken("float.tif", saved(Image.fromarray(drawn().astype(np.float32)), "TIFF"),
           refused("neither 8-bit, 16-bit gray nor RGB pixels")),
    Broken("constant.png", saved(np.full((150, 150), 90, np.uint8), "PNG"),
           refused("a nearly constant picture")),
    Broken("icon.png", saved(drawn(40, 40), "PNG"), refused("a side is below 64")),
    Broken("pixel bomb.png", png_claiming(60_000, 60_000), refused("more than 80 million pixels")),
    Broken("pixel bomb.jpg", jpeg_claiming(60_000), refused("more than 80 million pixels")),
    Broken("a PDF called.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" * 9, unreadable(NO_PICTURE)),
    Broken("a GIF called.jpg", saved(drawn(), "GIF"), unreadable(NO_PICTURE)),
    Broken("a WebP called.jpg", saved(drawn(), "WEBP"), unreadable(NO_PICTURE)),
    Broken("a page of an error called.jpg", b"<html>404 Not Found</html>", unreadable(NO_PICTURE)),
    Broken("a zip called.dcm", zipped({"a.png": PNG}), unreadable(NO_PICTURE)),
    Broken("packed.dcm.gz", gzip.compress(DICOM), unreadable("a file of type gzip, which is not")),
    Broken("images.7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), unreadable("a file of type 7z,")),
    Broken("images.rar", b"Rar!\x1a\7" + bytes(99), unreadable("a file of type RAR, which is not")),
    Broken("images.tar.lz4", b"\x04\x22\x4d\x18" + bytes(99), unreadable("a file of type lz4,")),
    Broken("images.z01", b"PK\7\x08" + bytes(99), unreadable("a part of a split zip; join")),
    Broken("images.zip.001", zipped({"a.png": PNG})[:900], unreadable("a part of a split .zip")),
    Broken("huge.png", large,
           refused("larger than 512 MiB")),
    Broken("notes.txt", b"notes", (), {".txt": 1}),
    Broken(".hidden.png", PNG, (), {"hidden or system file": 1}),
    # What storage does.
    Broken("loop.png", lambda path: path.symlink_to(path),
           unreadable("Too many levels of symbolic links")),
    Broken("folder in itself", loop, (Row("/a.png", "scored"),)),
    Broken("broken link.png", lambda path: path.symlink_to("gone"),
           unreadable("cannot be read: No such file or directory")),
    Broken("pipe.png", lambda path: os.mkfifo(path), unreadable("not a regular file")),
    Broken("no right to read.png", closed_file, unreadable("Permission denied")),
    Broken("no right to read.zip", closed_file, unreadable("Permission denied")),
    Broken("no right to list", closed_folder,
           (Row("/", "unreadable", "a folder that cannot be listed: Permission denied"),)),
    Broken("vanishing.png", PNG, unreadable("cannot be read: No such file or directory"),
           then=Path.unlink),
    Broken("vanishing.zip", zipped({"a.png": PNG}),
           unreadable("cannot be read: No such file or directory", "a.png"), then=Path.unlink),
    Broken("shrinking.tar", tarred({"a.png": PNG}), unreadable(DAMAGED_HERE, "a.png"),
           then=lambda path: path.write_bytes(b"x")),
    # Zip archives.
    Broken("sound.zip", zipped({"a.png": PNG, "b/c.dcm": DICOM, "notes.txt": b"x",
                                "__MACOSX/._a.png": b"x"}),
           scored("a.png", "b/c.dcm"), {".txt": 1, "hidden or system file": 1}),
    Broken("of nothing.zip", zipped({}), ()),
    Broken("empty.zip", b"", unreadable("the archive is empty")),
    Broken("text called.zip", b"no archive" * 20, unreadable("not a zip archive")),
    Broken("bomb by ratio.zip", zipped({"zeros.png": bytes(17 * 2**20), "a.png": PNG}),
           (*refused("as zip bombs do", "zeros.png"), *scored("a.png"))),
    Broken("bomb by size.zip",
           in_both_headers(zipped({"large.png": PNG, "a.png": PNG}), "<I", 22, 24, 600 * 2**20),
           (*refused("as zip bombs do", "large.png"), *scored("a.png"))),
    Broken("larger than itself.zip",
           in_both_headers(zipped({"large.png": PNG, "a.png": PNG}), "<I", 18, 20, 2**20),
           (*unreadable(DAMAGED_HERE, "large.png"), *scored("a.png"))),
    Broken("lying of its size.zip",
           in_both_headers(zipped({"a.png": bytes(5 * 2**20)}), "<I", 22, 24, 1_000),
           unreadable("the member's size is not what the archive says", "a.png")),
    Broken("overlapping.zip", overlapping(),
           (*refused("as zip bombs do", "0.png"), *refused("as zip bombs do", "1.png"),
            *refused("as zip bombs do", "2.png"))),
    Broken("names that climb.zip",
           zipped({"/tmp/absolute.png": PNG, "../../escaped.png": PNG, "a/../../up.png": PNG}),
           scored("/tmp/absolute.png", "../../escaped.png", "a/../../up.png")),
    Broken("encrypted.zip",
           in_both_headers(zipped({"a.png": PNG, "b.png": PNG}), "<H", 6, 8, 1),
           (*unreadable("encrypted", "a.png"), *scored("b.png"))),
    Broken("twice the same name.zip",
           zipped({"a.png": PNG, "b.png": JPEG}).replace(b"b.png", b"a.png"),
           (*scored("a.png"), Row("!/a.png#2", "scored", "member 2 of this name"))),
    Broken("packed by bzip2.zip", zipped({"a.png": PNG}, zipfile.ZIP_BZIP2),
           unreadable("zip compression method 12 is not supported", "a.png")),
    Broken("packed by LZMA.zip", zipped({"a.png": PNG}, zipfile.ZIP_LZMA),
           unreadable("zip compression method 14 is not supported", "a.png")),
    Broken("wrong checksum.zip",
           in_both_headers(zipped({"a.png": PNG, "b.png": PNG}), "<I", 14, 16, 1),
           (*unreadable("the member's checksum is wrong", "a.png"), *scored("b.png"))),
    Broken("cut off.zip", cut(zipped(NOISE)), CUT_ZIP),
    Broken("two joined.zip", zipped({"a.png": PNG}) + zipped({"b.png": PNG}),
           scored("a.png", "b.png")),
    Broken("joined and cut off.zip", zipped({"a.png": PNG}) + zipped({"b.png": PNG})[:-200],
           (*scored("a.png"), *unreadable("one of the zips joined in this file is damaged"))),
    Broken("the last part of a split.zip", last_part(zipped({"a.png": PNG})),
           unreadable("the last part of a split zip; join the parts first")),
    Broken("a RAR called.zip", b"Rar!\x1a\7" + bytes(99),
           unreadable("not a zip archive, but a file of type RAR")),
    Broken("cut off, sizes after the data.zip", cut(zipped_to_pipe(NOISE)), CUT_ZIP),
    Broken("damaged directory.zip",
           zipped({"a.png": PNG, "b.png": PNG}).replace(b"PK\1\2", b"PK\0\0"),
           (*scored("a.png", "b.png"), *unreadable(DAMAGED))),
    Broken("with a link.zip", linked(), scored("a.png"), {"link or device in an archive": 1}),
    Broken("with a broken picture.zip", zipped({"a.png": half(PNG), "b.png": b"", "c.png": PNG}),
           (*unreadable("cut short", "a.png"), *unreadable("the file is empty", "b.png"),
            *scored("c.png"))),
    # Tar archives.
    Broken("sound.tar", tarred({"./a.png": PNG, "b/c.dcm": DICOM}), scored("./a.png", "b/c.dcm")),
    Broken("sound.tgz", gzip.compress(tarred({"a.png": PNG})), scored("a.png")),
    Broken("sound.tar.bz2", bz2.compress(tarred({"a.png": PNG})), scored("a.png")),
    Broken("sound.tar.xz", lzma.compress(tarred({"a.png": PNG})), scored("a.png")),
    Broken("sound.tar.zst", zstd(tarred({"a.png": PNG})), scored("a.png")),
    Broken("text called.tar", b"no archive" * 100, unreadable("not a tar archive")),
    Broken("text called.tar.gz", b"no archive" * 100, unreadable("not a tar.gz archive")),
    Broken("text called.tar.zst", b"no archive" * 100, unreadable("not a tar.zst archive")),
    Broken("a gzip that holds no tar.tgz", gzip.compress(PNG), unreadable("not a tar.gz archive")),
    Broken("links and devices.tar",
           b"".join((entry("a.png", PNG), entry("b.png", b"", tarfile.SYMTYPE, "/etc/passwd"),
                     entry("c.png", b"", tarfile.LNKTYPE, "a.png"),
                     entry("d.png", b"", tarfile.CHRTYPE), entry("e.png", b"", tarfile.FIFOTYPE),
                     bytes(1024))),
           scored("a.png"), {"link or device in an archive": 4}),
    Broken("sparse.tar", sparse_entry("a.png") + tarred({"b.png": PNG}),
           (*unreadable("a sparse member of a tar", "a.png"), *scored("b.png"))),
    Broken("names that climb.tar", tarred({"/tmp/absolute.png": PNG, "../escaped.png": PNG}),
           scored("/tmp/absolute.png", "../escaped.png")),
    Broken("names not UTF-8.tar", tarred({os.fsdecode(b"\xe9.png"): PNG}), scored("\\xe9.png")),
    Broken("damaged in the middle.tar",
           tarred(NOISE).replace(b"2.png", b"2.pnG"),
           (*scored("0.png", "1.png"), *unreadable(DAMAGED))),
    Broken("cut off.tar", cut(tarred(NOISE)), CUT_TAR),
    Broken("cut off.tar.gz", cut(gzip.compress(tarred(NOISE))), CUT_TAR),
    Broken("cut off.tar.zst",  # Of which only whole blocks can be read: here a member each.
           cut(b"".join(zstd(entry(name, data)) for name, data in NOISE.items())), CUT_ZIP),
    Broken("cut before its first block ends.tar.bz2", half(bz2.compress(tarred({"a.png": PNG}))),
           unreadable(DAMAGED)),
    Broken("cut before its first block ends.tar.zst", half(zstd(tarred({"a.png": PNG}))),
           unreadable(DAMAGED)),
    Broken("wrong checksum.tar.gz", with_wrong_byte(gzip.compress(tarred({"a.png": PNG})), -6),
           (*scored("a.png"), *unreadable(DAMAGED))),
    Broken("two in one.tar", tarred({"a.png": PNG}) + tarred({"b.png": PNG}),
           (*scored("a.png"), *unreadable(DAMAGED))),
    # Archives in archives.
    Broken("nested.zip",
           zipped({"in.tar.gz": gzip.compress(tarred({"a.png": PNG})), "b.png": PNG}),
           scored("in.tar.gz!/a.png", "b.png")),
    Broken("nested.tar.gz", gzip.compress(tarred({"in.zip": zipped({"a.png": PNG})})),
           scored("in.zip!/a.png")),
    Broken("nested too deep.zip",
           zipped({"in.zip": zipped({"in.zip": zipped({"a.png": PNG}), "b.png": PNG})}),
           (*unreadable("nested deeper than one level", "in.zip!/in.zip"),
            *scored("in.zip!/b.png"))),
    Broken("with half an archive.tar", tarred({"in.zip": cut(zipped(NOISE)), "b.png": PNG}),
           (*scored("in.zip!/0.png", "in.zip!/1.png", "b.png"), *unreadable(DAMAGED, "in.zip"))),
)  # fmt: skip
