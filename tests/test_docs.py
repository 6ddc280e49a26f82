"""The documentation: its links, the paths that it names, and the flags that it shows exist."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

JOBS = ("download", "check", "train", "evaluate", "score", "explain", "tune")

RAY_FLAGS = {"--address", "--no-wait"}
"""Flags of `ray job submit` that the text names."""

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
_PATH = re.compile(r"`((?:cxr|jobs|tests|benchmarks|docs|deploy|\.ci)/[\w./-]*)`")
_SCRIPT = re.compile(r"(jobs)/(\w+)\.py|(benchmarks)\.(\w+)")


def prose(page: Path) -> str:
    """A page without its indented code."""
    return "\n".join(line for line in page.read_text().splitlines() if not line.startswith("    "))


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return [link or picture for link, picture in _LINK.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def spans(page: Path) -> list[str]:
    """What stands between backticks, line breaks as spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Each script that a page's commands start, and each flag that follows it."""
    lines = re.sub(r"\\\n\s*", " ", page.read_text()).splitlines()
    for command in [*spans(page), *(line for line in lines if line.startswith("    "))]:
        script = ""
        for word in command.partition(" # ")[0].split():
            if started := _SCRIPT.fullmatch(word):
                script = "{}/{}.py".format(*filter(None, started.groups()))
            elif word == "&&":
                script = ""
            elif script and word.startswith("--"):
                yield script, word.partition("=")[0]


@functools.cache
def classes() -> dict[str, ast.ClassDef]:
    """Every class of the library by its name: settings are classes whose names are unique."""
    trees = (ast.parse(path.read_text()) for path in sorted((ROOT / "cxr").rglob("*.py")))
    return {
        node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }


def flags_of_class(name: str, known: dict[str, ast.ClassDef]) -> set[str]:
    """The flags of a dataclass; those it inherits from, and nested ones, add their own."""
    flags = set()
    for base in known[name].bases:
        if isinstance(base, ast.Name) and base.id in known:
            flags |= flags_of_class(base.id, known)
    for node in known[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation).removeprefix("Annotated[")
            annotation = annotation.partition(",")[0].rpartition(".")[2]
            if annotation in known:
                flags |= flags_of_class(annotation, known)
            else:
                flags.add(f"--{node.target.id.replace('_', '-')}")
    return flags


@functools.cache
def flags_of(script: str) -> frozenset[str]:
    """The flags of a script: of the dataclass that it parses, or those that its parser names."""
    tree = ast.parse((ROOT / script).read_text())
    known = classes() | {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    flags = {"--help"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        if ast.unparse(node.func) == "cli.parse" and isinstance(node.args[0], ast.Name):
            flags |= flags_of_class(node.args[0].id, known)
        elif ast.unparse(node.func).endswith(".add_argument"):
            flags |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return frozenset(flags)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        path = path / "README.md" if path.is_dir() else path
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    missing = {path for path in _PATH.findall(page.read_text()) if not (ROOT / path).exists()}
    assert not missing


def test_the_index_lists_every_page_of_docs() -> None:
    index = ROOT / "docs" / "README.md"
    pages = {page.name for page in index.parent.glob("*.md")}
    assert pages - set(links(index)) == {"README.md"}


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_of_a_job_can_be_read_from_its_source(job: str) -> None:
    """What the checks below rest on."""
    expected = {
        "download": "--mirror", "check": "--folds", "train": "--normalization",
        "evaluate": "--split", "score": "--update",
        "explain": "--method", "tune": "--trials",
    }  # fmt: skip
    assert expected[job] in flags_of(f"jobs/{job}.py")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_flag_in_a_command_is_one_of_its_script(page: Path) -> None:
    wrong = {(script, flag) for script, flag in commands(page) if flag not in flags_of(script)}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_flag_in_the_text_is_one_of_some_script(page: Path) -> None:
    scripts = [*ROOT.glob("jobs/*.py"), *ROOT.glob("benchmarks/*.py")]
    known = RAY_FLAGS.union(*(flags_of(str(path.relative_to(ROOT))) for path in scripts))
    named = {
        word.partition("=")[0]
        for span in spans(page)
        if span.startswith("--")
        for word in span.split()
        if word.startswith("--")
    }
    assert not named - known


def test_every_job_is_shown_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert not {job for job in JOBS if f"python jobs/{job}.py" not in text}


def test_the_gate_runs_the_readme_s_test_command_to_the_letter() -> None:
    command = "pip install -e '.[test]' && pytest"
    assert f"    {command}" in (ROOT / "README.md").read_text().splitlines()
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_first_screen_of_the_readme_fits_a_screen() -> None:
    assert (ROOT / "README.md").read_text().splitlines().index("# Guide") <= 45
