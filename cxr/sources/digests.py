"""A set of names in 12 bytes each, to recognize what was listed before."""

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES: Final = 12
"""96 bits: among a billion names, two have the same digest with a probability of 6e-12."""


class Digests:
    """Names that were added, by the digests of their text.

    Digests are kept in sorted runs. A new one is merged with those that are not much longer, so
    that there are few runs, and a name is moved about as often as the number of names has digits
    in binary.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.bytes_]] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, digests: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Add digests, (N,); whether each is new, the first of equal ones only."""
        is_new = np.zeros(len(digests), dtype=bool)
        is_new[np.unique(digests, return_index=True)[1]] = True
        is_new &= ~self.contain(digests)
        self._insert(np.sort(digests[is_new]))
        return is_new

    def contain(self, digests: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Whether each of the digests, (N,), was added."""
        is_known = np.zeros(len(digests), dtype=bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            is_known |= run[places] == digests
        return is_known

    def _insert(self, run: NDArray[np.bytes_]) -> None:
        if not len(run):
            return
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            # Stable: numpy merges runs that are sorted, instead of sorting them again.
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)


def digest(names: Iterable[str]) -> NDArray[np.bytes_]:
    """The digests of names, (N,)."""
    digests = b"".join(
        hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=DIGEST_BYTES).digest()
        for name in names
    )
    return np.frombuffer(digests, dtype=f"S{DIGEST_BYTES}")
