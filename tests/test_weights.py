"""Weights are fetched once, checked and kept; a local server plays the publisher."""

import dataclasses
import hashlib
import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from cxr import storage
from cxr.download import transfer
from cxr.errors import SettingsError, WeightsError
from cxr.models import classifier, weights
from cxr.recipes import RECIPES
from tests.support.publisher import Publisher, serving
from tests.support.s3 import Store

CONTENT = b"weights of a network" * 1000
NAME = f"alexnet-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "wait", lambda _: None)
    with serving(Publisher({f"models/{NAME}": CONTENT}, content_type="binary/octet-stream")) as it:
        publish(monkeypatch, f"{it.url}/models/{NAME}")
        yield it


def publish(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(weights, "imagenet_url", lambda _: url)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_addresses_are_torchvisions() -> None:
    url = weights.imagenet_url("alexnet")
    assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


def test_every_backbone_that_a_recipe_can_name_has_an_address_and_a_hash() -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    backbones = [name for name in known if name.startswith(("alexnet", "vgg", "squeeze", "dense"))]
    assert len(backbones) == 15
    assert {recipe.backbone for recipe in RECIPES.values()} <= set(backbones)
    for name in backbones:
        assert weights._HASH.search(weights.imagenet_url(name))


@pytest.mark.parametrize("backbone", ["vgg17", "mnist"])
def test_a_network_without_published_weights_is_refused(backbone: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"no ImageNet weights for '{backbone}'\. Give --weights FILE"
    ):
        weights.imagenet_url(backbone)


def test_weights_are_fetched_once_and_kept(tmp_path: Path, publisher: Publisher) -> None:
    publisher.cuts = [3_000, 9_000]
    place = weights.imagenet_weights("alexnet", str(tmp_path))
    assert place == f"{tmp_path}/weights/{NAME}"
    assert Path(place).read_bytes() == CONTENT
    num_requests = len(publisher.requests)
    for get in (weights.imagenet_weights, weights.verified_weights):
        assert get("alexnet", str(tmp_path)) == place
    assert len(publisher.requests) == num_requests
    assert {each["path"] for each in publisher.requests} == {f"/models/{NAME}"}
    assert names(tmp_path) == [NAME]


def test_a_mirror_is_asked_instead(tmp_path: Path, publisher: Publisher) -> None:
    publisher.files = {f"other/{NAME}": CONTENT}
    place = weights.imagenet_weights("alexnet", str(tmp_path), f"{publisher.url}/other/")
    assert Path(place).read_bytes() == CONTENT
    assert [each["path"] for each in publisher.requests] == [f"/other/{NAME}"]


def test_weights_go_into_a_bucket_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher, s3: Store
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    publisher.cuts = [3_000]
    cache = f"{s3.bucket()}/cache"
    for get in (weights.imagenet_weights, weights.verified_weights):
        place = get("alexnet", cache)
        assert place == f"{cache}/weights/{NAME}"
        assert storage.read_bytes(place) == CONTENT
    assert len(publisher.requests) == 2
    assert names(tmp_path) == []


def test_a_kept_file_that_is_damaged_is_said_so(tmp_path: Path, publisher: Publisher) -> None:
    place = Path(weights.imagenet_weights("alexnet", str(tmp_path)))
    place.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"has SHA-256 .*: damaged, or another.* Delete it"):
        weights.verified_weights("alexnet", str(tmp_path))


def test_fetched_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    torch.save({"features.0.weight": torch.arange(3.0)}, tmp_path / "a.pth")
    publisher.files["a.pth"] = (tmp_path / "a.pth").read_bytes()
    publish(monkeypatch, f"{publisher.url}/a.pth")
    state, place = classifier.read_weights("imagenet", "alexnet", str(tmp_path / "cache"))
    assert place == f"{tmp_path}/cache/weights/a.pth"
    assert state["features.0.weight"].tolist() == [0.0, 1.0, 2.0]


def test_another_file_than_the_published_is_kept_aside_and_not_used(
    tmp_path: Path, publisher: Publisher
) -> None:
    publisher.files[f"models/{NAME}"] = b"something else"
    with pytest.raises(WeightsError, match=r"14 bytes with SHA-256 .*Kept aside as .*\.wrong") as e:
        weights.imagenet_weights("alexnet", str(tmp_path))
    assert f"Put the file at {tmp_path}/weights/{NAME}, or give it as --weights FILE" in str(
        e.value
    )
    assert names(tmp_path) == [f"{NAME}.wrong"]


def test_a_proxys_page_is_not_taken_for_weights(tmp_path: Path, publisher: Publisher) -> None:
    publisher.content_type = "text/html"
    with pytest.raises(WeightsError, match=r"a web page came instead of the file"):
        weights.imagenet_weights("alexnet", str(tmp_path))
    assert names(tmp_path) == []


def test_weights_that_are_not_there_are_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    publish(monkeypatch, f"{publisher.url}/b.pth")
    with pytest.raises(WeightsError, match=r"b\.pth: cannot be fetched \(HTTP 404\): nothing is"):
        weights.imagenet_weights("alexnet", str(tmp_path))
    assert names(tmp_path) == []


def test_an_unreachable_publisher_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: a connection is refused.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{NAME}"
        publish(monkeypatch, url)
        with pytest.raises(WeightsError) as caught:
            weights.imagenet_weights("alexnet", str(tmp_path))
    assert str(caught.value) == (
        f"{url}: cannot be fetched (ConnectionError, 6 times in a row). Put the file at"
        f" {tmp_path}/weights/{NAME}, or give it as --weights FILE (or --weights none)."
    )


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "densenet121"])
def test_the_convolutional_part_alone_loads_as_the_whole_file_does(
    tmp_path: Path, backbone: str
) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(backbone, weights=None)
    state = network.state_dict()
    if backbone == "densenet121":  # As published: names from before PyTorch 0.4.
        state = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", k): v for k, v in state.items()}
        assert "features.denseblock1.denselayer1.conv.1.weight" in state
    whole = tmp_path / f"{backbone}-00000000.pth"
    torch.save(state, whole)
    part = weights.features_only(str(whole))
    assert part == f"{tmp_path}/{backbone}-00000000-features.safetensors"
    assert weights.features_only(str(whole)) == part
    kept = safetensors.torch.load_file(part)
    assert set(kept) == {key for key in state if key.startswith("features.")}
    assert len(kept) < len(state)
    recipe = dataclasses.replace(
        RECIPES["best"], backbone=backbone, pretrained="all", image_px=64, hidden=(), dropout=(0.0,)
    )
    loaded = []
    for file in (str(whole), part):
        model = classifier.build(recipe)
        read, _ = classifier.read_weights(file, backbone, str(tmp_path))
        classifier.load_pretrained(model, recipe, read, file)
        loaded.append(model.features.state_dict())
    wanted = network.features.state_dict()
    assert wanted.keys() == loaded[0].keys() == loaded[1].keys()
    assert all(torch.equal(each[key], wanted[key]) for each in loaded for key in wanted)


def test_a_file_without_a_convolutional_part_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"classifier.weight": torch.zeros(1)}, buffer)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match=r"a\.pth: has no tensors features\.\*"):
        weights.features_only(str(tmp_path / "a.pth"))
    assert names(tmp_path) == ["a.pth"]
