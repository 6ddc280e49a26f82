"""How well scores tell pneumonia from normal, and how sure that figure is.

Intervals come from resampling patients, not images: several radiographs of one child are not
independent, and an interval that takes them so is too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from cxr.errors import DataError, SettingsError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Logits are made at most 20 times sharper or flatter."""

NUM_BINS = 15
"""Bins of the calibration error and the reliability diagram, as in Guo et al. 2017."""

LEVEL = 0.95
"""Coverage of the percentile intervals."""

RULES = "youden, sensitivity=<above 0, up to 1>, specificity=<above 0, up to 1>"

# A block of resamples is held as (block, images) float64: 128 x 5,216 x 8 bytes = 5 MB.
_BLOCK = 128


# ---------------------------------------------------------------- scores


def roc_auc(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> float | None:
    """Area under the ROC curve; None where a class is absent, since it is undefined there.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        y_score: logits or probabilities, higher for pneumonia, (N,).

    Raises:
        DataError: lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    positive, score = _checked(y_true, y_score)
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))


def probabilities(logits: npt.ArrayLike, temperature: float) -> Floats:
    """Calibrated probability of pneumonia: sigmoid(logit / temperature), float64, (N,)."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise SettingsError(f"temperature {temperature}: must be a finite number above 0.")
    return np.asarray(expit(np.asarray(logits, dtype=np.float64) / temperature), dtype=np.float64)


def fit_temperature(y_true: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """The temperature that minimizes the negative log-likelihood of sigmoid(logit / temperature).

    The likelihood is convex in 1 / temperature, so the bounded search finds its one minimum. Where
    every logit lies on the right side of zero there is none (ever sharper is ever better) and where
    every logit is zero all are alike: the set says nothing of calibration, and 1.0 is returned.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        logits: before the sigmoid, (N,); fit on validation, never on the images trained on.

    Returns:
        A temperature within `TEMPERATURE_BOUNDS`; above 1 where the network is overconfident.

    Raises:
        DataError: as `roc_auc`, or a class is absent.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    positive, logit = _checked(y_true, logits)
    _need_both_classes(positive, "temperature")
    margin = np.where(positive, logit, -logit)
    if (margin >= 0).all():
        return 1.0

    def nll(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -margin / np.exp(log_temperature)).mean())

    found = minimize_scalar(nll, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded")
    return float(np.clip(np.exp(found.x), *TEMPERATURE_BOUNDS))


# ---------------------------------------------------------------- operating point


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold at which a probability becomes a call, and how it was chosen."""

    rule: str
    """`"youden"`, `"sensitivity=0.95"` or the like."""
    threshold: float
    """On the calibrated probability; `prob >= threshold` is called pneumonia."""
    sensitivity: float
    """Reached on the images that it was chosen on."""
    specificity: float
    """Reached on the images that it was chosen on."""
    n: int
    """How many images it was chosen on."""

    def predict(self, probs: npt.ArrayLike) -> Bools:
        """True where pneumonia is called, (N,). Compared as float64, as when it was chosen."""
        return np.asarray(probs, dtype=np.float64) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OperatingPoint":
        return cls(
            rule=str(values["rule"]),
            threshold=float(values["threshold"]),
            sensitivity=float(values["sensitivity"]),
            specificity=float(values["specificity"]),
            n=int(values["n"]),
        )


def parse_rule(rule: str) -> tuple[str, float]:
    """`"sensitivity=0.95"` -> ("sensitivity", 0.95); `"youden"` has no target: ("youden", 0.0).

    Raises:
        SettingsError: anything else; a job calls this before it trains.
    """
    if rule == "youden":
        return rule, 0.0
    name, _, text = rule.partition("=")
    try:
        target = float(text)
    except ValueError:
        target = float("nan")
    if name not in ("sensitivity", "specificity") or not 0 < target <= 1:
        raise SettingsError(f"unknown operating point rule {rule!r}. Choices: {RULES}.")
    return name, target


def choose_operating_point(
    y_true: npt.ArrayLike, probs: npt.ArrayLike, rule: str = "youden"
) -> OperatingPoint:
    """The threshold that a rule picks on these images.

    A threshold lies midway between two neighboring scores, so that a rounding error does not turn a
    call. Midway to 0 or 1 is taken below the lowest and above the highest score.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        rule: `"youden"`: the greatest sensitivity + specificity, of several the most sensitive;
            `"sensitivity=X"`: the highest threshold whose sensitivity is at least X;
            `"specificity=X"`: the lowest threshold whose specificity is at least X.

    Raises:
        SettingsError: an unknown rule.
        DataError: as `roc_auc`, a probability outside 0-1, or a class is absent.

    Source: Youden 1950, Cancer 3:32, for the index.
    """
    name, target = parse_rule(rule)
    positive, prob = _checked(y_true, probs)
    _need_probabilities(prob)
    _need_both_classes(positive, "operating point")

    thresholds = _thresholds(np.unique(prob))
    # Row i: how many of a class lie at or above (below) threshold i.
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    found = num_positive - np.searchsorted(np.sort(prob[positive]), thresholds, side="left")
    cleared = np.searchsorted(np.sort(prob[~positive]), thresholds, side="left")
    sensitivity, specificity = found / num_positive, cleared / num_negative

    if name == "youden":
        # In whole numbers, so that equal indices are equal; argmax takes the lowest threshold.
        chosen = int(np.argmax(found * num_negative + cleared * num_positive))
    elif name == "sensitivity":
        chosen = int(np.flatnonzero(sensitivity >= target)[-1])
    else:
        chosen = int(np.flatnonzero(specificity >= target)[0])
    return OperatingPoint(
        rule=rule,
        threshold=float(thresholds[chosen]),
        sensitivity=float(sensitivity[chosen]),
        specificity=float(specificity[chosen]),
        n=len(prob),
    )


def _thresholds(scores: Floats) -> Floats:
    """One threshold for each way to cut ascending distinct probabilities (K,): (K + 1,)."""
    padded = np.concatenate([[0.0], scores, [1.0]])
    below, above = padded[:-1], padded[1:]
    middle = (below + above) / 2
    # Between two neighboring floats there is no middle: the upper one cuts as well.
    middle = np.where(middle > below, middle, above)
    if scores[-1] == 1.0:
        middle[-1] = np.nextafter(1.0, 2.0)
    return middle


# ---------------------------------------------------------------- examination


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval; None where it is undefined, never a stand-in number."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Images that the metric is a figure of: for a sensitivity, those with pneumonia."""
    num_patients: int
    """Patients of those images."""
    num_undefined: int
    """Resamples in which the metric was undefined; the interval is of the others."""


@dataclass(frozen=True)
class Confusion:
    """Counts of images by truth and call."""

    true_negative: int
    false_positive: int
    false_negative: int
    true_positive: int


@dataclass(frozen=True)
class AtThreshold:
    """What the calls at one threshold are worth."""

    threshold: float
    confusion: Confusion
    estimates: dict[str, Estimate]
    """accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, f1, sensitivity_bacteria,
    sensitivity_virus."""


@dataclass(frozen=True)
class Examination:
    """Everything that is said of a model on one split."""

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
        """Plain dicts, numbers and None for `metrics.json`; an undefined figure is null."""
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
    """Every figure of a split, with 95 % intervals by a cluster bootstrap over patients.

    A resample draws as many patients as there are, with replacement, and takes all images of each;
    an image then weighs as often as its patient was drawn, so each metric is a weighted sum.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        patients: the patient of each image, N keys.
        subtypes: `"bacteria"`, `"virus"` or `""` for each image, N.
        operating_point: chosen on validation, never on the images examined here.
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
    positive, prob = _checked(y_true, probs)
    _need_probabilities(prob)
    if not len(prob) == len(patients) == len(subtypes):
        raise DataError(
            f"{len(prob)} images, {len(patients)} patients and {len(subtypes)} subtypes: "
            "give one of each for every image."
        )
    _, patient = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    subtype = np.asarray(subtypes, dtype=np.str_)
    num_patients = int(patient.max()) + 1

    half, chosen = prob >= 0.5, operating_point.predict(prob)

    def figures(weights: Floats) -> dict[str, dict[str, Floats]]:
        return {
            "threshold_free": _threshold_free(positive, prob, weights),
            "at_half": _at_threshold(positive, half, subtype, weights),
            "at_operating_point": _at_threshold(positive, chosen, subtype, weights),
        }

    # The figure itself is the resample in which each patient was drawn once.
    values = figures(np.ones((1, len(prob))))
    generator = np.random.default_rng(seed)
    blocks = []
    for start in range(0, num_resamples, _BLOCK):
        rows = min(_BLOCK, num_resamples - start)
        drawn = draw_patients(generator, rows, num_patients)
        blocks.append(figures(drawn[:, patient]))

    def estimates(group: str, called: Bools) -> dict[str, Estimate]:
        over = _denominators(positive, called, subtype)
        found = {}
        for name, value in values[group].items():
            resampled = np.concatenate([block[group][name] for block in blocks])
            images = over.get(name, np.ones_like(positive))
            found[name] = Estimate(
                value=None if np.isnan(value[0]) else float(value[0]),
                n=int(images.sum()),
                num_patients=len(np.unique(patient[images])),
                **_interval(resampled),
            )
        return found

    def at(threshold: float, group: str, called: Bools) -> AtThreshold:
        return AtThreshold(threshold, _confusion(positive, called), estimates(group, called))

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
    """How often pneumonia is there when a probability says so, in `NUM_BINS` equal-width bins.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).

    Returns:
        mean probability, share with pneumonia and number of images of each bin, float64,
        (NUM_BINS,); the first two are NaN in an empty bin.
    """
    positive, prob = _checked(y_true, probs)
    _need_probabilities(prob)
    counts, prob_sums, positive_sums = _bin_sums(positive, prob, np.ones((1, len(prob))))
    return (
        divide(prob_sums, counts)[0],
        divide(positive_sums, counts)[0],
        counts[0],
    )


def most_wrong(
    y_true: npt.ArrayLike, probs: npt.ArrayLike, operating_point: OperatingPoint, limit: int
) -> list[int]:
    """Indices of the miscalled images, the one whose probability is furthest off first."""
    positive, prob = _checked(y_true, probs)
    wrong = np.flatnonzero(operating_point.predict(prob) != positive)
    order = np.argsort(-np.abs(positive[wrong] - prob[wrong]), kind="stable")
    return [int(index) for index in wrong[order][:limit]]


# ---------------------------------------------------------------- weighted sums
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


def _threshold_free(positive: Bools, prob: Floats, weights: Floats) -> dict[str, Floats]:
    hits, alarms = _by_score(positive, prob, weights)
    num_hits = hits.sum(axis=1)
    hits_so_far, alarms_so_far = hits.cumsum(axis=1), alarms.cumsum(axis=1)
    called = hits_so_far + alarms_so_far
    precision = np.divide(hits_so_far, called, out=np.zeros_like(called), where=called > 0)
    counts, prob_sums, positive_sums = _bin_sums(positive, prob, weights)
    total = weights.sum(axis=1)
    return {
        "auc": _auc(hits, alarms),
        "average_precision": divide((hits * precision).sum(axis=1), num_hits),
        "brier": divide(weights @ (prob - positive) ** 2, total),
        "expected_calibration_error": divide(
            np.abs(prob_sums - positive_sums).sum(axis=1), counts.sum(axis=1)
        ),
    }


def _at_threshold(
    positive: Bools, called: Bools, subtype: npt.NDArray[np.str_], weights: Floats
) -> dict[str, Floats]:
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


def _denominators(
    positive: Bools, called: Bools, subtype: npt.NDArray[np.str_]
) -> dict[str, Bools]:
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


def _bin_sums(positive: Bools, prob: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
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


def _interval(resampled: Floats) -> dict[str, Any]:
    """`low`, `high` and `num_undefined` of an Estimate from a metric's resamples, (B,)."""
    defined = resampled[~np.isnan(resampled)]
    low, high = (
        (float(bound) for bound in np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        if len(defined)
        else (None, None)
    )
    return {"low": low, "high": high, "num_undefined": len(resampled) - len(defined)}


def _confusion(positive: Bools, called: Bools) -> Confusion:
    return Confusion(
        true_negative=int((~positive & ~called).sum()),
        false_positive=int((~positive & called).sum()),
        false_negative=int((positive & ~called).sum()),
        true_positive=int((positive & called).sum()),
    )


# ---------------------------------------------------------------- checks


def _checked(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Labels as bool (N,) and scores as float64 (N,), or a DataError that says what is wrong."""
    label, score = np.asarray(y_true), np.asarray(y_score, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise DataError(f"labels {label.shape} and scores {score.shape}: both must be (N,).")
    if not label.size:
        raise DataError("no images to examine: labels and scores are empty.")
    if not np.isin(label, (0, 1)).all():
        raise DataError("labels hold values other than 0 (normal) and 1 (pneumonia).")
    if bad := int((~np.isfinite(score)).sum()):
        raise DataError(f"{bad} of {score.size} scores are not finite. Leave such images out.")
    return label.astype(np.bool_), score


def _need_probabilities(prob: Floats) -> None:
    if prob.min() < 0 or prob.max() > 1:
        raise DataError(
            f"probabilities span {prob.min():.3g} to {prob.max():.3g}: expected 0-1. "
            "Logits go through `probabilities` first."
        )


def _need_both_classes(positive: Bools, what: str) -> None:
    if positive.all() or not positive.any():
        present = "pneumonia" if positive.any() else "normal"
        raise DataError(
            f"no {what} without both classes: all {positive.size} images are {present}."
        )
