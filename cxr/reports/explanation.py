"""The page on explained images: each radiograph, and where the network looked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr.metrics import OperatingPoint
from cxr.reports.rendering import render
from cxr.reports.scoring import FailureGroup, ScoredImage


@dataclass(frozen=True)
class ExplanationReport:
    """What the page of an explanation shows."""

    title: str
    inputs: Sequence[str]
    """The folders, archives, buckets or manifests that were read."""
    num_listed: int
    """Images that were listed in the inputs."""
    num_read: int
    """Images that were read: all, or as many as were asked for."""
    method: str
    """A sentence on how the heatmaps were computed."""
    border_share: float | None
    """`metrics.border_share`, mean over the heatmaps; None without one."""
    operating_point: OperatingPoint
    images: Sequence[ScoredImage]
    """With their numbers and heatmaps, in the order shown; may be empty."""
    failures: Sequence[FailureGroup]
    """Images that were read and have no heatmap, all of them named; may be empty."""
    facts: Mapping[str, Any]
    """Where the heatmaps come from: checkpoint, versions."""
    note: str = ""
    """Of the checkpoint, for whoever reads its figures."""


def explanation_page(report: ExplanationReport) -> str:
    """The report as one HTML document that loads nothing."""
    return render("explanation.html", title=report.title, report=report, note=report.note)
