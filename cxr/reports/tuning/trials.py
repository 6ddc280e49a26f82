"""Every trial of a search as a row, and those without an AUC with their reason."""

from cxr.metrics.results import Interval, TrialResult
from cxr.reports import page
from cxr.reports.page import Html, tag
from cxr.reports.tuning.results import TuningReport
from cxr.reports.tuning.wording import brackets, outcome, setting_of


def trials_section(report: TuningReport) -> Html:
    """Every trial with its figures, the best first."""
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
    words, others = setting_of(report, trial)
    return page.join([words, *(tag("small", line) for line in (*others, *remarks))])


def _estimate(trial: TrialResult, interval: Interval | None) -> Html:
    if interval is None:
        return tag("span", outcome(trial), class_="undefined")
    return page.join([tag("b", page.number(interval.value)), tag("small", brackets(interval))])


def without_auc_sections(report: TuningReport) -> list[Html]:
    """Why each trial without an AUC has none."""
    if not report.rest:
        return []
    rows = [
        (
            _row_name(report, trial, outcome(trial)),
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
