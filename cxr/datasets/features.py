"""The frozen part of a backbone, run once over a data set and cached.

Ten epochs of a head then take hardly longer than one, and recipes with the same backbone, weights,
image size and normalization share the features. A pass may change the images first: drawn views to
train on, and acquisition changes to judge by, have features of their own. All passes of a call
share one pool of actors, since starting an actor takes seconds.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
import torch

from cxr import cluster, storage
from cxr.cluster.counter import ClusterProgress
from cxr.datasets.extractor import FeatureExtractor, Work
from cxr.datasets.shards import Shards, finish_shards, load_shards, part_file, shards_key
from cxr.datasets.variation import Variation
from cxr.inference import devices
from cxr.inference.engine import CPU_THREADS
from cxr.inference.networks import send_frozen_part
from cxr.models import classifier, transforms
from cxr.models.classifier import Classifier
from cxr.recipes import Recipe


@dataclass(frozen=True)
class Pass:
    """One frozen part and the pixels to run it over."""

    pixels: Shards
    recipe: Recipe
    """Gives image size and normalization."""
    model: Classifier
    """With its weights; only `model.prefix` is used."""
    variation: Variation | None = None
    """What is done to the pixels before; None where they stay as they are."""

    def network(self, *, onnx: bool) -> tuple[object, ...]:
        """What its frozen part is, for keys.

        Args:
            onnx: whether ONNX Runtime computes it.
        """
        return (
            self.recipe.backbone,
            self.recipe.pooling,
            self.model.num_frozen,
            self.recipe.normalization,
            transforms.VERSION,
            classifier.digest(self.model.states(frozen=True)),
            "onnx" if onnx else "torch",
        )

    def folder(self, cache: str, *, onnx: bool) -> str:
        """The folder of its features.

        The key does not tell a GPU from a CPU that multiplies in bfloat16: which of the two an
        actor computes on is not known here.

        Args:
            cache: folder or bucket prefix.
            onnx: whether ONNX Runtime computes them.
        """
        changed = [self.variation.key] if self.variation else []
        key = shards_key(self.pixels, *self.network(onnx=onnx), *changed)
        return storage.join(storage.absolute(cache), "features", key)


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
    # ONNX Runtime is faster in float32, by half for SqueezeNet, and has no bfloat16, in which
    # PyTorch is four times as fast with VGG16.
    onnx = not gpu and not devices.has_bfloat16(torch.device("cpu"))
    folders = [frozen.folder(cache, onnx=onnx) for frozen in passes]
    cached = {folder: load_shards(folder) for folder in dict.fromkeys(folders)}
    features = {folder: shards for folder, shards in cached.items() if shards is not None}
    missing = {
        folder: frozen
        for folder, frozen in zip(folders, passes, strict=True)
        if folder not in features
    }
    if missing:
        features |= _run(missing, gpu=gpu, onnx=onnx)
    return [features[folder] for folder in folders]


def _run(missing: dict[str, Pass], *, gpu: bool, onnx: bool) -> dict[str, Shards]:
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
    pool = cluster.pool(len(work), CPU_THREADS, gpu=gpu)
    names = ", ".join(dict.fromkeys(frozen.recipe.backbone for frozen in passes))
    with ClusterProgress(f"frozen convolutions of {names}", num_images) as progress:
        # Passes that differ in their images share a network, in the object store and in the actors.
        keys = [(*frozen.network(onnx=onnx), frozen.recipe.image_px) for frozen in passes]
        distinct = dict(zip(keys, passes, strict=True))
        networks = [
            send_frozen_part(frozen.recipe, frozen.model, gpu=gpu, onnx=onnx)
            for frozen in distinct.values()
        ]
        works = [
            Work(list(distinct).index(name), frozen.recipe.image_px, frozen.variation)
            for name, frozen in zip(keys, passes, strict=True)
        ]
        done: Any = pool.map(
            ray.data.from_blocks(work),
            FeatureExtractor,
            (networks, works, pool.share.threads, progress.counter),
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
