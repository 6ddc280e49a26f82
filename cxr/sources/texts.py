"""Columns of text as Arrow arrays: at no time is there a Python object for each row of a table."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BATCH_ROWS: Final = 10_000
"""Rows whose cells are Python objects at the same time."""

TEXT: Final = pa.string()


def batches(*columns: pa.ChunkedArray | pa.Array) -> Iterator[list[tuple[Any, ...]]]:
    """The cells of columns of the same length row by row, at most `BATCH_ROWS` rows at a time."""
    for start in range(0, len(columns[0]), BATCH_ROWS):
        cells = (column.slice(start, BATCH_ROWS).to_pylist() for column in columns)
        yield list(zip(*cells, strict=True))


def compute(
    function: Callable[..., Any],
    *columns: pa.ChunkedArray | pa.Array,
    dtype: pa.DataType = TEXT,
) -> pa.ChunkedArray:
    """A column of what a function returns for the cells of each row.

    Args:
        function: takes a cell of each column.
        columns: of the same length.
        dtype: of the new column.
    """
    chunks = [pa.array([function(*row) for row in rows], dtype) for rows in batches(*columns)]
    return pa.chunked_array(chunks, dtype)


def encode(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Number the distinct texts of a column.

    Args:
        column: text, or text that is dictionary-encoded; without nulls.

    Returns:
        The number of each cell, (N,), and the texts by number: in the order in which they come
        first, or that of the dictionary.
    """
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if not len(chunked):
        return np.empty(0, np.int64), pa.array([], TEXT)
    if not pa.types.is_dictionary(chunked.type):
        chunked = chunked.dictionary_encode()
    encoded = chunked.unify_dictionaries().combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def rank(
    column: pa.ChunkedArray | pa.Array,
) -> tuple[NDArray[np.int64], pa.Array | pa.ChunkedArray]:
    """Number the distinct texts of a column in their order.

    By sorting, in a fifth of the memory of a hash table where most texts are distinct.

    Args:
        column: text without nulls.

    Returns:
        The number of each cell, (N,), and the texts by number.
    """
    order, numbers, cells = _sort(column)
    ranks = np.empty_like(order)
    ranks[order] = numbers
    return ranks, cells.filter(pa.array(np.diff(numbers, prepend=-1) > 0))


def find_first(column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """The first position of the text of each cell, (N,)."""
    order, numbers, _ = _sort(column)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    first = np.empty_like(order)
    first[order] = order[starts][numbers]
    return first


def _sort(
    column: pa.ChunkedArray | pa.Array,
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array | pa.ChunkedArray]:
    """Positions in the order of the texts, equal ones as they come; and in this order, the number
    of each text and the text."""
    order = pc.sort_indices(column).to_numpy().astype(np.int64)
    cells = column.take(order)
    is_new = np.ones(len(cells), dtype=bool)
    is_new[1:] = pc.not_equal(cells.slice(1), cells.slice(0, max(len(cells) - 1, 0)))
    return order, np.cumsum(is_new) - 1, cells


def share(
    codes: NDArray[np.integer[Any]], distinct: pa.Array | pa.ChunkedArray
) -> pa.DictionaryArray:
    """The column of numbers and texts that `encode` or `rank` returns, dictionary-encoded."""
    if isinstance(distinct, pa.ChunkedArray):
        distinct = distinct.combine_chunks()
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), distinct)
