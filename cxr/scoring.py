"""Batch inference: one model a worker, loaded once, over a stream of pixels."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, devices, metrics, models, sources, storage, transforms
from cxr.checkpoint import Checkpoint
from cxr.data import IMAGES_PER_BLOCK, READ_CPUS, Shards, read_radiograph, to_arrays
from cxr.labels import CLASSES
from cxr.models import State
from cxr.progress import Counter, Progress
from cxr.recipes import Recipe

BATCH_SIZE = 16
"""Images a forward pass, as `cxr.features` runs them."""

MAX_THREADS = 4
"""Threads of a predictor on a CPU, at most; a bound, not a measurement."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of the files of an archive."""

    num_scored: int
    failures: dict[str, str]
    """Reason by uri of the files that gave no score."""


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
        self.recipe = recipe
        self.counter = counter
        model = models.build(recipe)
        tensors: State = ray.get(state)
        model.load_state_dict(dict(tensors))
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()

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
        """Log-odds of pneumonia, (N,), of a batch whose rows all have pixels."""
        shape = (self.recipe.image_px, self.recipe.image_px)
        pixels = torch.from_numpy(to_arrays(batch, shape, "uint8")[:, None].copy())
        with torch.inference_mode(), devices.autocast(self.device):
            images = transforms.normalize(pixels.to(self.device), self.recipe.normalization)
            outputs = self.model(images.contiguous(memory_format=torch.channels_last))
        found: NDArray[np.float32] = models.logit(outputs).cpu().numpy()
        return found


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
    size = cluster.num_processes(num_images // BATCH_SIZE, MAX_THREADS, gpu=gpu)
    share = cluster.share(size, gpu=gpu)
    state = ray.put(dict(checkpoint.model.state_dict()))
    return dataset.map_batches(
        Predictor,
        fn_constructor_args=(checkpoint.recipe, state, share.threads, gpu, counter),
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus,
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


def score_folder(source: str, checkpoint: Checkpoint, output: str, *, gpu: bool = False) -> Summary:
    """Score every file below a folder that may be a radiograph; one Parquet row a file.

    Args:
        source: folder, bucket prefix or file.
        checkpoint: whose model, temperature and operating point are used.
        output: folder for the Parquet parts: uri, prob_pneumonia, logit, prediction, error.
        gpu: compute on GPUs.
    """
    listing = sources.list_images(source)
    blocks = [
        listing.slice(start, IMAGES_PER_BLOCK).select(["uri"])
        for start in range(0, len(listing), IMAGES_PER_BLOCK)
    ]
    with Progress(f"scoring with {checkpoint.recipe.name}", len(listing)) as progress:
        pixels = ray.data.from_arrow(blocks).map_batches(
            _read,  # type: ignore[arg-type]
            fn_args=(checkpoint.recipe.image_px,),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=cluster.SPARE_CPUS,
        )
        predict(pixels, checkpoint, len(listing), progress.counter, gpu=gpu).map_batches(
            _conclude,  # type: ignore[arg-type]
            fn_args=(checkpoint.temperature, checkpoint.operating_point.threshold),
            batch_format="pyarrow",
            num_cpus=READ_CPUS,
        ).write_parquet(output, ray_remote_args={"num_cpus": READ_CPUS})
    failures: dict[str, str] = {}
    num_scored = 0
    for file in storage.list_files(output):
        if file.uri.endswith(".parquet"):
            table = storage.read_table(file.uri)
            num_scored += len(table) - table["prob_pneumonia"].null_count
            failed = table.filter(pc.is_null(table["prob_pneumonia"])).to_pydict()
            failures |= dict(zip(failed["uri"], failed["error"], strict=True))
    return Summary(num_scored, failures)


def _read(batch: pa.Table, image_px: int) -> pa.Table:
    # rows in: {uri}; rows out: {uri, error, x}
    read = [read_radiograph(uri, image_px) for uri in batch["uri"].to_pylist()]
    errors = pa.array([error or None for _, error, _ in read], pa.string())
    pixels = [None if x is None else x.tobytes() for x, _, _ in read]
    return batch.append_column("error", errors).append_column("x", pa.array(pixels, pa.binary()))


def _conclude(batch: pa.Table, temperature: float, threshold: float) -> pa.Table:
    # rows in: {uri, error, logit}; rows out: {uri, prob_pneumonia, logit, prediction, error}
    logits = batch["logit"].to_pylist()
    probs: list[Any] = [
        None if logit is None else float(metrics.probabilities([logit], temperature)[0])
        for logit in logits
    ]
    called = [None if prob is None else CLASSES[int(prob >= threshold)] for prob in probs]
    return pa.table(
        {
            "uri": batch["uri"],
            "prob_pneumonia": pa.array(probs, pa.float64()),
            "logit": batch["logit"],
            "prediction": pa.array(called, pa.string()),
            "error": batch["error"],
        }
    )
