"""A network in 8-bit integers is kept if it separates the classes as well as float32."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray

from cxr import storage
from cxr.datasets.shards import Shards, read_part
from cxr.errors import CheckpointError
from cxr.models import checkpoint, classifier, transforms
from cxr.models.acquisition import CHANGES
from cxr.models.checkpoint import Checkpoint, Member
from cxr.models.classifier import Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.export import export
from cxr.models.outputs import logit
from cxr.models.session import open_session
from cxr.models.validation import add_changed, changed_images
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array, to_column
from cxr.training import int8

pytestmark = pytest.mark.cluster

RECIPE = Recipe(
    name="small", backbone="squeezenet1_1", pretrained=0, frozen=0, image_px=32,
    normalization="unit", pooling="average", hidden=(), dropout=(0.0,),
)  # fmt: skip

BRIGHT = np.arange(40) % 2
"""Which of the images are bright; two of each patient."""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Dark and bright noise in two folds of two files each, as the job has cached it."""
    folder = tmp_path_factory.mktemp("pixels")
    generator = np.random.default_rng(0)
    levels = np.where(BRIGHT, 200, 60)[:, None, None]
    images = (levels + generator.normal(0, 15, (40, 32, 32))).clip(0, 255).astype(np.uint8)
    parts: dict[int, tuple[str, ...]] = {}
    for fold in (0, 1):
        files = []
        for number in (0, 1):
            rows = np.arange(10) + 20 * fold + 10 * number
            table = pa.table(
                {
                    "row": rows,
                    "label": BRIGHT[rows],
                    "patient": [f"{row // 2:03}" for row in rows],
                    "subtype": [""] * 10,
                    "x": to_column(images[rows]),
                }
            )
            files.append(str(folder / f"{fold}-{number}.parquet"))
            storage.write_table(files[-1], table)
        parts[fold] = tuple(files)
    none = pa.table({"uri": pa.array([], pa.string())})
    return Shards(str(folder), (32, 32), "uint8", parts, none, none)


def reverse(model: Classifier) -> None:
    """Let a model take normal radiographs for pneumonias, and the other way round."""
    last = list(model.head.parameters())[-2]
    last.data.neg_()


@pytest.fixture
def trained(tmp_path: Path, pixels: Shards) -> Checkpoint:
    """A checkpoint whose random network tells bright images from dark ones."""
    model = classifier.build(RECIPE).eval()
    session = open_session(export(model, RECIPE, {}), 1)
    even = np.stack([np.full((1, 32, 32), level, np.uint8) for level in (60, 200)])
    dark, bright = session.run(["logits"], {"pixels": even})[0]
    if bright[1] - bright[0] < dark[1] - dark[0]:
        reverse(model)
    validation = pa.table(
        {"label": [0, 0, 1, 1], "logit": [-1.0, 0.5, 0.2, 2.0], "subtype": [""] * 4,
         "patient": [0, 1, 2, 3]},
    )  # fmt: skip
    return checkpoint.save(str(tmp_path), RECIPE, model, validation, {})


def test_a_network_that_is_as_good_is_kept_with_its_comparison(
    trained: Checkpoint, pixels: Shards, tmp_path: Path
) -> None:
    result = int8.add_int8(trained, pixels, [1], [0])
    assert result.is_kept
    assert result.sentence == (
        "small in int8: AUC +0.0000 [+0.0000, +0.0000] against float32 on 20 validation images of"
        " 10 patients: kept."
    )
    quantized = checkpoint.load(str(tmp_path)).at("int8")
    facts = json.loads((tmp_path / "int8.json").read_text())["provenance"]
    assert facts["num_calibration_images"] == 20
    assert facts["auc_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert quantized.validation["label"].to_pylist() == BRIGHT[:20].tolist()
    assert len(set(quantized.validation["patient"].to_pylist())) == 10


def test_images_that_were_changed_in_float32_are_changed_in_int8(
    trained: Checkpoint, pixels: Shards, tmp_path: Path
) -> None:
    images = np.array([3, 4, 11, 18])
    clean = pa.table(
        {"label": BRIGHT[:20], "logit": np.where(BRIGHT[:20], 2.0, -2.0), "subtype": [""] * 20,
         "patient": np.arange(20) // 2},
    )  # fmt: skip
    validation = add_changed(clean, images, {name: [-1.0, 0.0, 1.0, 2.0] for name in CHANGES})
    both = checkpoint.save(str(tmp_path), RECIPE, trained.model, validation, {})
    int8.add_int8(both, pixels, [1], [0])
    quantized = checkpoint.load(str(tmp_path)).at("int8")
    assert quantized.robustness is not None
    assert quantized.robustness.num_images == 4
    assert len(quantized.validation) == 20 + 4 * len(CHANGES)
    assert changed_images(quantized.validation).tolist() == images.tolist()
    noise = quantized.validation.filter(pc.equal(quantized.validation["change"], "noise"))
    assert noise["label"].to_pylist() == BRIGHT[images].tolist()
    # Bright images stay brighter than dark ones under any change.
    for name, figures in quantized.robustness.changes.items():
        assert figures["auc"].value == 1, name


def test_a_network_that_is_worse_is_refused_and_not_written(
    trained: Checkpoint, pixels: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confuse(*_: object) -> bytes:
        assert isinstance(trained.model, Classifier)
        reverse(trained.model)
        return export(trained.model, RECIPE, {})

    monkeypatch.setattr(int8, "quantize", confuse)
    before = {file.name for file in tmp_path.iterdir()}
    result = int8.add_int8(trained, pixels, [1], [0])
    assert not result.is_kept
    assert result.sentence.endswith(
        "AUC -1.0000 [-1.0000, -1.0000] against float32 on 20 validation images of 10 patients:"
        " refused, since the interval reaches below -0.005; use float32."
    )
    assert {file.name for file in tmp_path.iterdir()} == before


def test_the_scales_come_from_training_images_of_all_folds_alike(
    trained: Checkpoint, pixels: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[NDArray[np.uint8]] = []

    def remember(content: bytes, images: NDArray[np.uint8], *_: object) -> bytes:
        taken.append(images)
        return content

    monkeypatch.setattr(int8, "quantize", remember)
    monkeypatch.setattr(int8, "NUM_CALIBRATION", 16)
    int8.add_int8(trained, pixels, [0, 1], [0])
    (images,) = taken
    assert images.shape == (16, 32, 32)
    # Eight of each fold: its first images.
    assert (images.mean(axis=(1, 2)) > 128).tolist() == [False, True] * 8
    with pytest.raises(CheckpointError, match="no training images"):
        int8.add_int8(trained, pixels, [7], [0])


def test_the_members_of_an_ensemble_are_compared_on_images_that_they_were_not_trained_on(
    pixels: Shards, tmp_path: Path
) -> None:
    recipes = [dataclasses.replace(RECIPE, seed=seed) for seed in (0, 1)]
    model = Ensemble([classifier.build(recipe) for recipe in recipes]).eval()
    table = pa.table(
        {"label": [0, 1], "logit": [-1.0, 1.0], "subtype": [""] * 2, "patient": [0, 1]}
    )
    members = [Member(recipe, fold) for fold, recipe in enumerate(recipes)]
    saved = checkpoint.save(str(tmp_path), RECIPE, model, table, {}, members=members)
    networks = {"logit": saved.onnx}
    images = [read_part(path, ["x"])["x"] for fold in (0, 1) for path in pixels.parts[fold]]
    with torch.no_grad():
        expected = [
            logit(model.classifiers[index // 2](normalize(column))).numpy()
            for index, column in enumerate(images)
        ]
    of_members = int8.validate(networks, pixels, [0, 1], 1, saved.member_of_fold)
    np.testing.assert_allclose(
        np.asarray(of_members["logit"]), np.concatenate(expected), rtol=1e-3, atol=1e-4
    )
    with torch.no_grad():
        averaged = [logit(model(normalize(column))).numpy() for column in images]
    of_average = int8.validate(networks, pixels, [0, 1], 1, {})
    np.testing.assert_allclose(
        np.asarray(of_average["logit"]), np.concatenate(averaged), rtol=1e-3, atol=1e-4
    )
    result = int8.add_int8(saved, pixels, [0, 1], [0, 1])
    assert result.num_images == 40


def normalize(column: pa.ChunkedArray) -> torch.Tensor:
    array = torch.from_numpy(to_array(column, (32, 32), "uint8").copy())
    return transforms.normalize(array[:, None], RECIPE.normalization)
