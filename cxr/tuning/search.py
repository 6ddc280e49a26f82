"""A search over recipes: Ray Tune runs the trials, patient-disjoint folds judge them.

OUT/search.json             what was searched: another space or data is refused
OUT/trials/<id>/            of each setting: setting.json, and a Parquet file per fold with the
                            logits of the images that its model was not trained on
OUT/trials.parquet          a row per setting
OUT/unreadable.json         images that were skipped, with the reason
OUT/best.json               a recipe that jobs/train.py --recipe trains as it is
OUT/report.html

Pixels are decoded once, and the frozen part of the backbone runs once for each normalization and
view, and for each acquisition change of the images that settings are ranked by. A fold that has its
file is not trained again, so an interrupted search can be resumed. Drawn settings of whole
networks, whose trials are long, are stopped after a few folds where others are ahead.
"""

import dataclasses
import json
from typing import Any

import ray

from cxr import cluster, phantoms, storage
from cxr.datasets import features
from cxr.datasets.pixels import decode_shards, describe_duplicates
from cxr.datasets.shards import Shards, take_first
from cxr.datasets.variation import Variation, views
from cxr.errors import DataError, SettingsError
from cxr.labels import CLASSES
from cxr.models import acquisition, classifier
from cxr.models.checkpoint import package_versions
from cxr.recipes import Recipe
from cxr.sources.settings import SetSettings
from cxr.training import trainer
from cxr.training.preparation import (
    TrainingImages,
    list_training_images,
    load_model,
    runs_frozen_part_once,
    skipped_notes,
    write_skipped,
)
from cxr.tuning import results, space, tuner
from cxr.tuning.results import Search
from cxr.tuning.settings import SearchSettings
from cxr.tuning.space import Space
from cxr.tuning.trials import CHANGES, Shared

SETTINGS_FILE = "search.json"


def search(recipe: Recipe, asked: Space, settings: SearchSettings) -> Search:
    """Judge every setting of a space by cross-validation, and compare them.

    Called again with the same output after it was interrupted, it resumes.

    Args:
        recipe: what the settings vary.
        asked: the settings.
        settings: data, weights, folds, workers, cache and output, resolved.

    Raises:
        SettingsError: the output holds another search, a setting is impossible, or images are too
            small to be changed.
        DataError: the folds cannot be filled, or a fold has no images of a class to change.
        CxrError: not one trial gave a figure.
    """
    _check(recipe, asked, settings)
    gpu = cluster.use_gpu(settings.gpu)
    workers = cluster.parse_workers(settings.workers)
    trainer.check_workers(workers, recipe, gpu=gpu)
    data, name = phantoms.data_or_default(settings.data, settings.cache)
    images = list_training_images(data, settings)
    open_output(recipe, asked, settings)
    print(f"search: {settings.folder}", flush=True)
    print(
        f"data: {len(images.listing):,} radiographs of {name}, {settings.num_folds} folds by"
        f" patient; {len(asked.settings)} settings",
        flush=True,
    )
    shared, pixels = _prepare(recipe, asked, settings, images, gpu=gpu)
    if duplicates := describe_duplicates(pixels):
        print(duplicates, flush=True)
    skipped = write_skipped([pixels], settings.folder)
    reasons = tuner.run_trials(shared, asked, settings.folder)
    notes = [images.patients.sentence, *skipped_notes(skipped)]
    return results.conclude(shared, asked, settings, pixels.table, reasons, name, notes)


def _check(recipe: Recipe, asked: Space, settings: SearchSettings) -> None:
    """Refuse what would fail in every trial."""
    for point in asked.points:
        classifier.check(space.apply(recipe, point))
    if settings.stress_images and recipe.image_px < acquisition.MIN_PX:
        raise SettingsError(
            f"image_px: images of {recipe.image_px} px are too small for acquisition changes; at"
            f" least {acquisition.MIN_PX} px, or --stress-images 0."
        )


def how_to_resume(folder: str) -> str:
    """What an interrupted search has kept, and the command that continues it."""
    if storage.kind(storage.join(folder, SETTINGS_FILE)) == "nothing":
        return "nothing is kept yet; the same command starts again"
    return f"finished folds are kept; the same command with --output {folder} continues"


def open_output(recipe: Recipe, asked: Space, settings: SearchSettings) -> None:
    """Take an empty folder for a search, or one of the same search.

    Raises:
        SettingsError: it holds another search, or one that this version cannot resume.
        StorageError: something else lies there.
    """
    now = {
        "space": asked.to_json(),
        "recipe": json.loads(recipe.to_json()),
        "data": settings.data,
        # None for what earlier versions did not know, so that their searches can be resumed.
        "set": settings.how_read if settings.how_read != SetSettings().how_read else None,
        "test_fraction": settings.test_fraction,
        "weights": settings.weights,
        "limit": settings.limit,
        "folds": settings.num_folds,
        "stress_images": settings.stress_images or None,
    }
    uri = storage.join(settings.folder, SETTINGS_FILE)
    if storage.kind(uri) == "file":
        _check_readable(uri, now)
    if not storage.check_same(settings.folder, SETTINGS_FILE, now, "a search"):
        storage.write_json(uri, now | {"packages": package_versions()})


def _check_readable(uri: str, asked: dict[str, Any]) -> None:
    try:
        kept: object = json.loads(storage.read_bytes(uri))
    except ValueError:
        kept = None
    needed = {name for name, value in asked.items() if value is not None} - {"stress_images"}
    if not isinstance(kept, dict) or not needed <= kept.keys():
        raise SettingsError(
            f"{uri}: not a search that this version of cxr can resume. Resume it with the version"
            " that wrote it, or choose another --output."
        )


def _prepare(
    recipe: Recipe,
    asked: Space,
    settings: SearchSettings,
    images: TrainingImages,
    *,
    gpu: bool,
) -> tuple[Shared, Shards]:
    """Decode once, and run the frozen part once for each normalization and variation of images.

    Returns:
        What the trials share, and the decoded radiographs.
    """
    model, _ = load_model(recipe, settings)
    pixels = decode_shards(images.listing, images.folds, recipe.image_px, settings.cache)
    recipes = [space.apply(recipe, point) for point in asked.points]
    cached = all(runs_frozen_part_once(varied, model) for varied in recipes)
    changed = None
    if settings.stress_images:
        changed = take_first(pixels, settings.stress_images, settings.cache)
        _check_classes(changed)
    normalizations = dict.fromkeys(varied.normalization for varied in recipes)
    shards: dict[tuple[str, Variation | None], Shards] = {
        (name, None): pixels for name in normalizations
    }
    if cached:
        wanted = {
            (varied.normalization, view): pixels for varied in recipes for view in views(varied)
        }
        if changed:
            wanted |= {(name, change): changed for name in normalizations for change in CHANGES}
        passes = [
            features.Pass(of, dataclasses.replace(recipe, normalization=name), model, variation)
            for (name, variation), of in wanted.items()
        ]
        extracted = features.extract(passes, settings.cache, gpu=gpu)
        shards = dict(zip(wanted, extracted, strict=True))
    tensors = model.states(frozen=False) if cached else model.state_dict()
    # The head's start is drawn from the seed by each trial: its widths may differ.
    state = {name: value for name, value in tensors.items() if name.startswith("features.")}
    shared = Shared(
        recipe=recipe,
        folder=storage.join(settings.folder, "trials"),
        folds=settings.num_folds,
        cached=cached,
        shards=shards,
        changed=changed,
        ranks_stressed=settings.ranks_stressed,
        state=ray.put(state),
        workers=cluster.parse_workers(settings.workers),
        gpu=gpu,
        stops=bool(asked.sampled) and not cached,
    )
    return shared, pixels


def _check_classes(changed: Shards) -> None:
    for fold in changed.parts:
        labels = changed.rows([fold])["label"].to_pylist()
        if missing := [name for label, name in enumerate(CLASSES) if label not in labels]:
            raise DataError(
                f"stress_images: fold {fold} has no {missing[0]} image among its first"
                f" {len(labels)}. Raise --stress-images, or give 0."
            )
