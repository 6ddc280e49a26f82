"""Pretrained weights: fetched from torchvision's publisher, read, and loaded into a classifier."""

import io
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
import torchvision

from cxr import storage
from cxr.download.transfer import Origin, fetch, sha256
from cxr.errors import DownloadError, SettingsError, WeightsError
from cxr.models import backbones
from cxr.models.classifier import Classifier, State, leading_convolutions
from cxr.recipes import Recipe

PHANTOM_BACKBONE: Final = "squeezenet1_1"

PHANTOM_WEIGHTS: Final = str(Path(__file__).with_name("phantoms-squeezenet1_1.safetensors"))
"""The convolutions of `PHANTOM_BACKBONE`, float16, trained from a random start on synthetic
radiographs alone by `python -m benchmarks.phantom_weights`."""

_HASH: Final = re.compile(r"-([0-9a-f]{8,})\.pth$")

# The published files of DenseNets are from before PyTorch 0.4, whose names had one dot more.
_DENSENET_KEY: Final = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")


def imagenet_url(backbone: str) -> str:
    """The address at which torchvision publishes a backbone's ImageNet weights.

    Raises:
        SettingsError: the backbone is not in the registry, or torchvision publishes none for it.
    """
    backbones.family(backbone)
    try:
        return str(torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"].url)
    except KeyError:
        raise SettingsError(
            f"torchvision publishes no ImageNet weights for {backbone!r}. Give --weights FILE or"
            " --weights none."
        ) from None


def imagenet_weights(backbone: str, cache: str, mirror: str = "") -> str:
    """The cached file of a backbone's ImageNet weights, fetched first if it is not there.

    Args:
        backbone: torchvision's name of the network.
        cache: folder or bucket prefix; the file is kept below `weights/` under its published name.
        mirror: address of a folder that holds the published files, instead of the publisher's.

    Returns:
        The file's path or URI.

    Raises:
        SettingsError: as `imagenet_url`.
        WeightsError: the publisher cannot be reached, or the file is not the published one.

    The name of a published file contains the first digits of its SHA-256, which are checked.
    """
    url = imagenet_url(backbone)
    name = posixpath.basename(url)
    if mirror:
        url = f"{mirror.rstrip('/')}/{name}"
    uri = storage.join(storage.absolute(cache), "weights", name)
    if storage.kind(uri) == "file":
        return uri
    in_bucket = "://" in uri
    local = storage.scratch(name) if in_bucket else Path(uri)
    advice = f"Put the file at {uri}, or give it as --weights FILE (or --weights none)."
    try:
        fetch(Origin(url, sha256=_published_hash(name)), local, advice)
    except DownloadError as error:
        raise WeightsError(str(error)) from None
    if in_bucket:
        storage.move_in(local, uri)
    return uri


def verified_weights(backbone: str, cache: str, mirror: str = "") -> str:
    """As `imagenet_weights`, but a file that exists already is checked against its name first.

    Raises:
        WeightsError: the existing file is damaged; or as `imagenet_weights`.
    """
    name = posixpath.basename(imagenet_url(backbone))
    uri = storage.join(storage.absolute(cache), "weights", name)
    if storage.kind(uri) == "file":
        with storage.open_file(uri) as file:
            actual = sha256(file)
        if not actual.startswith(_published_hash(name)):
            raise WeightsError(
                f"{uri}: has SHA-256 {actual[:16]}..., not {_published_hash(name)}...: damaged, or"
                " another file. Delete it, and the same command fetches it again."
            )
    return imagenet_weights(backbone, cache, mirror)


def features_only(uri: str, backbone: str) -> str:
    """Write the backbone's part of a published weights file beside it, as safetensors.

    Args:
        uri: a published file, `NAME.pth`.
        backbone: the network that it is of.

    Returns:
        The new file, `NAME-features.safetensors`, with the published keys; an existing one is kept.

    Raises:
        WeightsError: the file holds no tensor of the backbone, or is not a weights file.
    """
    target = uri.removesuffix(".pth") + "-features.safetensors"
    if storage.kind(target) != "file":
        family = backbones.family(backbone)
        state = _read(uri)
        part = {key: state[key].contiguous() for key in state if family.is_published_key(key)}
        if not part:
            raise WeightsError(f"{uri}: none of its {len(state)} tensors is of {backbone}.")
        storage.write_bytes(target, safetensors.torch.save(part))
    return target


def read_weights(source: str, backbone: str, cache: str) -> tuple[State, str]:
    """Read a weights file; the published one, fetched if necessary, where `source` is `imagenet`.

    Args:
        source: `"imagenet"`, `"phantoms"` for the file of `PHANTOM_BACKBONE` that is part of this
            package, or a path or URI of a .safetensors or .pth file.
        backbone: the network whose weights `imagenet` means.
        cache: folder or bucket prefix where fetched files are kept, below `weights/`.

    Returns:
        The tensors by torchvision's names, and the path or URI of the file.

    Raises:
        SettingsError: as `imagenet_url`.
        StorageError: the file cannot be read.
        WeightsError: the published file cannot be fetched, or the file is not a state dict.
    """
    if source == "phantoms":
        return _read(PHANTOM_WEIGHTS), PHANTOM_WEIGHTS
    uri = imagenet_weights(backbone, cache) if source == "imagenet" else source
    return {_DENSENET_KEY.sub(r"\1\2.", key): value for key, value in _read(uri).items()}, uri


def load_pretrained(model: Classifier, recipe: Recipe, state: State, source: str) -> list[str]:
    """Copy the weights of the recipe's leading convolutions from a torchvision state dict.

    Args:
        model: as `classifier.build` made it; changed in place.
        recipe: names the backbone and how many convolutions.
        state: tensors by torchvision's names, such as `features.0.weight` of a VGG and
            `layer1.0.conv1.weight` of a ResNet; others are ignored.
        source: where the state came from, for errors.

    Returns:
        The keys of `state` that were copied.

    Raises:
        WeightsError: a key is missing or a shape differs; nothing is copied then.
    """
    family = backbones.family(recipe.backbone)
    targets: dict[str, torch.Tensor] = {}
    for name, module in leading_convolutions(model, recipe.pretrained, recipe.backbone):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in own:
            if key != "num_batches_tracked":
                targets[family.published_key(f"{name}.{key}")] = tensor
    if missing := [key for key in targets if key not in state]:
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        count = recipe.pretrained
        which = "every convolution" if count == "all" else f"convolutions 1 to {count}"
        raise WeightsError(
            f"{source}: {recipe.name} needs {which} of {recipe.backbone}, but {len(missing)} of"
            f" {len(targets)} tensors are not among the {len(state)} in the file: {shown}. Give a"
            " complete file as --weights, or lower --pretrained and --frozen."
        )
    for key, tensor in targets.items():
        if state[key].shape != tensor.shape:
            raise WeightsError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, {recipe.backbone} needs"
                f" {tuple(tensor.shape)}. Is the file of another network?"
            )
    with torch.no_grad():
        for key, tensor in targets.items():
            tensor.copy_(state[key])
    return list(targets)


def _read(uri: str) -> State:
    content = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            state: object = safetensors.torch.load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # Unpickling arbitrary bytes raises nearly anything.
        raise WeightsError(
            f"{uri}: not a weights file ({type(error).__name__}). Give .safetensors, or .pth with"
            " a plain state dict."
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{uri}: not a state dict of tensors by name.")
    return state


def _published_hash(name: str) -> str:
    match = _HASH.search(name)
    return match[1] if match else ""
