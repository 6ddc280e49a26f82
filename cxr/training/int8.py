"""A trained classifier in 8-bit integers: made from training images, kept if it is as good."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import metrics
from cxr.datasets.shards import Shards, read_part
from cxr.errors import CheckpointError
from cxr.inference.onnx_engine import OnnxEngine
from cxr.inference.stress import changed_logits
from cxr.metrics.results import Interval
from cxr.models import checkpoint
from cxr.models.acquisition import CHANGES
from cxr.models.checkpoint import Checkpoint
from cxr.models.export import export
from cxr.models.outputs import logit
from cxr.models.quantization import BATCH_SIZE, NUM_CALIBRATION, quantize
from cxr.models.session import open_session
from cxr.models.validation import add_changed, changed_images
from cxr.storage.arrays import to_array
from cxr.training.unusual import read_first

MAX_LOSS: Final = 0.005
"""The network is refused where the interval of its AUC, minus that in float32, reaches below the
negative of this."""


@dataclass(frozen=True)
class Quantized:
    """How a network in 8-bit integers compares with the same in float32."""

    recipe: str
    is_kept: bool
    difference: Interval
    """Of the AUC on the validation images."""
    num_images: int
    num_patients: int

    @property
    def sentence(self) -> str:
        """The comparison, and what became of it."""
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        verdict = (
            "kept"
            if self.is_kept
            else f"refused, since the interval reaches below -{MAX_LOSS}; use float32"
        )
        return (
            f"{self.recipe} in int8: AUC {value:+.4f} [{low:+.4f}, {high:+.4f}] against float32 on"
            f" {self.num_images:,} validation images of {self.num_patients:,} patients: {verdict}."
        )


def add_int8(
    trained: Checkpoint,
    pixels: Shards,
    train_folds: Sequence[int],
    validation_folds: Sequence[int],
) -> Quantized:
    """Quantize a classifier, and add the result to its checkpoint unless it is worse.

    Args:
        trained: the checkpoint in float32.
        pixels: decoded images that it was trained and validated on.
        train_folds: whose images set the scales.
        validation_folds: whose images calibrate it, choose its threshold and judge it.

    Raises:
        CheckpointError: there are no training images, or ONNX Runtime cannot quantize the network.
        DataError: the validation images are all of one class.
        StorageError: the checkpoint's folder cannot be written.

    All is computed in this process, with every core of its machine.
    """
    recipe = trained.recipe
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    examples = _examples(pixels, train_folds)
    source = export(trained.model, recipe, {}, split_gray=True)
    network = quantize(source, examples, recipe.normalization, threads)
    networks = {"logit": network, "float32": trained.onnx}
    validation = validate(networks, pixels, validation_folds, threads, trained.member_of_fold)
    difference = metrics.auc_difference(
        np.asarray(validation["label"]),
        np.asarray(validation["logit"]),
        np.asarray(validation["float32"]),
        patients=validation["patient"].to_pylist(),
    )
    result = Quantized(
        recipe=recipe.name,
        is_kept=difference.low >= -MAX_LOSS,
        difference=difference,
        num_images=len(validation),
        num_patients=len(validation["patient"].unique()),
    )
    if result.is_kept:
        facts: dict[str, Any] = {
            "num_calibration_images": len(examples),
            "auc_difference": dataclasses.asdict(difference),
            "num_images": result.num_images,
            "num_patients": result.num_patients,
        }
        images = changed_images(trained.validation)
        validation = stress(
            network, validation, images, pixels, validation_folds, threads, trained.member_of_fold
        )
        checkpoint.add_int8(trained, network, validation, facts)
    return result


def _examples(pixels: Shards, folds: Sequence[int]) -> NDArray[np.uint8]:
    """The first training images of each fold, whose order is random: uint8 (N, S, S)."""
    arrays = list(read_first(pixels, folds, NUM_CALIBRATION))
    if not arrays:
        raise CheckpointError("int8: there are no training images to quantize with.")
    return np.concatenate(arrays)


def validate(
    networks: dict[str, bytes],
    pixels: Shards,
    folds: Sequence[int],
    threads: int,
    member_of_fold: Mapping[int, int],
) -> pa.Table:
    """The logits of networks, in a column of each one's name: {row, label, patient, ...}.

    Where each member of an ensemble has a fold to validate, they are that member's.
    """
    sessions = {name: open_session(content, threads) for name, content in networks.items()}
    tables = []
    for fold, path in [(k, path) for k in folds for path in pixels.parts.get(k, ())]:
        output = "members" if fold in member_of_fold else "logits"
        table = read_part(path, ["row", "label", "patient", "subtype", "x"])
        table = table.append_column("fold", pa.array([fold] * len(table), pa.int64()))
        images = to_array(table["x"], pixels.shape, pixels.dtype)[:, None]
        table = table.drop_columns(["x"])
        for name, session in sessions.items():
            outputs = [
                session.run([output], {"pixels": images[start : start + BATCH_SIZE]})[0]
                for start in range(0, len(images), BATCH_SIZE)
            ]
            logits = np.concatenate(outputs)
            if fold in member_of_fold:
                logits = logits[:, member_of_fold[fold]]
            table = table.append_column(name, pa.array(logit(logits).astype(np.float64)))
        tables.append(table)
    order = [("fold", "ascending"), ("row", "ascending")]
    return pa.concat_tables(tables).sort_by(order).drop_columns(["fold"])


def stress(
    network: bytes,
    validation: pa.Table,
    images: NDArray[np.int64],
    pixels: Shards,
    folds: Sequence[int],
    threads: int,
    member_of_fold: Mapping[int, int],
) -> pa.Table:
    """Add the logits of images under acquisition changes, if any were in float32.

    Args:
        network: an ONNX file.
        validation: in the order of the checkpoint's in float32.
        images: positions of those that were scored under changes, (K,).
        pixels: decoded images.
        folds: those of the validation images.
        threads: that compute.
        member_of_fold: the member of an ensemble that has a fold to validate.
    """
    images = images[images < len(validation)]
    if not len(images):
        return validation
    rows = validation["row"].take(pa.array(images))
    logits: dict[int, NDArray[np.float64]] = {}
    for fold in folds:
        member = member_of_fold.get(fold)
        output = "logits" if member is None else "members"
        engine = OnnxEngine(network, output, threads, member)
        for path in pixels.parts.get(fold, ()):
            table = read_part(path, ["row", "x"])
            table = table.filter(pc.is_in(table["row"], rows))
            if len(table):
                squares = to_array(table["x"], pixels.shape, pixels.dtype)
                for row, square in zip(table["row"].to_pylist(), squares, strict=True):
                    logits[row] = changed_logits(engine, square, row)
    columns = np.transpose([logits[row] for row in rows.to_pylist()])
    return add_changed(validation, images, dict(zip(CHANGES, columns, strict=True)))
