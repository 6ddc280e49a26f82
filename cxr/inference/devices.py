"""The device of a worker, with its number format and memory layout."""

from contextlib import AbstractContextManager

import torch
from torch import nn

from cxr.inference.processor import BFLOAT16_FLAGS, cpu
from cxr.recipes import Precision


def device(gpu: bool) -> torch.device:
    """The GPU that Ray assigned to this process, or the CPU."""
    return torch.device("cuda" if gpu else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; where it does not, PyTorch emulates it, slowly.

    With PyTorch's own variable `ATEN_CPU_CAPABILITY=avx2` every CPU uses float32, so that results
    of different CPUs are equal.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    used = torch.backends.cpu.get_cpu_capability()
    return used.startswith("AVX512") and not cpu()[1].isdisjoint(BFLOAT16_FLAGS)


def autocast(
    device: torch.device, precision: Precision = "bfloat16"
) -> AbstractContextManager[object]:
    """Convolutions and matrix products in bfloat16 where the device has it, else in float32.

    Args:
        device: that computes.
        precision: of a recipe's training steps, which are float32 on a CPU by default: with rounded
            gradients, the loss depends on the number of workers from the third digit on.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    enabled = wanted and has_bfloat16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def for_inference(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, for use inside `autocast`.

    Weights of convolutions and dense layers are converted to bfloat16 here, once; `autocast` alone
    would convert them for every batch. The outputs are the same.
    """
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    if has_bfloat16(device):
        for layer in network.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):  # Not classifier.LogitLayer.
                layer.to(torch.bfloat16)
    return network
