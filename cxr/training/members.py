"""The members of an ensemble: which classifiers a recipe is trained as, and how they become one."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from cxr.models.checkpoint import Member
from cxr.models.classifier import Classifier
from cxr.models.ensemble import Ensemble, average
from cxr.models.outputs import logit
from cxr.recipes import Recipe
from cxr.training.settings import RunSettings

if TYPE_CHECKING:
    from cxr.training.trainer import Outcome, Plan


def plan(recipe: Recipe, settings: RunSettings) -> list[Member]:
    """The classifiers that a recipe is trained as: one, or the members of an ensemble.

    A member's name is its folder in the run, `best/members/0`.
    """
    if settings.members == 1:
        return [Member(recipe, settings.fold)]
    return [
        Member(
            dataclasses.replace(
                recipe,
                name=f"{recipe.name}/members/{number}",
                seed=recipe.seed + (0 if settings.validates_by_folds else number),
            ),
            number if settings.validates_by_folds else settings.fold,
        )
        for number in range(settings.members)
    ]


def join(plans: "Sequence[Plan]", outcomes: "Sequence[Outcome]") -> Classifier | Ensemble:
    """The trained classifier or, of several plans, their ensemble."""
    models = [plan.model if len(plans) == 1 else copy.deepcopy(plan.model) for plan in plans]
    for model, outcome in zip(models, outcomes, strict=True):
        model.load_state_dict(dict(outcome.state), strict=False)
    return models[0] if len(models) == 1 else Ensemble(models)


def trained(model: Classifier | Ensemble, plans: "Sequence[Plan]") -> "list[Plan]":
    """The plans with the trained classifiers of `join`."""
    models = model.classifiers if isinstance(model, Ensemble) else [model]
    pairs = zip(plans, models, strict=True)
    return [dataclasses.replace(plan, model=member) for plan, member in pairs]


def recipes(model: Classifier | Ensemble, plans: "Sequence[Plan]") -> tuple[Recipe, ...]:
    """The recipes of an ensemble's members; empty for a classifier."""
    return tuple(plan.recipe for plan in plans) if isinstance(model, Ensemble) else ()


def judges(
    model: Classifier | Ensemble, plans: "Sequence[Plan]", outcomes: "Sequence[Outcome]"
) -> "list[tuple[Classifier | Ensemble, pa.ChunkedArray]]":
    """Who scores which validation images: as in `validate`.

    Args:
        model: as `join` returned it.
        plans: of it.
        outcomes: of the plans.

    Returns:
        Models, and the row numbers of the images that each was not trained on.
    """
    rows = [outcome.validation["row"] for outcome in outcomes]
    if isinstance(model, Ensemble) and _by_folds(plans):
        return list(zip(model.classifiers, rows, strict=True))
    return [(model, rows[0])]


def _by_folds(plans: "Sequence[Plan]") -> bool:
    return len({plan.validation_folds for plan in plans}) == len(plans)


def validate(plans: "Sequence[Plan]", outcomes: "Sequence[Outcome]") -> pa.Table:
    """Row number, label and logit of each validation image, by models not trained on it.

    Where each member has a fold of its own, the logits are that member's; where all have the same,
    they are those of the average.
    """
    tables = [outcome.validation for outcome in outcomes]
    if _by_folds(plans):
        return pa.concat_tables(tables)
    logits = torch.tensor(np.stack([np.asarray(table["logit"]) for table in tables], axis=1))
    averaged = logit(average(torch.stack([torch.zeros_like(logits), logits], dim=2)))
    return tables[0].set_column(2, "logit", pa.array(averaged.numpy()))
