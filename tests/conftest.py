"""What several tests need: a local cluster, a small set of radiographs, jobs, the real data."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cxr import cluster, phantoms
from cxr.inference import processor
from tests.support.checkpoints import write_checkpoint
from tests.support.jobs import ROOT, SMALL, TEN_EPOCHS, Ended, execute
from tests.support.s3 import Store

WITHOUT_RAY = "not cluster"
"""The expression of `-m` that selects the tests which need no Ray."""


def pytest_configure(config: pytest.Config) -> None:
    """Compute in float32 on every CPU, since tests compare the last digits; block Ray if unneeded.

    With `-m "not cluster"` an import of Ray in this process is an error. Tests compute with one
    thread: with more, PyTorch waits for those that other processes keep from running, and small
    networks take many times as long.
    """
    torch.set_num_threads(1)
    if config.option.markexpr == WITHOUT_RAY:
        sys.modules["ray"] = None  # type: ignore[assignment]
    if not processor.BFLOAT16_FLAGS.isdisjoint(processor.cpu()[1]):
        os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules that are marked `cluster` as a whole: importing them imports Ray."""
    if config.option.markexpr != WITHOUT_RAY or collection_path.suffix != ".py":
        return None
    marked = re.search(
        r"^pytestmark = .*\bpytest\.mark\.cluster\b", collection_path.read_text(), re.M
    )
    return True if marked else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that uses the local cluster."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")


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
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where jobs keep the pixels and features of the small set: decoded once for all tests."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def trained(
    ray_cluster: None, small_set: Path, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    """A run on the small set that nothing interrupted, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "trained"
    words = (*SMALL, *TEN_EPOCHS, "--data", str(small_set), "--cache", cache)
    ended = execute("train", *words, "--output", str(output))
    assert ended.code == 0, ended.out + ended.err
    return ended, output


@pytest.fixture
def run_job() -> Callable[..., Ended]:
    """`execute`, for tests."""
    return execute


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs, read in place."""
    default = ROOT.parent / "shared" / "data"
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
