"""How Ray Train divides data sets among its workers.

A module of its own because Ray's processes import it, which then need no PyTorch.
"""

from collections.abc import Sequence
from typing import Any

import ray.train
from ray.data import DataIterator, Dataset


class SplitConfig(ray.train.DataConfig):
    """Divides data sets among workers without losing a row, in an order that repeats."""

    def __init__(self, whole: Sequence[str]) -> None:
        """`whole` names the data sets of which every worker reads all rows."""
        super().__init__()
        self.whole = tuple(whole)

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        """One iterator per data set for each worker."""
        shards: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            own = dataset.copy(dataset)
            # A resumed epoch must see what an uninterrupted one would have seen.
            own.context.execution_options.preserve_order = True
            # Ray's default, equal=True, would drop the rows that do not divide evenly.
            iterators = (
                [own.iterator()] * world_size
                if world_size == 1 or name in self.whole
                else own.streaming_split(world_size, equal=False)
            )
            for rank, iterator in enumerate(iterators):
                shards[rank][name] = iterator
        return shards
