"""Heatmaps for the page on scores, computed by one task of the cluster.

The driver and the processes that score on CPUs import no PyTorch; that task does, which takes a few
seconds. The images of a page are few.
"""

import dataclasses
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from cxr import cluster
from cxr.models.checkpoint import Checkpoint


def explain_pixels(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The heatmap of each image, by Grad-CAM.

    Args:
        checkpoint: of the scores. In int8 its network in float32 is explained.
        pixels: gray levels, uint8, (N, S, S).

    Returns:
        float32 (N, S, S), 0 to 1, as `explanations.heatmaps.explain` returns them.
    """
    task: Any = ray.remote(_explain)
    without_onnx = dataclasses.replace(checkpoint, network=None)
    ref: Any = task.remote(without_onnx, pixels)
    heatmaps: NDArray[np.float32] = cluster.execute(lambda: ray.get(ref))
    return heatmaps


def _explain(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    from cxr.explanations.heatmaps import explain

    return explain(checkpoint.model, checkpoint.recipe.normalization, pixels)
