"""Memory of a training worker: v1 holds the training set in memory, v2 streams it.

    python -m benchmarks.memory --random-features --sizes 1000 3000 5000 --output memory.json
    python -m benchmarks.memory --data chest_xray --sizes 200 400    # the real frozen pass

Each size and version is one epoch of `trainer.fit` on the CPU in a fresh worker, on rows of the
shape of frozen VGG16's output at 224 px (25,088 float32, 98 KiB per radiograph), four fifths of
them for training. Both use the same batch size, not v1's 1 and v2's 15, so that only the way of
loading differs. The figure is the worker's peak anonymous memory; Ray's object store, which is
shared and bounded, is not included.

With `--random-features` the rows are random numbers, written by the function that writes real ones.
The training stage reads as many bytes in the same form, without a pass of VGG16 over thousands of
images. What the head learns from them has no meaning.
"""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from cxr import cli, cluster, phantoms
from cxr.datasets import features
from cxr.datasets.pixels import decode_shards
from cxr.datasets.shards import Shards, write_shards
from cxr.errors import SettingsError
from cxr.models import classifier
from cxr.models.classifier import Classifier
from cxr.recipes import RECIPES, Recipe
from cxr.training import trainer
from cxr.training.preparation import list_training_images
from cxr.training.settings import RunSettings

VERSIONS: Final = ("v1", "v2")
NUM_FOLDS: Final = 5


@dataclass(frozen=True)
class MemoryJob:
    """Which sets to train on."""

    sizes: tuple[int, ...] = (1000, 5000)
    """Radiographs per set, including validation."""
    random_features: bool = False
    """Fill the features with random numbers instead of running VGG16."""
    data: str | None = None
    """Folder with train / NORMAL|PNEUMONIA. Without it, synthetic radiographs are drawn."""
    batch_size: int = 64
    """Radiographs per step, for both versions."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2 * NUM_FOLDS:
            raise SettingsError(f"sizes: give one or more of at least {2 * NUM_FOLDS}.")


@dataclass(frozen=True)
class Row:
    """One version trained on one set."""

    version: str
    loading: str
    num_images: int
    num_train: int
    peak_memory_mib: float
    epoch_seconds: float


def random_features(num_images: int, shape: tuple[int, ...], folder: str) -> Shards:
    """Shards of random numbers, float32 (num_images, *shape), classes and folds in turn."""
    row = np.arange(num_images)
    names = [f"random-{i}" for i in row]
    rows = pa.table(
        {
            "row": row,
            "uri": names,
            "label": row // NUM_FOLDS % 2,
            "patient": names,
            "subtype": [""] * num_images,
            "fold": row % NUM_FOLDS,
            "sha256": names,
            "pixels_sha256": names,
            "error": [""] * num_images,
        }
    )

    def fill(batch: pa.Table) -> pa.Table:
        # rows in: {row, uri, label, patient, subtype, fold, sha256, pixels_sha256, error}
        # rows out: those and x
        rng = np.random.default_rng(batch["row"][0].as_py())
        x = [rng.standard_normal(shape, dtype=np.float32).tobytes() for _ in range(len(batch))]
        return batch.select(rows.column_names).append_column("x", pa.array(x, pa.binary()))

    return write_shards(rows, fill, folder, shape, "float32")


def features_of(
    job: MemoryJob, recipe: Recipe, num_images: int, folder: str
) -> tuple[Classifier, Shards]:
    """The classifier, and the features of `num_images` radiographs: random, or VGG16's."""
    model = classifier.build(recipe)
    if job.random_features:
        shape = model.prefix_shape(recipe.image_px)
        return model, random_features(num_images, shape, f"{folder}/features")
    drawn = phantoms.PhantomSettings(num_train=num_images)
    data = job.data or str(phantoms.cached(drawn, Path(folder)))
    settings = RunSettings(data=data, limit=num_images, folds=NUM_FOLDS, cache=folder)
    images = list_training_images(data, settings)
    pixels = decode_shards(images.listing, images.folds, recipe.image_px, folder)
    return model, features.extract([features.Pass(pixels, recipe, model)], folder)[0]


def measure(recipe: Recipe, model: Classifier, shards: Shards, output: str) -> Row:
    """Train one version for an epoch in a worker of its own."""
    plan = trainer.Plan(
        recipe, model, shards, cached=True, train_folds=tuple(range(1, NUM_FOLDS)),
        validation_folds=(0,), output=f"{output}/{recipe.name}",
    )  # fmt: skip
    [outcome] = trainer.fit([plan], output)
    return Row(
        version=recipe.name,
        loading=recipe.loading,
        num_images=len(shards.table),
        num_train=len(shards.rows(plan.train_folds)),
        peak_memory_mib=max(entry["peak_memory_mb"] for entry in outcome.history),
        epoch_seconds=sum(entry["seconds"] for entry in outcome.history),
    )


def slope(rows: list[Row]) -> float | None:
    """MiB that 1,000 more training images add, by least squares; None for a single size."""
    num_train = [row.num_train / 1000 for row in rows]
    if len(set(num_train)) < 2:
        return None
    return float(np.polyfit(num_train, [row.peak_memory_mib for row in rows], 1)[0])


def print_table(rows: list[Row]) -> None:
    print(f"\n{'version':8} {'loading':8} {'images':>7} {'training':>9} {'peak MiB':>9}"
          f" {'epoch s':>8}")  # fmt: skip
    for row in rows:
        print(f"{row.version:8} {row.loading:8} {row.num_images:7,} {row.num_train:9,}"
              f" {row.peak_memory_mib:9,.0f} {row.epoch_seconds:8.1f}")  # fmt: skip


def print_slopes(slopes: dict[str, float | None], row_mib: float) -> None:
    for name, value in slopes.items():
        added = "needs two sizes" if value is None else f"{value:+.1f} MiB"
        print(f"{name}: {added} per 1,000 training images (their features are"
              f" {1000 * row_mib:.1f} MiB)")  # fmt: skip


def main() -> None:
    job = cli.parse(MemoryJob, str(__doc__))
    cluster.connect()
    recipes = [
        dataclasses.replace(RECIPES[version], batch_size=job.batch_size, epochs=1)
        for version in VERSIONS
    ]
    rows: list[Row] = []
    for size in job.sizes:
        # One folder per size: 5,000 rows of features take half a gigabyte.
        with tempfile.TemporaryDirectory() as folder:
            # v1 and v2 share the network and its initial weights, and therefore the features.
            model, shards = features_of(job, recipes[0], size, folder)
            for recipe in recipes:
                rows.append(measure(recipe, model, shards, f"{folder}/run-{recipe.name}"))
                print_table(rows[-1:])
    slopes = {name: slope([row for row in rows if row.version == name]) for name in VERSIONS}
    shape = classifier.build(recipes[0]).prefix_shape(recipes[0].image_px)
    row_mib = int(np.prod(shape)) * 4 / 2**20
    print_table(rows)
    print_slopes(slopes, row_mib)
    if job.output:
        results = {
            "features": "random" if job.random_features else "vgg16",
            "batch_size": job.batch_size,
            "rows": [dataclasses.asdict(row) for row in rows],
            "mib_per_1000_training_images": slopes,
            "feature_mib_per_1000": 1000 * row_mib,
        }
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
