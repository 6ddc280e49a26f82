"""The pixels of JPEG files, by a decoder that reports damage."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr.images.decoding.codestream import (
    JPEG_LS,
    NOT_CHECKED,
    FrameHeader,
    NotCheckedError,
    decode_strictly,
    mend_scan_headers,
    read_frame_header,
)
from cxr.images.decoding.gray import bits_in_use, scale_levels, to_gray
from cxr.images.decoding.verdict import Facts, RejectedError


def jpeg_header(data: bytes) -> FrameHeader:
    """The frame header of a JPEG file.

    Raises:
        RejectedError: there is none, or it announces JPEG-LS.
    """
    header = read_frame_header(data)
    if header is None:
        raise RejectedError("unreadable", "damaged or cut short jpeg file: no frame header")
    if header.process == JPEG_LS:
        raise RejectedError("unreadable", "a JPEG-LS file, which is read within DICOM only")
    return header


def decode_jpeg(
    data: bytes, header: FrameHeader, image: Image.Image, facts: Facts, min_px: int
) -> NDArray[np.uint8]:
    """Decode a JPEG file, reduced in the inverse DCT where that leaves `min_px` pixels.

    Args:
        data: the file.
        header: its frame header.
        image: the same opened by Pillow, of mode L or RGB, not loaded.
        facts: takes the warnings.
        min_px: what no side may fall below.

    Returns:
        Gray levels 0-255, uint8, (H, W), not turned as EXIF data say.

    Raises:
        RejectedError: it is damaged, in color, or of a process that cannot be decoded.
    """
    data = mend_scan_headers(data, header)
    if header.precision > 8:
        return _decode_deep(data, header, facts)
    if header.is_scalable:
        image.draft(None, (min_px, min_px))
    # Chroma is decoded, too, to tell color photographs: on gray content, RGB to L gives back the
    # luma plane exactly. The pixels are those of Pillow's draft, bit for bit.
    try:
        pixels = decode_strictly(data, header, *image.size)
    except NotCheckedError:
        facts.warnings.append(NOT_CHECKED)
        pixels = np.array(image)
    return pixels if pixels.ndim == 2 else to_gray(Image.fromarray(pixels), facts)


def _decode_deep(data: bytes, header: FrameHeader, facts: Facts) -> NDArray[np.uint8]:
    """A gray JPEG of 9 to 16 bits, which Pillow does not decode."""
    from libjpeg.utils import decode as decode_by_pylibjpeg  # Imports pydicom.

    if header.components != 1:
        raise RejectedError("refused", f"a JPEG in color of {header.precision} bits to a channel")
    try:
        decode_strictly(data, header, 1, 1)
    except NotCheckedError:
        facts.warnings.append(NOT_CHECKED)
    levels = decode_by_pylibjpeg(data)
    if levels.shape != (header.rows, header.columns):
        raise RejectedError("unreadable", "the jpeg header and its data disagree on the size")
    bits = header.precision if header.precision < 16 else bits_in_use(levels, facts)
    return scale_levels(levels, bits)
