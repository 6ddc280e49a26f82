"""The logits of radiographs under acquisition changes, for training and evaluation."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr.cluster.counter import Counter
from cxr.inference.engine import Engine
from cxr.inference.networks import Network
from cxr.models.acquisition import CHANGES, MEDIUM, change
from cxr.models.outputs import logit
from cxr.storage.arrays import to_array


def changed_logits(engine: Engine, pixels: NDArray[np.uint8], row: int) -> NDArray[np.float64]:
    """The logit of one radiograph under each change of medium severity.

    One at a time, so that neither the changes nor the logits depend on which images are computed
    together, and by whom.

    Args:
        engine: of a classifier.
        pixels: gray levels, uint8, (S, S), S at least `acquisition.MIN_PX`.
        row: number of the image, the seed of its noise.

    Returns:
        Log-odds of pneumonia in the order of `CHANGES`, float64, (changes,).
    """
    image = torch.from_numpy(pixels.copy())[None, None]
    changed = torch.cat([change(image, name, MEDIUM, seed=row) for name in CHANGES])
    return logit(engine.run(changed[:, 0].numpy())).astype(np.float64)


class StressPredictor:
    """Replaces pixels by the logits under each change."""

    def __init__(
        self, network: Network, image_px: int, threads: int, counter: "ActorHandle[Counter]"
    ) -> None:
        """Arguments as `Predictor`'s; the counter counts changed images."""
        self.network, self.image_px, self.threads = network, image_px, threads
        self.counter = counter

    @cached_property
    def engine(self) -> Engine:
        """Opened with the first rows, so an actor without rows does not wait for the weights."""
        torch.set_num_threads(self.threads)
        return self.network.open(self.threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {row, x: pixels}; rows out: {row, one column of logits for each change: float64}
        pixels = to_array(batch["x"], (self.image_px, self.image_px), "uint8")
        logits = []
        for row, image in zip(batch["row"].to_pylist(), pixels, strict=True):
            logits.append(changed_logits(self.engine, image, row))
            self.counter.add.remote(len(CHANGES))
        columns = dict(zip(CHANGES, np.transpose(logits), strict=True))
        return pa.table({"row": batch["row"], **columns})
