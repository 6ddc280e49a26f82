"""What the scores of a folder add up to: counts and a few rows, of which any number can be merged.

Tasks of the cluster read the parts of one file of the manifest each, and the driver merges what
they count. It holds no rows but those that the page shows.
"""

import gzip
from collections import Counter as Counts
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from cxr import sources, storage
from cxr.images.read import without_numbers
from cxr.labels import CLASSES
from cxr.scoring.parts import REPORT, by_part, read_parts
from cxr.scoring.studies import partial_groups

NUM_SHOWN: Final = 12
"""Images of the highest scores that are shown, and of those nearest to the threshold."""

NUM_EXAMPLES: Final = 3
"""Files that are named for a reason."""

SCORE_BINS: Final = 20
"""Bins of equal width in which probabilities are counted."""

CSV_ROWS: Final = 20_000
"""Rows of `scores.csv` that are sent at a time."""


@dataclass
class Failures:
    """Files without a score for one reason."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first ones."""


@dataclass(frozen=True)
class Shown:
    """A scored image that the page may show."""

    score: Mapping[str, Any]
    """Its row of the scores."""
    listed: Mapping[str, Any]
    """Its row of the manifest."""


@dataclass
class Totals:
    """What the scores of some parts add up to."""

    threshold: float
    """On the probabilities, of the predictions."""
    statuses: Counts[str] = field(default_factory=Counts)
    """Rows by status."""
    failures: dict[tuple[str, str], Failures] = field(default_factory=dict)
    """By status and reason, in the order of the manifest."""
    warnings: Counts[str] = field(default_factory=Counts)
    """Scored images by warning."""
    formats: Counts[str] = field(default_factory=Counts)
    """Rows by format of the file."""
    num_predicted: int = 0
    """Images predicted as pneumonia."""
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))
    """Scored images by probability, (SCORE_BINS,)."""
    highest: list[Shown] = field(default_factory=list)
    """Those with the highest scores, the highest first."""
    nearest: list[Shown] = field(default_factory=list)
    """Those whose probability is nearest to the threshold, the nearest first."""
    unusual: list[Shown] = field(default_factory=list)
    """Those that are unlike the training images, the most unusual first."""
    num_unusual: int = 0
    """Images that are unlike the training images, by `unusual_warning`."""
    num_reports: int = 0
    """Images that have a Structured Report."""
    num_not_dicom: int = 0
    """Scored images that are not DICOM, which have none."""
    missing: list[int] = field(default_factory=list)
    """Parts without scores, which are not counted."""

    @property
    def num_rows(self) -> int:
        """Rows that were counted."""
        return self.statuses.total()

    def add(self, other: "Totals") -> None:
        """Add what comes next in the order of the manifest."""
        self.statuses += other.statuses
        for key, failures in other.failures.items():
            here = self.failures.setdefault(key, Failures())
            here.count += failures.count
            here.examples = [*here.examples, *failures.examples][:NUM_EXAMPLES]
        self.warnings += other.warnings
        self.formats += other.formats
        self.num_predicted += other.num_predicted
        self.histogram += other.histogram
        self.highest = self._choose([*self.highest, *other.highest], _height)
        self.nearest = self._choose([*self.nearest, *other.nearest], self._distance)
        self.unusual = self._choose([*self.unusual, *other.unusual], _commonness)
        self.num_unusual += other.num_unusual
        self.num_reports += other.num_reports
        self.num_not_dicom += other.num_not_dicom
        self.missing += other.missing

    def _choose(self, images: Sequence[Shown], key: Any) -> list[Shown]:
        """The first by a key; of equal ones those that come first in the manifest."""
        return sorted(images, key=key)[:NUM_SHOWN]

    def _distance(self, image: Shown) -> float:
        return abs(float(image.score["prob_pneumonia"]) - self.threshold)


def _height(image: Shown) -> float:
    return -float(image.score["logit"])


def _commonness(image: Shown) -> float:
    return -float(image.score["unusual"])


def count(scores: pa.Table, listed: pa.Table, threshold: float) -> Totals:
    """Count the scores of some rows of a manifest.

    Args:
        scores: of schema `parts.SCORES`.
        listed: the rows of the manifest, one for each score, in the same order.
        threshold: of the predictions.
    """
    totals = Totals(threshold)
    totals.statuses = Counts(scores["status"].to_pylist())
    totals.formats = Counts(scores["format"].to_pylist())
    is_scored = pc.equal(scores["status"], "scored")
    failed, scored = scores.filter(pc.invert(is_scored)), scores.filter(is_scored)
    columns = (failed[name].to_pylist() for name in ("status", "reason", "file"))
    for status, reason, file in zip(*columns, strict=True):
        failures = totals.failures.setdefault((status, without_numbers(reason)), Failures())
        failures.count += 1
        if failures.count <= NUM_EXAMPLES:
            failures.examples.append(file)
    totals.warnings = Counts(
        without_numbers(warning) for row in scored["warnings"].to_pylist() for warning in row
    )
    totals.num_predicted = scored["prediction"].to_pylist().count(CLASSES[1])
    probs, logits = np.asarray(scored["prob_pneumonia"]), np.asarray(scored["logit"])
    totals.histogram = bin_scores(probs)
    listed = listed.filter(is_scored)
    is_unusual = np.asarray(pc.fill_null(scored["unusual_warning"], fill_value=False))
    totals.num_unusual = int(is_unusual.sum())
    totals.num_not_dicom = len(scored) - scored["format"].to_pylist().count("dicom")
    if REPORT in scored.column_names:
        totals.num_reports = len(scored) - scored[REPORT].null_count

    def show(order: NDArray[np.float64], num: int = NUM_SHOWN) -> list[Shown]:
        first = pa.array(np.argsort(order, kind="stable")[: min(num, NUM_SHOWN)])
        rows = (scored.take(first).to_pylist(), listed.take(first).to_pylist())
        return [Shown(score, row) for score, row in zip(*rows, strict=True)]

    totals.highest = show(-logits)
    totals.nearest = show(np.abs(probs - threshold))
    unusual = np.asarray(pc.fill_null(scored["unusual"], fill_value=0.0))
    totals.unusual = show(np.where(is_unusual, -unusual, np.inf), totals.num_unusual)
    return totals


def bin_scores(probs: NDArray[np.float64]) -> NDArray[np.int64]:
    """The numbers of probabilities, 0-1, (N,), in bins of equal width, (SCORE_BINS,)."""
    # 3 / 20 is the float nearest 0.15, as a score of 0.15 is; `linspace` gives the next one up.
    counts: NDArray[np.int64] = np.histogram(probs, np.arange(SCORE_BINS + 1) / SCORE_BINS)[0]
    return counts


def count_file(
    uri: str,
    folder: str,
    schema: pa.Schema,
    threshold: float,
    group: str,
    num_partitions: int,
    compressed: bool,
) -> Iterator[Totals | pa.Table | bytes]:
    """Count the scores of a file of the manifest, and make the lines of `scores.csv` of them.

    Args:
        uri: of the file.
        folder: of the parts.
        schema: of the scores.
        threshold: of the predictions.
        group: the column of studies or patients; empty if there is none.
        num_partitions: among which the studies or patients are divided.
        compressed: compress the lines.

    Yields:
        The totals; if there is a group, a table of `partial_groups` for each partition; and lines.
    """
    listed = by_part(storage.read_table(uri))
    done = read_parts(folder, listed, schema)
    scores = pa.concat_tables([schema.empty_table(), *(done[part] for part in sorted(done))])
    rows = pa.concat_tables([listed[part] for part in sorted(done)]) if done else None
    totals = count(scores, rows, threshold) if rows else Totals(threshold)
    totals.missing = sorted(listed.keys() - done.keys())
    yield totals
    if group:
        groups = partial_groups(scores, group)
        names = groups[group].to_pylist()
        owners = np.array([digest[0] for digest in sources.digest(names)], int) % num_partitions
        for partition in range(num_partitions):
            yield groups.filter(pa.array(owners == partition))
    for start in range(0, len(scores), CSV_ROWS):
        yield csv_lines(scores.slice(start, CSV_ROWS), compressed=compressed)


def csv_lines(scores: pa.Table, *, compressed: bool, header: bool = False) -> bytes:
    """Rows as lines of a CSV, which follow others: members of a gzip file do as well."""
    joined = pc.binary_join(scores["warnings"].combine_chunks(), "; ")
    flat = scores.set_column(scores.column_names.index("warnings"), "warnings", joined)
    sink = pa.BufferOutputStream()
    csv.write_csv(flat, sink, csv.WriteOptions(include_header=header))
    lines: bytes = sink.getvalue().to_pybytes()
    return gzip.compress(lines, mtime=0) if compressed else lines
