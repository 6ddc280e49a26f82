"""What the factors of a search do to the AUC, compared in pairs on the same folds and patients.

All settings are judged on the same images, so their figures move together: a resample draws folds,
and in each fold patients, once for all settings, and a difference is taken within it. Its interval
is then that of the difference, and not of two figures that happen to be near each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cxr import metrics
from cxr.metrics import LEVEL, Floats
from cxr.metrics.results import AUC_MARGIN, Effect, Interval

NUM_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Judged:
    """AUC and balanced accuracy of several settings on the same folds."""

    auc: Floats
    """Of each setting and fold, (T, K); NaN where undefined."""
    balanced_accuracy: Floats
    """At the threshold that Youden's index chooses on the fold itself, (T, K)."""
    resampled_auc: Floats
    """Mean over folds of each setting in each resample, (T, B)."""
    resampled_balanced_accuracy: Floats
    """(T, B)."""


def judge(
    y_true: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int64],
    patients: Sequence[str],
    logits: Floats,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Judged:
    """Figures of settings in each fold, and in resamples of folds and their patients.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        folds: the fold in which each image was judged, (N,).
        patients: the patient of each image, N keys.
        logits: of each setting, by the model not trained on the image's fold, (T, N); NaN for a
            setting that failed.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8, for
    resampling at two levels.
    """
    generator = np.random.default_rng(seed)
    names = np.unique(folds)
    shape = (len(logits), len(names))
    auc, balanced = np.full(shape, np.nan), np.full(shape, np.nan)
    drawn_auc = np.full((*shape, num_resamples), np.nan)
    drawn_balanced = np.full((*shape, num_resamples), np.nan)
    for k, fold in enumerate(names):
        members = np.flatnonzero(folds == fold)
        positive = y_true[members] == 1
        _, patient = np.unique(np.asarray(patients)[members], return_inverse=True)
        drawn = metrics.draw_patients(generator, num_resamples, int(patient.max()) + 1)
        weights = np.concatenate([np.ones((1, len(members))), drawn[:, patient]])
        for t, scores in enumerate(logits[:, members]):
            if not np.isfinite(scores).all() or positive.all() or not positive.any():
                continue
            area = metrics.weighted_auc(positive, scores, weights)
            right = _balanced_accuracy(positive, scores, weights)
            auc[t, k], drawn_auc[t, k] = area[0], area[1:]
            balanced[t, k], drawn_balanced[t, k] = right[0], right[1:]
    chosen = generator.integers(len(names), size=(num_resamples, len(names)))
    resample = np.arange(num_resamples)[:, None]
    return Judged(
        auc,
        balanced,
        drawn_auc[:, chosen, resample].mean(axis=2),
        drawn_balanced[:, chosen, resample].mean(axis=2),
    )


def _balanced_accuracy(positive: metrics.Bools, scores: Floats, weights: Floats) -> Floats:
    probs = metrics.probabilities(scores, 1.0)
    called = metrics.choose_operating_point(positive, probs).predict(probs)
    sensitivity = metrics.divide(weights @ (positive & called), weights @ positive)
    specificity = metrics.divide(weights @ (~positive & ~called), weights @ ~positive)
    return (sensitivity + specificity) / 2


def interval(values: Floats, resampled: Floats) -> Interval | None:
    """The mean over folds with its percentile interval; None where a fold is undefined."""
    if not np.isfinite(values).all():
        return None
    return _interval(float(values.mean()), resampled)


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def compare(
    settings: Sequence[Mapping[str, Any]],
    judged: Judged,
    grid: Mapping[str, Sequence[str]],
    num_images: int,
    num_patients: int,
) -> list[Effect]:
    """The effect of each value of each factor against the factor's first.

    Averaged over the other factors of the grid, wherever both values have a figure there.
    """
    usable: metrics.Bools = np.asarray(np.isfinite(judged.auc).all(axis=1))
    means = judged.auc.mean(axis=1)
    effects = []
    for factor, levels in grid.items():
        for level in levels[1:]:
            differences, resampled = [], []
            for ones, others in _pairs(settings, usable, grid, factor, level, levels[0]):
                differences.append(means[ones].mean() - means[others].mean())
                resampled.append(
                    judged.resampled_auc[ones].mean(axis=0)
                    - judged.resampled_auc[others].mean(axis=0)
                )
            if differences:
                difference = _interval(float(np.mean(differences)), np.mean(resampled, axis=0))
                effects.append(
                    Effect(factor, level, levels[0], difference, num_images, num_patients)
                )
    return effects


def _pairs(
    settings: Sequence[Mapping[str, Any]],
    usable: metrics.Bools,
    grid: Mapping[str, Sequence[str]],
    factor: str,
    level: str,
    reference: str,
) -> list[tuple[list[int], list[int]]]:
    """Settings with the level and with the reference, for each point of the other grid factors."""
    groups: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for index, setting in enumerate(settings):
        if usable[index] and setting[factor] in (level, reference):
            point = tuple(str(setting[name]) for name in grid if name != factor)
            groups.setdefault(point, ([], []))[setting[factor] == reference].append(index)
    return [(ones, others) for ones, others in groups.values() if ones and others]


def sentence(effects: Sequence[Effect], factor: str) -> str:
    """Whether a factor helps, hurts or makes no difference by its best value against the reference.

    Where the interval of the difference allows none of the three, the sentence says so.
    """
    of_factor = [effect for effect in effects if effect.factor == factor]
    name = factor.replace("_", " ")
    if not of_factor:
        return f"{name}: no two values could be compared."
    best = max(of_factor, key=lambda effect: effect.difference.value)
    low, high = best.difference.low, best.difference.high
    margin = f"the margin of {AUC_MARGIN:g} around 0"
    if max(-low, high) <= AUC_MARGIN:
        verdict, remark = "shows no difference", f", inside {margin}"
    elif low <= 0 <= high:
        verdict, remark = "leaves it open", f", beyond {margin}"
    else:
        verdict, remark = "helps" if low > 0 else "hurts", ""
    several = " (the best of several values, so a little optimistic)" if len(of_factor) > 1 else ""
    return (
        f"{name}: {best.level} against {best.reference} {verdict}: AUC"
        f" {best.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]{remark},"
        f" n = {best.num_images:,} images of {best.num_patients:,} patients{several}."
    )
