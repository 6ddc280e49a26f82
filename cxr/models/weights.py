"""Pretrained weights from torchvision's publisher, once, checked, into a cache folder."""

import io
import posixpath
import re
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
import torchvision

from cxr import storage
from cxr.download.transfer import Origin, fetch, sha256
from cxr.errors import DownloadError, SettingsError, WeightsError

_HASH: Final = re.compile(r"-([0-9a-f]{8,})\.pth$")
_FEATURES: Final = "features."
"""Names of the convolutional part's tensors begin so in every network that can be a backbone."""


def imagenet_url(backbone: str) -> str:
    """The address at which torchvision publishes a network's ImageNet weights.

    Raises:
        SettingsError: torchvision publishes none.
    """
    try:
        weights = torchvision.models.get_model_weights(backbone)
        return str(weights["IMAGENET1K_V1"].url)
    except (KeyError, ValueError):
        raise SettingsError(
            f"torchvision publishes no ImageNet weights for {backbone!r}. Give --weights FILE or"
            " --weights none."
        ) from None


def imagenet_weights(backbone: str, cache: str, mirror: str = "") -> str:
    """The cached file of a network's ImageNet weights, fetched first if need be.

    Args:
        backbone: torchvision's name of the network.
        cache: folder or bucket prefix; the file lies below `weights/` under its published name.
        mirror: address of a folder that holds the published files, instead of the publisher's.

    Returns:
        The file's path or URI.

    Raises:
        WeightsError: the publisher cannot be reached, or sends something else.

    The name of a published file carries the first digits of its SHA-256, which is checked.
    """
    url = imagenet_url(backbone)
    name = posixpath.basename(url)
    if mirror:
        url = f"{mirror.rstrip('/')}/{name}"
    place = storage.join(storage.absolute(cache), "weights", name)
    if storage.kind(place) == "file":
        return place
    in_bucket = "://" in place
    here = storage.scratch(name) if in_bucket else Path(place)
    advice = f"Put the file at {place}, or give it as --weights FILE (or --weights none)."
    try:
        fetch(Origin(url, sha256=_published_hash(name)), here, advice)
    except DownloadError as error:
        raise WeightsError(str(error)) from None
    if in_bucket:
        storage.move_in(here, place)
    return place


def verified_weights(backbone: str, cache: str, mirror: str = "") -> str:
    """`imagenet_weights`, after a file that is there already was checked against its name.

    Raises:
        WeightsError: that file is damaged; as `imagenet_weights`.
    """
    name = posixpath.basename(imagenet_url(backbone))
    place = storage.join(storage.absolute(cache), "weights", name)
    if storage.kind(place) == "file":
        with storage.open_file(place) as file:
            found = sha256(file)
        if not found.startswith(_published_hash(name)):
            raise WeightsError(
                f"{place}: has SHA-256 {found[:16]}..., not {_published_hash(name)}...: damaged, or"
                " another file. Delete it, and the same command fetches it again."
            )
    return imagenet_weights(backbone, cache, mirror)


def features_only(place: str) -> str:
    """Write the convolutional part of a weights file beside it, as safetensors.

    Args:
        place: a published file, `NAME.pth`.

    Returns:
        The new file, `NAME-features.safetensors`; one that is there already stays.

    Raises:
        WeightsError: the file has no such part.
    """
    target = place.removesuffix(".pth") + "-features.safetensors"
    if storage.kind(target) != "file":
        data = io.BytesIO(storage.read_bytes(place))
        state = torch.load(data, map_location="cpu", weights_only=True)
        part = {key: state[key].contiguous() for key in state if key.startswith(_FEATURES)}
        if not part:
            raise WeightsError(
                f"{place}: has no tensors {_FEATURES}*, so it is no backbone's. Choose alexnet,"
                " vgg16, squeezenet1_1, densenet121, ..."
            )
        storage.write_bytes(target, safetensors.torch.save(part))
    return target


def _published_hash(name: str) -> str:
    match = _HASH.search(name)
    return match[1] if match else ""
