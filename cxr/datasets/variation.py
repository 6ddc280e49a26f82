"""What is done to the pixels of a data set before frozen layers run over them.

Importing this module imports no PyTorch: a pass over images as they are needs none.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cxr.datasets.shards import Shards
from cxr.recipes import Augmentation, Recipe

if TYPE_CHECKING:
    import torch

CHUNK_ROWS: Final = 16
"""Images that are changed at once: PyTorch needs several times their memory in float32."""


class Variation(Protocol):
    """A way to change images; instances are hashable and can be sent to other processes."""

    @property
    def key(self) -> tuple[str | int | float, ...]:
        """What the changed pixels depend on, for the keys of caches."""
        ...

    def apply(self, pixels: "torch.Tensor", rows: NDArray[np.int64]) -> "torch.Tensor":
        """Changed images.

        Args:
            pixels: gray levels 0-255, uint8, (N, 1, S, S).
            rows: their row numbers in the data set, (N,).

        Returns:
            gray levels 0-255, uint8 or float32, (N, 1, S, S).
        """
        ...


@dataclass(frozen=True)
class DrawnView:
    """An augmentation's changes, drawn for each image from its row number."""

    augmentation: Augmentation
    strength: float
    seed: int
    number: int
    """Views of another number are other draws."""

    @property
    def key(self) -> tuple[str | int | float, ...]:
        """As `Variation.key`."""
        return ("view", _version(), *dataclasses.astuple(self))

    def apply(self, pixels: "torch.Tensor", rows: NDArray[np.int64]) -> "torch.Tensor":
        """As `Variation.apply`."""
        from cxr.models import acquisition

        draws = acquisition.draw_uniform(rows, self.seed, self.number, acquisition.NUM_DRAWS)
        return acquisition.vary(pixels, draws, acquisition.RANGES[self.augmentation], self.strength)


@dataclass(frozen=True)
class NamedChange:
    """One acquisition change, the same for every image."""

    name: str
    """In `acquisition.CHANGES`."""
    severity: int

    @property
    def key(self) -> tuple[str | int | float, ...]:
        """As `Variation.key`."""
        return ("change", _version(), *dataclasses.astuple(self))

    def apply(self, pixels: "torch.Tensor", rows: NDArray[np.int64]) -> "torch.Tensor":
        """As `Variation.apply`."""
        from cxr.models import acquisition

        # Noise of its own for each chunk of images.
        return acquisition.change(pixels, self.name, self.severity, seed=int(rows[0]))


def varied(
    variation: Variation, pixels: NDArray[np.uint8], rows: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Change images on the CPU, rounded as a file would hold them.

    Args:
        variation: how.
        pixels: gray levels, (N, S, S); N is at least 1.
        rows: their row numbers in the data set, (N,).

    Returns:
        uint8 (N, S, S).
    """
    import torch

    chunks = []
    for start in range(0, len(pixels), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        images = variation.apply(torch.from_numpy(pixels[chunk].copy())[:, None], rows[chunk])
        chunks.append(images[:, 0].float().round().clamp(0, 255).to(torch.uint8).numpy())
    return np.concatenate(chunks)


def views(recipe: Recipe) -> list[Variation | None]:
    """The views of a training image: as it is, then the drawn ones."""
    drawn = [
        DrawnView(recipe.augmentation, recipe.augmentation_strength, recipe.seed, number)
        for number in range(1, recipe.views)
    ]
    return [None, *drawn]


def rotate(shards: Sequence[Shards]) -> list[Shards]:
    """Mix k views of the same images into k data sets, each with every image once.

    File i of data set r holds view (r + i) mod k: each data set is a mixture of all views, and all
    together have every view of every image. An epoch of training takes one of them. So it is as
    long with any number of views, and schedule, patience and number of steps mean the same; and no
    epoch is of one view alone, after which the clean validation images would favor view 0.

    Args:
        shards: features of each view, in files of the same rows.
    """
    count = len(shards)
    return [
        dataclasses.replace(
            shards[0],
            parts={
                fold: tuple(
                    shards[(first + index) % count].parts[fold][index]
                    for index in range(len(paths))
                )
                for fold, paths in shards[0].parts.items()
            },
        )
        for first in range(count)
    ]


def _version() -> int:
    from cxr.models import acquisition

    return acquisition.VERSION
