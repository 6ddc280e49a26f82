"""Number formats: bfloat16 where the device multiplies in it, and what it may change."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from cxr.inference import devices
from cxr.models import classifier
from cxr.recipes import RECIPES

CPU = torch.device("cpu")
FLAGS = {"none": frozenset({"avx2"}), "bfloat16": frozenset({"avx512f", "avx512_bf16"}),
         "tiles": frozenset({"avx512f", "amx_bf16"})}  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "flags", "expected"),
    [("AVX2", "none", False), ("AVX512", "none", False), ("AVX512", "bfloat16", True),
     ("AVX512", "tiles", True), ("AVX2", "bfloat16", False), ("DEFAULT", "tiles", False)],
)  # fmt: skip
def test_cpu_computes_in_bfloat16_where_it_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, flags: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(devices, "cpu", lambda: ("a processor", FLAGS[flags]))
    assert devices.has_bfloat16(CPU) == expected
    with devices.autocast(CPU):
        one = torch.ones(1, 1)
        assert (one @ one).dtype == (torch.bfloat16 if expected else torch.float32)
    with devices.autocast(CPU, learn=True):
        assert (one @ one).dtype == torch.float32


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is said to multiply in bfloat16; PyTorch emulates it where that is not so."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: True)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("backbone", ["squeezenet1_1", "vgg11_bn"])
def test_weights_turned_once_give_what_autocast_gives(backbone: str) -> None:
    recipe = dataclasses.replace(
        RECIPES["best"], backbone=backbone, image_px=64, pooling="average", hidden=(16,),
        dropout=(0.0, 0.0),
    )  # fmt: skip
    plain = classifier.build(recipe).to(memory_format=torch.channels_last).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    ours = devices.for_inference(copy.deepcopy(plain), CPU)
    with torch.inference_mode():
        exact = plain(images)
        with devices.autocast(CPU):
            assert torch.equal(ours(images), plain(images))
            assert (ours(images) - exact).abs().max() < 0.02 * exact.abs().max()
    assert any(layer.weight.dtype == torch.bfloat16 for layer in ours.modules()
               if isinstance(layer, nn.Conv2d))  # fmt: skip


@pytest.mark.usefixtures("bfloat16")
def test_logits_are_float32_under_autocast() -> None:
    recipe = dataclasses.replace(RECIPES["v0"], image_px=64)
    network = devices.for_inference(classifier.build(recipe), CPU)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), devices.autocast(CPU):
        logits = network(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
