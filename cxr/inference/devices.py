"""What a worker computes on: the device, its number format, its memory layout."""

import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import torch
from torch import nn

CPU_THREADS: Final = 1
"""Threads of a process that runs a network on a CPU: VGG16 at 224 px ran at 4.8 images a second in
two processes of one thread, at 4.4 in one of two (benchmarks/score.py, two cores)."""


BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""Abilities of a CPU, by Linux' names, with which it multiplies in bfloat16."""


def device(gpu: bool) -> torch.device:
    """The GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda" if gpu else "cpu")


def batch_size(gpu: bool) -> int:
    """Images of a forward pass.

    On a CPU more gain nothing: VGG16 at 224 px ran at 4.8 images a second with 8, at 4.7 with 16
    (benchmarks/score.py).
    """
    return 64 if gpu else 8


def cpu() -> tuple[str, frozenset[str]]:
    """Name and abilities of the CPU, as Linux tells them; no abilities on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor(), frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    return facts.get("model name", platform.processor()), frozenset(facts.get("flags", "").split())


def has_bfloat16(where: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; where it does not, PyTorch emulates it, slowly.

    A CPU of which PyTorch is told to use less (`ATEN_CPU_CAPABILITY=avx2`, PyTorch's own variable)
    stays at float32: so CPUs of different kinds give equal figures.
    """
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    used = torch.backends.cpu.get_cpu_capability()
    return used.startswith("AVX512") and not cpu()[1].isdisjoint(BFLOAT16_FLAGS)


def autocast(where: torch.device, *, learn: bool = False) -> AbstractContextManager[object]:
    """bfloat16 matrix work where the device has it; plain float32 elsewhere.

    Steps of training (`learn`) stay at float32 on a CPU: with rounded gradients the loss would
    depend on the number of workers from the third digit on.
    """
    enabled = has_bfloat16(where) and not (learn and where.type == "cpu")
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=enabled)


def for_inference(network: nn.Module, where: torch.device) -> nn.Module:
    """Bring a network onto the device, for use inside `autocast`.

    Weights of convolutions and dense layers take their number format here, once; `autocast` alone
    would turn them anew for every batch. The outputs are the same.
    """
    network = network.to(where).to(memory_format=torch.channels_last).eval()
    if has_bfloat16(where):
        for layer in network.modules():
            if type(layer) in (nn.Conv2d, nn.Linear):  # Not models.LogitLayer.
                layer.to(torch.bfloat16)
    return network
