"""How far a transfer is: a bar in a terminal, a line now and then in a job's log."""

import sys
import time
from types import TracebackType
from typing import Final

BAR_EVERY_S: Final = 0.2
LINE_EVERY_S: Final = 5.0
"""Seconds between two lines of a log, as in the other jobs."""

_BAR_CHARS: Final = 24


class Meter:
    """A context in which `add` tells how many bytes have come.

    Args:
        title: what is on its way.
        total: bytes in all; None where nobody knows.
        done: bytes that were there before.
    """

    def __init__(self, title: str, total: int | None, done: int = 0) -> None:
        self._title, self._total, self._done, self._new = title, total, done, 0
        self._terminal = sys.stdout.isatty()
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal:
            print("\r\x1b[K", end="")
        if error is None:
            seconds = time.monotonic() - self._started
            print(
                f"  {self._title}: {_megabytes(self._done)} ({_megabytes(self._new)} of them now,"
                f" in {seconds:.1f} s)",
                flush=True,
            )

    def add(self, count: int) -> None:
        """Count some more bytes, and show them when it is time."""
        self._done += count
        self._new += count
        now = time.monotonic()
        if now - self._shown >= (BAR_EVERY_S if self._terminal else LINE_EVERY_S):
            self._shown = now
            line = f"  {self._title}: {self._state(now - self._started)}"
            print(f"\r\x1b[K{line}" if self._terminal else line, flush=True,
                  end="" if self._terminal else "\n")  # fmt: skip

    def _state(self, seconds: float) -> str:
        rate = self._new / seconds
        if self._total is None:
            return f"{_megabytes(self._done)}, {_megabytes(rate)}/s"
        share = min(1.0, self._done / max(self._total, 1))
        bar = "#" * round(share * _BAR_CHARS)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate else ""
        return (
            f"[{bar:{_BAR_CHARS}}] {share:.0%} of {_megabytes(self._total)},"
            f" {_megabytes(rate)}/s{left}"
        )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
