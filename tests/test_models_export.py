"""An exported network computes what PyTorch computes, and a quantized one nearly so."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.shufflenetv2 import InvertedResidual

from cxr import metrics, storage
from cxr.errors import CheckpointError, SettingsError, StorageError
from cxr.images import decoding
from cxr.images.resize import resize
from cxr.models import backbones, checkpoint, classifier, export, quantization, session, transforms
from cxr.models.classifier import Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.precision import Precision, check_precision
from cxr.recipes import Normalization, Pooling, Recipe
from tests.support import jobs
from tests.support.jobs import ROOT

SMALLEST = {
    "alexnet": "alexnet",
    "convnext_*": "convnext_tiny",
    "densenet*": "densenet121",
    "efficientnet_*": "efficientnet_b0",
    "mnasnet*": "mnasnet0_5",
    "mobilenet_v*": "mobilenet_v3_small",
    "regnet_*": "regnet_y_400mf",
    "resnet*": "resnet18",
    "resnext*": "resnext50_32x4d",
    "shufflenet_v2_*": "shufflenet_v2_x0_5",
    "squeezenet*": "squeezenet1_1",
    "vgg*": "vgg11",
    "wide_resnet*": "wide_resnet50_2",
}
"""A backbone of each family."""

RECIPE = Recipe(
    name="small", backbone="squeezenet1_1", pretrained="all", frozen=3, image_px=48,
    normalization="imagenet", pooling="average", hidden=(), dropout=(0.2,),
)  # fmt: skip


def radiographs(count: int, image_px: int = 48) -> NDArray[np.uint8]:
    """Smooth images with some noise, uint8 (N, S, S); the later ones are brighter at the top."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(-1, 1, image_px)
    slope = np.linspace(-60, 60, count)[:, None, None] * ramp[:, None]
    noise = generator.normal(0, 12, (count, image_px, image_px))
    return np.asarray((128 + slope + noise).clip(0, 255), np.uint8)


def patterns(count: int, image_px: int) -> NDArray[np.uint8]:
    """Squares of random gray levels, from coarse to fine, uint8 (N, S, S)."""
    generator = np.random.default_rng(1)
    images = []
    for number in range(count):
        side = 2 ** (1 + number % 4)
        squares = generator.integers(0, 256, (side, side), dtype=np.uint8)
        images.append(np.kron(squares, np.ones((image_px // side, image_px // side), np.uint8)))
    return np.stack(images)


def build(recipe: Recipe) -> Classifier:
    """A classifier whose batch norms have met images, so that signals reach its head."""
    model = classifier.build(recipe).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().momentum = 1.0
    expect(model, recipe, patterns(20, recipe.image_px))
    return model.eval()


def expect(
    model: Classifier | Ensemble, recipe: Recipe, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """PyTorch's logits, float32 (N, 2)."""
    with torch.no_grad():
        images = transforms.normalize(torch.from_numpy(pixels)[:, None], recipe.normalization)
        logits: NDArray[np.float32] = model(images).numpy()
    return logits


def run(content: bytes, pixels: NDArray[np.uint8], output: str = "logits") -> NDArray[np.float32]:
    opened = session.open_session(content, 1)
    outputs: list[NDArray[np.float32]] = opened.run([output], {"pixels": pixels[:, None]})
    return outputs[0]


# Export -------------------------------------------------------------------------------------------


def test_each_family_has_a_backbone_here() -> None:
    assert list(SMALLEST) == [family.pattern for family in backbones.FAMILIES]


@pytest.mark.parametrize("backbone", SMALLEST.values())
def test_an_exported_network_computes_the_logits_of_pytorch(backbone: str) -> None:
    recipe = dataclasses.replace(RECIPE, backbone=backbone, frozen=0, image_px=64)
    model = build(recipe)
    pixels = radiographs(3, 64)
    expected = expect(model, recipe, pixels)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the images must differ"
    content = export.export(model, recipe, {})
    largest = np.abs(expected).max()
    np.testing.assert_allclose(run(content, pixels), expected, rtol=0, atol=1e-4 * max(1, largest))


@pytest.mark.parametrize("split_gray", [False, True])
@pytest.mark.parametrize("normalization", get_args(Normalization))
def test_every_normalization_is_part_of_the_graph(
    normalization: Normalization, split_gray: bool
) -> None:
    recipe = dataclasses.replace(RECIPE, normalization=normalization)
    model = classifier.build(recipe).eval()
    # An image of one gray level as well, whose standard deviation is 0.
    pixels = np.concatenate([radiographs(3), np.full((1, 48, 48), 90, np.uint8)])
    expected = expect(model, recipe, pixels)
    content = export.export(model, recipe, {}, split_gray=split_gray)
    np.testing.assert_allclose(
        run(content, pixels), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_features_are_the_input_of_the_dense_layers_averaged_over_the_image(
    pooling: Pooling,
) -> None:
    recipe = dataclasses.replace(RECIPE, pooling=pooling, hidden=(4,), dropout=(0.0, 0.0))
    model = classifier.build(recipe).eval()
    pixels = radiographs(2)
    with torch.no_grad():
        images = transforms.normalize(torch.from_numpy(pixels)[:, None], recipe.normalization)
        expected = model.features(images).mean(dim=(2, 3)).numpy()
    features = run(export.export(model, recipe, {}), pixels, "features")
    assert features.shape == (2, 512)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_the_middle_is_maps_at_a_quarter_and_three_quarters_of_the_convolutions() -> None:
    """SqueezeNet 1.1 has 25 of them: the seventh ends the 5th block, and the 19th the 11th."""
    model, pixels = classifier.build(RECIPE).eval(), radiographs(2)
    with torch.no_grad():
        images = transforms.normalize(torch.from_numpy(pixels)[:, None], RECIPE.normalization)
        maps = [model.features[:end](images).mean(dim=(2, 3)).numpy() for end in (5, 11)]
    middle = run(export.export(model, RECIPE, {}), pixels, "middle")
    np.testing.assert_allclose(middle, np.concatenate(maps, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "kinds"),
    [
        ("alexnet", [nn.ReLU, nn.ReLU]),
        ("vgg16_bn", [nn.ReLU, nn.ReLU]),
        ("resnet18", [BasicBlock, BasicBlock]),
        ("shufflenet_v2_x0_5", [InvertedResidual, InvertedResidual]),
        ("mnasnet0_5", None),
        ("densenet121", None),
    ],
)
def test_the_middle_is_taken_behind_activations(
    backbone: str, kinds: list[type[nn.Module]] | None
) -> None:
    recipe = dataclasses.replace(RECIPE, backbone=backbone, image_px=64, pretrained=0, frozen=0)
    model = classifier.skeleton(recipe)
    layers = list(model.layers.values())
    assert all(0 < number <= model.num_pooled for number in model.watched)
    assert kinds is None or [type(layers[number - 1]) for number in model.watched] == kinds


def test_an_export_leaves_the_model_as_it_was() -> None:
    model = classifier.build(RECIPE)  # In training mode, its first convolutions frozen.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    export.export(model, RECIPE, {})
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_frozen_part_is_exported_alone() -> None:
    model = classifier.build(RECIPE).eval()
    pixels = radiographs(2)
    with torch.no_grad():
        images = transforms.normalize(torch.from_numpy(pixels)[:, None], RECIPE.normalization)
        expected = model.prefix(images).numpy()
    features = run(export.export_prefix(model, RECIPE), pixels, "features")
    assert features.shape[1:] == model.prefix_shape(48)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_other_logits_than_pytorchs_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "IMAGENET_MEAN", (0.5, 0.5, 0.5))
    model = classifier.build(RECIPE).eval()
    network = export._to_onnx(
        export._Scorer(model, "imagenet"), 48, ("logits", "features", "middle")
    )
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"computes other .* in ONNX Runtime than in PyTorch"):
        export._check(network, model, RECIPE)


# Checkpoint ---------------------------------------------------------------------------------------


def validation(logits: NDArray[np.float64]) -> pa.Table:
    count = len(logits)
    return pa.table(
        {
            "label": np.arange(count) % 2,
            "logit": logits,
            "subtype": ["", "virus"] * (count // 2),
            "patient": [f"patient {i // 2}" for i in range(count)],
        }
    )


LOGITS = np.array([-2.0, 1.0, -1.0, 0.5, 0.7, 3.0, -0.2, -0.4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in both precisions; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("export") / "run" / "small" / "checkpoint"
    model = build(RECIPE)
    saved = checkpoint.save(str(folder), RECIPE, model, validation(LOGITS), {})
    source = export.export(model, RECIPE, {}, split_gray=True)
    network = quantization.quantize(source, radiographs(16), RECIPE.normalization, 1)
    checkpoint.add_int8(saved, network, validation(2 * LOGITS + 0.1), {"num_images": 8})
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "run" / "small" / "checkpoint"
    copied.mkdir(parents=True)
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    return copied


def test_a_checkpoint_carries_its_network_with_what_is_needed_to_use_it(folder: Path) -> None:
    trained = checkpoint.load(str(folder))
    assert trained.onnx == (folder / "model.onnx").read_bytes()
    opened = session.open_session(trained.onnx, 1)
    facts = opened.get_modelmeta().custom_metadata_map
    point = trained.operating_point
    assert json.loads(facts.pop("classes")) == ["NORMAL", "PNEUMONIA"]
    assert json.loads(facts.pop("operating_point")) == point.to_dict()
    assert (
        metrics.Scaling(float(facts.pop("temperature")), float(facts.pop("bias")))
        == trained.scaling
    )
    sha256 = json.loads((folder / "checkpoint.json").read_text())["sha256"]
    assert facts.pop("fingerprint") == sha256["model.safetensors"]
    assert sha256.keys() >= {"model.onnx", "model.safetensors", "validation.parquet"}
    assert facts.pop("cxr")
    assert facts == {"image_px": "48", "normalization": "imagenet", "precision": "float32"}
    assert onnx.load_from_string(trained.onnx).opset_import[0].version == export.OPSET
    inputs = [(i.name, i.type, i.shape) for i in opened.get_inputs()]
    assert inputs == [("pixels", "tensor(uint8)", ["n", 1, 48, 48])]
    assert [(o.name, o.shape[0]) for o in opened.get_outputs()] == [
        ("logits", "n"), ("features", "n"), ("middle", "n"),
    ]  # fmt: skip


def test_a_checkpoint_without_the_file_is_exported_once_and_kept_as_it_is(copy: Path) -> None:
    described = json.loads((copy / "checkpoint.json").read_text())
    network = (copy / "model.onnx").read_bytes()
    (copy / "model.onnx").unlink()
    del described["sha256"]["model.onnx"]
    (copy / "checkpoint.json").write_text(json.dumps(described))
    old = checkpoint.load(str(copy))
    content = old.onnx
    np.testing.assert_array_equal(run(content, radiographs(3)), run(network, radiographs(3)))
    again = checkpoint.load(str(copy))
    assert again.network == content
    assert again.fingerprint == old.fingerprint
    (copy / "model.onnx").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"model\.onnx: changed since it was written"):
        checkpoint.load(str(copy))


def test_an_older_checkpoint_in_a_folder_that_cannot_be_written_is_exported_in_memory(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dataclasses.replace(checkpoint.load(str(copy)), network=None)

    def refuse(uri: str, _: bytes) -> None:
        raise StorageError(f"{uri}: read-only.")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    np.testing.assert_array_equal(
        run(old.onnx, radiographs(2)),
        run(checkpoint.load(str(copy)).onnx, radiographs(2)),
    )


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_missing_or_changed_onnx_file_is_refused(copy: Path, name: str, damage: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if damage == "changed":
        (copy / name).write_bytes(content[:-1] + b"?")
    precision: Precision = "int8" if "int8" in name else "float32"
    with pytest.raises(CheckpointError, match=re.escape(name)) as refused:
        checkpoint.load(str(copy)).at(precision)
    assert "\n" not in str(refused.value)


def test_a_network_that_cannot_be_exported_is_saved_without_the_file_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("operator not known\nand more lines")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    saved = checkpoint.save(str(tmp_path), RECIPE, classifier.build(RECIPE), validation(LOGITS), {})
    assert capsys.readouterr().out == (
        "small: the network cannot be written as ONNX (operator not known)."
        " It can be used on GPUs only.\n"
    )
    assert not (tmp_path / "model.onnx").exists()
    assert checkpoint.load(str(tmp_path)).fingerprint == saved.fingerprint


# Sessions -----------------------------------------------------------------------------------------


def test_a_file_of_an_unknown_operator_set_is_refused_in_one_line(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.opset_import[0].version = 999
    with pytest.raises(CheckpointError, match=r"^model\.onnx: ONNX Runtime .* cannot load it") as e:
        session.open_session(model.SerializeToString(), 1)
    assert "\n" not in str(e.value)
    with pytest.raises(CheckpointError, match="cannot load it"):
        session.open_session(b"not a network", 1)


def test_an_onnx_runtime_that_is_too_old_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    with pytest.raises(CheckpointError, match=r"1\.9\.0 is too old: 1\.19 or newer"):
        session.open_session((folder / "model.onnx").read_bytes(), 1)


# 8-bit integers -----------------------------------------------------------------------------------


def test_a_quantized_network_computes_nearly_the_same_logits(folder: Path) -> None:
    trained = checkpoint.load(str(folder))
    pixels = radiographs(40)
    exact, rounded = run(trained.onnx, pixels), run(trained.at("int8").onnx, pixels)
    margin, rounded_margin = exact[:, 1] - exact[:, 0], rounded[:, 1] - rounded[:, 0]
    assert np.corrcoef(margin, rounded_margin)[0, 1] > 0.98
    assert np.abs((margin - rounded_margin).mean()) < 0.2 * margin.std()


def test_no_sum_of_two_products_overflows_16_bits(folder: Path) -> None:
    graph = onnx.load(folder / "model.int8.onnx").graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    source = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 25
    pixels, weights = (source[name] for name in convolutions[0].input[:2])
    # The first one reads the planes as they are: gray levels halved, the rest, 127 and 0.
    assert arrays[pixels.input[1]] == 1.0
    assert arrays[pixels.input[2]] == 0
    before = [node.op_type for node in graph.node[: list(graph.node).index(convolutions[0])]]
    assert before.count("QuantizeLinear") == 1
    assert np.abs(arrays[weights.input[0]].astype(int)).max() == 127
    for node in convolutions[1:]:
        weight = arrays[source[node.input[1]].input[0]]
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64
        assert source[node.input[0]].op_type == "DequantizeLinear"
    assert 2 * 127 * 127 < 2**15
    assert 2 * 255 * 64 < 2**15
    assert next(node for node in graph.node if "logits" in node.output).op_type == "Gemm"


def test_int8_has_its_own_calibration_threshold_and_fingerprint(folder: Path) -> None:
    trained = checkpoint.load(str(folder))
    quantized = trained.at("int8")
    assert (trained.precision, quantized.precision) == ("float32", "int8")
    assert (trained.title, quantized.title) == ("small", "small in int8")
    # Logits twice as large, so that the temperature is about twice as high.
    assert quantized.scaling.temperature == pytest.approx(2 * trained.scaling.temperature, rel=0.1)
    assert quantized.fingerprint != trained.fingerprint
    assert quantized.provenance["int8"]["num_images"] == 8
    sensitive = quantized.choose("sensitivity=1.0")
    assert sensitive.sensitivity == 1.0
    facts = session.open_session(quantized.onnx, 1).get_modelmeta().custom_metadata_map
    assert facts["precision"] == "int8"
    assert float(facts["temperature"]) == quantized.scaling.temperature
    assert json.loads(facts["operating_point"]) == quantized.operating_point.to_dict()
    assert quantized.at("int8") is quantized


def test_adding_int8_changes_no_file_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    model = build(RECIPE)
    saved = checkpoint.save(str(tmp_path), RECIPE, model, validation(LOGITS), {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    checkpoint.add_int8(saved, (folder / "model.int8.onnx").read_bytes(), validation(LOGITS), {})
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() - before.keys() == {
        "int8.json", "model.int8.onnx", "validation.int8.parquet",
    }  # fmt: skip
    assert {name: after[name] for name in before} == before
    names = pq.read_table(tmp_path / "validation.int8.parquet")["patient"].to_pylist()
    assert names == [0, 0, 1, 1, 2, 2, 3, 3]


def test_int8_that_was_never_made_says_how_to_make_it(copy: Path) -> None:
    (copy / "int8.json").unlink()
    command = f"python jobs/train.py --resume {copy.parent.parent} --int8"
    with pytest.raises(CheckpointError, match=f"has no model.int8.onnx.*{re.escape(command)}$"):
        checkpoint.load(str(copy)).at("int8")


def test_int8_of_another_checkpoint_is_refused(copy: Path) -> None:
    described = json.loads((copy / "int8.json").read_text())
    (copy / "int8.json").write_text(json.dumps(described | {"checkpoint": "0" * 64}))
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        checkpoint.load(str(copy)).at("int8")
    (copy / "int8.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not complete"):
        checkpoint.load(str(copy)).at("int8")


def test_a_network_that_cannot_be_quantized_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such operator\nand more lines")

    monkeypatch.setattr(quantization, "quantize_static", refuse)
    with pytest.raises(CheckpointError, match=r"cannot quantize this network \(no such operator\)"):
        quantization.quantize(
            (folder / "model.onnx").read_bytes(), radiographs(2), "imagenet", threads=1
        )


def test_int8_is_refused_on_gpus() -> None:
    check_precision("int8", "auto")
    check_precision("float32", "on")
    with pytest.raises(SettingsError, match="int8 is for CPUs"):
        check_precision("int8", "on")


# Docs ---------------------------------------------------------------------------------------------


def test_the_lines_of_the_docs_score_as_the_library_does(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/onnx.md").read_text(), re.DOTALL)
    copy.rename(tmp_path / "checkpoint")
    Image.fromarray(radiographs(1, 96)[0]).save(tmp_path / "radiograph.jpeg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    trained = checkpoint.load(str(tmp_path / "checkpoint"))
    decoded = decoding.decode((tmp_path / "radiograph.jpeg").read_bytes(), min_px=96)
    assert decoded.pixels is not None
    logits = expect(trained.model, RECIPE, resize(decoded.pixels, 48)[None].copy())
    expected = metrics.probabilities(logits[:, 1] - logits[:, 0], trained.scaling)
    np.testing.assert_allclose(np.asarray(names["probability"]), expected, rtol=1e-4)
    is_pneumonia = np.asarray(names["is_pneumonia"]).tolist()
    assert is_pneumonia == trained.operating_point.predict(expected).tolist()


def test_onnx_runtime_is_kept_from_sending_usage_data(tmp_path: Path, copy: Path) -> None:
    """Its telemetry leaves an identifier and a data base of events in the user's cache."""
    program = (
        "import sys; from cxr.models import checkpoint; from cxr.models.session import"
        " open_session; open_session(checkpoint.load(sys.argv[1]).onnx, 1)"
    )
    home = tmp_path / "home"
    home.mkdir()
    ended = jobs.run(
        [sys.executable, "-c", program, str(copy)],
        HOME=str(home), XDG_CACHE_HOME=str(home), XDG_CONFIG_HOME=str(home),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert list(home.iterdir()) == []
