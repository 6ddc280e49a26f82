"""Weights are fetched once, checked and kept, and fit their network or are refused.

A local server plays the publisher.
"""

import dataclasses
import hashlib
import io
import pickle
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from cxr import storage
from cxr.download import transfer
from cxr.errors import SettingsError, StorageError, WeightsError
from cxr.models import backbones, classifier, weights
from cxr.models.classifier import Classifier
from cxr.recipes import Convolutions, Recipe
from tests.support.jobs import Ended
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


def recipe(
    backbone: str, image_px: int, pretrained: Convolutions = 0, frozen: Convolutions = 0
) -> Recipe:
    """Average pooling and one dense layer, so that the head is small."""
    return Recipe(
        name="small", backbone=backbone, image_px=image_px, pretrained=pretrained, frozen=frozen,
        pooling="average", hidden=(), dropout=(0.0,),
    )  # fmt: skip


def copied(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Fetching -----------------------------------------------------------------------------------------


def test_addresses_are_torchvisions() -> None:
    url = weights.imagenet_url("alexnet")
    assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
    url = weights.imagenet_url("resnet18")
    assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"


def test_every_backbone_but_one_has_an_address_and_a_hash() -> None:
    for name in backbones.names():
        if name != "regnet_y_128gf":
            assert weights._HASH.search(weights.imagenet_url(name))


def test_a_backbone_without_published_weights_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        weights.imagenet_url("regnet_y_128gf")
    assert str(caught.value) == (
        "torchvision publishes no ImageNet weights for 'regnet_y_128gf'. Give --weights FILE or"
        " --weights none."
    )


@pytest.mark.parametrize("name", ["vgg17", "googlenet"])
def test_no_weights_are_fetched_for_what_is_no_backbone(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^backbone: '{name}' is not available\. Choices: "):
        weights.imagenet_url(name)


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
    state, place = weights.read_weights("imagenet", "alexnet", str(tmp_path / "cache"))
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


# The backbone's part of a file --------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "densenet121", "shufflenet_v2_x0_5"])
def test_the_backbones_part_alone_loads_as_the_whole_file_does(
    tmp_path: Path, backbone: str
) -> None:
    torch.manual_seed(0)
    state = torchvision.models.get_model(backbone, weights=None).state_dict()
    published = dict(state)
    if backbone == "densenet121":  # As published: names from before PyTorch 0.4.
        published = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", k): v for k, v in state.items()}
        assert "features.denseblock1.denselayer1.conv.1.weight" in published
    whole = tmp_path / f"{backbone}-00000000.pth"
    torch.save(published, whole)
    part = weights.features_only(str(whole), backbone)
    assert part == f"{tmp_path}/{backbone}-00000000-features.safetensors"
    assert weights.features_only(str(whole), backbone) == part
    kept = safetensors.torch.load_file(part)
    head = ("fc.", "classifier.")
    assert set(kept) == {key for key in published if not key.startswith(head)} < set(published)
    settings = recipe(backbone, 64, "all", "all")
    for file in (str(whole), part):
        model = classifier.build(settings)
        read, _ = weights.read_weights(file, backbone, str(tmp_path))
        loaded = weights.load_pretrained(model, settings, read, file)
        assert set(loaded) == {
            key for key in state if not key.startswith(head) and "num_batches" not in key
        }
        own = model.state_dict()
        for key in loaded:
            name = key if key.startswith("features.") else f"features.{key}"
            assert torch.equal(own[name], state[key])


def test_a_file_of_another_network_has_no_part(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"classifier.weight": torch.zeros(1)}, buffer)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match=r"a\.pth: none of its 1 tensors is of alexnet\."):
        weights.features_only(str(tmp_path / "a.pth"), "alexnet")
    assert names(tmp_path) == ["a.pth"]


def alexnet_state(seed: int = 5) -> dict[str, torch.Tensor]:
    """A state dict of the form that torchvision publishes, with other values than a start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        network = torchvision.models.alexnet()
    return {
        name: torch.rand(tensor.shape, generator=generator)
        for name, tensor in network.state_dict().items()
        if name.startswith("features.")
    }


def test_the_job_fetches_a_resnet_and_cuts_off_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publisher: Publisher,
    run_job: Callable[..., Ended],
) -> None:  # fmt: skip
    state = {name: torch.rand(3) for name in ("conv1.weight", "layer4.1.bn2.bias", "fc.weight")}
    torch.save(state, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    stem = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}"
    publisher.files = {f"models/{stem}.pth": content}
    publish(monkeypatch, f"{publisher.url}/models/{stem}.pth")
    words = ("download", "--what", "weights", "--to", str(tmp_path / "to"), "--backbone")
    done = run_job(*words, "resnet18", "--features-only", "True")
    part = tmp_path / "to" / "weights" / f"{stem}-features.safetensors"
    assert (done.code, done.err) == (0, "")
    assert f"next: python jobs/train.py --backbone resnet18 --weights {part}" in done.out
    kept = safetensors.torch.load_file(part)
    assert set(kept) == {"conv1.weight", "layer4.1.bn2.bias"}
    assert all(torch.equal(kept[name], state[name]) for name in kept)


def test_the_job_refuses_a_backbone_without_a_published_file(run_job: Callable[..., Ended]) -> None:
    done = run_job("download", "--what", "weights", "--backbone", "regnet_y_128gf")
    assert done.code == 1
    assert done.err.startswith("error: torchvision publishes no ImageNet weights for 'regnet_y_12")
    assert len(done.err.splitlines()) == 1


# Reading and loading ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_loaded_layers_equal_the_file_and_the_others_their_start(
    tmp_path: Path, suffix: str
) -> None:
    state = alexnet_state()
    place = str(tmp_path / f"alexnet{suffix}")
    if suffix == ".pth":
        torch.save(state, place)
    else:
        safetensors.torch.save_file(state, place)
    small = recipe("alexnet", 64, 2, 2)
    model = classifier.build(small)
    start = copied(model)
    read, source = weights.read_weights(place, "alexnet", str(tmp_path / "cache"))
    loaded = weights.load_pretrained(model, small, read, source)
    assert source == place
    assert loaded == [f"features.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name] if name in loaded else start[name])


def test_batch_norm_is_loaded_with_its_convolution() -> None:
    small = recipe("vgg11_bn", 32, 1, 1)
    model, other = classifier.build(small), classifier.build(dataclasses.replace(small, seed=1))
    state = other.state_dict() | {"features.1.running_mean": torch.full((64,), 3.0)}
    loaded = weights.load_pretrained(model, small, state, "test")
    assert loaded == [
        *("features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"),
        *("features.1.running_mean", "features.1.running_var"),
    ]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in loaded)


def test_half_precision_weights_are_widened() -> None:
    small = recipe("alexnet", 64, 1, 1)
    model = classifier.build(small)
    state = {name: tensor.bfloat16() for name, tensor in alexnet_state().items()}
    weights.load_pretrained(model, small, state, "test")
    assert torch.equal(model.state_dict()["features.0.weight"], state["features.0.weight"].float())
    assert classifier.digest(state) != classifier.digest(model.state_dict())


def test_a_random_start_needs_no_weights() -> None:
    small = recipe("alexnet", 64)
    assert weights.load_pretrained(classifier.build(small), small, {}, "test") == []


def test_missing_weights_are_named_and_nothing_is_copied() -> None:
    small = recipe("alexnet", 64, 3, 3)
    model = classifier.build(small)
    before = copied(model)
    state = {n: t for n, t in alexnet_state().items() if not n.startswith("features.6.")}
    with pytest.raises(
        WeightsError,
        match=r"^a\.pth: small needs convolutions 1 to 3 of alexnet, but 2 of 6 tensors are not"
        r" among the 8 in the file: features\.6\.weight, features\.6\.bias\. .*lower --pretrained",
    ):
        weights.load_pretrained(model, small, state, "a.pth")
    assert classifier.digest(before) == classifier.digest(model.state_dict())


def test_weights_of_another_shape_are_refused_and_nothing_is_copied() -> None:
    small = recipe("alexnet", 64, "all", "all")
    model = classifier.build(small)
    before = copied(model)
    state = alexnet_state() | {"features.10.weight": torch.zeros(256, 256, 5, 5)}
    with pytest.raises(
        WeightsError,
        match=r"^a\.pth: features\.10\.weight has shape \(256, 256, 5, 5\), alexnet needs"
        r" \(256, 256, 3, 3\)\. Is the file of another network\?",
    ):
        weights.load_pretrained(model, small, state, "a.pth")
    assert classifier.digest(before) == classifier.digest(model.state_dict())


class Planted:
    """What a hostile file would run when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("planted"),)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1), "x": Planted()}, "new.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Planted()))
    for name in ("new.pth", "old.pth"):
        with pytest.raises(WeightsError, match=rf"{name}: not a weights file .*plain state dict"):
            weights.read_weights(str(tmp_path / name), "alexnet", str(tmp_path))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}]
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: not a state dict of tensors by name"):
        weights.read_weights(str(tmp_path / "a.pth"), "alexnet", str(tmp_path))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>proxy</html>"])
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name}: not a weights file"):
        weights.read_weights(str(tmp_path / name), "alexnet", str(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.pth: cannot be read: .*No such file"):
        weights.read_weights(str(tmp_path / "none.pth"), "alexnet", str(tmp_path))


# Real weights -------------------------------------------------------------------------------------


def test_real_squeezenet_weights_fit_every_convolution(real_weights: Path) -> None:
    place = str(real_weights / "squeezenet1_1-features.safetensors")
    small = recipe("squeezenet1_1", 64, "all", "all")
    model = classifier.build(small)
    state, source = weights.read_weights(place, "squeezenet1_1", "")
    loaded = weights.load_pretrained(model, small, state, source)
    assert len(loaded) == 50  # 25 convolutions, weight and bias.
    assert set(loaded) == {name for name in model.state_dict() if name.startswith("features.")}
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in loaded)


def test_real_vgg16_weights_fit_four_convolutions_and_no_more(
    real_weights: Path,
) -> None:
    place = str(real_weights / "vgg16-conv1_1-to-conv2_2.safetensors")
    state, source = weights.read_weights(place, "vgg16", "")
    model = classifier.build(recipe("vgg16", 64))
    more: tuple[Convolutions, ...] = (5, "all")
    for pretrained in more:
        with pytest.raises(
            WeightsError, match=r"vgg16-conv1_1-to-conv2_2\.safetensors: .*: features\.10\.weight,"
        ):
            weights.load_pretrained(model, recipe("vgg16", 64, pretrained), state, source)
    loaded = weights.load_pretrained(model, recipe("vgg16", 64, 4), state, source)
    assert loaded == [f"features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in loaded)


def test_real_weights_of_another_network_are_refused(real_weights: Path) -> None:
    place = str(real_weights / "bvlc-alexnet-conv1-conv2.safetensors")
    small = recipe("alexnet", 64, 2, 2)
    state, source = weights.read_weights(place, "alexnet", "")
    with pytest.raises(WeightsError, match=r"4 of 4 tensors .*: features\.0\.weight"):
        weights.load_pretrained(classifier.build(small), small, state, source)
