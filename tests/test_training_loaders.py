"""The promises of the loaders that need no cluster."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.data import DataIterator

from cxr.recipes import Recipe
from cxr.storage.arrays import to_array
from cxr.training.loaders import MemoryLoader, RotatingLoader, StreamLoader

pytestmark = pytest.mark.cluster

ROWS = np.arange(3, 3 + 2 * 23, 2)
SHAPE = (2, 3)


@dataclass
class FakeIterator:
    """What a DataIterator gives, from a table."""

    table: pa.Table
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The options of each call."""

    def iter_batches(self, *, batch_size: int, **options: Any) -> Iterator[pa.Table]:
        self.asked.append(options)
        for start in range(0, len(self.table), batch_size):
            yield self.table.slice(start, batch_size)


def table(rows: np.ndarray) -> pa.Table:
    arrays = [np.full(SHAPE, row, np.float32).tobytes() for row in rows]
    return pa.table({"row": rows, "label": rows % 3 % 2, "x": pa.array(arrays, pa.binary())})


def recipe(batch_size: int) -> Recipe:
    return Recipe(batch_size=batch_size, loading="memory", seed=5)


def loaders(batch_size: int, world: int) -> list[MemoryLoader]:
    shuffled = table(np.random.default_rng(1).permutation(ROWS))
    return [
        MemoryLoader.read(
            [shuffled.slice(0, 7), shuffled.slice(7)],
            recipe(batch_size),
            SHAPE,
            "float32",
            ROWS,
            rank,
            world,
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 23])
def test_workers_together_see_the_global_batches_of_one(world: int, batch_size: int) -> None:
    alone = [set(batch.row.tolist()) for batch in loaders(batch_size, 1)[0].batches(epoch=2)]
    parts = [list(loader.batches(epoch=2)) for loader in loaders(batch_size, world)]
    together = [set().union(*(b.row.tolist() for b in step)) for step in zip(*parts, strict=True)]
    assert together == alone


def test_an_epoch_gives_each_row_once_with_its_own_array_and_label() -> None:
    batches = list(loaders(4, 1)[0].batches(epoch=1))
    rows = torch.cat([batch.row for batch in batches])
    assert sorted(rows.tolist()) == ROWS.tolist()
    for batch in batches:
        assert torch.equal(batch.x[:, 0, 0].long(), batch.row)
        assert torch.equal(batch.label, batch.row % 3 % 2)


def test_epochs_differ_in_order_and_repeat_by_number() -> None:
    loader = loaders(23, 1)[0]
    first, second, again = (next(loader.batches(epoch)).row.tolist() for epoch in (1, 2, 1))
    assert first != second
    assert first == again


@pytest.mark.parametrize(("batch_size", "world"), [(15, 2), (7, 3), (4, 4)])
def test_streamed_batches_of_all_workers_add_up_to_the_global_ones(
    batch_size: int, world: int
) -> None:
    """Of the workers' first batches together, and of all rows in an epoch."""
    loaders = [
        StreamLoader(
            cast(DataIterator, FakeIterator(table(ROWS[rank::world]))), recipe(batch_size), SHAPE,
            "float32", rank, world,
        )
        for rank in range(world)
    ]  # fmt: skip
    batches = [list(loader.batches(epoch=1)) for loader in loaders]
    assert sum(len(first.row) for first, *_ in batches) == batch_size
    assert sorted(row for part in batches for b in part for row in b.row.tolist()) == list(ROWS)
    for batch in (batch for part in batches for batch in part):
        assert torch.equal(batch.x[:, 0, 0].long(), batch.row)
        assert torch.equal(batch.label, batch.row % 3 % 2)


def test_a_stream_is_shuffled_by_seed_and_epoch_and_read_in_order_without_one() -> None:
    source = FakeIterator(table(ROWS))
    loader = StreamLoader(cast(DataIterator, source), recipe(4), SHAPE, "float32", 0, 1)
    in_order = [row for batch in loader.batches(None) for row in batch.row.tolist()]
    assert in_order == list(ROWS)
    for epoch in (1, 2, 1):
        list(loader.batches(epoch))
    seeds = [options.get("local_shuffle_seed") for options in source.asked]
    assert seeds[0] is None
    assert seeds[1] == seeds[3] != seeds[2]


def test_epochs_take_equal_data_sets_in_turn() -> None:
    views = [MemoryLoader(torch.full((23, 1), view), torch.zeros(23, dtype=torch.int64),
                          recipe(23), ROWS) for view in range(3)]  # fmt: skip
    loader = RotatingLoader(views)
    taken = [int(next(loader.batches(epoch)).x[0]) for epoch in (1, 2, 3, 4, 2)]
    assert taken == [0, 1, 2, 0, 1]


def test_arrays_survive_slicing_and_chunks() -> None:
    whole = pa.concat_tables([table(ROWS[:9]), table(ROWS[9:])])
    part = whole.slice(5, 11)
    expected = [np.full(SHAPE, row, np.float32) for row in ROWS[5:16]]
    assert np.array_equal(to_array(part["x"], SHAPE, "float32"), expected)
