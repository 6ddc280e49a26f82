"""Check of a downloaded set: every radiograph is read once, counted and compared with what was
published."""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from cxr import labels, storage
from cxr.download.publishers import PUBLISHED_COUNTS, Counts
from cxr.errors import StorageError
from cxr.images.read import Image, read_image
from cxr.progress import Progress
from cxr.sources import Inputs

THREADS: Final = 8
"""Files read concurrently; decoding releases the interpreter for other threads."""

MANIFEST: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("patient", pa.string()),
        ("subtype", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""One row per radiograph. `uri` is the path below the manifest's own folder, so that the two can be
moved together; `width` and `height` in pixels, 0 if the file could not be decoded."""

_NUM_NAMED: Final = 5
"""Files named in a line of the summary."""


@dataclass(frozen=True)
class Findings:
    """The radiographs of a set, and what is wrong with them."""

    manifest: pa.Table
    """Of schema `MANIFEST`, sorted by uri."""
    problems: Mapping[str, str]
    """Why a file could not be decoded, by its uri."""

    @property
    def counts(self) -> Counts:
        """Images of each split that has any: normal, pneumonia."""
        images = Counter(zip(*self._columns("split", "label"), strict=True))
        return {
            split: (images[split, labels.CLASSES[0]], images[split, labels.CLASSES[1]])
            for split in labels.SPLITS
            if any(images[split, name] for name in labels.CLASSES)
        }

    @property
    def subtypes(self) -> dict[tuple[str, str], int]:
        """Images of each split and subtype of pneumonia."""
        return dict(Counter(zip(*self._columns("split", "subtype"), strict=True)))

    @property
    def layout(self) -> str:
        """The published layout that has these splits."""
        return "Kaggle" if "val" in self.counts else "Mendeley Data"

    @property
    def as_published(self) -> bool:
        """Whether every split has the published number of each class."""
        return self.counts == PUBLISHED_COUNTS[self.layout]

    @property
    def duplicates(self) -> tuple[list[list[str]], list[list[str]]]:
        """Groups of files with the same bytes: within one split, and across splits."""
        groups = _grouped(zip(*self._columns("sha256", "split", "uri"), strict=True))
        within = [sorted(uris) for splits, uris in groups if len(splits) == 1 and len(uris) > 1]
        across = [sorted(uris) for splits, uris in groups if len(splits) > 1]
        return within, across

    @property
    def num_patients(self) -> dict[str, int]:
        """Patients of each split."""
        patients = set(zip(*self._columns("split", "patient"), strict=True))
        return dict(Counter(split for split, patient in patients if patient))

    @property
    def patients_across(self) -> list[str]:
        """Patients that are in more than one split."""
        groups: dict[str, set[str]] = defaultdict(set)
        for patient, split in zip(*self._columns("patient", "split"), strict=True):
            groups[patient].add(split)
        return sorted(name for name, splits in groups.items() if name and len(splits) > 1)

    @property
    def without_patient(self) -> list[str]:
        """Radiographs whose names are not as published."""
        patients = zip(*self._columns("uri", "patient"), strict=True)
        return [uri for uri, patient in patients if not patient]

    def _columns(self, *names: str) -> list[list[str]]:
        return [self.manifest[name].to_pylist() for name in names]


def examine(folder: str) -> Findings:
    """Read every radiograph of a set once.

    Args:
        folder: folder or bucket prefix with `train|val|test / NORMAL|PNEUMONIA` below it.

    Raises:
        StorageError: a file cannot be read.
    """
    folder = storage.absolute(folder)
    inputs = Inputs()
    for split in labels.SPLITS:
        for label in labels.CLASSES:
            below = storage.join(folder, split, label)
            if storage.kind(below) == "folder":
                inputs.add(below)
    files = inputs.table().sort_by("uri").to_pylist()
    problems, rows = {}, []
    total = sum(file["size"] for file in files)
    with (
        Progress("checked", total, unit="bytes") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        # Decoded at the smallest size: the pixels are not used.
        images = pool.map(functools.partial(read_image, image_px=1), files)
        for file, image in zip(files, images, strict=True):
            if image.status == "unreadable" and not image.sha256 and file["size"]:
                raise StorageError(f"{file['uri']}: {image.reason}.")
            path = storage.absolute(file["uri"])[len(folder) + 1 :]
            rows.append(_row(path, file["size"], image))
            if image.reason:
                problems[path] = image.reason
            progress.add(file["size"])
    return Findings(pa.Table.from_pylist(rows, schema=MANIFEST), problems)


def differences(before: pa.Table, after: pa.Table) -> list[str]:
    """Files that were deleted, added or changed between two manifests."""
    old, new = (
        dict(zip(table["uri"].to_pylist(), table["sha256"].to_pylist(), strict=True))
        for table in (before, after)
    )
    return sorted(uri for uri in old.keys() | new.keys() if old.get(uri) != new.get(uri))


def summary(findings: Findings) -> str:
    """The counts as a table, and irregularities, in a few lines."""
    published = PUBLISHED_COUNTS[findings.layout]
    lines = [
        f"{'split':6}{'NORMAL':>9}{'PNEUMONIA':>11}{'bacteria':>10}{'virus':>8}{'patients':>10}"
    ]
    counts, subtypes = findings.counts, findings.subtypes
    for split in labels.SPLITS:
        normal, pneumonia = counts.get(split, (0, 0))
        expected = published.get(split, (0, 0))
        if not any((normal, pneumonia, *expected)):
            continue
        note = "" if (normal, pneumonia) == expected else (
            f"   published: {expected[0]:,} and {expected[1]:,}"
        )  # fmt: skip
        lines.append(
            f"{split:6}{normal:9,}{pneumonia:11,}{subtypes.get((split, 'bacteria'), 0):10,}"
            f"{subtypes.get((split, 'virus'), 0):8,}{findings.num_patients.get(split, 0):10,}{note}"
        )
    verdict = "as published" if findings.as_published else "NOT as published"
    within, across = findings.duplicates
    lines += [
        f"counts: {verdict} ({findings.layout}'s splits)",
        "unreadable: "
        + _named([f"{uri} ({reason})" for uri, reason in sorted(findings.problems.items())]),
        f"same bytes twice within a split: {_named([' = '.join(group) for group in within])}",
        f"same bytes in two splits: {_named([' = '.join(group) for group in across])}",
        f"patients in two splits: {_named(findings.patients_across)}",
    ]
    if findings.without_patient:
        lines.append(f"no patient in the name: {_named(findings.without_patient)}")
    return "\n".join(lines)


def _row(path: str, size: int, image: Image) -> dict[str, object]:
    split, label, _ = path.split("/", 2)
    return {
        "uri": path,
        "split": split,
        "label": label,
        "patient": labels.patient_key(path),
        "subtype": labels.subtype(path) if label == labels.CLASSES[1] else "",
        "width": image.width,
        "height": image.height,
        "bytes": size,
        "sha256": image.sha256,
    }


def _grouped(
    rows: Iterable[tuple[str, str, str]],
) -> list[tuple[set[str], list[str]]]:
    """Splits and uris of each checksum."""
    groups: dict[str, tuple[set[str], list[str]]] = defaultdict(lambda: (set(), []))
    for sha256, split, uri in rows:
        groups[sha256][0].add(split)
        groups[sha256][1].append(uri)
    return list(groups.values())


def _named(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _NUM_NAMED:,} more" if len(names) > _NUM_NAMED else ""
    return f"{len(names):,}: {'; '.join(names[:_NUM_NAMED])}{more}"
