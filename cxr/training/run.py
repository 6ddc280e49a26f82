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
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import cluster, metrics, phantoms, sources, storage
from cxr.datasets import features
from cxr.datasets.folds import assign_folds, take
from cxr.datasets.pixels import decode_shards
from cxr.datasets.shards import Shards
from cxr.errors import CheckpointError, SettingsError
from cxr.metrics import parse_rule
from cxr.models import checkpoint, classifier, weights
from cxr.models.checkpoint import Checkpoint
from cxr.models.classifier import Classifier
from cxr.recipes import Recipe
from cxr.reports import PUBLISHED, VersionResult, comparison_page
from cxr.storage import default_cache
from cxr.training import loop, trainer

PHANTOMS: Final = phantoms.PhantomSettings(num_train=32, num_val=8, num_test=80)
"""The embedded default: few, so that all four versions train in about two minutes (116 s on
two slow cores, where VGG16's convolutions pass 4 to 5 images a second)."""


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
    workers: str = "1"
    """Training processes, each with its share of the CPUs, or one GPU: 4, or 1:4 for as many as the
    cluster has room for, which may change on the way."""
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
        cluster.parse_workers(self.workers)
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


def resolve(recipes: Sequence[Recipe], settings: RunSettings) -> RunSettings:
    """Check what can be checked before anything is started, and fill in every default.

    Raises:
        SettingsError: a recipe cannot be built, or two have the same name.
        StorageError: the folder of the run exists and is not empty.
    """
    for recipe in recipes:
        classifier.check(recipe)
    if len({recipe.name for recipe in recipes}) < len(recipes):
        raise SettingsError("two recipes of a run have the same name. Set --name.")
    output = storage.absolute(settings.output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}")
    storage.check_empty(output)
    return dataclasses.replace(
        settings,
        data=storage.absolute(settings.data) if settings.data else None,
        weights=settings.weights or ("imagenet" if settings.data else "none"),
        output=output,
        cache=storage.absolute(settings.cache),
    )


def reopen(output: str) -> tuple[list[Recipe], RunSettings]:
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
    recipes = [Recipe.from_json(json.dumps(recipe)) for recipe in content["recipes"]]
    return recipes, dataclasses.replace(RunSettings(**content["settings"]), output=output)


def train(recipes: Sequence[Recipe], settings: RunSettings) -> Run:
    """Train each recipe that is not finished yet, and compare all.

    Args:
        recipes: of a new run, or of one from `reopen`.
        settings: as `resolve` or `reopen` gave them.

    Raises:
        CxrError: data, weights or workers are not what the run needs; nothing is left behind then.
    """
    output = str(settings.output)
    gpu = cluster.use_gpu(settings.gpu)
    workers = cluster.parse_workers(settings.workers)
    for recipe in recipes:
        trainer.check_workers(workers, recipe, gpu=gpu)
    where = settings.data or phantoms.kept(PHANTOMS, settings.cache)
    name = where.rsplit("/", 1)[-1] if settings.data else "phantoms"
    listing, folds = labeled_folds(where, settings)
    waiting = [recipe for recipe in recipes if not _is_done(output, recipe)]
    loaded = [load_model(recipe, settings) for recipe in waiting]
    _write_settings(recipes, settings)
    print(f"run: {output}", flush=True)
    print(
        f"data: {len(listing):,} radiographs of {name}, fold {settings.fold} of {settings.folds}"
        " validates",
        flush=True,
    )
    prepared = prepare(loaded, listing, folds, settings, gpu=gpu)
    outcomes: list[trainer.Outcome] = []
    if prepared:
        outcomes = trainer.fit(
            [_plan(each, settings, output) for each in prepared],
            [each.model for each in prepared],
            output,
            workers=workers,
            gpu=gpu,
        )
    left_out: dict[str, str] = {}
    for each, outcome in zip(prepared, outcomes, strict=True):
        _conclude(each, outcome, settings, storage.join(output, each.recipe.name), name, gpu=gpu)
        failed = each.pixels.failed.to_pydict()
        left_out |= dict(zip(failed["uri"], failed["reason"], strict=True))
    if left_out:
        place = storage.join(output, "unreadable.json")
        storage.write_json(place, left_out)
        print(f"left out: {len(left_out)} images gave no pixels, listed in {place}")
        for uri, reason in list(left_out.items())[:3]:
            print(f"  {uri}: {reason}")
    storage.delete(storage.join(output, "ray"))  # Nothing is left to resume.
    results, histories = [], {}
    for recipe in recipes:
        result = storage.read_json(storage.join(output, recipe.name, "result.json"))
        histories[recipe.name] = result.pop("history")
        results.append(VersionResult(**result))
    report = storage.join(output, "report.html")
    page = comparison_page(
        results, histories, _notes(recipes, settings, left_out), "Versions compared"
    )
    storage.write_bytes(report, page.encode())
    checkpoints = tuple(
        folder
        for recipe in recipes
        if checkpoint.exists(folder := storage.join(output, recipe.name, "checkpoint"))
    )
    return Run(output, tuple(results), report, checkpoints)


def labeled_folds(where: str, settings: RunSettings) -> tuple[pa.Table, NDArray[np.int64]]:
    """The training radiographs in a fixed random order, and the fold of each."""
    listing = sources.list_radiographs(where, "train")
    labels = sources.column(listing, "label")
    patients = sources.column(listing, "patient")
    if settings.limit is not None:
        taken = take(labels, patients, settings.limit)
        listing, labels, patients = listing.take(taken), labels[taken], patients[taken]
    folds = assign_folds(labels, patients, settings.folds)
    # Shards keep this order, so that a stream of them is not sorted by class.
    order = np.random.default_rng(0).permutation(len(listing))
    return listing.take(order), folds[order]


@dataclass(frozen=True)
class Loaded:
    """A recipe's classifier before its training."""

    recipe: Recipe
    model: Classifier
    """With its pretrained weights."""
    weights: dict[str, Any]
    """Where they came from."""


@dataclass(frozen=True)
class Prepared(Loaded):
    """A recipe with everything that its training needs."""

    pixels: Shards
    features: Shards | None
    """Of the frozen part, where it can be run once."""
    seconds: float
    """What decoding and the frozen part took."""


def load_model(recipe: Recipe, settings: RunSettings) -> Loaded:
    """Build a recipe's classifier and load its pretrained weights.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    model = classifier.build(recipe)
    if settings.weights == "none" or recipe.pretrained == 0:
        return Loaded(recipe, model, {"source": "none", "tensors": 0})
    state, place = weights.read_weights(str(settings.weights), recipe.backbone, settings.cache)
    names = weights.load_pretrained(model, recipe, state, place)
    digest = classifier.digest({name: state[name] for name in names})
    return Loaded(recipe, model, {"source": place, "tensors": len(names), "sha256": digest})


def prepare(
    loaded: Sequence[Loaded],
    listing: pa.Table,
    folds: NDArray[np.int64],
    settings: RunSettings,
    *,
    gpu: bool,
) -> list[Prepared]:
    """Decode each recipe's pixels, and run the frozen parts over them that can be run once."""
    pixels, seconds = [], []
    for each in loaded:
        started = time.monotonic()
        recipe = each.recipe
        print(
            f"{recipe.name}: {recipe.backbone} at {recipe.image_px} px,"
            f" {each.weights['tensors']} pretrained tensors, frozen convolutions: {recipe.frozen},"
            f" normalization: {recipe.normalization}, loading: {recipe.loading}",
            flush=True,
        )
        pixels.append(decode_shards(listing, folds, recipe.image_px, settings.cache))
        seconds.append(time.monotonic() - started)
    started = time.monotonic()
    once = {
        index: features.Pass(pixels[index], each.recipe, each.model)
        for index, each in enumerate(loaded)
        if each.model.num_frozen > 0 and each.recipe.augmentation == "none"
    }
    extracted = features.extract(list(once.values()), settings.cache, gpu=gpu)
    found = dict(zip(once, extracted, strict=True))
    # The passes share one pool of actors, so each recipe is charged an equal part.
    part = (time.monotonic() - started) / max(len(once), 1)
    return [
        Prepared(
            each.recipe, each.model, each.weights, pixels[index], found.get(index),
            seconds[index] + (part if index in found else 0.0),
        )
        for index, each in enumerate(loaded)
    ]  # fmt: skip


def _write_settings(recipes: Sequence[Recipe], settings: RunSettings) -> None:
    place = storage.join(str(settings.output), "run.json")
    if storage.kind(place) == "nothing":
        content = {
            "settings": dataclasses.asdict(settings),
            "recipes": [dataclasses.asdict(recipe) for recipe in recipes],
            "packages": checkpoint.package_versions(),
        }
        storage.write_json(place, content)


def _is_done(output: str, recipe: Recipe) -> bool:
    return storage.kind(storage.join(output, recipe.name, "result.json")) == "file"


def _plan(each: Prepared, settings: RunSettings, output: str) -> trainer.Plan:
    return trainer.Plan(
        recipe=each.recipe,
        shards=each.features or each.pixels,
        cached=each.features is not None,
        train_folds=tuple(fold for fold in range(settings.folds) if fold != settings.fold),
        validation_folds=(settings.fold,),
        output=storage.join(output, each.recipe.name),
    )


def _conclude(
    each: Prepared,
    outcome: trainer.Outcome,
    settings: RunSettings,
    folder: str,
    name: str,
    *,
    gpu: bool,
) -> None:
    """Write recipe, checkpoint and result of a trained recipe."""
    storage.write_bytes(storage.join(folder, "recipe.json"), each.recipe.to_json().encode())
    validation = _validation_table(outcome.validation, each.pixels.table)
    measured: dict[str, float | None] = dict.fromkeys(
        ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")
    )
    if outcome.best["score"] != loop.EMPTY_SCORE:
        each.model.load_state_dict(dict(outcome.state), strict=False)
        saved = checkpoint.save(
            storage.join(folder, "checkpoint"),
            each.recipe,
            each.model,
            validation,
            {
                "data": {
                    "name": name,
                    "num_images": len(each.pixels.table),
                    "num_left_out": len(each.pixels.failed),
                    "fingerprint": each.pixels.fingerprint,
                    "fold": settings.fold,
                    "folds": settings.folds,
                    "num_validation": len(validation),
                },
                "weights": each.weights,
                "best_epoch": outcome.best["epoch"],
                "history": outcome.history,
                "settings": {"workers": settings.workers, "limit": settings.limit, "gpu": gpu},
            },
            settings.operating_point,
        )
        measured = _measured(saved)
    else:
        print(f"{each.recipe.name}: the loss left the finite numbers; lower --learning-rate.")
    published = PUBLISHED.get(each.recipe.name)
    result = VersionResult(
        name=each.recipe.name,
        data=name,
        num_images=len(validation),
        **measured,
        train_seconds=each.seconds + sum(entry["seconds"] for entry in outcome.history),
        peak_memory_mb=max(entry["peak_memory_mb"] for entry in outcome.history),
        loading=each.recipe.loading,
        published_accuracy=published.test_accuracy if published else None,
        published_sensitivity=published.test_sensitivity if published else None,
    )
    storage.write_json(
        storage.join(folder, "result.json"),
        dataclasses.asdict(result) | {"history": outcome.history},
    )
    storage.delete_file(storage.join(folder, "best.pt"))


def _measured(saved: Checkpoint) -> dict[str, float | None]:
    y_true = np.asarray(saved.validation["label"])
    logits = np.asarray(saved.validation["logit"])
    point = saved.operating_point
    called = point.predict(metrics.probabilities(logits, saved.temperature))
    return {
        "auc": metrics.roc_auc(y_true, logits),
        "accuracy": float((called == y_true).mean()),
        "balanced_accuracy": (point.sensitivity + point.specificity) / 2,
        "sensitivity": point.sensitivity,
        "specificity": point.specificity,
    }


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


def _notes(recipes: Sequence[Recipe], settings: RunSettings, left_out: dict[str, str]) -> list[str]:
    notes = []
    if settings.weights == "none" and any(recipe.frozen != 0 for recipe in recipes):
        notes.append(
            "Weights: none. The frozen convolutions kept their random start, so these versions read"
            " random features; --weights imagenet gives what transfer learning means."
        )
    if left_out:
        notes.append(f"{len(left_out)} images gave no pixels and were left out (unreadable.json).")
    return notes
