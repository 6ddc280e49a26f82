"""Running the trials of a search on Ray Tune."""

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import ray
from ray import tune

from cxr import storage
from cxr.progress import Progress
from cxr.tuning import space, trials
from cxr.tuning.space import Setting, Space
from cxr.tuning.trials import Shared

HEAD_CPUS: Final = 1
"""CPUs of a trial that trains heads: each has one thread."""

RUN_CPUS: Final = 0.01
"""CPUs of a trial that starts a run of Ray Train. The workers claim theirs; if the trial claimed
one as well, trials would hold what their own workers wait for."""


def run_trials(shared: Shared, asked: Space, output: str) -> dict[str, str]:
    """Run the trials that are not finished.

    Args:
        shared: what the trials have in common.
        asked: the space of the search.
        output: folder of the search.

    Returns:
        Why trials have no figure for every fold, by the identity of their setting.
    """
    finished = trials.finished(shared)
    if asked.sampler == "optuna":
        for setting in trials.settings(shared.folder):
            if setting not in finished:  # It is drawn anew.
                trials.forget(shared, setting)
    if finished:
        print(f"resuming: {len(finished)} of {asked.trials} settings are done", flush=True)
    # A stopped trial stops again for the same reason if all that came before it are there.
    waiting = [s for s in asked.settings if shared.stops or s not in finished]
    num_left = len(waiting) if asked.settings else asked.trials - len(finished)
    if not num_left:
        return {}
    state = storage.join(output, "ray")
    with Progress("trials", num_left, lines=False) as progress:
        grid = build_tuner(shared, asked, finished, waiting, num_left, state, progress).fit()
    storage.delete(state)
    return _reasons(grid, shared.folds)


def build_tuner(
    shared: Shared,
    asked: Space,
    finished: Sequence[Setting],
    waiting: Sequence[Setting],
    num_left: int,
    state: str,
    progress: Progress,
) -> tune.Tuner:
    """Ray Tune's run of the trials that are left.

    Args:
        shared: what the trials have in common.
        asked: the space of the search.
        finished: settings from which Optuna draws the others.
        waiting: settings that are known beforehand; none where Optuna draws them.
        num_left: trials to run.
        state: folder that Ray Tune keeps its own state in.
        progress: counts the trials that ended.
    """
    drawn: dict[str, Any] = {}
    if asked.sampler == "optuna":
        drawn = {"search_alg": _optuna(asked, finished, shared), "num_samples": num_left}
    resources: dict[str, float] = {"CPU": HEAD_CPUS} if shared.cached else {"CPU": RUN_CPUS}
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trials.judge, shared=shared), resources),
        param_space={"setting": tune.grid_search(list(waiting))} if waiting else None,
        tune_config=tune.TuneConfig(
            max_concurrent_trials=None if shared.cached else _num_runs(shared),
            # Importing PyTorch takes longer than a head; a network's trial may be stopped.
            reuse_actors=shared.cached,
            scheduler=_stopping(shared.folds) if shared.stops else None,
            **drawn,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{int(time.time())}",
            **storage.run_storage(state),
            verbose=0,
            callbacks=[_TrialLines(progress, num_left)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def _reasons(grid: tune.ResultGrid, num_folds: int) -> dict[str, str]:
    reasons = {}
    for result in (grid[index] for index in range(len(grid))):
        name = space.identity((result.config or {}).get("setting", {}))
        if result.error is not None:
            reasons[name] = str(result.error).strip().splitlines()[-1]
        elif (num_judged := (result.metrics or {}).get("folds", 0)) < num_folds:
            reasons[name] = f"stopped after {num_judged} of {num_folds} folds: others were ahead"
    return reasons


def _stopping(folds: int) -> Any:
    """Stop a trial whose AUC after 1, 2, 4, ... folds is in the lower half of those before it."""
    return tune.schedulers.ASHAScheduler(
        time_attr="folds", metric="score", mode="max", max_t=folds, grace_period=1,
        reduction_factor=2,
    )  # fmt: skip


def _optuna(asked: Space, finished: Sequence[Setting], shared: Shared) -> Any:
    """Optuna's sampler, which knows the settings that are judged already."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = optuna.distributions
    ranges: dict[str, Any] = {
        f"setting/{name}": distributions.CategoricalDistribution(values)
        for name, values in asked.grid.items()
    }
    for name in asked.sampled:
        low, high = space.SAMPLED[name]
        ranges[f"setting/{name}"] = (
            distributions.IntDistribution(int(low), int(high), log=True)
            if name == "head_width"
            else distributions.FloatDistribution(low, high, log=name != "dropout")
        )
    points = [{f"setting/{name}": v for name, v in setting.items()} for setting in finished]
    scores = [trials.score(shared, setting) for setting in finished]
    # Another seed when resumed: the same one would draw what is finished once more.
    seed = asked.seed + len(finished)
    return OptunaSearch(
        ranges, metric="score", mode="max", seed=seed,
        points_to_evaluate=points or None, evaluated_rewards=scores or None,
    )  # fmt: skip


def _num_runs(shared: Shared) -> int:
    """Runs of Ray Train that the cluster holds at once: on CPUs one, which has them all."""
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    return max(1, num_gpus // shared.workers.min) if shared.gpu else 1


class _TrialLines(tune.Callback):
    """Prints a line whenever a trial ends, above the bar of all trials."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.best = progress, total, -1.0
        self.started = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its settings for a restoration by its own means, which we never ask for.
        # A bar on a terminal cannot be pickled.
        return {}

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        figures = trial.last_result or {}
        auc, stressed = (float(figures.get(name, np.nan)) for name in ("auc", "stressed_auc"))
        self.best = max(self.best, float(figures.get("score", -1.0)))
        under_stress = f", stressed AUC {stressed:.4f}" if np.isfinite(stressed) else ""
        self._print(trial, f"AUC {auc:.4f}{under_stress}")

    def on_trial_error(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        **info: Any,  # noqa: ARG002
    ) -> None:
        self._print(trial, "failed")

    def _print(self, trial: Any, outcome: str) -> None:
        self.progress.add(1)
        done = self.progress.added()
        left = (time.monotonic() - self.started) / done * (self.total - done)
        words = ", ".join(f"{k} {v}" for k, v in trial.config["setting"].items())
        best = f"best {self.best:.4f}, " if self.best >= 0 else ""
        print(f"  {done} of {self.total}: {words}: {outcome}; {best}{left:.0f} s left", flush=True)
