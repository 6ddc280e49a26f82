"""The settings that jobs share: what they may use of the cluster."""

import dataclasses
from dataclasses import dataclass

from cxr.cluster.resources import UseGpu
from cxr.storage import default_cache


@dataclass(frozen=True)
class ComputeSettings:
    """What a job computes on."""

    gpu: UseGpu = "auto"
    """Compute on GPUs: auto where the cluster has one, on waits for one."""


@dataclass(frozen=True)
class CacheSettings:
    """Where a job keeps what another job may need again."""

    cache: str = dataclasses.field(default_factory=default_cache)
    """Folder or bucket prefix for decoded pixels, features and weights; on a cluster one that all
    nodes reach."""


@dataclass(frozen=True)
class CachedComputeSettings(CacheSettings, ComputeSettings):
    """What a job computes on, and where it keeps what another job may need again."""
