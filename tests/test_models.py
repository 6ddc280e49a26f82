"""Networks build, freeze and take weights as their recipes say; torchvision is the reference."""

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from cxr.errors import SettingsError, StorageError, WeightsError
from cxr.models import classifier
from cxr.models.classifier import Classifier
from cxr.recipes import RECIPES, Convolutions, Recipe


def recipe(
    backbone: str,
    image_px: int,
    pretrained: Convolutions = 0,
    frozen: Convolutions = 0,
    **changes: Any,
) -> Recipe:
    """Average pooling and one dense layer, so that the head is small."""
    settings = {"pooling": "average", "hidden": (), "dropout": (0.0,), "name": "small"} | changes
    return Recipe(
        backbone=backbone, image_px=image_px, pretrained=pretrained, frozen=frozen, **settings
    )


def images(num: int, image_px: int) -> torch.Tensor:
    return torch.rand(num, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def copied(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def alexnet_state(seed: int = 5) -> dict[str, torch.Tensor]:
    """A state dict of the form that torchvision publishes, with other values than a start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        network = torchvision.models.alexnet()
    return {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in network.state_dict().items()
        if name.startswith("features.")
    }


@pytest.fixture(scope="module")
def vgg16() -> Classifier:
    return classifier.build(recipe("vgg16", 64, pretrained="all", frozen="all"))


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "image_px", "frozen"),
    [
        ("alexnet", 64, 2),
        ("vgg11", 32, 3),
        ("vgg16_bn", 32, 4),
        ("vgg19", 32, "all"),
        ("squeezenet1_1", 64, 4),
        ("densenet121", 32, 1),
        ("mobilenet_v2", 32, 2),
    ],
)
def test_forward_is_tail_after_prefix(backbone: str, image_px: int, frozen: Convolutions) -> None:
    model = classifier.build(recipe(backbone, image_px, frozen, frozen)).eval()
    batch = images(2, image_px)
    with torch.no_grad():
        maps = model.prefix(batch)
        logits = model(batch)
        assert logits.shape == (2, 2)
        assert torch.isfinite(logits).all()
        assert maps.shape[1:] == model.prefix_shape(image_px)
        torch.testing.assert_close(model.tail(maps), logits)


@pytest.mark.parametrize("version", RECIPES)
def test_every_version_can_be_built(version: str) -> None:
    classifier.check(RECIPES[version])


@pytest.mark.parametrize(
    "backbone",
    ["alexnet", "vgg11", "vgg16", "vgg16_bn", "vgg19", "squeezenet1_1", "densenet121"],
)
def test_networks_can_be_built_at_224_px(backbone: str) -> None:
    classifier.check(recipe(backbone, 224, pretrained="all", frozen="all"))


def test_a_densenet_computes_what_torchvisions_does() -> None:
    # Its features end in a batch norm; the ReLU stands in torchvision's forward.
    model = classifier.build(recipe("densenet121", 64)).eval()
    reference = torchvision.models.densenet121(num_classes=2).eval()
    reference.features.load_state_dict(model.features.state_dict())
    reference.classifier.load_state_dict(model.head[-1].state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images(1, 64)), reference(images(1, 64)))


def test_the_head_is_the_recipes() -> None:
    model = classifier.build(
        recipe("squeezenet1_1", 32, pooling="flatten", hidden=(8, 4), dropout=(0.0, 0.7, 0.5))
    )
    assert [type(layer).__name__ for layer in model.head] == [
        *("Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "LogitLayer"),
    ]
    assert [m.p for m in model.head if isinstance(m, nn.Dropout)] == [0.7, 0.5]
    assert [m.out_features for m in model.head if isinstance(m, nn.Linear)] == [8, 4, 2]


def test_unknown_network_is_refused_with_the_choices() -> None:
    with pytest.raises(
        SettingsError, match=r"unknown network 'vgg17'\. Choices: alexnet, densenet121, .*vgg19_bn"
    ):
        classifier.check(recipe("vgg17", 64))


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_16"])
def test_network_without_features_is_refused_with_choices(backbone: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"{backbone} has no \.features part.*Choose alexnet, vgg16"
    ):
        classifier.check(recipe(backbone, 64))


@pytest.mark.parametrize("backbone", ["convnext_tiny", "swin_t"])
def test_network_that_would_start_from_garbage_is_refused(backbone: str) -> None:
    with pytest.raises(SettingsError, match=rf"{backbone} cannot be a backbone: its \w+ holds"):
        classifier.check(recipe(backbone, 64))


def test_too_many_convolutions_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"alexnet has 5 convolutions, not 6\."):
        classifier.check(recipe("alexnet", 64, pretrained=6))


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^image_px: 16 is too small for vgg16"):
        classifier.check(recipe("vgg16", 16))


def test_the_same_seed_gives_the_same_start() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = classifier.build(recipe("squeezenet1_1", 32, seed=3)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = classifier.build(recipe("squeezenet1_1", 32, seed=3)).state_dict()
    other = classifier.build(recipe("squeezenet1_1", 32, seed=4)).state_dict()
    assert classifier.digest(first) == classifier.digest(again)
    assert classifier.digest(first) != classifier.digest(other)


def test_a_new_model_is_in_training_mode() -> None:
    model = classifier.build(recipe("vgg11_bn", 32))
    assert all(module.training for module in model.features.modules())


# What is frozen -----------------------------------------------------------------------------------


def test_v0_freezes_two_convolutions_of_alexnet() -> None:
    model = classifier.build(RECIPES["v0"])
    assert convolutions(model.prefix) == 2
    assert list(model.prefix.children()) == list(model.features.children())[:6]
    assert model.prefix_shape(128) == (192, 7, 7)


@pytest.mark.parametrize(
    ("frozen", "num_layers", "shape"),
    [
        (0, 0, (3, 224, 224)),
        (1, 2, (64, 224, 224)),
        (4, 10, (128, 56, 56)),
        (13, 33, (512,)),
        ("all", 33, (512,)),
    ],
)
def test_the_prefix_of_vgg16_has_the_frozen_convolutions(
    vgg16: Classifier, frozen: Convolutions, num_layers: int, shape: tuple[int, ...]
) -> None:
    model = copy.deepcopy(vgg16)
    model.num_frozen = classifier._skeleton(recipe("vgg16", 64, "all", frozen)).num_frozen
    assert model.num_frozen == num_layers
    assert convolutions(model.prefix) == (13 if frozen == "all" else frozen)
    assert model.prefix_shape(224) == shape


def test_all_frozen_ends_after_pooling(vgg16: Classifier) -> None:
    assert [type(layer).__name__ for layer in vgg16.prefix][-3:] == [
        *("MaxPool2d", "AdaptiveAvgPool2d", "Flatten"),
    ]
    assert [type(layer).__name__ for layer in vgg16.tail] == ["LogitLayer"]


def test_a_partly_frozen_block_is_trained_for_its_rest() -> None:
    model = classifier.build(recipe("squeezenet1_1", 32, 2, 2))
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {
        *("features.0.weight", "features.0.bias"),
        *("features.3.squeeze.weight", "features.3.squeeze.bias"),
    }
    assert list(model.prefix.children()) == list(model.features.children())[:3]


def test_the_tensors_are_those_of_prefix_or_tail() -> None:
    model = classifier.build(recipe("vgg11_bn", 32, 2, 2))
    frozen, trained = model.states(frozen=True), model.states(frozen=False)
    assert set(frozen) | set(trained) == set(model.state_dict())
    assert not set(frozen) & set(trained)
    assert {name.rpartition(".")[0] for name in frozen} == {
        *("features.0", "features.1", "features.4", "features.5"),
    }
    assert classifier.build(recipe("vgg11_bn", 32)).states(frozen=True) == {}
    assert set(classifier.trained_state(model, cached=True)) == set(trained)
    assert set(classifier.trained_state(model, cached=False)) == set(model.state_dict())


def test_frozen_layers_do_not_move_while_the_others_do() -> None:
    model = classifier.build(recipe("vgg11_bn", 32, 2, 2, hidden=(8,), dropout=(0.1, 0.1)))
    before = copied(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model.train()
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(images(4, 32)), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    frozen = ("features.0.", "features.1.", "features.4.", "features.5.")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in moved if name.startswith(frozen)}
    assert moved == {name for name in before if not name.startswith(frozen)}


# Pretrained weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_loaded_layers_equal_the_file_and_the_others_their_start(
    tmp_path: Path, suffix: str
) -> None:
    state = alexnet_state()
    place = str(tmp_path / f"alexnet{suffix}")
    if suffix == ".pth":
        torch.save(state, place)
    else:
        safetensors.torch.save_file(state, place)
    small = recipe("alexnet", 64, 2, 2)
    model = classifier.build(small)
    start = copied(model)
    read, source = classifier.read_weights(place, "alexnet", str(tmp_path / "cache"))
    loaded = classifier.load_pretrained(model, small, read, source)
    assert source == place
    assert loaded == [f"features.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name] if name in loaded else start[name])


def test_batch_norm_is_loaded_with_its_convolution() -> None:
    small = recipe("vgg11_bn", 32, 1, 1)
    model, other = classifier.build(small), classifier.build(dataclasses.replace(small, seed=1))
    state = other.state_dict() | {"features.1.running_mean": torch.full((64,), 3.0)}
    loaded = classifier.load_pretrained(model, small, state, "test")
    assert loaded == [
        *("features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"),
        *("features.1.running_mean", "features.1.running_var"),
    ]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in loaded)


def test_half_precision_weights_are_widened() -> None:
    small = recipe("alexnet", 64, 1, 1)
    model = classifier.build(small)
    state = {name: tensor.bfloat16() for name, tensor in alexnet_state().items()}
    classifier.load_pretrained(model, small, state, "test")
    assert torch.equal(model.state_dict()["features.0.weight"], state["features.0.weight"].float())
    assert classifier.digest(state) != classifier.digest(model.state_dict())


def test_no_weights_are_wanted_by_a_random_start() -> None:
    small = recipe("alexnet", 64)
    assert classifier.load_pretrained(classifier.build(small), small, {}, "test") == []


def test_missing_weights_are_named_and_nothing_is_copied() -> None:
    small = recipe("alexnet", 64, 3, 3)
    model = classifier.build(small)
    before = copied(model)
    state = {n: t for n, t in alexnet_state().items() if not n.startswith("features.6.")}
    with pytest.raises(
        WeightsError,
        match=r"^a\.pth: small wants convolutions 1 to 3 of alexnet, but 2 of 6 tensors are not"
        r" among the 8 in the file: features\.6\.weight, features\.6\.bias\. .*lower --pretrained",
    ):
        classifier.load_pretrained(model, small, state, "a.pth")
    assert classifier.digest(before) == classifier.digest(model.state_dict())


def test_weights_of_another_shape_are_refused_and_nothing_is_copied() -> None:
    small = recipe("alexnet", 64, "all", "all")
    model = classifier.build(small)
    before = copied(model)
    state = alexnet_state() | {"features.10.weight": torch.zeros(256, 256, 5, 5)}
    with pytest.raises(
        WeightsError,
        match=r"^a\.pth: features\.10\.weight has shape \(256, 256, 5, 5\), alexnet needs"
        r" \(256, 256, 3, 3\)\. Is the file of another network\?",
    ):
        classifier.load_pretrained(model, small, state, "a.pth")
    assert classifier.digest(before) == classifier.digest(model.state_dict())


class Planted:
    """What a hostile file would run when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("planted"),)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1), "x": Planted()}, "new.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Planted()))
    for name in ("new.pth", "old.pth"):
        with pytest.raises(WeightsError, match=rf"{name}: not a weights file .*plain state dict"):
            classifier.read_weights(str(tmp_path / name), "alexnet", str(tmp_path))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}]
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: not a state dict of tensors by name"):
        classifier.read_weights(str(tmp_path / "a.pth"), "alexnet", str(tmp_path))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>proxy</html>"])
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: not a weights file"):
        classifier.read_weights(str(tmp_path / name), "alexnet", str(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.pth: cannot be read: .*No such file"):
        classifier.read_weights(str(tmp_path / "none.pth"), "alexnet", str(tmp_path))


def test_densenets_published_names_are_read(tmp_path: Path) -> None:
    small = recipe("densenet121", 32, 5, 0)
    other = classifier.build(dataclasses.replace(small, seed=1)).state_dict()
    published = {
        name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.")
        .replace("norm2.", "norm.2.").replace("conv2.", "conv.2."): tensor
        for name, tensor in other.items()
    }  # fmt: skip
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "densenet.pth")
    state, _ = classifier.read_weights(str(tmp_path / "densenet.pth"), "densenet121", str(tmp_path))
    model = classifier.build(small)
    loaded = classifier.load_pretrained(model, small, state, "test")
    assert "features.denseblock1.denselayer1.norm1.weight" in loaded
    assert "features.denseblock1.denselayer2.conv2.weight" in loaded
    assert all(torch.equal(model.state_dict()[name], other[name]) for name in loaded)


def test_the_digest_is_of_names_and_values() -> None:
    state = alexnet_state()
    assert classifier.digest(state) == classifier.digest(dict(reversed(state.items())))
    changed = state | {"features.0.bias": state["features.0.bias"] + 1e-6}
    assert classifier.digest(state) != classifier.digest(changed)
    renamed = {name.replace("features.0.bias", "features.0.b"): t for name, t in state.items()}
    assert classifier.digest(state) != classifier.digest(renamed)


def test_log_odds_are_those_of_the_softmax() -> None:
    outputs = torch.tensor([[0.3, 1.7], [2.0, -1.0]])
    probs = torch.softmax(outputs, dim=1)[:, 1]
    torch.testing.assert_close(torch.sigmoid(classifier.logit(outputs)), probs)


# Real weights -------------------------------------------------------------------------------------


def test_real_squeezenet_weights_fit_every_convolution(real_weights: Path) -> None:
    place = str(real_weights / "squeezenet1_1-features.safetensors")
    small = recipe("squeezenet1_1", 64, "all", "all")
    model = classifier.build(small)
    state, source = classifier.read_weights(place, "squeezenet1_1", "")
    loaded = classifier.load_pretrained(model, small, state, source)
    assert len(loaded) == 50  # 25 convolutions, weight and bias.
    assert set(loaded) == {name for name in model.state_dict() if name.startswith("features.")}
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in loaded)


def test_real_vgg16_weights_fit_four_convolutions_and_no_more(
    real_weights: Path, vgg16: Classifier
) -> None:
    place = str(real_weights / "vgg16-conv1_1-to-conv2_2.safetensors")
    state, source = classifier.read_weights(place, "vgg16", "")
    model = copy.deepcopy(vgg16)
    more: tuple[Convolutions, ...] = (5, "all")
    for pretrained in more:
        with pytest.raises(
            WeightsError, match=r"vgg16-conv1_1-to-conv2_2\.safetensors: .*: features\.10\.weight,"
        ):
            classifier.load_pretrained(model, recipe("vgg16", 64, pretrained), state, source)
    loaded = classifier.load_pretrained(model, recipe("vgg16", 64, 4), state, source)
    assert loaded == [f"features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in loaded)


def test_real_weights_of_another_network_are_refused(real_weights: Path) -> None:
    place = str(real_weights / "bvlc-alexnet-conv1-conv2.safetensors")
    small = recipe("alexnet", 64, 2, 2)
    state, source = classifier.read_weights(place, "alexnet", "")
    with pytest.raises(WeightsError, match=r"4 of 4 tensors .*: features\.0\.weight"):
        classifier.load_pretrained(classifier.build(small), small, state, source)
