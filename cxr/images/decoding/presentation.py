"""From stored DICOM values to displayed gray levels: modality, VOI and inversion."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.images.decoding.levels import MIN_CONTRAST, as_bytes, contrast, thinned
from cxr.images.decoding.tags import code, number, whole
from cxr.images.decoding.verdict import Facts

# Robust ends of the gray scale of a DICOM image without a window: burnt-in markers and dead pixels
# are a fraction of a percent.
_WINDOWLESS_PERCENTILES = (0.5, 99.5)


def shown(stored: NDArray[np.integer[Any]], header: Any, facts: Facts) -> NDArray[np.uint8]:
    """Map stored values to displayed gray levels 0-255, uint8, bone bright.

    Modality LUT or rescaling, then VOI LUT or window, then inversion of MONOCHROME1 (DICOM PS3.4
    annex N.2), computed once for each of the at most 65,536 values of a pixel and then looked up.
    """
    unsigned = np.dtype(f"u{stored.itemsize}")
    values = np.arange(256**stored.itemsize).astype(unsigned).view(stored.dtype).astype(np.float64)
    values = _modality(values, header, facts)
    index = stored.view(unsigned)
    gray = _voi(values, header, facts)
    if gray is not None and contrast(as_bytes(gray)[index]) < MIN_CONTRAST:
        facts.warnings.append("the window in the file shows nothing, ignored")
        gray = None
    if gray is None:
        gray = _windowless(values, index, stored, header)
    if header.PhotometricInterpretation == "MONOCHROME1":
        gray = 1 - gray
    pixels: NDArray[np.uint8] = as_bytes(gray)[index]
    return pixels


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


def _voi(values: NDArray[np.float64], header: Any, facts: Facts) -> NDArray[np.float64] | None:
    """Brightness 0-1 of the values by the first VOI LUT, or else window; `None` without both."""
    try:
        if header.get("VOILUTSequence"):
            levels, white = _look_up(values, header.VOILUTSequence[0], header)
            return np.clip(levels / white, 0, 1)
    except Exception:
        facts.warnings.append("damaged VOI table in the file, ignored")
    center, width = number(header, "WindowCenter"), number(header, "WindowWidth")
    if center is None or width is None:
        facts.warnings.append("no window in the file")
        return None
    function = code(header, "VOILUTFunction") or "LINEAR"
    # PS3.3 section C.11.2.1.2: at least 1 for LINEAR, above 0 for the others.
    possible = width >= 1 if function == "LINEAR" else width > 0
    if not (possible and np.isfinite(width) and np.isfinite(center)):
        facts.warnings.append("impossible window in the file, ignored")
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _windowless(
    values: NDArray[np.float64],
    index: NDArray[np.unsignedinteger[Any]],
    stored: NDArray[np.integer[Any]],
    header: Any,
) -> NDArray[np.float64]:
    """Brightness 0-1 of the values by the range that the image uses."""
    if stored.dtype == np.uint8 and np.array_equal(values, np.arange(256)):
        return values / 255  # Eight bits are gray levels already, as in a JPEG.
    present = thinned(index, 256).ravel()
    padding = whole(header, "PixelPaddingValue")
    if "PixelPaddingValue" in header:
        kept = present[present != padding % 256**stored.itemsize]
        present = kept if kept.size else present
    low, high = np.percentile(values[present], _WINDOWLESS_PERCENTILES)
    gray: NDArray[np.float64] = (values - low) / max(float(high - low), 1e-9)
    return gray.clip(0, 1)


def _look_up(
    values: NDArray[np.float64], item: Any, header: Any
) -> tuple[NDArray[np.float64], float]:
    """Map values through a LUT of a sequence; return the results and their largest possible level.

    Source: DICOM PS3.3 sections C.11.1.1 and C.11.2.1.1: entries, first value mapped, bits.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if first >= 2**15 and header.PixelRepresentation == 1:
        first -= 2**16
    raw = item.LUTData
    if isinstance(raw, bytes):
        little = header.original_encoding[1] is not False
        width = 1 if bits <= 8 and len(raw) < 2 * entries else 2
        raw = np.frombuffer(raw, dtype=f"{'<' if little else '>'}u{width}")
    levels = np.asarray(raw, dtype=np.float64)[:entries]
    if levels.size < entries or not 1 <= bits <= 16:
        raise ValueError("a LUT shorter than its descriptor says")
    index = np.clip(values - first, 0, entries - 1).astype(np.intp)
    return levels[index], 2.0**bits - 1
