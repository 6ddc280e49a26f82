"""Compressed pixel data of the JPEG family: what their headers say, and whether they are damaged.

Most decoders continue after damaged data, and the rest of the image that they return is noise or is
shifted. libjpeg issues a warning, which neither Pillow nor pylibjpeg reports; simplejpeg (also
libjpeg-turbo) raises it as an error. CharLS raises for JPEG-LS. OpenJPEG does not detect damage.
"""

import re
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cxr.images.decoding.verdict import MAX_JPEG_SCANS, Facts, RejectedError

# ITU-T T.81 table B.1, ITU-T T.87: the second byte of the marker of a frame header.
LOSSLESS = 0xC3
JPEG_LS = 0xF7
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_PROGRESSIVE = (0xC2, 0xCA)
_ARITHMETIC = (0xC9, 0xCA)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), JPEG_LS)
_ANY_LOSSLESS = (LOSSLESS, 0xC7, 0xCB, 0xCF)

_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))

DAMAGED = "the compressed data are damaged or cut short"
NOT_CHECKED = "an unusual JPEG: damage in it would not be noticed"

# What libjpeg-turbo says of sound data: of a header that it takes as usual, and of a subsampling
# that its simpler interface, which simplejpeg calls, does not know.
_NO_DAMAGE = ("unknown JFIF revision", "Unknown Adobe color transform", "subsampling level")

# The longest run of zeros in 480 JPEG 2000 streams made from 40 radiographs is 4 bytes; an empty
# packet is one more. A hole in a disk image or a download is filled with zeros.
_MAX_ZEROS = 32


@dataclass(frozen=True)
class FrameHeader:
    """What the frame header of a JPEG stream says. Source: ITU-T T.81 table B.2."""

    process: int
    """Second byte of its marker, such as 0xC0 (baseline)."""
    precision: int
    """Bits of a sample."""
    rows: int
    columns: int
    components: int
    offset: int
    """Of its marker in the stream."""
    first_scan: int
    """Offset of the marker of the first scan."""
    is_single_scan: bool
    """Whether the first scan holds all components, and so the whole image of a sequential JPEG."""

    @property
    def is_scalable(self) -> bool:
        """Whether libjpeg can decode at a fraction of the size: made of DCT blocks."""
        return self.process in (*_SEQUENTIAL, *_PROGRESSIVE)


class NotCheckedError(Exception):
    """Sound or not: the decoder that would tell cannot read this stream."""


def read_frame_header(stream: bytes) -> FrameHeader | None:
    """The first frame header, looked for as libjpeg does; `None` without one or without a scan."""
    frame: tuple[int, int, int, int, int, int] | None = None
    at = 2
    while 0 <= (at := stream.find(b"\xff", at)) <= len(stream) - 10:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0x00, *_WITHOUT_LENGTH):
            at += 2
            continue
        if marker == 0xD9:
            return None
        if marker == 0xDA:
            if frame is None:
                return None
            is_single = frame[0] not in _PROGRESSIVE and stream[at + 4] == frame[4]
            return FrameHeader(*frame, first_scan=at, is_single_scan=is_single)
        if marker in _FRAMES and frame is None:
            frame = (marker, *struct.unpack_from(">BHHB", stream, at + 4), at)
        at += 2 + max(2, struct.unpack_from(">H", stream, at + 2)[0])
    return None


def in_8_bits(stream: bytes, header: FrameHeader) -> bytes:
    """The stream as if its samples had 8 bits where they have more."""
    if header.precision <= 8:
        return stream
    at = header.offset + 4
    return stream[:at] + b"\x08" + stream[at + 1 :]


def mend_scan_headers(stream: bytes, header: FrameHeader) -> bytes:
    """The stream with the only scan parameters that a sequential process can have.

    Some devices write zeros. libjpeg takes them as meant and warns; pylibjpeg raises. Source:
    ITU-T T.81 table B.3: the first and the last coefficient are 0 and 63, the bit positions 0.
    """
    if header.process not in _SEQUENTIAL:
        return stream
    mended = None
    at = header.first_scan
    while 0 <= at <= len(stream) - 4:
        end = at + 2 + struct.unpack_from(">H", stream, at + 2)[0]
        if at + 8 <= end <= len(stream) and stream[end - 3 : end] != b"\x00\x3f\x00":
            mended = mended or bytearray(stream)
            mended[end - 3 : end] = b"\x00\x3f\x00"
        # Looking for markers takes a twentieth of the time of decoding.
        at = -1 if header.is_single_scan else stream.find(b"\xff\xda", at + 2)
    return bytes(mended) if mended else stream


def decode_strictly(
    stream: bytes, header: FrameHeader, min_width: int = 0, min_height: int = 0
) -> NDArray[np.uint8]:
    """Decode by libjpeg-turbo, which tells of damaged data.

    Args:
        stream: a JPEG, other than JPEG-LS.
        header: its frame header.
        min_width: of the picture, if it may be reduced to 1/2, 1/4 or 1/8; 0 for its own width.
        min_height: the same for the height.

    Returns:
        Gray levels, uint8, (H, W), or RGB, (H, W, 3). Of samples above 8 bits the levels mean
        nothing: the compressed data are read as with 8, for damage alone.

    Raises:
        RejectedError: the data are damaged, of a process that cannot be decoded, or of so many
            scans that decoding would take hours.
        NotCheckedError: they cannot be decoded by this decoder.
    """
    if header.process not in (*_SEQUENTIAL, *_PROGRESSIVE, LOSSLESS):
        raise RejectedError("unreadable", "a JPEG process that cannot be decoded")
    if not header.is_single_scan and stream.count(b"\xff\xda", header.offset) > MAX_JPEG_SCANS:
        end = stream.find(b"\xff\xd9", header.offset)  # Behind it, anything may follow.
        if end < 0 or stream.count(b"\xff\xda", header.offset, end) > MAX_JPEG_SCANS:
            raise RejectedError("refused", f"a JPEG with more than {MAX_JPEG_SCANS} scans")
    before = stream[: header.offset]
    if not header.is_scalable or any(bytes((0xFF, other)) in before for other in _ANY_LOSSLESS):
        # simplejpeg 1.9 reserves memory for the reduced size, and libjpeg-turbo writes a lossless
        # JPEG at its full size. The second condition is for headers that could be read in two ways.
        min_width = min_height = 0
    stream = in_8_bits(stream, header)
    color = "GRAY" if header.components == 1 else "RGB"
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            stream, color, min_width=min_width, min_height=min_height, strict=True
        )
    except ValueError as error:
        if any(known in str(error) for known in _NO_DAMAGE):
            raise NotCheckedError from None
        raise RejectedError("unreadable", DAMAGED) from None
    return pixels[..., 0] if header.components == 1 else pixels


def checked(stream: bytes, facts: Facts) -> bytes:
    """A JPEG or JPEG 2000 stream in which no damage is noticed, with its scan headers mended.

    JPEG-LS is passed on: its decoder raises.

    Raises:
        RejectedError: the data are damaged.
    """
    if stream.startswith(b"\xff\x4f"):
        _check_jpeg2000(stream)
        return stream
    header = read_frame_header(stream)
    if header is None:
        raise RejectedError("unreadable", DAMAGED)
    if header.process == JPEG_LS:
        return stream
    stream = mend_scan_headers(stream, header)
    try:
        decode_strictly(stream, header, 1, 1)
        if header.process not in _ARITHMETIC:  # Whose last bytes an encoder may leave out.
            _check_last_byte(stream, header)
    except NotCheckedError:
        facts.warnings.append(NOT_CHECKED)
    return stream


def _check_last_byte(stream: bytes, header: FrameHeader) -> None:
    """Reject a stream that is decoded without its last byte as well.

    libjpeg reads up to eight bytes ahead, and says nothing of those that it has read and not
    needed. Most small holes change how many are, and two thirds of those that libjpeg passes are
    met so. It takes a second pass, though, so not in JPEG files.
    """
    end = stream.rindex(b"\xff\xd9")
    data = stream[:end].rstrip(b"\0\xff")  # A stuffed byte or padding.
    try:
        decode_strictly(data[:-1] + stream[end:], header, 1, 1)
    except RejectedError:
        return
    raise RejectedError("unreadable", DAMAGED)


def check_rle(frame: bytes, num_pixels: int) -> None:
    """Reject a frame of run lengths whose segments do not give a byte for each pixel.

    pylibjpeg-rle ignores what is too much, and panics where it does not. Damage within bytes that
    are stored as they are cannot be noticed. Source: DICOM PS3.5 annex G.

    Raises:
        RejectedError: a segment gives more or fewer, or has bytes left other than zeros.
    """
    damaged = RejectedError("unreadable", DAMAGED)
    if len(frame) < 64:
        raise damaged
    num_segments, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= num_segments <= 15:
        raise damaged
    for start, end in pairwise((*offsets[:num_segments], len(frame))):
        at, left = start, num_pixels
        while left > 0 and at < end <= len(frame):
            control = frame[at]
            if control < 128:
                left -= control + 1
                at += control + 2
            elif control > 128:
                left -= 257 - control
                at += 2
            else:
                at += 1
        if left or at > end or frame[at:end].strip(b"\0"):
            raise damaged


# Markers of packets, ITU-T T.800 table A.1; no other pair from 0xFF90 on can stand in packets.
_FORBIDDEN = re.compile(rb"\xff[\x90\x93-\xff]")
_HIGH_THROUGHPUT = 0xFF50


def _check_jpeg2000(stream: bytes) -> None:
    """Reject a JPEG 2000 stream whose packets hold what no encoder writes.

    Found so are holes of zeros and most random bytes: of 512 about 60 %, of 4,096 all. What passes
    is decoded to noise in one block of the wavelet. Source: ITU-T T.800 annex A.
    """
    damaged = RejectedError("unreadable", DAMAGED)
    max_zeros: int | None = None
    at, end_of_part = 2, 0
    while at + 4 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == _HIGH_THROUGHPUT:
            return  # Another coder of blocks, of which none of this is known.
        if marker == 0xFFD9:
            return
        if marker == 0xFF52 and length >= 12:  # COD
            max_zeros = _max_zeros(stream[at + 4 : at + 2 + length])
        if marker == 0xFF90:  # SOT
            size = struct.unpack_from(">I", stream, at + 6)[0] if at + 10 <= len(stream) else 0
            end_of_part = at + size if size else len(stream) - 2
        if marker == 0xFF93:  # SOD
            if not at < end_of_part <= len(stream):
                raise damaged
            packets = stream[at + 2 : end_of_part]
            if _FORBIDDEN.search(packets):
                raise damaged
            if max_zeros is not None and bytes(max_zeros + 1) in packets:
                raise damaged
            at = end_of_part
            continue
        if marker < 0xFF4F:
            raise damaged
        at += 2 + length


def _max_zeros(style: bytes) -> int | None:
    """How many zeros may follow each other in packets; `None` if any number.

    An empty packet is a zero, so all packets of a tile may be. Their number is not known where a
    tile is divided into precincts, and raw bits may all be zero. Source: ITU-T T.800 table A.13.
    """
    has_precincts, bypasses = style[0] & 1, style[8] & 1
    if has_precincts or bypasses:
        return None
    layers, levels = struct.unpack_from(">H", style, 2)[0], style[5]
    return _MAX_ZEROS + 4 * int(layers) * (levels + 1)
