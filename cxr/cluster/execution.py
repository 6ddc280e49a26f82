"""Wait for the cluster so that an error raised by a worker reaches the caller unchanged."""

from collections.abc import Callable
from typing import TypeVar

from cxr.errors import CxrError

Result = TypeVar("Result")


def execute(call: Callable[[], Result]) -> Result:
    """Call a function that waits for a dataset or a task; re-raise a worker's error unchanged.

    Raises:
        CxrError: of a worker, without the traces of the machinery around it.
    """
    import ray

    try:
        return call()
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, CxrError):
            raise
        cause = error.cause
    # Raised outside the handler: `error` would keep frames that hold the actors and their CPUs.
    raise cause
