"""The worker's loop, the trainer around it, and its resumption.

One loop serves both kinds of training. Where the pretrained part is frozen it sees cached features
and trains what follows; otherwise it sees pixels and trains the whole classifier.

Sums, not means, cross the workers: the loss of a step is the weighted sum over the global batch
divided by the global sum of weights, so any number of workers computes the same loss and gradient,
and shards of unequal size lose no image.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.data import DataIterator, Dataset
from torch import nn

from cxr import cluster, devices, metrics, models, storage, transforms
from cxr.data import Shards, to_arrays
from cxr.errors import CxrError, DataError, SettingsError
from cxr.labels import CLASSES
from cxr.models import Classifier, State
from cxr.recipes import FIXED_CLASS_WEIGHTS, Recipe

SHUFFLE_ROWS: Final = 256
"""Rows that streaming keeps at hand to draw batches from. Shards are stored in random order, so
this only has to vary the batches between epochs."""

READ_ROWS: Final = 64
"""Rows taken at once from a stream that is read in order."""

MAX_FAILURES: Final = 3
"""Times that a run restarts from its last epoch after a worker died."""

EMPTY_SCORE: Final = -1.0
"""Ranks an epoch whose AUC is undefined below all others."""


@dataclass(frozen=True)
class Plan:
    """What the workers of one run have to know."""

    recipe: Recipe
    output: str
    """Folder of the run: metrics.jsonl and tensorboard/ go there."""
    shape: tuple[int, ...]
    """Shape of one row of the data."""
    dtype: str
    """numpy dtype of the data."""
    cached: bool
    """True where the rows are features of the frozen prefix."""
    rows: NDArray[np.int64]
    """Row numbers of the training images, sorted, (N,)."""
    class_weights: tuple[float, ...]
    """Loss weight of each class."""
    threads: int
    gpu: bool


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    model: Classifier
    """With the weights of the best epoch."""
    validation: pa.Table
    """Row number, label and logit of each validation image at the best epoch."""
    history: list[dict[str, Any]]
    """A dict an epoch."""
    best: dict[str, Any]
    """The history's entry of the best epoch."""


def class_weights(recipe: Recipe, labels: NDArray[np.int64]) -> tuple[float, ...]:
    """The loss weight of each class.

    Args:
        recipe: says which kind.
        labels: of the training images, (N,).

    `balanced` is N / (classes * images of the class), as scikit-learn's.
    """
    if recipe.class_weighting == "none":
        return (1.0,) * len(CLASSES)
    if recipe.class_weighting == "fixed":
        return FIXED_CLASS_WEIGHTS
    counts = np.bincount(labels, minlength=len(CLASSES))
    return tuple(float(len(labels) / (len(CLASSES) * count)) for count in counts)


def check_workers(num_workers: int, recipe: Recipe, *, gpu: bool) -> None:
    """Refuse at once what Ray would wait for without end.

    Raises:
        SettingsError: more workers than the cluster has CPUs or GPUs, or than a streamed batch has
            images.
    """
    if num_workers < 1:
        raise SettingsError(f"workers: {num_workers} is below 1.")
    kind = "GPU" if gpu else "CPU"
    have = int(ray.cluster_resources().get(kind, 0))
    if num_workers > have:
        raise SettingsError(
            f"workers: {num_workers} workers need {num_workers} {kind}s, this cluster has {have}."
            f" Lower --workers to {have}, or let more nodes join."
        )
    if recipe.loading == "stream" and recipe.batch_size < num_workers:
        raise SettingsError(
            f"workers: a batch of {recipe.batch_size} cannot be divided among {num_workers} workers."
            " Lower --workers or raise --batch-size."
        )


def fit(
    recipe: Recipe,
    model: Classifier,
    shards: Shards,
    train_folds: list[int],
    validation_folds: list[int],
    output: str,
    *,
    cached: bool,
    num_workers: int = 1,
    gpu: bool = False,
) -> Outcome:
    """Train a classifier data-parallel and return its best epoch by validation AUC.

    Called again with the same output after it was interrupted, it goes on from its last epoch.

    Args:
        recipe: everything that defines the training.
        model: with its pretrained weights; where `cached`, only what follows the prefix is trained.
        shards: features of the frozen prefix where `cached`, else pixels.
        train_folds: folds to train on.
        validation_folds: folds to choose the epoch on.
        output: folder of the run, path or URI.
        cached: whether `shards` hold features.
        num_workers: training processes.
        gpu: a GPU for each.

    Raises:
        SettingsError: the workers do not fit the cluster.
        DataError: a class is missing in either set.
    """
    train, validation = shards.rows(train_folds), shards.rows(validation_folds)
    for name, table in (("training", train), ("validation", validation)):
        counts = np.bincount(np.asarray(table["label"]), minlength=len(CLASSES))
        if 0 in counts:
            raise DataError(f"no {CLASSES[int(np.argmin(counts))]} image is left for {name}.")
    check_workers(num_workers, recipe, gpu=gpu)
    share = cluster.share(num_workers, gpu=gpu)
    plan = Plan(
        recipe=recipe,
        output=output,
        shape=shards.shape,
        dtype=shards.dtype,
        cached=cached,
        rows=np.sort(np.asarray(train["row"])),
        class_weights=class_weights(recipe, np.asarray(train["label"])),
        threads=share.threads,
        gpu=gpu,
    )
    state = ray.put(model.states(frozen=False) if cached else dict(model.state_dict()))
    columns = ("row", "label", "x")
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"plan": plan, "state": state},
        datasets={
            "train": shards.dataset(train_folds, columns),
            "validation": shards.dataset(validation_folds, columns),
        },
        dataset_config=_DataConfig(split=recipe.loading == "stream"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": share.num_cpus} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=output,
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="score"
            ),
        ),
    )
    result = trainer.fit()
    if result.error is not None:
        raise CxrError(f"{recipe.name}: training failed: {result.error}")
    checkpoint, best = max(
        result.best_checkpoints, key=lambda item: (item[1]["score"], -item[1]["epoch"])
    )
    last = result.checkpoint
    with last.as_directory() as folder:
        history = json.loads((Path(folder) / "history.json").read_text())
    with checkpoint.as_directory() as folder:
        saved = torch.load(Path(folder) / "state.pt", weights_only=True, map_location="cpu")
        table = pa.table(dict(np.load(Path(folder) / "validation.npz")))
    model.load_state_dict(saved["model"], strict=False)
    return Outcome(model.eval(), table, history, history[best["epoch"] - 1])


class _DataConfig(ray.train.DataConfig):
    """Streamed data are split among the workers, without loss and in a fixed order."""

    def __init__(self, *, split: bool) -> None:
        super().__init__()
        self.split = split

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        shards: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            own = dataset.copy(dataset)
            # Order makes a resumed run see what an uninterrupted one would have seen.
            own.context.execution_options.preserve_order = True
            # Ray's default, equal=True, drops the rows that do not divide evenly.
            iterators = (
                own.streaming_split(world_size, equal=False)
                if self.split
                else [own.iterator()] * world_size
            )
            for rank, iterator in enumerate(iterators):
                shards[rank][name] = iterator
        return shards


@dataclass(frozen=True)
class Batch:
    """Rows of one worker's part of a global batch."""

    x: torch.Tensor
    """Pixels or features, (n, *shape)."""
    label: torch.Tensor
    """Class indices, int64, (n,)."""
    row: torch.Tensor
    """Row numbers, int64, (n,)."""


class Loader(Protocol):
    """Gives a worker its part of each global batch."""

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        """The batches of an epoch in random order, or in order for None."""
        ...


class MemoryLoader:
    """Holds the worker's rows in memory: every `world`-th row of the whole.

    Each epoch's order is drawn over all rows from seed and epoch, and each worker takes what it
    owns of each global batch: any number of workers makes the same steps.
    """

    def __init__(
        self, iterator: DataIterator, rows: NDArray[np.int64], plan: Plan, rank: int, world: int
    ) -> None:
        self.rows, self.plan, self.rank, self.world = rows, plan, rank, world
        num_own = len(range(rank, len(rows), world))
        self.x = torch.empty(num_own, *plan.shape, dtype=getattr(torch, plan.dtype))
        self.label = torch.empty(num_own, dtype=torch.int64)
        for table in iterator.iter_batches(batch_size=READ_ROWS, batch_format="pyarrow"):
            position = np.searchsorted(rows, np.asarray(table["row"]))
            mine = np.flatnonzero(position % world == rank)
            target = torch.from_numpy(position[mine] // world)
            arrays = to_arrays(table, plan.shape, plan.dtype)
            self.x[target] = torch.from_numpy(arrays[mine])
            self.label[target] = torch.from_numpy(np.asarray(table["label"])[mine])

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        order = np.arange(len(self.rows))
        if epoch is not None:
            order = np.random.default_rng((self.plan.recipe.seed, epoch)).permutation(order)
        size = self.plan.recipe.batch_size
        for start in range(0, len(order), size):
            position = order[start : start + size]
            position = position[position % self.world == self.rank]
            own = torch.from_numpy(position // self.world)
            yield Batch(self.x[own], self.label[own], torch.from_numpy(self.rows[position]))


class StreamLoader:
    """Reads the worker's split of the stream anew each epoch."""

    def __init__(self, iterator: DataIterator, plan: Plan, rank: int, world: int) -> None:
        self.iterator, self.plan = iterator, plan
        size = plan.recipe.batch_size
        self.batch_size = size // world + (rank < size % world)

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        options: dict[str, Any] = {}
        if epoch is not None:
            seed = np.random.default_rng((self.plan.recipe.seed, epoch)).integers(2**31)
            options = {
                "local_shuffle_buffer_size": SHUFFLE_ROWS,
                "local_shuffle_seed": int(seed),
            }
        for table in self.iterator.iter_batches(
            batch_size=self.batch_size, batch_format="pyarrow", **options
        ):
            yield Batch(
                torch.from_numpy(to_arrays(table, self.plan.shape, self.plan.dtype).copy()),
                torch.tensor(table["label"].to_pylist()),
                torch.tensor(table["row"].to_pylist()),
            )


class Trainer:
    """One worker's network, optimizer and passes over data."""

    def __init__(self, plan: Plan, state: State, rank: int, world: int) -> None:
        self.plan, self.rank, self.world = plan, rank, world
        self.recipe = plan.recipe
        self.device = devices.device(plan.gpu)
        self.model = models.build(plan.recipe)
        self.model.load_state_dict(dict(state), strict=False)
        network: nn.Module = self.model.tail if plan.cached else self.model
        self.network = ray.train.torch.prepare_model(
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        )
        self.weights = torch.tensor(plan.class_weights, device=self.device)
        self.optimizer = _optimizer(self.recipe, network)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 1 / (1 + self.recipe.learning_rate_decay * step)
        )

    def train(self, loader: Loader, epoch: int) -> dict[str, float]:
        """One pass with steps; the mean loss and accuracy over all workers."""
        # Drawn from seed and epoch alone, so that a resumed epoch is the epoch itself.
        seed = int(np.random.default_rng((self.recipe.seed, epoch, self.rank)).integers(2**31))
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model.train()
        self.network.train(True) if self.world > 1 and self.plan.cached else None
        return self._passed(loader.batches(epoch), learn=True)[0]

    def evaluate(self, loader: Loader) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
        """One pass without steps; also row, label and logit of every image of all workers."""
        self.model.eval()
        self.network.eval()
        with torch.no_grad():
            means, seen = self._passed(loader.batches(None), learn=False)
        gathered: list[Any] = [seen]
        if self.world > 1:
            gathered = [None] * self.world
            dist.all_gather_object(gathered, seen)
        columns = {name: np.concatenate([part[name] for part in gathered]) for name in seen}
        order = np.argsort(columns["row"])
        return means, {name: column[order] for name, column in columns.items()}

    def _passed(
        self, batches: Iterator[Batch], *, learn: bool
    ) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
        totals = torch.zeros(4, dtype=torch.float64)  # loss, weight, images, correct
        seen: list[tuple[torch.Tensor, ...]] = []
        while True:
            batch = next(batches, None)
            label = batch.label if batch is not None else torch.empty(0, dtype=torch.int64)
            weight = self.weights[label.to(self.device)]
            size = torch.tensor([len(label), float(weight.sum())], dtype=torch.float64)
            size = self._sum(size)
            if size[0] == 0:
                break
            outputs = self._forward(batch, learn=learn)
            if len(label):
                losses = nn.functional.cross_entropy(
                    outputs.float(), label.to(self.device), reduction="none"
                )
                loss = (losses * weight).sum()
                correct = (outputs.argmax(1).cpu() == label).sum()
                totals += torch.tensor([float(loss.detach()), float(weight.sum()), len(label), correct])
            else:
                loss = outputs.sum() * 0  # Takes part in the exchange of gradients, adds nothing.
            if learn:
                self.optimizer.zero_grad()
                (loss * (self.world / float(size[1]))).backward()
                self.optimizer.step()
                self.scheduler.step()
            elif batch is not None:
                logit = (outputs[:, 1].float() - outputs[:, 0].float()).cpu()
                seen.append((batch.row, batch.label, logit))
        totals = self._sum(totals)
        means = {"loss": float(totals[0] / totals[1]), "accuracy": float(totals[3] / totals[2])}
        names = ("row", "label", "logit")
        parts = list(zip(*seen, strict=True)) if seen else [[torch.empty(0)]] * len(names)
        return means, {n: torch.cat(list(p)).numpy() for n, p in zip(names, parts, strict=True)}

    def _forward(self, batch: Batch | None, *, learn: bool) -> torch.Tensor:
        if batch is None or not len(batch.label):
            dtype = getattr(torch, self.plan.dtype)
            x = torch.zeros(1, *self.plan.shape, dtype=dtype, device=self.device)
        else:
            x = batch.x.to(self.device, non_blocking=True)
        with devices.autocast(self.device):
            if not self.plan.cached:
                x = x[:, None]
                if learn and self.recipe.augmentation == "affine":
                    x = transforms.augment(x, self.generator)
                x = transforms.normalize(x, self.recipe.normalization)
                x = x.contiguous(memory_format=torch.channels_last)
            outputs: torch.Tensor = self.network(x)
            return outputs

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
            values = values.cpu()
        return values

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of this worker."""
        return {
            "model": self.model.states(frozen=False) if self.plan.cached
            else self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def _train_worker(config: dict[str, Any]) -> None:
    plan: Plan = config["plan"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(plan.threads)
    memory = PeakMemory()
    trainer = Trainer(plan, ray.get(config["state"]), rank, world)
    history: list[dict[str, Any]] = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
            history = json.loads((Path(folder) / "history.json").read_text())
        trainer.restore(state)
    train_data = ray.train.get_dataset_shard("train")
    train_loader: Loader = (
        MemoryLoader(train_data, plan.rows, plan, rank, world)
        if plan.recipe.loading == "memory"
        else StreamLoader(train_data, plan, rank, world)
    )
    validation_data = ray.train.get_dataset_shard("validation")
    validation_loader = StreamLoader(validation_data, plan, rank, world)
    while not _is_over(history, plan.recipe):
        epoch = len(history) + 1
        started = time.monotonic()
        trained = trainer.train(train_loader, epoch)
        validated, seen = trainer.evaluate(validation_loader)
        auc = metrics.roc_auc(seen["label"], seen["logit"])
        entry: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": trained["loss"],
            "train_accuracy": trained["accuracy"],
            "val_loss": validated["loss"],
            "val_accuracy": validated["accuracy"],
            "val_auc": auc,
            "score": EMPTY_SCORE if auc is None else auc,
            "seconds": time.monotonic() - started,
            "peak_memory_mb": _most(memory.peak_mb, world),
            "time": time.time(),
        }
        history.append(entry)
        # Every rank reports: ray.train.report is a barrier.
        if rank == 0:
            print(
                f"{plan.recipe.name}: epoch {epoch} of {plan.recipe.epochs}: train loss"
                f" {entry['train_loss']:.4f}, validation loss {entry['val_loss']:.4f}, AUC"
                f" {'undefined' if auc is None else format(auc, '.4f')}, {entry['seconds']:.1f} s",
                flush=True,
            )
            write_history(plan.output, history)
            with tempfile.TemporaryDirectory() as folder:
                torch.save(trainer.state(), Path(folder) / "state.pt")
                (Path(folder) / "history.json").write_text(json.dumps(history))
                np.savez(Path(folder) / "validation.npz", **seen)
                ray.train.report(entry, checkpoint=ray.train.Checkpoint.from_directory(folder))
        else:
            ray.train.report(entry)


def write_history(output: str, history: list[dict[str, Any]]) -> None:
    """Write `metrics.jsonl` and the TensorBoard events of all epochs so far, whole each time."""
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    storage.write_bytes(storage.join(output, "metrics.jsonl"), lines.encode())
    from tensorboardX import SummaryWriter

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
    """The most memory that this process alone held, sampled ten times a second.

    Memory that it shares with others, such as Ray's object store, does not count.
    """

    def __init__(self) -> None:
        self.peak_mb = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.exists():
            anonymous = [l for l in status.read_text().splitlines() if l.startswith("RssAnon")]
            self.peak_mb = max(self.peak_mb, int(anonymous[0].split()[1]) / 1024)
            time.sleep(0.1)


def _is_over(history: list[dict[str, Any]], recipe: Recipe) -> bool:
    if len(history) >= recipe.epochs:
        return True
    scores = [entry["score"] for entry in history]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= recipe.patience


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[recipe.optimizer](
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )


def _most(value: float, world: int) -> float:
    values = [value]
    if world > 1:
        values = [0.0] * world
        dist.all_gather_object(values, value)
    return max(values)
