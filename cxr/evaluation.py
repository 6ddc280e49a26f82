"""Examine a trained classifier on a split: figures with intervals, predictions, a page."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import cluster, metrics, sources, storage
from cxr.cluster.counter import ClusterProgress
from cxr.datasets.headers import list_labeled_set
from cxr.datasets.pixels import decode_shards, describe_duplicates
from cxr.datasets.shards import Shards
from cxr.datasets.splits import Role, Splits
from cxr.errors import CheckpointError, DataError, SettingsError
from cxr.images.read import read_all
from cxr.inference.engine import CPU_THREADS, batch_size
from cxr.inference.networks import send_classifier
from cxr.inference.predictor import Predictor
from cxr.labels import CLASSES
from cxr.metrics import Examination, OperatingPoint, Robustness, Subgroup
from cxr.models.checkpoint import Checkpoint
from cxr.reports import EvaluationReport, WrongImage, evaluation_page, thumbnail
from cxr.sources import LabeledSet
from cxr.sources.settings import SetSettings, Split

NUM_WRONG = 12
"""Thumbnails of the most wrong images."""

TRAINED_ON = "left out: the checkpoint was trained or validated on this image"

NOT_VALIDATED = "left out: not among the images that validated the checkpoint"


@dataclass(frozen=True)
class Evaluated:
    """A finished examination."""

    examination: Examination
    subgroups: tuple[Subgroup, ...]
    """Of the columns that were asked for."""
    robustness: Robustness | None
    """Figures under acquisition changes; None if none were asked for, or images are too small."""
    report: str
    """The page."""
    num_skipped: int


def evaluate(
    trained: Checkpoint,
    where: str,
    split: Split,
    output: str,
    *,
    settings: SetSettings,
    operating_point: OperatingPoint,
    cache: str,
    name: str,
    by: Sequence[str] = (),
    stress_images: int = metrics.DEFAULT_STRESSED,
    gpu: bool = False,
) -> Evaluated:
    """Score a split, examine the scores and write metrics.json, predictions.parquet, report.html.

    Args:
        trained: the classifier.
        where: data as `sources.list_set` takes them.
        split: what to evaluate on.
        output: folder, empty.
        settings: how the set is read, see `read_as_trained`.
        operating_point: chosen on validation.
        cache: folder of decoded pixels.
        name: of the data, for the page.
        by: columns of the manifest; each of their values is examined by itself, too.
        stress_images: at most so many are scored under each acquisition change; 0 for none.
        gpu: compute on GPUs.

    Raises:
        DataError: the split is missing, or has a patient who is in another split or whom the
            checkpoint was trained on.
        SettingsError: a column of `by` is not there, or does not form groups.
        CheckpointError: it does not say what validated it.
    """
    data = list_labeled_set(where, settings, cache)
    if data.skipped:
        print(f"{where}: {sources.in_words(data.skipped)}", flush=True)
    print(data.patients.sentence, flush=True)
    groups = read_groups(data, by)
    splits = None if trained.splits is None else Splits(trained.splits)
    listing, remark = choose_images(data, split, splits)
    folds = np.zeros(len(listing), np.int64)
    decoded = decode_shards(listing, folds, trained.recipe.image_px, cache)
    pixels = leave_out(decoded, split, splits)
    if not len(pixels.table):
        raise DataError(f"{where}: {TRAINED_ON}: all {len(decoded.table):,} of them.")
    table = score_shards(pixels, trained, gpu=gpu)
    y_true = np.asarray(table["label"])
    probs = metrics.probabilities(np.asarray(table["logit"]), trained.scaling)
    examination = metrics.examine(
        y_true,
        probs,
        patients=table["patient"].to_pylist(),
        subtypes=table["subtype"].to_pylist(),
        operating_point=operating_point,
    )
    subgroups = metrics.examine_subgroups(
        {
            column: [value_of[uri] for uri in table["uri"].to_pylist()]
            for column, value_of in groups.items()
        },
        y_true,
        probs,
        patients=table["patient"].to_pylist(),
        operating_point=operating_point,
    )
    robustness, parameters, unstressed = _stress(
        pixels, table, probs, trained, operating_point, stress_images, gpu=gpu
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
    distances = None if trained.distribution is None else np.asarray(table["distance"])
    facts = _facts(trained, pixels, split)
    facts["unusual"] = (
        None
        if distances is None or trained.distribution is None
        else float((distances > trained.distribution.threshold).mean())
    )
    figures = examination.to_json() | {
        "subgroups": [group.to_json() for group in subgroups],
        "robustness": None if robustness is None else robustness.to_json(),
    }
    storage.write_json(storage.join(output, "metrics.json"), facts | figures)
    failed = pixels.failed.to_pydict()
    num_trained_on = failed["reason"].count(TRAINED_ON)
    notes = [data.patients.sentence, remark, describe_duplicates(pixels), unstressed]
    if num_trained_on:
        notes.append(
            f"{num_trained_on:,} images were left out: the checkpoint was trained or validated on"
            " the same images."
        )
    notes = [note for note in notes if note]
    for note in notes[1:]:
        print(note, flush=True)
    notes += [
        f"skipped: {uri.rsplit('/', 1)[-1]} ({reason})"
        for uri, reason in zip(failed["uri"], failed["reason"], strict=True)
    ]
    page = evaluation_page(
        EvaluationReport(
            title=f"{trained.title}: evaluation on the {split} split",
            note=trained.note,
            data=name,
            split=split,
            examination=examination,
            subgroups=subgroups,
            robustness=robustness,
            parameters=parameters,
            y_true=y_true,
            probs=probs,
            history=trained.provenance.get("history", []),
            members=[part["history"] for part in trained.provenance.get("members", [])],
            recipe=dataclasses.asdict(trained.recipe),
            provenance=facts,
            distances=distances,
            distribution=trained.distribution,
            wrong=_most_wrong(table, listing, y_true, probs, operating_point, trained),
            notes=notes,
        )
    )
    report = storage.join(output, "report.html")
    storage.write_bytes(report, page.encode())
    return Evaluated(examination, tuple(subgroups), robustness, report, len(pixels.failed))


def _stress(
    pixels: Shards,
    table: pa.Table,
    probs: NDArray[np.float64],
    trained: Checkpoint,
    point: OperatingPoint,
    num_images: int,
    *,
    gpu: bool,
) -> tuple[Robustness | None, dict[str, str], str]:
    """Figures under acquisition changes, each one's parameter, and why there are none if so."""
    if not num_images:
        return None, {}, ""
    from cxr.datasets import stress  # PyTorch takes seconds.

    if remark := stress.why_not(trained.recipe.image_px):
        return None, {}, remark
    chosen = stress.choose_stressed(table, num_images)
    rows = table.take(pa.array(chosen))
    logits = stress.score_changed(
        pixels, rows["row"], send_classifier(trained, gpu=gpu), trained.recipe.name, gpu=gpu
    )
    robustness = metrics.examine_changes(
        np.asarray(rows["label"]),
        probs[chosen],
        {name: metrics.probabilities(own, trained.scaling) for name, own in logits.items()},
        patients=rows["patient"].to_pylist(),
        operating_point=point,
    )
    return robustness, stress.describe_changes(), ""


def read_groups(data: LabeledSet, by: Sequence[str]) -> dict[str, dict[str, str]]:
    """The values of the columns that form subgroups.

    Args:
        data: listed from a manifest, unless `by` is empty.
        by: names of columns of the manifest.

    Returns:
        By column, the value of each image by its uri; empty where the cell is empty.

    Raises:
        SettingsError: there is no manifest, it lacks a column, or one has too many values.
    """
    if not by:
        return {}
    if data.manifest is None:
        raise SettingsError(f"by: {data.uri} is no manifest, so it has no columns. Leave --by out.")
    groups = {}
    for column in by:
        if column not in data.manifest.column_names:
            choices = ", ".join(data.manifest.column_names)
            raise SettingsError(f"by: {data.uri} has no column {column!r}. Choices: {choices}.")
        values = [(cell or "").strip() for cell in data.manifest[column].to_pylist()]
        metrics.check_values(column, values)
        rows = zip(data.table["uri"].to_pylist(), data.table["row"].to_pylist(), strict=True)
        groups[column] = {uri: values[row] for uri, row in rows}
    return groups


def score_shards(pixels: Shards, trained: Checkpoint, *, gpu: bool = False) -> pa.Table:
    """The logit of every image of decoded shards.

    Returns:
        `pixels.table` with the columns `logit` and `distance` (to the training images, null if the
        checkpoint does not know them), float64.
    """
    num_images = len(pixels.table)
    num_tasks = sum(len(paths) for paths in pixels.parts.values())
    pool = cluster.pool(num_tasks, CPU_THREADS, gpu=gpu)
    distribution = trained.distribution
    network = send_classifier(
        trained, gpu=gpu, appended=distribution.output if distribution else None
    )
    with ClusterProgress(f"scoring with {trained.recipe.name}", num_images) as progress:
        dataset = pool.map(
            pixels.dataset(columns=("row", "x")),
            Predictor,
            (
                network,
                trained.recipe.image_px,
                pool.share.threads,
                progress.counter,
                distribution,
            ),
            batch_size(gpu),
        )
        parts = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    scored = pa.concat_tables(parts).sort_by("row")
    order = pc.index_in(pixels.table["row"], scored["row"])
    table = pixels.table
    for name in ("logit", "distance"):
        table = table.append_column(name, scored[name].take(order))
    return table


def read_as_trained(given: SetSettings, trained: Checkpoint) -> SetSettings:
    """The settings of a set, those that are not given as training had them."""
    defaults, kept = SetSettings(), trained.provenance.get("set", {})
    missing: dict[str, Any] = {
        name: tuple(kept[name]) if isinstance(value, tuple) else kept[name]
        for name, value in vars(defaults).items()
        if name in kept and getattr(given, name) == value
    }
    return dataclasses.replace(given, **missing)


def choose_images(data: LabeledSet, split: Split, splits: Splits | None) -> tuple[pa.Table, str]:
    """The radiographs to evaluate on.

    Args:
        data: the set.
        split: as `evaluate` takes it.
        splits: of the checkpoint; None if it has none.

    Returns:
        A table of schema `sources.LISTING`, and what a report has to say of the choice, or empty.

    Raises:
        DataError: the split is missing, or has a patient who is in another split or whom the
            checkpoint was trained on.
        CheckpointError: it does not say what validated it.
    """
    if split == "validation":
        if splits is None:
            raise CheckpointError(
                "--split validation: this checkpoint was written by a version of cxr that did not"
                " keep which images validated. Train it again, or choose another --split."
            )
        if not splits.patients("validation"):
            raise CheckpointError(
                "--split validation: each member of this checkpoint was trained on the images that"
                " validated the others, so that none is left for their average. Evaluate it on"
                " patients held out by --test-fraction, or on other data."
            )
        return _of_role(data, splits, "validation")
    if split == "test" and not len(data.find_split("test")):
        if splits is not None and splits.patients("test"):
            listing, remark = _of_role(data, splits, "test")
            held_out = "The data have no test split: these are the patients whom training held out."
            return listing, f"{held_out} {remark}".strip()
        raise DataError(
            f"{data.uri}: no test split, and training held no patients out. Evaluate with --split"
            " validation, or train with --test-fraction 0.2."
        )
    listing = data.split(split)
    if split == "train":
        return listing, ""
    data.refuse_shared_patients()
    if splits is None:
        return listing, (
            "The checkpoint was written by a version of cxr that did not keep what it was trained"
            " on: patients and images of training are not recognized."
        )
    # A number of a file is not one of a person: copies of images are recognized by their content.
    if data.patients.how:
        _refuse_trained_patients(data, listing, split, splits)
    return listing, ""


def _of_role(data: LabeledSet, splits: Splits, role: Role) -> tuple[pa.Table, str]:
    """The radiographs of the patients of one role in training."""
    train = data.split("train")
    listing = train.filter(splits.has_patient(train["patient_digest"], role))
    num_known = len(splits.patients(role))
    num_patients = pc.count_distinct(listing["patient"]).as_py()
    if not num_patients:
        raise DataError(
            f"{data.uri}: none of the {num_known:,} {role} patients of the checkpoint is in it."
            " Give the data that it was trained on."
        )
    if missing := num_known - num_patients:
        return listing, (
            f"{missing:,} of the {num_known:,} {role} patients of the checkpoint are not in these"
            " data."
        )
    return listing, ""


def _refuse_trained_patients(
    data: LabeledSet, listing: pa.Table, split: str, splits: Splits
) -> None:
    known = splits.has_patient(listing["patient_digest"], "train", "validation")
    shared = listing.filter(known)
    if len(shared):
        num_patients = pc.count_distinct(shared["patient"]).as_py()
        raise DataError(
            f"{data.uri}: the checkpoint was trained or validated on {num_patients:,} of the"
            f" patients of {split}, such as that of {shared['uri'][0]}. Figures would be too good."
            " If they are other people with the same numbers, give them other ones in the column"
            " patient."
        )


def leave_out(pixels: Shards, split: Split, splits: Splits | None) -> Shards:
    """Leave out images that the checkpoint was trained on, or that did not validate it.

    Args:
        pixels: the decoded images of the split.
        split: as `evaluate` takes it.
        splits: of the checkpoint; None if it has none.
    """
    if splits is None or split == "train":
        return pixels
    if split == "validation":
        used, reason = splits.has_image(pixels.table, "validation"), NOT_VALIDATED
    else:
        known, reason = splits.has_image(pixels.table, "train", "validation"), TRAINED_ON
        used = ~known
    others = pixels.table.filter(~used)
    reasons = pa.array([reason] * len(others), pa.string())
    failed = others.append_column("reason", reasons).select(pixels.failed.column_names)
    return dataclasses.replace(
        pixels,
        table=pixels.table.filter(used),
        failed=pa.concat_tables([pixels.failed, failed]),
    )


def _facts(trained: Checkpoint, pixels: Shards, split: str) -> dict[str, Any]:
    left_out = ("history", "members", "weights")
    kept = {k: v for k, v in trained.provenance.items() if k not in left_out}
    weights = dict(trained.provenance.get("weights", {}))
    weights["source"] = Path(str(weights.get("source", ""))).name
    return {
        "split": split,
        "fingerprint_of_split": pixels.fingerprint,
        "num_left_out": len(pixels.failed),
        "checkpoint": trained.fingerprint,
        "precision": trained.precision,
        "calibration": dataclasses.asdict(trained.scaling),
        "calibrated_on": trained.calibrated_on,
        "trained": kept | {"weights": weights},
    }


def _most_wrong(
    table: pa.Table,
    listing: pa.Table,
    y_true: Any,
    probs: Any,
    point: OperatingPoint,
    trained: Checkpoint,
) -> list[WrongImage]:
    indices = metrics.most_wrong(y_true, probs, point, NUM_WRONG)
    uris = table["uri"].take(pa.array(indices, pa.int64()))
    rows = listing.take(pc.index_in(uris, listing["uri"])).to_pylist()
    images = read_all(rows, trained.recipe.image_px)
    read = [
        (index, row["uri"], image.pixels)
        for index, row, image in zip(indices, rows, images, strict=True)
        if image.pixels is not None
    ]
    if not read:
        return []
    # Not before: PyTorch takes seconds, and nothing else in this process needs it on CPUs.
    from cxr.explanations.heatmaps import explain

    pixels = np.stack([image for _, _, image in read])
    heatmaps = explain(trained.model, trained.recipe.normalization, pixels)
    return [
        WrongImage(
            uri=uri,
            y_true=int(y_true[index]),
            prob=float(probs[index]),
            thumbnail=thumbnail(image),
            heatmap=thumbnail(image, heatmap),
        )
        for (index, uri, image), heatmap in zip(read, heatmaps, strict=True)
    ]


def summary(
    examination: Examination,
    subgroups: Sequence[Subgroup] = (),
    robustness: Robustness | None = None,
) -> str:
    """The main figures in a few lines, those under changes, and a line for each subgroup."""
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
    if robustness:
        lines.append(
            f"under {len(robustness.changes)} acquisition changes, {robustness.num_images:,} images"
            " (mean; worst)"
        )
        for name, estimate in robustness.mean.items():
            worst = robustness.worst(name)
            lowest = f"{_interval(robustness.changes[worst][name])} ({worst})" if worst else ""
            label = "AUC" if name == "auc" else name
            lines.append(f"  {label:18} {_interval(estimate)}; {lowest or 'undefined'}")
    if subgroups:
        rows = [
            [
                f"{group.column} {group.value}",
                *(_interval(estimate) for estimate in group.estimates.values()),
                group.size,
            ]
            for group in subgroups
        ]
        rows.insert(0, ["subgroup", "AUC", "sensitivity", "specificity", "patients"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    return "\n".join(lines)


def _interval(estimate: metrics.Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
