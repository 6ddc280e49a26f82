"""How much of a heatmap lies at the border of its image, where text markers and edges are."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

BORDER: Final = 0.1
"""Width of the border along each edge, as a share of the image's side."""

BORDER_AREA: Final = 1 - (1 - 2 * BORDER) ** 2
"""The border's share of the area, and of a heatmap that is the same everywhere."""


def border_share(heatmap: NDArray[np.float32]) -> float | None:
    """The share of a heatmap's sum that lies in the border of its image.

    Args:
        heatmap: 0 or above, (S, S).

    Returns:
        0 to 1; None if the heatmap is zero everywhere.
    """
    side = len(heatmap)
    inside = slice(round(BORDER * side), side - round(BORDER * side))
    total = heatmap.sum(dtype=np.float64)
    return float(1 - heatmap[inside, inside].sum(dtype=np.float64) / total) if total else None
