"""Silence the warnings and logs of libraries while any thread decodes."""

import logging
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack

from PIL import ImageFile


class _WhileAnyThread:
    """A change to the state of the whole process, in force while any thread is inside.

    The first thread that enters makes the change, and the last one that leaves undoes it: the
    standard `warnings.catch_warnings` restores the wrong state if threads leave in another order
    than they entered.
    """

    def __init__(self, change: Callable[[ExitStack], None]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._depth = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._change(self._undo)
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._undo.close()


def _silence_warnings(undo: ExitStack) -> None:
    undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    # Other libraries set this for the whole process.
    undo.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def _silence_logs(undo: ExitStack) -> None:
    for name in ("pydicom", "pylibjpeg", "openjpeg"):
        logger = logging.getLogger(name)
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)


# Warnings and logs may quote the header. Logs are separate, for DICOM only: setting a level clears
# the cache of every logger.
NO_WARNINGS = _WhileAnyThread(_silence_warnings)

NO_LOGS = _WhileAnyThread(_silence_logs)
