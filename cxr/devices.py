"""What a worker computes on: the device, its number format, its memory layout."""

from contextlib import AbstractContextManager
from typing import Final

import torch

CPU_THREADS: Final = 1
"""Threads of a process that runs a network on a CPU: VGG16 at 224 px ran at 4.8 images a second in
two processes of one thread, at 4.4 in one of two (benchmarks/score.py, two cores)."""


def device(gpu: bool) -> torch.device:
    """The GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda" if gpu else "cpu")


def batch_size(gpu: bool) -> int:
    """Images of a forward pass.

    On a CPU more gain nothing: VGG16 at 224 px ran at 4.8 images a second with 8, at 4.7 with 16
    (benchmarks/score.py).
    """
    return 64 if gpu else 8


def autocast(where: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix work where the device has it; plain float32 elsewhere.

    CPUs stay at float32 here: without AVX512-BF16 PyTorch emulates bfloat16, slowly.
    """
    enabled = where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=enabled)
