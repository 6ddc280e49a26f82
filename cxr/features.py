"""The frozen part of a backbone, run once over a data set and cached.

Ten epochs of a head then cost hardly more than one, and versions that share backbone, weights,
image size and normalization share the pass.
"""

import pyarrow as pa
import ray
import ray.data
import torch
from ray.actor import ActorHandle

from cxr import cluster, devices, models, storage, transforms
from cxr.data import READ_CPUS, Shards, load_shards, shards_key, to_arrays, write_shards
from cxr.models import Classifier, State
from cxr.progress import Counter, Progress
from cxr.recipes import Normalization, Recipe

BATCH_SIZE = 16
"""Images a forward pass; larger ones gained nothing on a CPU and cost memory at 224 px."""

ACTOR_THREADS = 4
"""Threads of an actor on a CPU, at most: enough to share one copy of the weights and of PyTorch,
few enough to lose nothing."""


class FeatureExtractor:
    """An actor that holds a frozen prefix and runs it over batches of pixels."""

    def __init__(
        self,
        recipe: Recipe,
        state: "ray.ObjectRef[State]",
        shape: tuple[int, ...],
        threads: int,
        gpu: bool,
        counter: "ActorHandle[Counter]",
    ) -> None:
        torch.set_num_threads(threads)
        self.device = devices.device(gpu)
        model = models.build(recipe)
        tensors: State = ray.get(state)
        model.load_state_dict(dict(tensors), strict=False)
        self.prefix = model.prefix.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.normalization: Normalization = recipe.normalization
        self.shape = shape
        self.counter = counter

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {..., x: pixels}; rows out: {..., x: features}
        grey = torch.from_numpy(to_arrays(batch, self.shape, "uint8")[:, None].copy()).to(
            self.device
        )
        with torch.inference_mode(), devices.autocast(self.device):
            images = transforms.normalize(grey, self.normalization)
            maps = self.prefix(images.contiguous(memory_format=torch.channels_last))
        arrays = maps.float().contiguous().cpu().numpy()
        column = pa.array([array.tobytes() for array in arrays], pa.binary())
        self.counter.add.remote(len(batch))
        return batch.set_column(batch.column_names.index("x"), "x", column)


def extract(
    pixels: Shards,
    recipe: Recipe,
    model: Classifier,
    cache: str,
    *,
    gpu: bool = False,
) -> Shards:
    """Run a model's frozen prefix over every image, or take what an earlier run computed.

    Args:
        pixels: shards of grey pixels.
        recipe: says image size and normalization.
        model: with its weights; only `model.prefix` is used.
        cache: folder or bucket prefix; on a cluster one that all nodes reach.
        gpu: one GPU an actor, instead of CPUs.

    Returns:
        Shards of features, float32 of the prefix's output shape, the same rows and folds.
    """
    state = model.states(frozen=True)
    key = shards_key(
        pixels, recipe.backbone, recipe.pooling, model.num_frozen, recipe.normalization,
        models.digest(state),
    )  # fmt: skip
    folder = storage.join(storage.absolute(cache), "features", key)
    shards = load_shards(folder)
    if shards is not None:
        return shards
    num_images = len(pixels.table)
    size = cluster.num_processes(num_images // BATCH_SIZE, ACTOR_THREADS, gpu=gpu)
    share = cluster.share(size, gpu=gpu)
    state_ref = ray.put(state)
    title = f"{recipe.backbone}: {recipe.frozen} frozen convolutions"
    with Progress(title, num_images) as progress:
        dataset = pixels.dataset().map_batches(
            FeatureExtractor,
            fn_constructor_args=(
                recipe,
                state_ref,
                pixels.shape,
                share.threads,
                gpu,
                progress.counter,
            ),
            batch_size=BATCH_SIZE,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
        )
        shape = model.prefix_shape(recipe.image_px)
        return write_shards(dataset, folder, shape, "float32", write_cpus=READ_CPUS)
