"""An ensemble averages probabilities, runs once what its members share, or is refused."""

import dataclasses
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from cxr.errors import CheckpointError
from cxr.models import checkpoint, classifier, ensemble, export, quantization, transforms
from cxr.models.checkpoint import Checkpoint, Member
from cxr.models.ensemble import Ensemble
from cxr.models.session import open_session
from cxr.recipes import Recipe

RECIPE = Recipe(
    name="small", backbone="squeezenet1_1", pretrained="all", frozen="all", image_px=64,
    normalization="imagenet", pooling="average", hidden=(), dropout=(0.2,),
)  # fmt: skip

WHOLE = dataclasses.replace(
    RECIPE, backbone="alexnet", pretrained=0, frozen=0, hidden=(8,), dropout=(0.0, 0.0)
)

PARTLY = dataclasses.replace(RECIPE, frozen=3)


def build(recipe: Recipe, num_members: int = 3) -> Ensemble:
    """Members with the same frozen layers, as of pretrained weights, and another start of others.

    Their logits are of the size of those of trained networks.
    """
    members = []
    first = classifier.build(recipe)
    for seed in range(num_members):
        member = classifier.build(dataclasses.replace(recipe, seed=seed))
        member.load_state_dict(first.states(frozen=True), strict=False)
        with torch.no_grad():
            list(member.head.parameters())[-2].mul_(20)
        members.append(member)
    return Ensemble(members).eval()


def radiographs(count: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(0)
    slope = np.linspace(-90, 90, count)[:, None, None] * np.linspace(-1, 1, 64)[:, None]
    noise = generator.normal(0, 12, (count, 64, 64))
    return np.asarray((128 + slope + noise).clip(0, 255), np.uint8)[:, None]


def normalized(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return transforms.normalize(torch.from_numpy(pixels), RECIPE.normalization)


def run(content: bytes, pixels: NDArray[np.uint8], *outputs: str) -> list[NDArray[np.float32]]:
    arrays: list[NDArray[np.float32]] = open_session(content, 1).run(outputs, {"pixels": pixels})
    return arrays


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def count_convolutions(content: bytes) -> int:
    return [node.op_type for node in onnx.load_from_string(content).graph.node].count("Conv")


# The average --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [RECIPE, PARTLY, WHOLE], ids=["frozen", "partly", "whole"])
def test_the_probability_is_the_mean_of_the_members(recipe: Recipe) -> None:
    model, images = build(recipe), normalized(radiographs(8))
    with torch.no_grad():
        members = [softmax(member(images).numpy()) for member in model.classifiers]
        probs = softmax(model(images).numpy())
    assert np.ptp([part[:, 1] for part in members], axis=0).max() > 0.05, "the members must differ"
    np.testing.assert_allclose(probs, np.mean(members, axis=0), rtol=0, atol=1e-6)


def test_the_average_is_exact_where_probabilities_round_to_one() -> None:
    logits = torch.tensor([[0.0, 30.0], [0.0, 40.0]])
    outputs = ensemble.average(logits[None])
    # The odds of 1 - (e^-30 + e^-40) / 2, to first order.
    expected = -np.log((np.exp(-30.0) + np.exp(-40.0)) / 2)
    assert float(outputs[0, 1] - outputs[0, 0]) == pytest.approx(expected, rel=1e-6)
    far = ensemble.average(torch.tensor([[[-200.0, 200.0], [-300.0, 300.0]]]))
    assert bool(torch.isfinite(far).all())


@pytest.mark.parametrize("recipe", [RECIPE, PARTLY, WHOLE], ids=["frozen", "partly", "whole"])
def test_the_exported_file_computes_what_pytorch_computes(recipe: Recipe) -> None:
    model, pixels = build(recipe), radiographs(5)
    content = export.export(model, recipe, {})
    names = ("logits", "features", "middle", "members")
    outputs = dict(zip(names, run(content, pixels, *names), strict=True))
    with torch.no_grad():
        images = normalized(pixels)
        apart = [member.score(images) for member in model.classifiers]
        expected = [part.numpy() for part in model.score(images)]
    for actual, exact in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
    np.testing.assert_allclose(
        softmax(outputs["logits"]), softmax(outputs["members"]).mean(axis=1), rtol=0, atol=1e-6
    )
    for number, name in ((1, "features"), (2, "middle")):
        of_one = torch.stack([part[number] for part in apart]).mean(dim=0).numpy()
        np.testing.assert_allclose(outputs[name], of_one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "num_convolutions", "own"),
    [
        (RECIPE, 25, {"members.1.head.3.weight", "members.1.head.3.bias"}),
        (PARTLY, 1 + 3 * 24, None),
        (WHOLE, 3 * 5, None),
    ],
    ids=["frozen", "partly", "whole"],
)
def test_what_members_share_runs_and_is_stored_once(
    recipe: Recipe, num_convolutions: int, own: set[str] | None
) -> None:
    """SqueezeNet has 25 convolutions, the second and third of them in one block; AlexNet has 5."""
    model = build(recipe)
    assert count_convolutions(export.export(model, recipe, {})) == num_convolutions
    names = model.state().keys()
    assert own in (None, {name for name in names if name.startswith("members.1.")})
    num_shared = {RECIPE: 50, PARTLY: 2, WHOLE: 0}[recipe]  # A weight and a bias each.
    assert len([name for name in names if name.startswith("shared.")]) == num_shared


def test_members_of_one_backbone_take_no_more_memory_than_it() -> None:
    model = build(RECIPE)
    first, *others = model.classifiers
    assert all(other.features[0] is first.features[0] for other in others)
    one = sum(parameter.numel() for parameter in first.parameters())
    assert sum(p.numel() for p in model.parameters()) == one + 2 * (512 * 2 + 2)


# 8-bit integers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [RECIPE, WHOLE], ids=["frozen", "whole"])
def test_a_quantized_ensemble_computes_nearly_the_same_logits(recipe: Recipe) -> None:
    model, pixels = build(recipe), radiographs(24)
    source = export.export(model, recipe, {}, split_gray=True)
    network = quantization.quantize(source, pixels[:16, 0], recipe.normalization, 1)
    exact, rounded = (run(content, pixels, "members")[0] for content in (source, network))
    margins, rounded_margins = exact[..., 1] - exact[..., 0], rounded[..., 1] - rounded[..., 0]
    for number in range(3):
        own = margins[:, number]
        assert np.corrcoef(own, rounded_margins[:, number])[0, 1] > 0.97
        # The bias of each member takes its own shift back.
        shift = (own - rounded_margins[:, number])[:16].mean()
        assert abs(shift) < 1e-3 * np.abs(own).max()
    logits, members = run(network, pixels, "logits", "members")
    np.testing.assert_allclose(softmax(logits), softmax(members).mean(axis=1), rtol=0, atol=1e-6)
    graph = onnx.load_from_string(network).graph
    source_of = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            assert source_of[node.input[0]].op_type == "DequantizeLinear"
            assert source_of[node.input[1]].op_type == "DequantizeLinear"
    planes = next(node for node in graph.node if node.op_type == "Conv").input[0]
    num_first = sum(node.op_type == "Conv" and node.input[0] == planes for node in graph.node)
    assert num_first == (1 if recipe is RECIPE else 3)


# Checkpoint ---------------------------------------------------------------------------------------

LOGITS = [-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0]


def members_of(recipe: Recipe, num_members: int = 3) -> list[Member]:
    return [
        Member(dataclasses.replace(recipe, name=f"small/members/{k}", seed=k), fold=k)
        for k in range(num_members)
    ]


def save(folder: Path, changes: Mapping[str, Any] = {}) -> Checkpoint:
    """An ensemble; `changes` are to the recipe of its second member."""
    validation = pa.table(
        {"label": [0, 0, 1, 0, 1, 0, 1, 1], "logit": LOGITS, "subtype": [""] * 8,
         "patient": list(range(8))}
    )  # fmt: skip
    members = [
        dataclasses.replace(member, recipe=dataclasses.replace(member.recipe, **changes))
        if number == 1
        else member
        for number, member in enumerate(members_of(RECIPE))
    ]
    return checkpoint.save(
        str(folder), RECIPE, build(RECIPE), validation, {"data": "phantoms"}, members=members
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an ensemble; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("ensemble") / "checkpoint"
    save(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def describe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change checkpoint.json."""
    content = json.loads((folder / "checkpoint.json").read_text())
    change(content)
    (folder / "checkpoint.json").write_text(json.dumps(content))


def rewrite_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write other weights, and their checksum into checkpoint.json."""
    data = safetensors.torch.save(dict(state))
    (folder / "model.safetensors").write_bytes(data)
    sha256 = checkpoint._sha256({"model.safetensors": data})
    describe(folder, lambda content: content["sha256"].update(sha256))


def test_a_loaded_ensemble_is_the_one_that_was_saved(folder: Path) -> None:
    loaded, images = checkpoint.load(str(folder)), normalized(radiographs(3))
    with torch.no_grad():
        assert torch.equal(loaded.model(images), build(RECIPE)(images))
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.title == "small of 3 members"
    assert [member.recipe.seed for member in loaded.members] == [0, 1, 2]
    assert loaded.member_of_fold == {0: 0, 1: 1, 2: 2}
    session = open_session(loaded.onnx, 1)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["members"] == "3"
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert (shapes["features"], shapes["middle"]) == (["n", 512], ["n", 128 + 384])
    assert [size for size in shapes["members"] if isinstance(size, int)] == [3, 2]
    names = safetensors.torch.load(loaded.weights)
    backbone = [name for name in names if name.endswith("features.0.weight")]
    assert backbone == ["shared.features.0.weight"]


def test_members_that_one_fold_validated_have_no_fold_of_their_own(tmp_path: Path) -> None:
    members = [dataclasses.replace(member, fold=2) for member in members_of(RECIPE)]
    validation = pa.table(
        {"label": [0, 1], "logit": [-1.0, 1.0], "subtype": ["", ""], "patient": [0, 1]}
    )
    saved = checkpoint.save(str(tmp_path), RECIPE, build(RECIPE), validation, {}, members=members)
    assert saved.member_of_fold == {}


def test_a_version_that_knows_no_ensembles_refuses_one(folder: Path) -> None:
    """It reads `format`, and refuses what is not 1."""
    assert json.loads((folder / "checkpoint.json").read_text())["format"] == 2


def test_a_single_classifier_stays_of_format_1(tmp_path: Path) -> None:
    validation = pa.table(
        {"label": [0, 1], "logit": [-1.0, 1.0], "subtype": ["", ""], "patient": [0, 1]}
    )
    checkpoint.save(str(tmp_path), RECIPE, classifier.build(RECIPE), validation, {})
    content = json.loads((tmp_path / "checkpoint.json").read_text())
    assert content["format"] == 1
    assert "members" not in content
    names = set(safetensors.torch.load((tmp_path / "model.safetensors").read_bytes()))
    assert names == set(classifier.build(RECIPE).state_dict())


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("backbone", "alexnet", "backbone 'alexnet', the ensemble 'squeezenet1_1'"),
        ("image_px", 96, "image_px 96, the ensemble 64"),
        ("normalization", "unit", "normalization 'unit', the ensemble 'imagenet'"),
    ],
)
def test_members_that_differ_in_more_than_their_seed_are_refused(
    copy: Path, tmp_path: Path, field: str, value: object, shown: str
) -> None:
    pattern = f"^[^\n]*: member 1 has {shown}[^\n]*$"
    with pytest.raises(CheckpointError, match=pattern):
        save(tmp_path / "other", {field: value})
    assert not (tmp_path / "other").exists()
    describe(copy, lambda content: content["members"][1]["recipe"].update({field: value}))
    with pytest.raises(CheckpointError, match=pattern):
        checkpoint.load(str(copy))


def test_members_of_other_classes_are_refused(copy: Path) -> None:
    other = ["PNEUMONIA", "NORMAL"]
    describe(copy, lambda content: content["members"][2].update(classes=other))
    with pytest.raises(CheckpointError, match=r"its outputs are \['PNEUMONIA', 'NORMAL'\]"):
        checkpoint.load(str(copy))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_checkpoint_without_the_weights_of_a_member_is_refused(copy: Path, number: int) -> None:
    state = safetensors.torch.load((copy / "model.safetensors").read_bytes())
    left = {k: v for k, v in state.items() if not k.startswith(f"members.{number}.")}
    rewrite_weights(copy, left)
    others = [k for k in range(3) if k != number]
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(str(copy))
    assert "describes 3 members, and model.safetensors has the weights of members" in str(
        refused.value
    )
    assert str(others) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("num_members", [0, 1, 2])
def test_a_description_without_a_member_is_refused(copy: Path, num_members: int) -> None:
    describe(copy, lambda content: content.update(members=content["members"][:num_members]))
    with pytest.raises(CheckpointError, match=f"describes {num_members} members, and model"):
        checkpoint.load(str(copy))


def test_a_missing_or_damaged_description_of_members_is_refused(copy: Path) -> None:
    describe(copy, lambda content: content["members"][0].pop("fold"))
    with pytest.raises(CheckpointError, match="lacks 'fold'"):
        checkpoint.load(str(copy))
    describe(copy, lambda content: content.pop("members"))
    with pytest.raises(CheckpointError, match="lacks 'members'"):
        checkpoint.load(str(copy))
    describe(copy, lambda content: content.update(members=3))
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        checkpoint.load(str(copy))


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, struct.pack("<Q", 1 << 40) + b"{}"])
def test_weights_that_are_no_safetensors_are_refused(copy: Path, data: bytes) -> None:
    (copy / "model.safetensors").write_bytes(data)
    sha256 = checkpoint._sha256({"model.safetensors": data})
    describe(copy, lambda content: content["sha256"].update(sha256))
    with pytest.raises(CheckpointError, match=r"not a complete|weights of members"):
        checkpoint.load(str(copy))


def test_tensors_of_another_network_are_refused_in_one_line(copy: Path) -> None:
    state = safetensors.torch.load((copy / "model.safetensors").read_bytes())
    state["shared.features.99.weight"] = torch.zeros(1)
    rewrite_weights(copy, state)
    with pytest.raises(CheckpointError, match="the weights do not fit its recipe"):
        _ = checkpoint.load(str(copy)).model
