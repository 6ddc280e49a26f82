"""Make the model that the package ships from a run of `jobs/train.py`.

    python jobs/train.py --version best --name starter --backbone shufflenet_v2_x0_5 \
        --weights none --pretrained 0 --epochs 24 --patience 24 --learning-rate 0.003 \
        --warmup 0.2 --dropout 0.1 --ema 0.995 --weight-decay 0.02 --augmentation-strength 1 \
        --stress-images 1000 --data chest_xray --output run
    python -m benchmarks.starter --run run --to cxr/models/starter

The weights are rounded to float16, and everything that the checkpoint says is computed anew with
the rounded ones, on the validation images of the run. It is refused where it is not good enough.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from cxr import cli, cluster, metrics, storage
from cxr.datasets.pixels import decode_shards
from cxr.datasets.splits import Splits
from cxr.errors import CxrError
from cxr.models import checkpoint
from cxr.models.classifier import Classifier
from cxr.models.export import export
from cxr.models.validation import changed_images
from cxr.reports import MODEL_CARD, model_card
from cxr.training import int8, run
from cxr.training.preparation import list_training_images
from cxr.training.trainer import Plan
from cxr.training.unusual import fit_features

MIN_AUC: Final = 0.985
"""On validation images as they are."""

MIN_STRESSED_AUC: Final = 0.975
"""Mean over the acquisition changes."""

NOTE: Final = (
    "For research only: this model was trained on radiographs of children of one to five years from"
    " one hospital, and knows no others."
)
"""On every page that is made with the model."""

MAX_BYTES: Final = 4_000_000
"""Of the whole folder."""


@dataclass(frozen=True)
class StarterJob:
    """Which run, and where its model goes."""

    run: str
    """Folder of the finished run, with one recipe, which is called starter."""
    to: Path
    """Folder to write."""


def main() -> None:
    job = cli.parse(StarterJob, str(__doc__))
    [recipe], settings = run.reopen(job.run)
    trained = checkpoint.load(storage.join(settings.folder, recipe.name, "checkpoint"))
    model = trained.model
    with torch.no_grad():
        for tensor in model.state().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    cluster.connect()
    assert settings.data is not None
    assert isinstance(model, Classifier)
    remembered = Splits(storage.read_table(storage.join(settings.folder, run.SPLITS_FILE)))
    images = list_training_images(settings.data, settings, remembered)
    pixels = decode_shards(images.listing, images.folds, recipe.image_px, settings.cache)
    network, threads = export(model, recipe, {}), os.cpu_count() or 1
    folds = settings.validation_folds
    validation = int8.validate({"logit": network}, pixels, folds, threads, {})
    changed = changed_images(trained.validation)
    validation = int8.stress(network, validation, changed, pixels, folds, threads, {})
    plan = Plan(
        recipe=recipe, model=model, shards=pixels, cached=False,
        train_folds=tuple(k for k in range(settings.num_folds) if k not in folds),
        validation_folds=folds, output="",
    )  # fmt: skip
    saved = checkpoint.save(
        str(job.to), recipe, model, validation, trained.provenance | {"note": NOTE},
        settings.operating_point, trained.splits, settings.calibrate_on,
        distribution=fit_features([plan]),
    )  # fmt: skip
    (job.to / MODEL_CARD).write_text(model_card(checkpoint.load(saved.folder)))
    num_bytes = sum(path.stat().st_size for path in job.to.iterdir())
    clean = saved.clean_validation
    auc = metrics.roc_auc(clean["label"], clean["logit"]) or 0.0
    stressed = (saved.robustness and saved.robustness.mean["auc"].value) or 0.0
    print(f"{job.to}: {num_bytes / 1e6:.2f} MB, AUC {auc:.4f}, under changes {stressed:.4f}")
    if auc < MIN_AUC or stressed < MIN_STRESSED_AUC or num_bytes > MAX_BYTES:
        raise CxrError(
            f"{job.to}: not to be shipped: at least {MIN_AUC} and {MIN_STRESSED_AUC} under changes"
            f" are asked for, in {MAX_BYTES / 1e6:.0f} MB at most."
        )


if __name__ == "__main__":
    cli.run(main)
