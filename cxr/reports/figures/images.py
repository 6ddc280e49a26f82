"""Figures of the images of a data set."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cxr.reports.figures.drawing import PALETTE, WIDE, figure

NUM_BINS = 20
"""Bins of the histogram, of equal width."""


def long_sides(sides: Sequence[int], image_px: int) -> Markup:
    """The number of images by their longer side.

    Args:
        sides: pixels, not all equal.
        image_px: side of the network's input; it is marked.
    """
    counts, edges = np.histogram(sides, NUM_BINS)

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.86, align="edge", color=PALETTE["accent"])
        axes.axvline(
            image_px, color=PALETTE["warm"], linestyle="--", label=f"network's input, {image_px} px"
        )
        axes.set(xlabel="longer side, pixels", ylabel="images")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        canvas.legend(loc="outside upper right", handlelength=1.6)

    return figure("sides", "Histogram of the longer sides of the images", draw, WIDE)
