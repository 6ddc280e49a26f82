"""Figures of the training: losses, AUC and time by epoch."""

from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxr.metrics.results import History
from cxr.reports.figures.drawing import PALETTE, SERIES, WIDE, figure, fitted

_DASHES = ("-", "--", ":")

_MARKERS = ("o", "s", "^", "D", "v", "P")
"""Hollow ones of different shapes: a version of a single epoch is not hidden by another's."""

_TRAINING_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "Loss": {"train_loss": "training", "val_loss": "validation"},
    "Validation AUC": {"val_auc": "validation"},
    "Seconds per epoch": {"seconds": "training and validation"},
}
"""Heading of a figure, and of the history's columns in it key and label."""


def training_curves(history: History) -> list[tuple[str, Markup]]:
    """Headings and figures of losses, AUC and time; those without a value are not drawn."""
    return [
        (heading, _curve(history, heading, columns))
        for heading, columns in _TRAINING_COLUMNS.items()
        if any(_has(history, key) for key in columns)
    ]


def member_curves(histories: Sequence[History]) -> list[tuple[str, Markup]]:
    """As `training_curves`, of the members of an ensemble: a line for each in a figure."""
    members = {f"member {number}": history for number, history in enumerate(histories)}
    return [
        (heading, learning_curves(members, key, heading, "member"))
        for heading, columns in _TRAINING_COLUMNS.items()
        for key in list(columns)[-1:]
        if any(_has(history, key) for history in histories)
    ]


def _curve(history: History, heading: str, columns: Mapping[str, str]) -> Markup:
    """Columns of the history by epoch, one line each.

    Args:
        history: of one training.
        heading: of the figure.
        columns: key and label.
    """

    def draw(canvas: Figure) -> None:
        axes = _epochs(canvas)
        for key, label in columns.items():
            color = PALETTE["warm" if key == "train_loss" else "accent"]
            axes.plot(*_series(history, key), color=color, marker="o", label=label)
        if len(columns) > 1:
            axes.legend(loc="best")
        if "seconds" in columns:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.1)

    return figure(f"curve-{heading.split()[0].lower()}", f"{heading} by epoch", draw)


def learning_curves(
    histories: Mapping[str, History], key: str, label: str, noun: str = "version"
) -> Markup:
    """One column of the history by epoch, one line per version.

    Args:
        histories: by version; not empty.
        key: the column, such as `val_auc`.
        label: what the column holds, for screen readers.
        noun: what each history is of.
    """

    def draw(canvas: Figure) -> None:
        axes = _epochs(canvas)
        for index, (name, history) in enumerate(histories.items()):
            if not _has(history, key):
                continue
            epochs, values = _series(history, key)
            axes.plot(
                epochs,
                values,
                color=SERIES[index % len(SERIES)],
                linestyle=_DASHES[index // len(SERIES) % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
                fillstyle="none",
                label=fitted(name),
            )
        columns = max(1, 50 // (max(len(fitted(name)) for name in histories) + 6))
        canvas.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2)

    return figure(
        f"learning-{key.replace('_', '-')}", f"{label} of each {noun} by epoch", draw, WIDE
    )


def _epochs(canvas: Figure) -> Axes:
    axes = canvas.subplots()
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
