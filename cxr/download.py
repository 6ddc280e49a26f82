"""Fetch pretrained weights from their publisher, once, checked, into a cache folder."""

import hashlib
import posixpath
import re
from typing import Final

import requests
import torchvision

from cxr import storage
from cxr.errors import SettingsError, WeightsError

TIMEOUT_S: Final = (10.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""

_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")


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


def imagenet_weights(backbone: str, cache: str) -> str:
    """The cached file of a network's ImageNet weights, fetched first if need be.

    Args:
        backbone: torchvision's name of the network.
        cache: folder or bucket prefix; the file lies below `weights/` under its published name.

    Returns:
        The file's path or URI.

    Raises:
        WeightsError: the publisher cannot be reached, or sends something else.

    The name of a published file carries the first digits of its SHA-256, which is checked.
    """
    url = imagenet_url(backbone)
    name = posixpath.basename(url)
    place = storage.join(storage.absolute(cache), "weights", name)
    if storage.kind(place) == "file":
        return place
    way_out = f"Put the file at {place}, or give it as --weights FILE (or --weights none)."
    try:
        answer = requests.get(url, timeout=TIMEOUT_S)
        answer.raise_for_status()
    except requests.RequestException as error:
        cause = (
            f"HTTP {error.response.status_code}"
            if error.response is not None
            else type(error).__name__
        )
        raise WeightsError(f"{url}: cannot be fetched ({cause}). {way_out}") from None
    found = hashlib.sha256(answer.content).hexdigest()
    expected = _HASH.search(name)
    if expected and not found.startswith(expected[1]):
        raise WeightsError(
            f"{url}: {len(answer.content):,} bytes with SHA-256 {found[:16]}..., not"
            f" {expected[1]}...: another file, or a proxy's page. {way_out}"
        )
    storage.write_bytes(place, answer.content)
    return place
