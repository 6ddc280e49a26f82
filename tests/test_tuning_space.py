"""The settings of a search: the full grid, seeded draws, and refusal of the rest."""

import dataclasses
import itertools
from typing import get_args

import pytest

from cxr.errors import SettingsError
from cxr.recipes import RECIPES, ClassWeighting, Normalization
from cxr.tuning import space

BOTH = ("normalization", "class_weighting")


def test_the_default_grid_is_every_normalization_with_every_weighting() -> None:
    settings = space.parse(BOTH, None).settings
    expected = set(itertools.product(get_args(Normalization), get_args(ClassWeighting)))
    assert {(s["normalization"], s["class_weighting"]) for s in settings} == expected
    assert len(settings) == len(expected) == 25


def test_a_grid_can_be_cut_down() -> None:
    cut = space.parse(("normalization=none,imagenet", "class_weighting"), None)
    assert cut.grid["normalization"] == ("none", "imagenet")
    assert len(cut.settings) == 10


def test_numbers_are_tried_as_listed() -> None:
    asked = space.parse(
        ("views=1,4", "augmentation_strength", "weight_decay=0.01,0.1", "dropout"), 16
    )
    assert asked.grid == {
        "views": (1, 4), "augmentation_strength": (0.5, 1.0), "weight_decay": (0.01, 0.1),
    }  # fmt: skip
    assert asked.sampled == ("dropout",)
    assert len(asked.points) == 8
    assert len(asked.settings) == 16


def test_one_view_is_the_image_as_it_is() -> None:
    base = dataclasses.replace(RECIPES["frozen"], augmentation="acquisition")
    assert space.apply(base, {"views": 1}).augmentation == "none"
    several = space.apply(base, {"views": 4, "augmentation_strength": 0.5})
    assert (several.augmentation, several.views) == ("acquisition", 4)
    assert several.augmentation_strength == 0.5


def test_draws_are_in_range_the_same_each_time_and_take_turns_on_the_grid() -> None:
    drawn = space.parse(("normalization=none,unit", *space.SAMPLED), 40)
    assert drawn.settings == space.parse(("normalization=none,unit", *space.SAMPLED), 40).settings
    for name, (low, high) in space.SAMPLED.items():
        values = [setting[name] for setting in drawn.settings]
        assert low <= min(values)
        assert max(values) <= high
        assert len(set(values)) > 30
    kinds = [setting["normalization"] for setting in drawn.settings]
    assert kinds.count("none") == kinds.count("unit") == 20


def test_a_setting_becomes_a_recipe() -> None:
    setting = {"normalization": "unit", "head_width": 32, "dropout": 0.25, "learning_rate": 2e-4}
    recipe = space.apply(RECIPES["v2"], setting)
    assert recipe.normalization == "unit"
    assert recipe.hidden == (32,)
    assert recipe.dropout == (0.25, 0.25)
    assert recipe.learning_rate == 2e-4
    assert space.apply(RECIPES["v2"], {"dropout": 0.5}).dropout == (0.5, 0.5, 0.5)
    assert space.apply(RECIPES["v2"], {"head_width": 8}).dropout == (0.5, 0.5)


def test_a_settings_name_is_its_own() -> None:
    names = {space.identity(setting) for setting in space.parse(BOTH, None).settings}
    assert len(names) == 25
    assert space.identity({"a": 1, "b": 2}) == space.identity({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("search", "trials", "message"),
    [
        ((), None, r"search: no factor\. Choices: normalization"),
        (("color",), None, r"unknown factor 'color'\. Choices: normalization, class_weighting"),
        (("normalization=sepia",), None, r"unknown normalization 'sepia'\. Choices: none, unit"),
        (("normalization=none,none",), None, r"a value of normalization is given twice"),
        (("normalization", "normalization"), None, r"normalization is given twice"),
        (("learning_rate=fast",), None, r"learning_rate 'fast' is not a number"),
        (("views=1,2.5",), None, r"views '2.5' is not a whole number"),
        (("weight_decay=0.1,0.10",), None, r"a value of weight_decay is given twice"),
        (BOTH, 24, r"trials: 24 cannot try the 25 points"),
        (BOTH, 26, r"trials: the grid has 25 points, and nothing else varies"),
        (("learning_rate",), 0, r"trials: 0 cannot try the 1 points"),
    ],
)
def test_a_wrong_search_is_refused(
    search: tuple[str, ...], trials: int | None, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        space.parse(search, trials)
