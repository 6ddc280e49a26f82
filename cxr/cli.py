"""Command lines from typed dataclasses, and errors in one sentence."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

import docstring_parser
import tyro

from cxr.errors import CxrError

Job = TypeVar("Job")

CONFIG = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.DisallowNone,  # Else the help shows {None}|STR for a flag that may be left out.
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
    _join_help(job)
    words = _presence_flags(job, sys.argv[1:] if args is None else args)
    parsed: Job = tyro.cli(job, description=description, args=words, config=CONFIG, **options)
    return parsed


def section(title: str) -> object:
    """In `Annotated`, beside a nested dataclass: the title of its flags in `--help`."""
    return tyro.conf.arg(name=title)


def peek(flags: type[Job]) -> Job:
    """Read only the flags of a small dataclass; `parse` reads the whole and refuses the rest."""
    words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    peeked, _ = tyro.cli(flags, args=words, config=CONFIG, return_unknown_args=True)
    values: Job = peeked
    return values


def flags(settings: Any, of: type | None = None) -> list[str]:
    """The words of a command line that give settings; defaults are left out.

    Args:
        settings: a dataclass without others in it.
        of: a class that it is of, whose fields alone are given; all of them if None.
    """
    words: list[str] = []
    for field in dataclasses.fields(of or settings):
        value = getattr(settings, field.name)
        if field.default_factory is not dataclasses.MISSING:
            is_default = value == field.default_factory()
        else:
            is_default = value == field.default
        if not is_default:
            words.append(f"--{field.name.replace('_', '-')}")
            if value is not True:
                words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return words


def command(job: str, words: Sequence[str]) -> str:
    """The command line of a job as one line that can be pasted into a shell."""
    return shlex.join(["python", f"jobs/{job}.py", *words])


def run(main: Callable[[], None]) -> None:
    """Run a job; an error that the user can act on is one sentence and exit code 1.

    Ctrl-C is one as well, with exit code 130; see `on_interrupt`.
    """
    try:
        main()
    except CxrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        text = f": {interrupt}" if str(interrupt) else "."
        print(f"interrupted{text}", file=sys.stderr)
        sys.exit(130)


@contextmanager
def on_interrupt(describe: Callable[[], str]) -> Iterator[None]:
    """Let `run` say what Ctrl-C leaves behind, and how to continue.

    Args:
        describe: the sentence, called when the block was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(describe()) from None


def _presence_flags(job: type, words: Sequence[str]) -> list[str]:
    """Words in which `--flag True` is `--flag`, and `--flag False` is nothing.

    Flags that are yes or no took a value in earlier versions, and scripts still give it.
    """
    flags = {f"--{name.replace('_', '-')}" for name, hint in _fields(job) if hint is bool}
    kept: list[str] = []
    after_flag = False
    for whole in words:
        for word in whole.split("=", 1) if _flag(whole.partition("=")[0]) in flags else [whole]:
            if after_flag and word in ("True", "False"):
                if word == "False":
                    kept.pop()
                after_flag = False
            else:
                kept.append(word)
                after_flag = _flag(word) in flags
    return kept


def _flag(word: str) -> str:
    return word.replace("_", "-")


def _fields(job: type) -> Iterator[tuple[str, Any]]:
    """Name and type of each field, those of nested dataclasses included."""
    hints = get_type_hints(job)
    for field in dataclasses.fields(job):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _fields(hint)
        else:
            yield field.name, hint


def _join_help(job: type) -> None:
    """Give fields their docstrings as one line each: tyro would keep the breaks of the source."""
    texts: dict[str, str] = {}
    for base in reversed(job.__mro__[:-1]):
        for entry in docstring_parser.parse_from_object(base).params:
            texts[entry.arg_name] = " ".join((entry.description or "").split())
    hints = get_type_hints(job)
    for field in dataclasses.fields(job):
        field.metadata = MappingProxyType({**field.metadata, "help": texts[field.name]})
        if dataclasses.is_dataclass(hint := hints[field.name]) and isinstance(hint, type):
            _join_help(hint)
