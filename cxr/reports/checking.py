"""The page on a labeled set before training: what is in it, and what may be wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cxr.reports.figures import images
from cxr.reports.rendering import render
from cxr.reports.scoring import FailureGroup
from cxr.reports.thumbnails import Photo


@dataclass(frozen=True)
class SplitCounts:
    """What is listed of a split."""

    split: str
    """`"train"`, `"val"` or `"test"`."""
    num_images: int
    num_normal: int
    num_pneumonia: int
    num_patients: int
    num_decoded: int
    """Images that could be decoded."""
    num_used: int
    """Of these, the images that a job uses: not exact duplicates that would be on both sides."""


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are equal; all counts but `num_images` are of groups."""

    compared: str
    """What is equal: `"file content"` or `"decoded pixels"`."""
    num_groups: int
    num_images: int
    """Images in these groups."""
    across_patients: int
    """Groups with images of several patients."""
    across_folds: int
    """Groups with training images of several folds."""
    across_splits: int
    """Groups with images of several splits."""
    contradicting: int
    """Groups with images of both classes."""
    examples: Sequence[str]
    """Two images of a few groups, those that contradict each other first."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the original images, pixels: smallest, median and largest."""

    width: tuple[int, int, int]
    height: tuple[int, int, int]
    num_enlarged: int
    """Images with a side below that of the network's input."""
    long_sides: Sequence[int]
    """The longer side of each image."""


@dataclass(frozen=True, kw_only=True)
class Sample(Photo):
    """A decoded image, as the network meets it."""

    label: int
    """0 normal, 1 pneumonia."""


@dataclass(frozen=True)
class CheckReport:
    """What the page of a check shows."""

    title: str
    data: str
    """The name of the data; one that begins with `"phantom"` puts a warning on the page."""
    command: str
    """The training that follows, one line."""
    problems: Sequence[str]
    """Why training cannot start; empty if it can."""
    warnings: Sequence[str]
    """What a reader should look at before training."""
    patients: str
    """How the patients of the images are known, a sentence."""
    num_patients: int
    largest_patient: int
    """Images of the patient with the most."""
    splits: Sequence[SplitCounts]
    shared_patients: Mapping[str, int]
    """Patients in two splits, by the splits: `"train and test"`."""
    formats: Mapping[str, tuple[int, int]]
    """Images by format, decoded and not; `"unknown"` if it is none of those that are read."""
    failures: Sequence[FailureGroup]
    skipped: Mapping[str, int]
    """Files that were passed over, by type."""
    duplicates: Sequence[Duplicates]
    sizes: Sizes | None
    """None if no image could be decoded."""
    image_px: int
    """Side of the network's input, pixels."""
    views: Mapping[str, int]
    """DICOM files by view."""
    ages: Mapping[str, int]
    """DICOM files by age, in bands, youngest first."""
    samples: Sequence[Sample]
    facts: Mapping[str, Any]
    """Settings of the check."""

    @property
    def num_images(self) -> int:
        return sum(counts.num_images for counts in self.splits)

    @property
    def num_decoded(self) -> int:
        return sum(counts.num_decoded for counts in self.splits)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, numbers and texts, without pictures and the sizes of single images."""
        content = {**vars(self), "num_images": self.num_images, "num_decoded": self.num_decoded}
        del content["samples"]
        content["splits"] = [asdict(counts) for counts in self.splits]
        content["failures"] = [asdict(group) for group in self.failures]
        content["duplicates"] = [asdict(group) for group in self.duplicates]
        content["formats"] = {
            name: {"decoded": good, "not_decoded": bad}
            for name, (good, bad) in self.formats.items()
        }
        if self.sizes:
            content["sizes"] = {k: v for k, v in asdict(self.sizes).items() if k != "long_sides"}
        return content


def checking_page(report: CheckReport) -> str:
    """The report as one HTML document that loads nothing."""
    sizes = report.sizes
    return render(
        "checking.html",
        title=report.title,
        report=report,
        histogram=images.long_sides(sizes.long_sides, report.image_px)
        if sizes and len(set(sizes.long_sides)) > 1
        else None,
    )
