"""What a search gave: figures of the trials, effects of the factors, the best recipe, a page."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cxr import storage
from cxr.errors import CxrError
from cxr.metrics.results import Effect, Interval, TrialResult
from cxr.models.checkpoint import package_versions
from cxr.recipes import Recipe
from cxr.reports import TuningReport, tuning_page
from cxr.tuning import effects, space, trials
from cxr.tuning.settings import SearchSettings
from cxr.tuning.space import Setting, Space
from cxr.tuning.trials import Shared


@dataclass(frozen=True)
class Search:
    """A finished search."""

    trials: tuple[TrialResult, ...]
    effects: tuple[Effect, ...]
    answers: tuple[str, ...]
    """A sentence for each factor of the grid."""
    best: Recipe
    report: str
    """The page."""
    best_recipe: str
    """The file with `best`."""
    settings: SearchSettings


def conclude(
    shared: Shared,
    asked: Space,
    settings: SearchSettings,
    images: pa.Table,
    reasons: Mapping[str, str],
    name: str,
    notes: Sequence[str],
) -> Search:
    """Compare the trials, and write trials.parquet, best.json and report.html.

    Args:
        shared: what the trials have in common.
        asked: the space of the search.
        settings: of the search.
        images: the radiographs that were judged: row, label, patient, fold.
        reasons: why trials have no figure for every fold, by the identity of their setting.
        name: of the data, for the page.
        notes: on the data, for the page.

    Raises:
        CxrError: not one trial gave a figure.
    """
    output = settings.folder
    tried = asked.settings or trials.settings(shared.folder)
    read = trials.read(shared, tried, images)
    folds = np.asarray(images["fold"])
    patients = images["patient"].to_pylist()
    judged = effects.judge(
        np.asarray(images["label"]), folds, patients, read.logits, read.members, read.stressed
    )
    num_patients = len(set(patients))
    results = tuple(
        _trial_result(setting, judged, index, read.seconds[index], reasons, settings)
        for index, setting in enumerate(tried)
    )
    ranks_by, auc, sample = "AUC", judged.auc, patients
    if settings.ranks_stressed:
        ranks_by, auc = "stressed AUC", judged.stressed_auc
        sample = [patients[position] for position in read.members]
    size = len(sample), len(set(sample))
    compared = effects.compare(tried, auc, asked.grid, *size)
    answers = tuple(effects.sentence(compared, factor, ranks_by) for factor in asked.grid)
    ranked = [
        (figure.value, -index)
        for index, trial in enumerate(results)
        if (figure := rank_figure(trial, settings))
    ]
    if not ranked:
        raise CxrError(
            f"{output}: no trial gave a figure. The first reason:"
            f" {next(iter(trial.reason for trial in results), 'none began')}"
        )
    best = space.apply(shared.recipe, tried[-max(ranked)[1]])
    best = dataclasses.replace(best, name="tuned")
    best_recipe = storage.join(output, "best.json")
    storage.write_bytes(best_recipe, best.to_json().encode())
    storage.write_table(storage.join(output, "trials.parquet"), _trials_table(results))
    report = storage.join(output, "report.html")
    page = tuning_page(
        TuningReport(
            title=f"{shared.recipe.name}: {' and '.join(_words(f) for f in tried[0])}",
            data=name,
            recipe={
                k: v for k, v in dataclasses.asdict(shared.recipe).items() if k not in tried[0]
            },
            grid={name: tuple(map(str, values)) for name, values in asked.grid.items()},
            sampled=asked.sampled,
            select="stressed" if settings.ranks_stressed else "clean",
            stress=_describe_stress(shared, settings),
            trials=results,
            effects=compared,
            answers=answers,
            num_folds=settings.num_folds,
            num_images=len(images),
            num_patients=num_patients,
            notes=notes,
            facts={
                "data": name,
                "weights": Path(str(settings.weights)).name,
                "folds": settings.num_folds,
                "resamples": effects.NUM_RESAMPLES,
                "versions": package_versions(),
            },
        )
    )
    storage.write_bytes(report, page.encode())
    return Search(results, tuple(compared), answers, best, report, best_recipe, settings)


def rank_figure(trial: TrialResult, settings: SearchSettings) -> Interval | None:
    """What a trial is ranked by; None for one that is behind all others."""
    return trial.stressed_auc if settings.ranks_stressed else trial.auc


def _describe_stress(shared: Shared, settings: SearchSettings) -> str:
    """Which images the stressed AUC is of; empty without any."""
    if shared.changed is None:
        return ""
    names = ", ".join(change.name.replace("_", " ") for change in trials.CHANGES)
    return (
        f"Stressed AUC: the mean of the AUCs under {len(trials.CHANGES)} acquisition changes of"
        f" medium severity ({names}), on {len(shared.changed.table):,} of the images, at most"
        f" {settings.stress_images:,} of each fold."
    )


def _words(factor: str) -> str:
    return factor.replace("_", " ")


def _trial_result(
    setting: Setting,
    judged: effects.Judged,
    index: int,
    seconds: float,
    reasons: Mapping[str, str],
    settings: SearchSettings,
) -> TrialResult:
    aucs, stressed_aucs = judged.auc.values[index], judged.stressed_auc.values[index]
    reason = reasons.get(space.identity(setting), "")
    if not reason and (undefined := np.flatnonzero(~np.isfinite(aucs))).size:
        reason = f"the AUC is undefined in fold {undefined[0]}"
    elif not reason and settings.ranks_stressed and not np.isfinite(stressed_aucs).all():
        undefined = np.flatnonzero(~np.isfinite(stressed_aucs))
        reason = f"the stressed AUC is undefined in fold {undefined[0]}"
    stressed_auc = judged.stressed_auc.interval(index)
    by_change = judged.change_aucs[index].mean(axis=1)
    return TrialResult(
        setting=setting,
        auc=judged.auc.interval(index),
        balanced_accuracy=judged.balanced_accuracy.interval(index),
        fold_aucs=[float(auc) if np.isfinite(auc) else None for auc in aucs],
        seconds=seconds,
        reason=reason,
        stressed_auc=stressed_auc,
        change_aucs={
            change.name: float(auc)
            for change, auc in zip(trials.CHANGES, by_change, strict=True)
            if stressed_auc
        },
    )


def _trials_table(trials: Sequence[TrialResult]) -> pa.Table:
    # Of all: a table has the columns of its first row, and a failed trial has none of these.
    changes = dict.fromkeys(name for trial in trials for name in trial.change_aucs)
    rows = []
    for trial in trials:
        row: dict[str, Any] = dict(trial.setting)
        for name, figure in (
            ("auc", trial.auc),
            ("balanced_accuracy", trial.balanced_accuracy),
            ("stressed_auc", trial.stressed_auc),
        ):
            row |= {
                name: figure.value if figure else None,
                f"{name}_low": figure.low if figure else None,
                f"{name}_high": figure.high if figure else None,
            }
        row |= {f"auc_{name}": trial.change_aucs.get(name) for name in changes}
        rows.append(
            row | {"fold_aucs": trial.fold_aucs, "seconds": trial.seconds, "reason": trial.reason}
        )
    return pa.Table.from_pylist(rows)


def _with_bounds(figure: Interval) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def table(search: Search, count: int = 10) -> str:
    """The best settings, one a line, for a terminal."""

    def rank(trial: TrialResult) -> float:
        figure = rank_figure(trial, search.settings)
        return figure.value if figure else -1.0

    ranked = sorted(search.trials, key=rank, reverse=True)
    by = "stressed AUC (--select stressed)" if search.settings.ranks_stressed else "AUC"
    lines = [f"settings by {by}:"]
    for trial in ranked[:count]:
        words = ", ".join(f"{_words(k)} {v}" for k, v in trial.setting.items())
        if trial.auc is None or trial.balanced_accuracy is None:
            lines.append(f"  {words}: {trial.reason}")
            continue
        figures = [f"AUC {_with_bounds(trial.auc)}"]
        if trial.stressed_auc:
            figures.append(f"stressed AUC {_with_bounds(trial.stressed_auc)}")
        figures.append(f"balanced accuracy {trial.balanced_accuracy.value:.3f}")
        lines.append(f"  {', '.join(figures)}: {words}")
    return "\n".join(lines)
