"""Scores say how unusual an image is, and nothing where the checkpoint does not know."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from cxr import phantoms
from cxr.inference.onnx_engine import OnnxEngine
from cxr.models import checkpoint, classifier
from cxr.models.unusual import MIN_IMAGES, WARNING, fit_distribution
from tests.support.checkpoints import SMALL
from tests.support.jobs import Ended, execute

pytestmark = pytest.mark.cluster


def draw(num: int) -> NDArray[np.uint8]:
    """Phantoms of 64 px, (num, 64, 64)."""
    return np.stack(
        [phantoms.draw(np.random.default_rng([5, i]), "normal", 64).pixels for i in range(num)]
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantoms, two of noise, a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    for number, pixels in enumerate([*draw(20), *noise]):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def knowing(small_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small checkpoint, with the distribution of its features over phantoms."""
    small = checkpoint.load(small_checkpoint)
    engine = OnnxEngine(small.onnx, "logits", 1, appended="features")
    features = engine.run(draw(2 * MIN_IMAGES))[:, 2:]
    folder = tmp_path_factory.mktemp("knowing") / "checkpoint"
    checkpoint.save(
        str(folder), SMALL, classifier.build(SMALL), small.validation, {},
        distribution=fit_distribution(features[MIN_IMAGES:], features[:MIN_IMAGES]),
    )  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module")
def scored(
    ray_cluster: None, knowing: str, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    output = tmp_path_factory.mktemp("scored") / "scores"
    words = ("--checkpoint", knowing, "--input", str(images), "--output", str(output))
    return execute("score", *words), output


def test_noise_is_unlike_the_training_images_and_phantoms_are_not(
    scored: tuple[Ended, Path],
) -> None:
    ended, output = scored
    assert ended.code == 0, ended.err
    assert "unusual:" not in ended.out
    rows = pq.read_table(output / "scores").sort_by("uri").to_pylist()
    assert [row["unusual"] for row in rows[20:22]] == [100, 100]
    assert all(row["unusual_warning"] and WARNING in row["warnings"] for row in rows[20:22])
    assert all(0 <= row["unusual"] <= 99 and not row["unusual_warning"] for row in rows[:20])
    assert not any(WARNING in row["warnings"] for row in rows[:20])
    assert (rows[22]["status"], rows[22]["unusual"]) == ("unreadable", None)
    assert rows[22]["unusual_warning"] is None


def test_the_page_counts_and_shows_them(scored: tuple[Ended, Path]) -> None:
    _, output = scored
    summary = json.loads((output / "summary.json").read_text())
    assert summary["unusual"] == 2
    assert summary["warnings"][WARNING] == 2
    page = (output / "index.html").read_text()
    assert "Unlike the training images" in page
    section = page.partition("Unlike the training images")[2].partition("</section>")[0]
    assert section.count("<img ") == 2


def test_a_checkpoint_that_does_not_know_leaves_the_columns_empty_and_says_so_once(
    ray_cluster: None, small_checkpoint: str, images: Path, tmp_path: Path
) -> None:
    words = ("--checkpoint", small_checkpoint, "--input", str(images / "0*.png"))
    ended = execute("score", *words, "--output", str(tmp_path / "scores"))
    assert ended.code == 0, ended.err
    assert ended.out.count("the columns unusual and unusual_warning are empty") == 1
    table = pq.read_table(tmp_path / "scores" / "scores")
    assert table["unusual"].null_count == table["unusual_warning"].null_count == len(table) == 10
    assert "Unlike the training images" not in (tmp_path / "scores" / "index.html").read_text()
