"""Every family of the registry is torchvision's network, cut, frozen and started the same way."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
import torch
import torchvision
from torch import nn

from cxr.errors import SettingsError, WeightsError
from cxr.models import backbones, classifier, weights
from cxr.models.classifier import Classifier
from cxr.recipes import RECIPES, Convolutions, Recipe

IMAGE_PX = 64

# One small network of each family. ResNeXts and Wide ResNets share torchvision's class of ResNets.
NETWORKS = {
    "alexnet": "alexnet",
    "convnext_*": "convnext_tiny",
    "densenet*": "densenet121",
    "efficientnet_*": "efficientnet_b0",
    "mnasnet*": "mnasnet0_5",
    "mobilenet_v*": "mobilenet_v3_small",
    "regnet_*": "regnet_y_400mf",
    "resnet*": "resnet18",
    "shufflenet_v2_*": "shufflenet_v2_x0_5",
    "squeezenet*": "squeezenet1_1",
    "vgg*": "vgg11_bn",
}
SAME_CLASS = {"resnext*": "resnext50_32x4d", "wide_resnet*": "wide_resnet50_2"}


def recipe(backbone: str, leading: Convolutions = "all", image_px: int = IMAGE_PX) -> Recipe:
    """Average pooling and one dense layer; as many convolutions are pretrained as frozen."""
    return Recipe(
        name="small", backbone=backbone, image_px=image_px, pretrained=leading, frozen=leading,
        pooling="average", hidden=(), dropout=(0.0,),
    )  # fmt: skip


def images(num: int, image_px: int = IMAGE_PX) -> torch.Tensor:
    return torch.randn(num, 3, image_px, image_px, generator=torch.Generator().manual_seed(0))


def frozen_names(model: Classifier) -> set[str]:
    """Modules whose own parameters are all frozen."""
    owners = {name: list(m.parameters(recurse=False)) for name, m in model.named_modules()}
    return {n for n, own in owners.items() if own and not any(p.requires_grad for p in own)}


def without_head(network: nn.Module, backbone: str) -> nn.Module:
    """torchvision's network with its dense layers taken out: images to pooled features."""
    if backbone in ("alexnet", "vgg11_bn"):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
    if hasattr(network, "fc"):
        network.fc = nn.Identity()
    elif backbone == "convnext_tiny":
        assert isinstance(network.classifier, nn.Sequential)
        network.classifier[2] = nn.Identity()
    elif backbone == "squeezenet1_1":
        network.classifier = nn.AdaptiveAvgPool2d(1)
    else:
        network.classifier = nn.Identity()
    return network.eval()


@dataclass
class Pair:
    """A network of torchvision, and the classifier that has taken its weights."""

    backbone: str
    reference: nn.Module
    state: dict[str, torch.Tensor]
    model: Classifier
    loaded: list[str]
    not_started: list[str]
    """Tensors that the random start had left as they were allocated."""


def torchvisions(backbone: str) -> nn.Module:
    """A network of torchvision whose weights nobody has written, which takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "kaiming_normal_", "trunc_normal_", "normal_", "uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        network: nn.Module = torchvision.models.get_model(backbone, weights=None)
    return network


def fill(network: nn.Module) -> None:
    """Give each layer weights that pass signals on, and each batch norm statistics of its own."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim > 1 and not name.endswith("layer_scale"):
                bound = (3 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound)
            elif name.endswith(("running_var", "weight", "layer_scale")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.uniform_(-0.1, 0.1)


@pytest.fixture(scope="module", params=NETWORKS.values())
def pair(request: pytest.FixtureRequest) -> Pair:
    backbone = request.param
    network = torchvisions(backbone)
    state = network.state_dict()
    reference = without_head(network, backbone)
    fill(reference)
    # What is allocated is then filled with NaN, and integers with their maximum.
    torch.use_deterministic_algorithms(True)
    try:
        model = classifier.build(recipe(backbone))
    finally:
        torch.use_deterministic_algorithms(False)
    not_started = [
        name for name, tensor in model.state_dict().items()
        if not tensor.isfinite().all() or tensor.max() == torch.iinfo(torch.int64).max
    ]  # fmt: skip
    loaded = weights.load_pretrained(model, recipe(backbone), state, "torchvision")
    return Pair(backbone, reference, state, model.eval(), loaded, not_started)


# The registry -------------------------------------------------------------------------------------


def test_every_family_is_tested() -> None:
    assert {*NETWORKS, *SAME_CLASS} == {family.pattern for family in backbones.FAMILIES}
    for pattern, name in (NETWORKS | SAME_CLASS).items():
        assert [f.pattern for f in backbones.FAMILIES if fnmatchcase(name, f.pattern)] == [pattern]
    assert {recipe.backbone for recipe in RECIPES.values()} <= set(backbones.names())


def test_the_networks_of_torchvision_that_are_left_out() -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    left_out = set(known) - set(backbones.names())
    assert all(n.startswith(("googlenet", "inception", "maxvit", "swin", "vit")) for n in left_out)
    assert len(backbones.names()) >= 66


@pytest.mark.parametrize("backbone", ["googlenet", "swin_t", "vit_b_16", "alexnet9", "", "*"])
def test_what_is_no_backbone_is_refused_with_the_families(backbone: str) -> None:
    with pytest.raises(
        SettingsError,
        match=r"^backbone: '.*' is not available\. Choices: alexnet, convnext_\*, .*, resnet\*, .*"
        r"wide_resnet\*; all names: https://docs\.pytorch\.org/\S+$",
    ):
        classifier.check(recipe(backbone))


def test_a_wrong_number_is_refused_with_the_networks_of_the_family() -> None:
    with pytest.raises(SettingsError) as caught:
        classifier.check(recipe("resnet19"))
    assert str(caught.value) == (
        "backbone: 'resnet19' is not available. Choices: resnet101, resnet152, resnet18, resnet34,"
        " resnet50."
    )


# Each family --------------------------------------------------------------------------------------


def test_every_tensor_has_a_start(pair: Pair) -> None:
    assert pair.not_started == []


def test_published_keys_load_and_give_what_torchvisions_own_forward_gives(pair: Pair) -> None:
    batch = images(1)
    with torch.inference_mode():
        expected = pair.reference(batch).flatten(1)
        features = pair.model.prefix(batch)
    assert features.shape[1:] == pair.model.prefix_shape(IMAGE_PX)
    assert expected.std() > 0
    torch.testing.assert_close(features, expected)
    assert set(pair.loaded) <= set(pair.state)


def test_the_part_of_a_published_file_is_what_is_loaded(pair: Pair) -> None:
    family = backbones.family(pair.backbone)
    part = {key for key in pair.state if family.is_published_key(key)}
    assert {key for key in part if not key.endswith("num_batches_tracked")} == set(pair.loaded)


def test_prefix_and_tail_together_are_the_whole_wherever_it_is_cut(pair: Pair) -> None:
    batch = images(1)
    before = pair.model.num_frozen
    with torch.inference_mode():
        expected = pair.model(batch)
        for num_frozen in (1, before // 2, before):
            pair.model.num_frozen = num_frozen
            outputs = pair.model.tail(pair.model.prefix(batch))
            torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("first", [0, 2])
def test_a_missing_key_is_named_as_it_is_published(pair: Pair, first: int) -> None:
    missing = pair.loaded[first::3]
    state = {key: tensor for key, tensor in pair.state.items() if key not in missing}
    with pytest.raises(WeightsError) as caught:
        weights.load_pretrained(pair.model, recipe(pair.backbone), state, "a.pth")
    assert str(caught.value).startswith(
        f"a.pth: small needs every convolution of {pair.backbone}, but {len(missing)} of"
        f" {len(pair.loaded)} tensors are not among the {len(state)} in the file:"
        f" {missing[0]}, {missing[1]}, "
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", SAME_CLASS.values())
def test_relatives_of_a_resnet_have_its_layers(backbone: str) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(backbone, weights=None)
    family = backbones.family(backbone)
    model = classifier.skeleton(recipe(backbone))
    expected = {key for key in network.state_dict() if not key.startswith("fc.")}
    features = [name for name in model.state_dict() if name.startswith("features.")]
    assert {family.published_key(name) for name in features} == expected
    assert model.prefix_shape(IMAGE_PX) == (2048,)


# What a cut and a freeze mean ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "frozen", "names", "num_frozen", "last_layer"),
    [
        # A convolution with its batch norm; what follows without weights is frozen, too.
        ("resnet18", 1, {"conv1", "bn1"}, 4, "maxpool"),
        # Half a residual block is frozen in training, but the network is not cut inside it.
        ("resnet18", 2, {"conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1"}, 4, "maxpool"),
        (
            "resnet18", 3,
            {"conv1", "bn1", *(f"layer1.0.{n}" for n in ("conv1", "bn1", "conv2", "bn2"))},
            5, "layer1.0",
        ),
        ("convnext_tiny", 1, {"0.0", "0.1"}, 1, "0"),
        # A block's own parameter, the scale of its branch, comes after the layers of the branch.
        (
            "convnext_tiny", 2,
            {"0.0", "0.1", "1.0", *(f"1.0.block.{i}" for i in (0, 2, 3, 5))}, 2, "1.0",
        ),
        ("mnasnet0_5", 2, {f"layers.{i}" for i in (0, 1, 3, 4)}, 6, "layers.5"),
        ("regnet_y_400mf", 1, {"stem.0", "stem.1"}, 1, "stem"),
        ("shufflenet_v2_x0_5", 1, {"conv1.0", "conv1.1"}, 2, "maxpool"),
        # Squeeze and excitation are convolutions of 1 x 1: the block has four.
        (
            "efficientnet_b0", 5,
            {"0.0", "0.1", *(f"1.0.block.{n}" for n in ("0.0", "0.1", "1.fc1", "1.fc2", "2.0",
             "2.1"))}, 2, "1.0",
        ),
    ],
)  # fmt: skip
def test_the_first_convolutions_are_frozen_and_the_cut_is_between_blocks(
    backbone: str, frozen: int, names: set[str], num_frozen: int, last_layer: str
) -> None:
    model = classifier.skeleton(recipe(backbone, frozen))
    assert frozen_names(model) == {f"features.{name}" for name in names}
    assert model.num_frozen == num_frozen
    assert list(model.layers)[num_frozen - 1] == f"features.{last_layer}"


def test_frozen_blocks_stay_in_evaluation_mode() -> None:
    model = classifier.skeleton(recipe("resnet18", 4)).train()
    training = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    assert {f"features.{name}" for name in ("bn1", "layer1.0.bn1", "layer1.0.bn2")} & training == (
        set()
    )
    assert "features.layer1.1.bn1" not in training  # Frozen in a block that is not.
    assert len(training) == 20 - 4


def test_the_norm_after_pooling_is_frozen_with_the_last_convolution() -> None:
    assert "head.norm" in frozen_names(classifier.skeleton(recipe("convnext_tiny", 22)))
    assert "head.norm" not in frozen_names(classifier.skeleton(recipe("convnext_tiny", 21)))


# Random starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "image_px", "expected"),
    [
        ("alexnet", 64, (-0.0012317, 0.0592516, -0.2846403)),
        ("vgg11", 32, (-0.0045163, 0.0042113, 0.2805497)),
        ("vgg11_bn", 32, (-0.0045163, 0.0042113, 0.2805497)),
        ("squeezenet1_1", 64, (-0.0045163, 0.0182396, -0.3006570)),
        ("densenet121", 32, (-0.0019356, -0.1318417, 0.3022240)),
    ],
)
def test_random_starts_are_those_of_earlier_versions(
    backbone: str, image_px: int, expected: tuple[float, float, float]
) -> None:
    # The last dense layer draws last: its weight tells whether any draw before it was another.
    model = classifier.build(
        Recipe(
            name="small", backbone=backbone, image_px=image_px, pretrained=0, frozen=0,
            pooling="average", hidden=(8,), dropout=(0.1, 0.0), seed=3,
        )
    )  # fmt: skip
    convolutions = [m for m in model.features.modules() if isinstance(m, nn.Conv2d)]
    *_, last, _ = model.head.parameters()
    starts = (convolutions[0].weight, convolutions[-1].weight, last)
    assert [start.flatten()[0].item() for start in starts] == pytest.approx(expected, abs=2e-7)


def test_the_scale_of_a_convnexts_branches_starts_as_torchvisions() -> None:
    model = classifier.build(recipe("convnext_tiny", 0))
    scales = [p for name, p in model.named_parameters() if name.endswith("layer_scale")]
    assert len(scales) == 18
    assert all((scale == 1e-6).all() for scale in scales)
