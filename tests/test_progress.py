"""How far a stage is: lines in a log, a bar on a terminal that other output does not break."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from cxr import progress
from cxr.progress import Progress
from tests.support.jobs import ROOT


def test_a_logs_line_says_count_share_rate_and_time_left() -> None:
    assert Progress("decoding", 400).state(100, 10.0) == "100 of 400 (25%), 10.0/s, 30 s left"
    assert Progress("decoding", 400).state(0, 5.0) == "0 of 400 (0%), 0.0/s"


def test_a_line_on_bytes_counts_what_was_there_before_as_done_and_not_in_the_rate() -> None:
    resumed = Progress("a.zip", 100_000_000, unit="bytes", done=20_000_000)
    assert resumed.state(20_000_000, 10.0) == "40% of 100.0 MB, 2.0 MB/s, 30 s left"
    endless = Progress("a.zip", None, unit="bytes")
    assert endless.state(20_000_000, 10.0) == "20.0 MB, 2.0 MB/s"


def test_a_log_gets_lines_while_the_stage_runs_and_one_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    out = ""
    with Progress("decoding", 3) as stage:
        stage.add(1)
        while not out:
            out = capsys.readouterr().out
    assert out.startswith("  decoding: 1 of 3 (33%), ")
    assert "  decoding: 3 done in " in capsys.readouterr().out.splitlines()[-1]


def test_a_stage_that_fails_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), Progress("decoding", 3):
        raise ValueError("broken")
    assert capsys.readouterr().out == ""


ON_A_TERMINAL = """
import sys, time
from cxr.progress import Progress

with Progress("decoding", 4) as stage:
    for number in range(4):
        time.sleep(0.3)
        print(f"worker {number}")
        print(f"error {number}", file=sys.stderr)
        stage.add(1)
    print("no end of line", end="")
print("")
"""


def test_a_terminal_shows_a_bar_and_whole_lines_above_it() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))  # rows, columns
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL], stdout=theirs, stderr=theirs, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # What Linux answers when the other end is closed.
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    text = shown.decode()
    assert "50%|" in text
    left = [visible(line) for line in text.split("\n")]
    expected = [line for number in range(4) for line in (f"worker {number}", f"error {number}")]
    assert [line for line in left if line in expected] == expected
    assert not [line for line in left[:-1] if "%|" in line]  # No bar stays.
    assert any(line.startswith("no end of line  decoding: 4 done in ") for line in left)


def visible(line: str) -> str:
    """What a terminal shows of a line in which carriage returns overwrite."""
    columns: list[str] = []
    for piece in line.split("\r"):
        columns[: len(piece)] = piece
    return "".join(columns).rstrip()
