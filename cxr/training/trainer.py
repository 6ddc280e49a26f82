"""Training recipes data-parallel: from plans to outcomes through one group of Ray Train workers.

One group of workers trains any number of recipes one after another, since starting a group costs
more than training a head. Where the pretrained part of a network is frozen the workers read cached
features and train what follows; otherwise they read pixels and train the whole classifier.
"""

import dataclasses
import io
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from cxr import cluster, storage
from cxr.cluster import Workers
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import Shards
from cxr.datasets.split import SplitConfig
from cxr.datasets.variation import rotate
from cxr.errors import CxrError, DataError, SettingsError
from cxr.labels import CLASSES
from cxr.models import classifier
from cxr.models.classifier import Classifier, State
from cxr.recipes import EFFECTIVE_NUMBER_BETA, FIXED_CLASS_WEIGHTS, Recipe
from cxr.training.entry import train_worker
from cxr.training.worker import Task, WorkerConfig, training_set, validation_set

MAX_FAILURES: Final = 3
"""Times that a run restarts from its last epoch after a worker died."""

ONE_WORKER: Final = Workers(1, 1)


@dataclass(frozen=True)
class Plan:
    """One recipe to train, from which start and on which data."""

    recipe: Recipe
    model: Classifier
    """With its pretrained weights."""
    shards: Shards
    """Features of the model's frozen part where `cached`, else pixels."""
    cached: bool
    train_folds: tuple[int, ...]
    validation_folds: tuple[int, ...]
    output: str
    """Folder of this recipe: metrics.jsonl, tensorboard/ and best.pt go there."""
    weights: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where the pretrained weights came from."""
    seconds: float = 0.0
    """What decoding and the frozen part took."""
    drawn: tuple[Shards, ...] = ()
    """Features of drawn views of the same images; `shards` has the images as they are."""

    @property
    def rotation(self) -> list[Shards]:
        """The data sets that epochs train on in turn; one where there are no drawn views."""
        return rotate([self.shards, *self.drawn])

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
    """One entry per epoch: losses, accuracies, AUC, seconds."""
    best: dict[str, Any]
    """The history's entry of the best epoch."""


def class_weights(recipe: Recipe, labels: NDArray[np.int64]) -> tuple[float, ...]:
    """The loss weight of each class.

    Args:
        recipe: says which weighting.
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
    resource: Literal["GPU", "CPU"] = "GPU" if gpu else "CPU"
    available = cluster.wait_for(resource, workers.min)
    if workers.min > available:
        raise SettingsError(
            f"workers: {workers.min} workers need {workers.min} {resource}s, this cluster has"
            f" {available}. Lower --workers to {available}, or let more nodes join."
        )
    if recipe.loading == "stream" and recipe.batch_size < workers.max:
        raise SettingsError(
            f"workers: a batch of {recipe.batch_size} cannot be divided among {workers.max}"
            " workers. Lower --workers or raise --batch-size."
        )


def fit(
    plans: Sequence[Plan], output: str, *, workers: Workers = ONE_WORKER, gpu: bool = False
) -> list[Outcome]:
    """Train recipes data-parallel, one after another.

    Called again with the same output after it was interrupted, it resumes from the last epoch.

    Args:
        plans: what to train on what.
        output: folder of the run, path or URI; Ray Train keeps its state in `ray/` below.
        workers: training processes.
        gpu: a GPU for each.

    Returns:
        An outcome per plan; the score of its best epoch is `EMPTY_SCORE` if no epoch gave finite
        numbers.

    Raises:
        SettingsError: the workers do not fit the cluster.
        DataError: a class is missing in either set.
        CxrError: workers died more often than `MAX_FAILURES`.
        KeyboardInterrupt: Ctrl-C.
    """
    for plan in plans:
        _check_classes(plan)
        check_workers(workers, plan.recipe, gpu=gpu)
    cluster.check_reach([output])
    with _progress(plans) as progress:
        counter = progress.counter if progress else None
        trainer = _trainer(plans, output, workers, counter, gpu=gpu)
        try:
            with usual_interrupts(), cluster.own_address():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            cause = str(error).strip().splitlines()[-1]
            raise CxrError(
                f"{output}: training failed: {cause}. Fix the cause and resume with --resume"
                f" {output}."
            ) from error
    return [_read_outcome(plan) for plan in plans]


@contextmanager
def usual_interrupts() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt, during Ray Train and after it.

    Ray Train's own handler stops the workers and ends the job with exit code 0, as if it had
    finished; and it stays when training is over.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _progress(plans: Sequence[Plan]) -> "ClusterProgress | nullcontext[None]":
    """A bar on a terminal; a log has the lines of the epochs."""
    if not sys.stdout.isatty():
        return nullcontext()
    num_images = sum(plan.recipe.epochs * len(plan.shards.rows(plan.train_folds)) for plan in plans)
    names = ", ".join(plan.name for plan in plans)
    return ClusterProgress(f"training {names}", num_images, lines=False)


def _trainer(
    plans: Sequence[Plan],
    output: str,
    workers: Workers,
    counter: "ActorHandle[Counter] | None",
    *,
    gpu: bool,
) -> ray.train.torch.TorchTrainer:
    share = cluster.share(workers.min, gpu=gpu)
    # Plans of one model, such as the members of an ensemble, have the same start.
    models = {id(plan.model): plan for plan in plans}
    states: dict[int, ray.ObjectRef[State]] = {
        key: ray.put(dict(classifier.trained_state(plan.model, plan.cached)))
        for key, plan in models.items()
    }
    elastic = workers.max > workers.min
    config = WorkerConfig(
        tasks=tuple(_task(plan, states[id(plan.model)]) for plan in plans),
        threads=share.threads,
        gpu=gpu,
        checkpoints=storage.join(output, "ray"),
        counter=counter,
    )
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"worker": ray.put(config)},
        datasets={
            name: dataset
            for plan in plans
            for name, dataset in _datasets(plan, ("row", "label", "x")).items()
        },
        dataset_config=SplitConfig(
            whole=[
                training_set(plan.name, number)
                for plan in plans
                for number in range(1 + len(plan.drawn))
                if plan.recipe.loading == "memory"
            ]
        ),
        scaling_config=ray.train.ScalingConfig(
            # Ray's own signature lacks the pair that it takes.
            num_workers=(workers.min, workers.max) if elastic else workers.min,  # type: ignore[arg-type]
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


def _datasets(plan: Plan, columns: Sequence[str]) -> dict[str, ray.data.Dataset]:
    """What the workers of a plan read, by the names that they ask for."""
    training = {
        training_set(plan.name, number): shards.dataset(plan.train_folds, columns)
        for number, shards in enumerate(plan.rotation)
    }
    validation = plan.shards.dataset(plan.validation_folds, columns)
    return training | {validation_set(plan.name): validation}


def _check_classes(plan: Plan) -> None:
    for part, folds in (("training", plan.train_folds), ("validation", plan.validation_folds)):
        labels = np.asarray(plan.shards.rows(folds)["label"])
        counts = np.bincount(labels, minlength=len(CLASSES))
        if 0 in counts:
            raise DataError(f"no {CLASSES[int(np.argmin(counts))]} image is left for {part}.")


def _task(plan: Plan, state: "ray.ObjectRef[State]") -> Task:
    train = plan.shards.rows(plan.train_folds)
    return Task(
        recipe=plan.recipe,
        output=plan.output,
        shape=plan.shards.shape,
        dtype=plan.shards.dtype,
        cached=plan.cached,
        rows=np.sort(np.asarray(train["row"])),
        num_views=1 + len(plan.drawn),
        class_weights=class_weights(plan.recipe, np.asarray(train["label"])),
        state=state,
    )


def _read_outcome(plan: Plan) -> Outcome:
    lines = storage.read_bytes(storage.join(plan.output, "metrics.jsonl")).splitlines()
    history = [json.loads(line) for line in lines]
    best = max(history, key=lambda entry: float(entry["score"]))
    data = storage.read_bytes(storage.join(plan.output, "best.pt"))
    saved = torch.load(io.BytesIO(data), weights_only=True)
    return Outcome(
        saved["model"], pa.table({k: v.numpy() for k, v in saved["seen"].items()}), history, best
    )
