"""The bits of a DICOM pixel: which of them are the stored value, and what the others may hold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr.images.decoding.tags import numbers, whole
from cxr.images.decoding.verdict import Facts

# Of the range of a lossy code stream whose wavelets overshoot it at edges.
_MAX_OVERSHOOT = 1.5


def stored_values(
    cells: NDArray[np.unsignedinteger[Any]], bits: int, signed: bool
) -> NDArray[np.integer[Any]]:
    """The values in the lowest bits of pixel cells, with their sign; the shape of the cells."""
    unused = 8 * cells.itemsize - bits
    if not unused:
        return cells.view(f"i{cells.itemsize}") if signed else cells
    shifted = cells << unused
    return (shifted.view(f"i{cells.itemsize}") if signed else shifted) >> unused


def read_cells(
    cells: NDArray[np.unsignedinteger[Any]], coded_bits: int, lossy: bool, header: Any, facts: Facts
) -> NDArray[np.integer[Any]]:
    """The stored values in decoded pixel cells; sets Bits Stored to what they have.

    What lies above the stored bits, such as an overlay, is masked, in compressed data as in native
    ones; unless the image is smoother with it, since then Bits Stored is wrong.

    Args:
        cells: (H, W) or (H, W, 3), unsigned, 8 or 16 bits, as decoded.
        coded_bits: of a pixel in the code stream; those allocated in native data.
        lossy: an irreversible code stream, which may exceed its range and holds no overlays.
        header: with valid Bits Stored and Pixel Representation.
        facts: takes the warnings.

    Source: DICOM PS3.5 section 8.1.1 and annex D.
    """
    bits = header.BitsStored
    high = whole(header, "HighBit") if numbers(header, "HighBit") else bits - 1
    shift = high - bits + 1
    if shift < 0 or high > 15:
        facts.warnings.append("impossible High Bit in the file, ignored")
        shift = 0
    elif high >= coded_bits:
        shift = 0  # The code stream has no bits there: its encoder has moved them.
    elif shift:
        above, below = cells >> bits, cells & (2**shift - 1)
        if below.any() and not above.any():
            facts.warnings.append("High Bit contradicts the pixels, ignored")
            shift = 0
        else:
            facts.warnings.append("High Bit is not Bits Stored - 1; pixels shifted")
    if shift:
        cells = cells >> shift
    coded_bits -= shift
    bits = header.BitsStored = min(bits, coded_bits)
    signed = header.PixelRepresentation == 1
    stored = stored_values(cells, bits, signed)
    if bits == coded_bits:
        return stored
    if lossy and not signed and cells.max() < _MAX_OVERSHOOT * 2**bits:
        return cells.clip(max=2**bits - 1)
    above = cells >> bits
    all_ones = 2 ** (8 * cells.itemsize - bits) - 1
    # Copies of the sign are no content.
    if ((above == 0) | (signed & (above == all_ones))).all():
        return stored
    complete = stored_values(cells, coded_bits, signed)
    if _roughness(complete) < _roughness(stored):
        facts.warnings.append("Bits Stored contradicts the pixels, ignored")
        header.BitsStored = coded_bits
        return complete
    facts.warnings.append("bits above the stored ones, such as an overlay, masked")
    return stored


def _roughness(values: NDArray[np.integer[Any]]) -> int:
    """Sum of the steps between neighbors in about 256 rows."""
    rows = values[:: max(1, len(values) // 256)].astype(np.int32)
    return int(np.abs(np.diff(rows, axis=1)).sum())
