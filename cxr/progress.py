"""How far a stage of a job is: a bar on a terminal, a line now and then in a job's log."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Final, Literal, NoReturn, TextIO

from tqdm import tqdm

BAR_EVERY_S: Final = 0.2
"""Seconds between two updates of a bar."""

LINE_EVERY_S: Final = 5.0
"""Seconds between two lines of a log: often enough to see life, seldom enough for a log."""

MEGABYTE: Final = 1e6

Unit = Literal["items", "bytes"]


class Progress:
    """A context that shows how far a stage is.

    On a terminal it draws one bar, and what is printed meanwhile, by this process or by Ray for the
    processes of its cluster, appears above it. Otherwise it prints a line every `LINE_EVERY_S`. In
    both cases the last line says how much was done, unless the stage failed.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        unit: Unit = "items",
        done: int = 0,
        lines: bool = True,
    ) -> None:
        """Nothing is shown before the context is entered.

        Args:
            title: of the stage.
            total: items or bytes in all; None where nobody knows.
            unit: what is counted.
            done: how many of them were there before.
            lines: False for a bar alone: the stage prints lines of its own.
        """
        self.title, self.total, self.unit, self.before = title, total, unit, done
        self.draws_bar = sys.stdout.isatty()
        self._lines = lines
        self._added = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._resources = ExitStack()

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        if self.draws_bar:
            self._bar = self._resources.enter_context(_bar(self))
        if self.draws_bar or self._lines:
            self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._resources.close()
        if error is None and self._lines:
            print(f"  {self.title}: {self._summary(time.monotonic() - self._started)}", flush=True)

    def add(self, count: int) -> None:
        """Count more items or bytes as done."""
        self._added += count

    def added(self) -> int:
        """How many were done in this stage so far."""
        return self._added

    def _watch(self) -> None:
        while not self._stopped.wait(BAR_EVERY_S if self.draws_bar else LINE_EVERY_S):
            added = self.added()
            if self.draws_bar:
                self._bar.n, self._bar.total = self.before + added, self.total
                self._bar.refresh()
            else:
                state = self.state(added, time.monotonic() - self._started)
                print(f"  {self.title}: {state}", flush=True)

    def state(self, added: int, seconds: float) -> str:
        """A log's line on a stage that runs.

        Args:
            added: items or bytes done in this stage.
            seconds: since its start.
        """
        done, rate = self.before + added, added / seconds
        if self.total is None:
            return f"{_count(done, self.unit)}, {_rate(rate, self.unit)}"
        share = f"{min(1.0, done / max(self.total, 1)):.0%}"
        left = f", {(self.total - done) / rate:.0f} s left" if added else ""
        if self.unit == "bytes":
            shown = f"{share} of {_count(self.total, self.unit)}"
        else:
            shown = f"{done:,} of {self.total:,} ({share})"
        return f"{shown}, {_rate(rate, self.unit)}{left}"

    def _summary(self, seconds: float) -> str:
        if self.unit == "bytes":
            done, added = (_count(n, self.unit) for n in (self.before + self._added, self._added))
            return f"{done} ({added} of them now, in {seconds:.1f} s)"
        done_items = self._added if self.total is None else self.total
        rate = done_items / max(seconds, 1e-9)
        return f"{done_items:,} done in {seconds:.1f} s ({_rate(rate, self.unit)})"


def _count(number: float, unit: Unit) -> str:
    return f"{number / MEGABYTE:,.1f} MB" if unit == "bytes" else f"{number:,}"


def _rate(number: float, unit: Unit) -> str:
    return f"{_count(number, unit)}/s" if unit == "bytes" else f"{number:.1f}/s"


@contextmanager
def _bar(progress: Progress) -> "Iterator[tqdm[NoReturn]]":
    """A bar at the bottom of the terminal; what is printed meanwhile appears above it."""
    terminal = sys.stdout
    streams = _AboveBar(sys.stdout, terminal), _AboveBar(sys.stderr, terminal)
    with (
        tqdm(
            desc=f"  {progress.title}", total=progress.total, initial=progress.before,
            file=terminal, leave=False, dynamic_ncols=True,
            unit="B" if progress.unit == "bytes" else "it", unit_scale=progress.unit == "bytes",
        ) as bar,
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
    ):  # fmt: skip
        yield bar
    for stream in streams:
        stream.finish()


class _AboveBar(io.TextIOBase):
    """A stream that writes whole lines, and hides the terminal's bar while it does."""

    def __init__(self, stream: TextIO, terminal: TextIO) -> None:
        self._stream, self._terminal, self._rest = stream, terminal, ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            lines, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                with tqdm.external_write_mode(file=self._terminal):
                    self._stream.write(lines + newline)
        return len(text)

    def finish(self) -> None:
        """Write what has come of a last line."""
        self._stream.write(self._rest)
        self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding
