"""What a search found, as its page takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TrialResult:
    """One setting, trained and judged on every fold."""

    setting: Mapping[str, str | float]
    """Its value of each factor: `{"normalization": "per_image", "learning_rate": 0.001}`."""
    auc: Interval | None
    """Mean over the folds, with its interval over folds and patients; None if the trial failed or
    the AUC is undefined."""
    balanced_accuracy: Interval | None
    """The same, at each fold's operating point."""
    fold_aucs: Sequence[float | None]
    """The AUC of each fold, None where undefined; empty if no fold was finished."""
    seconds: float
    """Wall clock of the trial, all folds together."""
    reason: str = ""
    """Why it failed; empty if it did not."""

    @property
    def failed(self) -> bool:
        return self.auc is None and self.reason != ""


@dataclass(frozen=True)
class Effect:
    """How much the AUC changes from one value of a factor to another."""

    factor: str
    level: str
    """The value that is judged: `"per_image"`."""
    reference: str
    """The value that it is set against: `"none"`."""
    difference: Interval
    """Of the AUC, level minus reference, paired."""
    num_images: int
    num_patients: int


@dataclass(frozen=True)
class TuningReport:
    """All that the tuning page shows."""

    title: str
    data: str
    """What the images are, as a reader would name them; `"phantoms"` puts a warning on the page."""
    recipe: Mapping[str, Any]
    """What all trials share."""
    grid: Mapping[str, Sequence[str]]
    """The factors of the full grid, with their values in the order shown."""
    sampled: Sequence[str]
    """The factors whose values, numbers, were drawn at random; may be empty."""
    trials: Sequence[TrialResult]
    effects: Sequence[Effect]
    """May be empty; shown by factor and reference."""
    answers: Sequence[str]
    """A sentence for each question that the search was to answer; may be empty."""
    num_folds: int
    """The same patient-disjoint folds for every trial."""
    num_images: int
    num_patients: int
    notes: Sequence[str] = ()
    """What a reader must know, such as how many images were left out and why."""
    facts: Mapping[str, Any] | None = None
    """Where the figures come from: versions, machine, time."""

    @property
    def ranked(self) -> list[TrialResult]:
        """The trials with an AUC, best first; equal ones as given."""
        return sorted((trial for trial in self.trials if trial.auc), key=auc_of, reverse=True)

    @property
    def rest(self) -> list[TrialResult]:
        """The trials without an AUC, as given."""
        return [trial for trial in self.trials if trial.auc is None]


def auc_of(trial: TrialResult) -> float:
    """Of a trial that has one."""
    assert trial.auc is not None
    return trial.auc.value
