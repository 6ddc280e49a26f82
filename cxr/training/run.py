"""A run: from radiographs to checkpoints and a comparison, in a folder that can be resumed.

RUN/run.json                 the resolved settings, written before the first step
RUN/splits.parquet           who trains, validates and is tested on, as digests of patients
RUN/unreadable.json          images that were skipped, with the reason
RUN/report.html              all versions side by side
RUN/<name>/recipe.json       what was trained
RUN/<name>/metrics.jsonl     a line per epoch; tensorboard/ beside it
RUN/<name>/members/<n>/      the same of each member, if there are several
RUN/ray/                     Ray Train's own storage: the last epoch; deleted at the end
RUN/<name>/result.json       the row of the comparison
RUN/<name>/checkpoint/       the trained classifier and its model card; with --checkpoints best
                             only of one
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr import cli, cluster, metrics, phantoms, storage
from cxr.datasets import splits, stress
from cxr.datasets.pixels import decode_shards, describe_duplicates
from cxr.datasets.splits import Splits
from cxr.errors import CheckpointError, CxrError
from cxr.inference.networks import send_model
from cxr.labels import CLASSES
from cxr.metrics.results import PUBLISHED_FIGURES, VersionResult
from cxr.models import checkpoint
from cxr.models.acquisition import CHANGES
from cxr.models.classifier import Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.validation import add_changed, anonymize, calibrate, clean_rows
from cxr.recipes import Recipe
from cxr.reports import MODEL_CARD, comparison_page, model_card
from cxr.training import loop, members, trainer
from cxr.training.borders import measure_border_shares
from cxr.training.preparation import (
    TrainingImages,
    list_training_images,
    load_model,
    prepare,
    skipped_notes,
    starts_at_random,
    write_skipped,
)
from cxr.training.settings import RunSettings, resolve
from cxr.training.trainer import Outcome, Plan
from cxr.training.unusual import fit_features

SETTINGS_FILE = "run.json"

SPLITS_FILE = "splits.parquet"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    output: str
    results: tuple[VersionResult, ...]
    report: str
    """The comparison's page."""
    checkpoints: tuple[str, ...]
    """A folder per recipe, in the order of the recipes."""
    has_test: bool
    """Whether the data have radiographs to test on."""
    remarks: tuple[str, ...] = ()
    """What a reader of the figures must know."""

    @property
    def best(self) -> str:
        """The checkpoint with the highest AUC on validation; empty if there is none."""
        aucs = {
            storage.join(self.output, result.name, "checkpoint"): result.auc
            for result in self.results
        }
        return max(self.checkpoints, key=lambda folder: aucs[folder] or 0.0, default="")


def begin(recipes: Sequence[Recipe], settings: RunSettings) -> RunSettings:
    """The resolved settings of a new run.

    Raises:
        SettingsError: a recipe cannot be built, or two have the same name.
        StorageError: the folder of the run exists and is not empty.
    """
    resolved = resolve(settings, recipes)
    storage.check_empty(resolved.folder)
    return resolved


def reopen(output: str, *, int8: bool = False) -> tuple[list[Recipe], RunSettings]:
    """The recipes and settings of an interrupted or finished run.

    Args:
        output: its folder.
        int8: add networks in 8-bit integers, whatever its own settings say.

    Raises:
        CheckpointError: there is no run in the folder, or none that this version can resume.
    """
    output = storage.absolute(output)
    uri = storage.join(output, SETTINGS_FILE)
    if storage.kind(uri) != "file":
        raise CheckpointError(
            f"{output}: no run to resume (run.json is missing). Give the folder that jobs/train.py"
            " printed as 'run'."
        )
    try:
        content = json.loads(storage.read_bytes(uri))
        recipes = [Recipe.from_json(json.dumps(recipe)) for recipe in content["recipes"]]
        kept: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["settings"].items()
        }
        settings = RunSettings(**kept)
    except (ValueError, KeyError, TypeError, CxrError) as error:
        raise CheckpointError(
            f"{uri}: cannot be resumed by this version of cxr ({error}). Resume it with the version"
            " that wrote it, or start a new run."
        ) from None
    return recipes, dataclasses.replace(settings, output=output, int8=settings.int8 or int8)


def how_to_resume(folder: str) -> str:
    """What an interrupted run has kept, and the command that continues it."""
    if storage.kind(storage.join(folder, SETTINGS_FILE)) == "nothing":
        return "nothing is kept yet; the same command starts again"
    return f"finished epochs are kept; {cli.command('train', ['--resume', folder])} continues"


def train(recipes: Sequence[Recipe], settings: RunSettings) -> Run:
    """Train each recipe that is not finished yet, and compare all.

    Args:
        recipes: of a new run, or of one from `reopen`.
        settings: from `begin` or `reopen`.

    Raises:
        CxrError: data, weights or workers are not what the run needs, and nothing is left behind;
            or training failed, and the run can be resumed.
    """
    output = settings.folder
    gpu = cluster.use_gpu(settings.gpu)
    workers = cluster.parse_workers(settings.workers)
    for recipe in recipes:
        trainer.check_workers(workers, recipe, gpu=gpu)
    data, name = phantoms.data_or_default(settings.data, settings.cache)
    splits_uri = storage.join(output, SPLITS_FILE)
    is_resumed = storage.kind(splits_uri) == "file"
    remembered = Splits(storage.read_table(splits_uri)) if is_resumed else None
    images = list_training_images(data, settings, remembered)
    unfinished = [recipe for recipe in recipes if not _is_finished(output, recipe)]
    models = [load_model(recipe, settings) for recipe in unfinished]
    _write_settings(recipes, settings)
    print(f"run: {output}", flush=True)
    print(
        f"data: {len(images.listing):,} radiographs of {name}, {_validation(settings)}"
        f"{_held_out(images)}",
        flush=True,
    )
    plans = prepare(unfinished, models, images.listing, images.folds, settings, gpu=gpu)
    if plans:
        if duplicates := describe_duplicates(plans[0].shards):
            print(duplicates, flush=True)
        if not is_resumed:
            storage.write_table(splits_uri, _collect(plans[0], images, settings))
    outcomes = trainer.fit(plans, output, workers=workers, gpu=gpu) if plans else []
    for recipe, own, trained in _best_first(unfinished, plans, outcomes):
        keep = settings.keeps_all or _is_better(trained, recipes, output)
        _finish(recipe, own, trained, settings, name, images, gpu=gpu, keep=keep)
    skipped = write_skipped([plan.shards for plan in plans], output)
    storage.delete(storage.join(output, "ray"))  # Nothing is left to resume.
    quantized = _quantize(recipes, settings, images) if settings.int8 else []
    _write_cards(recipes, settings, images)
    return _compare(recipes, settings, images, skipped, quantized)


def _quantize(
    recipes: Sequence[Recipe],
    settings: RunSettings,
    images: TrainingImages,
) -> list[str]:
    """Add networks in 8-bit integers to the run's checkpoints; a sentence on each."""
    from cxr.training.int8 import add_int8  # ONNX Runtime's quantizer takes a second.

    sentences = []
    for recipe in recipes:
        folder = storage.join(settings.folder, recipe.name, "checkpoint")
        if not checkpoint.exists(folder):
            continue
        trained = checkpoint.load(folder)
        pixels = decode_shards(images.listing, images.folds, recipe.image_px, settings.cache)
        validation = settings.validation_folds
        # A fold that validated one member of several trained the others.
        train_folds = [k for k in range(settings.num_folds) if validation != (k,)]
        try:
            sentence = add_int8(trained, pixels, train_folds, validation).sentence
        except CheckpointError as error:
            sentence = f"{recipe.name}: {error}"
        print(sentence, flush=True)
        sentences.append(sentence)
    return sentences


def _write_cards(recipes: Sequence[Recipe], settings: RunSettings, images: TrainingImages) -> None:
    """Write the model card of each checkpoint, once all of it is known."""
    for recipe in recipes:
        folder = storage.join(settings.folder, recipe.name, "checkpoint")
        if checkpoint.exists(folder):
            trained = checkpoint.load(folder)
            pixels = decode_shards(images.listing, images.folds, recipe.image_px, settings.cache)
            shares = measure_border_shares(trained, pixels, settings.validation_folds)
            card = model_card(trained, shares)
            storage.write_bytes(storage.join(folder, MODEL_CARD), card.encode())


def _command(settings: RunSettings) -> str:
    """The command of the run; of paths, whose folders may name anyone, the last part alone."""
    shown = dataclasses.replace(
        settings,
        data=_last_part(settings.data),
        weights=_last_part(settings.weights),
        output=None,
        cache=RunSettings().cache,
    )
    return cli.command("train", ["--recipe", "recipe.json", *cli.flags(shown)])


def _last_part(path: str | None) -> str | None:
    return path and path.rstrip("/").rpartition("/")[2]


def _collect(plan: Plan, images: TrainingImages, settings: RunSettings) -> pa.Table:
    """The roles of patients and images in the run, as `datasets.splits` has them."""
    fold = None if settings.validates_by_folds else settings.fold
    return splits.collect(plan.shards.table, images.listing, images.held_out, fold).table


def _validation(settings: RunSettings) -> str:
    if settings.validates_by_folds:
        return (
            f"each of {settings.members} members is validated on one of {settings.num_folds} folds"
        )
    return f"fold {settings.fold} of {settings.num_folds} validates"


def _held_out(images: TrainingImages) -> str:
    num_images = len(images.held_out)
    if not num_images:
        return ""
    num_patients = pc.count_distinct(images.held_out["patient"]).as_py()
    return f"; {num_images:,} radiographs of {num_patients:,} patients are held out to test on"


def _write_settings(recipes: Sequence[Recipe], settings: RunSettings) -> None:
    uri = storage.join(settings.folder, SETTINGS_FILE)
    if storage.kind(uri) == "nothing":
        content = {
            "settings": dataclasses.asdict(settings),
            "recipes": [dataclasses.asdict(recipe) for recipe in recipes],
            "packages": checkpoint.package_versions(),
        }
        storage.write_json(uri, content)


def _is_finished(output: str, recipe: Recipe) -> bool:
    return storage.kind(storage.join(output, recipe.name, "result.json")) == "file"


def _best_first(
    recipes: Sequence[Recipe], plans: Sequence[Plan], outcomes: Sequence[Outcome]
) -> list[tuple[Recipe, Sequence[Plan], Sequence[Outcome]]]:
    """Each recipe with its plans, one or one of each member, and what training them gave."""
    num_members = len(plans) // max(len(recipes), 1)
    groups = [slice(k * num_members, (k + 1) * num_members) for k in range(len(recipes))]
    trained = [
        (recipe, plans[own], outcomes[own]) for recipe, own in zip(recipes, groups, strict=True)
    ]
    return sorted(trained, key=lambda group: _score(group[2]), reverse=True)


def _score(outcomes: Sequence[Outcome]) -> float:
    """The mean AUC of the members on validation; `EMPTY_SCORE` if one has none."""
    scores = [float(outcome.best["score"]) for outcome in outcomes]
    return loop.EMPTY_SCORE if loop.EMPTY_SCORE in scores else sum(scores) / len(scores)


def _is_better(outcomes: Sequence[Outcome], recipes: Sequence[Recipe], output: str) -> bool:
    """Whether it separates the classes better than every recipe that is finished."""
    finished = [recipe for recipe in recipes if _is_finished(output, recipe)]
    results = [
        storage.read_json(storage.join(output, recipe.name, "result.json")) for recipe in finished
    ]
    return all(_score(outcomes) > (result["auc"] or 0.0) for result in results)


def _finish(
    recipe: Recipe,
    plans: Sequence[Plan],
    outcomes: Sequence[Outcome],
    settings: RunSettings,
    data_name: str,
    images: TrainingImages,
    *,
    gpu: bool,
    keep: bool,
) -> None:
    """Write recipe, result and, if it is to be kept, checkpoint of a trained recipe.

    It has one plan, or one of each member.
    """
    folder = storage.join(settings.folder, recipe.name)
    rows = plans[0].shards.table
    storage.write_bytes(storage.join(folder, "recipe.json"), recipe.to_json().encode())
    validation = _validation_table(members.validate(plans, outcomes), rows)
    figures: dict[str, Any] = dict.fromkeys(
        ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")
    )
    lost = [
        plan.name
        for plan, outcome in zip(plans, outcomes, strict=True)
        if outcome.best["score"] == loop.EMPTY_SCORE
    ]
    if not lost:
        scored = validation
        if keep:
            model = members.join(plans, outcomes)
            scored = _stress(recipe, model, plans, outcomes, validation, settings, images, gpu=gpu)
            checkpoint.save(
                storage.join(folder, "checkpoint"),
                recipe,
                model,
                scored,
                _provenance(plans, outcomes, settings, data_name, images, len(validation), gpu=gpu),
                settings.operating_point,
                _collect(plans[0], images, settings),
                settings.calibrate_on,
                members.plan(recipe, settings) if settings.members > 1 else (),
                fit_features(members.trained(model, plans)),
            )
        figures = _figures(scored, settings)
    else:
        print(f"{', '.join(lost)}: the loss left the finite numbers; lower --learning-rate.")
    epochs = [entry for outcome in outcomes for entry in outcome.history]
    seconds = sum(plan.seconds for plan in plans)
    result = summarize(recipe, data_name, len(validation), figures, seconds, epochs)
    histories = {p.name: outcome.history for p, outcome in zip(plans, outcomes, strict=True)}
    storage.write_json(
        storage.join(folder, "result.json"), dataclasses.asdict(result) | {"histories": histories}
    )
    for plan in plans:
        storage.delete_file(storage.join(plan.output, "best.pt"))


def _stress(
    recipe: Recipe,
    model: Classifier | Ensemble,
    plans: Sequence[Plan],
    outcomes: Sequence[Outcome],
    validation: pa.Table,
    settings: RunSettings,
    images: TrainingImages,
    *,
    gpu: bool,
) -> pa.Table:
    """The validation images, and some of them under acquisition changes, scored as trained."""
    if not settings.num_stressed:
        return validation
    if remark := stress.why_not(recipe.image_px):
        print(f"{recipe.name}: {remark}", flush=True)
        return validation
    pixels = decode_shards(images.listing, images.folds, recipe.image_px, settings.cache)
    chosen = stress.choose_stressed(validation, settings.num_stressed)
    if len(set(np.asarray(validation["label"])[chosen].tolist())) < len(CLASSES):
        print(
            f"{recipe.name}: No robustness table: {settings.num_stressed} images of whole patients"
            " do not have both classes. Raise --stress-images.",
            flush=True,
        )
        return validation
    rows = members.validate(plans, outcomes)["row"].take(pa.array(chosen))
    logits = {change: np.empty(len(rows)) for change in CHANGES}
    for judged, own_rows in members.judges(model, plans, outcomes):
        own = np.asarray(pc.is_in(rows, own_rows))
        try:
            network = send_model(recipe, judged.eval(), members.recipes(judged, plans), gpu=gpu)
        except CheckpointError as error:
            print(f"{recipe.name}: No robustness table: {error}", flush=True)
            return validation
        scored = stress.score_changed(
            pixels, rows.filter(pa.array(own)), network, recipe.name, gpu=gpu
        )
        for change, values in scored.items():
            logits[change][own] = values
    return add_changed(validation, chosen, logits)


def summarize(
    recipe: Recipe,
    data_name: str,
    num_images: int,
    figures: Mapping[str, Any],
    preparation_s: float,
    history: Sequence[Mapping[str, Any]],
) -> VersionResult:
    """The row of the comparison: figures measured here, cost, and published figures if any.

    Args:
        recipe: what was trained.
        data_name: what reports call the data.
        num_images: of the validation fold.
        figures: `auc`, `accuracy`, `balanced_accuracy`, `sensitivity` and `specificity`, and, where
            it was scored under changes, `stressed_auc`, `worst_auc` and `worst_change`.
        preparation_s: seconds that decoding and the frozen part took.
        history: one entry per epoch.
    """
    published = PUBLISHED_FIGURES.get(recipe.name)
    return VersionResult(
        name=recipe.name,
        data=data_name,
        num_images=num_images,
        **figures,
        train_seconds=preparation_s + sum(entry["seconds"] for entry in history),
        peak_memory_mb=max(entry["peak_memory_mb"] for entry in history),
        loading=recipe.loading,
        published_accuracy=published.test_accuracy if published else None,
        published_sensitivity=published.test_sensitivity if published else None,
    )


def _provenance(
    plans: Sequence[Plan],
    outcomes: Sequence[Outcome],
    settings: RunSettings,
    data_name: str,
    images: TrainingImages,
    num_validation: int,
    *,
    gpu: bool,
) -> dict[str, Any]:
    plan = plans[0]
    trainings = [
        {"best_epoch": outcome.best["epoch"], "history": outcome.history} for outcome in outcomes
    ]
    return {
        "data": {
            "name": data_name,
            "num_images": len(plan.shards.table),
            "num_left_out": len(plan.shards.failed),
            "fingerprint": plan.shards.fingerprint,
            "fold": settings.validation_folds if settings.validates_by_folds else settings.fold,
            "folds": settings.num_folds,
            "num_validation": num_validation,
            "num_held_out": len(images.held_out),
            "patients": images.patients.sentence,
        },
        "set": settings.how_read,
        "weights": plan.weights,
        **(trainings[0] if len(trainings) == 1 else {"members": trainings}),
        "settings": {"workers": settings.workers, "limit": settings.limit, "gpu": gpu},
        "command": _command(settings),
    }


def _figures(validation: pa.Table, settings: RunSettings) -> dict[str, Any]:
    validation = anonymize(validation)
    calibration = calibrate(validation, settings.operating_point, settings.calibrate_on)
    clean = clean_rows(validation)
    y_true, logits = np.asarray(clean["label"]), np.asarray(clean["logit"])
    point, robustness = calibration.operating_point, calibration.robustness
    predicted = point.predict(metrics.probabilities(logits, calibration.scaling))
    stressed: dict[str, Any] = {}
    if robustness:
        stressed = {
            "stressed_auc": robustness.mean["auc"].value,
            "worst_auc": robustness.lowest("auc"),
            "worst_change": robustness.worst("auc"),
        }
    return {
        **stressed,
        "auc": metrics.roc_auc(y_true, logits),
        "accuracy": float((predicted == y_true).mean()),
        "balanced_accuracy": (point.sensitivity + point.specificity) / 2,
        "sensitivity": point.sensitivity,
        "specificity": point.specificity,
    }


def _validation_table(predictions: pa.Table, rows: pa.Table) -> pa.Table:
    joined = rows.take(pc.index_in(predictions["row"], rows["row"]))
    patients = np.unique(joined["patient"].to_pylist(), return_inverse=True)[1]
    return pa.table(
        {
            "label": predictions["label"],
            "logit": predictions["logit"].cast(pa.float64()),
            "subtype": joined["subtype"],
            "patient": pa.array(patients.astype(np.int64)),
        }
    )


def _compare(
    recipes: Sequence[Recipe],
    settings: RunSettings,
    images: TrainingImages,
    skipped: Mapping[str, str],
    quantized: Sequence[str],
) -> Run:
    """Write the page on all recipes of a run, those finished earlier included."""
    output = settings.folder
    results: list[VersionResult] = []
    histories: dict[str, list[Mapping[str, Any]]] = {}
    for recipe in recipes:
        result = storage.read_json(storage.join(output, recipe.name, "result.json"))
        # Runs of older versions have one history.
        histories |= result.pop("histories", None) or {recipe.name: result.pop("history")}
        results.append(VersionResult(**result))
    report = storage.join(output, "report.html")
    remarks = _remarks(recipes, settings)
    card = f"The model card of a version, NAME/checkpoint/{MODEL_CARD}, says what is known of it."
    notes = [images.patients.sentence, *remarks, *skipped_notes(skipped), *quantized, card]
    page = comparison_page(results, histories, notes, "Versions compared")
    storage.write_bytes(report, page.encode())
    folders = [storage.join(output, recipe.name, "checkpoint") for recipe in recipes]
    checkpoints = tuple(folder for folder in folders if checkpoint.exists(folder))
    return Run(output, tuple(results), report, checkpoints, images.has_test, tuple(remarks))


def _remarks(recipes: Sequence[Recipe], settings: RunSettings) -> list[str]:
    remarks = []
    if settings.validates_by_folds:
        remarks.append(
            f"Each version is the average of {settings.members} members. The figures are of single"
            " members, each on the fold that it was not trained on."
        )
    elif settings.members > 1:
        remarks.append(
            f"Each version is the average of {settings.members} members, which differ in their"
            " seed, and so are its figures."
        )
    random = [
        recipe.name
        for recipe in recipes
        if recipe.frozen != 0 and starts_at_random(recipe, settings)
    ]
    if random:
        remarks.append(
            f"{', '.join(random)}: without pretrained weights, frozen convolutions compute random"
            " features; --data and --weights imagenet show what transfer learning reaches."
        )
    return remarks
