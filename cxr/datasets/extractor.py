"""The actor that runs frozen parts of networks over shards of pixels."""

from collections.abc import Sequence

import pyarrow as pa
from ray.actor import ActorHandle

from cxr import storage
from cxr.cluster.counter import Counter
from cxr.datasets.shards import read_part
from cxr.inference.engine import Engine
from cxr.inference.networks import Network
from cxr.storage.arrays import to_array, to_column


class FeatureExtractor:
    """Reads shards of pixels and writes shards of features."""

    def __init__(
        self,
        networks: Sequence[Network],
        image_px: Sequence[int],
        threads: int,
        counter: "ActorHandle[Counter]",
    ) -> None:
        """Remember what the driver has sent.

        Args:
            networks: the frozen parts.
            image_px: side of the squares that each of them takes.
            threads: of this process.
            counter: counts the images that are done.
        """
        self.networks, self.image_px = networks, image_px
        self.threads, self.counter = threads, counter
        self.engines: dict[int, Engine] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {number, fold, path, target}; rows out: {number, fold, target}
        for number, path, target in zip(
            *(batch[name].to_pylist() for name in ("number", "path", "target")), strict=True
        ):
            rows, side = read_part(path), self.image_px[number]
            pixels = to_array(rows["x"], (side, side), "uint8")
            features = self._engine(number).run(pixels, self.counter.add.remote)
            column = to_column(features)
            storage.write_table(target, rows.set_column(rows.column_names.index("x"), "x", column))
        return batch.select(["number", "fold", "target"])

    def _engine(self, number: int) -> Engine:
        if number not in self.engines:
            self.engines[number] = self.networks[number].open(self.threads)
        return self.engines[number]
