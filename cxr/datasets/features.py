"""The frozen part of a backbone, run once over a data set and cached.

Ten epochs of a head then take hardly longer than one, and recipes with the same backbone, weights,
image size and normalization share the features. All passes of a call share one pool of actors,
since starting an actor takes seconds.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.actor import ActorHandle

from cxr import cluster, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import Shards, finish_shards, load_shards, part_file, read_part, shards_key
from cxr.inference import devices
from cxr.inference.engine import Engine
from cxr.models import classifier, transforms
from cxr.models.classifier import Classifier, State
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array, to_column


@dataclass(frozen=True)
class Pass:
    """One frozen part and the pixels to run it over."""

    pixels: Shards
    recipe: Recipe
    """Gives image size and normalization."""
    model: Classifier
    """With its weights; only `model.prefix` is used."""

    def folder(self, cache: str) -> str:
        """The folder of its features.

        The key does not tell bfloat16 from float32: which of them an actor computes in depends on
        the processor of its node, which is not known here.
        """
        key = shards_key(
            self.pixels,
            self.recipe.backbone,
            self.recipe.pooling,
            self.model.num_frozen,
            self.recipe.normalization,
            transforms.VERSION,
            classifier.digest(self.model.states(frozen=True)),
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
        self.recipes, self.states, self.gpu, self.counter = recipes, states, gpu, counter
        self.engines: dict[int, Engine] = {}

    def __call__(self, batch: pa.Table) -> pa.Table:
        # rows in: {number, fold, path, target}; rows out: {number, fold, target}
        for number, path, target in zip(
            *(batch[name].to_pylist() for name in ("number", "path", "target")), strict=True
        ):
            rows, side = read_part(path), self.recipes[number].image_px
            pixels = to_array(rows["x"], (side, side), "uint8")
            features = self._engine(number).run(pixels, self.counter.add.remote)
            column = to_column(features)
            storage.write_table(target, rows.set_column(rows.column_names.index("x"), "x", column))
        return batch.select(["number", "fold", "target"])

    def _engine(self, number: int) -> Engine:
        if number not in self.engines:
            recipe = self.recipes[number]
            model = classifier.build(recipe)
            tensors: State = ray.get(self.states[number])
            model.load_state_dict(dict(tensors), strict=False)
            self.engines[number] = Engine(model.prefix, recipe.normalization, gpu=self.gpu)
        return self.engines[number]


def extract(passes: Sequence[Pass], cache: str, *, gpu: bool = False) -> list[Shards]:
    """Run frozen parts over every image, or read the features that an earlier run computed.

    Args:
        passes: frozen parts and their pixels; equal ones are run once.
        cache: folder or bucket prefix; on a cluster one that all nodes can reach.
        gpu: run each actor on a GPU.

    Returns:
        For each pass, shards of features: float32 of the prefix's output shape, with the rows and
        folds of its pixels.
    """
    folders = [frozen.folder(cache) for frozen in passes]
    cached = {folder: load_shards(folder) for folder in dict.fromkeys(folders)}
    features = {folder: shards for folder, shards in cached.items() if shards is not None}
    missing = {
        folder: frozen
        for folder, frozen in zip(folders, passes, strict=True)
        if folder not in features
    }
    if missing:
        features |= _run(missing, gpu=gpu)
    return [features[folder] for folder in folders]


def _run(missing: dict[str, Pass], *, gpu: bool) -> dict[str, Shards]:
    work, passes = [], list(missing.values())
    attempt = uuid.uuid4().hex[:12]
    for number, (folder, frozen) in enumerate(missing.items()):
        for fold, paths in frozen.pixels.parts.items():
            for index, path in enumerate(paths):
                target = part_file(folder, attempt, fold, index)
                row: dict[str, list[Any]] = {
                    "number": [number], "fold": [fold], "path": [path], "target": [target],
                }  # fmt: skip
                work.append(pa.table(row))
    num_images = sum(len(frozen.pixels.table) for frozen in passes)
    pool = cluster.pool(len(work), devices.CPU_THREADS, gpu=gpu)
    recipes = [frozen.recipe for frozen in passes]
    names = ", ".join(dict.fromkeys(recipe.backbone for recipe in recipes))
    with ClusterProgress(f"frozen convolutions of {names}", num_images) as progress:
        states = [ray.put(frozen.model.states(frozen=True)) for frozen in passes]
        done: Any = pool.map(
            ray.data.from_blocks(work),
            FeatureExtractor,
            (recipes, states, pool.share.threads, gpu, progress.counter),
        ).take_all()
    written = sorted((row["number"], row["fold"], row["target"]) for row in done)
    features = {}
    for number, (folder, frozen) in enumerate(missing.items()):
        parts: dict[int, list[str]] = {}
        for done_number, fold, target in written:
            if done_number == number:
                parts.setdefault(fold, []).append(target)
        shape = frozen.model.prefix_shape(frozen.recipe.image_px)
        features[folder] = finish_shards(
            folder, shape, "float32", parts, frozen.pixels.table, frozen.pixels.failed
        )
    return features
