"""The actor that holds a trained classifier: one per process, loaded once."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr.cluster.counter import Counter
from cxr.inference.engine import Engine
from cxr.models import classifier
from cxr.models.classifier import State
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array


class Predictor:
    """Adds the logit of each row's pixels to batches of a stream."""

    def __init__(
        self,
        recipe: Recipe,
        state: "ray.ObjectRef[State]",
        threads: int,
        gpu: bool,
        counter: "ActorHandle[Counter]",
    ) -> None:
        """Remember what the driver has sent.

        Args:
            recipe: of the classifier.
            state: its tensors.
            threads: of this process.
            gpu: compute on the GPU that Ray assigned to this process.
            counter: counts the rows that are done.
        """
        torch.set_num_threads(threads)
        self.recipe, self.state, self.gpu, self.counter = recipe, state, gpu, counter

    @cached_property
    def engine(self) -> Engine:
        """Built with the first rows, so an actor without rows does not wait for the weights."""
        model = classifier.build(self.recipe)
        tensors: State = ray.get(self.state)
        model.load_state_dict(dict(tensors))
        return Engine(model, self.recipe.normalization, gpu=self.gpu)

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {..., x: pixels or null}; rows out: {..., logit: float64 or null}
        logits = self.logits(batch["x"])
        self.counter.add.remote(len(batch))
        column = pa.array(logits, pa.float64(), mask=np.isnan(logits))
        return batch.drop_columns(["x"]).append_column("logit", column)

    def logits(self, column: pa.ChunkedArray) -> NDArray[np.float64]:
        """Log-odds of pneumonia, float64 (N,); NaN where a row has no pixels.

        Args:
            column: N rows, gray pixels as bytes, uint8 (image_px, image_px), or null.
        """
        has_pixels = np.asarray(pc.is_valid(column))
        logits: NDArray[np.float64] = np.full(len(column), np.nan)
        if has_pixels.any():
            shape = (self.recipe.image_px, self.recipe.image_px)
            pixels = to_array(column.filter(pa.array(has_pixels)), shape, "uint8")
            logits[has_pixels] = classifier.logit(self.engine.run(pixels))
        return logits
