"""How many of the listed files were scored."""

from collections import Counter as Counts
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Summary:
    """How many of the listed files were scored, refused or unreadable."""

    num_listed: int
    num_scored: int
    num_refused: int
    num_unreadable: int
    computed: int
    """Rows that this job computed."""

    @property
    def failed_fraction(self) -> float:
        """Share of the listed files that have no score."""
        return 1 - self.num_scored / max(self.num_listed, 1)


def summarize(scores: pa.Table, computed: int) -> Summary:
    """Count the rows by their status; `computed` of them are this job's."""
    counts = Counts(scores["status"].to_pylist())
    return Summary(len(scores), counts["scored"], counts["refused"], counts["unreadable"], computed)
