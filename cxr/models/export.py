"""A classifier as an ONNX file, which anyone with ONNX Runtime can score with.

Input: `pixels`, uint8 (N, 1, S, S), gray, bone bright. Outputs: `logits`, float32 (N, 2), in the
order of `labels.CLASSES`; `features`, float32 (N, D), the input of the dense layers, averaged over
the image; and `middle`, float32 (N, E), maps of earlier layers (`Classifier.watched`), averaged as
well. The file of an ensemble has another output, `members`, float32 (N, members, 2): the logits of
each member, while the softmax of `logits` is the mean of the members' probabilities.

The normalization is part of the graph: its affine part is merged into the first convolution, which
then reads one or two planes and not the three equal ones of `transforms`.
"""

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.v2.functional import equalize

from cxr.errors import CheckpointError
from cxr.models import transforms
from cxr.models.classifier import OUTPUTS, Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.session import open_session
from cxr.recipes import Normalization, Recipe

OPSET: Final = 17
"""Operator set of the files: the first one with layer normalization; every ONNX Runtime since 1.12
reads it, and PyTorch writes it since 2.0."""

TOLERANCE: Final = 1e-4
"""Largest accepted difference between an output of ONNX Runtime and of PyTorch, as a share of the
largest value or, where all are below 1, of 1. Measured with networks of all families that have
random weights: 1e-7 to 2e-5, and up to 1e-2 where signals grow from layer to layer."""

PERTURBATION: Final = 1e-5
"""What a change of the normalized pixels by this share does to PyTorch's outputs is accepted as
well: a network that enlarges it enlarges rounding errors, too."""

MAX_KERNEL_PADDED: Final = 4
"""Largest kernel of a first convolution in 8-bit integers for which a multiple of four planes is
faster. ONNX Runtime 1.32, one core with VNNI, milliseconds for 3 and for 4 planes of 224 px: 1.5
and 0.6 (SqueezeNet, 3 x 3), 4.5 and 1.6 (VGG, 3 x 3), 1.4 and 1.5 (ResNet, 7 x 7), 0.8 and 1.2
(AlexNet, 11 x 11)."""


def export(
    model: Classifier | Ensemble,
    recipe: Recipe,
    metadata: Mapping[str, str],
    *,
    split_gray: bool = False,
) -> bytes:
    """Write a classifier or an ensemble as an ONNX file, and hold it against PyTorch.

    Args:
        model: with its trained weights; not changed.
        recipe: of the model.
        metadata: what the file says of itself, by name.
        split_gray: let the first convolution read integers of 7 bits, as `quantization` needs them.

    Returns:
        The file's content.

    Raises:
        CheckpointError: PyTorch cannot export the network, or the file computes other logits.
    """
    was_training = model.training
    model.eval()
    network = _Scorer(model, recipe.normalization, split_gray)
    outputs = OUTPUTS if isinstance(model, Ensemble) else OUTPUTS[:3]
    content = _to_onnx(network, recipe.image_px, outputs)
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
        self.layers = copy.deepcopy(layers)
        self.planes = _Planes.of([self.layers], normalization, split_gray=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(self.planes(pixels))
        return outputs


class _Scorer(nn.Module):
    """A classifier or an ensemble: gray pixels, uint8 (N, 1, S, S), to what its `score` returns."""

    def __init__(
        self,
        model: Classifier | Ensemble,
        normalization: Normalization,
        split_gray: bool = False,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        members = self.model.classifiers if isinstance(self.model, Ensemble) else [self.model]
        self.planes = _Planes.of(members, normalization, split_gray)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = self.model.score(self.planes(pixels))
        return outputs


class _Planes(nn.Module):
    """What the first convolution reads in place of normalized RGB, and its weights for that."""

    def __init__(self, normalization: Normalization, split_gray: bool, kernel: int) -> None:
        super().__init__()
        self.normalization = normalization
        self.split_gray = split_gray and normalization != "per_image"
        """Whether the planes hold integers of 7 bits: the half of a gray level, and the rest."""
        self.top = 127 if self.split_gray else 255
        """Level of the constant plane."""
        self.multiple = 4 if self.split_gray and kernel <= MAX_KERNEL_PADDED else 1
        """Planes of zeros make the number of planes a multiple of this."""

    @classmethod
    def of(
        cls, networks: Iterable[nn.Module], normalization: Normalization, split_gray: bool
    ) -> "_Planes":
        """The planes of networks with the same first layer, whose weights it is given here.

        Args:
            networks: changed in place; what they share is changed once.
            normalization: of the pixels.
            split_gray: as for `export`.
        """
        first = [
            next(module for module in network.modules() if isinstance(module, nn.Conv2d))
            for network in networks
        ]
        planes = cls(normalization, split_gray, first[0].kernel_size[0])
        for convolution in dict.fromkeys(first):
            weight = planes.merge(convolution.weight.detach())
            convolution.in_channels = weight.shape[1]
            convolution.weight = nn.Parameter(weight, requires_grad=False)
        return planes

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Planes, float32 (N, 1 to 4, S, S), of gray pixels, uint8 (N, 1, S, S)."""
        if self.normalization == "equalize":
            pixels = equalize(pixels)
        gray = pixels.float()
        if self.normalization == "per_image":
            centered = gray - gray.mean(dim=(2, 3), keepdim=True)
            std = centered.square().mean(dim=(2, 3), keepdim=True).sqrt()
            return centered / std.clamp(min=1.0)
        planes = [gray]
        if self.split_gray:
            half = torch.floor(gray / 2)
            planes = [half, gray - 2 * half]
        if self.normalization in ("imagenet", "equalize"):
            # The mean of a channel is subtracted inside the image only, not in the border of zeros
            # that a convolution adds: a bias cannot do that, a constant plane can.
            planes.append(torch.full_like(gray, self.top))
        planes += [torch.zeros_like(gray)] * (-len(planes) % self.multiple)
        return torch.cat(planes, dim=1)

    def merge(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights of planes, (O, 1 to 4, k, k), that do what those of RGB, (O, 3, k, k), do."""
        rgb = weight.double()
        constant = []
        if self.normalization == "unit":
            rgb = rgb / 255
        elif self.normalization in ("imagenet", "equalize"):
            mean = torch.tensor(transforms.IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
            std = torch.tensor(transforms.IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
            constant = [-(rgb * mean / std).sum(dim=1, keepdim=True) / self.top]
            rgb = rgb / (255 * std)
        gray = rgb.sum(dim=1, keepdim=True)
        planes = [2 * gray, gray] if self.split_gray else [gray]
        planes += constant
        planes += [torch.zeros_like(gray)] * (-len(planes) % self.multiple)
        return torch.cat(planes, dim=1).float()


def _to_onnx(network: nn.Module, image_px: int, outputs: tuple[str, ...]) -> bytes:
    """Trace a network of pixels, uint8 (N, 1, S, S), with any N."""
    example = torch.zeros(2, 1, image_px, image_px, dtype=torch.uint8)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cxr-onnx-") as scratch,
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            # The exporter that PyTorch has by default since 2.9 takes 5 s for SqueezeNet where this
            # one takes 0.7 s, and needs a package more; this one warns that it is the older.
            warnings.simplefilter("ignore")
            file = Path(scratch, "model.onnx")
            torch.onnx.export(
                network.eval(),
                (example,),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=list(outputs),
                dynamic_axes={name: {0: "n"} for name in ("pixels", *outputs)},
            )
            return file.read_bytes()
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"the network cannot be written as ONNX ({reason}).") from None


def _check(content: bytes, model: Classifier | Ensemble, recipe: Recipe) -> None:
    """Compare the outputs of an ONNX file with PyTorch's, on noise and on smooth images."""
    pixels = _examples(recipe.image_px)
    images = transforms.normalize(torch.from_numpy(pixels), recipe.normalization)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        scores = model.score(images), model.score(images * (1 + PERTURBATION * noise))
    expected = dict(zip(OUTPUTS, zip(*scores, strict=True), strict=False))
    session = open_session(content, torch.get_num_threads())
    actual = session.run(list(expected), {"pixels": pixels})
    for (name, (exact, perturbed)), array in zip(expected.items(), actual, strict=True):
        largest = float(exact.abs().max())
        accepted = max(TOLERANCE * max(1.0, largest), float((perturbed - exact).abs().max()))
        difference = float(np.abs(array - exact.numpy()).max())
        if not difference <= accepted:
            raise CheckpointError(
                f"the network computes other {name} in ONNX Runtime than in PyTorch: by up to"
                f" {difference:.2g}, where the largest is {largest:.2g}."
            )


def _examples(image_px: int) -> NDArray[np.uint8]:
    """Noise, a smooth image, and an even one: uint8 (3, 1, S, S)."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (image_px, image_px))
    axis = np.linspace(0, 3 * np.pi, image_px)
    smooth = 127.5 + 60 * np.sin(axis)[:, None] + 60 * np.cos(axis)[None, :]
    even = np.full((image_px, image_px), 90)
    return np.stack([noise, smooth, even]).astype(np.uint8)[:, None]
