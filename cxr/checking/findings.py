"""What a check finds, from tables of the images that were listed and decoded."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cxr.images.read import without_numbers
from cxr.reports import Duplicates, FailureGroup, Sizes, SplitCounts
from cxr.reports.rendering import count

NUM_EXAMPLES: Final = 3
"""Files named as examples of one finding."""

AGE_BAND_YEARS: Final = 10
"""Width of a band of ages."""

MAX_AGE_YEARS: Final = 90
"""Ages from here on are one band, since the few who are older could be recognized: 45 CFR
164.514(b)(2)(i)(C)."""

COMPARED: Final = {"sha256": "file content", "pixels_sha256": "decoded pixels"}
"""What images with the same digest have in common, by the column of the digest."""


def count_split(split: str, listing: pa.Table, num_decoded: int, num_used: int) -> SplitCounts:
    """The images and patients of a split.

    Args:
        split: its name.
        listing: of schema `sources.LISTING`; a label may be null.
        num_decoded: images of it that could be decoded.
        num_used: images of it that a job uses.
    """
    counts = Counter(listing["label"].to_pylist())
    return SplitCounts(
        split=split,
        num_images=len(listing),
        num_normal=counts[0],
        num_pneumonia=counts[1],
        num_patients=len(set(listing["patient"].to_pylist())),
        num_decoded=num_decoded,
        num_used=num_used,
    )


def count_shared_patients(listings: Mapping[str, pa.Table]) -> dict[str, int]:
    """How many patients are in two splits, by the splits: `"train and test"`.

    Args:
        listings: of schema `sources.LISTING`, by split.
    """
    patients = {split: set(table["patient"].to_pylist()) for split, table in listings.items()}
    splits = list(patients)
    shared = {
        f"{one} and {other}": len(patients[one] & patients[other])
        for index, one in enumerate(splits)
        for other in splits[index + 1 :]
    }
    return {pair: count for pair, count in shared.items() if count}


def find_duplicates(images: pa.Table) -> list[Duplicates]:
    """The groups of images whose files, and those whose decoded pixels, are equal.

    Args:
        images: {uri, split, fold, label, patient, sha256, pixels_sha256}, a row an image; folds
            are those of training.
    """
    rows = images.select(
        ["uri", "split", "fold", "label", "patient", "sha256", "pixels_sha256"]
    ).to_pylist()
    return [_group(rows, column, compared) for column, compared in COMPARED.items()]


def _group(rows: Sequence[Mapping[str, Any]], column: str, compared: str) -> Duplicates:
    by_digest: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_digest[row[column]].append(row)
    groups = [group for group in by_digest.values() if len(group) > 1]

    def differ(group: Iterable[Mapping[str, Any]], name: str) -> bool:
        return len({row[name] for row in group}) > 1

    contradicting = [group for group in groups if differ(group, "label")]
    across_splits = [group for group in groups if differ(group, "split")]
    # The worst first.
    shown = [*contradicting, *across_splits, *groups]
    examples = dict.fromkeys(f"{group[0]['uri']} = {group[1]['uri']}" for group in shown)
    return Duplicates(
        compared=compared,
        num_groups=len(groups),
        num_images=sum(map(len, groups)),
        across_patients=sum(differ(group, "patient") for group in groups),
        across_folds=sum(
            differ([row for row in group if row["split"] == "train"], "fold") for group in groups
        ),
        across_splits=len(across_splits),
        contradicting=len(contradicting),
        examples=list(examples)[:NUM_EXAMPLES],
    )


def measure_sizes(images: pa.Table, image_px: int) -> Sizes | None:
    """Sizes of the originals; None without an image.

    Args:
        images: {width, height}, a row a decoded image.
        image_px: side of the square that they are resized to.
    """
    if not len(images):
        return None
    sides = np.array([images["width"].to_pylist(), images["height"].to_pylist()])
    width, height = (
        (int(values.min()), int(np.median(values)), int(values.max())) for values in sides
    )
    return Sizes(
        width=width,
        height=height,
        num_enlarged=int((sides.min(axis=0) < image_px).sum()),
        long_sides=sides.max(axis=0).tolist(),
    )


def count_formats(decoded: Iterable[str], failed: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Images by format, decoded and not, the most frequent first; `"unknown"` if it is empty."""
    good, bad = Counter(decoded), Counter(failed)
    return {name or "unknown": (good[name], bad[name]) for name, _ in (good + bad).most_common()}


def group_failures(failed: pa.Table) -> list[FailureGroup]:
    """Images that could not be decoded by reason, the most frequent first.

    Args:
        failed: {uri, reason}, the reason as `Image.problem` words it.
    """
    uris: dict[str, list[str]] = defaultdict(list)
    for uri, reason in zip(failed["uri"].to_pylist(), failed["reason"].to_pylist(), strict=True):
        uris[without_numbers(reason)].append(uri)
    groups = []
    for problem, members in sorted(uris.items(), key=lambda item: -len(item[1])):
        status, _, reason = problem.partition(": ")
        groups.append(FailureGroup(status, reason, len(members), sorted(members)[:NUM_EXAMPLES]))
    return groups


def count_ages(years: Iterable[int | None]) -> dict[str, int]:
    """Images by age in bands of `AGE_BAND_YEARS`, the youngest first, `"not given"` last."""
    counts = Counter(
        None if age is None else min(age, MAX_AGE_YEARS) // AGE_BAND_YEARS for age in years
    )
    bands = {}
    for band in sorted(band for band in counts if band is not None):
        start = band * AGE_BAND_YEARS
        last = start + AGE_BAND_YEARS - 1
        bands[f"{start}-{last}" if start < MAX_AGE_YEARS else f"{start} or older"] = counts[band]
    return bands | ({"not given": counts[None]} if counts[None] else {})


def describe_duplicates(found: Duplicates) -> list[str]:
    """What should be looked at before training, a sentence each."""
    counts = {
        "with both labels": found.contradicting,
        "in several splits": found.across_splits,
        "of several patients": found.across_patients,
    }
    return [
        f"Duplicates (equal {found.compared}) {where}: {count(number, 'group')} of images."
        for where, number in counts.items()
        if number
    ]
