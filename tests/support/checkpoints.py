"""Checkpoints of networks that nobody trained, calibrated on made-up logits."""

import dataclasses
from pathlib import Path
from typing import Final

import pyarrow as pa

from cxr.models import checkpoint, classifier
from cxr.recipes import RECIPES, Recipe

SMALL: Final = dataclasses.replace(RECIPES["v0"], image_px=64, hidden=(8,), dropout=(0.0, 0.0))
"""An AlexNet at 64 px with a narrow head: the least that a job can run."""


def write_checkpoint(folder: str | Path, recipe: Recipe = SMALL) -> str:
    """A checkpoint with random weights; the path of its folder."""
    validation = pa.table(
        {
            "label": [0, 0, 0, 1, 1, 1],
            "logit": [-2.0, -1.0, 0.4, -0.3, 1.0, 3.0],
            "subtype": ["", "", "", "virus", "bacteria", "bacteria"],
            "patient": [0, 1, 2, 3, 4, 5],
        }
    )
    checkpoint.save(str(folder), recipe, classifier.build(recipe), validation, {})
    return str(folder)
