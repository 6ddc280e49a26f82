"""Gray levels of a raster image: of colors, of transparency, and of 16 bits to a channel."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr.images.decoding.levels import as_bytes
from cxr.images.decoding.verdict import Facts, RejectedError

# A pixel is colored if its channels are more than 32 levels apart, a picture if over 5 % of its
# pixels are: a smaller share are marks. All 5,239 RGB files of Kermany et al. 2018 that were tried
# have equal channels everywhere: spread 0. Three photographs that come with scikit-learn and
# matplotlib have shares of 0.34, 0.51 and 0.79.
_COLOR_SPREAD = 32
_COLOR_SHARE = 0.05

# Of one hue: at most 5 % of the pixels lie more than 16 levels beside the common hue, or beside
# the usual color of their brightness. Sepia and blue film have less than 1 %, also as JPEG of
# quality 50; the photographs above have 24 to 31 %.
_HUE_SPREAD = 16

# Above the bits in use there may be up to 0.5 % of the pixels: burnt-in markers, dead pixels.
_MARKER_SHARE = 0.005


def to_gray(image: Image.Image, facts: Facts) -> NDArray[np.uint8]:
    """Gray levels of an image of 8 bits to a channel, uint8, (H, W).

    Transparent pixels become black, as a viewer shows them on black.

    Raises:
        RejectedError: it is a color picture.
    """
    if image.mode == "L" and "transparency" not in image.info:
        return np.array(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        low, high = image.getchannel("A").getextrema()
        if low == high != 255:
            # Such as BMP files whose fourth byte is not used.
            facts.warnings.append("the same transparency everywhere, taken as opaque")
        elif low != 255:
            facts.warnings.append("transparent pixels taken as black")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    # 64 x 64 single pixels tell a share of 5 % to within 1 %.
    sample = np.asarray(image.resize((64, 64), resample=Image.Resampling.NEAREST))
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    # Fifteen times as fast as a maximum over the last axis.
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    colored = highest - lowest > _COLOR_SPREAD
    if colored.mean() > _COLOR_SHARE:
        if not _has_one_hue(sample.reshape(-1, 3).astype(np.float64)):
            raise RejectedError("refused", "a color picture, not a radiograph")
        facts.warnings.append("tinted in one hue, taken as gray")
    elif colored.any():
        facts.warnings.append("colored marks taken as gray")
    return np.array(image.convert("L"))


def _has_one_hue(pixels: NDArray[np.float64]) -> bool:
    """Whether the colors of pixels, RGB, (4096, 3), are shades of a single one."""
    brightness = pixels @ (0.299, 0.587, 0.114)
    chroma = pixels[:, (0, 2)] - brightness[:, None]
    mean = chroma.mean(axis=0)
    hue = mean / max(float(np.hypot(*mean)), 1e-9)
    beside_hue = np.abs(chroma @ (-hue[1], hue[0])) > _HUE_SPREAD
    opposite = chroma @ hue < -_HUE_SPREAD
    # Tint depends on the brightness alone: 128 pixels of about the same have the same.
    groups = chroma[np.argsort(brightness, kind="stable")].reshape(32, 128, 2)
    beside_usual = np.abs(groups - np.median(groups, axis=1, keepdims=True)).max(2) > _HUE_SPREAD
    shares = (beside_hue.mean(), opposite.mean(), beside_usual.mean())
    return bool(max(shares) <= _COLOR_SHARE)


def scale_levels(
    levels: NDArray[np.unsignedinteger], bits: int, inverted: bool = False
) -> NDArray[np.uint8]:
    """Levels of `bits` bits as levels of 8, uint8; any shape. Above them is white."""
    last = 2**bits - 1
    table = np.minimum(np.arange(max(last, int(levels.max())) + 1), last) / last
    pixels: NDArray[np.uint8] = as_bytes(1 - table if inverted else table)[levels]
    return pixels


def bits_in_use(levels: NDArray[np.unsignedinteger], facts: Facts) -> int:
    """Bits of levels in 16, any shape, so that 12-bit levels in 16 bits do not go black.

    The brightest pixel tells: levels up to 4095 have 12 bits. Except where a few pixels alone are
    above what the others use: by two bits or more, or most of them at one level.
    """
    counts = np.bincount(levels.ravel(), minlength=1)
    bits = max(8, (counts.size - 1).bit_length())
    most = int(np.searchsorted(counts.cumsum(), levels.size * (1 - _MARKER_SHARE)))
    fewer = max(8, most.bit_length())
    above = counts[2**fewer :]
    if fewer < bits and (fewer <= bits - 2 or 2 * above.max() >= above.sum()):
        facts.warnings.append(
            f"{fewer} of 16 bits in use but for a few pixels; scaled by {2**fewer - 1}"
        )
        return fewer
    if bits < 16:
        facts.warnings.append(f"{bits} of 16 bits in use; scaled by {2**bits - 1}")
    return bits
