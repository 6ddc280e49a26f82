"""The threshold at and above which a radiograph is predicted as pneumonia, and how it is chosen."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr.errors import SettingsError
from cxr.metrics.scores import Bools, Floats, checked, need_both_classes, need_probabilities

RULES = "youden, sensitivity=<above 0, up to 1>, specificity=<above 0, up to 1>"


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold that turns a probability into a prediction, and how it was chosen."""

    rule: str
    """`"youden"`, `"sensitivity=0.95"` or the like."""
    threshold: float
    """On the calibrated probability; `prob >= threshold` is predicted as pneumonia."""
    sensitivity: float
    """Reached on the images that it was chosen on."""
    specificity: float
    """Reached on the images that it was chosen on."""
    n: int
    """Number of images that it was chosen on."""

    def predict(self, probs: npt.ArrayLike) -> Bools:
        """True where the prediction is pneumonia, (N,); compared as float64, as when chosen."""
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

    A threshold lies midway between two neighboring scores, so that a rounding error does not change
    a prediction; below the lowest score midway to 0, above the highest midway to 1.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        rule: `"youden"`: the greatest sensitivity + specificity, among ties the most sensitive;
            `"sensitivity=X"`: the highest threshold whose sensitivity is at least X;
            `"specificity=X"`: the lowest threshold whose specificity is at least X.

    Raises:
        SettingsError: an unknown rule.
        DataError: as `roc_auc`, a probability outside 0-1, or a class is absent.

    Source: Youden 1950, Cancer 3:32, for the index.
    """
    name, target = parse_rule(rule)
    positive, prob = checked(y_true, probs)
    need_probabilities(prob)
    need_both_classes(positive, "operating point")

    thresholds = _thresholds(np.unique(prob))
    # tp[i] and tn[i]: true positives and true negatives at thresholds[i].
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    tp = num_positive - np.searchsorted(np.sort(prob[positive]), thresholds, side="left")
    tn = np.searchsorted(np.sort(prob[~positive]), thresholds, side="left")
    sensitivity, specificity = tp / num_positive, tn / num_negative

    if name == "youden":
        # In integers, so that ties are exact; argmax takes the lowest threshold.
        chosen = int(np.argmax(tp * num_negative + tn * num_positive))
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
    """A threshold for each way to divide K distinct, ascending probabilities: (K + 1,)."""
    padded = np.concatenate([[0.0], scores, [1.0]])
    below, above = padded[:-1], padded[1:]
    middle = (below + above) / 2
    # Between two adjacent floats there is no midpoint: the upper one divides them as well.
    middle = np.where(middle > below, middle, above)
    if scores[-1] == 1.0:
        middle[-1] = np.nextafter(1.0, 2.0)
    return middle
