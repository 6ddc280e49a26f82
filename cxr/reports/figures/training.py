"""Figures of a training: what changes from epoch to epoch."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxr.metrics.results import History
from cxr.reports.figures.drawing import PALETTE, SERIES, WIDE, figure, fitted
from cxr.reports.page import Html

_DASHES = ("-", "--", ":")


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
