"""What a search varies: factors of a recipe, their values, and the settings that they form."""

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from cxr.errors import SettingsError
from cxr.recipes import ClassWeighting, Normalization, Recipe

Setting = Mapping[str, Any]
"""A value for each factor of a search."""

GRID: Final[dict[str, tuple[str, ...]]] = {
    "normalization": get_args(Normalization),
    "class_weighting": get_args(ClassWeighting),
}
"""The factors of the grid, with all their values; the first is the reference."""

SAMPLED: Final[dict[str, tuple[float, float]]] = {
    "learning_rate": (1e-5, 1e-2),
    "weight_decay": (1e-6, 1e-1),
    "dropout": (0.0, 0.7),
    "head_width": (16, 1024),
}
"""The factors that are drawn, with their ranges: dropout evenly, the others evenly in their
logarithm. `dropout` is the rate before each dense layer of the head, `head_width` the width of its
one hidden layer."""


Sampler = Literal["random", "optuna"]
"""How factors are drawn: at random beforehand, or by Optuna from the figures of earlier trials."""


@dataclass(frozen=True)
class Space:
    """The settings of a search."""

    grid: Mapping[str, tuple[str, ...]]
    """Values of each factor that is tried in full."""
    sampled: tuple[str, ...]
    """Factors that are drawn."""
    trials: int
    """Settings in all."""
    seed: int = 0
    """Seed of the draws."""
    sampler: Sampler = "random"
    """How they are drawn."""

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Every setting that is known beforehand: points of the grid in turn, with their draws."""
        if self.sampler == "optuna":
            return []
        points = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        generator = np.random.default_rng(self.seed)
        return [
            points[index % len(points)] | {name: _draw(name, generator) for name in self.sampled}
            for index in range(self.trials)
        ]

    def to_json(self) -> dict[str, Any]:
        """The space as JSON values."""
        return {
            "grid": {name: list(values) for name, values in self.grid.items()},
            "sampled": list(self.sampled),
            "trials": self.trials,
            "seed": self.seed,
            "sampler": self.sampler,
        }


def parse(search: Sequence[str], trials: int | None, sampler: Sampler = "random") -> Space:
    """The space that a command line means.

    Args:
        search: names of factors; a factor of the grid may be cut down to some of its values, as in
            `normalization=none,imagenet`.
        trials: settings in all; None for the whole grid, and for four draws at each of its points
            where factors are drawn.
        sampler: how they are drawn.

    Raises:
        SettingsError: an unknown or repeated factor or value, no factor, too few trials, or
            nothing for Optuna to draw.
    """
    grid: dict[str, tuple[str, ...]] = {}
    sampled = []
    for word in search:
        name, _, chosen = word.partition("=")
        if name in grid or name in sampled:
            raise SettingsError(f"search: {name} is given twice.")
        if name in GRID:
            grid[name] = _values(name, chosen)
        elif name in SAMPLED and not chosen:
            sampled.append(name)
        elif name in SAMPLED:
            raise SettingsError(f"search: {name} is drawn from {SAMPLED[name]}; give no values.")
        else:
            raise SettingsError(
                f"search: unknown factor {name!r}. Choices: {', '.join([*GRID, *SAMPLED])}."
            )
    if not grid and not sampled:
        raise SettingsError(f"search: no factor. Choices: {', '.join([*GRID, *SAMPLED])}.")
    points = math.prod(len(values) for values in grid.values())
    num_trials = trials if trials is not None else points * (4 if sampled else 1)
    if sampler == "optuna" and not sampled:
        raise SettingsError(
            f"sampler: optuna has nothing to draw. Add one of {', '.join(SAMPLED)} to --search."
        )
    if sampler == "optuna" and importlib.util.find_spec("optuna") is None:
        raise SettingsError("sampler: optuna is not installed. pip install -e '.[optuna]'.")
    if sampler == "random" and num_trials < points:
        raise SettingsError(f"trials: {num_trials} cannot try the {points} points of the grid.")
    if num_trials < 1:
        raise SettingsError(f"trials: {num_trials} is below 1.")
    if num_trials > points and not sampled:
        raise SettingsError(
            f"trials: the grid has {points} points, and nothing else varies between {num_trials}"
            f" trials. Leave --trials out, or add one of {', '.join(SAMPLED)} to --search."
        )
    return Space(grid, tuple(sampled), num_trials, sampler=sampler)


def apply(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe of a setting."""
    values = dict(setting)
    width, rate = values.pop("head_width", None), values.pop("dropout", None)
    hidden = recipe.hidden if width is None else (int(width),)
    if width is not None or rate is not None:
        # A rate before each dense layer, the last one included.
        rates = recipe.dropout if rate is None else (float(rate),)
        values |= {"hidden": hidden, "dropout": (rates[-1],) * (len(hidden) + 1)}
    return dataclasses.replace(recipe, **values)


def identity(setting: Setting) -> str:
    """A short name of a setting, the same in every run."""
    text = json.dumps(dict(setting), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _values(name: str, chosen: str) -> tuple[str, ...]:
    if not chosen:
        return GRID[name]
    values = tuple(chosen.split(","))
    for value in values:
        if value not in GRID[name]:
            raise SettingsError(
                f"search: unknown {name} {value!r}. Choices: {', '.join(GRID[name])}."
            )
    if len(set(values)) < len(values):
        raise SettingsError(f"search: a value of {name} is given twice.")
    return values


def _draw(name: str, generator: np.random.Generator) -> float | int:
    low, high = SAMPLED[name]
    if name == "dropout":
        return round(float(generator.uniform(low, high)), 4)
    value = math.exp(generator.uniform(math.log(low), math.log(high)))
    return round(value) if name == "head_width" else float(f"{value:.4g}")
