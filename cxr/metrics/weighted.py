"""Figures as weighted sums, of many resamples of patients at once."""

import numpy as np
import numpy.typing as npt

from cxr.metrics.scores import Bools, Floats

NUM_BINS = 15
"""Bins of the calibration error and the reliability diagram, as in Guo et al. 2017."""


# Below, `weights` is (B, N): how often each image counts in each of B resamples. Every function
# returns (B,) figures, NaN where undefined. The tests hold them to scikit-learn's sample_weight,
# which takes some 3 ms for each resample where these take 0.1.


def draw_patients(generator: np.random.Generator, rows: int, num_patients: int) -> Floats:
    """How often each patient is drawn in each resample, (rows, num_patients)."""
    drawn = generator.integers(num_patients, size=(rows, num_patients))
    offsets = np.arange(rows)[:, None] * num_patients
    counts = np.bincount((drawn + offsets).ravel(), minlength=rows * num_patients)
    return counts.reshape(rows, num_patients).astype(np.float64)


def _by_score(positive: Bools, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of each class at each of the K distinct scores, the highest first: (B, K) each."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    ordered = weights[:, order]
    hits = np.add.reduceat(ordered * positive[order], starts, axis=1)
    alarms = np.add.reduceat(ordered * ~positive[order], starts, axis=1)
    return hits, alarms


def _auc(hits: Floats, alarms: Floats) -> Floats:
    # Mann-Whitney: a pair counts half where the scores are tied.
    ranked = (alarms * (hits.cumsum(axis=1) - hits / 2)).sum(axis=1)
    return divide(ranked, hits.sum(axis=1) * alarms.sum(axis=1))


def weighted_auc(positive: Bools, score: Floats, weights: Floats) -> Floats:
    """The AUC in each of B resamples, (B,), NaN where undefined.

    Args:
        positive: pneumonia, (N,).
        score: higher for pneumonia, (N,).
        weights: how often each image counts in each resample, (B, N).
    """
    return _auc(*_by_score(positive, score, weights))


def threshold_free(positive: Bools, prob: Floats, weights: Floats) -> dict[str, Floats]:
    """AUC, average precision, Brier score and calibration error, (B,) each."""
    hits, alarms = _by_score(positive, prob, weights)
    num_hits = hits.sum(axis=1)
    hits_so_far, alarms_so_far = hits.cumsum(axis=1), alarms.cumsum(axis=1)
    called = hits_so_far + alarms_so_far
    precision = np.divide(hits_so_far, called, out=np.zeros_like(called), where=called > 0)
    counts, prob_sums, positive_sums = bin_sums(positive, prob, weights)
    total = weights.sum(axis=1)
    return {
        "auc": _auc(hits, alarms),
        "average_precision": divide((hits * precision).sum(axis=1), num_hits),
        "brier": divide(weights @ (prob - positive) ** 2, total),
        "expected_calibration_error": divide(
            np.abs(prob_sums - positive_sums).sum(axis=1), counts.sum(axis=1)
        ),
    }


def at_threshold(
    positive: Bools, called: Bools, subtype: npt.NDArray[np.str_], weights: Floats
) -> dict[str, Floats]:
    """The figures of yes or no, (B,) each; `subtype` gives the sensitivity to each."""
    hits = weights @ (positive & called)
    misses = weights @ (positive & ~called)
    alarms = weights @ (~positive & called)
    cleared = weights @ (~positive & ~called)
    sensitivity = divide(hits, hits + misses)
    specificity = divide(cleared, cleared + alarms)
    return {
        "accuracy": divide(hits + cleared, weights.sum(axis=1)),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": divide(hits, hits + alarms),
        "npv": divide(cleared, cleared + misses),
        "f1": divide(2 * hits, 2 * hits + alarms + misses),
        **{
            f"sensitivity_{kind}": divide(
                weights @ (positive & called & (subtype == kind)),
                weights @ (positive & (subtype == kind)),
            )
            for kind in ("bacteria", "virus")
        },
    }


def denominators(positive: Bools, called: Bools, subtype: npt.NDArray[np.str_]) -> dict[str, Bools]:
    """The images, (N,), that a metric is a figure of, where they are not all."""
    return {
        "sensitivity": positive,
        "specificity": ~positive,
        "ppv": called,
        "npv": ~called,
        "f1": positive | called,
        "sensitivity_bacteria": positive & (subtype == "bacteria"),
        "sensitivity_virus": positive & (subtype == "virus"),
    }


def bin_sums(positive: Bools, prob: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Weight, weighted probability and weighted pneumonia of each bin, (B, NUM_BINS) each."""
    index = np.minimum((prob * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    member = (index[:, None] == np.arange(NUM_BINS)).astype(np.float64)
    return (
        weights @ member,
        weights @ (member * prob[:, None]),
        weights @ (member * positive[:, None]),
    )


def divide(above: Floats, below: Floats) -> Floats:
    """NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)
