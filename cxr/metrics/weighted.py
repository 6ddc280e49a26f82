"""Metrics as weighted sums, for many resamples of patients at once.

In this module `weights` is (B, N): how often each image counts in each of B resamples. Functions
return (B,) values, NaN where undefined. The tests compare them with scikit-learn's `sample_weight`,
which takes about 3 ms per resample where these take 0.1 ms.
"""

import numpy as np
import numpy.typing as npt

from cxr.metrics.scores import Bools, Floats

NUM_BINS = 15
"""Bins of the calibration error and the reliability diagram, as in Guo et al. 2017."""


def draw_patients(generator: np.random.Generator, rows: int, num_patients: int) -> Floats:
    """How often each patient is drawn, with replacement, in each resample: (rows, num_patients)."""
    drawn = generator.integers(num_patients, size=(rows, num_patients))
    offsets = np.arange(rows)[:, None] * num_patients
    counts = np.bincount((drawn + offsets).ravel(), minlength=rows * num_patients)
    return counts.reshape(rows, num_patients).astype(np.float64)


def _by_score(positive: Bools, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and negatives at the K distinct scores, highest first: twice (B, K)."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive[order], starts, axis=1)
    negatives = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    return positives, negatives


def _auc(positives: Floats, negatives: Floats) -> Floats:
    # Mann-Whitney: a pair with tied scores counts one half.
    ranked = (negatives * (positives.cumsum(axis=1) - positives / 2)).sum(axis=1)
    return divide(ranked, positives.sum(axis=1) * negatives.sum(axis=1))


def weighted_auc(positive: Bools, score: Floats, weights: Floats) -> Floats:
    """The AUC in each of B resamples, (B,), NaN where undefined.

    Args:
        positive: pneumonia, (N,).
        score: higher for pneumonia, (N,).
        weights: how often each image counts in each resample, (B, N).
    """
    return _auc(*_by_score(positive, score, weights))


def threshold_free(positive: Bools, prob: Floats, weights: Floats) -> dict[str, Floats]:
    """AUC, average precision, Brier score and expected calibration error by name, (B,)."""
    positives, negatives = _by_score(positive, prob, weights)
    num_positive = positives.sum(axis=1)
    tp, fp = positives.cumsum(axis=1), negatives.cumsum(axis=1)
    num_predicted = tp + fp
    precision = np.divide(
        tp, num_predicted, out=np.zeros_like(num_predicted), where=num_predicted > 0
    )
    counts, prob_sums, positive_sums = bin_sums(positive, prob, weights)
    total = weights.sum(axis=1)
    return {
        "auc": _auc(positives, negatives),
        "average_precision": divide((positives * precision).sum(axis=1), num_positive),
        "brier": divide(weights @ (prob - positive) ** 2, total),
        "expected_calibration_error": divide(
            np.abs(prob_sums - positive_sums).sum(axis=1), counts.sum(axis=1)
        ),
    }


def at_threshold(
    positive: Bools, predicted: Bools, subtype: npt.NDArray[np.str_], weights: Floats
) -> dict[str, Floats]:
    """Metrics of binary predictions by name, (B,).

    Args:
        positive: pneumonia, (N,).
        predicted: predicted as pneumonia, (N,).
        subtype: `"bacteria"`, `"virus"` or `""`, (N,), for the sensitivity to each that occurs.
        weights: how often each image counts in each resample, (B, N).
    """
    tp = weights @ (positive & predicted)
    fn = weights @ (positive & ~predicted)
    fp = weights @ (~positive & predicted)
    tn = weights @ (~positive & ~predicted)
    sensitivity = divide(tp, tp + fn)
    specificity = divide(tn, tn + fp)
    return {
        "accuracy": divide(tp + tn, weights.sum(axis=1)),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": divide(tp, tp + fp),
        "npv": divide(tn, tn + fn),
        "f1": divide(2 * tp, 2 * tp + fp + fn),
        **{
            name: divide(weights @ (images & predicted), weights @ images)
            for name, images in _images_of_subtypes(positive, subtype).items()
        },
    }


def denominators(
    positive: Bools, predicted: Bools, subtype: npt.NDArray[np.str_]
) -> dict[str, Bools]:
    """Images in the denominator of a metric, (N,), by name; a metric of all images has no entry."""
    return {
        "sensitivity": positive,
        "specificity": ~positive,
        "ppv": predicted,
        "npv": ~predicted,
        "f1": positive | predicted,
        **_images_of_subtypes(positive, subtype),
    }


def _images_of_subtypes(positive: Bools, subtype: npt.NDArray[np.str_]) -> dict[str, Bools]:
    """Images in the denominator of the sensitivity to each subtype that occurs, (N,), by name."""
    images = {f"sensitivity_{name}": positive & (subtype == name) for name in ("bacteria", "virus")}
    return {name: members for name, members in images.items() if members.any()}


def bin_sums(positive: Bools, prob: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Sums of weights, probabilities and labels per bin: three times (B, NUM_BINS)."""
    index = np.minimum((prob * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    member = (index[:, None] == np.arange(NUM_BINS)).astype(np.float64)
    return (
        weights @ member,
        weights @ (member * prob[:, None]),
        weights @ (member * positive[:, None]),
    )


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where the denominator is zero."""
    return np.divide(
        numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0
    )
