"""What several tests need: a local cluster, a small set of radiographs, jobs, the real data."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from services.s3 import Store

from cxr import cluster, phantoms
from cxr.inference import devices
from cxr.models import checkpoint, classifier
from cxr.recipes import RECIPES

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Tests and their jobs compute in float32 on every CPU: they compare the last digits.

    Tests themselves compute with one thread: with more, PyTorch waits for those that other
    processes keep from running, and small networks take many times as long.
    """
    torch.set_num_threads(1)
    if not devices.BFLOAT16_FLAGS.isdisjoint(devices.cpu()[1]):
        os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")


def pytest_report_header() -> str:
    """Say which object store the tests run on."""
    return f"object store: {Store(Path()).name}"


@pytest.fixture(scope="session")
def s3_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An object store that has not been started, and its variables in the environment.

    Processes of Ray take the environment in which their cluster was started: what starts one
    starts it after this.
    """
    store = Store(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="session")
def s3(s3_settings: Store) -> Iterator[Store]:
    """An object store that runs; `s3.bucket()` is the URI of a new bucket in it."""
    s3_settings.start()
    yield s3_settings
    s3_settings.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_settings: Store) -> Iterator[None]:
    """A local cluster of two CPUs, whatever the machine has."""
    import ray

    cluster.connect(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training phantoms of 64 px, with val and test, in the layout of the real set."""
    settings = phantoms.PhantomSettings(num_train=48, num_val=4, num_test=12, image_px=64)
    return phantoms.write(settings, tmp_path_factory.mktemp("data") / "small_set")


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An AlexNet at 64 px with random weights, calibrated on made-up logits."""
    recipe = dataclasses.replace(RECIPES["v0"], image_px=64, hidden=(8,), dropout=(0.0, 0.0))
    validation = pa.table(
        {
            "label": [0, 0, 0, 1, 1, 1],
            "logit": [-2.0, -1.0, 0.4, -0.3, 1.0, 3.0],
            "subtype": ["", "", "", "virus", "bacteria", "bacteria"],
            "patient": [0, 1, 2, 3, 4, 5],
        }
    )
    folder = str(tmp_path_factory.mktemp("checkpoint") / "small")
    checkpoint.save(folder, recipe, classifier.build(recipe), validation, {})
    return folder


RAY_LINE = re.compile(r"\[[-0-9: ,]+ [A-Z] \d+ \d+\] \((gcs_server|raylet|core_worker)\) ")
"""How a line of the log of one of Ray's processes begins."""


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
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr(sys, "argv", [f"jobs/{job}.py", *words])
        spec.loader.exec_module(module)
        try:
            module.cli.run(module.main)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def run_job() -> Callable[..., Ended]:
    """`execute`, for tests."""
    return execute


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs, read in place."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CXR_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real radiographs at {folder}; set CXR_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def real_weights(real_data: Path) -> Path:
    """The folder of real ImageNet weights, beside the real radiographs."""
    folder = real_data.parent / "weights"
    if not folder.is_dir():
        pytest.skip(f"no real weights at {folder}; set CXR_REAL_DATA to the folder beside it")
    return folder
