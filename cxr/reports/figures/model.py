"""Figures of one classifier: its curves and the distribution of its scores."""

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from cxr import metrics
from cxr.metrics import OperatingPoint
from cxr.reports.figures.drawing import PALETTE, WIDE, figure

_MAX_LINEAR_RATIO = 40
"""Highest over lowest bar on a linear axis; beyond it the lowest would be a hairline."""


def roc(y_true: npt.ArrayLike, probs: npt.ArrayLike, point: OperatingPoint) -> Markup:
    from sklearn.metrics import roc_curve  # Takes two seconds, which the page of scores does not.

    def draw(canvas: Figure) -> None:
        false_positive_rate, sensitivity, _ = roc_curve(y_true, probs, drop_intermediate=True)
        axes = _unit_square(canvas, "1 - specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle=":")
        axes.plot(false_positive_rate, sensitivity, color=PALETTE["accent"], drawstyle="steps-post")
        positive, predicted = np.asarray(y_true) == 1, point.predict(probs)
        _mark(axes, float(predicted[~positive].mean()), float(predicted[positive].mean()))
        axes.legend(loc="lower right")

    return figure("roc", "ROC curve with the operating point", draw)


def precision_recall(y_true: npt.ArrayLike, probs: npt.ArrayLike, point: OperatingPoint) -> Markup:
    from sklearn.metrics import precision_recall_curve

    def draw(canvas: Figure) -> None:
        precision, recall, _ = precision_recall_curve(y_true, probs, drop_intermediate=True)
        axes = _unit_square(canvas, "sensitivity (recall)", "PPV (precision)")
        positive, predicted = np.asarray(y_true) == 1, point.predict(probs)
        share = float(positive.mean())
        axes.axhline(share, color=PALETTE["muted"], linewidth=1, linestyle=":")
        axes.plot(recall, precision, color=PALETTE["accent"], drawstyle="steps-pre")
        if predicted.any():
            _mark(axes, float(predicted[positive].mean()), float(positive[predicted].mean()))
            axes.legend(loc="lower left")

    return figure("pr", "Precision against recall with the operating point", draw)


def reliability_diagram(y_true: npt.ArrayLike, probs: npt.ArrayLike) -> Markup:
    mean_prob, share, counts = metrics.reliability(y_true, probs)

    def draw(canvas: Figure) -> None:
        above, below = canvas.subplots(2, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle=":")
        filled = counts > 0
        above.plot(mean_prob[filled], share[filled], color=PALETTE["accent"], marker="o")
        above.set(ylim=(-0.03, 1.03), ylabel="share with pneumonia")
        edges = np.linspace(0, 1, metrics.NUM_BINS + 1)
        below.bar(edges[:-1], counts, np.diff(edges) * 0.86, align="edge", color=PALETTE["accent"])
        below.set(xlim=(-0.02, 1.02), xlabel="probability of pneumonia", ylabel="images")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))

    return figure("reliability", "Reliability diagram with the images in each bin", draw)


def score_histogram(images: npt.ArrayLike, point: OperatingPoint) -> Markup:
    """The number of images by probability; every bar of a bin that is not empty is visible.

    Args:
        images: in bins of equal width of the calibrated probability of pneumonia, 0-1, (bins,); at
            least one image.
        point: its threshold is marked.
    """
    counts = np.asarray(images)
    num_bins = len(counts)
    filled = counts > 0
    starts, counts = (np.arange(num_bins) / num_bins)[filled], counts[filled]
    logarithmic = bool(counts.max() > _MAX_LINEAR_RATIO * counts.min())

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        width = 1 / num_bins
        axes.bar(starts + width / 2, counts, width * 0.86, color=PALETTE["accent"])
        axes.axvline(
            point.threshold,
            color=PALETTE["warm"],
            linestyle="--",
            label=f"threshold {point.threshold:.3f}",
        )
        axes.set(xlim=(-0.02, 1.02), xlabel="probability of pneumonia", ylabel="images")
        if logarithmic:
            axes.set(yscale="log", ylabel="images (logarithmic)")
            # From one half, so that a bar of one image has a height.
            axes.set_ylim(0.5, 1.6 * counts.max())
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        canvas.legend(loc="outside upper right", handlelength=1.6)

    return figure("scores", "Histogram of the probabilities with the threshold", draw, WIDE)


def _unit_square(canvas: Figure, xlabel: str, ylabel: str) -> Axes:
    axes = canvas.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03), xlabel=xlabel, ylabel=ylabel)
    return axes


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        [x],
        [y],
        linestyle="none",
        marker="o",
        markersize=8,
        markeredgewidth=1.5,
        color=PALETTE["warm"],
        markeredgecolor=PALETTE["card"],
        label="operating point",
    )
