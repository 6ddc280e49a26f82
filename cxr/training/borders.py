"""Whether a trained model looks at the border of images: a figure for its model card."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from cxr import metrics
from cxr.datasets.shards import Shards
from cxr.explanations.heatmaps import explain
from cxr.models.checkpoint import Checkpoint
from cxr.training.unusual import read_first

NUM_EXPLAINED: Final = 32
"""Validation images whose heatmaps are measured. The shares of 32 radiographs had a standard
deviation of 0.11 with frozen SqueezeNet, so their mean is known to 0.04."""


def measure_border_shares(
    trained: Checkpoint, pixels: Shards, validation_folds: Sequence[int]
) -> list[float]:
    """`metrics.border_share` of the Grad-CAM heatmaps of some validation images.

    Args:
        trained: the model, which runs in this process.
        pixels: decoded images that it was trained and validated on.
        validation_folds: whose images are explained, the first ones of each.

    Returns:
        A share for each image in which something raises the log-odds; may be empty.
    """
    images = list(read_first(pixels, validation_folds, NUM_EXPLAINED))
    heatmaps = explain(trained.model, trained.recipe.normalization, np.concatenate(images))
    shares = map(metrics.border_share, heatmaps)
    return [share for share in shares if share is not None]
