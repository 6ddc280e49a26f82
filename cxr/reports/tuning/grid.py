"""The full grid of a search as heat maps."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from cxr.metrics import LEVEL
from cxr.metrics.results import Interval, TrialResult
from cxr.reports import page
from cxr.reports.page import Html, tag
from cxr.reports.tuning.results import TuningReport
from cxr.reports.tuning.wording import brackets, named, outcome

Cell = tuple[TrialResult | None, int]
"""The trial that a cell of the grid shows, None if there is none, and of how many."""

_METRICS: Mapping[str, Callable[[TrialResult], Interval | None]] = {
    "AUC": lambda trial: trial.auc,
    "Balanced accuracy": lambda trial: trial.balanced_accuracy,
}

_MAX_BESIDE = 6
"""Columns of two heat maps side by side; more would not leave room for an interval."""


def grid_sections(report: TuningReport) -> list[Html]:
    """Heat maps of the first two factors, a pair for each combination of the others."""
    if not report.grid:
        return []
    ordered = [*report.ranked, *report.rest]
    cells = {at: _cell(report, ordered, at) for at in itertools.product(*report.grid.values())}
    rows, *others = report.grid
    spans = {name: _span(cells.values(), of) for name, of in _METRICS.items()}
    maps = [
        _heat_map(report, cells, fixed, name, spans[name])
        for fixed in itertools.product(*(report.grid[factor] for factor in others[1:]))
        for name in _METRICS
    ]
    axes = f"Rows: {rows}; columns: {others[0]}" if others else f"Rows: {rows}"
    several = (
        " Where several trials share a cell, it shows the one with the highest AUC."
        if any(num > 1 for _, num in cells.values())
        else ""
    )
    wide = bool(others) and len(report.grid[others[0]]) > _MAX_BESIDE
    return [
        page.section(
            "Grid",
            f"{axes}. Mean over {page.count(report.num_folds, 'fold')}, below it "
            f"the {LEVEL:.0%} interval; balanced accuracy at each fold's operating point. The "
            "shade is stretched from the lowest figure found to the highest, however close they "
            "are; cells whose intervals overlap may differ by chance. A frame and the word best "
            f"mark the highest.{several}",
            page.grid(maps, f"{'one' if wide else 'two'} maps"),
        )
    ]


def _cell(report: TuningReport, ordered: Sequence[TrialResult], at: tuple[str, ...]) -> Cell:
    """The first of the trials at these values of the grid's factors, and how many there are."""
    here = [
        trial
        for trial in ordered
        if all(
            _is(trial.setting.get(factor), level)
            for factor, level in zip(report.grid, at, strict=True)
        )
    ]
    return (here[0] if here else None), len(here)


def _is(value: str | float | None, level: str) -> bool:
    """Whether a setting's value is this one of the grid, which has numbers as text."""
    if value is None or isinstance(value, str):
        return value == level
    try:
        return float(level) == value
    except ValueError:
        return str(value) == level


def _span(
    cells: Iterable[Cell], of: Callable[[TrialResult], Interval | None]
) -> tuple[float, float]:
    """The lowest and the highest value in the cells; NaN if there is none."""
    intervals = [of(trial) for trial, _ in cells if trial]
    values = [interval.value for interval in intervals if interval]
    return min(values, default=math.nan), max(values, default=math.nan)


def _heat_map(
    report: TuningReport,
    cells: Mapping[tuple[str, ...], Cell],
    fixed: tuple[str, ...],
    name: str,
    span: tuple[float, float],
) -> Html:
    """One figure of every setting, rows and columns by the first two factors of the grid.

    Args:
        report: its grid names the axes.
        cells: by the values of the grid's factors.
        fixed: the values of the factors after the first two.
        name: of the figure, in `_METRICS`.
        span: the lowest and the highest value over all maps of the figure.
    """
    rows, *others = report.grid
    columns: Sequence[tuple[str, ...]] = [()]
    head = [tag("th", rows, scope="col"), tag("th", name, scope="col")]
    above = []
    if others:
        columns = [(level,) for level in report.grid[others[0]]]
        head[1:] = [tag("th", level, scope="col") for (level,) in columns]
        above = [tag("tr", tag("td"), tag("th", others[0], scope="colgroup", colspan=len(columns)))]
    body = [
        tag(
            "tr",
            tag("th", level, scope="row"),
            *(_tinted(cells[(level, *column, *fixed)], _METRICS[name], span) for column in columns),
        )
        for level in report.grid[rows]
    ]
    where = ", ".join(named(dict(zip(others[1:], fixed, strict=True))))
    return page.titled(
        f"{name}, {where}" if where else name,
        tag(
            "div",
            tag(
                "table",
                tag("thead", *above, tag("tr", *head)),
                tag("tbody", *body),
                class_="heat",
                style=f"--columns:{len(columns)}",
            ),
            class_="scroll",
        ),
        _scale(span),
    )


def _tinted(
    cell: Cell, of: Callable[[TrialResult], Interval | None], span: tuple[float, float]
) -> Html:
    """A cell of a heat map; without a figure, it says why."""
    trial, num = cell
    interval = of(trial) if trial else None
    if interval is None:
        status = outcome(trial) if trial else "not tried"
        return tag("td", tag("span", status, class_="undefined" if trial else ""), class_="empty")
    low, high = span
    share = (interval.value - low) / (high - low) if high > low else 0.5
    best = interval.value == high
    parts = [tag("b", page.number(interval.value)), tag("small", brackets(interval))]
    if best:
        parts.append(tag("small", "best", class_="mark"))
    if num > 1:
        parts.append(tag("small", f"1 of {num:,} trials"))
    return tag("td", *parts, class_="best" if best else "", style=f"--share:{share:.3f}")


def _scale(span: tuple[float, float]) -> Html:
    """What the palest and the strongest shade of a heat map stand for."""
    low, high = span
    if math.isnan(low):
        return Html("No trial has a figure here.")
    ends = [tag("span", page.number(value)) for value in (low, high)]
    return tag("span", ends[0], tag("i", aria_hidden="true"), ends[1], class_="scale")
