"""Backbones, heads and pretrained weights.

A classifier is a torchvision network's convolutional part (`.features`) and a head of dense layers.
The leading convolutions can take pretrained weights, and can stay frozen; what is frozen forms a
prefix that is run once over a data set (`cxr.features`), the rest is trained.
"""

import copy
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from cxr import storage
from cxr.errors import SettingsError, WeightsError
from cxr.labels import CLASSES
from cxr.models import weights
from cxr.recipes import Convolutions, Recipe

State = Mapping[str, torch.Tensor]

Outputs = TypeVar("Outputs", torch.Tensor, NDArray[np.float32])

_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")


class Classifier(nn.Module):
    """A backbone and a head, cut where the frozen part ends.

    `forward(images)` is `tail(prefix(images))`; images are float32 (N, 3, H, W) as
    `transforms.normalize` gives them, logits float32 (N, 2) in the order of `labels.CLASSES`.
    """

    def __init__(self, backbone: nn.Sequential, head: nn.Sequential, num_frozen: int) -> None:
        super().__init__()
        self.features = backbone
        self.head = head
        self.num_frozen = num_frozen
        """Leading layers of backbone and head together that give the same maps in every epoch."""

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The layers of backbone and head in order, by the names of the state dict."""
        return {
            f"{part}.{name}": layer
            for part in ("features", "head")
            for name, layer in getattr(self, part).named_children()
        }

    @property
    def prefix(self) -> nn.Sequential:
        """The frozen part: images (N, 3, H, W) to maps, or to pooled numbers."""
        return nn.Sequential(*list(self.layers.values())[: self.num_frozen])

    def prefix_shape(self, image_px: int) -> tuple[int, ...]:
        """Shape of one image after the frozen part."""
        with torch.no_grad():
            probe = torch.empty(1, 3, image_px, image_px, device="meta")
            return tuple(copy.deepcopy(self.prefix).to("meta")(probe).shape[1:])

    @property
    def tail(self) -> nn.Sequential:
        """The trained part: what `prefix` gives to logits (N, 2)."""
        return nn.Sequential(*list(self.layers.values())[self.num_frozen :])

    def states(self, *, frozen: bool) -> dict[str, torch.Tensor]:
        """The tensors of the frozen prefix, or of all that follows it, by state dict names."""
        prefix = tuple(f"{name}." for name in list(self.layers)[: self.num_frozen])
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(prefix) == frozen
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, 2) of normalized images (N, 3, H, W)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        """As `nn.Module.train`, but frozen batch norms and dropouts stay in evaluation mode."""
        super().train(mode)
        for module in self.features.modules():
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        self.prefix.eval()
        return self


class LogitLayer(nn.Linear):
    """The last dense layer, float32 under `autocast` too: numbers of 8 bits would make ties."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def build(recipe: Recipe) -> Classifier:
    """The classifier of a recipe with its random start, the same for the same seed.

    Convolutions start as He et al. 2015 (arXiv 1502.01852) propose, so that deep networks without
    batch norm pass signals on; dense layers as PyTorch does.

    Raises:
        SettingsError: the network is unknown, has no `.features`, or has fewer convolutions than
            the recipe names, or the image is too small for it.
    """
    model = _skeleton(recipe).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        _initialize(model)
    return model


def check(recipe: Recipe) -> None:
    """Raise what `build` would raise, without spending memory on weights."""
    _skeleton(recipe)


def leading_convolutions(
    backbone: nn.Module, count: Convolutions, network: str
) -> list[tuple[str, nn.Module]]:
    """The modules with weights up to the `count`-th convolution and what normalizes it, by name."""
    modules = [(n, m) for n, m in backbone.named_modules() if list(m.parameters(recurse=False))]
    positions = [i for i, (_, m) in enumerate(modules) if isinstance(m, nn.Conv2d)]
    if count == "all":
        return modules
    if count > len(positions):
        raise SettingsError(f"{network} has {len(positions)} convolutions, not {count}.")
    end = positions[count] if count < len(positions) else len(modules)
    return modules[:end]


def load_pretrained(model: Classifier, recipe: Recipe, state: State, source: str) -> list[str]:
    """Copy the weights of the recipe's leading convolutions from a torchvision state dict.

    Args:
        model: as `build` made it; changed in place.
        recipe: says the network and how many convolutions.
        state: tensors by torchvision's names, `features.0.weight` and so on; more than is needed
            may stand there.
        source: where the state came from, for errors.

    Returns:
        The names that were copied.

    Raises:
        WeightsError: a name is missing or a shape differs; nothing is copied then.
    """
    wanted: dict[str, torch.Tensor] = {}
    for name, module in leading_convolutions(model.features, recipe.pretrained, recipe.backbone):
        for key, tensor in module.state_dict(keep_vars=True).items():
            if key != "num_batches_tracked":
                wanted[f"features.{name}.{key}"] = tensor
    if missing := [key for key in wanted if key not in state]:
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        count = recipe.pretrained
        which = "every convolution" if count == "all" else f"convolutions 1 to {count}"
        raise WeightsError(
            f"{source}: {recipe.name} wants {which} of {recipe.backbone}, but {len(missing)} of"
            f" {len(wanted)} tensors are not among the {len(state)} in the file: {shown}. Give a"
            " complete file as --weights, or lower --pretrained and --frozen."
        )
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise WeightsError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, {recipe.backbone} needs"
                f" {tuple(tensor.shape)}. Is the file of another network?"
            )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(state[key])
    return list(wanted)


def read_weights(source: str, backbone: str, cache: str) -> tuple[State, str]:
    """Read a weights file, fetching the publisher's first where `source` says `imagenet`.

    Args:
        source: `"imagenet"`, or a path or URI of a .safetensors or .pth file.
        backbone: whose weights `imagenet` means.
        cache: folder or bucket prefix where fetched files are kept, below `weights/`.

    Returns:
        The tensors by name, and the place that they were read from.

    Raises:
        WeightsError: unreachable, unreadable, or of another form.
    """
    place = weights.imagenet_weights(backbone, cache) if source == "imagenet" else source
    data = storage.read_bytes(place)
    try:
        if place.endswith(".safetensors"):
            state = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # Unpickling garbage raises nearly anything.
        raise WeightsError(
            f"{place}: not a weights file ({type(error).__name__}). Give .safetensors, or .pth with"
            " a plain state dict."
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{place}: not a state dict of tensors by name.")
    return {_DENSENET_KEY.sub(r"\1\2.", key): value for key, value in state.items()}, place


def trained_state(model: Classifier, cached: bool) -> dict[str, torch.Tensor]:
    """The tensors that training may change: all, or where features are cached the tail's."""
    return model.states(frozen=False) if cached else dict(model.state_dict())


def digest(state: State) -> str:
    """SHA-256 of tensors with their names, in hexadecimal; the same wherever they came from."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        # As bytes, since NumPy has no bfloat16.
        sha.update(state[name].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def logit(outputs: Outputs) -> Outputs:
    """Log-odds of pneumonia, float32 (N,), from the classifier's two outputs, float32 (N, 2)."""
    return outputs[:, 1] - outputs[:, 0]


def _features(network: str) -> nn.Sequential:
    known = torchvision.models.list_models(module=torchvision.models)
    if network not in known:
        usable = [n for n in known if n.startswith(("alexnet", "vgg", "squeeze", "dense"))]
        raise SettingsError(
            f"unknown network {network!r}. Choices: {', '.join(usable)}, and any other torchvision"
            " network with a .features part."
        )
    features = getattr(torchvision.models.get_model(network, weights=None), "features", None)
    if not isinstance(features, nn.Sequential):
        raise SettingsError(
            f"{network} has no .features part, so it cannot be a backbone. Choose alexnet, vgg16,"
            " squeezenet1_1, densenet121, ..."
        )
    for module in features.modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if held and not hasattr(module, "reset_parameters"):
            raise SettingsError(
                f"{network} cannot be a backbone: its {type(module).__name__} holds weights that"
                " are no convolution's, dense layer's or normalization's. Choose alexnet, vgg16,"
                " squeezenet1_1, densenet121, ..."
            )
    return features


def _skeleton(recipe: Recipe) -> Classifier:
    with torch.device("meta"):
        backbone = _features(recipe.backbone)
        leading_convolutions(backbone, recipe.pretrained, recipe.backbone)
        for _, module in leading_convolutions(backbone, recipe.frozen, recipe.backbone):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
        head = _head(recipe, _map_shape(backbone, recipe), isinstance(backbone[-1], nn.BatchNorm2d))
        model = Classifier(backbone, head, 0)
    if recipe.frozen != 0:
        for layer in model.layers.values():
            if isinstance(layer, nn.Dropout) or any(p.requires_grad for p in layer.parameters()):
                break
            model.num_frozen += 1
    return model.train()


def _map_shape(backbone: nn.Sequential, recipe: Recipe) -> tuple[int, int, int]:
    try:
        with torch.no_grad():
            probe = torch.empty(1, 3, recipe.image_px, recipe.image_px, device="meta")
            channels, height, width = backbone.eval()(probe).shape[1:]
    except RuntimeError as error:
        raise SettingsError(
            f"image_px: {recipe.image_px} is too small for {recipe.backbone} ({error})."
        ) from None
    return channels, height, width


def _head(recipe: Recipe, maps: tuple[int, int, int], rectify: bool) -> nn.Sequential:
    channels, height, width = maps
    layers: list[nn.Module] = []
    if rectify:  # DenseNet's features end in a batch norm; its forward applies the ReLU.
        layers.append(nn.ReLU())
    if recipe.pooling == "average":
        layers.append(nn.AdaptiveAvgPool2d(1))
        height = width = 1
    layers.append(nn.Flatten())
    size = channels * height * width
    for width_out, rate in zip((*recipe.hidden, None), recipe.dropout, strict=True):
        if rate:
            layers.append(nn.Dropout(rate))
        if width_out is None:
            layers.append(LogitLayer(size, len(CLASSES)))
        else:
            layers += [nn.Linear(size, width_out), nn.ReLU()]
            size = width_out
    return nn.Sequential(*layers)


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif _owns_weights(module):
            module.reset_parameters()  # type: ignore[operator]


def _owns_weights(module: nn.Module) -> bool:
    own: Iterator[torch.Tensor] = module.parameters(recurse=False)
    return next(own, None) is not None and hasattr(module, "reset_parameters")
