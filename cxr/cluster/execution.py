"""Run a dataset so that an error raised by a worker reaches the caller unchanged."""

from collections.abc import Callable

from cxr.errors import CxrError


def execute(dataset_call: Callable[[], None]) -> None:
    """Call a function that executes a dataset; re-raise the error of a worker unchanged.

    Raises:
        CxrError: of a worker, without the traces of the machinery around it.
    """
    import ray

    try:
        dataset_call()
        return
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, CxrError):
            raise
        cause = error.cause
    # Raised outside the handler: `error` would keep frames that hold the actors and their CPUs.
    raise cause
