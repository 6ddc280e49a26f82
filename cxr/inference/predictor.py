"""The actor that holds a trained classifier: one per process, loaded once."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr.cluster.counter import Counter
from cxr.inference.engine import Engine
from cxr.inference.networks import Network
from cxr.labels import CLASSES
from cxr.models.outputs import logit
from cxr.models.unusual import FeatureDistribution
from cxr.storage.arrays import to_array


class Predictor:
    """Adds the logit of each row's pixels to batches of a stream."""

    def __init__(
        self,
        network: Network,
        image_px: int,
        threads: int,
        counter: "ActorHandle[Counter]",
        distribution: FeatureDistribution | None = None,
    ) -> None:
        """Remember what the driver has sent.

        Args:
            network: a classifier, whose engine returns logits (N, 2).
            image_px: side of the squares that it takes.
            threads: of this process.
            counter: counts the rows that are done.
            distribution: that distances are computed to; the engine then appends features.
        """
        self.network, self.image_px, self.threads = network, image_px, threads
        self.counter, self.distribution = counter, distribution

    @cached_property
    def engine(self) -> Engine:
        """Opened with the first rows, so an actor without rows does not wait for the weights."""
        return self.network.open(self.threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {..., x: pixels or null}; rows out: {..., logit, distance: float64 or null}
        logits, distances = self.predict(batch["x"])
        self.counter.add.remote(len(batch))
        table = batch.drop_columns(["x"])
        for name, values in (("logit", logits), ("distance", distances)):
            table = table.append_column(name, pa.array(values, pa.float64(), mask=np.isnan(values)))
        return table

    def predict(self, column: pa.ChunkedArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-odds of pneumonia, and distances to the training images, float64 (N,).

        They are NaN where a row has no pixels, distances also without a distribution.

        Args:
            column: N rows, gray pixels as bytes, uint8 (image_px, image_px), or null.
        """
        has_pixels = np.asarray(pc.is_valid(column))
        logits: NDArray[np.float64] = np.full(len(column), np.nan)
        distances = logits.copy()
        if has_pixels.any():
            shape = (self.image_px, self.image_px)
            pixels = to_array(column.filter(pa.array(has_pixels)), shape, "uint8")
            outputs = self.engine.run(pixels)
            logits[has_pixels] = logit(outputs)
            if self.distribution is not None:
                distances[has_pixels] = self.distribution.distances(outputs[:, len(CLASSES) :])
        return logits, distances
