"""The predicting stage: an actor that turns the pixels of parts into scores."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle

from cxr import metrics
from cxr.cluster.counter import Counter
from cxr.inference.networks import Network
from cxr.inference.predictor import Predictor
from cxr.labels import CLASSES
from cxr.scoring.parts import PIXELS, pack, unpack


class PartPredictor(Predictor):
    """A predictor of whole parts."""

    def __init__(
        self,
        network: Network,
        image_px: int,
        threads: int,
        counter: "ActorHandle[Counter]",
        temperature: float,
        threshold: float,
        schema: pa.Schema,
    ) -> None:
        super().__init__(network, image_px, threads, counter)
        self.temperature, self.threshold, self.schema = temperature, threshold, schema

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {part, rows: packed pixels}; rows out: {part, rows: packed scores}
        scored = [pack(self._score(unpack(rows))) for rows in batch["rows"].to_pylist()]
        return batch.set_column(1, "rows", pa.array(scored, pa.binary()))

    def _score(self, table: pa.Table) -> pa.Table:
        logits = self.logits(table[PIXELS])
        probs = metrics.probabilities(logits, self.temperature)
        predictions = [CLASSES[int(prob >= self.threshold)] for prob in probs]
        self.counter.add.remote(len(table))
        without = np.asarray(pc.is_null(table[PIXELS]))
        columns = {
            "prob_pneumonia": pa.array(probs, pa.float64(), mask=without),
            "logit": pa.array(logits, pa.float64(), mask=without),
            "prediction": pa.array(predictions, pa.string(), mask=without),
        }
        arrays = [columns[name] if name in columns else table[name] for name in self.schema.names]
        return pa.table(arrays, schema=self.schema)
