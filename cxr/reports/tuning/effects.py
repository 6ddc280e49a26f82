"""What each factor of a search does: paired differences, and drawn values against the AUC."""

from collections.abc import Sequence

from cxr.metrics import LEVEL
from cxr.metrics.results import Effect, Interval, TrialResult
from cxr.reports import figures, page
from cxr.reports.page import Html
from cxr.reports.tuning.results import TuningReport


def effect_sections(effects: Sequence[Effect]) -> list[Html]:
    """For each factor and reference, the differences around a zero line."""
    if not effects:
        return []
    groups: dict[tuple[str, str], list[Effect]] = {}
    for effect in effects:
        groups.setdefault((effect.factor, effect.reference), []).append(effect)
    ends = [end for effect in effects for end in _ends_of(effect.difference)]
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


def _ends_of(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.value, interval.high


def _forest(
    name: str, factor: str, reference: str, effects: Sequence[Effect], span: tuple[float, float]
) -> Html:
    drawn = figures.differences(
        name,
        f"Change of the AUC by {factor}, against {reference}",
        [(effect.level, *_ends_of(effect.difference)) for effect in effects],
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


def sampled_sections(report: TuningReport) -> list[Html]:
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
    points = [(value, *_ends_of(auc)) for value, auc in drawn if auc]
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
