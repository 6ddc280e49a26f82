"""The page on a search over training settings: what matters, by how much, and what was best."""

from collections.abc import Sequence

from cxr.metrics import LEVEL
from cxr.metrics.results import TrialResult
from cxr.reports import page
from cxr.reports.evaluation import PHANTOMS
from cxr.reports.page import RESEARCH_ONLY, UNDEFINED, Html, tag
from cxr.reports.tuning.effects import effect_sections, sampled_sections
from cxr.reports.tuning.grid import grid_sections
from cxr.reports.tuning.results import TuningReport, auc_of
from cxr.reports.tuning.trials import trials_section, without_auc_sections
from cxr.reports.tuning.wording import FAILED, brackets, sample_of, setting_of

__all__ = ["TuningReport", "tuning_page"]


def tuning_page(report: TuningReport) -> str:
    """The report as one HTML document that loads nothing."""
    banners = [page.banner(PHANTOMS)] if report.data.startswith("phantom") else []
    sections = [
        _headline(report),
        *([page.section("To note", "", page.bullets(report.notes))] if report.notes else []),
        _answers(report),
        *grid_sections(report),
        *effect_sections(report.effects),
        *sampled_sections(report),
        trials_section(report),
        *without_auc_sections(report),
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
        report.title, "Tuning", f"{sample_of(report)}. {RESEARCH_ONLY}", [*banners, *sections]
    )


def _headline(report: TuningReport) -> Html:
    ranked = report.ranked
    failed = sum(trial.failed for trial in report.trials)
    lost = [
        f"{num:,} {what}"
        for num, what in ((failed, FAILED), (len(report.rest) - failed, UNDEFINED))
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
    words, others = setting_of(report, best)
    equal = sum(auc_of(trial) == auc.value for trial in ranked) - 1
    return [
        (
            "Best AUC",
            page.number(auc.value),
            (f"{LEVEL:.0%} {brackets(auc)}", f"the highest of {len(ranked):,}: optimistic"),
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
        f"{sample_of(report)}, no patient in two folds; every setting was judged on the same folds."
        f" In brackets the {LEVEL:.0%} interval over folds and patients.",
        answers,
        tag("p", caution, class_="caution"),
    )
