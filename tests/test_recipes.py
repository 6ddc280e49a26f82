"""The published versions hold the experiment's values; impossible recipes are refused by name."""

import dataclasses
import json
from typing import Any

import pytest

from cxr.errors import SettingsError
from cxr.recipes import FIXED_CLASS_WEIGHTS, RECIPES, Recipe, named

UNUSED = {
    "augmentation_strength": 1.0,
    "views": 1,
    "schedule": "decay",
    "warmup": 0.1,
    "layer_decay": 1.0,
    "ema": 0.0,
    "label_smoothing": 0.0,
    "gradient_clipping": 0.0,
    "precision": "auto",
}
"""Fields that the published versions leave at values without effect."""

VGG16_VERSIONS = UNUSED | {
    "backbone": "vgg16",
    "pretrained": "all",
    "frozen": "all",
    "image_px": 224,
    "class_weighting": "fixed",
    "pooling": "flatten",
    "hidden": (1024, 512),
    "dropout": (0.0, 0.7, 0.5),
    "augmentation": "none",
    "optimizer": "adam",
    "learning_rate_decay": 1e-5,
    "weight_decay": 0.0,
    "patience": 5,
    "seed": 0,
}

PUBLISHED_VALUES: dict[str, dict[str, Any]] = {
    "v0": UNUSED
    | {
        "name": "v0",
        "backbone": "alexnet",
        "pretrained": 2,
        "frozen": 2,
        "image_px": 128,
        "normalization": "none",
        "class_weighting": "none",
        "pooling": "flatten",
        "hidden": (16,),
        "dropout": (0.4, 0.4),
        "augmentation": "none",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "learning_rate_decay": 0.0,
        "weight_decay": 0.0,
        "batch_size": 10,
        "epochs": 2,
        "patience": 5,
        "loading": "memory",
        "seed": 0,
    },
    "v1": VGG16_VERSIONS
    | {
        "name": "v1",
        "normalization": "none",
        "learning_rate": 1e-4,
        "batch_size": 1,
        "epochs": 1,
        "loading": "memory",
    },
    "v2": VGG16_VERSIONS
    | {
        "name": "v2",
        "normalization": "none",
        "learning_rate": 1e-3,
        "batch_size": 15,
        "epochs": 3,
        "loading": "stream",
    },
    "v3": VGG16_VERSIONS
    | {
        "name": "v3",
        "normalization": "unit",
        "learning_rate": 1e-3,
        "batch_size": 15,
        "epochs": 1,
        "loading": "stream",
    },
}


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
def test_published_versions_hold_the_values_of_the_experiment(version: str) -> None:
    assert dataclasses.asdict(RECIPES[version]) == PUBLISHED_VALUES[version]


def test_fixed_class_weights_are_those_of_the_experiment() -> None:
    assert FIXED_CLASS_WEIGHTS == (1.0, 0.4)


@pytest.mark.parametrize("version", RECIPES)
def test_a_version_is_found_by_its_name(version: str) -> None:
    assert named(version).name == version


def test_unknown_version_is_refused_with_the_choices() -> None:
    with pytest.raises(
        SettingsError, match=r"unknown version 'v7'\. Choices: v0, v1, v2, v3, frozen, best"
    ):
        named("v7")


@pytest.mark.parametrize("version", RECIPES)
def test_a_recipe_survives_json(version: str) -> None:
    recipe = RECIPES[version]
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_json_has_a_key_for_every_field() -> None:
    assert list(json.loads(Recipe().to_json())) == [f.name for f in dataclasses.fields(Recipe)]


def test_fields_left_out_take_their_defaults() -> None:
    assert Recipe.from_json('{"epochs": 7}') == Recipe(epochs=7)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"epochz": 3}', r"unknown recipe field epochz\. Choices: name, backbone, .*seed"),
        ("[1]", "a JSON list, not an object"),
        ("{", "not a recipe: "),
        ('{"normalization": "zscore"}', "Choices: none, unit, imagenet, per_image"),
        ('{"learning_rate": NaN}', "learning_rate: nan is not a number"),
        ('{"hidden": 16}', r"hidden: 16 is not possible\. Expected a list of int"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        Recipe.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("normalization", "zscore", "Choices: none, unit, imagenet, per_image"),
        ("class_weighting", "heavy", "Choices: none, fixed, balanced"),
        ("pooling", "max", "Choices: flatten, average"),
        ("augmentation", "flip", "Choices: none, affine"),
        ("optimizer", "lion", "Choices: adam, adamw, sgd"),
        ("loading", "disk", "Choices: memory, stream"),
        ("pretrained", "some", "Give a number of convolutions, or all"),
        ("pretrained", -1, "below 0"),
        ("frozen", True, "Give a number of convolutions, or all"),
        ("frozen", -1, "below 0"),
        ("image_px", 0, "below 1"),
        ("image_px", 128.0, "Expected int"),
        ("views", 0, "below 1"),
        ("batch_size", 0, "below 1"),
        ("epochs", 0, "below 1"),
        ("patience", 0, "below 1"),
        ("learning_rate", 0.0, "not above 0"),
        ("learning_rate", float("inf"), "not a number"),
        ("learning_rate", "fast", "Expected float"),
        ("learning_rate_decay", -1e-5, "below 0"),
        ("learning_rate_decay", float("nan"), "not a number"),
        ("weight_decay", -1.0, "below 0"),
        ("weight_decay", float("nan"), "not a number"),
        ("hidden", (0, 512), "narrower than 1"),
        ("hidden", ("wide",), "Expected a list of int"),
        ("dropout", (0.0, 1.0, 0.5), "outside 0 to 1"),
        ("dropout", (0.0, float("nan"), 0.5), "outside 0 to 1"),
        ("dropout", (0.5,), "1 rates for 3 dense layers"),
        ("seed", -1, "below 0"),
        ("name", 2, "Expected str"),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^{field}: .*{reason}"):
        dataclasses.replace(Recipe(), **{field: value})


@pytest.mark.parametrize(("frozen", "pretrained"), [(3, 2), ("all", 2), (1, 0), ("all", 0)])
def test_no_more_is_frozen_than_is_pretrained(frozen: Any, pretrained: Any) -> None:
    with pytest.raises(SettingsError, match=f"^frozen: {frozen} .* only {pretrained} are"):
        Recipe(frozen=frozen, pretrained=pretrained)


@pytest.mark.parametrize(("frozen", "pretrained"), [(0, 0), (2, 2), (0, 2), (2, "all"), (0, "all")])
def test_less_may_be_frozen_than_is_pretrained(frozen: Any, pretrained: Any) -> None:
    assert Recipe(frozen=frozen, pretrained=pretrained).frozen == frozen
