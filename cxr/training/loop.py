"""One worker's network and its passes over data.

Sums, not means, cross the workers: the loss of a step is the weighted sum over the global batch
divided by the global sum of weights, so any number of workers computes the same loss and gradient,
and shards of unequal size lose no image.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cxr import metrics
from cxr.inference import devices
from cxr.inference.torch_engine import forward
from cxr.models import acquisition, classifier
from cxr.models.classifier import Classifier, State
from cxr.models.outputs import logit
from cxr.recipes import FOCAL_GAMMA, Recipe
from cxr.training.loaders import Batch, Loader

EMPTY_SCORE: Final = -1.0
"""Ranks an epoch whose AUC is undefined below all others."""

Entry = dict[str, Any]
"""One epoch: losses, accuracies, AUC, seconds."""

LINE_EVERY_S: Final = 15.0
"""Seconds between two lines on how far a long epoch is."""


class Learner:
    """A classifier, its optimizer, and passes with and without steps."""

    def __init__(
        self,
        recipe: Recipe,
        state: State,
        class_weights: tuple[float, ...],
        *,
        cached: bool,
        shape: tuple[int, ...],
        dtype: str,
        gpu: bool,
        num_images: int,
        rank: int,
        world: int,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        """Build the network and give it its start.

        Args:
            recipe: everything that defines network and training.
            state: tensors to start from, by the classifier's names.
            class_weights: loss weight of each class.
            cached: rows are features of the frozen prefix, and what follows it is trained; else
                rows are pixels, and the whole classifier runs.
            shape: of one row's array.
            dtype: of one row's array.
            gpu: compute on the GPU that Ray gave this process.
            num_images: that all workers train on in an epoch.
            rank: this worker's number.
            world: workers in all.
            on_step: called with the images of each global batch after its step.
        """
        self.on_step = on_step
        self.recipe, self.cached, self.shape, self.dtype = recipe, cached, shape, dtype
        self.rank, self.world = rank, world
        self.device = devices.device(gpu)
        self.model = classifier.restore(recipe, state)
        trained = self.model.tail if cached else self.model
        self.network: nn.Module = trained.to(self.device).to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(recipe, _groups(self.model, recipe.layer_decay))
        self.average = _average(self.model, recipe.ema)
        if world > 1:
            self.network = ray.train.torch.prepare_model(self.network)
        self.weights = torch.tensor(class_weights, device=self.device)
        self.num_steps = max(1, recipe.epochs * math.ceil(num_images / recipe.batch_size))
        self.scheduler = _schedule(recipe, self.optimizer, self.num_steps)

    def train(self, loader: Loader, epoch: int) -> dict[str, float]:
        """One pass with steps; `loss` and `accuracy` over all workers' images."""
        # Drawn from seed and epoch alone, so that a resumed epoch is the epoch itself.
        seed = int(np.random.default_rng((self.recipe.seed, epoch, self.rank)).integers(2**31))
        torch.manual_seed(seed)
        self.network.train()
        self.model.train()  # After the wrapper's: it keeps frozen parts in evaluation mode.
        self._epoch, self._printed = epoch, time.monotonic()
        return self._run_pass(loader.batches(epoch), learn=True)[0]

    def evaluate(self, loader: Loader) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
        """One pass without steps; also row, label and logit of every image of all workers."""
        self.network.eval()
        self._validated().eval()
        with torch.no_grad():
            means, own = self._run_pass(loader.batches(None), learn=False)
        gathered: list[Any] = [own]
        if self.world > 1:
            gathered = [None] * self.world
            dist.all_gather_object(gathered, own)
        columns = {name: np.concatenate([part[name] for part in gathered]) for name in own}
        order = np.argsort(columns["row"])
        return means, {name: column[order] for name, column in columns.items()}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs of this worker."""
        state = {
            "model": classifier.trained_state(self.model, self.cached),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        return state | ({"average": self.average.state_dict()} if self.average else {})

    def trained(self) -> dict[str, torch.Tensor]:
        """The tensors that training may have changed, or their average, by the classifier's names.

        They are what `evaluate` judges.
        """
        return classifier.trained_state(self._validated(), self.cached)

    def _validated(self) -> Classifier:
        if self.average is None:
            return self.model
        average: Classifier = self.average.module  # type: ignore[assignment]
        return average

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average:
            self.average.load_state_dict(state["average"])

    def _run_pass(
        self, batches: Iterator[Batch], *, learn: bool
    ) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
        totals = torch.zeros(4, dtype=torch.float64)  # loss, weight, images, correct
        parts: dict[str, list[NDArray[Any]]] = {"row": [], "label": [], "logit": []}
        started, num_images = time.monotonic(), 0
        while True:
            batch = next(batches, None)
            label = torch.empty(0, dtype=torch.int64) if batch is None else batch.label
            weight = self.weights[label.to(self.device)]
            # Workers run out of rows at different steps; the pass ends when all have.
            size = self._sum(torch.tensor([len(label), float(weight.sum())]))
            if size[0] == 0:
                break
            outputs = self._forward(batch, learn=learn).float()
            if batch is not None and len(label):
                target = label.to(self.device)
                smoothing = self.recipe.label_smoothing if learn else 0.0
                losses = nn.functional.cross_entropy(
                    outputs, target, reduction="none", label_smoothing=smoothing
                )
                if self.recipe.class_weighting == "focal":
                    losses = losses * (1 - torch.exp(-losses)) ** FOCAL_GAMMA
                loss = (losses * weight).sum()
                correct = (outputs.argmax(1) == target).sum()
                totals += torch.tensor(
                    [loss.item(), weight.sum().item(), len(label), correct.item()]
                )
            else:
                loss = outputs.sum() * 0  # Takes part in the exchange of gradients, adds nothing.
            if learn:
                self.optimizer.zero_grad()
                # The wrapper averages gradients over the workers; times their number is the sum.
                (loss * (self.world / float(size[1]))).backward()
                self._step()
                num_images += int(size[0])
                if self.on_step:
                    self.on_step(int(size[0]))
                self._print_rate(num_images, time.monotonic() - started)
            elif batch is not None:
                parts["row"].append(batch.row.numpy())
                parts["label"].append(batch.label.numpy())
                parts["logit"].append(logit(outputs).cpu().numpy())
        totals = self._sum(totals)
        means = {"loss": float(totals[0] / totals[1]), "accuracy": float(totals[3] / totals[2])}
        dtypes = {"row": np.int64, "label": np.int64, "logit": np.float32}
        return means, {
            name: np.concatenate([np.empty(0, dtypes[name]), *arrays]).astype(dtypes[name])
            for name, arrays in parts.items()
        }

    def _step(self) -> None:
        if limit := self.recipe.gradient_clipping:
            nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.optimizer.step()
        # Workers that read uneven streams may make a few steps more, at the last rate.
        if self.scheduler.last_epoch < self.num_steps - 1 or self.recipe.schedule == "decay":
            self.scheduler.step()
        if self.average:
            self.average.update_parameters(self.model)

    def _print_rate(self, num_images: int, seconds: float) -> None:
        if self.rank == 0 and time.monotonic() - self._printed > LINE_EVERY_S:
            self._printed = time.monotonic()
            rate = num_images / seconds
            print(
                f"{self.recipe.name}: epoch {self._epoch}: {num_images:,} images, {rate:.1f}/s",
                flush=True,
            )

    def _forward(self, batch: Batch | None, *, learn: bool) -> torch.Tensor:
        if batch is None or not len(batch.label):
            x = torch.zeros(1, *self.shape, dtype=getattr(torch, self.dtype), device=self.device)
        else:
            x = batch.x.to(self.device, non_blocking=True)
        network = self.network
        if self.average and not learn:
            averaged = self._validated()
            network = averaged.tail if self.cached else averaged
        with devices.autocast(self.device, self.recipe.precision if learn else "bfloat16"):
            if not self.cached:
                x = x[:, None]
                if learn and batch is not None and self.recipe.augmentation != "none":
                    x = self._augment(x, batch)
                return forward(network, x, self.recipe.normalization)
            outputs: torch.Tensor = network(x)
            return outputs

    def _augment(self, x: torch.Tensor, batch: Batch) -> torch.Tensor:
        # Drawn for the row and the epoch, so that any number of workers changes an image alike.
        rows = batch.row.numpy()
        draws = acquisition.draw_uniform(rows, self.recipe.seed, self._epoch, acquisition.NUM_DRAWS)
        ranges = acquisition.RANGES[self.recipe.augmentation]
        return acquisition.vary(x, draws, ranges, self.recipe.augmentation_strength)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
            values = values.cpu()
        return values


def epochs(
    learner: Learner, loader: Loader, validation: Loader, history: list[Entry]
) -> Iterator[tuple[Entry, bool, dict[str, NDArray[Any]]]]:
    """Train until the recipe's epochs or its patience are used up.

    Args:
        learner: at the end of the history.
        loader: of the training rows.
        validation: of the rows to judge each epoch on.
        history: entries of the epochs so far; grows.

    Yields:
        After each epoch its entry, whether it is the best so far, and row, label and logit of each
        validation image.
    """
    while not is_over(history, learner.recipe):
        started = time.monotonic()
        trained = learner.train(loader, len(history) + 1)
        validated, predictions = learner.evaluate(validation)
        finite = bool(np.isfinite(predictions["logit"]).all()) and math.isfinite(trained["loss"])
        auc = metrics.roc_auc(predictions["label"], predictions["logit"]) if finite else None
        entry: Entry = {
            "epoch": len(history) + 1,
            "train_loss": trained["loss"],
            "train_accuracy": trained["accuracy"],
            "val_loss": validated["loss"],
            "val_accuracy": validated["accuracy"],
            "val_auc": auc,
            "score": EMPTY_SCORE if auc is None else auc,
            "diverged": not finite,
            "seconds": time.monotonic() - started,
            "time": time.time(),
        }
        is_best = entry["score"] > max((e["score"] for e in history), default=-math.inf)
        history.append(entry)
        yield entry, is_best, predictions


def is_over(history: Sequence[Mapping[str, Any]], recipe: Recipe) -> bool:
    """Whether the epochs or the patience are used up, or the loss left the finite numbers."""
    if len(history) >= recipe.epochs or any(entry["diverged"] for entry in history):
        return True
    scores = [entry["score"] for entry in history]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= recipe.patience


def _optimizer(recipe: Recipe, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    # fused: one pass over the weights of a head of 26 million.
    options: dict[str, Any] = {"weight_decay": recipe.weight_decay, "fused": True}
    scaled = [
        {"params": group["params"], "lr": recipe.learning_rate * group["factor"]}
        for group in groups
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(scaled, **options)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(scaled, **options)
    return torch.optim.Adam(scaled, **options)


def _groups(model: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """The parameters that are trained, and the factor on their learning rate."""
    if layer_decay == 1:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "factor": 1.0}]
    layers = [[p for p in layer.parameters() if p.requires_grad] for layer in model.layers.values()]
    trained = [parameters for parameters in layers if parameters]
    return [
        {"params": parameters, "factor": layer_decay**depth}
        for depth, parameters in enumerate(reversed(trained))
    ]


def _schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    match recipe.schedule:
        case "one_cycle":
            return schedulers.OneCycleLR(
                optimizer,
                [group["lr"] for group in optimizer.param_groups],
                total_steps=max(num_steps, 2),
                # It divides by the steps of the rise less one.
                pct_start=max(recipe.warmup, 2 / max(num_steps, 2)),
            )
        case "cosine":
            rising = round(num_steps * recipe.warmup)
            falling = schedulers.CosineAnnealingLR(optimizer, max(1, num_steps - rising))
            if not rising:
                return falling
            warming = schedulers.LinearLR(optimizer, 1 / (rising + 1), total_iters=rising)
            return schedulers.SequentialLR(optimizer, [warming, falling], [rising])
        case _:
            return schedulers.LambdaLR(
                optimizer, lambda step: 1 / (1 + recipe.learning_rate_decay * step)
            )


def _average(model: Classifier, decay: float) -> AveragedModel | None:
    if not decay:
        return None

    def update(averaged: Any, current: Any, num_averaged: torch.Tensor | int) -> None:
        if averaged[0].is_meta:  # Of layers that do not run here.
            return
        # Shorter at first, as in TensorFlow's ExponentialMovingAverage: a training of a few steps
        # would otherwise end with little more than its random start.
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, steps)

    # With buffers: batch norm's statistics belong to the averaged weights.
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
