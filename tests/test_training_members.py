"""A recipe becomes the members that were asked for, and these become one classifier."""

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cxr.errors import SettingsError
from cxr.models import classifier
from cxr.models.ensemble import Ensemble
from cxr.recipes import Recipe
from cxr.training import members
from cxr.training.settings import RunSettings

RECIPE = Recipe(
    name="small", backbone="alexnet", pretrained=0, frozen=0, image_px=64, pooling="average",
    hidden=(), dropout=(0.0,), seed=7,
)  # fmt: skip


def test_one_classifier_is_the_recipe_itself() -> None:
    [member] = members.plan(RECIPE, RunSettings(fold=2, folds=5))
    assert (member.recipe, member.fold) == (RECIPE, 2)


def test_members_of_folds_validate_in_turn_and_start_alike() -> None:
    settings = RunSettings(members=3, folds=5)
    planned = members.plan(RECIPE, settings)
    assert [member.fold for member in planned] == [0, 1, 2]
    assert [member.recipe.name for member in planned] == [f"small/members/{k}" for k in range(3)]
    assert {dataclasses.replace(m.recipe, name="small") for m in planned} == {RECIPE}
    assert settings.validation_folds == (0, 1, 2)


def test_members_of_seeds_share_a_fold_and_start_apart() -> None:
    settings = RunSettings(members=3, members_of="seeds", fold=4, folds=5)
    planned = members.plan(RECIPE, settings)
    assert [member.fold for member in planned] == [4, 4, 4]
    assert [member.recipe.seed for member in planned] == [7, 8, 9]
    assert settings.validation_folds == (4,)
    # As many as are wanted: folds do not limit seeds.
    assert len(members.plan(RECIPE, RunSettings(members=9, members_of="seeds"))) == 9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"members": 0}, "members: 0 is below 1."),
        ({"members": 6}, "members: 6 members need 6 folds, there are 5. Raise --folds, or take"),
        ({"members": 2, "fold": 1}, "fold: 1 cannot be chosen where each member has a fold"),
    ],
)
def test_impossible_members_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match="^" + re.escape(reason)):
        RunSettings(folds=5, **changes)


def outcome(rows: list[int], logits: list[float], seed: int = 0) -> Any:
    table = pa.table(
        {
            "row": rows,
            "label": [row % 2 for row in rows],
            "logit": pa.array(logits, pa.float32()),
        }
    )
    state = classifier.build(dataclasses.replace(RECIPE, seed=seed)).state()
    return SimpleNamespace(validation=table, state=state)


def planned(*folds: int) -> Any:
    model = classifier.build(RECIPE)
    return [SimpleNamespace(model=model, validation_folds=(fold,)) for fold in folds]


def test_with_folds_each_image_has_the_logit_of_the_member_not_trained_on_it() -> None:
    outcomes = [outcome([0, 4], [1.0, 2.0]), outcome([1, 5], [3.0, 4.0])]
    table = members.validate(planned(0, 1), outcomes)
    assert table["row"].to_pylist() == [0, 4, 1, 5]
    assert table["logit"].to_pylist() == [1.0, 2.0, 3.0, 4.0]


def test_with_seeds_each_image_has_the_logit_of_the_average() -> None:
    logits = np.array([[-2.0, 0.5], [1.0, 3.0], [0.0, 9.0]])
    outcomes = [outcome([0, 1], own.tolist()) for own in logits]
    table = members.validate(planned(2, 2, 2), outcomes)
    probs = (1 / (1 + np.exp(-logits))).mean(axis=0)
    np.testing.assert_allclose(np.asarray(table["logit"]), np.log(probs / (1 - probs)), rtol=1e-5)
    assert table["row"].to_pylist() == [0, 1]
    assert table["label"].to_pylist() == [0, 1]


def test_trained_members_are_joined_and_the_start_that_they_share_is_kept() -> None:
    plans, outcomes = planned(0, 1), [outcome([0], [0.0], seed) for seed in (1, 2)]
    joined = members.join(plans, outcomes)
    assert isinstance(joined, Ensemble)
    for member, trained in zip(joined.classifiers, outcomes, strict=True):
        assert all(torch.equal(v, trained.state[k]) for k, v in member.state_dict().items())
    start = classifier.build(RECIPE).state()
    assert all(torch.equal(v, start[k]) for k, v in plans[0].model.state_dict().items())


def test_one_trained_classifier_is_itself() -> None:
    plans, outcomes = planned(3), [outcome([0, 1], [0.0, 1.0], seed=1)]
    assert members.join(plans, outcomes) is plans[0].model
    assert members.validate(plans, outcomes).equals(outcomes[0].validation)
