"""The frozen part of a backbone, run once over a data set and cached.

Ten epochs of a head then cost hardly more than one, and versions that share backbone, weights,
image size and normalization share the pass.
"""

from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.actor import ActorHandle

from cxr import devices, models, storage, transforms
from cxr.data import READ_CPUS, Shards, load_shards, shards_key, to_arrays, write_shards
from cxr.models import Classifier, State
from cxr.progress import Counter, Progress
from cxr.recipes import Normalization, Recipe

BATCH_SIZE = 16
"""Images a forward pass; larger ones gained nothing on a CPU and cost memory at 224 px."""

ACTOR_CPUS = 0.9
"""CPUs that an actor claims: one thread's worth, less what the tasks that feed it need."""


class FeatureExtractor:
    """An actor that holds a frozen prefix and runs it over batches of pixels."""

    def __init__(
        self,
        recipe: Recipe,
        state: "ray.ObjectRef[State]",
        shape: tuple[int, ...],
        gpu: bool,
        counter: "ActorHandle[Counter]",
    ) -> None:
        devices.set_threads(1)
        self.device = devices.device(gpu)
        model = models.build(recipe)
        model.load_state_dict(dict(ray.get(state)), strict=False)
        self.prefix = model.prefix.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.normalization: Normalization = recipe.normalization
        self.shape = shape
        self.counter = counter

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {..., x: pixels}; rows out: {..., x: features}
        grey = torch.from_numpy(to_arrays(batch, self.shape, "uint8")[:, None].copy()).to(self.device)
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
    names = {f"features.{name}" for name in model.prefix.state_dict()}
    state = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    key = shards_key(
        pixels, recipe.backbone, model.num_frozen, recipe.normalization, models.digest(state)
    )
    folder = storage.join(storage.absolute(cache), "features", key)
    shards = load_shards(folder)
    if shards is not None:
        return shards
    actor: dict[str, Any] = (
        {"num_gpus": 1, "num_cpus": 1} if gpu else {"num_cpus": ACTOR_CPUS}
    )
    available = ray.cluster_resources().get("GPU" if gpu else "CPU", 1.0)
    size = max(1, int(min(available, -(-len(pixels.table) // BATCH_SIZE))))
    title = f"{recipe.backbone}: {recipe.frozen} frozen convolutions"
    with Progress(title, len(pixels.table)) as progress:
        dataset = pixels.dataset().map_batches(
            FeatureExtractor,
            fn_constructor_args=(recipe, ray.put(state), pixels.shape, gpu, progress.counter),
            batch_size=BATCH_SIZE,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size),
            **actor,
        )
        shape = model.prefix_shape(recipe.image_px)
        return write_shards(dataset, folder, shape, "float32", write_cpus=READ_CPUS)
