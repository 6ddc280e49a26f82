"""The page on a bulk scoring job: what was scored, what stands out, and what was not scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr.metrics import OperatingPoint
from cxr.reports import figures, page
from cxr.reports.page import RESEARCH_ONLY, Html, tag


@dataclass(frozen=True)
class SuspiciousImage:
    """A scored image with a high probability of pneumonia."""

    uri: str
    """Its last two parts are shown, all of it when pointed at: `s3://b/archive.zip!/a/b.dcm`."""
    prob: float
    """Calibrated probability of pneumonia."""
    called: bool
    """Whether it is called pneumonia at the operating point."""
    warnings: Sequence[str]
    """What was odd about the file, as decoding words it; may be empty."""
    thumbnail: bytes
    """JPEG, from `thumbnail`."""


@dataclass(frozen=True)
class FailedKind:
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
    """All that the scoring page shows."""

    title: str
    inputs: Sequence[str]
    """The folders, archives, buckets or manifests that were scored."""
    num_listed: int
    """Images that were found in the inputs."""
    num_refused: int
    """Sound files that were not accepted as a radiograph of a chest."""
    num_unreadable: int
    """Files that hold no picture, or one that is damaged."""
    probs: npt.ArrayLike
    """Calibrated probabilities of pneumonia of the scored images, 0-1, (N,); may be empty."""
    num_called: int
    """Scored images that were called pneumonia at the operating point."""
    operating_point: OperatingPoint
    suspicious: Sequence[SuspiciousImage]
    """The most suspicious first; may be empty."""
    failures: Sequence[FailedKind]
    """May be empty; shown with the most frequent first."""
    warnings: Mapping[str, int]
    """Number of scored images by warning."""
    skipped: Mapping[str, int]
    """Files without a row by kind: `".txt"`, `"hidden"` or the like."""
    facts: Mapping[str, Any]
    """Where the scores come from: checkpoint, versions, rates."""

    @property
    def num_scored(self) -> int:
        return int(np.size(self.probs))

    @property
    def num_failed(self) -> int:
        return self.num_refused + self.num_unreadable


def scoring_page(report: ScoringReport) -> str:
    """The report as one HTML document that loads nothing."""
    scored = f"{report.num_scored:,} of {page.count(report.num_listed, 'image')}"
    sections = [
        _headline(report),
        page.section(
            "Scores",
            f"{page.count(report.num_scored, 'scored image')}.",
            page.grid([_threshold(report), _distribution(report)], "two"),
        ),
        _most_suspicious(report),
        _not_scored(report),
        page.section("To note", "", page.grid([_warnings(report), _skipped(report)], "two")),
        page.section("Inputs", "", page.bullets(report.inputs)),
    ]
    if report.facts:
        sections.append(page.section("Provenance", "", page.facts(report.facts)))
    return page.page(
        report.title,
        "Scoring",
        f"{scored}{_source(report.inputs)} scored. {RESEARCH_ONLY}",
        [*_unaccounted(report), *sections, page.not_for()],
    )


def _source(inputs: Sequence[str]) -> str:
    """The first input and how many more; all of them have a section of their own."""
    if not inputs:
        return ""
    more = f" and {page.count(len(inputs) - 1, 'more input')}" if len(inputs) > 1 else ""
    return f" from {inputs[0]}{more}"


def _unaccounted(report: ScoringReport) -> list[Html]:
    """A warning where the counts do not add up: every listed image is scored or explained."""
    num_told = report.num_scored + report.num_failed
    if num_told == report.num_listed:
        return []
    return [
        page.banner(
            f"{page.count(report.num_listed, 'image')} listed, {num_told:,} scored or explained. "
            "The scores are incomplete, or of another listing."
        )
    ]


def _headline(report: ScoringReport) -> Html:
    return page.tiles(
        [
            ("Listed", f"{report.num_listed:,}", ("images in the inputs",)),
            (
                "Scored",
                f"{report.num_scored:,}",
                (_share(report.num_scored, report.num_listed, "listed"),),
            ),
            (
                "Called pneumonia",
                f"{report.num_called:,}",
                (
                    _share(report.num_called, report.num_scored, "scored"),
                    f"at threshold {report.operating_point.threshold:.3f}",
                ),
            ),
            ("Refused", f"{report.num_refused:,}", ("not accepted as a chest radiograph",)),
            ("Unreadable", f"{report.num_unreadable:,}", ("no picture, or a damaged one",)),
        ]
    )


def _share(part: int, whole: int, of: str) -> str:
    return f"{part / whole:.1%} of {of}" if whole else f"nothing was {of}"


# ---------------------------------------------------------------- scored


def _threshold(report: ScoringReport) -> Html:
    point = report.operating_point
    return page.titled(
        "What the threshold means",
        tag(
            "p",
            f"An image is called pneumonia at a calibrated probability of {point.threshold:.3f} or "
            f"above. The rule {point.rule} chose this threshold on "
            f"{page.count(point.n, 'validation image')}, where it reached a sensitivity of "
            f"{point.sensitivity:.3f} and a specificity of {point.specificity:.3f}; both hold only "
            "for images like those. The share of images called here is no prevalence: it counts "
            "false alarms and leaves out what was missed.",
        ),
    )


def _distribution(report: ScoringReport) -> Html:
    heading = "Distribution"
    if not report.num_scored:
        return page.titled(heading, tag("p", "Nothing was scored: there is none to show."))
    return page.titled(
        heading,
        figures.score_histogram(report.probs, report.operating_point),
        f"Images by calibrated probability, {figures.SCORE_BINS} bins of width "
        f"{1 / figures.SCORE_BINS:g}.",
    )


def _most_suspicious(report: ScoringReport) -> Html:
    heading = "Most suspicious"
    if not report.suspicious:
        missing = "No picture was kept." if report.num_scored else "Nothing was scored."
        return page.section(heading, missing)

    def photo(image: SuspiciousImage) -> Html:
        name = page.short_uri(image.uri)
        call = "pneumonia" if image.called else "normal"
        lines: list[object] = [tag("b", f"{image.prob:.3f}"), f"called {call}", name]
        if image.warnings:
            lines.append(f"Warned: {'; '.join(image.warnings)}.")
        return tag(
            "figure",
            page.picture(image.thumbnail, f"radiograph, scored {image.prob:.3f}, {name}"),
            tag("figcaption", page.join(lines, "<br>")),
            title=image.uri,
        )

    return page.section(
        heading,
        f"The {page.count(len(report.suspicious), 'image')} with the highest calibrated "
        f"probability of pneumonia, of {report.num_scored:,} scored. Point at one to see its full "
        "path.",
        page.grid([photo(image) for image in report.suspicious], "photos"),
    )


# ---------------------------------------------------------------- not scored


def _not_scored(report: ScoringReport) -> Html:
    heading = "Not scored"
    if not report.num_failed and not report.failures:
        return page.section(heading, "No image was refused or unreadable.")
    failures = sorted(report.failures, key=lambda kind: -kind.count)
    rest = report.num_failed - sum(kind.count for kind in failures)
    content = []
    if failures:
        rows = [
            (
                page.join([kind.reason, tag("small", kind.status)]),
                f"{kind.count:,}",
                page.bullets(kind.examples),
            )
            for kind in failures
        ]
        content.append(page.table(("reason", "images", "such as"), rows, kind="reasons"))
    if rest > 0:
        content.append(page.bullets((f"{page.count(rest, 'image')} without a reason here.",)))
    return page.section(
        heading,
        f"{page.count(report.num_failed, 'image')}: {report.num_refused:,} refused, "
        f"{report.num_unreadable:,} unreadable. None of them has a score.",
        *content,
    )


def _warnings(report: ScoringReport) -> Html:
    if not report.warnings:
        return page.titled("Warnings", tag("p", "No scored image has one."))
    return page.titled(
        "Warnings",
        _counts(("warning", "images"), report.warnings),
        "Scored all the same; one image can have several.",
    )


def _skipped(report: ScoringReport) -> Html:
    heading = "Files passed over"
    if not report.skipped:
        return page.titled(heading, tag("p", "None: every file in the inputs was listed."))
    return page.titled(
        heading,
        _counts(("kind", "files"), report.skipped),
        "Not taken for images, so not listed and without a row.",
    )


def _counts(header: tuple[str, str], values: Mapping[str, int]) -> Html:
    """Names with how many there are of each, the most frequent first."""
    frequent = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return page.table(header, [(name, f"{num:,}") for name, num in frequent], kind="counts")
