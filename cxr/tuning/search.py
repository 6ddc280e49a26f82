"""A search over recipes: Ray Tune runs the trials, patient-disjoint folds judge them.

OUT/search.json             what was searched: another space or data is refused
OUT/trials/<id>/            of each setting: setting.json, and a Parquet file per fold with the
                            logits of the images that its model was not trained on
OUT/trials.parquet          a row per setting
OUT/unreadable.json         images that were skipped, with the reason
OUT/best.json               a recipe that jobs/train.py --recipe trains as it is
OUT/report.html

Pixels are decoded once, and the frozen part of the backbone runs once for each normalization. A
fold that has its file is not trained again, so an interrupted search can be resumed. Drawn settings
of whole networks, whose trials are long, are stopped after a few folds where others are ahead.
"""

import dataclasses
import json
from typing import Any

import ray

from cxr import cluster, phantoms, storage
from cxr.datasets import features
from cxr.datasets.pixels import decode_shards, describe_duplicates
from cxr.datasets.shards import Shards
from cxr.errors import SettingsError
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
from cxr.training.settings import SharedSettings
from cxr.tuning import results, tuner
from cxr.tuning.results import Search
from cxr.tuning.space import Space
from cxr.tuning.trials import Shared

SETTINGS_FILE = "search.json"


def search(recipe: Recipe, space: Space, settings: SharedSettings) -> Search:
    """Judge every setting of a space by cross-validation, and compare them.

    Called again with the same output after it was interrupted, it resumes.

    Args:
        recipe: what the settings vary.
        space: the settings.
        settings: data, weights, folds, workers, cache and output, resolved.

    Raises:
        SettingsError: the output holds another search.
        DataError: the folds cannot be filled.
        CxrError: not one trial gave a figure.
    """
    gpu = cluster.use_gpu(settings.gpu)
    workers = cluster.parse_workers(settings.workers)
    trainer.check_workers(workers, recipe, gpu=gpu)
    data, name = phantoms.data_or_default(settings.data, settings.cache)
    images = list_training_images(data, settings)
    open_output(recipe, space, settings)
    print(f"search: {settings.folder}", flush=True)
    print(
        f"data: {len(images.listing):,} radiographs of {name}, {settings.num_folds} folds by"
        f" patient; {len(space.settings)} settings",
        flush=True,
    )
    shared, pixels = _prepare(recipe, space, settings, images, gpu=gpu)
    if duplicates := describe_duplicates(pixels):
        print(duplicates, flush=True)
    skipped = write_skipped([pixels], settings.folder)
    reasons = tuner.run_trials(shared, space, settings.folder)
    notes = [images.patients.sentence, *skipped_notes(skipped)]
    return results.conclude(shared, space, settings, pixels.table, reasons, name, notes)


def how_to_resume(folder: str) -> str:
    """What an interrupted search has kept, and the command that continues it."""
    if storage.kind(storage.join(folder, SETTINGS_FILE)) == "nothing":
        return "nothing is kept yet; the same command starts again"
    return f"finished folds are kept; the same command with --output {folder} continues"


def open_output(recipe: Recipe, space: Space, settings: SharedSettings) -> None:
    """Take an empty folder for a search, or one of the same search.

    Raises:
        SettingsError: it holds another search, or one that this version cannot resume.
        StorageError: something else lies there.
    """
    asked = {
        "space": space.to_json(),
        "recipe": json.loads(recipe.to_json()),
        "data": settings.data,
        # None for what earlier versions did not know, so that their searches can be resumed.
        "set": settings.how_read if settings.how_read != SetSettings().how_read else None,
        "test_fraction": settings.test_fraction,
        "weights": settings.weights,
        "limit": settings.limit,
        "folds": settings.num_folds,
    }
    uri = storage.join(settings.folder, SETTINGS_FILE)
    if storage.kind(uri) == "file":
        _check_readable(uri, asked)
    if not storage.check_same(settings.folder, SETTINGS_FILE, asked, "a search"):
        storage.write_json(uri, asked | {"packages": package_versions()})


def _check_readable(uri: str, asked: dict[str, Any]) -> None:
    try:
        kept: object = json.loads(storage.read_bytes(uri))
    except ValueError:
        kept = None
    needed = {name for name, value in asked.items() if value is not None}
    if not isinstance(kept, dict) or not needed <= kept.keys():
        raise SettingsError(
            f"{uri}: not a search that this version of cxr can resume. Resume it with the version"
            " that wrote it, or choose another --output."
        )


def _prepare(
    recipe: Recipe,
    space: Space,
    settings: SharedSettings,
    images: TrainingImages,
    *,
    gpu: bool,
) -> tuple[Shared, Shards]:
    """Decode once, and run the frozen part once for each normalization.

    Returns:
        What the trials share, and the decoded radiographs.
    """
    model, _ = load_model(recipe, settings)
    pixels = decode_shards(images.listing, images.folds, recipe.image_px, settings.cache)
    cached = runs_frozen_part_once(recipe, model)
    normalizations: Any = space.grid.get("normalization", (recipe.normalization,))
    shards = dict.fromkeys(normalizations, pixels)
    if cached:
        passes = [
            features.Pass(pixels, dataclasses.replace(recipe, normalization=name), model)
            for name in normalizations
        ]
        extracted = features.extract(passes, settings.cache, gpu=gpu)
        shards = dict(zip(normalizations, extracted, strict=True))
    tensors = model.states(frozen=False) if cached else model.state_dict()
    # The head's start is drawn from the seed by each trial: its widths may differ.
    state = {name: value for name, value in tensors.items() if name.startswith("features.")}
    shared = Shared(
        recipe=recipe,
        folder=storage.join(settings.folder, "trials"),
        folds=settings.num_folds,
        cached=cached,
        shards=shards,
        state=ray.put(state),
        workers=cluster.parse_workers(settings.workers),
        gpu=gpu,
        stops=bool(space.sampled) and not cached,
    )
    return shared, pixels
