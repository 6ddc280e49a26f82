"""A trial of a search: one setting, judged on each fold by a model not trained on it.

Where the backbone is frozen, the heads of all folds train inside the trial's own process from
features that all trials share. Where it is trained, the folds are runs of Ray Train.

Each fold's model also judges some of the fold's images under acquisition changes: from features of
the changed images, or, where the backbone is trained, by ONNX Runtime in the trial's process.
"""

import dataclasses
import functools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

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
from cxr.datasets.variation import NamedChange, Variation, rotate, varied, views
from cxr.inference.onnx_engine import OnnxEngine
from cxr.metrics import Floats
from cxr.models import acquisition, classifier
from cxr.models.classifier import Classifier, State
from cxr.models.export import export
from cxr.models.outputs import logit
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array
from cxr.training import loop, trainer
from cxr.training.loaders import MemoryLoader, RotatingLoader
from cxr.training.loop import EMPTY_SCORE, Learner
from cxr.tuning import space
from cxr.tuning.space import Setting

CHANGES: Final = tuple(NamedChange(name, acquisition.MEDIUM) for name in acquisition.STRESS)
"""What the stressed AUC is the mean over."""


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
    shards: Mapping[tuple[str, Variation | None], Shards]
    """Pixels, or features by normalization and view; and features of `changed`, by change."""
    changed: Shards | None
    """Pixels of the validation images that are judged under `CHANGES`; None for no such images."""
    ranks_stressed: bool
    """Whether trials are ranked by the AUC under changes."""
    state: "ray.ObjectRef[State]"
    """Pretrained tensors that training may change, by the classifier's names."""
    workers: Workers
    """Processes of a run of Ray Train."""
    gpu: bool
    """Whether to compute on GPUs."""
    stops: bool
    """Whether a trial may be stopped before its last fold."""


@dataclass(frozen=True)
class FoldFigures:
    """How a setting did in a fold; NaN where undefined."""

    auc: float
    stressed_auc: float
    """Mean over `CHANGES`."""


@dataclass(frozen=True)
class Judgments:
    """What T settings gave for N images, M of which were also judged under C changes."""

    logits: Floats
    """(T, N), NaN where there is none."""
    members: NDArray[np.int64]
    """Positions of the M images among the N."""
    stressed: Floats
    """(T, C, M), NaN where there is none."""
    seconds: list[float]
    """That each setting took."""


def judge(config: Mapping[str, Any], shared: Shared) -> None:
    """Train and judge the setting `config["setting"]` on each fold that has no file yet.

    Reports to Ray Tune the mean AUCs over the folds so far, the one that ranks it as the score, and
    the number of folds.
    """
    logging.disable(logging.WARNING)
    # Of this process: what it starts writes to the search's own console.
    ray.data.DataContext.get_current().enable_progress_bars = False
    setting: Setting = config["setting"]
    recipe = space.apply(shared.recipe, setting)
    storage.write_json(storage.join(_folder(shared, setting), "setting.json"), dict(setting))
    all_folds = range(shared.folds)
    figures: list[FoldFigures] = []
    # Starting Ray Train takes longer than a small fold: one run of it for all, unless the trial may
    # be stopped between two.
    for folds in [(k,) for k in all_folds] if shared.stops else [tuple(all_folds)]:
        missing = [k for k in folds if storage.kind(_fold_file(shared, setting, k)) == "nothing"]
        train = _train_heads if shared.cached else _train_networks
        if missing:
            train(recipe, shared, setting, missing)
        figures += [_figures(storage.read_table(_fold_file(shared, setting, k))) for k in folds]
        tune.report(
            {
                "auc": float(np.mean([fold.auc for fold in figures])),
                "stressed_auc": float(np.mean([fold.stressed_auc for fold in figures])),
                "score": _score(figures, shared),
                "folds": len(figures),
            }
        )


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
    return _score([_figures(table) for table in tables], shared)


def read(shared: Shared, tried: Sequence[Setting], images: pa.Table) -> Judgments:
    """What the settings gave.

    Args:
        shared: says where.
        tried: T settings.
        images: the N radiographs, with their `row`.
    """
    rows = images["row"].slice(0, 0) if shared.changed is None else shared.changed.table["row"]
    logits = np.full((len(tried), len(images)), np.nan)
    stressed = np.full((len(tried), len(CHANGES), len(rows)), np.nan)
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
                if len(rows):
                    judged = judged.filter(pc.is_in(judged["row"], rows))
                    positions = np.asarray(pc.index_in(judged["row"], rows))
                    for number, change in enumerate(CHANGES):
                        if change.name in judged.column_names:  # Not of a model that diverged.
                            stressed[index, number, positions] = np.asarray(judged[change.name])
                content = json.loads((judged.schema.metadata or {})[b"cxr"])
                seconds[index] += content["seconds"]
    members = np.asarray(pc.index_in(rows, images["row"]), np.int64)
    return Judgments(logits, members, stressed, seconds)


def _folder(shared: Shared, setting: Setting) -> str:
    return storage.join(shared.folder, space.identity(setting))


def _fold_file(shared: Shared, setting: Setting, fold: int) -> str:
    """Where the logits of a fold are: row, label, logit, and under each change of `CHANGES` a
    column of its name, null for images that were not changed; its metadata hold the epochs."""
    return storage.join(_folder(shared, setting), f"fold-{fold}.parquet")


def _score(figures: Sequence[FoldFigures], shared: Shared) -> float:
    auc = float(
        np.mean([fold.stressed_auc if shared.ranks_stressed else fold.auc for fold in figures])
    )
    return auc if np.isfinite(auc) else EMPTY_SCORE


def _figures(table: pa.Table) -> FoldFigures:
    stressed = [
        _auc(changed["label"], changed[change.name])
        for change in CHANGES
        if change.name in table.column_names
        and len(changed := table.filter(pc.is_valid(table[change.name])))
    ]
    auc = _auc(table["label"], table["logit"])
    return FoldFigures(auc, float(np.mean(stressed)) if stressed else float("nan"))


def _auc(labels: pa.ChunkedArray, outputs: pa.ChunkedArray) -> float:
    """NaN where it is undefined."""
    logits, label = np.asarray(outputs), np.asarray(labels)
    if not np.isfinite(logits).all():
        return float("nan")
    auc = metrics.roc_auc(label, logits)
    return float("nan") if auc is None else auc


def _train_heads(recipe: Recipe, shared: Shared, setting: Setting, folds: Sequence[int]) -> None:
    torch.set_num_threads(1)
    of_views = [shared.shards[recipe.normalization, view] for view in views(recipe)]
    shards = of_views[0]
    features = _read_features(tuple(shards.folder for shards in of_views))
    label, row, fold_of = (np.asarray(shards.table[name]) for name in ("label", "row", "fold"))
    model = classifier.build(recipe)  # With the random start of its own head.
    state: State = ray.get(shared.state)
    model.load_state_dict(dict(state), strict=False)
    for fold in folds:
        started = time.monotonic()
        trained, held_out = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        learner = Learner(
            recipe, model.states(frozen=False), trainer.class_weights(recipe, label[trained]),
            cached=True, shape=shards.shape, dtype=shards.dtype, gpu=shared.gpu,
            num_images=len(trained), rank=0, world=1,
        )  # fmt: skip
        loader = RotatingLoader(
            [
                MemoryLoader(x[trained], torch.from_numpy(label[trained]), recipe, row[trained])
                for x in features.rotation
            ]
        )
        validation = MemoryLoader(
            features.unchanged[held_out], torch.from_numpy(label[held_out]), recipe, row[held_out]
        )
        changed = {
            change.name: _read_rows(shared.shards[recipe.normalization, change], [fold], recipe)
            for change in (CHANGES if shared.changed else ())
        }
        history: list[loop.Entry] = []
        best: dict[str, NDArray[Any]] = {}
        stressed: dict[str, pa.Table] = {}
        for _, is_best, predictions in loop.epochs(learner, loader, validation, history):
            if is_best:
                best = predictions
                stressed = {
                    name: pa.table(learner.evaluate(images)[1]) for name, images in changed.items()
                }
        uri = _fold_file(shared, setting, fold)
        table = _with_changes(pa.table(best), stressed)
        _write_fold(uri, table, history, time.monotonic() - started)


@dataclass(frozen=True)
class Features:
    """Features of all rows of a data set, in order."""

    unchanged: torch.Tensor
    """Of the images as they are, (N, *shape)."""
    rotation: tuple[torch.Tensor, ...]
    """Those that epochs train on in turn, each as `unchanged`."""


@functools.lru_cache(maxsize=1)
def _read_features(folders: tuple[str, ...]) -> Features:
    """The features in the folders of each view, kept from trial to trial."""
    loaded = [shards for folder in folders if (shards := load_shards(folder))]
    assert len(loaded) == len(folders)
    unchanged = _read_rows(loaded[0], list(loaded[0].parts), Recipe()).x
    if len(loaded) == 1:
        return Features(unchanged, (unchanged,))
    rotation = (_read_rows(shards, list(shards.parts), Recipe()).x for shards in rotate(loaded))
    return Features(unchanged, tuple(rotation))


def _read_rows(shards: Shards, folds: Sequence[int], recipe: Recipe) -> MemoryLoader:
    tables = (
        read_part(path, ("row", "label", "x")) for fold in folds for path in shards.parts[fold]
    )
    rows = np.sort(np.asarray(shards.rows(folds)["row"]))
    return MemoryLoader.read(tables, recipe, shards.shape, shards.dtype, rows)


def _with_changes(table: pa.Table, stressed: Mapping[str, pa.Table]) -> pa.Table:
    """Add the logits of changed images to those of all: a column for each change."""
    for name, judged in stressed.items():
        positions = pc.index_in(table["row"], judged["row"])
        table = table.append_column(name, judged["logit"].take(positions))
    return table


def _judge_changed(
    recipe: Recipe, model: Classifier, changed: Shards, fold: int
) -> dict[str, pa.Table]:
    """Row and logit of a fold's images under each change, by this process with all its cores."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    engine = OnnxEngine(export(model, recipe, {}), "logits", threads)
    logits: dict[str, list[NDArray[np.float32]]] = {change.name: [] for change in CHANGES}
    parts = [read_part(path, ("row", "x")) for path in changed.parts[fold]]
    for part in parts:
        pixels, rows = to_array(part["x"], changed.shape, changed.dtype), np.asarray(part["row"])
        for change in CHANGES:
            logits[change.name].append(logit(engine.run(varied(change, pixels, rows))))
    row = pa.concat_tables(parts)["row"]
    return {
        name: pa.table({"row": row, "logit": np.concatenate(arrays)})
        for name, arrays in logits.items()
    }


def _train_networks(recipe: Recipe, shared: Shared, setting: Setting, folds: Sequence[int]) -> None:
    model = classifier.build(recipe)
    state: State = ray.get(shared.state)
    model.load_state_dict(dict(state), strict=False)
    output = storage.join(_folder(shared, setting), "runs", "-".join(map(str, folds)))
    plans = [
        trainer.Plan(
            dataclasses.replace(recipe, name=f"fold-{fold}"),
            model,
            shards=shared.shards[recipe.normalization, None],
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
        stressed: dict[str, pa.Table] = {}
        if shared.changed and outcome.best["score"] != EMPTY_SCORE:
            model.load_state_dict(dict(outcome.state), strict=False)
            stressed = _judge_changed(recipe, model.eval(), shared.changed, fold)
        uri = _fold_file(shared, setting, fold)
        table = _with_changes(outcome.validation, stressed)
        _write_fold(uri, table, outcome.history, seconds)
    storage.delete(output)


def _write_fold(
    uri: str, table: pa.Table, history: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    content = json.dumps({"history": list(history), "seconds": seconds})
    storage.write_table(uri, table.replace_schema_metadata({"cxr": content}))
