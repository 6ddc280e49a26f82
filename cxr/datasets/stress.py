"""Decoded radiographs under acquisition changes: which of them, and their logits."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import cluster
from cxr.cluster.counter import ClusterProgress
from cxr.datasets.folds import take
from cxr.datasets.shards import Shards
from cxr.inference.engine import CPU_THREADS
from cxr.inference.networks import Network
from cxr.inference.stress import StressPredictor
from cxr.models.acquisition import CHANGES, MEDIUM, MIN_PX

BATCH_SIZE = 4
"""Images that an actor takes at a time: a few, so that all have work until the end. Each is as many
forward passes as there are changes."""


def why_not(image_px: int) -> str:
    """Why images of this side have no robustness table; empty if they have one."""
    if image_px >= MIN_PX:
        return ""
    return f"No robustness table: images of {image_px} px are smaller than {MIN_PX} px."


def describe_changes() -> dict[str, str]:
    """The parameter of each change at medium severity: `{"gamma_low": "exponent: 0.6"}`."""
    return {
        name: f"{change.unit}: {change.values[MEDIUM - 1]:g}" for name, change in CHANGES.items()
    }


def choose_stressed(table: pa.Table, num_images: int) -> NDArray[np.int64]:
    """Choose the images that are scored under every change.

    Args:
        table: columns label and patient, (N,).
        num_images: at most; whole patients, classes in proportion.

    Returns:
        int64, sorted positions.
    """
    _, patients = np.unique(table["patient"].to_pylist(), return_inverse=True)
    return take(np.asarray(table["label"]), patients.astype(np.str_), num_images)


def score_changed(
    pixels: Shards, rows: pa.ChunkedArray, network: Network, name: str, *, gpu: bool
) -> dict[str, NDArray[np.float64]]:
    """The logits of decoded radiographs under each change of medium severity.

    Args:
        pixels: decoded, at least `MIN_PX` wide.
        rows: numbers of the images, (K,).
        network: a classifier, on its way to the cluster.
        name: of the classifier, for the progress line.
        gpu: compute on GPUs, for which the network was sent.

    Returns:
        By change, float64 (K,), in the order of `rows`.
    """
    own = pixels.table.filter(pc.is_in(pixels.table["row"], rows))
    folds = own["fold"].unique().to_pylist()
    # Actors share files, as a file is what a task reads.
    pool = cluster.pool(sum(len(pixels.parts[fold]) for fold in folds), CPU_THREADS, gpu=gpu)
    with ClusterProgress(f"acquisition changes with {name}", len(own) * len(CHANGES)) as progress:
        dataset = pool.map(
            pixels.dataset(folds, ("row", "x"), rows),
            StressPredictor,
            (network, pixels.shape[0], pool.share.threads, progress.counter),
            BATCH_SIZE,
        )
        parts = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    scored = pa.concat_tables(parts)
    scored = scored.take(pc.index_in(rows, scored["row"]))
    return {change: np.asarray(scored[change]) for change in CHANGES}
