"""A search over recipes: Ray Tune runs the trials, patient-disjoint folds judge them.

OUT/search.json             what was searched: another space or data is refused
OUT/trials/<id>/            of each setting: setting.json, and a Parquet file a fold with the
                            logits of the images that its model did not see
OUT/trials.parquet          a row a setting
OUT/best.json               a recipe that jobs/train.py --recipe trains as it is
OUT/report.html

Pixels are decoded once, and the frozen part of the backbone runs once for each normalization. A
fold that has its file is not trained again, so an interrupted search goes on where it was. Drawn
settings of whole networks, whose trials are long, are stopped after a few folds where others are
ahead.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import tune

from cxr import cluster, phantoms, storage
from cxr.datasets import features
from cxr.datasets.pixels import decode_shards
from cxr.errors import CxrError
from cxr.metrics.results import Effect, TrialResult
from cxr.models import classifier
from cxr.models.checkpoint import package_versions
from cxr.recipes import Recipe
from cxr.reports import TuningReport, tuning_page
from cxr.training import run, trainer
from cxr.training.run import RunSettings
from cxr.tuning import effects, space, trials
from cxr.tuning.space import Setting, Space
from cxr.tuning.trials import Shared

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
    workers = cluster.parse_workers(settings.workers)
    trainer.check_workers(workers, recipe, gpu=gpu)
    where = settings.data or phantoms.kept(run.PHANTOMS, settings.cache)
    name = where.rsplit("/", 1)[-1] if settings.data else "phantoms"
    listing, folds = run.labeled_folds(where, settings)
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
    classifier.check(recipe)
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
    asked = {
        "space": wanted.to_json(),
        "recipe": json.loads(recipe.to_json()),
        "data": settings.data,
        "weights": settings.weights,
        "limit": settings.limit,
        "folds": settings.folds,
    }
    if not storage.check_same(output, "search.json", asked, "a search"):
        place = storage.join(output, "search.json")
        storage.write_json(place, asked | {"packages": package_versions()})


def _prepare(
    recipe: Recipe,
    wanted: Space,
    settings: RunSettings,
    listing: pa.Table,
    folds: NDArray[np.int64],
    *,
    gpu: bool,
) -> tuple[Shared, pa.Table]:
    """Decode once, and run the frozen part once for each normalization."""
    loaded = run.load_model(recipe, settings)
    pixels = decode_shards(listing, folds, recipe.image_px, settings.cache)
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
    shared = Shared(
        recipe, storage.join(str(settings.output), "trials"), settings.folds, cached, shards,
        ray.put(state), cluster.parse_workers(settings.workers), gpu,
        stops=bool(wanted.sampled) and not cached,
    )  # fmt: skip
    return shared, pixels.table


# ---------------------------------------------------------------- trials


def _run(shared: Shared, wanted: Space, settings: RunSettings) -> dict[str, str]:
    """Run what is not finished; why trials have no figure for every fold, by their name."""
    finished = trials.finished(shared)
    if wanted.sampler == "optuna":
        for setting in trials.settings(shared.folder):
            if setting not in finished:  # It is drawn anew.
                trials.forget(shared, setting)
    if finished:
        print(f"going on: {len(finished)} of {wanted.trials} settings are done", flush=True)
    # A stopped trial stops again for the same reason if all that came before it are there.
    waiting = [s for s in wanted.settings if shared.stops or s not in finished]
    left = len(waiting) if wanted.settings else wanted.trials - len(finished)
    if not left:
        return {}
    draws = {"search_alg": _optuna(wanted, finished, shared), "num_samples": left}
    resources: dict[str, float] = {"CPU": HEAD_CPUS} if shared.cached else {"CPU": RUN_CPUS}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trials.judge, shared=shared), resources),
        param_space={"setting": tune.grid_search(waiting)} if waiting else None,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=None if shared.cached else _num_runs(shared),
            # Importing PyTorch takes longer than a head; a network's trial may be stopped.
            reuse_actors=shared.cached,
            scheduler=_stopping(shared.folds) if shared.stops else None,
            **({} if waiting else draws),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{int(time.time())}",
            **storage.run_storage(storage.join(str(settings.output), "ray")),
            verbose=0,
            callbacks=[_Lines(left)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    grid = tuner.fit()
    storage.delete(storage.join(str(settings.output), "ray"))
    reasons = {}
    for result in (grid[index] for index in range(len(grid))):
        name = space.identity((result.config or {}).get("setting", {}))
        if result.error is not None:
            reasons[name] = str(result.error).strip().splitlines()[-1]
        elif (num_folds := (result.metrics or {}).get("folds", 0)) < shared.folds:
            reasons[name] = f"stopped after {num_folds} of {shared.folds} folds: others were ahead"
    return reasons


def _stopping(folds: int) -> Any:
    """Stop a trial whose AUC after 1, 2, 4, ... folds is in the lower half of those before it."""
    return tune.schedulers.ASHAScheduler(
        time_attr="folds", metric="score", mode="max", max_t=folds, grace_period=1,
        reduction_factor=2,
    )  # fmt: skip


def _optuna(wanted: Space, finished: Sequence[Setting], shared: Shared) -> Any:
    """Optuna's sampler, told of the settings that are judged already."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    ranges: dict[str, Any] = {
        f"setting/{name}": kinds.CategoricalDistribution(values)
        for name, values in wanted.grid.items()
    }
    for name in wanted.sampled:
        low, high = space.SAMPLED[name]
        ranges[f"setting/{name}"] = (
            kinds.IntDistribution(int(low), int(high), log=True)
            if name == "head_width"
            else kinds.FloatDistribution(low, high, log=name != "dropout")
        )
    points = [{f"setting/{name}": v for name, v in setting.items()} for setting in finished]
    scores = [trials.score(shared, setting) for setting in finished]
    # Another seed when going on: the same one would draw what is finished once more.
    seed = wanted.seed + len(finished)
    return OptunaSearch(
        ranges, metric="score", mode="max", seed=seed,
        points_to_evaluate=points or None, evaluated_rewards=scores or None,
    )  # fmt: skip


def _num_runs(shared: Shared) -> int:
    """Runs of Ray Train that the cluster holds at once: on CPUs one, which has them all."""
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    return max(1, num_gpus // shared.workers.least) if shared.gpu else 1


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


# ---------------------------------------------------------------- results


def _conclude(
    shared: Shared,
    wanted: Space,
    settings: RunSettings,
    table: pa.Table,
    reasons: Mapping[str, str],
    name: str,
) -> Search:
    output = str(settings.output)
    tried = wanted.settings or trials.settings(shared.folder)
    logits, seconds = trials.read(shared, tried, table)
    folds = np.asarray(table["fold"])
    patients = table["patient"].to_pylist()
    judged = effects.judge(np.asarray(table["label"]), folds, patients, logits)
    num_patients = len(set(patients))
    results = tuple(
        _result(setting, judged, index, seconds[index], reasons)
        for index, setting in enumerate(tried)
    )
    found = effects.compare(tried, judged, wanted.grid, len(table), num_patients)
    answers = tuple(effects.sentence(found, factor) for factor in wanted.grid)
    ranked = [(trial.auc.value, -index) for index, trial in enumerate(results) if trial.auc]
    if not ranked:
        raise CxrError(
            f"{output}: no trial gave a figure. The first reason:"
            f" {next(iter(trial.reason for trial in results), 'none began')}"
        )
    best = space.apply(shared.recipe, tried[-max(ranked)[1]])
    best = dataclasses.replace(best, name="tuned")
    best_recipe = storage.join(output, "best.json")
    storage.write_bytes(best_recipe, best.to_json().encode())
    storage.write_table(storage.join(output, "trials.parquet"), _table(results))
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
            trials=results,
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
    return Search(results, tuple(found), answers, best, report, best_recipe)


def _words(factor: str) -> str:
    return factor.replace("_", " ")


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
