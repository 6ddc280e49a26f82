"""What a worker computes on: the device, its number format, its memory layout."""

from contextlib import AbstractContextManager

import torch


def device(gpu: bool) -> torch.device:
    """The GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda" if gpu else "cpu")


def batch_size(gpu: bool) -> int:
    """Images of a forward pass.

    On a CPU larger ones fall out of its caches: VGG16 at 224 px ran at 3.5 images a second with 8,
    at 3.0 with 16.
    """
    return 64 if gpu else 8


def autocast(where: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix work where the device has it; plain float32 elsewhere.

    CPUs stay at float32 here: without AVX512-BF16 PyTorch emulates bfloat16, slowly.
    """
    enabled = where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=enabled)
