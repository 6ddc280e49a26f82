"""What each worker of Ray Train does: the recipes one after another, epoch by epoch."""

import functools
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import ray
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.actor import ActorHandle
from tensorboardX import SummaryWriter

from cxr import storage
from cxr.cluster.counter import Counter
from cxr.models.classifier import State
from cxr.recipes import Recipe
from cxr.training.loaders import (
    READ_ROWS,
    Loader,
    MemoryLoader,
    RotatingLoader,
    StreamLoader,
)
from cxr.training.loop import Learner, epochs, is_over

COUNT_EVERY_S: Final = 0.5
"""Seconds between two messages on how many images a worker has trained on."""

Histories = dict[str, list[dict[str, Any]]]
"""The entries of all epochs so far, by the recipe's name."""


@dataclass(frozen=True)
class Task:
    """What the workers receive of a plan: its recipe, the form of its rows, its initial weights."""

    recipe: Recipe
    output: str
    shape: tuple[int, ...]
    """Of one row's array."""
    dtype: str
    cached: bool
    """Whether rows are features of the frozen part, else pixels."""
    rows: NDArray[Any]
    """Row numbers of the training images, sorted, int64 (N,)."""
    num_views: int
    """Data sets of the same training images that epochs take in turn."""
    class_weights: tuple[float, ...]
    """Loss weight of each class."""
    state: "ray.ObjectRef[State]"
    """The tensors to start from."""


@dataclass(frozen=True)
class WorkerConfig:
    """What each worker of a run is given."""

    tasks: tuple[Task, ...]
    threads: int
    """Threads that it computes with."""
    gpu: bool
    """Compute on the GPU that Ray gave the worker."""
    checkpoints: str
    """Folder of Ray Train's checkpoints."""
    counter: "ActorHandle[Counter] | None"
    """Counts the images trained on; None where nobody watches."""


def training_set(recipe: str, number: int) -> str:
    """Ray Train's name of a data set that a recipe trains on; epochs take its numbers in turn."""
    return f"{recipe}/train/{number}"


def validation_set(recipe: str) -> str:
    """Ray Train's name of the data set that judges a recipe."""
    return f"{recipe}/validation"


def train(worker: WorkerConfig) -> None:
    """Train the tasks from the last epoch that was reported."""
    logging.disable(logging.WARNING)  # Ray Train logs every report; the job prints its own lines.
    torch.set_num_threads(worker.threads)
    histories: Histories = {}
    resumed: dict[str, Any] = {}
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            histories = json.loads((Path(folder) / "histories.json").read_text())
            resumed = torch.load(Path(folder) / "state.pt", weights_only=True)
    for task in worker.tasks:
        history = histories.setdefault(task.recipe.name, [])
        if not is_over(history, task.recipe):
            state = resumed if resumed.get("name") == task.recipe.name else None
            _train_recipe(task, worker, histories, state)


def _train_recipe(
    task: Task, worker: WorkerConfig, histories: Histories, resumed: Mapping[str, Any] | None
) -> None:
    recipe, history = task.recipe, histories[task.recipe.name]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    memory = PeakMemory()
    learner = Learner(
        recipe, ray.get(task.state), task.class_weights, cached=task.cached, shape=task.shape,
        dtype=task.dtype, gpu=worker.gpu, num_images=len(task.rows), rank=rank, world=world,
        on_step=_counting(worker.counter) if rank == 0 else None,
    )  # fmt: skip
    if resumed is not None:
        learner.restore(resumed)
    train_data, validation = _loaders(task, rank, world)
    upload = functools.partial(_upload, worker.checkpoints)
    for entry, is_best, predictions in epochs(learner, train_data, validation, history):
        entry["peak_memory_mb"] = _maximum(memory.peak_mb, world)
        # Every rank reports: ray.train.report is a barrier.
        if rank > 0:
            ray.train.report(entry)
            continue
        _print_epoch(recipe, entry)
        with tempfile.TemporaryDirectory() as folder:
            if is_best:
                best = {"model": learner.trained(), "seen": _as_tensors(predictions)}
                torch.save(best, Path(folder) / "best.pt")
                storage.move_in(Path(folder) / "best.pt", storage.join(task.output, "best.pt"))
            write_history(task.output, history)
            # A finished recipe is not resumed, and its state is three times its weights.
            state = {} if is_over(history, recipe) else learner.state()
            torch.save(state | {"name": recipe.name}, Path(folder) / "state.pt")
            (Path(folder) / "histories.json").write_text(json.dumps(histories))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(entry, checkpoint=checkpoint, checkpoint_upload_fn=upload)
    memory.stop()


def _loaders(task: Task, rank: int, world: int) -> tuple[Loader, Loader]:
    """This worker's part of the training and of the validation images."""
    recipe = task.recipe
    form = (recipe, task.shape, task.dtype)
    loaders: list[Loader] = []
    for number in range(task.num_views):
        rows = ray.train.get_dataset_shard(training_set(recipe.name, number))
        if recipe.loading == "stream":
            loaders.append(StreamLoader(rows, *form, rank, world))
        else:
            batches = rows.iter_batches(batch_size=READ_ROWS, batch_format="pyarrow")
            loaders.append(MemoryLoader.read(batches, *form, task.rows, rank, world))
    rows = ray.train.get_dataset_shard(validation_set(recipe.name))
    return RotatingLoader(loaders), StreamLoader(rows, *form, rank, world)


def _counting(counter: "ActorHandle[Counter] | None") -> Callable[[int], None] | None:
    """A function that passes numbers of images on to the counter, a few times a second."""
    if counter is None:
        return None
    waiting, sent = 0, time.monotonic()

    def count(num_images: int) -> None:
        nonlocal waiting, sent
        waiting += num_images
        if time.monotonic() - sent > COUNT_EVERY_S:
            counter.add.remote(waiting)
            waiting, sent = 0, time.monotonic()

    return count


def _upload(parent: str, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    # Not Ray's own way, pyarrow's copy_files: where the upload of a file fails it returns as if all
    # were well (26.0.1), and the run could not be resumed.
    folder = storage.join(parent, name)
    for file in sorted(Path(checkpoint.path).iterdir()):
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


def _maximum(value: float, world: int) -> float:
    """Of all workers."""
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
    name = "events.out.tfevents.0.cxr"
    storage.write_bytes(storage.join(output, "tensorboard", name), events)


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
