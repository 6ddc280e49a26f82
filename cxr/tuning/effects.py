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
from cxr.tuning.space import Level

NUM_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Estimates:
    """A figure of several settings on the same folds and resamples."""

    values: Floats
    """Of each setting and fold, (T, K); NaN where undefined."""
    resampled: Floats
    """Mean over folds of each setting in each resample, (T, B)."""

    def interval(self, index: int) -> Interval | None:
        """A setting's mean over folds with its interval; None where a fold is undefined."""
        values = self.values[index]
        if not np.isfinite(values).all():
            return None
        return _interval(float(values.mean()), self.resampled[index])


@dataclass(frozen=True)
class Judged:
    """Figures of several settings on the same folds, all from the same resamples."""

    auc: Estimates
    balanced_accuracy: Estimates
    """At the threshold that Youden's index chooses on the fold itself."""
    stressed_auc: Estimates
    """Mean over the changes of the images; NaN without any."""
    change_aucs: Floats
    """Of each setting, change and fold, (T, C, K); NaN where undefined."""


def judge(
    y_true: npt.NDArray[np.int64],
    folds: npt.NDArray[np.int64],
    patients: Sequence[str],
    logits: Floats,
    members: npt.NDArray[np.int64],
    stressed: Floats,
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
        members: positions of the images that were also judged under changes, (M,).
        stressed: the logits of those under each change, (T, C, M), NaN as in `logits`.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8, for
    resampling at two levels.
    """
    generator = np.random.default_rng(seed)
    names = np.unique(folds)
    shape = (len(logits), len(names))
    auc, balanced, stressed_auc = (np.full(shape, np.nan) for _ in range(3))
    by_change = np.full((len(logits), stressed.shape[1], len(names)), np.nan)
    drawn_auc = np.full((*shape, num_resamples), np.nan)
    drawn_balanced = np.full((*shape, num_resamples), np.nan)
    drawn_stressed = np.full((*shape, num_resamples), np.nan)
    for k, fold in enumerate(names):
        images = np.flatnonzero(folds == fold)
        positive = y_true[images] == 1
        _, patient = np.unique(np.asarray(patients)[images], return_inverse=True)
        drawn = metrics.draw_patients(generator, num_resamples, int(patient.max()) + 1)
        weights = np.concatenate([np.ones((1, len(images))), drawn[:, patient]])
        for t, scores in enumerate(logits[:, images]):
            if not _is_defined(positive, scores):
                continue
            area = metrics.weighted_auc(positive, scores, weights)
            right = _balanced_accuracy(positive, scores, weights)
            auc[t, k], drawn_auc[t, k] = area[0], area[1:]
            balanced[t, k], drawn_balanced[t, k] = right[0], right[1:]
        # The images under changes, with the weights that they have in the same resamples.
        changed = np.flatnonzero(folds[members] == fold)
        positions = np.searchsorted(images, members[changed])
        positive, weights = positive[positions], weights[:, positions]
        for t, of_changes in enumerate(stressed[:, :, changed]):
            if len(of_changes) and all(_is_defined(positive, scores) for scores in of_changes):
                areas = np.stack(
                    [metrics.weighted_auc(positive, scores, weights) for scores in of_changes]
                )
                by_change[t, :, k], stressed_auc[t, k] = areas[:, 0], areas[:, 0].mean()
                drawn_stressed[t, k] = areas[:, 1:].mean(axis=0)
    chosen = generator.integers(len(names), size=(num_resamples, len(names)))
    resample = np.arange(num_resamples)[:, None]

    def estimates(values: Floats, drawn: Floats) -> Estimates:
        return Estimates(values, drawn[:, chosen, resample].mean(axis=2))

    return Judged(
        estimates(auc, drawn_auc),
        estimates(balanced, drawn_balanced),
        estimates(stressed_auc, drawn_stressed),
        by_change,
    )


def _is_defined(positive: metrics.Bools, scores: Floats) -> bool:
    return bool(np.isfinite(scores).all() and positive.any() and not positive.all())


def _balanced_accuracy(positive: metrics.Bools, scores: Floats, weights: Floats) -> Floats:
    probs = metrics.probabilities(scores, metrics.Scaling())
    called = metrics.choose_operating_point(positive, probs).predict(probs)
    sensitivity = metrics.divide(weights @ (positive & called), weights @ positive)
    specificity = metrics.divide(weights @ (~positive & ~called), weights @ ~positive)
    return (sensitivity + specificity) / 2


def _interval(value: float, resampled: Floats) -> Interval:
    """With percentile bounds."""
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def compare(
    settings: Sequence[Mapping[str, Any]],
    auc: Estimates,
    grid: Mapping[str, Sequence[Level]],
    num_images: int,
    num_patients: int,
) -> list[Effect]:
    """The effect of each value of each factor against the factor's first.

    Averaged over the other factors of the grid, wherever both values have a figure there.

    Args:
        settings: T settings.
        auc: of the settings, on images as they are or under changes.
        grid: the factors with their values.
        num_images: behind each figure.
        num_patients: behind each figure.
    """
    usable: metrics.Bools = np.asarray(np.isfinite(auc.values).all(axis=1))
    means = auc.values.mean(axis=1)
    effects = []
    for factor, levels in grid.items():
        for level in levels[1:]:
            differences, resampled = [], []
            for ones, others in _pairs(settings, usable, grid, factor, level, levels[0]):
                differences.append(means[ones].mean() - means[others].mean())
                resampled.append(
                    auc.resampled[ones].mean(axis=0) - auc.resampled[others].mean(axis=0)
                )
            if differences:
                difference = _interval(float(np.mean(differences)), np.mean(resampled, axis=0))
                names = str(level), str(levels[0])
                effects.append(Effect(factor, *names, difference, num_images, num_patients))
    return effects


def _pairs(
    settings: Sequence[Mapping[str, Any]],
    usable: metrics.Bools,
    grid: Mapping[str, Sequence[Level]],
    factor: str,
    level: Level,
    reference: Level,
) -> list[tuple[list[int], list[int]]]:
    """Settings with the level and with the reference, for each point of the other grid factors."""
    groups: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for index, setting in enumerate(settings):
        if usable[index] and setting[factor] in (level, reference):
            point = tuple(str(setting[name]) for name in grid if name != factor)
            groups.setdefault(point, ([], []))[setting[factor] == reference].append(index)
    return [(ones, others) for ones, others in groups.values() if ones and others]


def sentence(effects: Sequence[Effect], factor: str, figure: str = "AUC") -> str:
    """Whether a factor helps, hurts or makes no difference by its best value against the reference.

    Where the interval of the difference allows none of the three, the sentence says so.

    Args:
        effects: of all factors.
        factor: that the sentence is about.
        figure: what the differences are of.
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
        f"{name}: {best.level} against {best.reference} {verdict}: {figure}"
        f" {best.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]{remark},"
        f" n = {best.num_images:,} images of {best.num_patients:,} patients{several}."
    )
