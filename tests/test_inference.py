"""Both engines compute what their network computes, whatever the batches and number format."""

import copy
import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cxr.inference import devices
from cxr.inference.engine import Engine
from cxr.inference.onnx_engine import OnnxEngine
from cxr.inference.torch_engine import TorchEngine
from cxr.models import classifier, transforms
from cxr.models.acquisition import CHANGES, MEDIUM, change
from cxr.models.classifier import Classifier
from cxr.models.export import export, export_prefix
from cxr.recipes import RECIPES, Recipe
from cxr.storage.arrays import to_column

CPU = torch.device("cpu")
ENGINES = ("onnx", "torch")
FLAGS = {"none": frozenset({"avx2"}), "bfloat16": frozenset({"avx512f", "avx512_bf16"}),
         "tiles": frozenset({"avx512f", "amx_bf16"})}  # fmt: skip


RECIPE = Recipe(
    name="small", backbone="squeezenet1_1", pretrained="all", frozen=4, image_px=32,
    normalization="imagenet", pooling="average", hidden=(), dropout=(0.0,),
)  # fmt: skip


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """More radiographs of noise than two batches, (19, 32, 32), which cannot be written to."""
    drawn = np.random.default_rng(0).integers(0, 256, (19, 32, 32), dtype=np.uint8)
    drawn.flags.writeable = False
    return drawn


def open_engine(name: str, model: Classifier, *, frozen: bool = False) -> Engine:
    """An engine for a classifier of `RECIPE`, or for its frozen part."""
    if name == "onnx" and frozen:
        return OnnxEngine(export_prefix(model, RECIPE), "features", threads=1)
    if name == "onnx":
        return OnnxEngine(export(model, RECIPE, {}), "logits", threads=1)
    network = copy.deepcopy(model.prefix if frozen else model)
    return TorchEngine(network, RECIPE.normalization, gpu=False)


def one_by_one(
    network: nn.Module, pixels: NDArray[np.uint8], normalization: Any
) -> NDArray[np.float32]:
    """Each image on its own through transform and network, without an engine."""
    with torch.no_grad():
        outputs = [
            network(transforms.normalize(torch.from_numpy(image.copy())[None, None], normalization))
            for image in pixels
        ]
    return torch.cat(outputs).numpy()


# Engine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_computes_what_the_network_computes(pixels: NDArray[np.uint8], name: str) -> None:
    model = classifier.build(RECIPE).eval()
    expected = one_by_one(model, pixels, RECIPE.normalization)
    sizes: list[int] = []
    outputs = open_engine(name, model).run(pixels, sizes.append)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert sizes == [8, 8, 3]


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_runs_a_frozen_part(pixels: NDArray[np.uint8], name: str) -> None:
    model = classifier.build(RECIPE)
    expected = one_by_one(model.prefix, pixels, RECIPE.normalization)
    maps = open_engine(name, model, frozen=True).run(pixels)
    assert maps.shape == (19, *model.prefix_shape(32)) == (19, 128, 7, 7)
    assert maps.flags.c_contiguous  # Rows are stored as bytes.
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_the_same_batches_give_the_same_outputs_bit_for_bit(
    pixels: NDArray[np.uint8], name: str
) -> None:
    model = classifier.build(RECIPE).eval()
    first, second = (open_engine(name, model) for _ in range(2))
    outputs = first.run(pixels)
    assert np.array_equal(first.run(pixels), outputs)
    assert np.array_equal(second.run(pixels), outputs)


@pytest.mark.parametrize("normalization", ["unit", "equalize"])
def test_an_engine_normalizes_as_it_is_told(pixels: NDArray[np.uint8], normalization: Any) -> None:
    outputs = TorchEngine(nn.Identity(), normalization, gpu=False).run(pixels)
    expected = transforms.normalize(torch.from_numpy(pixels.copy())[:, None], normalization)
    assert np.array_equal(outputs, expected.numpy())


def run_stress(network: nn.Module, batch: pa.Table) -> dict[str, list[float]]:
    from cxr.inference.stress import StressPredictor

    engine = TorchEngine(copy.deepcopy(network), RECIPE.normalization, gpu=False)
    predictor = StressPredictor(mock.Mock(), RECIPE.image_px, 1, mock.Mock())
    predictor.engine = engine
    columns: dict[str, list[float]] = predictor(batch).to_pydict()
    return columns


@pytest.mark.cluster
def test_an_image_under_changes_has_the_same_logits_whoever_computes_it(
    pixels: NDArray[np.uint8],
) -> None:
    model = classifier.build(RECIPE).eval()
    batch = pa.table({"row": [7, 2, 5], "x": to_column(pixels[:3])})
    together = run_stress(model, batch)
    assert together["row"] == [7, 2, 5]
    assert list(together)[1:] == list(CHANGES)
    for i in range(3):
        alone = run_stress(model, batch.slice(i, 1))
        assert [alone[name][0] for name in CHANGES] == [together[name][i] for name in CHANGES]
    changed = torch.cat(
        [
            change(torch.from_numpy(pixels[1].copy())[None, None], name, MEDIUM, seed=2)
            for name in CHANGES
        ]
    )[:, 0].numpy()
    expected = one_by_one(model, changed, RECIPE.normalization)
    logits = [together[name][1] for name in CHANGES]
    np.testing.assert_allclose(logits, expected[:, 1] - expected[:, 0], atol=1e-5)
    # The noise of an image is that of its row.
    other = run_stress(model, pa.table({"row": [8], "x": to_column(pixels[:1])}))
    assert other["noise"] != together["noise"][:1]
    assert other["blur"] == together["blur"][:1]


@pytest.mark.cluster
def test_a_row_without_pixels_has_no_logit_and_the_others_have_their_own(
    pixels: NDArray[np.uint8],
) -> None:
    model = classifier.build(RECIPE).eval()
    unused: Any = None
    from cxr.inference.predictor import Predictor  # Imports Ray.

    predictor = Predictor(unused, RECIPE.image_px, 1, unused)
    predictor.engine = open_engine("onnx", model)
    column = [None, *(image.tobytes() for image in pixels[:2]), None, pixels[2].tobytes()]
    logits, distances = predictor.predict(pa.chunked_array([column], pa.binary()))
    assert np.isnan(logits).tolist() == [True, False, False, True, False]
    outputs = one_by_one(model, pixels[:3], RECIPE.normalization)
    expected = outputs[:, 1] - outputs[:, 0]
    np.testing.assert_allclose(logits[[1, 2, 4]], expected, rtol=1e-4, atol=1e-5)
    empty = pa.chunked_array([[None, None]], pa.binary())
    assert np.isnan(predictor.predict(empty)).all()
    assert np.isnan(distances).all()  # No distribution.


# Number formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [("AVX2", "none", False), ("AVX512", "none", False), ("AVX512", "bfloat16", True),
     ("AVX512", "tiles", True), ("AVX2", "bfloat16", False), ("DEFAULT", "tiles", False)],
)  # fmt: skip
def test_cpu_computes_in_bfloat16_where_it_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, flags: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(devices, "cpu", lambda: ("a processor", FLAGS[flags]))
    assert devices.has_bfloat16(CPU) == expected
    with devices.autocast(CPU):
        one = torch.ones(1, 1)
        assert (one @ one).dtype == (torch.bfloat16 if expected else torch.float32)
    with devices.autocast(CPU, "bfloat16"):
        assert (one @ one).dtype == (torch.bfloat16 if expected else torch.float32)
    for precision in ("auto", "float32"):
        with devices.autocast(CPU, precision):
            assert (one @ one).dtype == torch.float32


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is said to multiply in bfloat16; PyTorch emulates it where that is not so."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: True)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18", "convnext_tiny"])
def test_weights_converted_once_give_what_autocast_gives(backbone: str) -> None:
    recipe = dataclasses.replace(
        RECIPES["best"], backbone=backbone, image_px=64, pooling="average", hidden=(16,),
        dropout=(0.0, 0.0),
    )  # fmt: skip
    plain = classifier.build(recipe).to(memory_format=torch.channels_last).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    ours = devices.for_inference(copy.deepcopy(plain), CPU)
    with torch.inference_mode():
        exact = plain(images)
        with devices.autocast(CPU):
            assert torch.equal(ours(images), plain(images))
            assert (ours(images) - exact).abs().max() < 0.02 * exact.abs().max()
    assert any(layer.weight.dtype == torch.bfloat16 for layer in ours.modules()
               if isinstance(layer, nn.Conv2d))  # fmt: skip


@pytest.mark.usefixtures("bfloat16")
def test_logits_are_float32_under_autocast() -> None:
    recipe = dataclasses.replace(RECIPES["v0"], image_px=64)
    network = devices.for_inference(classifier.build(recipe), CPU)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), devices.autocast(CPU):
        logits = network(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
