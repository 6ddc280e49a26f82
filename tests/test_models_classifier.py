"""Classifiers are built and frozen as their recipes say."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cxr.errors import SettingsError
from cxr.models import classifier
from cxr.models.classifier import Classifier
from cxr.models.outputs import logit
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


@pytest.fixture(scope="module")
def vgg16() -> Classifier:
    return classifier.build(recipe("vgg16", 64, pretrained="all", frozen="all"))


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", RECIPES)
def test_every_version_can_be_built(version: str) -> None:
    classifier.check(RECIPES[version])


@pytest.mark.parametrize("backbone", ["alexnet", "vgg16_bn", "vgg19", "densenet121", "resnet50"])
def test_networks_can_be_built_at_224_px(backbone: str) -> None:
    classifier.check(recipe(backbone, 224, pretrained="all", frozen="all"))


def test_the_head_is_the_recipes() -> None:
    model = classifier.build(
        recipe("squeezenet1_1", 32, pooling="flatten", hidden=(8, 4), dropout=(0.0, 0.7, 0.5))
    )
    assert [type(layer).__name__ for layer in model.head] == [
        *("Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "LogitLayer"),
    ]
    assert [m.p for m in model.head if isinstance(m, nn.Dropout)] == [0.7, 0.5]
    assert [m.out_features for m in model.head if isinstance(m, nn.Linear)] == [8, 4, 2]


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
    model.num_frozen = classifier.skeleton(recipe("vgg16", 64, "all", frozen)).num_frozen
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


@pytest.mark.parametrize(
    ("backbone", "frozen"),
    [
        ("vgg11_bn", ("features.0.", "features.1.", "features.4.", "features.5.")),
        # The first half of a residual block: it is run with the rest, and not changed.
        ("resnet18", ("features.conv1.", "features.bn1.", "features.layer1.0.conv1.",
                      "features.layer1.0.bn1.")),
    ],
)  # fmt: skip
def test_frozen_layers_do_not_move_while_the_others_do(
    backbone: str, frozen: tuple[str, ...]
) -> None:
    model = classifier.build(recipe(backbone, 32, 2, 2, hidden=(8,), dropout=(0.1, 0.1)))
    before = copied(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model.train()
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(images(4, 32)), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in moved if name.startswith(frozen)}
    assert moved == {name for name in before if not name.startswith(frozen)}


# Outputs and digests ------------------------------------------------------------------------------


def test_the_digest_is_of_names_and_values() -> None:
    state = {"features.0.weight": torch.rand(2, 3), "features.0.bias": torch.zeros(2)}
    assert classifier.digest(state) == classifier.digest(dict(reversed(state.items())))
    changed = state | {"features.0.bias": state["features.0.bias"] + 1e-6}
    assert classifier.digest(state) != classifier.digest(changed)
    renamed = {name.replace("features.0.bias", "features.0.b"): t for name, t in state.items()}
    assert classifier.digest(state) != classifier.digest(renamed)


def test_log_odds_are_those_of_the_softmax() -> None:
    outputs = torch.tensor([[0.3, 1.7], [2.0, -1.0]])
    probs = torch.softmax(outputs, dim=1)[:, 1]
    torch.testing.assert_close(torch.sigmoid(logit(outputs)), probs)
