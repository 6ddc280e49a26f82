"""What this machine's CPU is. Needs no PyTorch."""

import platform
from pathlib import Path
from typing import Final

BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})
"""Features of a CPU, as named by Linux, with either of which it multiplies in bfloat16."""


def cpu() -> tuple[str, frozenset[str]]:
    """Model name and feature flags of the CPU according to Linux; no flags on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor(), frozenset()
    info = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    return info.get("model name", platform.processor()), frozenset(info.get("flags", "").split())
