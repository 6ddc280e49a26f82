"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it has not come to hold.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {timeout_s:.0f} s")
        time.sleep(0.02)
