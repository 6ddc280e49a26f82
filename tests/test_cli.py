"""Command lines: flags that are yes or no, sections of the help, mistyped words."""

import dataclasses
import shlex
from dataclasses import dataclass
from typing import Annotated

import pytest

from cxr import cli


@dataclass(frozen=True)
class Inner:
    """What the section says."""

    keep_all: bool = False
    """Keep everything, of which there
    may be (much) more."""
    depth: int = 1
    """Levels below."""


@dataclass(frozen=True)
class Job:
    """A job."""

    name: str = "x"
    """What it is called."""
    update: bool = False
    """List again."""
    limit: int | None = None
    """How many at most."""
    inner: Annotated[Inner, cli.section("what is kept")] = dataclasses.field(default_factory=Inner)
    """What is kept of it."""


@pytest.mark.parametrize(
    ("words", "update", "keep_all"),
    [
        ((), False, False),
        (("--update",), True, False),
        (("--update", "--keep-all", "--name", "a"), True, True),
        (("--update", "True"), True, False),
        (("--update", "False"), False, False),
        (("--update=True", "--keep_all=False"), True, False),
        (("--keep_all", "True", "--update", "False"), False, True),
    ],
)
def test_yes_or_no_is_a_flag_and_the_form_with_a_value_is_still_read(
    words: tuple[str, ...], update: bool, keep_all: bool
) -> None:
    job = cli.parse(Job, "A job.", args=words)
    assert (job.update, job.inner.keep_all) == (update, keep_all)


def test_values_of_other_flags_are_left_alone() -> None:
    assert cli.parse(Job, "A job.", args=("--name", "True")).name == "True"


@pytest.mark.parametrize(
    "words",
    [
        ("--updat",), ("--update", "maybe"), ("--update", "True", "True"), ("--update=1",),
        ("--depth", "True"), ("True",),
    ],
)  # fmt: skip
def test_a_mistyped_word_ends_with_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.parse(Job, "A job.", args=words)
    assert stop.value.code == 2


def test_ctrl_c_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    def late() -> None:
        with cli.on_interrupt(lambda: "2 of 3 rows are kept"):
            raise KeyboardInterrupt

    def early() -> None:
        raise KeyboardInterrupt

    for main, line in ((late, "interrupted: 2 of 3 rows are kept\n"), (early, "interrupted.\n")):
        with pytest.raises(SystemExit) as stop:
            cli.run(main)
        assert stop.value.code == 130
        assert capsys.readouterr().err == line


def test_help_has_named_sections_and_no_line_breaks_of_the_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.parse(Job, "A job.", args=("--help",))
    shown = capsys.readouterr().out
    assert "what is kept options" in shown
    assert "Keep everything, of which there may be (much) more." in shown


@dataclass(frozen=True)
class Flags:
    """What is given."""

    input: str
    """What is read."""
    columns: tuple[str, ...] = ()
    """Columns of it."""
    keep_all: bool = False
    """Keep everything."""
    depth: int = 1
    """Levels below."""
    share: float | None = None
    """Of the whole."""


def test_a_command_can_be_pasted_and_gives_the_settings_back() -> None:
    flags = Flags("it's a/*.csv", ("uri=File name", "label=$Finding"), True, 2)
    line = cli.command("train", cli.flags(flags))
    assert "\n" not in line
    words = shlex.split(line)
    assert words[:2] == ["python", "jobs/train.py"]
    assert cli.parse(Flags, "A job.", args=words[2:]) == flags


def test_a_command_leaves_out_what_is_the_default() -> None:
    assert cli.flags(Flags("a", depth=1)) == ["--input", "a"]
    assert cli.flags(Inner(depth=3)) == ["--depth", "3"]


@dataclass(frozen=True)
class OtherDefault(Inner):
    """The same flags."""

    depth: int = 2
    """Levels below."""
    width: int = 1
    """Beside it."""


def test_flags_of_a_class_are_its_own_against_its_own_defaults() -> None:
    assert cli.flags(OtherDefault(width=5), Inner) == ["--depth", "2"]


def test_help_shows_what_a_flag_that_may_be_left_out_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.parse(Job, "A job.", args=("--help",))
    assert "--limit INT  " in capsys.readouterr().out
    assert cli.parse(Job, "A job.", args=()).limit is None
    assert cli.parse(Job, "A job.", args=("--limit", "3")).limit == 3
