"""The page on one model: its metrics, the sample they were measured on, its largest errors."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cxr.metrics import Examination, Robustness, Subgroup
from cxr.metrics.results import History
from cxr.metrics.subgroups import SMALL_GROUP
from cxr.models.unusual import FeatureDistribution
from cxr.reports.figures import model, training, unusual
from cxr.reports.figures.robustness import under_changes
from cxr.reports.rendering import count, render
from cxr.reports.thumbnails import Photo

ROBUSTNESS_HEADINGS: Final = {
    "auc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}


@dataclass(frozen=True, kw_only=True)
class WrongImage(Photo):
    """An image that is misclassified at the operating point."""

    y_true: int
    """0 normal, 1 pneumonia."""
    prob: float
    """Calibrated probability of pneumonia."""


@dataclass(frozen=True)
class EvaluationReport:
    """What the evaluation page shows."""

    title: str
    data: str
    """The name of the data; one that begins with `"phantom"` puts a warning on the page."""
    split: str
    """The part of the data that was evaluated: `"test"`."""
    examination: Examination
    y_true: npt.ArrayLike
    """0 normal, 1 pneumonia, (N,)."""
    probs: npt.ArrayLike
    """Calibrated probabilities of pneumonia, 0-1, (N,)."""
    history: History = ()
    """May be empty."""
    members: Sequence[History] = ()
    """Of the members of an ensemble, which has no history of its own."""
    recipe: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None
    subgroups: Sequence[Subgroup] = ()
    """In the order shown; those of a column together."""
    robustness: Robustness | None = None
    """Figures under acquisition changes."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """By change, what is changed and how much: `"exponent 0.6"`."""
    wrong: Sequence[WrongImage] = ()
    """The largest error first."""
    distances: npt.NDArray[np.float64] | None = None
    """Of the images to the training images, (N,); None if the checkpoint does not know these."""
    distribution: FeatureDistribution | None = None
    """That they are distances to."""
    notes: Sequence[str] = ()
    """What a reader must know, such as how many images were skipped and why."""
    note: str = ""
    """Of the checkpoint, for whoever reads its figures."""


def evaluation_page(report: EvaluationReport) -> str:
    """The report as one HTML document that loads nothing."""
    examination, y_true, probs = report.examination, report.y_true, report.probs
    point = examination.operating_point
    distances, distribution = report.distances, report.distribution
    both_classes = examination.num_normal > 0 and examination.num_pneumonia > 0
    return render(
        "evaluation.html",
        title=report.title,
        report=report,
        note=report.note,
        sample=(
            f"{report.split[:1].upper()}{report.split[1:]} split of {report.data}:"
            f" {count(examination.num_images, 'image')} of"
            f" {count(examination.num_patients, 'patient')}"
        ),
        num_wrong=int((np.asarray(y_true) != point.predict(probs)).sum()),
        subgroups={
            column: list(groups)
            for column, groups in itertools.groupby(report.subgroups, lambda group: group.column)
        },
        small_group=SMALL_GROUP,
        robustness_figures=[
            (heading, under_changes(report.robustness, metric, heading))
            for metric, heading in ROBUSTNESS_HEADINGS.items()
            if report.robustness
        ],
        roc=model.roc(y_true, probs, point) if both_classes else None,
        precision_recall=model.precision_recall(y_true, probs, point) if both_classes else None,
        reliability=model.reliability_diagram(y_true, probs),
        training=training.training_curves(report.history) or training.member_curves(report.members),
        distances=unusual.distances(distances, distribution)
        if distances is not None and distribution is not None
        else None,
        num_unusual=int((distances > distribution.threshold).sum())
        if distances is not None and distribution is not None
        else 0,
    )
