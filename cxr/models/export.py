"""A classifier as an ONNX file, which anyone with ONNX Runtime can score with.

Input: `pixels`, uint8 (N, 1, S, S), gray, bone bright. Outputs: `logits`, float32 (N, 2), in the
order of `labels.CLASSES`, and `features`, float32 (N, D), the input of the dense layers, averaged
over the image. The normalization is part of the graph: its affine part is merged into the first
convolution, which then reads one or two planes and not the three equal ones of `transforms`.
"""

import copy
import io
import warnings
from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.v2.functional import equalize

from cxr.errors import CheckpointError
from cxr.models import transforms
from cxr.models.classifier import Classifier
from cxr.models.session import open_session
from cxr.recipes import Normalization, Recipe

OPSET: Final = 17
"""Operator set of the files: the first one with layer normalization; every ONNX Runtime since 1.12
reads it, and PyTorch writes it since 2.0."""

TOLERANCE: Final = 1e-4
"""Largest accepted difference between the logits of ONNX Runtime and PyTorch, as a share of the
largest logit or, where all are below 1, of 1. Measured over all families: at most 1e-5."""


def export(model: Classifier, recipe: Recipe, metadata: Mapping[str, str]) -> bytes:
    """Write a classifier as an ONNX file, and hold it against PyTorch.

    Args:
        model: with its trained weights; not changed.
        recipe: of the model.
        metadata: what the file says of itself, by name.

    Returns:
        The file's content.

    Raises:
        CheckpointError: PyTorch cannot export the network, or the file computes other logits.
    """
    was_training = model.training
    model.eval()
    network = _Scorer(model, recipe.normalization)
    content = _to_onnx(network, recipe.image_px, ("logits", "features"))
    _check(content, model, recipe)
    model.train(was_training)
    return content + metadata_only(metadata)


def export_prefix(model: Classifier, recipe: Recipe) -> bytes:
    """Write the frozen part of a classifier as an ONNX file.

    Args:
        model: with its weights; not changed.
        recipe: of the model.

    Returns:
        The content of a file with the input `pixels`, uint8 (N, 1, S, S), and the output
        `features`, float32 (N, ...): `model.prefix` of the normalized pixels.

    Raises:
        CheckpointError: PyTorch cannot export it.
    """
    network = _Portable(model.prefix.eval(), recipe.normalization)
    return _to_onnx(network, recipe.image_px, ("features",))


def metadata_only(metadata: Mapping[str, str]) -> bytes:
    """Bytes that add metadata to an ONNX file when they are appended to it.

    The concatenation of two protobuf messages is their union, so a file of half a gigabyte is not
    parsed for it.
    """
    proto = onnx.ModelProto()
    onnx.helper.set_model_props(proto, dict(metadata))
    return bytes(proto.SerializeToString())


class _Portable(nn.Module):
    """The first layers of a classifier: gray pixels, uint8 (N, 1, S, S), to their outputs."""

    def __init__(self, layers: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.layers = _read_planes(layers, normalization)
        self.normalization = normalization

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(_planes(pixels, self.normalization))
        return outputs


class _Scorer(nn.Module):
    """A classifier: gray pixels, uint8 (N, 1, S, S), to logits (N, 2) and features (N, D)."""

    def __init__(self, model: Classifier, normalization: Normalization) -> None:
        super().__init__()
        layers = list(model.head)
        flatten = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Flatten))
        self.backbone = _Portable(model.features, normalization)
        self.pooling = nn.Sequential(*layers[:flatten])
        self.dense = nn.Sequential(*layers[flatten:])

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.pooling(self.backbone(pixels))
        return self.dense(maps), maps.mean(dim=(2, 3))


def _planes(pixels: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """What the first convolution of a `_Portable` reads, float32 (N, 1 or 2, S, S)."""
    if normalization == "equalize":
        pixels = equalize(pixels)
    gray = pixels.float()
    if normalization == "per_image":
        centered = gray - gray.mean(dim=(2, 3), keepdim=True)
        std = centered.square().mean(dim=(2, 3), keepdim=True).sqrt()
        return centered / std.clamp(min=1.0)
    if normalization in ("imagenet", "equalize"):
        # The mean of a channel is subtracted inside the image only, not in the border of zeros
        # that a convolution adds: a bias cannot do that, a plane of ones can.
        return torch.cat([gray, torch.ones_like(gray)], dim=1)
    return gray


def _read_planes(layers: nn.Module, normalization: Normalization) -> nn.Module:
    """A copy of layers whose first convolution reads `_planes` in place of normalized RGB."""
    copied = copy.deepcopy(layers)
    first = next(module for module in copied.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.detach().double()  # (O, 3, k, k)
    if normalization == "unit":
        weight = weight / 255
    planes = weight.sum(dim=1, keepdim=True)
    if normalization in ("imagenet", "equalize"):
        mean = torch.tensor(transforms.IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(transforms.IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
        gray = (weight / (255 * std)).sum(dim=1, keepdim=True)
        ones = -(weight * mean / std).sum(dim=1, keepdim=True)
        planes = torch.cat([gray, ones], dim=1)
    first.in_channels = planes.shape[1]
    first.weight = nn.Parameter(planes.float(), requires_grad=False)
    return copied


def _to_onnx(network: nn.Module, image_px: int, outputs: tuple[str, ...]) -> bytes:
    """Trace a network of pixels, uint8 (N, 1, S, S), with any N."""
    example = torch.zeros(2, 1, image_px, image_px, dtype=torch.uint8)
    sink = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter of PyTorch 2.9 and later takes 5 s for SqueezeNet where this one takes
            # 0.7 s, and brings a package more; this one says that it is the older.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network.eval(),
                (example,),
                sink,
                dynamo=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=list(outputs),
                dynamic_axes={name: {0: "n"} for name in ("pixels", *outputs)},
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"the network cannot be written as ONNX ({reason}).") from None
    return sink.getvalue()


def _check(content: bytes, model: Classifier, recipe: Recipe) -> None:
    """Compare the logits of an ONNX file with PyTorch's, on noise and on smooth images."""
    pixels = _examples(recipe.image_px)
    with torch.inference_mode():
        expected = model(transforms.normalize(torch.from_numpy(pixels), recipe.normalization))
    session = open_session(content, torch.get_num_threads())
    actual = session.run(["logits"], {"pixels": pixels})[0]
    difference = float(np.abs(actual - expected.numpy()).max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise CheckpointError(
            f"the network computes other logits in ONNX Runtime than in PyTorch (by"
            f" {difference:.2g}, where the largest is {float(expected.abs().max()):.2g})."
        )


def _examples(image_px: int) -> NDArray[np.uint8]:
    """Noise, a smooth image, and an even one: uint8 (3, 1, S, S)."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (image_px, image_px))
    axis = np.linspace(0, 3 * np.pi, image_px)
    smooth = 127.5 + 60 * np.sin(axis)[:, None] + 60 * np.cos(axis)[None, :]
    even = np.full((image_px, image_px), 90)
    return np.stack([noise, smooth, even]).astype(np.uint8)[:, None]
