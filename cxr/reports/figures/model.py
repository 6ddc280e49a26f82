"""Figures of one classifier: its curves and its scores."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from cxr import metrics
from cxr.metrics import OperatingPoint
from cxr.reports.figures.drawing import PALETTE, WIDE, figure
from cxr.reports.page import Html

SCORE_BINS = 20
"""Bins of a histogram of probabilities, of equal width."""

_MAX_LINEAR_RATIO = 40
"""Between the fullest and the emptiest bin; beyond it the lesser bar would be a hairline."""


def roc(y_true: npt.ArrayLike, probs: npt.ArrayLike, point: OperatingPoint) -> Html:
    def draw(on: Figure) -> None:
        false_alarms, found, _ = roc_curve(y_true, probs, drop_intermediate=True)
        axes = _unit_square(on, "1 - specificity", "sensitivity")
        axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle=":")
        axes.plot(false_alarms, found, color=PALETTE["accent"], drawstyle="steps-post")
        positive, called = np.asarray(y_true) == 1, point.predict(probs)
        _mark(axes, float(called[~positive].mean()), float(called[positive].mean()))
        axes.legend(loc="lower right")

    return figure("roc", "ROC curve with the operating point", draw)


def precision_recall(y_true: npt.ArrayLike, probs: npt.ArrayLike, point: OperatingPoint) -> Html:
    def draw(on: Figure) -> None:
        precision, recall, _ = precision_recall_curve(y_true, probs, drop_intermediate=True)
        axes = _unit_square(on, "sensitivity (recall)", "PPV (precision)")
        positive, called = np.asarray(y_true) == 1, point.predict(probs)
        share = float(positive.mean())
        axes.axhline(share, color=PALETTE["muted"], linewidth=1, linestyle=":")
        axes.plot(recall, precision, color=PALETTE["accent"], drawstyle="steps-pre")
        if called.any():
            _mark(axes, float(called[positive].mean()), float(positive[called].mean()))
            axes.legend(loc="lower left")

    return figure("pr", "Precision against recall with the operating point", draw)


def reliability_diagram(y_true: npt.ArrayLike, probs: npt.ArrayLike) -> Html:
    mean_prob, share, counts = metrics.reliability(y_true, probs)

    def draw(on: Figure) -> None:
        above, below = on.subplots(2, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=1, linestyle=":")
        filled = counts > 0
        above.plot(mean_prob[filled], share[filled], color=PALETTE["accent"], marker="o")
        above.set(ylim=(-0.03, 1.03), ylabel="share with pneumonia")
        edges = np.linspace(0, 1, metrics.NUM_BINS + 1)
        below.bar(edges[:-1], counts, np.diff(edges) * 0.86, align="edge", color=PALETTE["accent"])
        below.set(xlim=(-0.02, 1.02), xlabel="probability of pneumonia", ylabel="images")
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))

    return figure("reliability", "Reliability diagram with the images in each bin", draw)


def score_histogram(probs: npt.ArrayLike, point: OperatingPoint) -> Html:
    """How many images have each probability; empty bins aside, no bar is too low to be seen.

    Args:
        probs: calibrated probabilities of pneumonia, 0-1, (N,), not empty.
        point: its threshold is marked.
    """
    # 3 / 20 is the float nearest 0.15, as a score of 0.15 is; `linspace` gives the next one up.
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS
    counts, _ = np.histogram(np.asarray(probs, dtype=np.float64), edges)
    filled = counts > 0
    starts, counts = edges[:-1][filled], counts[filled]
    logarithmic = bool(counts.max() > _MAX_LINEAR_RATIO * counts.min())

    def draw(on: Figure) -> None:
        axes = on.subplots()
        width = 1 / SCORE_BINS
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
            # From a half: a bar of one image has a height.
            axes.set_ylim(0.5, 1.6 * counts.max())
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        on.legend(loc="outside upper right", handlelength=1.6)

    return figure("scores", "Histogram of the probabilities with the threshold", draw, WIDE)


def _unit_square(on: Figure, xlabel: str, ylabel: str) -> Axes:
    axes = on.subplots()
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
