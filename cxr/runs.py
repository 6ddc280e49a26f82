"""A run: from radiographs to checkpoints and a comparison, in a folder that can be resumed.

    RUN/run.json                 the resolved settings, written before the first step
    RUN/unreadable.json          images that were left out, with the reason
    RUN/report.html              all versions side by side
    RUN/<name>/recipe.json       what was trained
    RUN/<name>/metrics.jsonl     a line an epoch; tensorboard/ beside it
    RUN/<name>/ray/              Ray Train's own storage: the last and the best epoch
    RUN/<name>/result.json       the row of the comparison
    RUN/<name>/checkpoint/       the trained classifier
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr import (
    checkpoint,
    cluster,
    data,
    features,
    metrics,
    models,
    phantoms,
    sources,
    splits,
    storage,
    training,
)
from cxr.data import Shards, default_cache
from cxr.errors import CheckpointError, SettingsError
from cxr.metrics import parse_rule
from cxr.models import Classifier
from cxr.recipes import Recipe
from cxr.reports import PUBLISHED, VersionResult, comparison_page

PHANTOMS: Final = phantoms.PhantomSettings(num_train=120, num_val=8, num_test=80)
"""The embedded default: few enough that all four versions train within three minutes on two
cores, where VGG16's convolutions pass four to five images a second."""


@dataclass(frozen=True)
class RunSettings:
    """What a run reads and writes, and what it may use."""

    data: str | None = None
    """Folder or s3:// prefix with train|val|test / NORMAL|PNEUMONIA, or a CSV or Parquet manifest
    (uri,label[,patient,split]). Without it, synthetic radiographs are drawn."""
    weights: str | None = None
    """Pretrained weights: imagenet, none, or a path or URI of a .safetensors or .pth file with
    torchvision's names. Default: none with synthetic radiographs, else imagenet."""
    output: str | None = None
    """Folder of the run; must be empty or not exist. Default: runs/<date and time>."""
    workers: int = 1
    """Training processes, each with its share of the CPUs, or one GPU."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Compute on GPUs: auto where the cluster has one."""
    limit: int | None = None
    """Use at most so many training images: whole patients, classes in proportion."""
    folds: int = 5
    """Patient-disjoint, class-stratified folds that train is divided into."""
    fold: int = 0
    """The fold that validates; the others train."""
    operating_point: str = "youden"
    """Rule of the stored threshold, chosen on validation: youden, sensitivity=X, specificity=X."""
    cache: str = dataclasses.field(default_factory=default_cache)
    """Where decoded pixels, features and fetched weights are kept; on a cluster a place that all
    nodes reach."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise SettingsError(f"workers: {self.workers} is below 1.")
        if self.folds < 2:
            raise SettingsError(f"folds: {self.folds} is below 2.")
        if not 0 <= self.fold < self.folds:
            raise SettingsError(f"fold: {self.fold} is outside 0 to {self.folds - 1}.")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit: {self.limit} is below 1.")
        parse_rule(self.operating_point)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    output: str
    results: tuple[VersionResult, ...]
    report: str
    """The comparison's page."""
    checkpoints: tuple[str, ...]
    """A folder a recipe, in the order of the recipes."""


def start(recipes: Sequence[Recipe], settings: RunSettings) -> tuple[RunSettings, str]:
    """Check the settings and set up a fresh folder for them.

    Returns:
        The settings with every default resolved, and the folder.

    Raises:
        SettingsError: the folder exists and is not empty, or a recipe cannot be built.
        StorageError: the folder cannot be written.
    """
    for recipe in recipes:
        models.check(recipe)
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise SettingsError("two recipes of a run have the same name. Set --name.")
    output = storage.absolute(settings.output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    if not storage.is_empty(output):
        raise SettingsError(
            f"{output}: exists already. Choose another --output, or go on with --resume {output}."
        )
    resolved = dataclasses.replace(
        settings,
        data=storage.absolute(settings.data) if settings.data else None,
        weights=settings.weights or ("imagenet" if settings.data else "none"),
        output=output,
        cache=storage.absolute(settings.cache),
    )
    storage.write_json(
        storage.join(output, "run.json"),
        {
            "settings": dataclasses.asdict(resolved),
            "recipes": [dataclasses.asdict(recipe) for recipe in recipes],
            "packages": checkpoint.package_versions(),
        },
    )
    return resolved, output


def reopen(output: str) -> tuple[list[Recipe], RunSettings, str]:
    """The recipes and settings of an interrupted run.

    Raises:
        CheckpointError: there is no run in the folder.
    """
    output = storage.absolute(output)
    place = storage.join(output, "run.json")
    if storage.kind(place) != "file":
        raise CheckpointError(
            f"{output}: no run to resume (run.json is missing). Give the folder that jobs/train.py"
            " printed as 'run'."
        )
    content = storage.read_json(place)
    recipes = [
        Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()})
        for recipe in content["recipes"]
    ]
    return recipes, RunSettings(**content["settings"]), output


def train(recipes: Sequence[Recipe], settings: RunSettings, output: str) -> Run:
    """Train each recipe that is not finished yet, and compare all.

    Args:
        recipes: as given to `start`, or from `reopen`.
        settings: resolved.
        output: folder of the run.
    """
    gpu = settings.gpu == "on" or (settings.gpu == "auto" and cluster.num_gpus() > 0)
    for recipe in recipes:
        training.check_workers(settings.workers, recipe, gpu=gpu)
    where = settings.data
    if where is None:
        where = str(phantoms.cached(PHANTOMS, Path(settings.cache)))
    name = "phantoms" if settings.data is None else where.rsplit("/", 1)[-1]
    listing, folds = labelled_folds(where, settings)
    print(f"data: {len(listing):,} radiographs of {name}, fold {settings.fold} of"
          f" {settings.folds} validates", flush=True)  # fmt: skip
    results, histories, left_out = [], {}, {}
    for recipe in recipes:
        folder = storage.join(output, recipe.name)
        if storage.kind(storage.join(folder, "result.json")) != "file":
            failed = _train_one(recipe, listing, folds, settings, folder, name, gpu=gpu)
            left_out |= dict(failed)
        result = storage.read_json(storage.join(folder, "result.json"))
        histories[recipe.name] = result.pop("history")
        results.append(VersionResult(**result))
    if left_out:
        storage.write_json(storage.join(output, "unreadable.json"), left_out)
        print(f"left out: {len(left_out)} images gave no pixels, listed in"
              f" {storage.join(output, 'unreadable.json')}")  # fmt: skip
        for uri, reason in list(left_out.items())[:3]:
            print(f"  {uri}: {reason}")
    report = storage.join(output, "report.html")
    page = comparison_page(
        results, histories, _notes(recipes, settings, left_out), "Versions compared"
    )
    storage.write_bytes(report, page.encode())
    checkpoints = tuple(storage.join(output, r.name, "checkpoint") for r in recipes)
    return Run(output, tuple(results), report, checkpoints)


def labelled_folds(where: str, settings: RunSettings) -> tuple[pa.Table, Any]:
    """The training radiographs in a fixed random order, and the fold of each."""
    listing = sources.list_radiographs(where, "train")
    labels = sources.numpy_column(listing, "label")
    patients = sources.numpy_column(listing, "patient")
    if settings.limit is not None:
        taken = splits.take(labels, patients, settings.limit)
        listing, labels, patients = listing.take(taken), labels[taken], patients[taken]
    folds = splits.assign_folds(labels, patients, settings.folds)
    # Shards keep this order, so that a stream of them is not sorted by class.
    order = np.random.default_rng(0).permutation(len(listing))
    return listing.take(order), folds[order]


def prepare(
    recipe: Recipe, listing: pa.Table, folds: Any, settings: RunSettings, *, gpu: bool
) -> tuple[Classifier, Shards, Shards, dict[str, Any]]:
    """A recipe's model with its pretrained weights, its pixels, and what it trains on.

    Returns:
        The model, shards of pixels, shards of features where the frozen part can be run once (else
        the pixels again), and where the weights came from.
    """
    model = models.build(recipe)
    origin: dict[str, Any] = {"source": "none", "tensors": 0}
    if settings.weights != "none" and recipe.pretrained != 0:
        state, place = models.read_weights(str(settings.weights), recipe.backbone, settings.cache)
        loaded = models.load_pretrained(model, recipe, state, place)
        origin = {
            "source": place,
            "tensors": len(loaded),
            "sha256": models.digest({name: state[name] for name in loaded}),
        }
    pixels = data.decode_shards(listing, folds, recipe.image_px, settings.cache)
    cached = model.num_frozen > 0 and recipe.augmentation == "none"
    shards = features.extract(pixels, recipe, model, settings.cache, gpu=gpu) if cached else pixels
    return model, pixels, shards, origin


def _train_one(
    recipe: Recipe,
    listing: pa.Table,
    folds: Any,
    settings: RunSettings,
    folder: str,
    name: str,
    *,
    gpu: bool,
) -> list[tuple[str, str]]:
    started = time.monotonic()
    print(f"{recipe.name}: {_describe(recipe, settings)}", flush=True)
    storage.write_bytes(storage.join(folder, "recipe.json"), recipe.to_json().encode())
    model, pixels, shards, origin = prepare(recipe, listing, folds, settings, gpu=gpu)
    outcome = training.fit(
        recipe,
        model,
        shards,
        [fold for fold in range(settings.folds) if fold != settings.fold],
        [settings.fold],
        folder,
        cached=shards is not pixels,
        num_workers=settings.workers,
        gpu=gpu,
    )
    validation = _validation_table(outcome.validation, pixels.table)
    saved = checkpoint.save(
        storage.join(folder, "checkpoint"),
        recipe,
        outcome.model,
        validation,
        {
            "data": {
                "name": name,
                "num_images": len(pixels.table),
                "num_left_out": len(pixels.failed),
                "fingerprint": pixels.fingerprint,
                "fold": settings.fold,
                "folds": settings.folds,
                "num_validation": len(validation),
            },
            "weights": origin,
            "best_epoch": outcome.best["epoch"],
            "history": outcome.history,
            "settings": {"workers": settings.workers, "limit": settings.limit, "gpu": gpu},
        },
        settings.operating_point,
    )
    y_true = np.asarray(validation["label"])
    probs = metrics.probabilities(np.asarray(validation["logit"]), saved.temperature)
    called = saved.operating_point.predict(probs)
    sensitivity, specificity = called[y_true == 1].mean(), 1 - called[y_true == 0].mean()
    published = PUBLISHED.get(recipe.name)
    result = VersionResult(
        name=recipe.name,
        data=name,
        num_images=len(validation),
        auc=outcome.best["val_auc"],
        accuracy=float((called == y_true).mean()),
        balanced_accuracy=float((sensitivity + specificity) / 2),
        sensitivity=float(sensitivity),
        specificity=float(specificity),
        train_seconds=time.monotonic() - started,
        peak_memory_mb=max(entry["peak_memory_mb"] for entry in outcome.history),
        loading=recipe.loading,
        published_accuracy=published.test_accuracy if published else None,
        published_sensitivity=published.test_sensitivity if published else None,
    )
    storage.write_json(
        storage.join(folder, "result.json"),
        dataclasses.asdict(result) | {"history": outcome.history},
    )
    failed = pixels.failed.to_pydict()
    return list(zip(failed["uri"], failed["reason"], strict=True))


def _validation_table(seen: pa.Table, rows: pa.Table) -> pa.Table:
    joined = rows.take(pc.index_in(seen["row"], rows["row"]))
    patients = np.unique(joined["patient"].to_pylist(), return_inverse=True)[1]
    return pa.table(
        {
            "label": seen["label"],
            "logit": seen["logit"].cast(pa.float64()),
            "subtype": joined["subtype"],
            "patient": pa.array(patients.astype(np.int64)),
        }
    )


def _describe(recipe: Recipe, settings: RunSettings) -> str:
    pretrained = "random" if settings.weights == "none" else "pretrained"
    return (
        f"{recipe.backbone} at {recipe.image_px} px, {recipe.frozen} convolutions frozen"
        f" ({pretrained}), normalization {recipe.normalization}, {recipe.loading}"
    )


def _notes(
    recipes: Sequence[Recipe], settings: RunSettings, left_out: dict[str, str]
) -> list[str]:
    notes = []
    if settings.weights == "none" and any(recipe.frozen != 0 for recipe in recipes):
        notes.append(
            "Weights: none. The frozen convolutions kept their random start, so these versions read"
            " random features; --weights imagenet gives what transfer learning means."
        )
    if left_out:
        notes.append(f"{len(left_out)} images gave no pixels and were left out (unreadable.json).")
    return notes
