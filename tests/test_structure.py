"""Imports follow one order, Ray and PyTorch stay where they are named, importing does nothing."""

import ast
import functools
import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, run

ORDER = (
    *("errors", "labels", "recipes", "cli", "progress", "storage", "sources", "images", "download"),
    *("metrics", "models", "cluster", "inference", "datasets", "phantoms", "reports"),
    *("explanations", "training", "checking", "evaluation", "scoring", "tuning"),
)
"""Every package and module at the top of `cxr`; it imports only those before it. This is the one
list: the table in docs/structure.md shows it."""

SLOW = ("torch", "torchvision", "ray", "onnxruntime", "sklearn", "scipy", "pandas", "matplotlib",
        "pydicom")  # fmt: skip
"""Libraries that a command line is read without: most take seconds to import."""

JOBS = ("download", "check", "train", "tune", "evaluate", "score", "explain")


@functools.cache
def packages() -> dict[str, tuple[Path, ...]]:
    """The files of each package at the top of `cxr`, or of each module there."""
    files: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "cxr").rglob("*.py")):
        package = path.relative_to(ROOT / "cxr").with_suffix("").parts[0]
        if package != "__init__":
            files.setdefault(package, []).append(path)
    return {package: tuple(paths) for package, paths in files.items()}


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names that a file imports anywhere in it, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@functools.cache
def graph() -> dict[str, set[str]]:
    """The packages that each package imports, other than itself."""
    edges: dict[str, set[str]] = {}
    for package, paths in packages().items():
        names = {name for path in paths for name in imported(path) if name.startswith("cxr.")}
        edges[package] = {name.split(".")[1] for name in names} - {package}
    return edges


def reached(package: str) -> set[str]:
    """The packages that importing a package brings in, itself included."""
    seen: set[str] = set()
    waiting = [package]
    while waiting:
        if (current := waiting.pop()) not in seen:
            seen.add(current)
            waiting += graph()[current]
    return seen


def modules(package: str) -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("").parts for path in packages()[package])
    return [".".join(parts).removesuffix(".__init__") for parts in paths]


def without(*libraries: str) -> list[str]:
    """The packages that work without some libraries: nothing that they bring in names one."""
    naming = {
        package
        for package, paths in packages().items()
        if {name.split(".")[0] for path in paths for name in imported(path)} & set(libraries)
    }
    return [package for package in packages() if not reached(package) & naming]


def import_without(libraries: tuple[str, ...], names: list[str]) -> None:
    """Import packages in a process in which some libraries cannot be imported."""
    program = f"""
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {libraries!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
for name in {[module for name in names for module in modules(name)]!r}:
    importlib.import_module(name)
"""
    ended = run([sys.executable, "-c", program])
    assert ended.code == 0, ended.err
    assert ended.out == ""


def test_every_package_is_in_the_order() -> None:
    assert set(packages()) == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_the_documentation_shows_the_order() -> None:
    text = (ROOT / "docs" / "structure.md").read_text()
    table = text.partition("| package | holds |\n")[2].partition("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines()[1:]]
    assert tuple(name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)) == ORDER


def test_every_import_is_of_a_package() -> None:
    assert not set().union(*graph().values()) - set(packages())


@pytest.mark.parametrize("package", packages())
def test_imports_point_up(package: str) -> None:
    assert not graph()[package] - set(ORDER[: ORDER.index(package)])


def test_no_package_imports_itself_through_others() -> None:
    cycles = {name for name in packages() for other in graph()[name] if name in reached(other)}
    assert not cycles


def test_training_and_scoring_never_import_each_other() -> None:
    assert "scoring" not in reached("training")
    assert "training" not in reached("scoring")


def test_the_library_never_imports_jobs_tests_or_benchmarks() -> None:
    for paths in packages().values():
        for path in paths:
            outside = {"jobs", "tests", "benchmarks"}
            assert not {name.split(".")[0] for name in imported(path)} & outside, path.name


def test_tests_are_named_after_the_package_that_they_test() -> None:
    others = {"jobs", "benchmarks", "deploy", "docs", "structure"}
    for path in (ROOT / "tests").glob("test_*.py"):
        assert path.stem.split("_")[1] in others | set(packages()), path.name


def test_no_utils() -> None:
    assert not {"utils", "helpers", "common", "misc"} & {
        path.stem for paths in packages().values() for path in paths
    }


def test_packages_that_do_not_name_ray_work_without_it() -> None:
    names = without("ray")
    assert {"recipes", "storage", "sources", "images", "models", "metrics"} <= set(names)
    if "ray" in sys.modules and sys.modules["ray"] is None:  # Blocked for all of these tests.
        for module in [module for name in names for module in modules(name)]:
            importlib.import_module(module)
    else:
        import_without(("ray",), names)


def test_packages_that_do_not_name_pytorch_work_without_it() -> None:
    names = without("torch", "torchvision", "ray")
    assert {"recipes", "storage", "sources", "images", "metrics"} <= set(names)
    import_without(("torch", "torchvision", "ray"), names)


@pytest.mark.cluster
def test_a_command_line_is_read_before_what_takes_seconds_is_imported() -> None:
    program = f"""
import runpy, sys
for job in {JOBS!r}:
    for words, code in ((["--help"], 0), (["--mistyped", "1"], 2)):
        sys.argv = [job, *words]
        try:
            runpy.run_path(f"jobs/{{job}}.py", run_name="__main__")
        except SystemExit as stop:
            assert stop.code == code, (job, words)
        assert not sys.modules.keys() & set({SLOW!r}), (job, sys.modules.keys() & set({SLOW!r}))
"""
    ended = run([sys.executable, "-c", program])
    assert ended.code == 0, ended.err
    assert ended.out.count("usage: ") == len(JOBS)


@pytest.mark.cluster
def test_processes_that_compute_on_cpus_import_no_pytorch_and_scoring_no_ray_data() -> None:
    program = f"""
import sys
from cxr.inference import onnx_engine
from cxr.models import checkpoint
from cxr.scoring import job
assert not sys.modules.keys() & (set({SLOW!r}) - {{"ray", "onnxruntime"}} | {{"ray.data"}})
from cxr.datasets import extractor
from cxr.inference import predictor
assert not sys.modules.keys() & {{"torch", "torchvision", "sklearn", "matplotlib", "pydicom"}}
from cxr.scoring import results
assert not sys.modules.keys() & {{"torch", "torchvision", "sklearn"}}
"""
    ended = run([sys.executable, "-c", program])
    assert ended.code == 0, ended.err


@pytest.mark.cluster
def test_importing_starts_and_seeds_nothing(tmp_path: Path) -> None:
    program = f"""
import importlib, os, random
import numpy, torch
os.chdir({str(tmp_path)!r})
random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
for name in {[module for name in packages() for module in modules(name)]!r}:
    importlib.import_module(name)
import ray
assert not ray.is_initialized(), "Ray was started"
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
assert before == after, "random numbers were drawn or seeded"
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
"""
    ended = run([sys.executable, "-c", program])
    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []
