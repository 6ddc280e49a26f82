"""What a search found, as its page takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.metrics.results import Effect, TrialResult


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
