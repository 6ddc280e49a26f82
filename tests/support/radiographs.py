"""Small radiographs drawn for tests, as files of every format that is decoded."""

import functools
import struct
import zlib
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
RLE = "1.2.840.10008.1.2.5"
PATIENT = {"PatientName": "Roentgen^Wilhelm", "PatientID": "P4711", "PatientBirthDate": "18450327"}


@functools.cache
def drawn(height: int = 150, width: int = 130, seed: int = 0) -> np.ndarray:
    """Smooth shadows with grain, gray levels 0-255, uint8, (height, width); no symmetry."""
    y, x = np.mgrid[:height, :width]
    shadow = 110 + 60 * np.sin(9 * x / width + seed) * np.cos(7 * y / height) + 40 * x / width
    grain = np.random.default_rng(seed).normal(0, 4, (height, width))
    pixels: np.ndarray = (shadow + grain).clip(0, 255).astype(np.uint8)
    pixels.setflags(write=False)
    return pixels


def saved(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(
    pixels: np.ndarray, syntax: str = EXPLICIT, frame: bytes | None = None, /, **tags: object
) -> bytes:
    """A chest radiograph as a DICOM file; a tag given as `None` is left out."""
    bits = 8 * pixels.dtype.itemsize
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(syntax)
    header.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
    header.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    rows, columns = pixels.shape[-2:]
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "SOPInstanceUID": "1.2.3",
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        **PATIENT,
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        **tags,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(header, keyword, value)
    if "PixelData" not in tags:
        order: Literal["<", ">"] = ">" if syntax == BIG_ENDIAN else "<"
        native = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        header.PixelData = encapsulate([frame]) if frame else native
        header["PixelData"].VR = "OB" if frame or bits == 8 else "OW"
        header["PixelData"].is_undefined_length = frame is not None
    buffer = BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def radiograph(seed: int = 0, width: int = 130) -> bytes:
    """A JPEG 150 px high, another one for each seed."""
    return saved(drawn(width=width, seed=seed), "JPEG")


def in_16_bits(bits: int = 12, dtype: type = np.uint16) -> np.ndarray:
    """The drawn picture spread over `bits` bits."""
    spread: np.ndarray = drawn().astype(np.int64) * (2**bits - 1) // 255
    return spread.astype(dtype)


def gray_rgb() -> np.ndarray:
    """The drawn picture with three equal channels."""
    return np.repeat(drawn()[..., None], 3, axis=2)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of one byte of data whose header claims another size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
