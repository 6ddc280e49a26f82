"""From stored DICOM values to displayed gray levels: modality, VOI, inversion and padding."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.images.decoding.bits import stored_values
from cxr.images.decoding.levels import as_bytes, thinned
from cxr.images.decoding.tags import code, items, number, numbers
from cxr.images.decoding.verdict import Facts

# Robust ends of the gray scale of a DICOM image without a window: burnt-in markers and dead pixels
# are a fraction of a percent.
_WINDOWLESS_PERCENTILES = (0.5, 99.5)

# Gray levels of 255 between the 1st and the 99th percentile that a window has to keep: half of the
# 85 that the flattest of 5,472 radiographs has.
_MIN_WINDOW_CONTRAST = 40

# The share at both ends of the range in use that a window may leave out.
_RANGE_ENDS = 0.05

# The share of the pixels between these ends that a window may make black or white. Measured on 87
# radiographs: a window meant for 8-bit values clips at least 61 % of these pixels in 10-bit data
# and 86 % in 12-bit data; a window from the 5th to the 95th percentile clips at most 8 %.
_MAX_CLIPPED = 0.6

# Alternative windows of a file that are tried.
_MAX_WINDOWS = 8

# Padding that leaves less than this share of an image is a mistake.
_MIN_IMAGE = 0.1


def to_display(stored: NDArray[np.integer[Any]], header: Any, facts: Facts) -> NDArray[np.uint8]:
    """Map stored values to displayed gray levels 0-255, uint8, bone bright.

    Modality LUT or rescaling, then VOI LUT or window, then inversion (DICOM PS3.4 annex N.2),
    computed once for each of the at most 65,536 values of a pixel and then looked up. Padding is
    black.
    """
    unsigned = np.dtype(f"u{stored.itemsize}")
    values = np.arange(256**stored.itemsize).astype(unsigned).view(stored.dtype).astype(np.float64)
    values = _modality(values, header, facts)
    index = stored.view(unsigned)
    padding = _padding(stored, header, facts)
    present = thinned(index, 256)
    present = present.ravel() if padding is None else present[~thinned(padding, 256)]
    gray = _by_range(values, present, stored.dtype)
    for candidate in _voi_candidates(values, header, facts):
        if _keeps_contrast(candidate, gray, present):
            gray = candidate
            break
        facts.warnings.append(
            "a window or VOI table in the file makes the image nearly constant, ignored"
        )
    if _is_inverted(header, facts):
        gray = 1 - gray
    pixels: NDArray[np.uint8] = as_bytes(gray)[index]
    if padding is not None and pixels[padding].any():
        pixels[padding] = 0
        facts.warnings.append("pixel padding shown as black")
    return pixels


def _is_inverted(header: Any, facts: Facts) -> bool:
    """Whether the smallest value is white.

    PS3.3 section C.7.6.1 requires Presentation LUT Shape and photometric interpretation to agree.
    Where they disagree, Presentation LUT Shape decides, since it defines what a display receives
    (as in dcmtk and dcm4che; pydicom and GDCM use the photometric interpretation alone).
    """
    inverted: bool = header.PhotometricInterpretation == "MONOCHROME1"
    shape = code(header, "PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE") and inverted != (shape == "INVERSE"):
        facts.warnings.append(
            "photometric interpretation and Presentation LUT Shape disagree; "
            + ("inverted" if shape == "INVERSE" else "not inverted")
        )
        return shape == "INVERSE"
    return inverted


def _padding(
    stored: NDArray[np.integer[Any]], header: Any, facts: Facts
) -> NDArray[np.bool_] | None:
    """Which pixels fill the rectangle around the image, (H, W); `None` if none do.

    Source: Pixel Padding Value and Pixel Padding Range Limit, PS3.3 section C.7.5.1.1.2. The
    standard forbids such values within the image; where they occur all the same, only pixels that
    are connected to an edge are padding.
    """
    value = numbers(header, "PixelPaddingValue")
    limit = numbers(header, "PixelPaddingRangeLimit")
    if not np.isfinite([*value, *limit]).all() or not value:
        return None
    ends = [value[0], (limit or value)[0]]
    # Signed values are written as unsigned ones, and the reverse.
    bits = np.array(ends, dtype=np.int64).astype(f"u{stored.itemsize}")
    low, high = sorted(stored_values(bits, header.BitsStored, stored.dtype.kind == "i").tolist())
    padding: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    if not padding.any():
        return None
    image = thinned(stored, 256)[~thinned(padding, 256)]
    if image.size < _MIN_IMAGE * thinned(stored, 256).size:
        facts.warnings.append("pixel padding covers the image, ignored")
        return None
    darkest, brightest = np.percentile(image, _WINDOWLESS_PERCENTILES)
    if darkest < low and high < brightest:
        # A level of the image, too: only padding between it and an edge.
        padding &= _reaches_edge(padding)
    return padding


def _reaches_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether all pixels up to an edge, in a row or column, are in the mask; (H, W)."""
    reached = np.zeros_like(mask)
    for axis in (0, 1):
        reached |= np.logical_and.accumulate(mask, axis=axis)
        reached |= np.flip(np.logical_and.accumulate(np.flip(mask, axis), axis=axis), axis)
    return reached


def _modality(values: NDArray[np.float64], header: Any, facts: Facts) -> NDArray[np.float64]:
    try:
        if header.get("ModalityLUTSequence"):
            return _look_up(values, header.ModalityLUTSequence[0], header)[0]
        slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
        if slope is not None and intercept is not None:
            if slope != 0 and np.isfinite(slope) and np.isfinite(intercept):
                return values * slope + intercept
            facts.warnings.append("impossible rescaling in the file, ignored")
    except Exception:
        facts.warnings.append("damaged modality table in the file, ignored")
    return values


def _voi_candidates(
    values: NDArray[np.float64], header: Any, facts: Facts
) -> Iterator[NDArray[np.float64]]:
    """Brightness 0-1 of each value by the VOI LUTs, then by the windows, in the file's order."""
    for item in items(header, "VOILUTSequence"):
        try:
            levels, bits, data_bits = _look_up(values, item, header)
        except Exception:
            facts.warnings.append("damaged VOI table in the file, ignored")
            continue
        if bits != data_bits:
            # Seen from computed radiography systems: 16 bits that store 13. Nearly black otherwise.
            facts.warnings.append(f"a VOI table of {bits} bits in the file holds {data_bits}")
        yield np.clip(levels / (2.0**data_bits - 1), 0, 1)
    centers, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    if not centers or not widths:
        if not items(header, "VOILUTSequence"):
            facts.warnings.append("no window in the file")
        return
    function = code(header, "VOILUTFunction") or "LINEAR"
    for center, width in list(zip(centers, widths, strict=False))[:_MAX_WINDOWS]:
        # PS3.3 section C.11.2.1.2: at least 1 for LINEAR, above 0 for the others.
        possible = width > 0 if function in ("SIGMOID", "LINEAR_EXACT") else width >= 1
        if possible and np.isfinite(width) and np.isfinite(center):
            yield _apply_window(values, center, width, function)
        else:
            facts.warnings.append("impossible window in the file, ignored")


def _apply_window(
    values: NDArray[np.float64], center: float, width: float, function: str
) -> NDArray[np.float64]:
    """Brightness 0-1 of each value under Window Center and Window Width.

    Source: DICOM PS3.3 section C.11.2.1.2 and C.11.2.1.3.
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _keeps_contrast(
    candidate: NDArray[np.float64], by_range: NDArray[np.float64], present: NDArray[Any]
) -> bool:
    """Whether a window or VOI LUT keeps the contrast of the image.

    It may leave out the ends of the range in use, such as the air beside a patient. A window meant
    for other values, such as those of 8 bits on 12, makes most of what lies between white or black.
    """
    brightness = candidate[present]
    low, high = (float(np.percentile(brightness, percent)) for percent in (1, 99))
    if (high - low) * 255 < _MIN_WINDOW_CONTRAST:
        return False
    clipped = (brightness < 1 / 510) | (brightness > 1 - 1 / 510)
    within = np.abs(by_range[present] - 0.5) < 0.5 - _RANGE_ENDS
    return bool((clipped & within).sum() <= _MAX_CLIPPED * within.sum())


def _by_range(
    values: NDArray[np.float64], present: NDArray[Any], dtype: np.dtype[Any]
) -> NDArray[np.float64]:
    """Brightness 0-1 of the values by the range that the image uses."""
    if dtype == np.uint8 and np.array_equal(values, np.arange(256)):
        return values / 255  # Eight bits are gray levels already, as in a JPEG.
    low, high = np.percentile(values[present], _WINDOWLESS_PERCENTILES)
    gray: NDArray[np.float64] = (values - low) / max(float(high - low), 1e-9)
    return gray.clip(0, 1)


def _look_up(
    values: NDArray[np.float64], item: Any, header: Any
) -> tuple[NDArray[np.float64], int, int]:
    """Map values through a LUT; return the results, the descriptor's bits and the bits in use.

    Source: DICOM PS3.3 sections C.11.1.1 and C.11.2.1.1: entries, first value mapped, bits.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if first >= 2**15 and (header.PixelRepresentation == 1 or values.max() < first):
        first -= 2**16
    raw = item.LUTData
    little = header.original_encoding[1] is not False
    words = np.frombuffer(raw, dtype="<u2" if little else ">u2") if isinstance(raw, bytes) else raw
    levels = np.asarray(words).astype(np.uint16)
    if bits <= 8 and levels.size < entries:
        # Two entries to a word, the first one low (PS3.5 section 8.1.1).
        levels = levels.astype("<u2").view(np.uint8)
    levels = levels[:entries]
    if levels.size < entries:
        raise ValueError("a LUT shorter than its descriptor says")
    # A highest entry of 2^n belongs to a table of n bits: some devices exceed the range by one.
    highest = int(levels.max())
    used = (highest - 1).bit_length() if highest else 1
    data_bits = max(1, used) if bits == 16 or used > bits else bits
    index = np.clip(values - first, 0, entries - 1).astype(np.intp)
    return levels[index].astype(np.float64), bits, data_bits
