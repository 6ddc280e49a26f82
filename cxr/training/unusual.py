"""The distribution of a trained model's features over its training images."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxr.datasets.shards import Shards, read_part
from cxr.inference.torch_engine import forward
from cxr.models import unusual
from cxr.models.classifier import Classifier
from cxr.models.unusual import FeatureDistribution, FeatureOutput
from cxr.storage.arrays import to_array
from cxr.training.trainer import Plan

MAX_TRAINING: Final = 2_000
"""Training images whose features are used. With frozen SqueezeNet and 512 features, 500 flagged as
many of the images turned by 90 degrees or with noise as 4,000 did, and 0.94 of the padded ones were
flagged by 2,000 and by 4,000."""

MAX_VALIDATION: Final = 1_000
"""Validation images that the percentiles are among: ten above the 99th."""


def fit_features(plans: Sequence[Plan]) -> FeatureDistribution | None:
    """The distribution of what a trained model, or the members of an ensemble, make of images.

    Where the features of frozen layers are cached it is that of the features before the dense
    layers. Else the network runs over the pixels, in this process, and it is that of the output
    `middle`: 3,000 images at most, where an epoch of training passes all of them forward and back.

    Args:
        plans: of the model or its members, which have their trained weights; the folds are those of
            the first one.

    Returns:
        None where there are too few images, see `unusual.fit_distribution`.
    """
    first = plans[0]
    folds = (first.train_folds, MAX_TRAINING), (first.validation_folds, MAX_VALIDATION)
    if min(len(first.shards.rows(chosen)) for chosen, _ in folds) < unusual.MIN_IMAGES:
        return None
    # Members have features in common where all that is before the dense layers is frozen.
    if first.model.num_frozen >= first.model.num_pooled:
        plans = plans[:1]
    training, validation = (
        # As `Ensemble.score` has them.
        np.stack([_compute(plan, chosen, limit) for plan in plans]).mean(axis=0, dtype=np.float32)
        for chosen, limit in folds
    )
    return unusual.fit_distribution(training, validation, _output(first))


def _output(plan: Plan) -> FeatureOutput:
    return "features" if plan.cached else "middle"


class Watched(nn.Module):
    """The first layers of a classifier, up to the last of the maps in its output `middle`."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As the last output of `Classifier.score`."""
        return torch.cat(self.model.look(images, 0, self.model.watched[-1])[1], dim=1)


class Pooled(nn.Module):
    """The layers of a classifier before its dense ones, from some layer on, and their mean maps."""

    def __init__(self, model: Classifier, image_px: int, first: int) -> None:
        """Cut a classifier.

        Args:
            model: of whose layers they are.
            image_px: side of its images.
            first: number of the first layer; the one before it has computed the inputs.
        """
        super().__init__()
        self.layers = model.part(first, model.num_pooled)
        self.is_flat = first > model.num_pooled
        """Whether the inputs are maps already that were made flat."""
        with torch.no_grad():
            maps = model.part(0, model.num_pooled)(torch.zeros(1, 3, image_px, image_px))
        self.num_maps = int(maps.shape[1])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features, (N, D)."""
        maps = inputs if self.is_flat else self.layers(inputs)
        return maps.reshape(len(maps), self.num_maps, -1).mean(dim=2)


def _compute(plan: Plan, folds: Sequence[int], limit: int) -> NDArray[np.float32]:
    """The plan's output, float32 (N, D), of so many images of some folds at most."""
    model = plan.model.eval()
    network = (
        Pooled(model, plan.recipe.image_px, model.num_frozen)
        if _output(plan) == "features"
        else Watched(model)
    )
    features = []
    with torch.inference_mode():
        for array in read_first(plan.shards, folds, limit):
            inputs = torch.from_numpy(array.copy())
            if plan.cached:
                outputs = network(inputs.float())
            else:
                outputs = forward(network, inputs[:, None], plan.recipe.normalization)
            features.append(outputs.float().numpy())
    return np.concatenate(features)


def read_first(shards: Shards, folds: Sequence[int], limit: int) -> Iterator[NDArray[np.generic]]:
    """The first arrays of each fold, whose order is random, a file at a time: (n, *shards.shape).

    Each fold gives an equal part of the limit, and what a small one lacks is made up for by the
    next.
    """
    left = limit
    for number, fold in enumerate(folds):
        own = -(-left // (len(folds) - number))
        for path in shards.parts.get(fold, ()):
            if own <= 0:
                break
            array = to_array(read_part(path, ["x"])["x"], shards.shape, shards.dtype)[:own]
            own, left = own - len(array), left - len(array)
            yield array
