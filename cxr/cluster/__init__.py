"""The Ray cluster that a job runs on: the one it was submitted to, or one of its own."""

from cxr.cluster.connection import ENVIRONMENT, connect, own_address
from cxr.cluster.execution import execute
from cxr.cluster.ordered import run_in_order
from cxr.cluster.reach import check_reach
from cxr.cluster.resources import (
    SPARE_CPUS,
    Pool,
    Share,
    UseGpu,
    Workers,
    is_joined,
    parse_workers,
    pool,
    share,
    use_gpu,
    wait_for,
)

__all__ = [
    "ENVIRONMENT",
    "SPARE_CPUS",
    "Pool",
    "Share",
    "UseGpu",
    "Workers",
    "check_reach",
    "connect",
    "execute",
    "is_joined",
    "own_address",
    "parse_workers",
    "pool",
    "run_in_order",
    "share",
    "use_gpu",
    "wait_for",
]
