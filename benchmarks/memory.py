"""Memory of a training worker: v1 holds the training set in memory, v2 streams it.

    python -m benchmarks.memory --random-features --sizes 1000 3000 5000 --output memory.json
    python -m benchmarks.memory --data chest_xray --sizes 200 400    # the real frozen pass

Each size and version is one epoch of `trainer.fit` on the CPU in a fresh worker, on rows of the
shape of frozen VGG16's output at 224 px (25,088 float32, 98 KiB per radiograph), four fifths of
them for training. Both use the same batch size, not v1's 1 and v2's 15, so that only the way of
loading differs. The figure is the worker's peak anonymous memory; Ray's object store, which is
shared and bounded, is not included.

    python -m benchmarks.memory --train-rows 100000 1000000

`--train-rows` measures the driver instead: a CSV of so many labeled images with patients and splits
is listed, divided into folds and put into training order by `list_training_images`, and, in a
process of its own, by pandas and scikit-learn. The files do not exist; looking for them is part of
both.

With `--random-features` the rows are random numbers, written by the function that writes real ones.
The training stage reads as many bytes in the same form, without a pass of VGG16 over thousands of
images. What the head learns from them has no meaning.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from cxr import cli, cluster, phantoms
from cxr.datasets import features
from cxr.datasets.pixels import decode_shards
from cxr.datasets.shards import Shards, write_shards
from cxr.errors import CxrError, SettingsError
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
    train_rows: tuple[int, ...] = ()
    """Rows of CSVs to list and to divide; nothing is trained then."""
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


@dataclass(frozen=True)
class Listed:
    """What one way of listing a set of labeled images took."""

    library: str
    num_rows: int
    cpu_seconds: float
    seconds: float
    base_mib: float
    """Memory of the process alone before, with all libraries imported."""
    peak_bytes_per_row: float
    """Of resident memory, above that before."""
    kept_bytes_per_row: float
    """At the end: rows in training order, and the fold of each."""


ListImages = Callable[[str], tuple[pa.Table | pd.DataFrame, NDArray[np.int64]]]


def write_labels(num_rows: int, folder: Path) -> Path:
    """A CSV of files that do not exist: three images a patient, a tenth of the patients to test."""
    path = folder / f"labels-{num_rows}.csv"
    rng = np.random.default_rng(0)
    patients = rng.integers(0, num_rows // 3, num_rows).tolist()
    with path.open("w") as file:
        file.write("uri,label,patient,split\n")
        file.writelines(
            f"images/{row // 1000:06}/{row:09}.dcm,{int(patient % 4 > 0)},P{patient:08},"
            f"{'test' if patient % 10 == 0 else 'train'}\n"
            for row, patient in enumerate(patients)
        )
    return path


def list_by_cxr(path: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """As a training run."""
    images = list_training_images(path, RunSettings(data=path, folds=NUM_FOLDS))
    return images.listing, images.folds


def list_by_pandas(path: str) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The same columns, folds and order, as a script with pandas and scikit-learn does it."""
    rows = pd.read_csv(path, dtype=str)
    root = Path(path).parent
    rows["uri"] = [str(root / uri) for uri in rows["uri"]]
    rows = rows.drop_duplicates("uri")
    files = [Path(uri) for uri in rows["uri"]]
    rows["size"] = [file.stat().st_size if file.exists() else -1 for file in files]
    rows["label"] = rows["label"].map({"0": 0, "1": 1}).astype("int8")
    keys = [f"patient {patient}".encode() for patient in rows["patient"]]
    rows["patient_digest"] = [hashlib.sha256(key).hexdigest() for key in keys]
    rows["patient"] = rows["patient"].rank(method="dense").astype(int) - 1
    if rows.groupby("patient")["split"].nunique().max() > 1:
        raise CxrError(f"{path}: a patient is in two splits.")
    rows = rows[rows["split"] == "train"].sort_values("uri", ignore_index=True)
    folds = np.empty(len(rows), dtype=np.int64)
    splitter = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=0)
    for fold, (_, own) in enumerate(splitter.split(rows, rows["label"], rows["patient"])):
        folds[own] = fold
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.take(order), folds[order]


def measure_listing(name: str, list_images: ListImages, path: str, num_rows: int) -> Listed:
    """List a set; to be called in a process of its own."""
    process = psutil.Process()
    base, before = process.memory_full_info().uss, process.memory_info().rss
    cpu, began = time.process_time(), time.monotonic()
    kept = list_images(path)
    cpu_seconds, seconds = time.process_time() - cpu, time.monotonic() - began
    pa.default_memory_pool().release_unused()
    after = process.memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: KiB.
    del kept
    return Listed(
        name, num_rows, cpu_seconds, seconds, base / 2**20, (peak - before) / num_rows,
        (after - before) / num_rows,
    )  # fmt: skip


def measure_listings(sizes: tuple[int, ...]) -> list[Listed]:
    """List sets of so many rows in every way, each in a fresh process."""
    ways: dict[str, ListImages] = {"cxr": list_by_cxr, "pandas": list_by_pandas}
    listings = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for num_rows in sizes:
            path = str(write_labels(num_rows, Path(folder)))
            for name, list_images in ways.items():
                with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
                    call = process.submit(measure_listing, name, list_images, path, num_rows)
                    listed = call.result()
                listings.append(listed)
                print(
                    f"{num_rows:10,} rows by {name}: {listed.cpu_seconds:.1f} s of CPU in"
                    f" {listed.seconds:.1f} s; bytes a row: {listed.peak_bytes_per_row:,.0f}"
                    f" at the peak, {listed.kept_bytes_per_row:,.0f} kept; before:"
                    f" {listed.base_mib:,.0f} MiB",
                    flush=True,
                )
    return listings


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
    if job.train_rows:
        listings = [dataclasses.asdict(listed) for listed in measure_listings(job.train_rows)]
        if job.output:
            job.output.write_text(json.dumps(listings, indent=2) + "\n")
        return
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
