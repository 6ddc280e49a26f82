"""The full grid of a search as heat maps."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cxr.metrics.results import Interval, TrialResult

_METRICS: Final[Mapping[str, Callable[[TrialResult], Interval | None]]] = {
    "AUC": lambda trial: trial.auc,
    "Stressed AUC": lambda trial: trial.stressed_auc,
    "Balanced accuracy": lambda trial: trial.balanced_accuracy,
}


@dataclass(frozen=True)
class Cell:
    """What a heat map shows for one combination of values."""

    trial: TrialResult | None
    """The best of those with these values; None if none was tried."""
    num_trials: int
    estimate: Interval | None
    share: float
    """Where the figure lies between the lowest, 0, and the highest of the map, 1."""
    is_best: bool


@dataclass(frozen=True)
class HeatMap:
    """One metric of every setting, rows and columns by the first two factors of the grid."""

    heading: str
    row_factor: str
    column_factor: str
    """Empty where the grid has one factor."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    """The value of the row's factor, and a cell for each column."""
    low: float | None
    """The lowest figure over all maps of the metric; None if there is none."""
    high: float | None


def heat_maps(grid: Mapping[str, Sequence[str]], trials: Sequence[TrialResult]) -> list[HeatMap]:
    """Maps of the first two factors, for each metric and each combination of the other factors.

    There is none of the stressed AUC where no trial has one.

    Args:
        grid: the factors with their values; without any there is no map.
        trials: the best first.
    """
    if not grid:
        return []
    same = {
        levels: [trial for trial in trials if _matches(trial.setting, grid, levels)]
        for levels in itertools.product(*grid.values())
    }
    row_factor, *others = grid
    column_factor = others[0] if others else ""
    columns = [(level,) for level in grid[column_factor]] if others else [()]
    is_stressed = any(trial.stressed_auc for trial in trials)
    maps = []
    for fixed in itertools.product(*(grid[factor] for factor in others[1:])):
        where = ", ".join(_named(dict(zip(others[1:], fixed, strict=True))))
        for metric, estimate_of in _METRICS.items():
            if metric == "Stressed AUC" and not is_stressed:
                continue
            estimates = [estimate_of(group[0]) for group in same.values() if group]
            values = [estimate.value for estimate in estimates if estimate]
            low, high = min(values, default=None), max(values, default=None)
            rows = [
                [_cell(same[(row, *column, *fixed)], estimate_of, low, high) for column in columns]
                for row in grid[row_factor]
            ]
            maps.append(
                HeatMap(
                    heading=f"{metric}, {where}" if where else metric,
                    row_factor=row_factor,
                    column_factor=column_factor,
                    columns=grid[column_factor] if others else [metric],
                    rows=list(zip(grid[row_factor], rows, strict=True)),
                    low=low,
                    high=high,
                )
            )
    return maps


def _cell(
    trials: Sequence[TrialResult],
    estimate_of: Callable[[TrialResult], Interval | None],
    low: float | None,
    high: float | None,
) -> Cell:
    """The first of the trials with the same values."""
    trial = trials[0] if trials else None
    estimate = estimate_of(trial) if trial else None
    if estimate is None or low is None or high is None:
        return Cell(trial, len(trials), None, 0.0, is_best=False)
    share = (estimate.value - low) / (high - low) if high > low else 0.5
    return Cell(trial, len(trials), estimate, share, is_best=estimate.value == high)


def _matches(
    setting: Mapping[str, str | float], grid: Mapping[str, Sequence[str]], levels: Sequence[str]
) -> bool:
    """Whether a setting has these values of the grid's factors."""
    return all(
        _equals(setting.get(factor), level) for factor, level in zip(grid, levels, strict=True)
    )


def _equals(value: str | float | None, level: str) -> bool:
    """Whether a value is that of the grid, which holds numbers as text."""
    if value is None or isinstance(value, str):
        return value == level
    try:
        return float(level) == value
    except ValueError:
        return str(value) == level


# ---------------------------------------------------------------- settings in words


def setting_label(grid: Mapping[str, Sequence[str]], trial: TrialResult) -> tuple[str, list[str]]:
    """The values of the grid's factors, `per_image, balanced`, and the others with their names.

    Without a grid, the names and values of all, and nothing else.
    """
    setting = trial.setting
    values = [_shown(setting[factor]) for factor in grid if factor in setting]
    others = _named({name: value for name, value in setting.items() if name not in grid})
    return (", ".join(values), others) if values else (", ".join(others), [])


def _named(setting: Mapping[str, str | float]) -> list[str]:
    """Values with the names of their factors: `learning_rate 0.001`."""
    return [f"{factor} {_shown(value)}" for factor, value in setting.items()]


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if value % 1 else f"{value:g}"
