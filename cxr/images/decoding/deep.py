"""PNG and TIFF of 16 bits to a channel, of which Pillow keeps the upper eight where it has colors.

Its unpackers take one byte of a channel and skip the other, by a raw mode that names the byte
order. Decoded again under the other order, the same data give the other byte.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from cxr.images.decoding.gray import bits_in_use, scale_levels
from cxr.images.decoding.verdict import Facts, RejectedError

GRAY_16 = ("I;16", "I;16L", "I;16B")

# In file order where Pillow reads, in the machine's where libtiff does.
_NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER = {"L": "B", "B": "L"}

_TIFF_BITS = 258
_TIFF_PHOTOMETRIC = 262
_TIFF_PLANES = 284

# Gray and alpha of 16 bits: read as four channels of 8, whose bytes come through as they are.
_GRAY_ALPHA_AS_BYTES = "RGBA"


def teach_gray_alpha() -> None:
    """Have Pillow open TIFF files of gray and alpha with 16 bits each, which it has no mode for."""
    for order in (b"II", b"MM"):
        for extra in (0, 1, 2):
            key = (order, 1, (1,), 1, (16, 16), (extra,))
            TiffImagePlugin.OPEN_INFO.setdefault(key, (_GRAY_ALPHA_AS_BYTES, _GRAY_ALPHA_AS_BYTES))


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image that is not loaded has 16 bits to a channel."""
    in_tiff = getattr(image, "tag_v2", {}).get(_TIFF_BITS, ())
    return image.mode in GRAY_16 or ";16" in _raw_mode(image) or 16 in in_tiff


def to_8_bits(image: Image.Image, reopen: Callable[[], Image.Image], facts: Facts) -> Image.Image:
    """An image of 16 bits to a channel in 8, scaled by the bits in use.

    Args:
        image: opened and not loaded.
        reopen: opens it once more.
        facts: takes the warnings.

    Returns:
        An image of mode L, LA, RGB or RGBA.

    Raises:
        RejectedError: its channels are in separate planes, which Pillow reads as of 8 bits.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PLANES, 1) != 1 and image.mode not in GRAY_16:
        raise RejectedError("unreadable", "a TIFF of 16 bits with its channels in separate planes")
    if image.mode in GRAY_16:
        levels = np.asarray(image)
        # White is zero, which Pillow undoes at 8 bits only.
        inverted = tags.get(_TIFF_PHOTOMETRIC) == 0
        return Image.fromarray(scale_levels(levels, bits_in_use(levels, facts), inverted))
    raw_mode = _raw_mode(image)
    if raw_mode in ("LA;16B", _GRAY_ALPHA_AS_BYTES):
        pair = np.dtype(f"{_byte_order(image)}u2")
        pairs = np.asarray(_with_raw_mode(image, "RGBA")).view(pair)
        levels, alpha = pairs[..., 0].astype(np.uint16), (pairs[..., 1] >> 8).astype(np.uint8)
        gray = scale_levels(levels, bits_in_use(levels, facts))
        return Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
    layout, order = raw_mode.split(";16")
    order = _NATIVE if order == "N" else order
    # Premultiplied colors are those on black already.
    kept = "RGBA" if layout == "RGBa" else layout
    upper = np.asarray(_with_raw_mode(image, f"{kept};16{order}"))
    lower = np.asarray(_with_raw_mode(reopen(), f"{kept};16{_OTHER[order]}"))
    levels = upper[..., :3].astype(np.uint16) << 8 | lower[..., :3]
    rgb = scale_levels(levels, bits_in_use(levels, facts))
    return Image.fromarray(np.dstack((rgb, upper[..., 3])) if layout == "RGBA" else rgb)


def _raw_mode(image: Image.Image) -> str:
    """How the first tile's bytes make a pixel, as Pillow names it; empty if there is none."""
    for tile in getattr(image, "tile", ()):
        return str(tile.args if isinstance(tile.args, str) else tile.args[0])
    return ""


def _with_raw_mode(image: Image.Image, raw_mode: str) -> Image.Image:
    """The image, to be loaded as if its bytes made pixels in another way."""
    opened: Any = image
    opened.tile = [
        tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
        for tile in opened.tile
    ]
    return image


def _byte_order(image: Image.Image) -> str:
    """Of the bytes that Pillow's unpackers meet: `"<"` or `">"`."""
    opened: Any = image
    if opened.tile[0].codec_name == "libtiff":
        return "<" if sys.byteorder == "little" else ">"
    return "<" if getattr(image, "tag_v2", None) and opened.tag_v2.prefix == b"II" else ">"
