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
from cxr.metrics.results import Effect, TrialResult
from cxr.models.checkpoint import package_versions
from cxr.recipes import Recipe
from cxr.reports import TuningReport, tuning_page
from cxr.training.settings import SharedSettings
from cxr.tuning import effects, space, trials
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


def conclude(
    shared: Shared,
    asked: Space,
    settings: SharedSettings,
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
    logits, seconds = trials.read(shared, tried, images)
    folds = np.asarray(images["fold"])
    patients = images["patient"].to_pylist()
    judged = effects.judge(np.asarray(images["label"]), folds, patients, logits)
    num_patients = len(set(patients))
    results = tuple(
        _trial_result(setting, judged, index, seconds[index], reasons)
        for index, setting in enumerate(tried)
    )
    compared = effects.compare(tried, judged, asked.grid, len(images), num_patients)
    answers = tuple(effects.sentence(compared, factor) for factor in asked.grid)
    ranked = [(trial.auc.value, -index) for index, trial in enumerate(results) if trial.auc]
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
            grid=asked.grid,
            sampled=asked.sampled,
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
    return Search(results, tuple(compared), answers, best, report, best_recipe)


def _words(factor: str) -> str:
    return factor.replace("_", " ")


def _trial_result(
    setting: Setting,
    judged: effects.Judged,
    index: int,
    seconds: float,
    reasons: Mapping[str, str],
) -> TrialResult:
    aucs = judged.auc[index]
    reason = reasons.get(space.identity(setting), "")
    if not reason and (undefined := np.flatnonzero(~np.isfinite(aucs))).size:
        reason = f"the AUC is undefined in fold {undefined[0]}"
    return TrialResult(
        setting=setting,
        auc=effects.interval(aucs, judged.resampled_auc[index]),
        balanced_accuracy=effects.interval(
            judged.balanced_accuracy[index], judged.resampled_balanced_accuracy[index]
        ),
        fold_aucs=[float(auc) if np.isfinite(auc) else None for auc in aucs],
        seconds=seconds,
        reason=reason,
    )


def _trials_table(trials: Sequence[TrialResult]) -> pa.Table:
    rows = []
    for trial in trials:
        row: dict[str, Any] = dict(trial.setting)
        for name, figure in (("auc", trial.auc), ("balanced_accuracy", trial.balanced_accuracy)):
            row |= {
                name: figure.value if figure else None,
                f"{name}_low": figure.low if figure else None,
                f"{name}_high": figure.high if figure else None,
            }
        rows.append(
            row | {"fold_aucs": trial.fold_aucs, "seconds": trial.seconds, "reason": trial.reason}
        )
    return pa.Table.from_pylist(rows)


def table(search: Search, count: int = 10) -> str:
    """The best settings, one a line, for a terminal."""
    ranked = sorted(search.trials, key=lambda trial: -(trial.auc.value if trial.auc else -1.0))
    lines = []
    for trial in ranked[:count]:
        words = ", ".join(f"{_words(k)} {v}" for k, v in trial.setting.items())
        if trial.auc is None or trial.balanced_accuracy is None:
            lines.append(f"  {words}: {trial.reason}")
            continue
        auc, right = trial.auc, trial.balanced_accuracy
        lines.append(
            f"  AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}], balanced accuracy"
            f" {right.value:.3f}: {words}"
        )
    return "\n".join(lines)
