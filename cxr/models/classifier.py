"""Classifiers: a backbone of the registry and a head of dense layers.

The leading convolutions can take pretrained weights, and can stay frozen; what is frozen forms a
prefix that is run once over a data set (`cxr.datasets.features`), and the rest is trained.
"""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from torch import nn

from cxr.errors import SettingsError
from cxr.labels import CLASSES
from cxr.models import backbones
from cxr.models.backbones import Backbone, Family
from cxr.recipes import Convolutions, Recipe

State = Mapping[str, torch.Tensor]


OUTPUTS: Final = ("logits", "features", "middle", "members")
"""Names of what `score` returns; a single classifier has the first three."""

WATCHED: Final = (1 / 4, 3 / 4)
"""Shares of the convolutions at which maps are taken for the output `middle`."""

_MOVING: Final = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Layers after which a map holds other places of the image than before."""


class Classifier(nn.Module):
    """A backbone and a head, cut where the frozen part ends.

    `forward(images)` equals `tail(prefix(images))`; images are float32 (N, 3, H, W) as returned by
    `transforms.normalize`, outputs float32 (N, 2) in the order of `labels.CLASSES`.
    """

    def __init__(self, features: nn.Sequential, head: nn.Sequential, num_frozen: int) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.num_frozen = num_frozen
        """Number of leading `layers` whose outputs are the same in every epoch."""

    @property
    def layers(self) -> dict[str, nn.Module]:
        """The blocks of the backbone and the layers of the head in order, by their names."""
        features = {f"features.{name}": block for name, block in backbones.blocks(self.features)}
        return features | {f"head.{name}": layer for name, layer in self.head.named_children()}

    def backbone(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules that published weights are for, a block after the layers in it, by name."""
        yield from _inside_out("features", self.features)
        if "norm" in dict(self.head.named_children()):
            yield "head.norm", self.head.get_submodule("norm")

    @property
    def num_pooled(self) -> int:
        """Number of leading `layers` before the dense ones, which give maps (N, C, H, W)."""
        layers = enumerate(self.layers.values())
        return next(index for index, layer in layers if isinstance(layer, nn.Flatten))

    @property
    def watched(self) -> tuple[int, ...]:
        """After how many of the leading `layers` the maps of the output `middle` are taken.

        Where a quarter and where three quarters of the convolutions before the dense layers are
        done, each after the layers that follow without convolution or pooling. Maps of low layers
        show noise and inverted gray levels, those of high ones a turned image. The last maps of a
        network that was trained as a whole tell the classes apart and little else: `docs/trust.md`
        has figures.
        """
        blocks = list(self.layers.values())[: self.num_pooled]
        done = np.cumsum([_count(block, nn.Conv2d) for block in blocks])
        numbers = []
        for share in WATCHED:
            number = int(np.searchsorted(done, share * done[-1])) + 1
            while number < len(blocks) and not _count(blocks[number], *_MOVING):
                number += 1
            numbers.append(number)
        return tuple(dict.fromkeys(numbers))

    def look(
        self, maps: torch.Tensor, start: int, end: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the layers from one to before another, by their numbers in `layers`.

        Args:
            maps: what the layers before `start` gave.
            start: number of the first layer.
            end: number of the layer after the last.

        Returns:
            The outputs of the last layer, and the maps at each of `watched` on the way, averaged
            over the image: (N, C) each.
        """
        seen = []
        for stop in [number for number in self.watched if start < number < end] + [end]:
            maps = self.part(start, stop)(maps)
            start = stop
            if stop in self.watched:
                seen.append(maps.mean(dim=(2, 3)))
        return maps, seen

    def part(self, start: int, end: int | None = None) -> nn.Sequential:
        """The layers from one to before another, by their numbers in `layers`."""
        return nn.Sequential(*list(self.layers.values())[start:end])

    @property
    def prefix(self) -> nn.Sequential:
        """The frozen part: images (N, 3, H, W) to maps, or to pooled features."""
        return self.part(0, self.num_frozen)

    def prefix_shape(self, image_px: int) -> tuple[int, ...]:
        """Shape of one image after the frozen part."""
        with torch.no_grad():
            probe = torch.empty(1, 3, image_px, image_px, device="meta")
            return tuple(copy.deepcopy(self.prefix).to("meta")(probe).shape[1:])

    @property
    def tail(self) -> nn.Sequential:
        """The trained part: outputs of `prefix` to outputs of the classifier (N, 2)."""
        return self.part(self.num_frozen)

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors by their names in a checkpoint."""
        return dict(self.state_dict())

    def states(self, *, frozen: bool) -> dict[str, torch.Tensor]:
        """The tensors of `prefix`, or those of `tail`, by their names in the state dict."""
        prefix = tuple(f"{name}." for name in list(self.layers)[: self.num_frozen])
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith(prefix) == frozen
        }

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs before softmax, float32 (N, 2), of normalized images (N, 3, H, W)."""
        outputs: torch.Tensor = self.head(self.features(images))
        return outputs

    def score(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What an exported network returns.

        Args:
            images: as for `forward`.

        Returns:
            The outputs of `forward`; the features, float32 (N, D): the input of the dense layers,
            averaged over the image; and the maps at `watched`, averaged and side by side: float32
            (N, E).
        """
        maps, seen = self.look(images, 0, self.num_pooled)
        return self.part(self.num_pooled)(maps), maps.mean(dim=(2, 3)), torch.cat(seen, dim=1)

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
    """The last dense layer, in float32 under `autocast` too.

    bfloat16 has 8 significant bits, so different images would often have equal scores.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def build(recipe: Recipe) -> Classifier:
    """The classifier of a recipe with its random start, the same for the same seed.

    Convolutions start as He et al. 2015 (arXiv 1502.01852) propose, so that deep networks without
    batch norm pass signals on; dense layers as PyTorch does.

    Raises:
        SettingsError: the backbone is not in the registry or has fewer convolutions than the recipe
            names, or the image is too small for it.
    """
    model = skeleton(recipe).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        _initialize(model, backbones.family(recipe.backbone))
    return model


def restore(recipe: Recipe, state: State) -> Classifier:
    """The classifier of a recipe with given tensors, without drawing a random start first.

    Args:
        recipe: of the classifier.
        state: tensors by their names, which are copied; parts that have none stay on the meta
            device, and cannot run.

    Raises:
        RuntimeError: a tensor has another name or shape than the classifier's.
    """
    model = skeleton(recipe)
    copies = {name: tensor.clone() for name, tensor in state.items()}
    unexpected = model.load_state_dict(copies, strict=False, assign=True).unexpected_keys
    if unexpected:
        raise RuntimeError(f"unexpected tensors: {', '.join(unexpected)}")
    return model


def check(recipe: Recipe) -> None:
    """Raise what `build` would raise, without spending memory on weights.

    Raises:
        SettingsError: as `build`, or there is nothing that could draw or run over several views.
    """
    model = skeleton(recipe)
    if recipe.views > 1 and recipe.augmentation == "none":
        raise SettingsError(
            f"views: {recipe.views} views need an augmentation that draws them. Give --augmentation"
            " acquisition, or leave --views out."
        )
    if recipe.views > 1 and not model.num_frozen:
        raise SettingsError(
            f"views: {recipe.views} views are of frozen layers, and this recipe trains all. Leave"
            " --views out: layers that are trained see a new view in every epoch."
        )


def leading_convolutions(
    model: Classifier, count: Convolutions, network: str
) -> list[tuple[str, nn.Module]]:
    """The backbone's modules with weights up to its `count`-th convolution and what normalizes it.

    Args:
        model: a classifier.
        count: a number of convolutions, or `"all"` for the whole backbone.
        network: the backbone's name, for the error.

    Returns:
        Names in the state dict, and modules.

    Raises:
        SettingsError: it has fewer convolutions.
    """
    modules = [(n, m) for n, m in model.backbone() if list(m.parameters(recurse=False))]
    if count == "all":
        return modules
    positions = [i for i, (_, m) in enumerate(modules) if isinstance(m, nn.Conv2d)]
    if count > len(positions):
        raise SettingsError(f"{network} has {len(positions)} convolutions, not {count}.")
    end = positions[count] if count < len(positions) else len(modules)
    return modules[:end]


def trained_state(model: Classifier, cached: bool) -> dict[str, torch.Tensor]:
    """The tensors that training may change: all, or those of the tail where features are cached."""
    return model.states(frozen=False) if cached else dict(model.state_dict())


def digest(state: State) -> str:
    """SHA-256 of tensors with their names, in hexadecimal, whatever their order and device."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        # As bytes, since NumPy has no bfloat16.
        sha.update(state[name].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _inside_out(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        yield from _inside_out(f"{name}.{child_name}", child)
    yield name, module


def skeleton(recipe: Recipe) -> Classifier:
    """A classifier without numbers, on the meta device: its layers, and which of them are frozen.

    Raises:
        SettingsError: the recipe cannot be built.
    """
    backbone = backbones.create(recipe.backbone)
    with torch.device("meta"):
        head = _head(recipe, backbone, _map_shape(backbone, recipe))
        model = Classifier(backbone.features, head, 0)
    leading_convolutions(model, recipe.pretrained, recipe.backbone)
    for _, module in leading_convolutions(model, recipe.frozen, recipe.backbone):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False
    if recipe.frozen != 0:
        for layer in model.layers.values():
            if isinstance(layer, nn.Dropout) or any(p.requires_grad for p in layer.parameters()):
                break
            model.num_frozen += 1
    return model.train()


def _map_shape(backbone: Backbone, recipe: Recipe) -> tuple[int, int, int]:
    try:
        with torch.no_grad():
            probe = torch.empty(1, 3, recipe.image_px, recipe.image_px, device="meta")
            channels, height, width = backbone.features.eval()(probe).shape[1:]
    except RuntimeError as error:
        raise SettingsError(
            f"image_px: {recipe.image_px} is too small for {recipe.backbone} ({error})."
        ) from None
    return channels, height, width


def _head(recipe: Recipe, backbone: Backbone, maps: tuple[int, int, int]) -> nn.Sequential:
    channels, height, width = maps
    layers: list[nn.Module] = []
    if backbone.activation is not None:
        layers.append(backbone.activation)
    if recipe.pooling == "average":
        layers.append(nn.AdaptiveAvgPool2d(1))
        height = width = 1
    if backbone.norm is not None:
        layers.append(backbone.norm)
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
    names = ("norm" if layer is backbone.norm else str(i) for i, layer in enumerate(layers))
    return nn.Sequential(OrderedDict(zip(names, layers, strict=True)))


def _initialize(model: nn.Module, family: Family) -> None:
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif own and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        else:
            for name, parameter in own.items():
                nn.init.constant_(parameter, family.constants[name])


def _count(module: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(part, kinds) for part in module.modules())
