"""The figure of how far images are from those that a model learned from."""

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr.models.unusual import FeatureDistribution
from cxr.reports.figures.drawing import PALETTE, WIDE, figure

NUM_BINS = 30
"""Bins of equal width."""


def distances(values: NDArray[np.float64], distribution: FeatureDistribution) -> Markup:
    """Shares of images by distance to the training images, beside those of the validation images.

    Args:
        values: distances of the examined images, (N,), N at least 1.
        distribution: that they are distances to.
    """
    quantiles = distribution.quantiles
    edges = np.linspace(0, max(values.max(), quantiles[-1], 1e-9) * 1.02, NUM_BINS + 1)
    counts, _ = np.histogram(values, edges)
    shares = np.interp(edges, quantiles, np.linspace(0, 1, len(quantiles)), left=0, right=1)

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.bar(
            edges[:-1], 100 * counts / len(values), np.diff(edges) * 0.86, align="edge",
            color=PALETTE["accent"], label="these images",
        )  # fmt: skip
        axes.stairs(
            100 * np.diff(shares), edges, color=PALETTE["violet"], linewidth=1.6,
            label="validation images",
        )  # fmt: skip
        axes.axvline(
            distribution.threshold, color=PALETTE["warm"], linestyle="--", label="warning above"
        )
        axes.set(xlabel="distance to the training images", ylabel="share of images, %")
        canvas.legend(loc="outside upper right", ncols=3, handlelength=1.4, columnspacing=1.2)

    return figure("distances", "Histogram of distances to the training images", draw, WIDE)
