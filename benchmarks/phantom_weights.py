"""Train the weights that `--weights phantoms` loads, from a random start and on phantoms alone.

python -m benchmarks.phantom_weights --to cxr/models/phantoms-squeezenet1_1.safetensors

Writes the convolutions of SqueezeNet 1.1 in float16, 1.4 MB. The phantoms are drawn from another
seed than the default set. In bfloat16 where the CPU has it, so another machine gives other numbers.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors.torch
import torch
import tyro
from PIL import Image
from torch import nn

from cxr import metrics, recipes
from cxr.inference import devices
from cxr.models import classifier
from cxr.models.outputs import logit
from cxr.models.transforms import normalize
from cxr.models.weights import PHANTOM_BACKBONE
from cxr.phantoms import PhantomSettings, cached

SEED = 1
BATCH_SIZE = 32


@dataclass(frozen=True)
class Job:
    """How long, on how many images."""

    to: Path
    """The file to write."""
    num_train: int = 4000
    """Phantoms to train on."""
    small_epochs: int = 8
    """Passes over them at half their size, which take a quarter of the time."""
    epochs: int = 4
    """Passes at their own size, after those."""
    learning_rate: float = 1e-3
    """The highest of one cycle."""
    cache: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path(".cache")
    """Where phantoms are drawn."""


def main() -> None:
    job = tyro.cli(Job)
    settings = PhantomSettings(job.num_train, 200, 8, pneumonia_fraction=0.5, seed=SEED)
    folder = cached(settings, job.cache)
    train, validation = (_read(folder / split) for split in ("train", "val"))
    recipe = recipes.named("best")
    model = classifier.build(recipe)
    for parameter in model.parameters():
        parameter.requires_grad = True
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    num_epochs = job.small_epochs + job.epochs
    num_steps = num_epochs * -(-len(train[1]) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.learning_rate, num_steps)
    torch.manual_seed(SEED)
    for epoch in range(num_epochs):
        step = 2 if epoch < job.small_epochs else 1
        started = time.monotonic()
        model.features.train()
        model.head.train()
        for rows in torch.randperm(len(train[1])).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(_run(model, train[0][rows], step), train[1][rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            logits = np.concatenate(
                [logit(_run(model, x, step)).numpy() for x in validation[0].split(64)]
            )
        auc = metrics.roc_auc(validation[1].numpy(), logits.astype(np.float64))
        print(
            f"epoch {epoch + 1} of {num_epochs}: loss {loss.item():.3f}, AUC {auc:.4f} on"
            f" {len(logits)} phantoms, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    state = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("features.")
    }
    job.to.write_bytes(
        safetensors.torch.save(state, {"backbone": PHANTOM_BACKBONE, "data": "phantoms, seed 1"})
    )
    print(f"{job.to}: {job.to.stat().st_size / 1e6:.1f} MB")


def _run(model: nn.Module, pixels: torch.Tensor, step: int) -> torch.Tensor:
    """Outputs of a network, float32 (N, 2), for gray levels, uint8 (N, 1, S, S).

    Squares of `step` times `step` pixels are averaged first.
    """
    pixels = nn.functional.avg_pool2d(pixels.float(), step).round().to(torch.uint8)
    with devices.autocast(torch.device("cpu")):
        images = normalize(pixels, "imagenet").to(memory_format=torch.channels_last)
        outputs: torch.Tensor = model(images)
    return outputs.float()


def _read(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 1, S, S), uint8, and labels (N,) of a split."""
    paths = sorted(folder.rglob("*.jpeg"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])[:, None]
    labels = [path.parent.name == "PNEUMONIA" for path in paths]
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)


if __name__ == "__main__":
    main()
