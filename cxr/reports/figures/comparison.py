"""Figures that compare models, settings or classes."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from cxr.labels import CLASSES
from cxr.reports.figures.drawing import PALETTE, RC, SERIES, WIDE, figure, fitted

_MAX_LINEAR_SPAN = 20
"""Greatest over least number on a linear axis; beyond it the small ones would overlap."""


def class_distribution(counts: Mapping[str, tuple[int, int]]) -> bytes:
    """A PNG bar chart of the images of each class in each split.

    Args:
        counts: by split, the numbers of normal and pneumonia images, in the order drawn.
    """
    file = io.BytesIO()
    with mpl.rc_context(RC):
        canvas = Figure(figsize=WIDE, layout="constrained", facecolor=PALETTE["card"])
        axes = canvas.subplots()
        positions = np.arange(len(counts))
        for index, name in enumerate(CLASSES):
            values = [pair[index] for pair in counts.values()]
            bars = axes.bar(positions + (index - 0.5) * 0.4, values, 0.36, label=name,
                            color=SERIES[index])  # fmt: skip
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=8.5, padding=2, color=PALETTE["muted"])
        axes.set_xticks(positions, list(counts))
        axes.set_ylabel("images")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.1)
        axes.legend(loc="upper right")
        canvas.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def bars(
    name: str,
    description: str,
    values: Mapping[str, tuple[float | None, str]],
    unit: str,
) -> Markup:
    """Horizontal bars with their values.

    Args:
        name: of the figure, unique on the page.
        description: for screen readers.
        values: by row, the value and the group that sets its color; None is "not measured".
        unit: label of the axis.
    """
    groups = list(dict.fromkeys(group for _, group in values.values()))
    longest = max((value for value, _ in values.values() if value is not None), default=1.0)

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        for row, (value, group) in enumerate(values.values()):
            width = value or 0.0
            axes.barh(row, width, height=0.62, color=SERIES[groups.index(group)])
            label = "not measured" if value is None else f"{value:,.{0 if value >= 10 else 1}f}"
            axes.annotate(
                label, (width, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        axes.set_yticks(range(len(values)), [fitted(name) for name in values])
        axes.tick_params("y", length=0, labelcolor=PALETTE["ink"])
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        axes.set(xlim=(0, longest * 1.18 or 1.0), xlabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        patches = [
            Patch(color=SERIES[index], label=fitted(group)) for index, group in enumerate(groups)
        ]
        canvas.legend(handles=patches, loc="outside upper left", ncols=3, handlelength=1.2)

    return figure(name, description, draw, (WIDE[0], 1.2 + 0.36 * len(values)))


def differences(
    name: str,
    description: str,
    rows: Sequence[tuple[str, float, float, float]],
    span: tuple[float, float],
    xlabel: str,
) -> Markup:
    """Differences with their intervals, as bars around a line at zero and as numbers.

    Args:
        name: of the figure, unique on the page.
        description: for screen readers.
        rows: label, lower bound, difference and upper bound, from the top.
        span: range of the axis; contains zero.
        xlabel: label of the x-axis.
    """

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        axes.axvline(0, color=PALETTE["muted"], linewidth=1, linestyle=":")
        for row, (_, low, value, high) in enumerate(rows):
            axes.plot([low, high], [row, row], color=PALETTE["accent"], solid_capstyle="butt")
            axes.plot([value], [row], color=PALETTE["accent"], marker="o", markersize=6)
            axes.annotate(
                f"{value:+.4f} [{low:+.4f}, {high:+.4f}]",
                (1.03, row),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(range(len(rows)), [fitted(label) for label, *_ in rows])
        axes.tick_params("y", length=0, labelcolor=PALETTE["ink"])
        axes.grid(axis="y", visible=False)
        margin = 0.06 * (span[1] - span[0]) or 0.01
        axes.set(xlim=(span[0] - margin, span[1] + margin), ylim=(len(rows) - 0.4, -0.6))
        axes.set(xlabel=xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:+g}"))

    return figure(name, description, draw, (WIDE[0], 0.75 + 0.34 * len(rows)))


def scatter(
    name: str,
    description: str,
    points: Sequence[tuple[float, float, float, float]],
    missing: Sequence[float],
    xlabel: str,
    ylabel: str,
) -> Markup:
    """Estimates with their intervals against a number; the axis is logarithmic for a wide range.

    Args:
        name: of the figure, unique on the page.
        description: for screen readers.
        points: number, lower bound, estimate and upper bound; not empty.
        missing: numbers without an estimate; crosses at the bottom.
        xlabel: label of the x-axis.
        ylabel: label of the y-axis.
    """
    numbers = [number for number, *_ in points] + list(missing)
    logarithmic = min(numbers) > 0 and max(numbers) > _MAX_LINEAR_SPAN * min(numbers)

    def draw(canvas: Figure) -> None:
        axes = canvas.subplots()
        for number, low, value, high in points:
            axes.plot([number, number], [low, high], color=PALETTE["muted"], linewidth=0.9)
            axes.plot([number], [value], color=PALETTE["accent"], marker="o", zorder=3)
        if missing:
            axes.plot(
                missing,
                [0.04] * len(missing),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker="x",
                color=PALETTE["warm"],
                label=f"without {ylabel}",
            )
            canvas.legend(loc="outside upper right", handlelength=1.2)
        if logarithmic:
            axes.set(xscale="log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set(xlabel=f"{xlabel} (logarithmic)" if logarithmic else xlabel, ylabel=ylabel)
        # Room at the bottom: a cross there is no estimate.
        axes.margins(y=0.16)

    return figure(name, description, draw, WIDE)
