"""How a classifier holds under acquisition changes: its figures under each change, by themselves.

Source: Hendrycks and Dietterich 2019 (arXiv 1903.12261), for named corruptions and their mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from cxr.errors import DataError, SettingsError
from cxr.metrics.examination import Estimate, percentiles
from cxr.metrics.operating_point import OperatingPoint
from cxr.metrics.scores import Bools, Floats, checked, need_probabilities
from cxr.metrics.weighted import at_threshold, draw_patients, weighted_auc

CalibrateOn = Literal["stressed", "clean"]
"""`clean`: validation images as they are; `stressed`: those and the same under acquisition changes,
each half counting alike."""

DEFAULT_STRESSED: Final = 256
"""Images of each change: half of the width of the interval of a specificity of .9 is then .07."""

METRICS: Final = ("auc", "sensitivity", "specificity")
"""In the order shown."""

_BLOCK: Final = 128
"""Resamples computed at once."""


@dataclass(frozen=True)
class Robustness:
    """Figures of the same images as they are and under each change."""

    num_images: int
    num_patients: int
    num_resamples: int
    seed: int
    clean: Mapping[str, Estimate]
    """`METRICS` of the images as they are."""
    changes: Mapping[str, Mapping[str, Estimate]]
    """`METRICS` under each change, by its name, in the order shown."""
    mean: Mapping[str, Estimate]
    """Means over the changes."""

    def worst(self, metric: str) -> str:
        """The change with the lowest value of a metric; empty where it is undefined."""
        values = {name: figures[metric].value for name, figures in self.changes.items()}
        defined = {name: value for name, value in values.items() if value is not None}
        return min(defined, key=defined.__getitem__, default="")

    def lowest(self, metric: str) -> float | None:
        """The value of a metric under the change that is worst for it."""
        worst = self.worst(metric)
        return self.changes[worst][metric].value if worst else None

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, numbers and texts; an undefined metric is null."""
        return {**asdict(self), "worst": {metric: self.worst(metric) for metric in METRICS}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Robustness":
        """What `to_json` gave.

        Raises:
            KeyError, TypeError: it did not.
        """

        def figures(values: Mapping[str, Any]) -> dict[str, Estimate]:
            return {metric: Estimate(**values[metric]) for metric in METRICS}

        return cls(
            num_images=content["num_images"],
            num_patients=content["num_patients"],
            num_resamples=content["num_resamples"],
            seed=content["seed"],
            clean=figures(content["clean"]),
            changes={name: figures(values) for name, values in content["changes"].items()},
            mean=figures(content["mean"]),
        )


def check_stress_images(num_images: int) -> None:
    """Refuse a number of images that cannot hold both classes; 0 is none.

    Raises:
        SettingsError: it is negative, or 1.
    """
    if num_images < 0 or num_images == 1:
        raise SettingsError(
            f"stress_images: {num_images} is neither 0, for no robustness table, nor at least 2."
        )


def examine_changes(
    y_true: npt.ArrayLike,
    probs: npt.ArrayLike,
    changed: Mapping[str, npt.ArrayLike],
    *,
    patients: Sequence[object],
    operating_point: OperatingPoint,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Robustness:
    """AUC, sensitivity and specificity under each change, with intervals as `examine` has them.

    The same patients are drawn for all changes, so that the mean has an interval of its own.

    Args:
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia of the images as they are, 0-1, (N,).
        changed: by change, those of the same images under it, 0-1, (N,); at least one.
        patients: key of the patient of each image, N.
        operating_point: chosen on validation images.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: as `examine`, or no change.
    """
    if not changed:
        raise DataError("no acquisition change to examine.")
    scores: list[Floats] = []
    for column in (probs, *changed.values()):
        positive, prob = checked(y_true, column)
        need_probabilities(prob)
        scores.append(prob)
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    num_patients = int(patient.max()) + 1
    generator = np.random.default_rng(seed)
    # The estimate itself is the resample in which each patient was drawn once.
    blocks = [_figures(positive, scores, operating_point, np.ones((1, len(positive))))]
    for start in range(0, num_resamples, _BLOCK):
        drawn = draw_patients(generator, min(_BLOCK, num_resamples - start), num_patients)
        blocks.append(_figures(positive, scores, operating_point, drawn[:, patient]))
    values = np.concatenate(blocks, axis=2)  # (1 + changes, metrics, 1 + resamples)
    denominators = {
        "auc": np.ones_like(positive),
        "sensitivity": positive,
        "specificity": ~positive,
    }

    def estimates(columns: Floats) -> dict[str, Estimate]:
        return {
            metric: Estimate(
                value=None if np.isnan(column[0]) else float(column[0]),
                n=int(denominators[metric].sum()),
                num_patients=len(np.unique(patient[denominators[metric]])),
                **percentiles(column[1:]),
            )
            for metric, column in zip(METRICS, columns, strict=True)
        }

    return Robustness(
        num_images=len(positive),
        num_patients=num_patients,
        num_resamples=num_resamples,
        seed=seed,
        clean=estimates(values[0]),
        changes={name: estimates(values[1 + i]) for i, name in enumerate(changed)},
        mean=estimates(values[1:].mean(axis=0)),
    )


def _figures(
    positive: Bools, scores: Sequence[Floats], point: OperatingPoint, weights: Floats
) -> Floats:
    """`METRICS` of each list of scores in each of B resamples, (scores, metrics, B)."""
    subtype = np.full(len(positive), "")
    figures = []
    for prob in scores:
        at_point = at_threshold(positive, point.predict(prob), subtype, weights)
        figures.append(
            [
                weighted_auc(positive, prob, weights),
                at_point["sensitivity"],
                at_point["specificity"],
            ]
        )
    return np.asarray(figures)
