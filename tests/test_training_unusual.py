"""The features of training images are those of model.onnx, wherever they come from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from cxr.datasets.shards import Shards
from cxr.inference.onnx_engine import OnnxEngine
from cxr.inference.torch_engine import TorchEngine, WithFeatures
from cxr.models import classifier, unusual
from cxr.models.classifier import Classifier
from cxr.models.export import export, export_prefix
from cxr.models.unusual import MIN_IMAGES, FeatureOutput
from cxr.recipes import Pooling, Recipe
from cxr.training.trainer import Plan
from cxr.training.unusual import fit_features
from tests.support.radiographs import drawn

pytestmark = pytest.mark.cluster  # No test starts Ray, but these modules import it.

SIDE = 64


def recipe(pooling: Pooling, frozen: int | str) -> Recipe:
    return Recipe(
        backbone="alexnet", image_px=SIDE, pretrained="all", frozen=frozen,  # type: ignore[arg-type]
        normalization="imagenet", pooling=pooling, hidden=(8,), dropout=(0.2, 0.0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Images of two folds."""
    noise = np.random.default_rng(0).normal(0, 8, (2 * MIN_IMAGES, SIDE, SIDE))
    images = [drawn(SIDE, SIDE, seed % 7) for seed in range(2 * MIN_IMAGES)]
    return (np.stack(images) + noise).clip(0, 255).astype(np.uint8)


def write_shards(folder: Path, arrays: NDArray[np.generic]) -> Shards:
    """Half of the arrays in fold 0, the others in fold 1, each in two files."""
    folds = np.repeat([0, 1], len(arrays) // 2)
    parts: dict[int, tuple[str, ...]] = {}
    for fold in (0, 1):
        for number, half in enumerate(np.array_split(arrays[folds == fold], 2)):
            path = str(folder / f"{fold}-{number}.parquet")
            pq.write_table(pa.table({"x": [array.tobytes() for array in half]}), path)
            parts[fold] = (*parts.get(fold, ()), path)
    table = pa.table({"row": np.arange(len(arrays)), "fold": folds})
    return Shards(str(folder), arrays.shape[1:], str(arrays.dtype), parts, table, table.slice(0, 0))


def plan(model: Classifier, of: Recipe, shards: Shards, *, cached: bool) -> Plan:
    return Plan(
        recipe=of, model=model, shards=shards, cached=cached, train_folds=(0,),
        validation_folds=(1,), output="", weights={},
    )  # fmt: skip


@pytest.mark.parametrize("pooling", ["average", "flatten"])
@pytest.mark.parametrize("frozen", [0, 2, "all"])
def test_features_of_pixels_and_of_the_cache_are_those_of_the_exported_network(
    pooling: Pooling, frozen: int | str, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    own = recipe(pooling, frozen)
    model = classifier.build(own)
    output: FeatureOutput = "features" if frozen else "middle"
    engine = OnnxEngine(export(model, own, {}), "logits", 1, appended=output)
    features = engine.run(pixels)[:, 2:]
    expected = unusual.fit_distribution(features[:MIN_IMAGES], features[MIN_IMAGES:])
    assert expected is not None
    if frozen == 0:
        shards = write_shards(tmp_path, pixels)
    else:
        prefix = OnnxEngine(export_prefix(model, own), "features", 1)
        shards = write_shards(tmp_path, prefix.run(pixels))
    fitted = fit_features([plan(model.train(), own, shards, cached=frozen != 0)])
    assert fitted is not None
    np.testing.assert_allclose(fitted.mean, expected.mean, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fitted.quantiles, expected.quantiles, rtol=1e-2)
    assert (fitted.num_training, fitted.num_validation) == (MIN_IMAGES, MIN_IMAGES)
    assert fitted.output == output


def test_small_sets_have_no_distribution(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    own = recipe("average", 0)
    shards = write_shards(tmp_path, pixels[2:])
    assert fit_features([plan(classifier.build(own), own, shards, cached=False)]) is None


@pytest.mark.parametrize(("output", "num"), [("features", 256), ("middle", 192 + 256)])
def test_both_engines_append_the_same(
    output: FeatureOutput, num: int, pixels: NDArray[np.uint8]
) -> None:
    own = recipe("flatten", 0)
    model = classifier.build(own).eval()
    content = export(model, own, {})
    both = OnnxEngine(content, "logits", 1, appended=output).run(pixels[:9])
    torch_engine = TorchEngine(WithFeatures(model, output), own.normalization, gpu=False)
    with torch.inference_mode():
        np.testing.assert_allclose(torch_engine.run(pixels[:9]), both, rtol=1e-3, atol=1e-3)
    assert both.shape == (9, 2 + num)
    assert np.array_equal(OnnxEngine(content, "logits", 1).run(pixels[:9]), both[:, :2])
