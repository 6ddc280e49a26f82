"""The page on a search over training settings: what matters, by how much, and what was best."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from markupsafe import Markup

from cxr.metrics.results import AUC_MARGIN, Effect, Interval, TrialResult
from cxr.reports.figures import comparison
from cxr.reports.figures.drawing import fitted
from cxr.reports.heatmaps import heat_maps, setting_label
from cxr.reports.rendering import count, render


@dataclass(frozen=True)
class TuningReport:
    """What the tuning page shows."""

    title: str
    data: str
    """The name of the data; one that begins with `"phantom"` puts a warning on the page."""
    recipe: Mapping[str, Any]
    """What all trials share."""
    grid: Mapping[str, Sequence[str]]
    """The factors of the full grid, with their values in the order shown."""
    sampled: Sequence[str]
    """The factors whose values, numbers, were drawn at random; may be empty."""
    trials: Sequence[TrialResult]
    effects: Sequence[Effect]
    """May be empty; shown by factor and reference."""
    answers: Sequence[str]
    """A sentence for each question that the search was to answer; may be empty."""
    num_folds: int
    """The same patient-disjoint folds for every trial."""
    num_images: int
    num_patients: int
    select: Literal["clean", "stressed"] = "clean"
    """By which AUC trials are ranked and effects are measured."""
    stress: str = ""
    """A sentence on what the stressed AUC is; empty where there is none."""
    notes: Sequence[str] = ()
    """What a reader must know, such as how many images were skipped and why."""
    facts: Mapping[str, Any] | None = None
    """Where the figures come from: versions, machine, time."""


@dataclass(frozen=True)
class _Figure:
    """By what trials are ranked."""

    name: str
    of: Callable[[TrialResult], Interval | None]


_FIGURES: Final[Mapping[str, _Figure]] = {
    "clean": _Figure("AUC", lambda trial: trial.auc),
    "stressed": _Figure("stressed AUC", lambda trial: trial.stressed_auc),
}

_COLUMNS: Final = (
    "setting", "AUC", "stressed AUC", "balanced accuracy", "AUC per fold", "seconds",
)  # fmt: skip

_CLEAN_COLUMNS: Final = tuple(name for name in _COLUMNS if name != "stressed AUC")


def tuning_page(report: TuningReport) -> str:
    """The report as one HTML document that loads nothing."""
    # Best first; equal ones in the order given.
    figure = _FIGURES[report.select]
    aucs = [(auc.value, trial) for trial in report.trials if (auc := figure.of(trial))]
    aucs.sort(key=lambda pair: pair[0], reverse=True)
    ranked = [trial for _, trial in aucs]
    unranked = [trial for trial in report.trials if figure.of(trial) is None]
    num_failed = sum(trial.failed for trial in report.trials)
    losses = {"failed": num_failed, "undefined": len(unranked) - num_failed}
    maps = heat_maps(report.grid, [*ranked, *unranked])
    return render(
        "tuning.html",
        title=report.title,
        report=report,
        sample=(
            f"Cross-validation on {report.data}: {count(report.num_images, 'image')} of"
            f" {count(report.num_patients, 'patient')} in {count(report.num_folds, 'fold')}"
        ),
        ranked=ranked,
        unranked=unranked,
        losses=", ".join(f"{number:,} {outcome}" for outcome, number in losses.items() if number),
        num_ties=sum(auc == aucs[0][0] for auc, _ in aucs) - 1,
        figure=figure.name,
        best_auc=figure.of(ranked[0]) if ranked else None,
        columns=_COLUMNS if any(trial.stressed_auc for trial in report.trials) else _CLEAN_COLUMNS,
        label_of=functools.partial(setting_label, report.grid),
        heat_maps=maps,
        several_in_a_cell=any(
            cell.num_trials > 1 for heat_map in maps for _, cells in heat_map.rows for cell in cells
        ),
        effects=_effect_figures(report.effects, figure.name),
        margin=f"{AUC_MARGIN:g}",
        samples=[
            (factor, *_sample_figure(f"sampled-{index}", factor, report.trials, figure))
            for index, factor in enumerate(report.sampled)
        ],
    )


def _bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high


def _effect_figures(effects: Sequence[Effect], name: str) -> list[tuple[str, Markup, str]]:
    """Heading, differences around a zero line, and sample size, per factor and reference."""
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((effect.factor, effect.reference), []).append(effect)
    bounds = [bound for effect in effects for bound in _bounds(effect.difference)]
    span = min([0.0, *bounds]), max([0.0, *bounds])
    return [
        (
            f"{factor}, against {reference}",
            comparison.differences(
                f"effect-{index}",
                f"Change in {name} by {factor}, against {reference}",
                [(effect.level, *_bounds(effect.difference)) for effect in group],
                span,
                f"{name}, minus that of {fitted(reference)}",
            ),
            _sample_sizes(group),
        )
        for index, ((factor, reference), group) in enumerate(groups.items())
    ]


def _sample_sizes(effects: Sequence[Effect]) -> str:
    """`5,232 images of 2,790 patients.`; where sizes differ, the levels of each."""
    levels: dict[str, list[str]] = {}
    for effect in effects:
        size = f"{count(effect.num_images, 'image')} of {count(effect.num_patients, 'patient')}"
        levels.setdefault(size, []).append(effect.level)
    if len(levels) == 1:
        return f"{next(iter(levels))}."
    return "; ".join(f"{size} ({', '.join(names)})" for size, names in levels.items()) + "."


def _sample_figure(
    name: str, factor: str, trials: Sequence[TrialResult], figure: _Figure
) -> tuple[Markup | None, int, int]:
    """AUC against a drawn value, the number of trials that drew one, and of those with an AUC.

    Without an AUC the figure is None.
    """
    drawn = [
        (value, figure.of(trial))
        for trial in trials
        if isinstance(value := trial.setting.get(factor), (int, float))
    ]
    points = [(value, *_bounds(auc)) for value, auc in drawn if auc]
    if not points:
        return None, len(drawn), 0
    missing = [value for value, auc in drawn if not auc]
    description = f"{figure.name} against {factor}"
    drawing = comparison.scatter(name, description, points, missing, fitted(factor), figure.name)
    return drawing, len(drawn), len(points)
