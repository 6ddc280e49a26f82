"""What every engine does: gray pixels in, float32 arrays out. Needs neither PyTorch nor Ray.

On CPUs ONNX Runtime computes (`onnx_engine`), on GPUs PyTorch does (`torch_engine`).
"""

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

CPU_THREADS: Final = 1
"""Threads of a process that runs a network on a CPU: a process for each core reads files with it as
well, and none waits for another's batch."""


class Engine(Protocol):
    """Runs a network over any number of images in batches."""

    def run(
        self, pixels: NDArray[np.uint8], on_batch: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """The network's outputs, float32 (N, ...).

        Args:
            pixels: gray levels, uint8, (N, S, S); N is at least 1.
            on_batch: called with the number of images after each batch.
        """
        ...


def batch_size(gpu: bool) -> int:
    """Images per forward pass.

    Larger batches are no faster on a CPU: on one core, with ONNX Runtime, AlexNet at 224 px
    processed 107 images per second with 8 in a batch and 97 with 64, SqueezeNet 194 and 134, VGG16
    4.4, and 4.0 with 16.
    """
    return 64 if gpu else 8
