"""Examine a trained classifier on a split: figures with intervals, predictions, a page."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr import cluster, metrics, sources, storage
from cxr.cluster.counter import ClusterProgress
from cxr.datasets.pixels import decode_shards
from cxr.datasets.shards import Shards
from cxr.errors import DataError
from cxr.images.read import read_all
from cxr.inference.engine import CPU_THREADS, batch_size
from cxr.inference.networks import send_classifier
from cxr.inference.predictor import Predictor
from cxr.labels import CLASSES
from cxr.metrics import Examination, OperatingPoint
from cxr.models.checkpoint import Checkpoint
from cxr.reports import EvaluationReport, WrongImage, evaluation_page, thumbnail

NUM_WRONG = 12
"""Thumbnails of the most wrong images."""


@dataclass(frozen=True)
class Evaluated:
    """A finished examination."""

    examination: Examination
    report: str
    """The page."""
    num_skipped: int


def evaluate(
    trained: Checkpoint,
    where: str,
    split: str,
    output: str,
    *,
    operating_point: OperatingPoint,
    cache: str,
    name: str,
    gpu: bool = False,
) -> Evaluated:
    """Score a split, examine the scores and write metrics.json, predictions.parquet, report.html.

    Args:
        trained: the classifier.
        where: data as `sources.list_set` takes them.
        split: the split to read.
        output: folder, empty.
        operating_point: chosen on validation.
        cache: folder of decoded pixels.
        name: of the data, for the page.
        gpu: compute on GPUs.

    Raises:
        DataError: the split is missing, or shares a patient with train.
    """
    data = sources.list_set(where)
    if data.skipped:
        print(f"{where}: {sources.in_words(data.skipped)}", flush=True)
    listing = data.split(split)
    if split != "train":
        refuse_shared_patients(data, split, listing)
    folds = np.zeros(len(listing), np.int64)
    pixels = decode_shards(listing, folds, trained.recipe.image_px, cache)
    table = score_shards(pixels, trained, gpu=gpu)
    y_true = np.asarray(table["label"])
    probs = metrics.probabilities(np.asarray(table["logit"]), trained.temperature)
    examination = metrics.examine(
        y_true,
        probs,
        patients=table["patient"].to_pylist(),
        subtypes=table["subtype"].to_pylist(),
        operating_point=operating_point,
    )
    predictions = pa.table(
        {
            "uri": table["uri"],
            "patient": table["patient"],
            "y_true": table["label"],
            "logit": table["logit"],
            "prob": pa.array(probs),
            "prediction": pa.array(operating_point.predict(probs).astype(np.int64)),
        }
    )
    storage.write_table(storage.join(output, "predictions.parquet"), predictions)
    facts = _facts(trained, pixels, split)
    storage.write_json(storage.join(output, "metrics.json"), facts | examination.to_json())
    failed = pixels.failed.to_pydict()
    notes = [
        f"skipped: {uri.rsplit('/', 1)[-1]} ({reason})"
        for uri, reason in zip(failed["uri"], failed["reason"], strict=True)
    ]
    page = evaluation_page(
        EvaluationReport(
            title=f"{trained.title}: evaluation on the {split} split",
            data=name,
            split=split,
            examination=examination,
            y_true=y_true,
            probs=probs,
            history=trained.provenance.get("history", []),
            recipe=dataclasses.asdict(trained.recipe),
            provenance=facts,
            wrong=_most_wrong(
                table, listing, y_true, probs, operating_point, trained.recipe.image_px
            ),
            notes=notes,
        )
    )
    report = storage.join(output, "report.html")
    storage.write_bytes(report, page.encode())
    return Evaluated(examination, report, len(notes))


def score_shards(pixels: Shards, trained: Checkpoint, *, gpu: bool = False) -> pa.Table:
    """The logit of every image of decoded shards.

    Returns:
        `pixels.table` with a column `logit`, float64.
    """
    num_images = len(pixels.table)
    num_tasks = sum(len(paths) for paths in pixels.parts.values())
    pool = cluster.pool(num_tasks, CPU_THREADS, gpu=gpu)
    network = send_classifier(trained, gpu=gpu)
    with ClusterProgress(f"scoring with {trained.recipe.name}", num_images) as progress:
        dataset = pool.map(
            pixels.dataset(columns=("row", "x")),
            Predictor,
            (network, trained.recipe.image_px, pool.share.threads, progress.counter),
            batch_size(gpu),
        )
        parts = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    scored = pa.concat_tables(parts).sort_by("row")
    order = pc.index_in(pixels.table["row"], scored["row"])
    return pixels.table.append_column("logit", scored["logit"].take(order))


def refuse_shared_patients(data: sources.LabeledSet, split: str, listing: pa.Table) -> None:
    """Refuse a split that holds a patient of train.

    Raises:
        DataError: names the first such patient.
    """
    try:
        train = data.split("train")
    except DataError:
        return  # Data without a train split share no patient with it.
    shared = sorted(set(train["patient"].to_pylist()) & set(listing["patient"].to_pylist()))
    if shared:
        raise DataError(
            f"{data.uri}: {len(shared)} patients are in both train and {split}, the first"
            f" {shared[0]}. Figures on {split} would be too good; divide the data by patient."
        )


def _facts(trained: Checkpoint, pixels: Shards, split: str) -> dict[str, Any]:
    kept = {k: v for k, v in trained.provenance.items() if k not in ("history", "weights")}
    weights = dict(trained.provenance.get("weights", {}))
    weights["source"] = Path(str(weights.get("source", ""))).name
    return {
        "split": split,
        "fingerprint_of_split": pixels.fingerprint,
        "num_left_out": len(pixels.failed),
        "checkpoint": trained.fingerprint,
        "precision": trained.precision,
        "temperature": trained.temperature,
        "trained": kept | {"weights": weights},
    }


def _most_wrong(
    table: pa.Table,
    listing: pa.Table,
    y_true: Any,
    probs: Any,
    point: OperatingPoint,
    image_px: int,
) -> list[WrongImage]:
    indices = metrics.most_wrong(y_true, probs, point, NUM_WRONG)
    uris = table["uri"].take(pa.array(indices, pa.int64()))
    rows = listing.take(pc.index_in(uris, listing["uri"])).to_pylist()
    return [
        WrongImage(row["uri"], int(y_true[index]), float(probs[index]), thumbnail(image.pixels))
        for index, row, image in zip(indices, rows, read_all(rows, image_px), strict=True)
        if image.pixels is not None
    ]


def summary(examination: Examination) -> str:
    """The main figures in a few lines."""
    lines = [
        f"images {examination.num_images:,} ({examination.num_normal:,} {CLASSES[0]},"
        f" {examination.num_pneumonia:,} {CLASSES[1]}), patients {examination.num_patients:,}"
    ]
    shown = {"AUC": examination.threshold_free["auc"]}
    at = examination.at_operating_point.estimates
    shown |= {n: at[n] for n in ("sensitivity", "specificity", "accuracy", "balanced_accuracy")}
    for name, estimate in shown.items():
        lines.append(f"  {name.replace('_', ' '):18} {_interval(estimate)}")
    point = examination.operating_point
    lines.append(f"  at threshold {point.threshold:.4f} ({point.rule}, chosen on validation)")
    return "\n".join(lines)


def _interval(estimate: metrics.Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
