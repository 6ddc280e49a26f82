"""Figures of one classifier under acquisition changes."""

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cxr.metrics import Robustness
from cxr.reports.figures.drawing import PALETTE, SMALL, figure


def under_changes(robustness: Robustness, metric: str, heading: str) -> Markup | None:
    """A metric under each change, with intervals, beside that of the images as they are.

    Args:
        robustness: what is drawn.
        metric: `"auc"`, `"sensitivity"` or `"specificity"`.
        heading: the metric in words, for the axis.

    Returns:
        None where the metric is undefined.
    """
    clean = robustness.clean[metric].value
    if clean is None:
        return None
    worst = robustness.worst(metric)

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axvline(clean, color=PALETTE["muted"], linewidth=1, linestyle=":")
        for row, (name, figures) in enumerate(robustness.changes.items()):
            estimate = figures[metric]
            color = PALETTE["warm" if name == worst else "accent"]
            # None becomes NaN, which is not drawn.
            bounds = np.array([estimate.low, estimate.high], np.float64)
            axes.plot(bounds, [row, row], color=color, solid_capstyle="butt")
            value = np.array([estimate.value], np.float64)
            axes.plot(value, [row], color=color, marker="o", markersize=5.5)
        axes.set_yticks(
            range(len(robustness.changes)), [_words(name) for name in robustness.changes]
        )
        axes.tick_params("y", length=0, labelcolor=PALETTE["ink"])
        axes.grid(axis="y", visible=False)
        left, right = axes.get_xlim()
        axes.set(xlim=(left, min(right, 1.02)), ylim=(len(robustness.changes) - 0.4, -0.6))
        axes.set(xlabel=heading)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))

    size = (SMALL[0], 0.8 + 0.22 * len(robustness.changes))
    return figure(f"robustness-{metric}", f"{heading} under acquisition changes", draw, size)


def _words(name: str) -> str:
    return name.replace("_", " ")
