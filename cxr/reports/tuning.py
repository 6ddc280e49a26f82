"""The page on a search over training settings: what matters, by how much, and what was best."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.metrics import LEVEL
from cxr.reports import figures, page
from cxr.reports.evaluation import PHANTOMS
from cxr.reports.page import RESEARCH_ONLY, UNDEFINED, Html, tag


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TrialResult:
    """One setting, trained and judged on every fold."""

    setting: Mapping[str, str | float]
    """Its value of each factor: `{"normalization": "per_image", "learning_rate": 0.001}`."""
    auc: Interval | None
    """Mean over the folds, with its interval over folds and patients; None if the trial failed or
    the AUC is undefined."""
    balanced_accuracy: Interval | None
    """The same, at each fold's operating point."""
    fold_aucs: Sequence[float | None]
    """The AUC of each fold, None where undefined; empty if no fold was finished."""
    seconds: float
    """Wall clock of the trial, all folds together."""
    reason: str = ""
    """Why it failed; empty if it did not."""

    @property
    def failed(self) -> bool:
        return self.auc is None and self.reason != ""


@dataclass(frozen=True)
class Effect:
    """How much the AUC changes from one value of a factor to another."""

    factor: str
    level: str
    """The value that is judged: `"per_image"`."""
    reference: str
    """The value that it is set against: `"none"`."""
    difference: Interval
    """Of the AUC, level minus reference, paired."""
    num_images: int
    num_patients: int


@dataclass(frozen=True)
class TuningReport:
    """All that the tuning page shows."""

    title: str
    data: str
    """What the images are, as a reader would name them; `"phantoms"` puts a warning on the page."""
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
    notes: Sequence[str] = ()
    """What a reader must know, such as how many images were left out and why."""
    facts: Mapping[str, Any] | None = None
    """Where the figures come from: versions, machine, time."""

    @property
    def ranked(self) -> list[TrialResult]:
        """The trials with an AUC, best first; equal ones as given."""
        return sorted((trial for trial in self.trials if trial.auc), key=_auc, reverse=True)

    @property
    def rest(self) -> list[TrialResult]:
        """The trials without an AUC, as given."""
        return [trial for trial in self.trials if trial.auc is None]


Cell = tuple[TrialResult | None, int]
"""The trial that a cell of the grid shows, None if there is none, and of how many."""

_FAILED = "failed"


def tuning_page(report: TuningReport) -> str:
    """The report as one HTML document that loads nothing."""
    banners = [page.banner(PHANTOMS)] if report.data.startswith("phantom") else []
    sections = [
        _headline(report),
        *([page.section("To note", "", page.bullets(report.notes))] if report.notes else []),
        _answers(report),
        *_grid(report),
        *_effects(report.effects),
        *_sampled(report),
        _trials(report),
        *_without_auc(report),
        *(
            page.section(heading, caption, page.facts(values))
            for heading, caption, values in (
                ("Recipe", "What all trials share.", report.recipe),
                ("Provenance", "", report.facts),
            )
            if values
        ),
    ]
    return page.page(
        report.title, "Tuning", f"{_sample(report)}. {RESEARCH_ONLY}", [*banners, *sections]
    )


def _sample(report: TuningReport) -> str:
    """The folds, images and patients: the caption of everything on the page."""
    return (
        f"Cross-validation on {report.data}: {page.count(report.num_images, 'image')} of "
        f"{page.count(report.num_patients, 'patient')} in {page.count(report.num_folds, 'fold')}"
    )


def _auc(trial: TrialResult) -> float:
    assert trial.auc is not None
    return trial.auc.value


def _brackets(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if value % 1 else f"{value:g}"


def _named(setting: Mapping[str, str | float]) -> list[str]:
    """Values with the names of their factors: `learning_rate 0.001`."""
    return [f"{factor} {_value(value)}" for factor, value in setting.items()]


def _setting(report: TuningReport, trial: TrialResult) -> tuple[str, list[str]]:
    """The values of the grid's factors, `per_image, balanced`, and the others with their names.

    Without a grid, the names and values of all, and nothing else.
    """
    words = [_value(trial.setting[factor]) for factor in report.grid if factor in trial.setting]
    others = _named(
        {name: value for name, value in trial.setting.items() if name not in report.grid}
    )
    return (", ".join(words), others) if words else (", ".join(others), [])


# ---------------------------------------------------------------- in short


def _headline(report: TuningReport) -> Html:
    ranked = report.ranked
    failed = sum(trial.failed for trial in report.trials)
    lost = [
        f"{num:,} {what}"
        for num, what in ((failed, _FAILED), (len(report.rest) - failed, UNDEFINED))
        if num
    ]
    trials = (f"judged of {len(report.trials):,}", ", ".join(lost) or "none failed")
    return page.tiles(
        [
            ("Trials", f"{len(ranked):,}", trials),
            *(_best(report, ranked) if ranked else _no_best()),
            ("Images", f"{report.num_images:,}", (report.data,)),
            (
                "Patients",
                f"{report.num_patients:,}",
                (f"in {page.count(report.num_folds, 'fold')}", "each patient in one of them"),
            ),
        ]
    )


def _best(
    report: TuningReport, ranked: Sequence[TrialResult]
) -> list[tuple[str, str, Sequence[str]]]:
    best, auc = ranked[0], ranked[0].auc
    assert auc is not None
    words, others = _setting(report, best)
    equal = sum(_auc(trial) == auc.value for trial in ranked) - 1
    return [
        (
            "Best AUC",
            page.number(auc.value),
            (f"{LEVEL:.0%} {_brackets(auc)}", f"the highest of {len(ranked):,}: optimistic"),
        ),
        (
            "Best setting",
            words,
            (
                *([", ".join(report.grid)] if report.grid else []),
                *others,
                *([f"{page.count(equal, 'other setting')} with the same AUC"] if equal else []),
            ),
        ),
    ]


def _no_best() -> list[tuple[str, str, Sequence[str]]]:
    lines = ("no trial has an AUC",)
    return [("Best AUC", UNDEFINED, lines), ("Best setting", UNDEFINED, lines)]


def _answers(report: TuningReport) -> Html:
    answers = page.bullets(report.answers) if report.answers else Html("")
    num_judged = len(report.ranked)
    caution = (
        f"The best of {num_judged if num_judged > 1 else 'many'} trials is optimistic: it is "
        "picked by the very figures shown here, and some of its lead is chance. Nothing was chosen "
        "on the test split; what a setting is worth is told by a model trained with it and "
        f"examined there, once. {RESEARCH_ONLY}"
    )
    return page.section(
        "Answers" if report.answers else "How to read this page",
        f"{_sample(report)}, no patient in two folds; every setting was judged on the same folds."
        f" In brackets the {LEVEL:.0%} interval over folds and patients.",
        answers,
        tag("p", caution, class_="caution"),
    )


# ---------------------------------------------------------------- grid


def _grid(report: TuningReport) -> list[Html]:
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


_METRICS: Mapping[str, Callable[[TrialResult], Interval | None]] = {
    "AUC": lambda trial: trial.auc,
    "Balanced accuracy": lambda trial: trial.balanced_accuracy,
}

_MAX_BESIDE = 6
"""Columns of two heat maps side by side; more would not leave room for an interval."""


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
    where = ", ".join(_named(dict(zip(others[1:], fixed, strict=True))))
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
        status = _status(trial) if trial else "not tried"
        return tag("td", tag("span", status, class_="undefined" if trial else ""), class_="empty")
    low, high = span
    share = (interval.value - low) / (high - low) if high > low else 0.5
    best = interval.value == high
    parts = [tag("b", page.number(interval.value)), tag("small", _brackets(interval))]
    if best:
        parts.append(tag("small", "best", class_="mark"))
    if num > 1:
        parts.append(tag("small", f"1 of {num:,} trials"))
    return tag("td", *parts, class_="best" if best else "", style=f"--share:{share:.3f}")


def _status(trial: TrialResult) -> str:
    return _FAILED if trial.failed else UNDEFINED


def _scale(span: tuple[float, float]) -> Html:
    """What the palest and the strongest shade of a heat map stand for."""
    low, high = span
    if math.isnan(low):
        return Html("No trial has a figure here.")
    ends = [tag("span", page.number(value)) for value in (low, high)]
    return tag("span", ends[0], tag("i", aria_hidden="true"), ends[1], class_="scale")


# ---------------------------------------------------------------- effects


def _effects(effects: Sequence[Effect]) -> list[Html]:
    """For each factor and reference, the differences around a zero line."""
    if not effects:
        return []
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((effect.factor, effect.reference), []).append(effect)
    ends = [end for effect in effects for end in _ends(effect.difference)]
    span = min(0.0, *ends), max(0.0, *ends)
    return [
        page.section(
            "Effects",
            "Change of the AUC from the reference (the line at zero) to each value, paired: the "
            f"same images in the same folds. Bars: the {LEVEL:.0%} interval; one that crosses the "
            "line leaves open whether there is any change, and of many that do not, some miss it "
            "by chance. All on one scale.",
            page.grid(
                [
                    _forest(f"effect-{index}", factor, reference, group, span)
                    for index, ((factor, reference), group) in enumerate(groups.items())
                ],
                "two",
            ),
        )
    ]


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high


def _forest(
    name: str, factor: str, reference: str, effects: Sequence[Effect], span: tuple[float, float]
) -> Html:
    drawn = figures.differences(
        name,
        f"Change of the AUC by {factor}, against {reference}",
        [(effect.level, *_ends(effect.difference)) for effect in effects],
        span,
        f"AUC, minus that of {figures.fitted(reference)}",
    )
    sizes: dict[str, list[str]] = {}
    for effect in effects:
        size = (
            f"{page.count(effect.num_images, 'image')} of "
            f"{page.count(effect.num_patients, 'patient')}"
        )
        sizes.setdefault(size, []).append(effect.level)
    told = [
        f"{size} ({', '.join(levels)})" if len(sizes) > 1 else size
        for size, levels in sizes.items()
    ]
    return page.titled(f"{factor}, against {reference}", drawn, f"{'; '.join(told)}.")


# ---------------------------------------------------------------- sampled


def _sampled(report: TuningReport) -> list[Html]:
    """The AUC against each factor whose values were drawn at random."""
    if not report.sampled:
        return []
    return [
        page.section(
            "Sampled settings",
            f"The AUC of each trial with its {LEVEL:.0%} interval, against a value that was drawn "
            "at random. Trials differ in their other settings too. Crosses at the foot: trials "
            "without an AUC.",
            page.grid(
                [
                    _scatter(f"sampled-{index}", factor, report.trials)
                    for index, factor in enumerate(report.sampled)
                ],
                "two",
            ),
        )
    ]


def _scatter(name: str, factor: str, trials: Sequence[TrialResult]) -> Html:
    drawn = [
        (value, trial.auc)
        for trial in trials
        if isinstance(value := trial.setting.get(factor), (int, float))
    ]
    points = [(value, *_ends(auc)) for value, auc in drawn if auc]
    if not points:
        return page.titled(factor, figures.undefined("no trial has an AUC"))
    return page.titled(
        factor,
        figures.scatter(
            name,
            f"AUC against {factor}",
            points,
            [value for value, auc in drawn if not auc],
            figures.fitted(factor),
            "AUC",
        ),
        f"{page.count(len(points), 'trial')} with an AUC, {len(drawn) - len(points):,} without.",
    )


# ---------------------------------------------------------------- trials


def _trials(report: TuningReport) -> Html:
    rows = [
        (
            _row_name(report, trial),
            _estimate(trial, trial.auc),
            _estimate(trial, trial.balanced_accuracy),
            ", ".join(page.number(auc) for auc in trial.fold_aucs) or "none",
            f"{trial.seconds:,.1f}",
        )
        for trial in [*report.ranked, *report.rest]
    ]
    if not rows:
        return page.section("Trials", "No trial was started.")
    return page.section(
        "Trials",
        f"{page.count(len(rows), 'trial')}, the highest AUC first. Seconds: wall clock of a trial, "
        "all its folds together.",
        page.table(
            ("setting", "AUC", "balanced accuracy", "AUC of each fold", "seconds"),
            rows,
            kind="figures trials",
        ),
    )


def _row_name(report: TuningReport, trial: TrialResult, *remarks: str) -> Html:
    words, others = _setting(report, trial)
    return page.join([words, *(tag("small", line) for line in (*others, *remarks))])


def _estimate(trial: TrialResult, interval: Interval | None) -> Html:
    if interval is None:
        return tag("span", _status(trial), class_="undefined")
    return page.join([tag("b", page.number(interval.value)), tag("small", _brackets(interval))])


def _without_auc(report: TuningReport) -> list[Html]:
    """Why each trial without an AUC has none."""
    if not report.rest:
        return []
    rows = [
        (
            _row_name(report, trial, _status(trial)),
            f"{sum(auc is not None for auc in trial.fold_aucs):,} of {report.num_folds:,}",
            trial.reason or _undefined_because(trial),
        )
        for trial in report.rest
    ]
    return [
        page.section(
            "Trials without an AUC",
            f"{len(rows):,} of {page.count(len(report.trials), 'trial')}. None of them takes part "
            "in a comparison. Folds: those with an AUC.",
            page.table(("setting", "folds", "why"), rows, kind="reasons"),
        )
    ]


def _undefined_because(trial: TrialResult) -> str:
    missing = sum(auc is None for auc in trial.fold_aucs)
    if not missing:
        return "no reason was recorded"
    return f"the AUC is undefined in {missing:,} of {page.count(len(trial.fold_aucs), 'fold')}"
