"""Jobs run as their users run them: in this process, or as processes that can be killed."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import psutil

from cxr import storage

ROOT: Final = Path(__file__).resolve().parents[2]

RAY_LINE: Final = re.compile(r"\[[-0-9: ,]+ [A-Z] \d+ \d+\] \((gcs_server|raylet|core_worker)\) ")
"""How a line of the log of one of Ray's processes begins."""

SMALL: Final = (
    "--version", "frozen", "--name", "best", "--backbone", "alexnet", "--image-px", "64",
    "--weights", "none", "--folds", "3",
)  # fmt: skip
"""Flags of `train` and `tune` with which the small set takes seconds."""

TEN_EPOCHS: Final = (
    *("--epochs", "10", "--patience", "10", "--schedule", "one_cycle", "--ema", "0.5"),
    *("--label-smoothing", "0.05", "--gradient-clipping", "1"),
)
"""Flags of a run that is killed and resumed: all that a step may carry over to the next."""

UNSTRESSED: Final = ("--stress-images", "0")
"""Flags of `train` and `evaluate` that leave out acquisition changes, which take seconds."""

END_S: Final = 60.0
"""Longest time until all processes of a killed job have ended."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int
    out: str
    err: str

    @property
    def own_err(self) -> list[str]:
        """The lines of `err` without those of Ray's own processes, which come late and may be
        about the job before on the same cluster."""
        return [line for line in self.err.splitlines() if not RAY_LINE.match(line)]


def execute(job: str, *words: str) -> Ended:
    """Run a job script in this process, where starting it costs nothing."""
    spec = importlib.util.spec_from_file_location(f"job_{job}", ROOT / "jobs" / f"{job}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.modules[spec.name] = module
    with (
        mock.patch.object(sys, "argv", [f"jobs/{job}.py", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        spec.loader.exec_module(module)
        try:
            module.cli.run(module.main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


def command(job: str, *words: object) -> list[str]:
    """The command line of a job in a process of its own."""
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, words)]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, in which a program finds this checkout's `cxr` first."""
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return {
        **os.environ,
        "PYTHONPATH": path.rstrip(os.pathsep),
        "PYTHONUNBUFFERED": "1",
    } | variables


def run(program: list[str], timeout_s: float | None = None, **variables: str) -> Ended:
    """Run a program to its end, with more variables in its environment."""
    done = subprocess.run(
        program, cwd=ROOT, env=environment(**variables), capture_output=True, text=True,
        timeout=timeout_s, check=False,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def process_named(pattern: str, pid: int | None = None) -> int:
    """Id of a descendant of a process, this one by default, whose title matches.

    Raises:
        RuntimeError: none does.
    """
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            if re.search(pattern, child.cmdline()[0]):
                return child.pid
    raise RuntimeError(f"no process {pattern}")


class Job:
    """A job in a process group of its own; without `RAY_ADDRESS` it has a cluster of its own."""

    def __init__(self, job: str, *words: object, variables: Mapping[str, str] = {}) -> None:
        self.process = subprocess.Popen(
            command(job, *words), cwd=ROOT, env=environment(**variables), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []

    @property
    def printed(self) -> str:
        """What was read of its output."""
        return "".join(self.lines)

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read its output up to the first line that matches.

        Raises:
            RuntimeError: it has ended before.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise RuntimeError(f"{pattern} was never printed:\n{self.printed}")

    def wait(self) -> int:
        """Read its output to the end; its exit code."""
        assert self.process.stdout is not None
        self.lines += self.process.stdout
        return self.process.wait()

    def kill_worker(self, pattern: str) -> None:
        """Kill a process that computes for it, on a cluster of its own."""
        os.kill(process_named(pattern, self.process.pid), signal.SIGKILL)

    def kill(self) -> None:
        """Kill the job with all that it started, and wait until nothing of it is left."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        _, left = psutil.wait_procs(started, END_S)
        if left:
            raise RuntimeError(f"still running: {left}")


def history(run: str, version: str = "best") -> list[dict[str, Any]]:
    """Epoch, losses and AUC of a training, from a folder or a bucket."""
    lines = storage.read_bytes(storage.join(run, version, "metrics.jsonl")).splitlines()
    kept = ("epoch", "train_loss", "val_loss", "val_auc")
    return [{name: json.loads(line)[name] for name in kept} for line in lines]
