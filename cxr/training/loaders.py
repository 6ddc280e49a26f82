"""How a training worker gets its part of each global batch: from its memory, or from a stream."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from ray.data import DataIterator

from cxr.recipes import Recipe
from cxr.storage.arrays import to_array

SHUFFLE_ROWS: Final = 256
"""Rows that streaming buffers to draw batches from. Shards are stored in random order, so
this only has to vary the batches between epochs."""

READ_ROWS: Final = 64
"""Rows taken at once from a stream that is read in order."""


@dataclass(frozen=True)
class Batch:
    """Rows of one worker's part of a global batch."""

    x: torch.Tensor
    """Pixels or features, (n, *shape)."""
    label: torch.Tensor
    """Class indices, int64, (n,)."""
    row: torch.Tensor
    """Row numbers, int64, (n,)."""


class Loader(Protocol):
    """Yields a worker's part of each global batch."""

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        """The batches of an epoch in random order, or in order for None."""
        ...


class MemoryLoader:
    """Holds the worker's rows in memory: every `world`-th row of all.

    Each epoch's order is drawn over all rows from seed and epoch, and each worker takes what it
    owns of each global batch: any number of workers makes the same steps.
    """

    def __init__(
        self,
        x: torch.Tensor,
        label: torch.Tensor,
        recipe: Recipe,
        rows: NDArray[np.int64],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Hold what this worker owns.

        Args:
            x: pixels or features of the worker's rows, (n, *shape).
            label: class indices, int64, (n,).
            recipe: says batch size and seed.
            rows: row numbers of all workers' rows, sorted, (N,).
            rank: this worker's number.
            world: workers in all.
        """
        self.x, self.label, self.recipe = x, label, recipe
        self.rows, self.rank, self.world = rows, rank, world

    @classmethod
    def read(
        cls,
        tables: Iterable[pa.Table],
        recipe: Recipe,
        shape: tuple[int, ...],
        dtype: str,
        rows: NDArray[np.int64],
        rank: int = 0,
        world: int = 1,
    ) -> "MemoryLoader":
        """Read all rows once and keep what this worker owns.

        Args:
            tables: all rows {row, label, x} in any order, the same for every worker.
            recipe: says batch size and seed.
            shape: of one row's array.
            dtype: of one row's array.
            rows: row numbers of all workers' rows, sorted, (N,).
            rank: this worker's number.
            world: workers in all.
        """
        num_own = len(range(rank, len(rows), world))
        x = torch.empty(num_own, *shape, dtype=getattr(torch, dtype))
        label = torch.empty(num_own, dtype=torch.int64)
        for table in tables:
            position = np.searchsorted(rows, np.asarray(table["row"]))
            mine = np.flatnonzero(position % world == rank)
            target = torch.from_numpy(position[mine] // world)
            x[target] = torch.from_numpy(to_array(table["x"], shape, dtype)[mine])
            label[target] = torch.from_numpy(np.asarray(table["label"])[mine])
        return cls(x, label, recipe, rows, rank, world)

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        order = np.arange(len(self.rows))
        if epoch is not None:
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(order)
        size = self.recipe.batch_size
        for start in range(0, len(order), size):
            position = order[start : start + size]
            position = position[position % self.world == self.rank]
            own = torch.from_numpy(position // self.world)
            yield Batch(self.x[own], self.label[own], torch.from_numpy(self.rows[position]))


class RotatingLoader:
    """Takes another data set in each epoch, in turn."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        """Of equal rows, such as several views of the same images."""
        self.loaders = loaders

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        return self.loaders[((epoch or 1) - 1) % len(self.loaders)].batches(epoch)


class StreamLoader:
    """Reads the worker's split of the stream anew each epoch."""

    def __init__(
        self,
        iterator: DataIterator,
        recipe: Recipe,
        shape: tuple[int, ...],
        dtype: str,
        rank: int,
        world: int,
    ) -> None:
        """Arguments as `MemoryLoader.read`'s; `iterator` yields this worker's rows alone."""
        self.iterator, self.recipe, self.shape, self.dtype = iterator, recipe, shape, dtype
        self.batch_size = recipe.batch_size // world + (rank < recipe.batch_size % world)

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        options: dict[str, Any] = {"batch_size": READ_ROWS}
        if epoch is not None:
            seed = np.random.default_rng((self.recipe.seed, epoch)).integers(2**31)
            options = {
                "batch_size": self.batch_size,
                "local_shuffle_buffer_size": SHUFFLE_ROWS,
                "local_shuffle_seed": int(seed),
            }
        for table in self.iterator.iter_batches(batch_format="pyarrow", **options):
            yield Batch(
                torch.from_numpy(to_array(table["x"], self.shape, self.dtype).copy()),
                torch.from_numpy(np.asarray(table["label"]).copy()),
                torch.from_numpy(np.asarray(table["row"]).copy()),
            )
