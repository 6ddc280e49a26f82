"""The engine for CPUs: a network as an ONNX file, run by ONNX Runtime."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cxr.inference.engine import batch_size
from cxr.models.session import open_session
from cxr.models.unusual import FeatureOutput


class OnnxEngine:
    """Runs an ONNX file with the input `pixels`, uint8 (N, 1, S, S)."""

    def __init__(
        self,
        content: bytes,
        output: str,
        threads: int,
        member: int | None = None,
        *,
        appended: FeatureOutput | None = None,
    ) -> None:
        """Load the network.

        Args:
            content: of the file.
            output: name of what `run` returns.
            threads: that compute a batch.
            member: whose part of the output `members` of an ensemble `run` returns.
            appended: name of an output whose columns are appended.

        Raises:
            CheckpointError: ONNX Runtime cannot load it.
        """
        self.session = open_session(content, threads)
        self.outputs = [output, appended] if appended else [output]
        self.member = member
        self.batch_size = batch_size(gpu=False)

    def run(
        self, pixels: NDArray[np.uint8], on_batch: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """As `Engine.run`."""
        outputs: list[NDArray[np.float32]] = []
        for start in range(0, len(pixels), self.batch_size):
            batch = pixels[start : start + self.batch_size, None]
            parts = self.session.run(self.outputs, {"pixels": batch})
            outputs.append(np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0])
            on_batch(len(batch))
        whole = np.concatenate(outputs)
        return whole if self.member is None else whole[:, self.member]
