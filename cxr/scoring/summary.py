"""How many of the listed files were scored."""

from collections.abc import Mapping
from dataclasses import dataclass


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


def summarize(statuses: Mapping[str, int], computed: int) -> Summary:
    """Of the number of rows of each status; `computed` of them are this job's."""
    scored, refused, unreadable = (
        statuses.get(name, 0) for name in ("scored", "refused", "unreadable")
    )
    return Summary(sum(statuses.values()), scored, refused, unreadable, computed)
