"""What a worker computes on: the device, its number format, its memory layout."""

from contextlib import AbstractContextManager

import torch


def device(gpu: bool) -> torch.device:
    """The GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda" if gpu else "cpu")


def autocast(where: torch.device) -> AbstractContextManager[object]:
    """bfloat16 matrix work where the device has it; plain float32 elsewhere.

    CPUs stay at float32 here: without AVX512-BF16 PyTorch emulates bfloat16, slowly.
    """
    enabled = where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=enabled)
