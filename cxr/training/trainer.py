"""The trainer, the workers' loop over recipes and epochs, and resumption.

One group of workers trains any number of recipes one after another, since starting a group costs
more than training a head. Where the pretrained part of a network is frozen the workers see cached
features and train what follows; otherwise they see pixels and train the whole classifier.
"""

import functools
import io
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import psutil
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

from cxr import cluster, storage
from cxr.cluster import Workers
from cxr.datasets.shards import Shards
from cxr.datasets.split import SplitConfig
from cxr.errors import CxrError, DataError, SettingsError
from cxr.labels import CLASSES
from cxr.models import classifier
from cxr.models.classifier import Classifier, State
from cxr.recipes import EFFECTIVE_NUMBER_BETA, FIXED_CLASS_WEIGHTS, Recipe
from cxr.training.loaders import READ_ROWS, Loader, MemoryLoader, StreamLoader
from cxr.training.loop import Learner, epochs, is_over

MAX_FAILURES: Final = 3
"""Times that a run restarts from its last epoch after a worker died."""


ONE_WORKER: Final = Workers(1, 1)


@dataclass(frozen=True)
class Plan:
    """One recipe to train, on which data, from which start."""

    recipe: Recipe
    shards: Shards
    """Features of the model's frozen prefix where `cached`, else pixels."""
    cached: bool
    train_folds: tuple[int, ...]
    validation_folds: tuple[int, ...]
    output: str
    """Folder of this recipe: metrics.jsonl, tensorboard/ and best.pt go there."""

    @property
    def name(self) -> str:
        """The recipe's name, which no two plans of a run share."""
        return self.recipe.name


@dataclass(frozen=True)
class Outcome:
    """What training a recipe gave at its best epoch by validation AUC."""

    state: State
    """The trained tensors by the classifier's names."""
    validation: pa.Table
    """Row number, label and logit of each validation image."""
    history: list[dict[str, Any]]
    """A dict an epoch."""
    best: dict[str, Any]
    """The history's entry of the best epoch."""


@dataclass(frozen=True)
class _Task:
    """What the workers have to know of a plan."""

    recipe: Recipe
    output: str
    shape: tuple[int, ...]
    dtype: str
    cached: bool
    rows: NDArray[np.int64]
    """Row numbers of the training images, sorted, (N,)."""
    class_weights: tuple[float, ...]
    """Loss weight of each class."""
    state: "ray.ObjectRef[State]"
    """The tensors to start from."""


def class_weights(recipe: Recipe, labels: NDArray[np.int64]) -> tuple[float, ...]:
    """The loss weight of each class.

    Args:
        recipe: says which kind.
        labels: of the training images, (N,).

    `balanced` is N / (classes * images of the class), as scikit-learn's; `effective` the inverse
    effective number of images, scaled so that the weights sum to the number of classes.
    """
    counts = np.bincount(labels, minlength=len(CLASSES))
    match recipe.class_weighting:
        case "fixed":
            return FIXED_CLASS_WEIGHTS
        case "balanced":
            return tuple(float(len(labels) / (len(CLASSES) * count)) for count in counts)
        case "effective":
            inverse = (1 - EFFECTIVE_NUMBER_BETA) / (1 - EFFECTIVE_NUMBER_BETA**counts)
            return tuple(float(w) for w in inverse / inverse.sum() * len(CLASSES))
        case _:  # none, and focal, which weighs images and not classes.
            return (1.0,) * len(CLASSES)


def check_workers(workers: Workers, recipe: Recipe, *, gpu: bool) -> None:
    """Refuse at once what Ray would wait for without end.

    Raises:
        SettingsError: more workers than the cluster has CPUs or GPUs, or than a streamed batch has
            images.
    """
    kind: Literal["GPU", "CPU"] = "GPU" if gpu else "CPU"
    have = cluster.wait_for(kind, workers.least)
    if workers.least > have:
        raise SettingsError(
            f"workers: {workers.least} workers need {workers.least} {kind}s, this cluster has"
            f" {have}. Lower --workers to {have}, or let more nodes join."
        )
    if recipe.loading == "stream" and recipe.batch_size < workers.most:
        raise SettingsError(
            f"workers: a batch of {recipe.batch_size} cannot be divided among {workers.most}"
            " workers. Lower --workers or raise --batch-size."
        )


def fit(
    plans: Sequence[Plan],
    starts: Sequence[Classifier],
    output: str,
    *,
    workers: Workers = ONE_WORKER,
    gpu: bool = False,
) -> list[Outcome]:
    """Train recipes data-parallel, one after another.

    Called again with the same output after it was interrupted, it goes on from the last epoch.

    Args:
        plans: what to train on what.
        starts: the classifier of each plan with its pretrained weights.
        output: folder of the run, path or URI; Ray Train keeps its state in `ray/` below.
        workers: training processes.
        gpu: a GPU for each.

    Returns:
        An outcome a plan; its score is `EMPTY_SCORE` where no epoch gave finite numbers.

    Raises:
        SettingsError: the workers do not fit the cluster.
        DataError: a class is missing in either set.
        CxrError: workers died more often than `MAX_FAILURES`.
    """
    for plan in plans:
        _check_classes(plan)
        check_workers(workers, plan.recipe, gpu=gpu)
    cluster.check_reach([output])
    share = cluster.share(workers.least, gpu=gpu)
    elastic = workers.most > workers.least
    columns = ("row", "label", "x")
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "tasks": [_task(plan, model) for plan, model in zip(plans, starts, strict=True)],
            "threads": share.threads,
            "gpu": gpu,
            "place": storage.join(output, "ray"),
        },
        datasets={
            f"{plan.name}/{part}": plan.shards.dataset(folds, columns)
            for plan in plans
            for part, folds in (("train", plan.train_folds), ("validation", plan.validation_folds))
        },
        dataset_config=SplitConfig(
            whole=[f"{plan.name}/train" for plan in plans if plan.recipe.loading == "memory"]
        ),
        scaling_config=ray.train.ScalingConfig(
            # Ray's own signature lacks the pair that it takes.
            num_workers=(workers.least, workers.most) if elastic else workers.least,  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker={"CPU": share.num_cpus} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name="ray",
            **storage.run_storage(output),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = str(error).strip().splitlines()[-1]
        raise CxrError(
            f"{output}: training failed after {MAX_FAILURES} restarts: {cause}. Mend the cause and"
            f" go on with --resume {output}."
        ) from error
    return [_outcome(plan) for plan in plans]


def _check_classes(plan: Plan) -> None:
    for part, folds in (("training", plan.train_folds), ("validation", plan.validation_folds)):
        labels = np.asarray(plan.shards.rows(folds)["label"])
        counts = np.bincount(labels, minlength=len(CLASSES))
        if 0 in counts:
            raise DataError(f"no {CLASSES[int(np.argmin(counts))]} image is left for {part}.")


def _task(plan: Plan, model: Classifier) -> _Task:
    train = plan.shards.rows(plan.train_folds)
    return _Task(
        recipe=plan.recipe,
        output=plan.output,
        shape=plan.shards.shape,
        dtype=plan.shards.dtype,
        cached=plan.cached,
        rows=np.sort(np.asarray(train["row"])),
        class_weights=class_weights(plan.recipe, np.asarray(train["label"])),
        state=ray.put(dict(classifier.trained_state(model, plan.cached))),
    )


def _outcome(plan: Plan) -> Outcome:
    lines = storage.read_bytes(storage.join(plan.output, "metrics.jsonl")).splitlines()
    history = [json.loads(line) for line in lines]
    best = max(history, key=lambda entry: float(entry["score"]))
    data = storage.read_bytes(storage.join(plan.output, "best.pt"))
    saved = torch.load(io.BytesIO(data), weights_only=True)
    return Outcome(
        saved["model"], pa.table({k: v.numpy() for k, v in saved["seen"].items()}), history, best
    )


def _train_worker(config: dict[str, Any]) -> None:
    logging.disable(logging.WARNING)  # Ray Train tells of every report; the job prints its own.
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config["threads"])
    histories: dict[str, list[dict[str, Any]]] = {}
    resumed: dict[str, Any] = {}
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            histories = json.loads((Path(folder) / "histories.json").read_text())
            resumed = torch.load(Path(folder) / "state.pt", weights_only=True)
    for task in config["tasks"]:
        history = histories.setdefault(task.recipe.name, [])
        if not is_over(history, task.recipe):
            state = resumed if resumed.get("name") == task.recipe.name else None
            upload = functools.partial(_upload, config["place"])
            _train_one(task, histories, state, upload, gpu=config["gpu"], rank=rank, world=world)


def _train_one(
    task: _Task,
    histories: dict[str, list[dict[str, Any]]],
    resumed: Mapping[str, Any] | None,
    upload: Callable[[ray.train.Checkpoint, str], ray.train.Checkpoint],
    *,
    gpu: bool,
    rank: int,
    world: int,
) -> None:
    recipe, history = task.recipe, histories[task.recipe.name]
    memory = PeakMemory()
    learner = Learner(
        recipe, ray.get(task.state), task.class_weights, cached=task.cached,
        shape=task.shape, dtype=task.dtype, gpu=gpu, rank=rank, world=world,
    )  # fmt: skip
    if resumed is not None:
        learner.restore(resumed)
    stream = (recipe, task.shape, task.dtype)
    train_rows = ray.train.get_dataset_shard(f"{recipe.name}/train")
    train_data: Loader = (
        MemoryLoader.read(
            train_rows.iter_batches(batch_size=READ_ROWS, batch_format="pyarrow"),
            *stream,
            task.rows,
            rank,
            world,
        )
        if recipe.loading == "memory"
        else StreamLoader(train_rows, *stream, rank, world)
    )
    validation_rows = ray.train.get_dataset_shard(f"{recipe.name}/validation")
    validation = StreamLoader(validation_rows, *stream, rank, world)
    for entry, is_best, seen in epochs(learner, train_data, validation, history):
        entry["peak_memory_mb"] = _most(memory.peak_mb, world)
        # Every rank reports: ray.train.report is a barrier.
        if rank > 0:
            ray.train.report(entry)
            continue
        _print_epoch(recipe, entry)
        with tempfile.TemporaryDirectory() as folder:
            if is_best:
                best = {"model": learner.trained(), "seen": _as_tensors(seen)}
                torch.save(best, Path(folder) / "best.pt")
                storage.move_in(Path(folder) / "best.pt", storage.join(task.output, "best.pt"))
            write_history(task.output, history)
            # A finished recipe is not resumed, and its state is three times its weights.
            state = {} if is_over(history, recipe) else learner.state()
            torch.save(state | {"name": recipe.name}, Path(folder) / "state.pt")
            (Path(folder) / "histories.json").write_text(json.dumps(histories))
            made = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(entry, checkpoint=made, checkpoint_upload_fn=upload)
    memory.stop()


def _upload(place: str, made: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    # Not Ray's own way, pyarrow's copy_files: where the upload of a file fails it returns as if all
    # were well (26.0.1), and the run could not be resumed.
    folder = storage.join(place, name)
    for file in sorted(Path(made.path).iterdir()):
        storage.move_in(file, storage.join(folder, file.name))
    system, path = storage.resolve(folder)
    return ray.train.Checkpoint(path, system)


def _print_epoch(recipe: Recipe, entry: Mapping[str, Any]) -> None:
    auc = entry["val_auc"]
    print(
        f"{recipe.name}: epoch {entry['epoch']} of {recipe.epochs}: train loss"
        f" {entry['train_loss']:.4f}, validation loss {entry['val_loss']:.4f}, AUC"
        f" {'undefined' if auc is None else format(auc, '.4f')}, {entry['seconds']:.1f} s",
        flush=True,
    )


def _as_tensors(columns: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def _most(value: float, world: int) -> float:
    values = [value]
    if world > 1:
        values = [0.0] * world
        dist.all_gather_object(values, value)
    return max(values)


def write_history(output: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `metrics.jsonl` and the TensorBoard events of all epochs so far, whole each time."""
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    storage.write_bytes(storage.join(output, "metrics.jsonl"), lines.encode())
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for entry in history:
                for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_auc"):
                    if entry[name] is not None:
                        writer.add_scalar(name, entry[name], entry["epoch"], entry["time"])
        events = next(Path(folder).iterdir()).read_bytes()
    place = storage.join(output, "tensorboard", "events.out.tfevents.0.cxr")
    storage.write_bytes(place, events)


class PeakMemory:
    """The most memory that this process alone held since the start, sampled ten times a second.

    Memory that it shares with others, such as Ray's object store, does not count.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Sample no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            self.peak_mb = max(self.peak_mb, _anonymous_mb())


def _anonymous_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
    return float(psutil.Process().memory_full_info().uss) / 2**20  # macOS
