"""Results that pages and tables show: of a version, of a trial, of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

History = Sequence[Mapping[str, Any]]
"""One mapping per epoch: epoch, train_loss, val_loss, val_auc, seconds; None where undefined."""


@dataclass(frozen=True)
class PublishedResult:
    """What the 2019 experiment reported for a version on the official test split."""

    test_accuracy: float
    test_sensitivity: float | None
    """None where it was not reported."""
    remark: str = ""


PUBLISHED_FIGURES: Final = {
    "v0": PublishedResult(0.625, None, "every image was predicted as pneumonia"),
    "v1": PublishedResult(0.742, 0.987),
    "v2": PublishedResult(0.800, None, "the best of three epochs: .797, .800, .782"),
    "v3": PublishedResult(0.628, None),
}
"""Test figures of the 2019 experiment that this project continues (Keras, the official test split
of Kermany et al. 2018: 234 normal, 390 pneumonia). Its notebooks used that same split for early
stopping and never applied the pretrained weights of v1-v3, so the figures are optimistic and belong
to other networks than the ones described."""


@dataclass(frozen=True)
class VersionResult:
    """Figures of one version: ours on the validation fold, the published ones on the test split."""

    name: str
    data: str
    """What it was trained on: `"phantoms"`, `"chest_xray"`."""
    num_images: int
    """Images of the validation fold."""
    auc: float | None
    """This and the four below are None where undefined."""
    accuracy: float | None
    """This and the three below at the operating point, which was chosen on the same fold."""
    balanced_accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    train_seconds: float | None
    """Wall clock of the training; None where not measured."""
    peak_memory_mb: float | None
    """Peak resident memory of the training worker; None where not measured."""
    loading: str
    """`"memory"`: all images held at once, or `"stream"`."""
    published_accuracy: float | None = None
    """On the official test split, from `PUBLISHED_FIGURES`; None for a version of our own."""
    published_sensitivity: float | None = None
    stressed_auc: float | None = None
    """Mean over acquisition changes of the AUC on validation images; this and the two below are
    empty where none was scored under changes."""
    worst_auc: float | None = None
    """Under the change that lowers it most."""
    worst_change: str = ""
    """Which change that is."""


AUC_MARGIN: Final = 0.005
"""Difference in AUC, either way, below which two settings count as equal: the width of the interval
of the AUC in README's table, so an evaluation on a thousand images resolves no less.

That two settings are equal is a finding only if the whole interval of their difference is inside
the margin; an interval that merely contains 0 leaves the question open.

Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15:657, for equivalence as an interval inside a
margin that was chosen beforehand.
"""


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TrialResult:
    """One setting, trained and evaluated on every fold."""

    setting: Mapping[str, str | float]
    """The value of each factor: `{"normalization": "per_image", "learning_rate": 0.001}`."""
    auc: Interval | None
    """Mean over the folds, with its interval over folds and patients; None if the trial failed or
    the AUC is undefined."""
    balanced_accuracy: Interval | None
    """The same, at the operating point of each fold."""
    fold_aucs: Sequence[float | None]
    """The AUC of each fold, None where undefined; empty if no fold was finished."""
    seconds: float
    """Wall clock of the trial, all folds together."""
    reason: str = ""
    """Why it failed; empty if it did not."""
    stressed_auc: Interval | None = None
    """Mean over acquisition changes, then as `auc`; None where undefined or not computed."""
    change_aucs: Mapping[str, float] = field(default_factory=dict)
    """The AUC under each acquisition change, mean over the folds; empty as `stressed_auc`."""

    @property
    def failed(self) -> bool:
        return self.auc is None and self.reason != ""


@dataclass(frozen=True)
class Effect:
    """How much the AUC changes from one value of a factor to another."""

    factor: str
    level: str
    """The value that is compared: `"per_image"`."""
    reference: str
    """The value that it is compared with: `"none"`."""
    difference: Interval
    """Of the AUC, level minus reference, paired."""
    num_images: int
    num_patients: int
