"""Heatmaps: which regions of an image raise the network's log-odds of pneumonia.

A heatmap is scaled to its own maximum, so it says where in an image and not how much. Members of an
ensemble are explained one by one, and their heatmaps are averaged.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam, Occlusion
from numpy.typing import NDArray
from torch import nn

from cxr.explanations.settings import Method
from cxr.inference.engine import batch_size
from cxr.inference.torch_engine import forward
from cxr.models import backbones, transforms
from cxr.models.classifier import Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.outputs import logit
from cxr.recipes import Normalization

POOLING: Final = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Layers at the end of a backbone that make its maps coarser."""

NUM_WINDOWS: Final = 7
"""Windows of occlusion beside each other on a side of the image: as many as AlexNet and VGG16 have
values on a side of their pooled maps at 224 px, about."""

STEPS_PER_WINDOW: Final = 2
"""How often a window is moved on its own width; with 7 windows on a side it has 13 x 13 places."""


def explain(
    model: Classifier | Ensemble,
    normalization: Normalization,
    pixels: NDArray[np.uint8],
    method: Method = "grad_cam",
) -> NDArray[np.float32]:
    """The heatmap of each image.

    Args:
        model: in evaluation mode.
        normalization: of the pixels.
        pixels: gray levels, uint8, (N, S, S); N may be 0.
        method: how.

    Returns:
        float32 (N, S, S), 0 to 1: the largest value of an image is 1, and 0 is what does not raise
        the log-odds. An image in which nothing raises them has zeros only.
    """
    if not len(pixels):
        return np.zeros(pixels.shape, np.float32)
    members = model.classifiers if isinstance(model, Ensemble) else [model]
    maps = [_scale(_METHODS[method](member, normalization, pixels)) for member in members]
    return _scale(np.mean(maps, axis=0, dtype=np.float32))


def compute_logits(
    model: nn.Module, normalization: Normalization, pixels: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Log-odds of pneumonia, float64 (N,): what `explain` explains."""
    logits: list[float] = []
    with torch.inference_mode():
        for batch in _batches(pixels):
            logits += logit(forward(model, batch, normalization)).tolist()
    return np.asarray(logits, np.float64)


def last_maps(model: Classifier) -> nn.Module:
    """The module whose outputs are the backbone's last maps, before they are pooled."""
    blocks = [block for _, block in backbones.blocks(model.features)]
    return next(block for block in reversed(blocks) if not isinstance(block, POOLING))


def _grad_cam(
    model: Classifier, normalization: Normalization, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    grad_cam = LayerGradCam(lambda images: logit(model(images)), last_maps(model))
    maps = []
    for batch in _batches(pixels):
        images = transforms.normalize(batch, normalization)
        # Where all weights are frozen, there is a graph only if the images need gradients.
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        coarse = grad_cam.attribute(images, relu_attributions=True).detach()
        fine = LayerAttribution.interpolate(coarse, pixels.shape[1:], "bilinear")
        maps.append(fine[:, 0].numpy())
    return np.concatenate(maps)


def _occlusion(
    model: Classifier, normalization: Normalization, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """What the log-odds lose where a window of the image's mean gray covers it."""
    occlusion = Occlusion(lambda gray: logit(forward(model, gray, normalization)))
    window = max(1, pixels.shape[-1] // NUM_WINDOWS)
    maps = []
    for batch in _batches(pixels):
        for image in batch.float().split(1):
            map_ = occlusion.attribute(
                image,
                sliding_window_shapes=(1, window, window),
                strides=(1, *[max(1, window // STEPS_PER_WINDOW)] * 2),
                baselines=float(image.mean()),
                perturbations_per_eval=batch_size(gpu=False),
            )
            maps.append(map_[0].numpy())
    return np.concatenate(maps)


_METHODS: Final[
    Mapping[Method, Callable[[Classifier, Normalization, NDArray[np.uint8]], NDArray[np.float32]]]
] = MappingProxyType({"grad_cam": _grad_cam, "occlusion": _occlusion})


def _scale(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (N, S, S) without their negative values, each divided by its maximum."""
    positive = maps.clip(min=0)
    highest = positive.max(axis=(1, 2), keepdims=True)
    scaled = positive / np.where(highest > 0, highest, np.float32(1))
    return scaled.astype(np.float32)


def _batches(pixels: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    """Gray pixels, uint8 (n, 1, S, S), a few at a time."""
    size = batch_size(gpu=False)
    for start in range(0, len(pixels), size):
        yield torch.from_numpy(pixels[start : start + size].copy())[:, None]
