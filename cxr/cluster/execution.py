"""Running datasets so that an error of a worker arrives as itself."""

from collections.abc import Callable

from cxr.errors import CxrError


def execute(dataset_call: Callable[[], None]) -> None:
    """Run what executes a dataset; what a worker raised is raised as itself.

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
    # Out here, where it does not keep `error`, whose frames hold the actors and their CPUs.
    raise cause
