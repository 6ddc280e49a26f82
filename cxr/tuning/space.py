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

Level = str | float
"""A value of a factor of the grid."""

GRID: Final[dict[str, tuple[Level, ...]]] = {
    "normalization": get_args(Normalization),
    "class_weighting": get_args(ClassWeighting),
    "views": (1, 4, 8),
    "augmentation_strength": (0.5, 1.0),
}
"""The factors of the grid, with the values that are tried where none are given; the first is the
reference. Words have no other values. 1 in `views` means no augmentation."""

SAMPLED: Final[dict[str, tuple[float, float]]] = {
    "learning_rate": (1e-5, 1e-2),
    "weight_decay": (1e-6, 1e-1),
    "dropout": (0.0, 0.7),
    "head_width": (16, 1024),
}
"""The factors that are drawn where no values are given, with their ranges: dropout evenly, the
others evenly in their logarithm. `dropout` is the rate before each dense layer of the head,
`head_width` the width of its one hidden layer."""

WHOLE_NUMBERS: Final = ("views", "head_width")
"""Factors whose values are whole numbers."""


Sampler = Literal["random", "optuna"]
"""How factors are drawn: at random beforehand, or by Optuna from the figures of earlier trials."""


@dataclass(frozen=True)
class Space:
    """The settings of a search."""

    grid: Mapping[str, tuple[Level, ...]]
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
    def points(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values."""
        return [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Every setting that is known beforehand: points of the grid in turn, with their draws."""
        if self.sampler == "optuna":
            return []
        points = self.points
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
        search: names of factors, those with values as in `normalization=none,imagenet` or
            `weight_decay=0.01,0.1`; a factor with values is one of the grid.
        trials: settings in all; None for the whole grid, and for four draws at each of its points
            where factors are drawn.
        sampler: how they are drawn.

    Raises:
        SettingsError: an unknown or repeated factor or value, no factor, too few trials, or
            nothing for Optuna to draw.
    """
    grid: dict[str, tuple[Level, ...]] = {}
    sampled = []
    for word in search:
        name, _, chosen = word.partition("=")
        if name in grid or name in sampled:
            raise SettingsError(f"search: {name} is given twice.")
        if chosen and (name in GRID or name in SAMPLED):
            grid[name] = _values(name, chosen)
        elif name in GRID:
            grid[name] = GRID[name]
        elif name in SAMPLED:
            sampled.append(name)
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
    if values.get("views") == 1:  # Of a frozen part that runs once: the image as it is.
        values["augmentation"] = "none"
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


def _values(name: str, chosen: str) -> tuple[Level, ...]:
    words = [level for level in GRID.get(name, ()) if isinstance(level, str)]
    values: tuple[Level, ...] = tuple(
        value if words else _number(name, value) for value in chosen.split(",")
    )
    for value in values:
        if words and value not in words:
            raise SettingsError(f"search: unknown {name} {value!r}. Choices: {', '.join(words)}.")
    if len(set(values)) < len(values):
        raise SettingsError(f"search: a value of {name} is given twice.")
    return values


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name in WHOLE_NUMBERS else float(text)
    except ValueError:
        needed = "a whole number" if name in WHOLE_NUMBERS else "a number"
        raise SettingsError(f"search: {name} {text!r} is not {needed}.") from None


def _draw(name: str, generator: np.random.Generator) -> float | int:
    low, high = SAMPLED[name]
    if name == "dropout":
        return round(float(generator.uniform(low, high)), 4)
    value = math.exp(generator.uniform(math.log(low), math.log(high)))
    return round(value) if name == "head_width" else float(f"{value:.4g}")
