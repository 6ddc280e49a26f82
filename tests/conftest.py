"""What several tests need: the real radiographs and weights, where this machine has them."""

import os
from pathlib import Path

import pytest


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
