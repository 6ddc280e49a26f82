"""The frozen part of a backbone, run once over a data set and cached.

Ten epochs of a head then cost hardly more than one, and versions that share backbone, weights,
image size and normalization share the pass. All passes that are still to be run share one pool of
actors, since starting an actor costs seconds.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, devices, models, storage, transforms
from cxr.data import Shards, finish_shards, load_shards, read_part, shards_key, to_arrays
from cxr.models import Classifier, State
from cxr.progress import Counter, Progress
from cxr.recipes import Recipe


@dataclass(frozen=True)
class Pass:
    """One frozen part to run over one set of pixels."""

    pixels: Shards
    recipe: Recipe
    """Says image size and normalization."""
    model: Classifier
    """With its weights; only `model.prefix` is used."""

    def folder(self, cache: str) -> str:
        """Where its features belong."""
        key = shards_key(
            self.pixels,
            self.recipe.backbone,
            self.recipe.pooling,
            self.model.num_frozen,
            self.recipe.normalization,
            models.digest(self.model.states(frozen=True)),
        )
        return storage.join(storage.absolute(cache), "features", key)


class FeatureExtractor:
    """An actor that runs frozen parts over shards of pixels and writes shards of features."""

    def __init__(
        self,
        recipes: Sequence[Recipe],
        states: "Sequence[ray.ObjectRef[State]]",
        threads: int,
        gpu: bool,
        counter: "ActorHandle[Counter]",
    ) -> None:
        torch.set_num_threads(threads)
        self.device = devices.device(gpu)
        self.batch_size = devices.batch_size(gpu)
        self.recipes, self.states, self.counter = recipes, states, counter
        self.prefixes: dict[int, torch.nn.Module] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {number, fold, path, target}; rows out: {number, fold, target}
        for number, path, target in zip(
            *(batch[name].to_pylist() for name in ("number", "path", "target")), strict=True
        ):
            pixels = read_part(path)
            arrays = self.run(number, pixels)
            column = pa.array([array.tobytes() for array in arrays], pa.binary())
            table = pixels.set_column(pixels.column_names.index("x"), "x", column)
            storage.write_table(target, table)
        return batch.select(["number", "fold", "target"])

    def run(self, number: int, table: pa.Table) -> NDArray[np.float32]:
        """The features of a shard's pixels, float32 (N, *shape)."""
        recipe, prefix = self.recipes[number], self._prefix(number)
        grey = to_arrays(table, (recipe.image_px, recipe.image_px), "uint8")[:, None]
        parts = []
        for start in range(0, len(grey), self.batch_size):
            some = torch.from_numpy(grey[start : start + self.batch_size].copy())
            with torch.inference_mode(), devices.autocast(self.device):
                images = transforms.normalize(some.to(self.device), recipe.normalization)
                maps = prefix(images.contiguous(memory_format=torch.channels_last))
            parts.append(maps.float().contiguous().cpu().numpy())
            self.counter.add.remote(len(some))
        return np.concatenate(parts)

    def _prefix(self, number: int) -> torch.nn.Module:
        if number not in self.prefixes:
            model = models.build(self.recipes[number])
            tensors: State = ray.get(self.states[number])
            model.load_state_dict(dict(tensors), strict=False)
            self.prefixes[number] = devices.for_inference(model.prefix, self.device)
        return self.prefixes[number]


def extract(passes: Sequence[Pass], cache: str, *, gpu: bool = False) -> list[Shards]:
    """Run frozen parts over every image, or take what an earlier run computed.

    Args:
        passes: what to run over what; equal ones are run once.
        cache: folder or bucket prefix; on a cluster one that all nodes reach.
        gpu: one GPU an actor, instead of CPUs.

    Returns:
        For each pass, shards of features: float32 of the prefix's output shape, with the rows and
        folds of its pixels.
    """
    folders = [each.folder(cache) for each in passes]
    missing = {
        folder: each
        for folder, each in zip(folders, passes, strict=True)
        if load_shards(folder) is None
    }
    if missing:
        _run(missing, gpu=gpu)
    found = [load_shards(folder) for folder in folders]
    return [shards for shards in found if shards is not None]


def _run(missing: dict[str, Pass], *, gpu: bool) -> None:
    work, passes = [], list(missing.values())
    attempt = uuid.uuid4().hex[:12]
    for number, (folder, each) in enumerate(missing.items()):
        for fold, paths in each.pixels.parts.items():
            for index, path in enumerate(paths):
                target = storage.join(folder, attempt, f"fold={fold}", f"{index:06}.parquet")
                row: dict[str, list[Any]] = {
                    "number": [number], "fold": [fold], "path": [path], "target": [target],
                }  # fmt: skip
                work.append(pa.table(row))
    num_images = sum(len(each.pixels.table) for each in passes)
    pool = cluster.pool(len(work), devices.CPU_THREADS, gpu=gpu)
    recipes = [each.recipe for each in passes]
    names = ", ".join(dict.fromkeys(recipe.backbone for recipe in recipes))
    with Progress(f"frozen convolutions of {names}", num_images) as progress:
        states = [ray.put(each.model.states(frozen=True)) for each in passes]
        done: Any = (
            ray.data.from_blocks(work)
            .map_batches(
                FeatureExtractor,
                fn_constructor_args=(recipes, states, pool.share.threads, gpu, progress.counter),
                batch_size=None,
                batch_format="pyarrow",
                compute=pool.strategy,
                num_cpus=pool.share.num_cpus,
                num_gpus=pool.share.num_gpus,
            )
            .take_all()
        )
    written = sorted((row["number"], row["fold"], row["target"]) for row in done)
    for number, (folder, each) in enumerate(missing.items()):
        parts: dict[int, list[str]] = {}
        for done_number, fold, target in written:
            if done_number == number:
                parts.setdefault(fold, []).append(target)
        shape = each.model.prefix_shape(each.recipe.image_px)
        finish_shards(folder, shape, "float32", parts, each.pixels.table, each.pixels.failed)
