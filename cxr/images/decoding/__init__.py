"""Bytes of one file -> gray uint8 pixels of one radiograph; errors as values.

The format is recognized by content, never by name. Whatever the bytes, `decode` returns a
`Decoded`: pixels, or one sentence that says why there are none. No patient data leave this
package but the identifiers of study, series and image, which the caller keeps only where asked:
reasons and warnings are fixed sentences, never the text of a library's error, which may quote the
header.
"""

import struct

from cxr.errors import SettingsError
from cxr.images.decoding.levels import refuse_flat
from cxr.images.decoding.quiet import NO_LOGS, NO_WARNINGS
from cxr.images.decoding.raster import decode_raster
from cxr.images.decoding.verdict import (
    MAX_PIXELS,
    MIN_SIDE_PX,
    Decoded,
    Facts,
    RejectedError,
    Status,
    Uids,
    View,
)

__all__ = ["MAX_PIXELS", "MIN_SIDE_PX", "Decoded", "Status", "Uids", "View", "decode", "sniff"]


def decode(
    data: bytes, *, min_px: int = 224, any_body_part: bool = False, any_view: bool = False
) -> Decoded:
    """Decode one radiograph from the bytes of its file.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where both sides stay at `min_px` or more
    (libjpeg scales inside its inverse DCT), so `pixels` may be smaller than the original, but no
    side is below `min_px` unless the original's is. EXIF orientation is applied, as every viewer
    does. A file that is cut short is unreadable, never a partial image.

    Args:
        data: the whole file.
        min_px: side of the square that the caller will resize to.
        any_body_part: accept DICOM files whose header names another body part than the chest.
        any_view: accept DICOM files whose header names a lateral or oblique view.

    Returns:
        The pixels, or the reason why there are none; no exception for any bytes.

    Raises:
        SettingsError: `min_px` is below 1.
    """
    if min_px < 1:
        raise SettingsError(f"min_px {min_px}: must be at least 1.")
    facts = Facts(sniff(data))
    status: Status
    try:
        with NO_WARNINGS:
            if facts.format == "dicom":
                # Imported where there is a DICOM file: pydicom takes half a second.
                from cxr.images.decoding.dicom import decode_dicom

                with NO_LOGS:
                    pixels = decode_dicom(data, facts, any_body_part, any_view)
            else:
                pixels = decode_raster(data, facts, min_px)
        refuse_flat(pixels)
    except RejectedError as rejected:
        status, reason = rejected.status, rejected.reason
    except Exception as error:
        # The class only: the text may quote the header, and so the patient.
        status = "unreadable"
        reason = f"damaged or cut short {facts.format} file ({type(error).__name__})"
    except BaseException as error:
        # pylibjpeg-rle is written in Rust; its panics are not an `Exception`.
        if type(error).__name__ != "PanicException":
            raise
        status, reason = "unreadable", f"damaged {facts.format} file (PanicException)"
    else:
        return facts.decoded(pixels, "ok", "")
    return facts.decoded(None, status, reason)


def sniff(data: bytes) -> str:
    """The format by the first bytes, 132 or more; empty if it is none that can be decoded."""
    # DICOM first: its preamble of 128 bytes may be a TIFF header.
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
    """Whether the bytes plausibly are a DICOM data set without preamble and `DICM`.

    Such a file starts with an element of group 0002 or 0008: explicit with a two-letter value
    representation, in either byte order, or implicit with the small length of a code, date or
    identifier.
    """
    if len(data) < 16:
        return False
    order = "<" if data[1] == 0 else ">"
    group, element, length = struct.unpack_from(f"{order}HHI", data)
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    if data[4:6] in (b"UL", b"OB", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"AE"):
        return True
    return bool(order == "<" and group == 0x0008 and element <= 0x0020 and length <= 128)
