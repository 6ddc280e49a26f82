"""The registry of backbones: torchvision's classification networks, up to their pooling.

A row of `FAMILIES` says what torchvision's class computes before it pools. How a network is cut,
frozen, started and given published weights follows from that row, so a row is all that a new family
needs. Not in the registry are networks that this does not describe: those of the Inception kind
expect inputs of another scale with their published weights, transformers have a single convolution.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from cxr.errors import SettingsError

NAMES_URL: Final = "https://docs.pytorch.org/vision/stable/models.html#classification"


@dataclass(frozen=True)
class Family:
    """Networks that share one class of torchvision."""

    pattern: str
    """Names of the networks; `*` stands for any characters."""
    layers: tuple[str, ...] = ("features",)
    """Attributes that the class's `forward` applies, in order, up to the pooling."""
    activation: type[nn.Module] | None = None
    """What `forward` applies after them without holding it in an attribute."""
    norm: str = ""
    """Path of the normalization that `forward` applies to the pooled maps."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Start values, by name, of parameters that a block owns itself, outside of any layer."""

    def published_key(self, name: str) -> str:
        """The key in torchvision's published files of a tensor or module of a `Classifier`.

        Args:
            name: as in the classifier's state dict, below `features.` or `head.norm.`.
        """
        if name.startswith("head.norm."):
            return f"{self.norm}.{name.removeprefix('head.norm.')}"
        return name if self.layers == ("features",) else name.removeprefix("features.")

    def is_published_key(self, key: str) -> bool:
        """Whether a key of a published file belongs to the backbone, not to torchvision's head."""
        return key.startswith(tuple(f"{path}." for path in (*self.layers, self.norm) if path))


_RESNET: Final = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")

FAMILIES: Final = (
    Family("alexnet"),
    Family("convnext_*", norm="classifier.0", constants={"layer_scale": 1e-6}),
    Family("densenet*", activation=nn.ReLU),
    Family("efficientnet_*"),
    Family("mnasnet*", ("layers",)),
    Family("mobilenet_v*"),
    Family("regnet_*", ("stem", "trunk_output")),
    Family("resnet*", _RESNET),
    Family("resnext*", _RESNET),
    Family("shufflenet_v2_*", ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")),
    Family("squeezenet*"),
    Family("vgg*"),
    Family("wide_resnet*", _RESNET),
)
"""All that can be a backbone, in the order of the alphabet."""


@dataclass(frozen=True)
class Backbone:
    """A network of the registry without weights, on the meta device."""

    features: nn.Sequential
    """Images (N, 3, H, W) to maps (N, C, H, W), children named as torchvision's attributes."""
    activation: nn.Module | None
    """Applied to the maps."""
    norm: nn.Module | None
    """Applied to the pooled maps."""


def names() -> list[str]:
    """All backbones, by torchvision's names, sorted."""
    known = torchvision.models.list_models(module=torchvision.models)
    return [name for name in known if any(fnmatchcase(name, f.pattern) for f in FAMILIES)]


def family(name: str) -> Family:
    """The registry's row for a backbone.

    Raises:
        SettingsError: there is none; names the families, or the backbones of the one that is meant.
    """
    row = next((row for row in FAMILIES if fnmatchcase(name, row.pattern)), None)
    known = names()
    if row is not None and name in known:
        return row
    if row is None:
        choices = ", ".join(row.pattern for row in FAMILIES) + f"; all names: {NAMES_URL}"
    else:
        choices = ", ".join(other for other in known if fnmatchcase(other, row.pattern)) + "."
    raise SettingsError(f"backbone: {name!r} is not available. Choices: {choices}")


def create(name: str) -> Backbone:
    """Build a backbone's layers without spending memory on weights.

    Raises:
        SettingsError: it is not in the registry.
    """
    row = family(name)
    with _WeightsOnMeta():
        network = torchvision.models.get_model(name, weights=None).to("meta")
    features = network.get_submodule(row.layers[0])
    if row.layers != ("features",):
        features = nn.Sequential(OrderedDict((path, getattr(network, path)) for path in row.layers))
    return Backbone(
        features,
        activation=row.activation() if row.activation else None,
        norm=network.get_submodule(row.norm) if row.norm else None,
    )


def blocks(features: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The units between which a network can be cut, in order, with their names.

    A sequence of blocks is divided into its blocks, at any depth; a block, and a sequence of plain
    layers such as convolution, batch norm and activation, stays whole.
    """
    for name, child in features.named_children():
        if _is_sequence_of_blocks(child):
            yield from ((f"{name}.{inner}", block) for inner, block in blocks(child))
        else:
            yield name, child


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    is_sequence = getattr(type(module), "forward", None) is nn.Sequential.forward
    return is_sequence and any(list(part.children()) for part in module.children())


class _WeightsOnMeta(TorchFunctionMode):
    """Puts what layers allocate on the meta device, and nothing else.

    Under `torch.device("meta")` RegNet's arithmetic of its widths would be there as well, and fail.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        on_meta = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **(dict(kwargs or {}) | on_meta))
