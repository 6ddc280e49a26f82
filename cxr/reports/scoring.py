"""The page on a scoring job: what was scored, what stands out, and what was not scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr.labels import CLASSES
from cxr.metrics import OperatingPoint
from cxr.reports.figures import model
from cxr.reports.rendering import render
from cxr.reports.thumbnails import Photo


@dataclass(frozen=True, kw_only=True)
class ScoredImage(Photo):
    """A scored image that is shown."""

    prob: float
    """Calibrated probability of pneumonia."""
    positive: bool
    """Whether the prediction at the operating point is pneumonia."""
    warnings: Sequence[str]
    """What was odd about the file, as decoding words it; may be empty."""
    unusual: float | None = None
    """The percentile of its distance to the training images; None if it is not known."""
    number: str = ""
    """How its files are named; empty if it has none."""

    @property
    def prediction(self) -> str:
        return CLASSES[self.positive].lower()


@dataclass(frozen=True)
class FailureGroup:
    """Images that were not scored for one reason."""

    status: str
    """`"refused"` or `"unreadable"`."""
    reason: str
    """As decoding words it."""
    count: int
    """How many images."""
    examples: Sequence[str]
    """A few uris, shown in full."""


@dataclass(frozen=True)
class ScoringReport:
    """What the scoring page shows."""

    title: str
    inputs: Sequence[str]
    """The folders, archives, buckets or manifests that were scored."""
    num_listed: int
    """Images that were listed in the inputs."""
    num_refused: int
    """Images that were decoded but not accepted as a chest radiograph."""
    num_unreadable: int
    """Files that could not be decoded."""
    histogram: npt.ArrayLike
    """Scored images in bins of equal width of the calibrated probability of pneumonia, 0-1,
    (bins,)."""
    num_predicted: int
    """Scored images that were predicted as pneumonia at the operating point."""
    operating_point: OperatingPoint
    suspicious: Sequence[ScoredImage]
    """The most suspicious first; may be empty. All of a path is shown on hovering."""
    nearest: Sequence[ScoredImage]
    """Those whose probability is nearest to the threshold, the nearest first; may be empty. Their
    paths are shown in full: `s3://b/archive.zip!/a/b.dcm`."""
    failures: Sequence[FailureGroup]
    """May be empty; shown with the most frequent first."""
    warnings: Mapping[str, int]
    """Number of scored images by warning."""
    skipped: Mapping[str, int]
    """Number of files that were not listed, by type: `".txt"`, `"hidden"` or the like."""
    facts: Mapping[str, Any]
    """Where the scores come from: checkpoint, versions, rates."""
    unusual: Sequence[ScoredImage] = ()
    """Of the images unlike the training images, the most unusual first."""
    num_unusual: int | None = None
    """Images unlike the training images; None if the checkpoint does not know these."""
    note: str = ""
    """Of the checkpoint, for whoever reads its figures."""

    @property
    def num_scored(self) -> int:
        return int(np.sum(self.histogram))

    @property
    def num_failed(self) -> int:
        return self.num_refused + self.num_unreadable


def scoring_page(report: ScoringReport) -> str:
    """The report as one HTML document that loads nothing."""
    return render(
        "scoring.html",
        title=report.title,
        report=report,
        note=report.note,
        histogram=model.score_histogram(report.histogram, report.operating_point)
        if report.num_scored
        else None,
        num_score_bins=np.size(report.histogram),
    )
