"""Figures as inline SVG that takes its type and colors from the page around it.

Matplotlib draws with the light theme's colors; each is then replaced by the page's variable of that
name, so that one figure reads well in light and dark.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter
from sklearn.metrics import (
    precision_recall_curve,
    roc_curve,
)

from cxr import metrics
from cxr.labels import CLASSES
from cxr.metrics import OperatingPoint
from cxr.reports.page import Html, markup, tag

History = Sequence[Mapping[str, Any]]
"""One mapping for each epoch: epoch, train_loss, val_loss, val_auc, seconds; None if undefined."""

PALETTE = {
    "ink": "#17212b",
    "muted": "#5b6875",
    "line": "#dfe4ea",
    "card": "#ffffff",
    "accent": "#0b7a80",
    "warm": "#d0602a",
    "violet": "#6d5bd0",
    "blue": "#2c72c7",
    "rose": "#b93a76",
}
"""The variables of the page's style, with the values of its light theme."""

SERIES = tuple(PALETTE[name] for name in ("accent", "warm", "violet", "blue", "rose"))
_NAME_CHARS = 20
_DASHES = ("-", "--", ":")

SMALL, WIDE = (3.9, 3.3), (4.8, 2.9)
"""Inches: a third and a half of the page's width, so that the type has one size on both."""

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cxr",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 9,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.labelsize": 9,
    "axes.edgecolor": PALETTE["line"],
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.7,
    "xtick.color": PALETTE["line"],
    "ytick.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
}

SCORE_BINS = 20
"""Bins of a histogram of probabilities, of equal width."""

_MAX_LINEAR_RATIO = 40
"""Between the fullest and the emptiest bin; beyond it the lesser bar would be a hairline."""

_MAX_LINEAR_SPAN = 20
"""Between the greatest and the least number under a scatter; beyond it the least would crowd."""

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def figure(
    name: str, text: str, draw: Callable[[Figure], None], size: tuple[float, float] = SMALL
) -> Html:
    """Draw on a figure of its own and return it as inline SVG.

    Args:
        name: unique on the page; the prefix of the SVG's ids.
        text: what a screen reader says.
        draw: puts axes on the figure.
        size: inches, width and height.
    """
    file = io.StringIO()
    # Settings hold for this block only: nothing of matplotlib's global state is changed.
    with mpl.rc_context(_RC):
        drawn = Figure(figsize=size, layout="constrained")
        draw(drawn)
        drawn.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(file.getvalue(), name, text)


def class_distribution(counts: Mapping[str, tuple[int, int]]) -> bytes:
    """A PNG picture of how many images of each class each split has.

    Args:
        counts: normal and pneumonia of each split, in the order in which they are drawn.
    """
    file = io.BytesIO()
    with mpl.rc_context(_RC):
        drawn = Figure(figsize=WIDE, layout="constrained", facecolor=PALETTE["card"])
        axes = drawn.subplots()
        places = np.arange(len(counts))
        for index, name in enumerate(CLASSES):
            values = [both[index] for both in counts.values()]
            bars = axes.bar(places + (index - 0.5) * 0.4, values, 0.36, label=name,
                            color=SERIES[index])  # fmt: skip
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=8.5, padding=2, color=PALETTE["muted"])
        axes.set_xticks(places, list(counts))
        axes.set_ylabel("images")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.1)
        axes.legend(loc="upper right")
        drawn.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def _inline(svg: str, name: str, text: str) -> Html:
    """An SVG document as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1 HEAD>", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"<]*;? ?", "", svg)
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{name}-\1"', svg)
    svg = svg.replace("xlink:href", "href").replace('href="#', f'href="#{name}-')
    svg = svg.replace("url(#", f"url(#{name}-")
    for variable, color in PALETTE.items():
        svg = svg.replace(color, f"var(--{variable})")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return Html(svg.replace("HEAD", f'role="img" aria-label="{markup(text)}"', 1))


def undefined(reason: str) -> Html:
    """What stands where a figure cannot be drawn."""
    return tag("p", tag("span", "undefined", class_="undefined"), f": {reason}")


# ---------------------------------------------------------------- one model


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


# ---------------------------------------------------------------- scores


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


# ---------------------------------------------------------------- training


def training_curves(history: History) -> list[tuple[str, Html]]:
    """Loss, AUC and time of each epoch: heading and figure each."""
    columns = {
        "Loss": (("train_loss", "training"), ("val_loss", "validation")),
        "Validation AUC": (("val_auc", "validation"),),
        "Seconds an epoch": (("seconds", "training and validation"),),
    }
    color = {"training": PALETTE["warm"]}

    def of(heading: str) -> Html:
        def draw(on: Figure) -> None:
            axes = _epochs(on)
            for key, label in columns[heading]:
                epochs, values = _series(history, key)
                shade = color.get(label, PALETTE["accent"])
                axes.plot(epochs, values, color=shade, marker="o", label=label)
            if len(columns[heading]) > 1:
                axes.legend(loc="best")
            if heading.startswith("Seconds"):
                axes.set_ylim(0, axes.get_ylim()[1] * 1.1)

        return figure(f"curve-{heading.split()[0].lower()}", f"{heading} by epoch", draw)

    return [
        (heading, of(heading))
        for heading, series in columns.items()
        if any(_has(history, key) for key, _ in series)
    ]


def learning_curves(histories: Mapping[str, History], key: str, label: str) -> Html:
    """One quantity of several versions by epoch, a line each."""

    def draw(on: Figure) -> None:
        axes = _epochs(on)
        for index, (name, history) in enumerate(histories.items()):
            if not _has(history, key):
                continue
            epochs, values = _series(history, key)
            axes.plot(
                epochs,
                values,
                color=SERIES[index % len(SERIES)],
                linestyle=_DASHES[index // len(SERIES) % len(_DASHES)],
                marker="o",
                label=fitted(name),
            )
        columns = max(1, 50 // (max(len(fitted(name)) for name in histories) + 6))
        on.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2)

    return figure(
        f"learning-{key.replace('_', '-')}", f"{label} of each version by epoch", draw, WIDE
    )


def fitted(name: str) -> str:
    """A name cut to what leaves room for the axes; the table has it in full."""
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 3] + "..."


def _epochs(on: Figure) -> Axes:
    axes = on.subplots()
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return axes


def _has(history: History, key: str) -> bool:
    return any(epoch.get(key) is not None for epoch in history)


def _series(history: History, key: str) -> tuple[list[int], list[float]]:
    """Epochs and values; NaN, a gap in the line, where a value is undefined."""
    epochs = [int(epoch["epoch"]) for epoch in history]
    return epochs, [_or_nan(epoch.get(key)) for epoch in history]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


# ---------------------------------------------------------------- several models


def bars(
    name: str,
    text: str,
    values: Mapping[str, tuple[float | None, str]],
    unit: str,
) -> Html:
    """Horizontal bars with their figures.

    Args:
        name: of the figure, unique on the page.
        text: what a screen reader says.
        values: by row, the value and the group that colors it; None is "not measured".
        unit: under the axis.
    """
    groups = list(dict.fromkeys(group for _, group in values.values()))
    longest = max((value for value, _ in values.values() if value is not None), default=1.0)

    def draw(on: Figure) -> None:
        axes = on.subplots()
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
        on.legend(handles=patches, loc="outside upper left", ncols=3, handlelength=1.2)

    return figure(name, text, draw, (WIDE[0], 1.2 + 0.36 * len(values)))


# ---------------------------------------------------------------- many settings


def differences(
    name: str,
    text: str,
    rows: Sequence[tuple[str, float, float, float]],
    span: tuple[float, float],
    xlabel: str,
) -> Html:
    """Differences with their intervals around a line at zero, each with its figures.

    Args:
        name: of the figure, unique on the page.
        text: what a screen reader says.
        rows: label, low end, difference and high end each, from the top.
        span: what the axis covers; holds zero.
        xlabel: under the axis.
    """

    def draw(on: Figure) -> None:
        axes = on.subplots()
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

    return figure(name, text, draw, (WIDE[0], 0.75 + 0.34 * len(rows)))


def scatter(
    name: str,
    text: str,
    points: Sequence[tuple[float, float, float, float]],
    missing: Sequence[float],
    xlabel: str,
    ylabel: str,
) -> Html:
    """A figure with its interval against a number; the axis is logarithmic for a wide range.

    Args:
        name: of the figure, unique on the page.
        text: what a screen reader says.
        points: number, low end, figure and high end each, not empty.
        missing: numbers without a figure; crosses at the foot.
        xlabel: under the axis.
        ylabel: beside it.
    """
    numbers = [number for number, *_ in points] + list(missing)
    logarithmic = min(numbers) > 0 and max(numbers) > _MAX_LINEAR_SPAN * min(numbers)

    def draw(on: Figure) -> None:
        axes = on.subplots()
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
            on.legend(loc="outside upper right", handlelength=1.2)
        if logarithmic:
            axes.set(xscale="log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set(xlabel=f"{xlabel} (logarithmic)" if logarithmic else xlabel, ylabel=ylabel)
        # Room at the foot: a cross there is no figure.
        axes.margins(y=0.16)

    return figure(name, text, draw, WIDE)
