"""The actor that holds a trained classifier, one model a process, loaded once."""

from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, devices, metrics, models, transforms
from cxr.checkpoint import Checkpoint
from cxr.data import Shards, to_arrays
from cxr.labels import CLASSES
from cxr.models import State
from cxr.parts import SCORES, pack, unpack
from cxr.progress import Counter, Progress
from cxr.recipes import Recipe


class Predictor:
    """An actor that holds a trained classifier and gives the logit of each row's pixels."""

    def __init__(
        self,
        recipe: Recipe,
        state: "ray.ObjectRef[State]",
        threads: int,
        gpu: bool,
        counter: "ActorHandle[Counter]",
    ) -> None:
        torch.set_num_threads(threads)
        self.device = devices.device(gpu)
        self.batch_size = devices.batch_size(gpu)
        self.recipe, self.state = recipe, state
        self.counter = counter

    @cached_property
    def model(self) -> torch.nn.Module:
        """Taken with the first rows: the weights of a job that ended before are there no more."""
        model = models.build(self.recipe)
        tensors: State = ray.get(self.state)
        model.load_state_dict(dict(tensors))
        return devices.for_inference(model, self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {..., x: pixels or null}; rows out: {..., logit: float64 or null}
        has_pixels = np.asarray(pc.is_valid(batch["x"]))
        logits: NDArray[np.float64] = np.full(len(batch), np.nan)
        if has_pixels.any():
            logits[has_pixels] = self.logits(batch.filter(pa.array(has_pixels)))
        self.counter.add.remote(len(batch))
        column = pa.array(logits, pa.float64(), mask=~has_pixels)
        return batch.drop_columns(["x"]).append_column("logit", column)

    def logits(self, batch: pa.Table) -> NDArray[np.float32]:
        """Log-odds of pneumonia, (N,), of rows that all have pixels."""
        shape = (self.recipe.image_px, self.recipe.image_px)
        pixels = to_arrays(batch, shape, "uint8")[:, None]
        parts = []
        for start in range(0, len(pixels), self.batch_size):
            some = torch.from_numpy(pixels[start : start + self.batch_size].copy())
            with torch.inference_mode(), devices.autocast(self.device):
                images = transforms.normalize(some.to(self.device), self.recipe.normalization)
                outputs = self.model(images.contiguous(memory_format=torch.channels_last))
            parts.append(models.logit(outputs).cpu().numpy())
        return np.concatenate(parts)


class PartPredictor(Predictor):
    """A predictor of whole parts: gives each row its score and its verdict."""

    def __init__(
        self,
        recipe: Recipe,
        state: "ray.ObjectRef[State]",
        threads: int,
        gpu: bool,
        counter: "ActorHandle[Counter]",
        temperature: float,
        threshold: float,
    ) -> None:
        super().__init__(recipe, state, threads, gpu, counter)
        self.temperature, self.threshold = temperature, threshold

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {part, rows: packed, with x}; rows out: {part, rows: packed, schema SCORES}
        scored = [pack(self._score(unpack(rows))) for rows in batch["rows"].to_pylist()]
        return batch.set_column(1, "rows", pa.array(scored, pa.binary()))

    def _score(self, table: pa.Table) -> pa.Table:
        has_pixels = np.asarray(pc.is_valid(table["x"]))
        logits: NDArray[np.float64] = np.full(len(table), np.nan)
        if has_pixels.any():
            logits[has_pixels] = self.logits(table.filter(pa.array(has_pixels)))
        probs = metrics.probabilities(logits, self.temperature)
        called = [CLASSES[int(prob >= self.threshold)] for prob in probs]
        self.counter.add.remote(len(table))
        columns = {
            "prob_pneumonia": pa.array(probs, pa.float64(), mask=~has_pixels),
            "logit": pa.array(logits, pa.float64(), mask=~has_pixels),
            "prediction": pa.array(called, pa.string(), mask=~has_pixels),
        }
        arrays = [columns.get(name, table[name] if name in table.column_names else None)
                  for name in SCORES.names]  # fmt: skip
        return pa.table(arrays, schema=SCORES)


def predict(
    dataset: "ray.data.Dataset",
    checkpoint: Checkpoint,
    num_images: int,
    counter: "ActorHandle[Counter]",
    *,
    gpu: bool,
) -> "ray.data.Dataset":
    """Add the logit of each row's pixels to a stream.

    Args:
        dataset: rows {..., x}; `x` is the bytes of grey pixels, or null.
        checkpoint: whose model predicts.
        num_images: rows of the dataset, to start no more actors than have work.
        counter: told how many rows are done.
        gpu: a GPU for each actor.

    Returns:
        The same rows without `x`, with `logit`, null where there were no pixels.
    """
    batch_size = devices.batch_size(gpu)
    pool = cluster.pool(-(-num_images // batch_size), devices.CPU_THREADS, gpu=gpu)
    state = ray.put(dict(checkpoint.model.state_dict()))
    return dataset.map_batches(
        Predictor,
        fn_constructor_args=(checkpoint.recipe, state, pool.share.threads, gpu, counter),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=pool.strategy,
        num_cpus=pool.share.num_cpus,
        num_gpus=pool.share.num_gpus,
    )


def score_shards(pixels: Shards, checkpoint: Checkpoint, *, gpu: bool = False) -> pa.Table:
    """The logit of every image of decoded shards.

    Returns:
        `pixels.table` with a column `logit`, float64.
    """
    num_images = len(pixels.table)
    with Progress(f"scoring with {checkpoint.recipe.name}", num_images) as progress:
        dataset = predict(
            pixels.dataset(columns=("row", "x")), checkpoint, num_images, progress.counter, gpu=gpu
        )
        parts = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    seen = pa.concat_tables(parts).sort_by("row")
    order = pc.index_in(pixels.table["row"], seen["row"])
    return pixels.table.append_column("logit", seen["logit"].take(order))
