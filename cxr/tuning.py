"""A search over recipes: Ray Tune runs the trials, patient-disjoint folds judge them.

OUT/search.json             what was searched: another space or data is refused
OUT/trials/<id>/            of each setting: setting.json, and a Parquet file a fold with the
                            logits of the images that its model did not see
OUT/trials.parquet          a row a setting
OUT/best.json               a recipe that jobs/train.py --recipe trains as it is
OUT/report.html

Trials share what they can: pixels are decoded once, the frozen part of the backbone runs once for
each normalization, and heads train from those features inside the trial's own process. Where the
backbone is trained, a trial is a run of Ray Train, and trials follow one another. A fold that has
its file is not trained again, so an interrupted search goes on where it was.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from numpy.typing import NDArray
from ray import tune

from cxr import (
    cluster,
    data,
    effects,
    features,
    learning,
    metrics,
    models,
    phantoms,
    runs,
    space,
    storage,
    training,
)
from cxr.checkpoint import package_versions
from cxr.data import Shards
from cxr.errors import CxrError, SettingsError
from cxr.learning import Learner
from cxr.loading import MemoryLoader
from cxr.metrics import Floats
from cxr.models import State
from cxr.recipes import Recipe
from cxr.reports import Effect, TrialResult, TuningReport, tuning_page
from cxr.runs import RunSettings
from cxr.space import Setting, Space

HEAD_CPUS: Final = 1
"""CPUs of a trial that trains heads: each has one thread."""

RUN_CPUS: Final = 0.01
"""CPUs of a trial that starts a run of Ray Train. The workers claim theirs; if the trial claimed
one as well, trials would hold what their own workers wait for."""


@dataclass(frozen=True)
class Search:
    """A finished search."""

    trials: tuple[TrialResult, ...]
    effects: tuple[Effect, ...]
    answers: tuple[str, ...]
    best: Recipe | None
    """None where no trial gave a figure."""
    report: str
    best_recipe: str
    """Its place."""


@dataclass(frozen=True)
class _Shared:
    """What the trials have in common."""

    recipe: Recipe
    folder: str
    folds: int
    cached: bool
    shards: Mapping[str, Shards]
    """Pixels, or features of the frozen part, by normalization."""
    state: "ray.ObjectRef[State]"
    """Pretrained tensors that training may change, by the classifier's names."""
    workers: int
    gpu: bool


def search(recipe: Recipe, wanted: Space, settings: RunSettings) -> Search:
    """Judge every setting of a space by cross-validation, and compare them.

    Called again with the same output after it was interrupted, it goes on.

    Args:
        recipe: what the settings vary.
        wanted: the space.
        settings: data, weights, folds, workers, cache and output, from `resolve`.

    Raises:
        SettingsError: the output holds another search.
        DataError: the folds cannot be filled.
        CxrError: not one trial gave a figure.
    """
    output = str(settings.output)
    gpu = cluster.use_gpu(settings.gpu)
    training.check_workers(settings.workers, recipe, gpu=gpu)
    where = settings.data or str(phantoms.cached(runs.PHANTOMS, Path(settings.cache)))
    name = where.rsplit("/", 1)[-1] if settings.data else "phantoms"
    listing, folds = runs.labelled_folds(where, settings)
    open_output(output, recipe, wanted, settings)
    print(f"search: {output}", flush=True)
    print(
        f"data: {len(listing):,} radiographs of {name}, {settings.folds} folds by patient;"
        f" {len(wanted.settings)} settings",
        flush=True,
    )
    shared, table = _prepare(recipe, wanted, settings, listing, folds, gpu=gpu)
    reasons = _run(shared, wanted, settings)
    return _conclude(shared, wanted, settings, table, reasons, name)


def resolve(recipe: Recipe, settings: RunSettings) -> RunSettings:
    """Fill in every default; the output may be that of an interrupted search.

    Raises:
        SettingsError: the recipe cannot be built.
    """
    models.check(recipe)
    output = storage.absolute(settings.output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-tune")
    return dataclasses.replace(
        settings,
        data=storage.absolute(settings.data) if settings.data else None,
        weights=settings.weights or ("imagenet" if settings.data else "none"),
        output=output,
        cache=storage.absolute(settings.cache),
    )


def open_output(output: str, recipe: Recipe, wanted: Space, settings: RunSettings) -> None:
    """Take an empty folder for a search, or one of the same search.

    Raises:
        SettingsError: it holds another search.
        StorageError: something else lies there.
    """
    place = storage.join(output, "search.json")
    asked = {
        "space": wanted.to_json(),
        "recipe": json.loads(recipe.to_json()),
        "data": settings.data,
        "weights": settings.weights,
        "limit": settings.limit,
        "folds": settings.folds,
    }
    if storage.kind(place) == "nothing":
        storage.check_empty(output)
        storage.write_json(place, asked | {"packages": package_versions()})
        return
    kept = storage.read_json(place)
    for key, value in asked.items():
        if kept.get(key) != value:
            raise SettingsError(
                f"{output}: holds a search with {key} {kept.get(key)}, not {value}. Choose another"
                " --output, or repeat the first command."
            )


def _prepare(
    recipe: Recipe,
    wanted: Space,
    settings: RunSettings,
    listing: pa.Table,
    folds: NDArray[np.int64],
    *,
    gpu: bool,
) -> tuple[_Shared, pa.Table]:
    """Decode once, and run the frozen part once for each normalization."""
    loaded = runs.load_model(recipe, settings)
    pixels = data.decode_shards(listing, folds, recipe.image_px, settings.cache)
    cached = loaded.model.num_frozen > 0 and recipe.augmentation == "none"
    kinds: Any = wanted.grid.get("normalization", (recipe.normalization,))
    shards = dict.fromkeys(kinds, pixels)
    if cached:
        passes = [
            features.Pass(pixels, dataclasses.replace(recipe, normalization=kind), loaded.model)
            for kind in kinds
        ]
        shards = dict(zip(kinds, features.extract(passes, settings.cache, gpu=gpu), strict=True))
    kept = loaded.model.states(frozen=False) if cached else loaded.model.state_dict()
    # The head's start is drawn from the seed by each trial: its widths may differ.
    state = {key: value for key, value in kept.items() if key.startswith("features.")}
    shared = _Shared(
        recipe, storage.join(str(settings.output), "trials"), settings.folds, cached, shards,
        ray.put(state), settings.workers, gpu,
    )  # fmt: skip
    return shared, pixels.table


# ---------------------------------------------------------------- trials


def _run(shared: _Shared, wanted: Space, settings: RunSettings) -> dict[str, str]:
    """Run what is not finished; the reasons of trials that failed, by their name."""
    folders = {space.identity(s): s for s in wanted.settings}
    waiting = {
        name: setting
        for name, setting in folders.items()
        if any(storage.kind(fold_file(shared.folder, name, k)) == "nothing"
               for k in range(shared.folds))
    }  # fmt: skip
    if len(waiting) < len(folders):
        print(f"going on: {len(folders) - len(waiting)} of {len(folders)} settings are done")
    if not waiting:
        return {}
    resources: dict[str, float] = {"CPU": HEAD_CPUS} if shared.cached else {"CPU": RUN_CPUS}
    concurrent = None if shared.cached else _num_runs(settings.workers, gpu=shared.gpu)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, shared=shared), resources),
        param_space={"setting": tune.grid_search(list(waiting.values()))},
        tune_config=tune.TuneConfig(
            metric="auc", mode="max", max_concurrent_trials=concurrent, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=f"tune-{int(time.time())}",
            storage_path=storage.join(str(settings.output), "ray"),
            verbose=0,
            callbacks=[_Lines(len(waiting))],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    grid = tuner.fit()
    storage.delete(storage.join(str(settings.output), "ray"))
    reasons = {}
    for result in (grid[index] for index in range(len(grid))):
        if result.error is not None and result.config:
            name = space.identity(result.config["setting"])
            reasons[name] = str(result.error).strip().splitlines()[-1]
    return reasons


def _num_runs(workers: int, *, gpu: bool) -> int:
    """Runs of Ray Train that the cluster holds at once: on CPUs one, which has them all."""
    return max(1, int(ray.cluster_resources().get("GPU", 0)) // workers) if gpu else 1


class _Lines(tune.Callback):
    """A line whenever a trial ends."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.best = total, 0, -1.0
        self.started = time.monotonic()

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        auc = float((trial.last_result or {}).get("auc", float("nan")))
        self.best = max(self.best, auc) if np.isfinite(auc) else self.best
        self._tell(trial, f"AUC {auc:.4f}")

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        self._tell(trial, "failed")

    def _tell(self, trial: Any, outcome: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        words = ", ".join(f"{k} {v}" for k, v in trial.config["setting"].items())
        best = f"best {self.best:.4f}, " if self.best >= 0 else ""
        print(
            f"  {self.done} of {self.total}: {words}: {outcome}; {best}{left:.0f} s left",
            flush=True,
        )


def fold_file(folder: str, name: str, fold: int) -> str:
    """Where the logits of a setting's fold are: row, label, logit; its metadata hold the epochs."""
    return storage.join(folder, name, f"fold-{fold}.parquet")


def _trial(config: Mapping[str, Any], shared: _Shared) -> None:
    """One setting, judged on each fold by a model that did not see it."""
    logging.disable(logging.WARNING)
    setting = config["setting"]
    recipe = space.apply(shared.recipe, setting)
    folder = storage.join(shared.folder, space.identity(setting))
    storage.write_json(storage.join(folder, "setting.json"), dict(setting))
    if shared.cached:
        _train_heads(recipe, shared, folder)
    else:
        _train_whole(recipe, shared, folder)
    aucs = []
    for fold in range(shared.folds):
        table = storage.read_table(storage.join(folder, f"fold-{fold}.parquet"))
        aucs.append(_auc(table))
    tune.report({"auc": float(np.mean(aucs))})


def _auc(table: pa.Table) -> float:
    """NaN where it is undefined."""
    logits, label = np.asarray(table["logit"]), np.asarray(table["label"])
    if not np.isfinite(logits).all():
        return float("nan")
    auc = metrics.roc_auc(label, logits)
    return float("nan") if auc is None else auc


def _train_heads(recipe: Recipe, shared: _Shared, folder: str) -> None:
    torch.set_num_threads(1)
    shards = shared.shards[recipe.normalization]
    x, label, fold_of = _arrays(shards)
    row = np.asarray(shards.table["row"])
    state: State = ray.get(shared.state)
    for fold in range(shared.folds):
        place = storage.join(folder, f"fold-{fold}.parquet")
        if storage.kind(place) == "file":
            continue
        started = time.monotonic()
        seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        learner = Learner(
            recipe, state, training.class_weights(recipe, label[seen]), cached=True,
            shape=shards.shape, dtype=shards.dtype, gpu=shared.gpu, rank=0, world=1,
        )  # fmt: skip
        loader, validation = (
            MemoryLoader(x[rows], torch.from_numpy(label[rows]), recipe, row[rows])
            for rows in (seen, unseen)
        )
        history: list[learning.Entry] = []
        kept: dict[str, NDArray[Any]] = {}
        for _, is_best, columns in learning.epochs(learner, loader, validation, history):
            if is_best:
                kept = columns
        _write_fold(place, pa.table(kept), history, time.monotonic() - started)


def _train_whole(recipe: Recipe, shared: _Shared, folder: str) -> None:
    if all(
        storage.kind(storage.join(folder, f"fold-{fold}.parquet")) == "file"
        for fold in range(shared.folds)
    ):
        return
    model = models.build(recipe)
    state: State = ray.get(shared.state)
    model.load_state_dict(dict(state), strict=False)
    plans = [
        training.Plan(
            dataclasses.replace(recipe, name=f"fold-{fold}"),
            shards=shared.shards[recipe.normalization],
            cached=False,
            train_folds=tuple(k for k in range(shared.folds) if k != fold),
            validation_folds=(fold,),
            output=storage.join(folder, f"fold-{fold}"),
        )
        for fold in range(shared.folds)
    ]
    starts = [model] * len(plans)
    outcomes = training.fit(plans, starts, folder, num_workers=shared.workers, gpu=shared.gpu)
    for fold, outcome in enumerate(outcomes):
        seconds = sum(entry["seconds"] for entry in outcome.history)
        place = storage.join(folder, f"fold-{fold}.parquet")
        _write_fold(place, outcome.validation, outcome.history, seconds)
        storage.delete(storage.join(folder, f"fold-{fold}"))
    storage.delete(storage.join(folder, "ray"))


@functools.lru_cache(maxsize=1)
def _read(folder: str) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64]]:
    shards = data.load_shards(folder)
    assert shards is not None
    rows = np.asarray(shards.table["row"])
    tables = (
        data.read_part(path, ("row", "label", "x"))
        for paths in shards.parts.values()
        for path in paths
    )
    loader = MemoryLoader.read(tables, Recipe(), shards.shape, shards.dtype, rows)
    return loader.x, loader.label.numpy(), np.asarray(shards.table["fold"])


def _arrays(shards: Shards) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Features, classes and folds of all rows, in order; kept from trial to trial."""
    return _read(shards.folder)


def _write_fold(
    place: str, table: pa.Table, history: Sequence[Mapping[str, Any]], seconds: float
) -> None:
    content = json.dumps({"history": list(history), "seconds": seconds})
    storage.write_table(place, table.replace_schema_metadata({"cxr": content}))


# ---------------------------------------------------------------- results


def _conclude(
    shared: _Shared,
    wanted: Space,
    settings: RunSettings,
    table: pa.Table,
    reasons: Mapping[str, str],
    name: str,
) -> Search:
    output = str(settings.output)
    tried = wanted.settings
    logits, seconds = _read_trials(shared, tried, table)
    folds = np.asarray(table["fold"])
    patients = table["patient"].to_pylist()
    judged = effects.judge(np.asarray(table["label"]), folds, patients, logits)
    num_patients = len(set(patients))
    trials = tuple(
        _result(setting, judged, index, seconds[index], reasons)
        for index, setting in enumerate(tried)
    )
    found = effects.compare(tried, judged, wanted.grid, len(table), num_patients)
    answers = tuple(effects.sentence(found, factor) for factor in wanted.grid)
    ranked = [(trial.auc.value, -index) for index, trial in enumerate(trials) if trial.auc]
    if not ranked:
        raise CxrError(
            f"{output}: no trial gave a figure. The first reason:"
            f" {next(iter(trial.reason for trial in trials))}"
        )
    best = space.apply(shared.recipe, tried[-max(ranked)[1]])
    best = dataclasses.replace(best, name="tuned")
    best_recipe = storage.join(output, "best.json")
    storage.write_bytes(best_recipe, best.to_json().encode())
    storage.write_table(storage.join(output, "trials.parquet"), _table(trials))
    report = storage.join(output, "report.html")
    page = tuning_page(
        TuningReport(
            title=f"{shared.recipe.name}: {' and '.join(_words(f) for f in tried[0])}",
            data=name,
            recipe={
                k: v for k, v in dataclasses.asdict(shared.recipe).items() if k not in tried[0]
            },
            grid=wanted.grid,
            sampled=wanted.sampled,
            trials=trials,
            effects=found,
            answers=answers,
            num_folds=settings.folds,
            num_images=len(table),
            num_patients=num_patients,
            facts={
                "data": name,
                "weights": Path(str(settings.weights)).name,
                "folds": settings.folds,
                "resamples": effects.NUM_RESAMPLES,
                "versions": package_versions(),
            },
        )
    )
    storage.write_bytes(report, page.encode())
    return Search(trials, tuple(found), answers, best, report, best_recipe)


def _words(factor: str) -> str:
    return factor.replace("_", " ")


def _read_trials(
    shared: _Shared, tried: Sequence[Setting], table: pa.Table
) -> tuple[Floats, list[float]]:
    """The logits of each setting, (T, N), NaN where there are none; and the seconds it took."""
    logits = np.full((len(tried), len(table)), np.nan)
    seconds = [0.0] * len(tried)
    for index, setting in enumerate(tried):
        for fold in range(shared.folds):
            place = fold_file(shared.folder, space.identity(setting), fold)
            if storage.kind(place) == "file":
                judged = storage.read_table(place)
                at = np.asarray(pc.index_in(judged["row"], table["row"]))
                logits[index, at] = np.asarray(judged["logit"])
                content = json.loads((judged.schema.metadata or {})[b"cxr"])
                seconds[index] += content["seconds"]
    return logits, seconds


def _result(
    setting: Setting,
    judged: effects.Judged,
    index: int,
    seconds: float,
    reasons: Mapping[str, str],
) -> TrialResult:
    aucs = judged.auc[index]
    reason = reasons.get(space.identity(setting), "")
    if not reason and (undefined := np.flatnonzero(~np.isfinite(aucs))).size:
        reason = f"the AUC is undefined in fold {undefined[0]}"
    return TrialResult(
        setting=setting,
        auc=effects.interval(aucs, judged.resampled_auc[index]),
        balanced_accuracy=effects.interval(
            judged.balanced_accuracy[index], judged.resampled_balanced_accuracy[index]
        ),
        fold_aucs=[float(auc) if np.isfinite(auc) else None for auc in aucs],
        seconds=seconds,
        reason=reason,
    )


def _table(trials: Sequence[TrialResult]) -> pa.Table:
    rows = []
    for trial in trials:
        row: dict[str, Any] = dict(trial.setting)
        for name, figure in (("auc", trial.auc), ("balanced_accuracy", trial.balanced_accuracy)):
            row |= {
                name: figure.value if figure else None,
                f"{name}_low": figure.low if figure else None,
                f"{name}_high": figure.high if figure else None,
            }
        rows.append(
            row | {"fold_aucs": trial.fold_aucs, "seconds": trial.seconds, "reason": trial.reason}
        )
    return pa.Table.from_pylist(rows)


def table(found: Search, count: int = 10) -> str:
    """The best settings, one a line, for a terminal."""
    ranked = sorted(found.trials, key=lambda trial: -(trial.auc.value if trial.auc else -1.0))
    lines = []
    for trial in ranked[:count]:
        words = ", ".join(f"{_words(k)} {v}" for k, v in trial.setting.items())
        if trial.auc is None or trial.balanced_accuracy is None:
            lines.append(f"  {words}: {trial.reason}")
            continue
        auc, right = trial.auc, trial.balanced_accuracy
        lines.append(
            f"  AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}], balanced accuracy"
            f" {right.value:.3f}: {words}"
        )
    return "\n".join(lines)
