"""The threshold at and above which a radiograph is predicted as pneumonia, and how it is chosen."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cxr.errors import SettingsError
from cxr.metrics.scores import (
    Bools,
    Floats,
    checked,
    clean_and_changed,
    need_both_classes,
    need_probabilities,
)

RULES = (
    "youden, sensitivity=<above 0, up to 1>, specificity=<above 0, up to 1>,"
    " cost=<of a false negative>:<of a false positive>,prevalence=<between 0 and 1>"
)


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold that turns a probability into a prediction, and how it was chosen."""

    rule: str
    """`"youden"`, `"sensitivity=0.95"` or the like."""
    threshold: float
    """On the calibrated probability; `prob >= threshold` is predicted as pneumonia."""
    sensitivity: float
    """Reached on the validation images, as they are."""
    specificity: float
    """Reached on the validation images, as they are."""
    n: int
    """Number of validation images."""
    stressed_sensitivity: float | None = None
    """Reached on validation images under acquisition changes; None where there are none."""
    stressed_specificity: float | None = None
    """Reached on validation images under acquisition changes; None where there are none."""

    def predict(self, probs: npt.ArrayLike) -> Bools:
        """True where the prediction is pneumonia, (N,); compared as float64, as when chosen."""
        return np.asarray(probs, dtype=np.float64) >= self.threshold

    @property
    def reached(self) -> str:
        """What it reached on validation images, as they are and under acquisition changes."""
        text = (
            f"{self.n:,} validation images sensitivity {self.sensitivity:.3f}, specificity"
            f" {self.specificity:.3f}"
        )
        if self.stressed_sensitivity is None or self.stressed_specificity is None:
            return text
        return (
            f"{text}; under acquisition changes {self.stressed_sensitivity:.3f} and"
            f" {self.stressed_specificity:.3f}"
        )

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
            stressed_sensitivity=values.get("stressed_sensitivity"),
            stressed_specificity=values.get("stressed_specificity"),
        )


@dataclass(frozen=True)
class Rule:
    """What a threshold has to reach."""

    aim: Literal["sensitivity", "specificity", "sum"]
    """At least a target, or the greatest weighted sum of sensitivity and specificity."""
    target: float = 0.0
    """Of the sensitivity or the specificity."""
    weights: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    """Of the sensitivity and the specificity in the sum."""


def parse_rule(rule: str) -> Rule:
    """What a rule in words means; a job calls this before it trains.

    Raises:
        SettingsError: an unknown rule, or a target, cost or prevalence outside its range.
    """
    if rule == "youden":
        return Rule("sum")
    if costs := re.fullmatch(r"cost=([^:,]+):([^:,]+),prevalence=([^:,]+)", rule):
        miss, alarm, prevalence = (_number(text) for text in costs.groups())
        if not (0 < miss < math.inf and 0 < alarm < math.inf):
            raise SettingsError(
                f"operating point {rule!r}: both costs must be finite numbers above 0."
            )
        if not 0 < prevalence < 1:
            raise SettingsError(
                f"operating point {rule!r}: the prevalence must be between 0 and 1, exclusive."
            )
        sick = Fraction(prevalence)
        return Rule("sum", weights=(sick * Fraction(miss), (1 - sick) * Fraction(alarm)))
    name, _, text = rule.partition("=")
    target = _number(text)
    if name == "sensitivity" and 0 < target <= 1:
        return Rule("sensitivity", target)
    if name == "specificity" and 0 < target <= 1:
        return Rule("specificity", target)
    raise SettingsError(f"unknown operating point rule {rule!r}. Choices: {RULES}.")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def choose_operating_point(
    y_true: npt.ArrayLike,
    probs: npt.ArrayLike,
    rule: str = "youden",
    *,
    is_changed: npt.ArrayLike | None = None,
    on_changed: bool = True,
) -> OperatingPoint:
    """The threshold that a rule picks on these images.

    A threshold lies midway between two neighboring scores, so that a rounding error does not change
    a prediction; below the lowest score midway to 0, above the highest midway to 1.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        rule: `"youden"`: the greatest sensitivity + specificity, among ties the most sensitive;
            `"sensitivity=X"`: the highest threshold whose sensitivity is at least X;
            `"specificity=X"`: the lowest threshold whose specificity is at least X;
            `"cost=A:B,prevalence=P"`: the lowest expected cost P A (1 - sensitivity) +
            (1 - P) B (1 - specificity), among ties the most sensitive.
        is_changed: images under acquisition changes, (N,); None for none.
        on_changed: choose on the changed images as well: sensitivity and specificity are then the
            means of those on clean and on changed images, however many there are of each.

    Raises:
        SettingsError: an unknown rule.
        DataError: as `roc_auc`, a probability outside 0-1, or a class is absent.

    Source: Youden 1950, Cancer 3:32, for the index; Zweig and Campbell 1993, Clin. Chem. 39:561,
    for cost and prevalence.
    """
    parsed = parse_rule(rule)
    positive, prob = checked(y_true, probs)
    need_probabilities(prob)
    groups = clean_and_changed(len(prob), is_changed)
    for members in groups:
        need_both_classes(positive[members], "operating point")
    chosen_on = groups if on_changed else groups[:1]

    thresholds = _thresholds(np.unique(prob[np.any(chosen_on, axis=0)]))
    sick = [np.sort(prob[members & positive]) for members in chosen_on]
    well = [np.sort(prob[members & ~positive]) for members in chosen_on]
    # Of each group, (T,): true positives and true negatives at each threshold.
    tp = [len(scores) - np.searchsorted(scores, thresholds, side="left") for scores in sick]
    tn = [np.searchsorted(scores, thresholds, side="left") for scores in well]
    if parsed.aim == "sum":
        of_tp = [parsed.weights[0] / len(scores) for scores in sick]
        of_tn = [parsed.weights[1] / len(scores) for scores in well]
        # In integers, so that ties are exact; argmax takes the lowest threshold.
        unit = math.lcm(*(weight.denominator for weight in of_tp + of_tn))
        sums = sum(
            counts.astype(object) * int(weight * unit)
            for counts, weight in zip(tp + tn, of_tp + of_tn, strict=True)
        )
        chosen = int(np.argmax(sums))
    elif parsed.aim == "sensitivity":
        reached = np.mean([c / len(s) for c, s in zip(tp, sick, strict=True)], axis=0)
        chosen = int(np.flatnonzero(reached >= parsed.target)[-1])
    else:
        reached = np.mean([c / len(s) for c, s in zip(tn, well, strict=True)], axis=0)
        chosen = int(np.flatnonzero(reached >= parsed.target)[0])

    threshold = float(thresholds[chosen])
    sensitivities, specificities = zip(
        *(_rates(positive[members], prob[members] >= threshold) for members in groups), strict=True
    )
    return OperatingPoint(
        rule=rule,
        threshold=threshold,
        sensitivity=sensitivities[0],
        specificity=specificities[0],
        n=int(groups[0].sum()),
        stressed_sensitivity=None if len(groups) == 1 else sensitivities[1],
        stressed_specificity=None if len(groups) == 1 else specificities[1],
    )


def _rates(positive: Bools, predicted: Bools) -> tuple[float, float]:
    """Sensitivity and specificity of predictions of both classes."""
    tp, tn = int((positive & predicted).sum()), int((~positive & ~predicted).sum())
    return tp / int(positive.sum()), tn / int((~positive).sum())


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
