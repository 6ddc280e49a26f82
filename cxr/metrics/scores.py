"""Scores and labels: ROC AUC, probabilities from logits, calibration."""

import math

import numpy as np
import numpy.typing as npt

from cxr.errors import DataError, SettingsError

Floats = npt.NDArray[np.float64]

Bools = npt.NDArray[np.bool_]

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Least and greatest temperature of `fit_temperature`: a factor of 20 either way."""


def roc_auc(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> float | None:
    """Area under the ROC curve; None where a class is absent and it is undefined.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        y_score: logits or probabilities, higher for pneumonia, (N,).

    Raises:
        DataError: lengths differ, a label is neither 0 nor 1, or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score  # Takes two seconds.

    positive, score = checked(y_true, y_score)
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, score))


def probabilities(logits: npt.ArrayLike, temperature: float) -> Floats:
    """Calibrated probability of pneumonia: sigmoid(logit / temperature), float64, (N,)."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise SettingsError(f"temperature {temperature}: must be a finite number above 0.")
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return np.array([_sigmoid(x) for x in scaled.ravel().tolist()]).reshape(scaled.shape)


def _sigmoid(x: float) -> float:
    """As `scipy.special.expit`, to the last digit, which NumPy's exp does not give.

    SciPy takes half a second to import in each process that scores.
    """
    try:
        return 1 / (1 + math.exp(-x))
    except OverflowError:
        return 0.0


def fit_temperature(
    y_true: npt.ArrayLike, logits: npt.ArrayLike, is_changed: npt.ArrayLike | None = None
) -> float:
    """The temperature that minimizes the negative log-likelihood of sigmoid(logit / temperature).

    The negative log-likelihood is convex in 1 / temperature, so the bounded search finds its one
    minimum. There is none where every logit has the right sign (lower is always better), and all
    temperatures are equal where every logit is zero. Neither set determines a calibration: 1.0 is
    returned.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        logits: before the sigmoid, (N,); of validation images, never of those trained on.
        is_changed: images under acquisition changes, (N,); None for none. The mean over them and
            that over the others count alike, however many there are of each.

    Returns:
        A temperature within `TEMPERATURE_BOUNDS`; above 1 where the network is overconfident.

    Raises:
        DataError: as `roc_auc`, or a class is absent.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    positive, logit = checked(y_true, logits)
    need_both_classes(positive, "temperature")
    margin = np.where(positive, logit, -logit)
    if (margin >= 0).all():
        return 1.0

    groups = clean_and_changed(len(margin), is_changed)

    def nll(log_temperature: float) -> float:
        losses = np.logaddexp(0.0, -margin / np.exp(log_temperature))
        return float(np.mean([losses[members].mean() for members in groups]))

    minimum = minimize_scalar(nll, bounds=np.log(TEMPERATURE_BOUNDS), method="bounded")
    return float(np.clip(np.exp(minimum.x), *TEMPERATURE_BOUNDS))


def checked(y_true: npt.ArrayLike, y_score: npt.ArrayLike) -> tuple[Bools, Floats]:
    """Labels as bool (N,) and scores as float64 (N,), or a DataError that says what is wrong."""
    label, score = np.asarray(y_true), np.asarray(y_score, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise DataError(f"labels {label.shape} and scores {score.shape}: both must be (N,).")
    if not label.size:
        raise DataError("no images to evaluate: labels and scores are empty.")
    if not np.isin(label, (0, 1)).all():
        raise DataError("labels hold values other than 0 (normal) and 1 (pneumonia).")
    if bad := int((~np.isfinite(score)).sum()):
        raise DataError(f"{bad} of {score.size} scores are not finite. Leave such images out.")
    return label.astype(np.bool_), score


def clean_and_changed(num_images: int, is_changed: npt.ArrayLike | None) -> list[Bools]:
    """Which images are as they are, and which under acquisition changes if any: one or two (N,)."""
    changed = np.zeros(num_images, np.bool_) if is_changed is None else np.asarray(is_changed, bool)
    return [~changed, changed] if changed.any() else [~changed]


def need_probabilities(prob: Floats) -> None:
    """Raise a `DataError` if a score is outside 0-1."""
    if prob.min() < 0 or prob.max() > 1:
        raise DataError(
            f"probabilities span {prob.min():.3g} to {prob.max():.3g}: expected 0-1. "
            "Pass logits through `probabilities` first."
        )


def need_both_classes(positive: Bools, what: str) -> None:
    """Raise a `DataError` if one of the classes is absent."""
    if positive.all() or not positive.any():
        present = "pneumonia" if positive.any() else "normal"
        raise DataError(
            f"no {what} without both classes: all {positive.size} images are {present}."
        )
