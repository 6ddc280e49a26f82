"""Scores and labels: ROC AUC, probabilities from logits, calibration."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr.errors import DataError, SettingsError

Floats = npt.NDArray[np.float64]

Bools = npt.NDArray[np.bool_]

TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Least and greatest temperature of `fit_scaling`: a factor of 20 either way."""


@dataclass(frozen=True)
class Scaling:
    """How logits become probabilities that hold where pneumonia is as common as on validation."""

    temperature: float = 1.0
    """Above 0; divides the logits."""
    bias: float = 0.0
    """Added to the quotient."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise SettingsError(f"temperature {self.temperature}: must be a finite number above 0.")
        if not np.isfinite(self.bias):
            raise SettingsError(f"bias {self.bias}: must be a finite number.")


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


def probabilities(logits: npt.ArrayLike, scaling: Scaling) -> Floats:
    """Calibrated probability of pneumonia: sigmoid(logit / temperature + bias), float64, (N,)."""
    scaled = np.asarray(logits, dtype=np.float64) / scaling.temperature + scaling.bias
    return np.array([_sigmoid(x) for x in scaled.ravel().tolist()]).reshape(scaled.shape)


def _sigmoid(x: float) -> float:
    """As `scipy.special.expit`, to the last digit, which NumPy's exp does not give.

    SciPy takes half a second to import in each process that scores.
    """
    try:
        return 1 / (1 + math.exp(-x))
    except OverflowError:
        return 0.0


def fit_scaling(
    y_true: npt.ArrayLike, logits: npt.ArrayLike, is_changed: npt.ArrayLike | None = None
) -> Scaling:
    """The scaling that minimizes the negative log-likelihood of `probabilities`.

    It is convex in 1 / temperature and bias, so there is one minimum. There is none where a
    threshold separates the classes (a lower temperature is always better): the temperature is then
    1, and the bias 0 where 0 separates them, else that of a threshold midway between the classes.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        logits: before the sigmoid, (N,); of validation images, never of those trained on.
        is_changed: images under acquisition changes, (N,); None for none. The mean over them and
            that over the others count alike, however many there are of each.

    Returns:
        A temperature within `TEMPERATURE_BOUNDS`, above 1 where the network is overconfident, and a
        bias above 0 where it calls pneumonia too rarely.

    Raises:
        DataError: as `roc_auc`, or a class is absent.

    Source: Platt 1999, Probabilistic outputs for support vector machines; with a bias of 0 it is
    the temperature scaling of Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    from scipy.optimize import minimize

    positive, logit = checked(y_true, logits)
    need_both_classes(positive, "calibration")
    highest_normal, lowest_pneumonia = logit[~positive].max(), logit[positive].min()
    if highest_normal < lowest_pneumonia:
        if highest_normal <= 0 <= lowest_pneumonia:
            return Scaling()
        return Scaling(bias=-float(highest_normal + lowest_pneumonia) / 2)
    weights = np.zeros(len(logit))
    for members in (groups := clean_and_changed(len(logit), is_changed)):
        weights[members] = 1 / len(groups) / len(weights[members])
    # Logits of any size have a slope near 1.
    spread = float(logit.std()) or 1.0
    unit, sign = logit / spread, np.where(positive, 1.0, -1.0)

    def nll(values: Floats) -> tuple[float, Floats]:
        slope, bias = values
        margin = sign * (slope * unit + bias)
        loss = float(weights @ np.logaddexp(0.0, -margin))
        slopes = -weights * sign * np.exp(-np.logaddexp(0.0, margin))
        return loss, np.array([slopes @ unit, slopes.sum()])

    lowest, highest = (spread / temperature for temperature in reversed(TEMPERATURE_BOUNDS))
    start = np.array([np.clip(1.0, lowest, highest), 0.0])
    bounds = [(lowest, highest), (None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    found = minimize(nll, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    slope, bias = found.x.tolist()
    return Scaling(temperature=spread / slope, bias=bias)


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
