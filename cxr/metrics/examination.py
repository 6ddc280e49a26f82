"""The metrics of a classifier on a split, with intervals and sample sizes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr.errors import DataError, SettingsError
from cxr.metrics.operating_point import OperatingPoint
from cxr.metrics.scores import Bools, Floats, checked, need_probabilities
from cxr.metrics.weighted import (
    NUM_BINS,
    at_threshold,
    bin_sums,
    denominators,
    divide,
    draw_patients,
    threshold_free,
)

LEVEL = 0.95
"""Coverage of the percentile intervals."""

_BLOCK = 128
"""Resamples computed at once: (block, images) float64, 128 x 5,216 x 8 bytes = 5 MB."""


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; None where it is undefined, never a placeholder."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Images in the denominator: for a sensitivity, those with pneumonia."""
    num_patients: int
    """Patients of those images."""
    num_undefined: int
    """Resamples in which the metric was undefined; the interval is that of the others."""


@dataclass(frozen=True)
class Confusion:
    """Counts of images by actual and predicted class."""

    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int


@dataclass(frozen=True)
class AtThreshold:
    """Metrics of the predictions at one threshold."""

    threshold: float
    confusion: Confusion
    estimates: dict[str, Estimate]
    """accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1; sensitivity_bacteria and
    sensitivity_virus where images of that subtype are known."""


@dataclass(frozen=True)
class Examination:
    """All metrics of a model on one split."""

    num_images: int
    num_patients: int
    num_normal: int
    num_pneumonia: int
    num_resamples: int
    seed: int
    operating_point: OperatingPoint
    threshold_free: dict[str, Estimate]
    """auc, average_precision, brier, expected_calibration_error."""
    at_half: AtThreshold
    """At probability 0.5."""
    at_operating_point: AtThreshold

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, numbers and None for `metrics.json`; an undefined metric is null."""
        interval = f"{LEVEL:.0%} percentile, bootstrap over patients"
        calibration = (
            f"{NUM_BINS} equal-width bins of the probability of pneumonia, "
            "|mean probability - share with pneumonia| weighted by images"
        )
        return {
            **asdict(self),
            "interval": interval,
            "expected_calibration_error_bins": calibration,
        }


def examine(
    y_true: npt.ArrayLike,
    probs: npt.ArrayLike,
    *,
    patients: Sequence[str],
    subtypes: Sequence[str],
    operating_point: OperatingPoint,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Examination:
    """All metrics of a split, with 95 % intervals by a cluster bootstrap over patients.

    A resample draws as many patients as there are, with replacement, with all of their images. The
    weight of an image is the number of times its patient was drawn, so metrics are weighted sums.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        patients: key of the patient of each image, N.
        subtypes: `"bacteria"`, `"virus"` or `""` for each image, N.
        operating_point: chosen on validation images, never on those evaluated here.
        num_resamples: of the bootstrap, at least 1.
        seed: of the bootstrap; the same seed gives the same intervals.

    Raises:
        DataError: no images, lengths differ, a label is neither 0 nor 1, or a probability is not
            within 0-1.
        SettingsError: `num_resamples` below 1.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13, for percentile
    intervals; Field and Welsh 2007, J. R. Stat. Soc. B 69:369, for resampling clusters.
    """
    if num_resamples < 1:
        raise SettingsError(f"num_resamples {num_resamples}: must be at least 1.")
    positive, prob = checked(y_true, probs)
    need_probabilities(prob)
    if not len(prob) == len(patients) == len(subtypes):
        raise DataError(
            f"{len(prob)} images, {len(patients)} patients and {len(subtypes)} subtypes: "
            "expected one of each per image."
        )
    _, patient = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    subtype = np.asarray(subtypes, dtype=np.str_)
    num_patients = int(patient.max()) + 1

    half, chosen = prob >= 0.5, operating_point.predict(prob)

    def metrics(weights: Floats) -> dict[str, dict[str, Floats]]:
        return {
            "threshold_free": threshold_free(positive, prob, weights),
            "at_half": at_threshold(positive, half, subtype, weights),
            "at_operating_point": at_threshold(positive, chosen, subtype, weights),
        }

    # The estimate itself is the resample in which each patient was drawn once.
    values = metrics(np.ones((1, len(prob))))
    generator = np.random.default_rng(seed)
    blocks = []
    for start in range(0, num_resamples, _BLOCK):
        rows = min(_BLOCK, num_resamples - start)
        drawn = draw_patients(generator, rows, num_patients)
        blocks.append(metrics(drawn[:, patient]))

    def estimates(group: str, predicted: Bools) -> dict[str, Estimate]:
        image_sets = denominators(positive, predicted, subtype)
        by_name = {}
        for name, value in values[group].items():
            resampled = np.concatenate([block[group][name] for block in blocks])
            images = image_sets.get(name, np.ones_like(positive))
            by_name[name] = Estimate(
                value=None if np.isnan(value[0]) else float(value[0]),
                n=int(images.sum()),
                num_patients=len(np.unique(patient[images])),
                **percentiles(resampled),
            )
        return by_name

    def at(threshold: float, group: str, predicted: Bools) -> AtThreshold:
        return AtThreshold(threshold, _confusion(positive, predicted), estimates(group, predicted))

    return Examination(
        num_images=len(prob),
        num_patients=num_patients,
        num_normal=int((~positive).sum()),
        num_pneumonia=int(positive.sum()),
        num_resamples=num_resamples,
        seed=seed,
        operating_point=operating_point,
        threshold_free=estimates("threshold_free", half),
        at_half=at(0.5, "at_half", half),
        at_operating_point=at(operating_point.threshold, "at_operating_point", chosen),
    )


def reliability(y_true: npt.ArrayLike, probs: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Predicted probability and observed share of pneumonia in `NUM_BINS` equal-width bins.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).

    Returns:
        mean probability, share with pneumonia and number of images per bin, float64,
        (NUM_BINS,); the first two are NaN in an empty bin.
    """
    positive, prob = checked(y_true, probs)
    need_probabilities(prob)
    counts, prob_sums, positive_sums = bin_sums(positive, prob, np.ones((1, len(prob))))
    return (
        divide(prob_sums, counts)[0],
        divide(positive_sums, counts)[0],
        counts[0],
    )


def most_wrong(
    y_true: npt.ArrayLike, probs: npt.ArrayLike, operating_point: OperatingPoint, limit: int
) -> list[int]:
    """Indices of at most `limit` misclassified images, the largest error of the probability first.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        operating_point: its threshold decides what is misclassified.
        limit: the greatest number of indices.
    """
    positive, prob = checked(y_true, probs)
    wrong = np.flatnonzero(operating_point.predict(prob) != positive)
    order = np.argsort(-np.abs(positive[wrong] - prob[wrong]), kind="stable")
    return [int(index) for index in wrong[order][:limit]]


def percentiles(resampled: Floats) -> dict[str, Any]:
    """`low`, `high` and `num_undefined` of an Estimate from a metric's resamples, (B,)."""
    defined = resampled[~np.isnan(resampled)]
    low, high = (
        (float(bound) for bound in np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        if len(defined)
        else (None, None)
    )
    return {"low": low, "high": high, "num_undefined": len(resampled) - len(defined)}


def _confusion(positive: Bools, predicted: Bools) -> Confusion:
    return Confusion(
        true_negative=int((~positive & ~predicted).sum()),
        false_positive=int((~positive & predicted).sum()),
        false_negative=int((positive & ~predicted).sum()),
        true_positive=int((positive & predicted).sum()),
    )
