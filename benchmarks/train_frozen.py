"""Ten epochs of a head on frozen VGG16: with this library, and with a plain loop.

    python -m benchmarks.train_frozen --data chest_xray --limit 100 --output train_frozen.json
    python -m benchmarks.train_frozen --limit 100 --plain-epochs 2    # synthetic; plain loop scaled

Both train recipe v2 (with random convolutions, which cost the same as pretrained ones) for the same
number of epochs on the same radiographs and folds, and validate after each epoch.

"Ours" is what `jobs/train.py` does with an empty cache: start Ray, decode, run the frozen layers
once, train with Ray Train, write checkpoint and report. "Plain" is a loop in PyTorch: a
`DataLoader` with two workers that decodes with Pillow and resizes with torchvision, and in every
epoch a float32 forward pass of the frozen layers; the head, its initial weights, the loss and the
optimizer are the same. Both compute on the CPU. Ours runs first, so only ours may have to read
files from the disk.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cxr import cli, metrics, phantoms
from cxr.errors import CxrError, SettingsError
from cxr.models import classifier, transforms
from cxr.models.outputs import logit
from cxr.recipes import FIXED_CLASS_WEIGHTS, RECIPES, Recipe

NUM_FOLDS: Final = 5


@dataclass(frozen=True)
class TrainFrozen:
    """What both train on, and for how long."""

    data: str | None = None
    """Folder with train / NORMAL|PNEUMONIA. Without it, synthetic radiographs are drawn."""
    limit: int = 100
    """Use at most this many training images: whole patients, classes in proportion."""
    epochs: int = 10
    """Passes over the training data."""
    plain_epochs: int = 10
    """Epochs for which the plain loop is timed; fewer are scaled to all, and the table says so."""
    plain_workers: int = 2
    """Processes of the plain loop's DataLoader."""
    output: Path | None = None
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not 1 <= self.plain_epochs <= self.epochs:
            raise SettingsError(f"plain_epochs: {self.plain_epochs} is outside 1 to {self.epochs}.")


@dataclass(frozen=True)
class Ours:
    """Times of the library."""

    seconds: float
    """From nothing to the report."""
    ray_seconds: float
    """Of these, for importing and starting Ray."""
    epoch_seconds: float
    """Of these, for the epochs alone."""
    num_images: int
    val_loss: float
    """Of the last epoch."""
    val_auc: float | None


@dataclass(frozen=True)
class Plain:
    """Times of the plain loop."""

    seconds: float
    """For all epochs; scaled if fewer were timed."""
    measured_seconds: float
    measured_epochs: int
    val_loss: float
    """Of the last measured epoch."""
    val_auc: float | None


def train_ours(recipe: Recipe, data: str, limit: int, scratch: Path) -> Ours:
    """Train as `jobs/train.py` does, with cache and run in a scratch folder."""
    started = time.perf_counter()
    # Imported here: importing Ray is part of what starting it costs.
    from cxr import cluster, storage
    from cxr.training import run
    from cxr.training.preparation import list_training_images
    from cxr.training.settings import RunSettings

    cluster.connect()
    ray_seconds = time.perf_counter() - started
    settings = RunSettings(
        data=data, weights="none", output=str(scratch / "run"), gpu="off", limit=limit,
        folds=NUM_FOLDS, cache=str(scratch / "cache"), stress_images=0,
    )  # fmt: skip
    finished = run.train([recipe], run.begin([recipe], settings))
    seconds = time.perf_counter() - started
    result = storage.read_json(storage.join(finished.output, recipe.name, "result.json"))
    history = result["histories"][recipe.name]
    if len(history) < recipe.epochs:
        raise CxrError(f"ours stopped after {len(history)} of {recipe.epochs} epochs.")
    images = list_training_images(data, settings)
    import ray

    ray.shutdown()
    return Ours(
        seconds, ray_seconds, sum(entry["seconds"] for entry in history), len(images.listing),
        history[-1]["val_loss"], history[-1]["val_auc"],
    )  # fmt: skip


class PlainRadiographs(Dataset[tuple[torch.Tensor, int]]):
    """JPEG files, decoded whenever they are requested."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], image_px: int) -> None:
        self.paths, self.labels = paths, labels
        self.transform = torchvision.transforms.Compose(
            [
                torchvision.transforms.Resize((image_px, image_px)),
                torchvision.transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Gray pixels uint8 (1, image_px, image_px), and the label."""
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("L")), self.labels[index]


def train_plain(recipe: Recipe, job: TrainFrozen, data: str) -> Plain:
    """The loop that one would write without this library."""
    from cxr.training.preparation import list_training_images
    from cxr.training.settings import RunSettings

    settings = RunSettings(data=data, limit=job.limit, folds=NUM_FOLDS)
    images = list_training_images(data, settings)
    folds = images.folds
    uris, labels = (np.asarray(images.listing[name].to_pylist()) for name in ("uri", "label"))
    started = time.perf_counter()
    loaders = [
        DataLoader(
            PlainRadiographs(uris[chosen].tolist(), labels[chosen].tolist(), recipe.image_px),
            batch_size=recipe.batch_size,
            shuffle=shuffle,
            num_workers=job.plain_workers,
            persistent_workers=job.plain_workers > 0,
        )
        for chosen, shuffle in ((folds != settings.fold, True), (folds == settings.fold, False))
    ]
    torch.manual_seed(recipe.seed)
    model = classifier.build(recipe)
    frozen, head = model.prefix.eval(), model.tail
    optimizer = torch.optim.Adam(
        head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 / (1 + recipe.learning_rate_decay * step)
    )
    loss_of = nn.CrossEntropyLoss(weight=torch.tensor(FIXED_CLASS_WEIGHTS))
    val_loss, val_auc = 0.0, None
    ends = [started]
    for epoch in range(1, job.plain_epochs + 1):
        head.train()
        for gray, label in loaders[0]:
            with torch.no_grad():
                maps = frozen(transforms.normalize(gray, recipe.normalization))
            loss = loss_of(head(maps), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        head.eval()
        outputs, y_true = [], []
        with torch.no_grad():
            for gray, label in loaders[1]:
                outputs.append(head(frozen(transforms.normalize(gray, recipe.normalization))))
                y_true.append(label)
        logits, target = torch.cat(outputs), torch.cat(y_true)
        val_loss = float(loss_of(logits, target))
        val_auc = metrics.roc_auc(target.numpy(), logit(logits).numpy())
        ends.append(time.perf_counter())
        print(f"plain: epoch {epoch} of {job.plain_epochs}: validation loss {val_loss:.4f},"
              f" {ends[-1] - started:.1f} s so far", flush=True)  # fmt: skip
    measured = ends[-1] - started
    # The first epoch also builds the network and starts the loaders, so it is not scaled with the
    # others, unless it is the only one.
    seconds = np.diff(ends)
    missing = (job.epochs - job.plain_epochs) * float(
        np.mean(seconds[1:] if seconds[1:].size else seconds)
    )
    return Plain(measured + missing, measured, job.plain_epochs, val_loss, val_auc)


def print_table(job: TrainFrozen, ours: Ours, plain: Plain) -> None:
    scaled = "" if job.plain_epochs == job.epochs else (
        f" (scaled from {job.plain_epochs}, which took {plain.measured_seconds:.1f} s)"
    )  # fmt: skip
    print(f"\n{ours.num_images} radiographs, {job.epochs} epochs, {torch.get_num_threads()} threads"
          f" of PyTorch {torch.__version__}")  # fmt: skip
    print(f"ours   {ours.seconds:8.1f} s   of which starting Ray {ours.ray_seconds:.1f} s, epochs"
          f" {ours.epoch_seconds:.1f} s; last validation loss {ours.val_loss:.3f}")  # fmt: skip
    print(f"plain  {plain.seconds:8.1f} s{scaled}; last validation loss {plain.val_loss:.3f}")
    print(f"ratio  {plain.seconds / ours.seconds:8.2f}     plain / ours")


def main() -> None:
    job = cli.parse(TrainFrozen, str(__doc__))
    # No early stopping.
    recipe = dataclasses.replace(RECIPES["v2"], epochs=job.epochs, patience=job.epochs)
    with tempfile.TemporaryDirectory() as folder:
        data = job.data or str(
            phantoms.cached(phantoms.PhantomSettings(num_train=job.limit), Path(folder))
        )
        ours = train_ours(recipe, data, job.limit, Path(folder))
        plain = train_plain(recipe, job, data)
    print_table(job, ours, plain)
    if job.output:
        results: dict[str, Any] = {
            "images": "phantoms" if job.data is None else "real",
            "epochs": job.epochs,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "ours": dataclasses.asdict(ours),
            "plain": dataclasses.asdict(plain) | {"scaled": job.plain_epochs < job.epochs},
            "ratio": plain.seconds / ours.seconds,
        }
        job.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"results: {job.output}")


if __name__ == "__main__":
    cli.run(main)
