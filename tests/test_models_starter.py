"""The model that the package ships: as good as is promised, small, and said to be for research."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cxr import metrics
from cxr.inference.onnx_engine import OnnxEngine
from cxr.models import checkpoint
from cxr.models.checkpoint import STARTER, Checkpoint
from cxr.models.transforms import normalize
from cxr.models.validation import COLUMNS
from tests.support.jobs import Ended


@pytest.fixture(scope="module")
def starter() -> Checkpoint:
    return checkpoint.load(STARTER)


def test_it_is_as_good_as_promised_on_patients_that_it_was_not_trained_on(
    starter: Checkpoint,
) -> None:
    clean = starter.clean_validation
    auc = metrics.roc_auc(clean["label"], clean["logit"])
    assert len(clean) > 1_000
    assert auc is not None
    assert auc >= 0.985
    assert starter.robustness is not None
    stressed = starter.robustness.mean["auc"].value
    assert stressed is not None
    assert stressed >= 0.975


def test_it_is_small_names_nobody_and_knows_its_training_images(starter: Checkpoint) -> None:
    assert sum(path.stat().st_size for path in Path(STARTER).iterdir()) <= 4_000_000
    assert starter.validation.column_names == list(COLUMNS)
    assert starter.distribution is not None
    assert starter.note.startswith("For research only: ")
    assert "children of one to five years" in starter.note
    assert starter.note in (Path(STARTER) / "MODEL_CARD.md").read_text()


def test_its_weights_started_at_random_and_are_those_of_its_network(starter: Checkpoint) -> None:
    assert starter.provenance["weights"]["source"] == "none"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 160, 160), dtype=np.uint8)
    images = normalize(torch.from_numpy(pixels)[:, None], starter.recipe.normalization)
    with torch.inference_mode():
        expected = starter.model(images).numpy()
    logits = OnnxEngine(starter.onnx, "logits", 1).run(pixels)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.cluster
def test_without_a_checkpoint_the_model_of_the_package_scores(
    run_job: Callable[..., Ended], small_set: Path, tmp_path: Path, starter: Checkpoint
) -> None:
    output = tmp_path / "scores"
    ended = run_job("score", "--input", str(small_set / "test"), "--output", str(output))
    assert ended.code == 0, ended.err
    assert f"checkpoint: {starter.note}" in ended.out
    assert "scored 12 of 12; refused 0; unreadable 0 -> " in ended.out
    assert starter.note in (output / "index.html").read_text()
