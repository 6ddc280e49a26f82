"""The actor that runs frozen parts of networks over shards of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from ray.actor import ActorHandle

from cxr import storage
from cxr.cluster.counter import Counter
from cxr.datasets.shards import read_part
from cxr.datasets.variation import Variation, varied
from cxr.inference.engine import Engine
from cxr.inference.networks import Network
from cxr.storage.arrays import to_array, to_column


@dataclass(frozen=True)
class Work:
    """What a pass does with each image."""

    network: int
    """The frozen part that runs, by its position among those of the actor."""
    image_px: int
    variation: Variation | None
    """What changes the pixels before; None where they stay as they are."""


class FeatureExtractor:
    """Reads shards of pixels and writes shards of features."""

    def __init__(
        self,
        networks: Sequence[Network],
        passes: Sequence[Work],
        threads: int,
        counter: "ActorHandle[Counter]",
    ) -> None:
        """Remember what the driver has sent.

        Args:
            networks: the frozen parts.
            passes: over the pixels.
            threads: of this process.
            counter: counts the images that are done.
        """
        self.networks, self.passes = networks, passes
        self.threads, self.counter = threads, counter
        self.engines: dict[int, Engine] = {}
        if any(work.variation for work in passes):
            import torch

            torch.set_num_threads(threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {number, fold, path, target}; rows out: {number, fold, target}
        for number, path, target in zip(
            *(batch[name].to_pylist() for name in ("number", "path", "target")), strict=True
        ):
            rows, work = read_part(path), self.passes[number]
            pixels = to_array(rows["x"], (work.image_px, work.image_px), "uint8")
            if work.variation:
                pixels = varied(work.variation, pixels, np.asarray(rows["row"]))
            features = self._engine(work.network).run(pixels, self.counter.add.remote)
            column = to_column(features)
            storage.write_table(target, rows.set_column(rows.column_names.index("x"), "x", column))
        return batch.select(["number", "fold", "target"])

    def _engine(self, number: int) -> Engine:
        if number not in self.engines:
            self.engines[number] = self.networks[number].open(self.threads)
        return self.engines[number]
