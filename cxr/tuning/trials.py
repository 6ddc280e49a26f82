"""A trial of a search: one setting, judged on each fold by a model not trained on it.

Where the backbone is frozen, the heads of all folds train inside the trial's own process from
features that all trials share. Where it is trained, the folds are runs of Ray Train.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray import tune

from cxr import metrics, storage
from cxr.cluster import Workers
from cxr.datasets.shards import Shards, load_shards, read_part
from cxr.metrics import Floats
from cxr.models import classifier
from cxr.models.classifier import State
from cxr.recipes import Recipe
from cxr.training import loop, trainer
from cxr.training.loaders import MemoryLoader
from cxr.training.loop import EMPTY_SCORE, Learner
from cxr.tuning import space
from cxr.tuning.space import Setting


@dataclass(frozen=True)
class Shared:
    """What the trials of a search have in common."""

    recipe: Recipe
    """What the settings vary."""
    folder: str
    """Of all trials; below it one per setting."""
    folds: int
    """Patient-disjoint folds."""
    cached: bool
    """Whether the shards hold features of the frozen part, and heads are trained."""
    shards: Mapping[str, Shards]
    """Pixels, or features, by normalization."""
    state: "ray.ObjectRef[State]"
    """Pretrained tensors that training may change, by the classifier's names."""
    workers: Workers
    """Processes of a run of Ray Train."""
    gpu: bool
    """Whether to compute on GPUs."""
    stops: bool
    """Whether a trial may be stopped before its last fold."""


def judge(config: Mapping[str, Any], shared: Shared) -> None:
    """Train and judge the setting `config["setting"]` on each fold that has no file yet.

    Reports to Ray Tune the mean AUC over the folds so far, and their number.
    """
    logging.disable(logging.WARNING)
    # Of this process: what it starts writes to the search's own console.
    ray.data.DataContext.get_current().enable_progress_bars = False
    setting: Setting = config["setting"]
    recipe = space.apply(shared.recipe, setting)
    storage.write_json(storage.join(_folder(shared, setting), "setting.json"), dict(setting))
    all_folds = range(shared.folds)
    aucs: list[float] = []
    # Starting Ray Train takes longer than a small fold: one run of it for all, unless the trial may
    # be stopped between two.
    for folds in [(k,) for k in all_folds] if shared.stops else [tuple(all_folds)]:
        missing = [k for k in folds if storage.kind(_fold_file(shared, setting, k)) == "nothing"]
        train = _train_heads if shared.cached else _train_networks
        if missing:
            train(recipe, shared, setting, missing)
        aucs += [_auc(storage.read_table(_fold_file(shared, setting, k))) for k in folds]
        tune.report({"auc": float(np.mean(aucs)), "score": _score(aucs), "folds": len(aucs)})


def finished(shared: Shared) -> list[Setting]:
    """The settings that have been judged on every fold."""
    return [
        setting
        for setting in settings(shared.folder)
        if all(storage.kind(_fold_file(shared, setting, k)) == "file" for k in range(shared.folds))
    ]


def settings(folder: str) -> list[Setting]:
    """The settings that have been started, in order of their names."""
    files = [] if storage.kind(folder) == "nothing" else storage.list_files(folder)
    return [storage.read_json(file.uri) for file in files if file.uri.endswith("/setting.json")]


def forget(shared: Shared, setting: Setting) -> None:
    """Delete what a setting has left."""
    storage.delete(_folder(shared, setting))


def score(shared: Shared, setting: Setting) -> float:
    """What a finished setting was ranked by."""
    tables = (storage.read_table(_fold_file(shared, setting, k)) for k in range(shared.folds))
    return _score([_auc(table) for table in tables])


def read(shared: Shared, tried: Sequence[Setting], images: pa.Table) -> tuple[Floats, list[float]]:
    """What the settings gave.

    Args:
        shared: says where.
        tried: T settings.
        images: the N radiographs, with their `row`.

    Returns:
        The logit of each setting and radiograph, (T, N), NaN where there is none; and the seconds
        that each setting took.
    """
    logits = np.full((len(tried), len(images)), np.nan)
    seconds = [0.0] * len(tried)
    for index, setting in enumerate(tried):
        for fold in range(shared.folds):
            uri = _fold_file(shared, setting, fold)
            if storage.kind(uri) == "file":
                judged = storage.read_table(uri)
                # A search of an earlier version has judged duplicates, too.
                judged = judged.filter(pc.is_in(judged["row"], images["row"]))
                positions = np.asarray(pc.index_in(judged["row"], images["row"]))
                logits[index, positions] = np.asarray(judged["logit"])
                content = json.loads((judged.schema.metadata or {})[b"cxr"])
                seconds[index] += content["seconds"]
    return logits, seconds


def _folder(shared: Shared, setting: Setting) -> str:
    return storage.join(shared.folder, space.identity(setting))


def _fold_file(shared: Shared, setting: Setting, fold: int) -> str:
    """Where the logits of a fold are: row, label, logit; its metadata hold the epochs."""
    return storage.join(_folder(shared, setting), f"fold-{fold}.parquet")


def _score(aucs: Sequence[float]) -> float:
    auc = float(np.mean(aucs))
    return auc if np.isfinite(auc) else EMPTY_SCORE


def _auc(table: pa.Table) -> float:
    """NaN where it is undefined."""
    logits, label = np.asarray(table["logit"]), np.asarray(table["label"])
    if not np.isfinite(logits).all():
        return float("nan")
    auc = metrics.roc_auc(label, logits)
    return float("nan") if auc is None else auc


def _train_heads(recipe: Recipe, shared: Shared, setting: Setting, folds: Sequence[int]) -> None:
    torch.set_num_threads(1)
    shards = shared.shards[recipe.normalization]
    x, label, fold_of = _read_features(shards.folder)
    row = np.asarray(shards.table["row"])
    state: State = ray.get(shared.state)
    for fold in folds:
        started = time.monotonic()
        trained, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        learner = Learner(
            recipe, state, trainer.class_weights(recipe, label[trained]), cached=True,
            shape=shards.shape, dtype=shards.dtype, gpu=shared.gpu,
            num_images=len(trained), rank=0, world=1,
        )  # fmt: skip
        loader, validation = (
            MemoryLoader(x[rows], torch.from_numpy(label[rows]), recipe, row[rows])
            for rows in (trained, held_out)
        )
        history: list[loop.Entry] = []
        best: dict[str, NDArray[Any]] = {}
        for _, is_best, predictions in loop.epochs(learner, loader, validation, history):
            if is_best:
                best = predictions
        uri = _fold_file(shared, setting, fold)
        _write_fold(uri, pa.table(best), history, time.monotonic() - started)


@functools.lru_cache(maxsize=1)
def _read_features(folder: str) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Features, classes and folds of all rows, in order; kept from trial to trial."""
    shards = load_shards(folder)
    assert shards is not None
    rows = np.asarray(shards.table["row"])
    tables = (
        read_part(path, ("row", "label", "x")) for paths in shards.parts.values() for path in paths
    )
    loader = MemoryLoader.read(tables, Recipe(), shards.shape, shards.dtype, rows)
    return loader.x, loader.label.numpy(), np.asarray(shards.table["fold"])


def _train_networks(recipe: Recipe, shared: Shared, setting: Setting, folds: Sequence[int]) -> None:
    model = classifier.build(recipe)
    state: State = ray.get(shared.state)
    model.load_state_dict(dict(state), strict=False)
    output = storage.join(_folder(shared, setting), "runs", "-".join(map(str, folds)))
    plans = [
        trainer.Plan(
            dataclasses.replace(recipe, name=f"fold-{fold}"),
            model,
            shards=shared.shards[recipe.normalization],
            cached=False,
            train_folds=tuple(k for k in range(shared.folds) if k != fold),
            validation_folds=(fold,),
            output=storage.join(output, f"fold-{fold}"),
        )
        for fold in folds
    ]
    outcomes = trainer.fit(plans, output, workers=shared.workers, gpu=shared.gpu)
    for fold, outcome in zip(folds, outcomes, strict=True):
        seconds = sum(entry["seconds"] for entry in outcome.history)
        uri = _fold_file(shared, setting, fold)
        _write_fold(uri, outcome.validation, outcome.history, seconds)
    storage.delete(output)


def _write_fold(
    uri: str, table: pa.Table, history: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    content = json.dumps({"history": list(history), "seconds": seconds})
    storage.write_table(uri, table.replace_schema_metadata({"cxr": content}))
