"""Imports point up one table, Ray stays in its rooms, and importing a room does nothing."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TABLE = (
    *("errors", "labels", "recipes", "cli", "storage", "sources", "images", "download"),
    *("metrics", "models", "progress", "cluster", "inference", "datasets", "phantoms", "reports"),
    *("training", "evaluation", "scoring", "tuning"),
)
"""Every room, each below all that it may import. A new room takes its place here."""


@functools.cache
def rooms() -> dict[str, tuple[Path, ...]]:
    """The modules of each room: a file, or a folder of files."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "cxr").rglob("*.py")):
        room = path.relative_to(ROOT / "cxr").with_suffix("").parts[0]
        if room != "__init__":
            found.setdefault(room, []).append(path)
    return {room: tuple(paths) for room, paths in found.items()}


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names that a module imports anywhere in it, inside functions too."""
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
    """The rooms that each room imports, other than itself."""
    edges: dict[str, set[str]] = {}
    for room, paths in rooms().items():
        names = {name for path in paths for name in imported(path) if name.startswith("cxr.")}
        edges[room] = {name.split(".")[1] for name in names} - {room}
    return edges


def reached(room: str) -> set[str]:
    """The rooms that importing a room brings in, itself included."""
    found: set[str] = set()
    waiting = [room]
    while waiting:
        if (this := waiting.pop()) not in found:
            found.add(this)
            waiting += graph()[this]
    return found


def names_ray(room: str) -> bool:
    return any(name.split(".")[0] == "ray" for path in rooms()[room] for name in imported(path))


def modules(room: str) -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("").parts for path in rooms()[room])
    return [".".join(parts).removesuffix(".__init__") for parts in paths]


def test_every_room_has_its_place_in_the_table() -> None:
    assert not set(rooms()) - set(TABLE)


def test_every_import_is_of_a_room() -> None:
    assert not set().union(*graph().values()) - set(rooms())


@pytest.mark.parametrize("room", rooms())
def test_imports_point_up(room: str) -> None:
    above = TABLE[: TABLE.index(room)]
    assert not graph()[room] - set(above)


def test_no_room_imports_itself_through_others() -> None:
    circles = {room for room in rooms() for other in graph()[room] if room in reached(other)}
    assert not circles


def test_training_and_scoring_never_import_each_other() -> None:
    for room, other in (("training", "scoring"), ("scoring", "training")):
        if room in rooms():
            assert other not in reached(room)


def test_the_library_never_imports_jobs_tests_or_benchmarks() -> None:
    for paths in rooms().values():
        for path in paths:
            outside = {"jobs", "tests", "benchmarks"}
            assert not {name.split(".")[0] for name in imported(path)} & outside, path.name


def test_no_utils() -> None:
    assert not {"utils", "helpers", "common", "misc"} & {
        path.stem for paths in rooms().values() for path in paths
    }


def test_importing_a_room_starts_nothing_and_ray_stays_in_its_rooms(tmp_path: Path) -> None:
    plain = [r for r in rooms() if not any(names_ray(other) for other in reached(r))]
    assert {"recipes", "storage", "sources", "images", "models"} <= set(plain)
    others = [room for room in rooms() if room not in plain]
    program = f"""
import importlib, random, sys, threading
import numpy, torch
sys.path.insert(0, {str(ROOT)!r})
random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
for room in {[m for room in plain for m in modules(room)]!r}:
    importlib.import_module(room)
    assert "ray" not in sys.modules, room + " brings Ray in"
for room in {[m for room in others for m in modules(room)]!r}:
    importlib.import_module(room)
import ray
assert not ray.is_initialized(), "Ray was started"
after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
assert before == after, "random numbers were drawn or seeded"
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
