"""What has arrived: every radiograph read once, counted, compared with what was published."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from cxr import labels, storage
from cxr.download.publishers import PUBLISHED, Counts
from cxr.images import decoding
from cxr.progress import Progress
from cxr.sources import may_be_image

THREADS: Final = 8
"""Files that are read at a time; decoding lets other threads run."""

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
"""A row a radiograph. `uri` is the path below the manifest's own folder, so that the two can be
moved together; `width` and `height` are pixels, 0 where the file gives none."""

_NUM_NAMED: Final = 5


@dataclass(frozen=True)
class Findings:
    """What stands in the folders of a set."""

    manifest: pa.Table
    """Of schema `MANIFEST`, sorted by uri."""
    problems: Mapping[str, str]
    """Why a file gives no radiograph, by its uri."""

    @property
    def counts(self) -> Counts:
        """Images of each split that has any: normal, pneumonia."""
        found = Counter(zip(*self._columns("split", "label"), strict=True))
        return {
            split: (found[split, labels.CLASSES[0]], found[split, labels.CLASSES[1]])
            for split in labels.SPLITS
            if any(found[split, name] for name in labels.CLASSES)
        }

    @property
    def subtypes(self) -> dict[tuple[str, str], int]:
        """Images of each split and subtype of pneumonia."""
        return dict(Counter(zip(*self._columns("split", "subtype"), strict=True)))

    @property
    def layout(self) -> str:
        """Which of the published layouts the splits are those of."""
        return "Kaggle" if "val" in self.counts else "Mendeley Data"

    @property
    def as_published(self) -> bool:
        """Whether every split has the published number of each class."""
        return self.counts == PUBLISHED[self.layout]

    @property
    def duplicates(self) -> tuple[list[list[str]], list[list[str]]]:
        """Groups of files with the same bytes: those within one split, those across splits."""
        groups = _grouped(zip(*self._columns("sha256", "split", "uri"), strict=True))
        within = [sorted(uris) for splits, uris in groups if len(splits) == 1 and len(uris) > 1]
        across = [sorted(uris) for splits, uris in groups if len(splits) > 1]
        return within, across

    @property
    def num_patients(self) -> dict[str, int]:
        """Patients of each split."""
        each = set(zip(*self._columns("split", "patient"), strict=True))
        return dict(Counter(split for split, _ in each))

    @property
    def patients_across(self) -> list[str]:
        """Patients that are in more than one split."""
        groups: dict[str, set[str]] = defaultdict(set)
        for patient, split in zip(*self._columns("patient", "split"), strict=True):
            groups[patient].add(split)
        return sorted(patient for patient, splits in groups.items() if len(splits) > 1)

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
    files = {
        path: file
        for split in labels.SPLITS
        for label in labels.CLASSES
        if storage.kind(below := storage.join(folder, split, label)) == "folder"
        for file in storage.list_files(below)
        if may_be_image(path := storage.absolute(file.uri)[len(folder) + 1 :])
    }
    problems, rows = {}, []
    total = sum(file.size for file in files.values())
    with (
        Progress("checked", total, unit="bytes") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for row, problem in pool.map(lambda path: _examined(folder, path), sorted(files)):
            rows.append(row)
            if problem:
                problems[str(row["uri"])] = problem
            progress.add(files[str(row["uri"])].size)
    return Findings(pa.Table.from_pylist(rows, schema=MANIFEST), problems)


def differences(before: pa.Table, after: pa.Table) -> list[str]:
    """Files that are gone, new or changed between two manifests."""
    old, new = (
        dict(zip(table["uri"].to_pylist(), table["sha256"].to_pylist(), strict=True))
        for table in (before, after)
    )
    return sorted(uri for uri in old.keys() | new.keys() if old.get(uri) != new.get(uri))


def summary(findings: Findings) -> str:
    """A table of the counts, and what is odd, in a few lines."""
    published = PUBLISHED[findings.layout]
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
    return "\n".join(lines)


def _examined(folder: str, path: str) -> tuple[dict[str, object], str]:
    data = storage.read_bytes(storage.join(folder, path))
    decoded = decoding.decode(data, min_px=1)
    split, label, _ = path.split("/", 2)
    row = {
        "uri": path,
        "split": split,
        "label": label,
        "patient": labels.patient_key(path),
        "subtype": labels.subtype(path) if label == labels.CLASSES[1] else "",
        "width": decoded.width,
        "height": decoded.height,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return row, decoded.reason


def _grouped(
    rows: Iterable[tuple[str, str, str]],
) -> list[tuple[set[str], list[str]]]:
    """Splits and uris of each checksum."""
    groups: dict[str, tuple[set[str], list[str]]] = defaultdict(lambda: (set(), []))
    for sha256, split, uri in rows:
        groups[sha256][0].add(split)
        groups[sha256][1].append(uri)
    return list(groups.values())


def _named(found: list[str]) -> str:
    if not found:
        return "none"
    more = f" and {len(found) - _NUM_NAMED:,} more" if len(found) > _NUM_NAMED else ""
    return f"{len(found):,}: {'; '.join(found[:_NUM_NAMED])}{more}"
