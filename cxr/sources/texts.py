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


def rank(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """As `encode`, but numbers are in the order of the texts."""
    codes, distinct = encode(column)
    order = pc.sort_indices(distinct).to_numpy()
    ranks = np.empty_like(codes, shape=len(order))
    ranks[order] = np.arange(len(order))
    return ranks[codes], distinct.take(order)


def share(codes: NDArray[np.integer[Any]], distinct: pa.Array) -> pa.DictionaryArray:
    """The column of numbers and texts that `encode` or `rank` returns, dictionary-encoded."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), distinct)


def find_first(codes: NDArray[np.int64], num_codes: int) -> NDArray[np.int64]:
    """The first position of each of the numbers 0 to `num_codes` - 1; -1 where there is none."""
    first = np.full(num_codes, -1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return first
