"""Heatmaps point at what a network looks at, whatever its kind; every image is explained or said
why not."""

import csv
import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import pointing
from cxr import metrics
from cxr.explanations import heatmaps
from cxr.explanations.job import list_images
from cxr.explanations.settings import Method
from cxr.images.read import read_images
from cxr.inference.engine import batch_size
from cxr.inference.onnx_engine import OnnxEngine
from cxr.models import checkpoint, classifier
from cxr.models.classifier import Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.outputs import logit
from cxr.phantoms import Opacity
from tests.support.jobs import Ended, execute
from tests.support.radiographs import dicom, drawn, in_16_bits, radiograph, saved
from tests.test_models_backbones import NETWORKS, recipe

METHODS: tuple[Method, ...] = get_args(Method)

IMAGE_PX = 64


def pixels(num: int = 2) -> NDArray[np.uint8]:
    return np.stack([drawn(IMAGE_PX, IMAGE_PX, seed) for seed in range(num)])


class Window(nn.Module):
    """Keeps a part of maps of 4 px a value, and nothing else."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        shown = torch.zeros(1, 1, IMAGE_PX, IMAGE_PX)
        shown[..., rows, columns] = 1
        self.shown = nn.functional.avg_pool2d(shown, 4)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * self.shown


class BrightnessNetwork(nn.Module):
    """Looks at a part of the image: its log-odds rise with the gray levels there."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        convolution = nn.Conv2d(3, 1, 4, stride=4, bias=False)
        nn.init.ones_(convolution.weight).requires_grad_(False)
        self.features = nn.Sequential(convolution, Window(rows, columns))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = self.features(images).square().sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def looks_at(rows: slice, columns: slice) -> Classifier:
    network: Classifier = BrightnessNetwork(rows, columns).eval()  # type: ignore[assignment]
    return network


def spot(row: int, column: int) -> NDArray[np.uint8]:
    """A bright square of 16 pixels on gray."""
    image = np.full((1, IMAGE_PX, IMAGE_PX), 60, np.uint8)
    image[0, row : row + 16, column : column + 16] = 200
    return image


@pytest.mark.parametrize("method", METHODS)
def test_the_maximum_is_in_what_the_network_looks_at(method: Method) -> None:
    """In the left half a spot raises the output, in the right half it does not."""
    network = looks_at(slice(None), slice(0, 32))
    image = np.maximum(spot(40, 8), spot(8, 44))
    [heatmap] = heatmaps.explain(network, "unit", image, method)
    row, column = np.argwhere(heatmap == 1).mean(axis=0)
    assert 40 <= row <= 56
    assert 8 <= column <= 24
    assert (heatmap.dtype, heatmap.shape) == (np.float32, (IMAGE_PX, IMAGE_PX))
    assert (heatmap.min(), heatmap.max()) == (0, 1)


def test_occlusion_is_zero_where_nothing_is_looked_at() -> None:
    network = looks_at(slice(0, 16), slice(0, 16))
    [heatmap] = heatmaps.explain(network, "unit", spot(0, 0), "occlusion")
    assert heatmap[32:, 32:].max() == 0
    assert heatmap[:8, :8].min() > 0


@pytest.mark.parametrize("method", METHODS)
def test_an_image_in_which_nothing_raises_the_output_has_zeros(method: Method) -> None:
    network = looks_at(slice(0, 0), slice(0, 0))
    assert not heatmaps.explain(network, "unit", spot(0, 0), method).any()


@pytest.mark.parametrize("backbone", NETWORKS.values())
def test_every_frozen_backbone_is_explained_at_maps_before_their_pooling(backbone: str) -> None:
    model = classifier.build(recipe(backbone)).eval()
    assert not [p for p in model.features.parameters() if p.requires_grad]
    shapes: list[torch.Size] = []
    hook = heatmaps.last_maps(model).register_forward_hook(
        lambda _module, _inputs, output: shapes.append(output.shape)
    )
    maps = heatmaps.explain(model, "imagenet", pixels())
    hook.remove()
    # Of a random network, all of an image may lower the output: the opposite network says so.
    with torch.no_grad():
        model.head[-1].weight.neg_()  # type: ignore[operator]
    maps += heatmaps.explain(model, "imagenet", pixels())
    assert maps.max(axis=(1, 2)).min() >= 1
    side = {"alexnet": 3, "vgg11_bn": 4, "squeezenet1_1": 3}.get(backbone, 2)
    assert shapes[0][2:] == (side, side)


@pytest.mark.parametrize("normalization", ["none", "unit", "imagenet", "per_image", "equalize"])
def test_writtenfollow_the_normalization_and_no_batch(normalization: str) -> None:
    model = classifier.build(recipe("alexnet")).eval()
    images = pixels(batch_size(gpu=False) + 1)
    together = heatmaps.explain(model, normalization, images)  # type: ignore[arg-type]
    alone = heatmaps.explain(model, normalization, images[-1:])  # type: ignore[arg-type]
    np.testing.assert_allclose(together[-1:], alone, atol=1e-4)
    assert not np.array_equal(together[0], together[1])


def test_writtenof_the_members_of_an_ensemble_are_averaged() -> None:
    own = recipe("alexnet")
    members = [classifier.build(dataclasses.replace(own, seed=seed)).eval() for seed in (0, 1)]
    maps = [heatmaps.explain(member, "imagenet", pixels(1)) for member in members]
    assert not np.array_equal(maps[0], maps[1])
    mean = np.mean(maps, axis=0)
    both = heatmaps.explain(Ensemble(members).eval(), "imagenet", pixels(1))
    np.testing.assert_allclose(both, mean / mean.max(), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_give_other_heatmaps(method: Method) -> None:
    """Adebayo et al. 2018: a map that survives random weights says nothing of the network."""
    image, small = pixels(1), recipe("alexnet")
    maps, again, other = (
        heatmaps.explain(classifier.build(seeded).eval(), "imagenet", image, method)[0]
        for seeded in (small, small, dataclasses.replace(small, seed=1))
    )
    assert np.array_equal(maps, again)
    assert np.corrcoef(maps.ravel(), other.ravel())[0, 1] < 0.5


def test_no_images_have_no_heatmaps() -> None:
    model = classifier.build(recipe("alexnet")).eval()
    assert heatmaps.explain(model, "unit", pixels(1)[:0]).shape == (0, IMAGE_PX, IMAGE_PX)


# The job ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two radiographs, a refused one and a broken one."""
    folder = tmp_path_factory.mktemp("xrays")
    (folder / "Roentgen^Wilhelm.jpeg").write_bytes(radiograph(1))
    (folder / "b.dcm").write_bytes(dicom(in_16_bits()))
    (folder / "c.dcm").write_bytes(dicom(in_16_bits(), Modality="CT"))
    (folder / "d.png").write_bytes(saved(drawn(), "PNG")[:300])
    return folder


@pytest.fixture(scope="module")
def explained(
    archive: Path, small_checkpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    output = tmp_path_factory.mktemp("explained") / "out"
    words = ("--checkpoint", small_checkpoint, "--input", str(archive), "--output", str(output))
    return execute("explain", *words), output


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "explanations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_explained_or_has_its_reason(
    explained: tuple[Ended, Path], archive: Path
) -> None:
    ended, output = explained
    assert ended.code == 0, ended.err
    assert f"explained 2; refused 1; unreadable 1 -> {output}" in ended.out
    assert f"report: {output}/index.html" in ended.out
    assert "next: python jobs/score.py --checkpoint" in ended.out
    table = rows(output)
    names = [Path(row["uri"]).name for row in table]
    assert names == sorted(path.name for path in archive.iterdir())
    assert [row["status"] for row in table] == ["explained", "explained", "refused", "unreadable"]
    assert [bool(row["reason"]) for row in table] == [False, False, True, True]
    assert table[2]["reason"].startswith("modality CT")
    page = (output / "index.html").read_text()
    assert all(row["reason"] in page for row in table)
    assert page.count("<img ") == 4


def test_files_are_numbered_and_named_after_no_image(explained: tuple[Ended, Path]) -> None:
    _, output = explained
    assert {path.name for path in output.iterdir()} == {
        "0001.map.npy", "0001.overlay.png", "0002.map.npy", "0002.overlay.png",
        "explanations.csv", "index.html",
    }  # fmt: skip
    heatmap = np.load(output / "0001.map.npy")
    assert (heatmap.dtype, heatmap.shape) == (np.float32, (IMAGE_PX, IMAGE_PX))
    assert heatmap.max() == 1


def test_how_much_lies_at_the_border_is_in_the_table_and_on_the_page(
    explained: tuple[Ended, Path],
) -> None:
    _, output = explained
    written = [np.load(output / f"000{number}.map.npy") for number in (1, 2)]
    shares = [metrics.border_share(heatmap) for heatmap in written]
    assert None not in shares
    assert [row["border_share"] for row in rows(output)][2:] == ["", ""]
    assert [float(row["border_share"]) for row in rows(output)[:2]] == pytest.approx(shares)
    mean = sum(share for share in shares if share is not None) / 2
    assert f"{mean:.0%} on average lies in the\nborder" in (output / "index.html").read_text()


def test_probabilities_are_those_of_the_exported_network(
    explained: tuple[Ended, Path], archive: Path, small_checkpoint: str
) -> None:
    _, output = explained
    trained = checkpoint.load(small_checkpoint)
    listed = list_images([str(archive)]).to_pylist()[:2]
    read = [image.pixels for image in read_images(listed, IMAGE_PX)]
    engine = OnnxEngine(trained.onnx, "logits", 1)
    logits = logit(engine.run(np.stack([image for image in read if image is not None])))
    expected = metrics.probabilities(logits, trained.scaling)
    found = [float(row["prob_pneumonia"]) for row in rows(output)[:2]]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


# The pointing game --------------------------------------------------------------------------------


def test_a_peak_hits_where_it_is_within_the_radii_of_an_opacity() -> None:
    opacity = Opacity(x=0.75, y=0.25, radius_x=0.2, radius_y=0.1)
    heatmap = np.zeros((100, 100), np.float32)
    heatmap[20:30, 70:80] = 1  # A plateau, whose middle is in the opacity.
    nothing = np.zeros_like(heatmap)
    positions = [pointing.peak(heatmap), pointing.peak(heatmap.T), pointing.peak(nothing)]
    assert positions == [(0.75, 0.25), (0.25, 0.75), None]
    result = pointing.count_hits(positions, [[opacity]] * 3)
    assert (result["hits"], result["images"], result["without_peak"]) == (1, 3, 1)
    area = np.pi * 0.2 * 0.1
    assert pointing.cover([opacity]).mean() == pytest.approx(area, abs=1e-3)


def test_phantoms_of_the_pointing_game_are_always_the_same_and_have_opacities() -> None:
    first, again = pointing.draw(2), pointing.draw(2)
    assert [phantom.subtype for phantom in first] == ["bacteria", "virus"]
    assert all(phantom.opacities for phantom in first)
    assert np.array_equal(first[1].pixels, again[1].pixels)
