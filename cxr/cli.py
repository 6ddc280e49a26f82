"""Command lines from typed dataclasses, and errors in one sentence."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from cxr.errors import CxrError

Job = TypeVar("Job")

CONFIG = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.FlagConversionOff,
)


def parse(
    job: type[Job], description: str, default: Job | None = None, args: Sequence[str] | None = None
) -> Job:
    """Read a command line into a dataclass; a mistyped flag or value ends the program with 2.

    Args:
        job: the dataclass; nested ones give their fields as flags of their own.
        description: what `--help` says first.
        default: the values of flags that are not given, where the dataclass's own do not hold.
        args: the words; those of the command line where None.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    # Commands keep their lines: tyro joins those that begin with a letter.
    description = re.sub(r"(?m)^(?=python |ray )", "  ", description)
    parsed: Job = tyro.cli(job, description=description, args=args, config=CONFIG, **options)
    return parsed


def peek(flags: type[Job]) -> Job:
    """Read only the flags of a small dataclass; `parse` reads the whole and refuses the rest."""
    words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    found, _ = tyro.cli(flags, args=words, config=CONFIG, return_unknown_args=True)
    seen: Job = found
    return seen


def run(main: Callable[[], None]) -> None:
    """Run a job; an error that the user can act on is one sentence and exit code 1."""
    try:
        main()
    except CxrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        sys.exit(130)
