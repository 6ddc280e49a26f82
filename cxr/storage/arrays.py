"""Arrays of one shape as a binary column of a table."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_array(
    column: pa.ChunkedArray | pa.Array, shape: tuple[int, ...], dtype: str
) -> NDArray[Any]:
    """View a binary column as an array (N, *shape), without a copy and read-only.

    Args:
        column: N values, the bytes of one array each; none is null.
        shape: of one array.
        dtype: of one array.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # More than 2 GiB, or none.
        column = pa.concat_arrays(column.chunks)
    length = int(np.prod(shape)) * np.dtype(dtype).itemsize
    offsets, values = column.buffers()[1:3]
    first = np.frombuffer(offsets, np.int32, count=1, offset=4 * column.offset)[0]
    flat = np.frombuffer(values, np.uint8, count=len(column) * length, offset=first)
    return flat.view(dtype).reshape(len(column), *shape)


def to_column(arrays: NDArray[Any]) -> pa.Array:
    """Store arrays (N, *shape) as a binary column of N values; the inverse of `to_array`."""
    return pa.array([array.tobytes() for array in arrays], pa.binary())
