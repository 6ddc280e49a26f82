"""Explain images: of each a heatmap, as an array and over the radiograph, and a page with all.

0001.map.npy        the heatmap of the first image, float32 (S, S), 0 to 1
0001.overlay.png    the radiograph as the model takes it, (S, S), with the heatmap over it
explanations.csv    a row for each image: its files and its probability, or why it has none
index.html          all of them on one page

Numbers follow the listing: files by uri, then archives by uri, their members in the archive's
order. Files are not named after the images, whose names may tell whom they show.
"""

import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pyarrow import csv

from cxr import metrics, sources, storage
from cxr.explanations.heatmaps import compute_logits, explain
from cxr.explanations.settings import Method
from cxr.images.read import Image, read_images, without_numbers
from cxr.inference.engine import batch_size
from cxr.labels import CLASSES
from cxr.models.checkpoint import Checkpoint, package_versions
from cxr.progress import Progress
from cxr.reports import (
    ExplanationReport,
    FailureGroup,
    ScoredImage,
    explanation_page,
    overlay,
    thumbnail,
)

MIN_DIGITS: Final = 4
"""Of the numbers that files are named by."""

EXPLANATIONS: Final = pa.schema(
    [
        ("number", pa.string()),
        ("uri", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("prob_pneumonia", pa.float64()),
        ("prediction", pa.string()),
        ("border_share", pa.float64()),
        ("map", pa.string()),
        ("overlay", pa.string()),
    ]
)
"""The columns of explanations.csv. `status` is `explained`, `refused` or `unreadable`, with a
`reason` unless explained; the others are empty then. `border_share` is `metrics.border_share` of
the heatmap; `map` and `overlay` are names of files."""

_METHODS: Final[Mapping[Method, str]] = {
    "grad_cam": "Grad-CAM at the last maps of the backbone.",
    "occlusion": "Occlusion: what the output loses where a square covers the image.",
}


@dataclass(frozen=True)
class Explained:
    """What became of the images."""

    num_listed: int
    num_explained: int
    num_refused: int
    num_unreadable: int
    report: str
    """The page."""


def explain_inputs(
    inputs: Sequence[str],
    trained: Checkpoint,
    output: str,
    *,
    method: Method,
    limit: int,
    columns: Sequence[str] = (),
    any_body_part: bool = False,
    any_view: bool = False,
) -> Explained:
    """Explain the images that the inputs name, in this process.

    Args:
        inputs: as `sources.list_inputs` takes them.
        trained: the classifier.
        output: folder, empty.
        method: of the heatmaps.
        limit: at most so many images are read, the first of the listing.
        columns: what manifests call their columns, see `sources.list_inputs`.
        any_body_part: also explain DICOM files of body parts other than the chest.
        any_view: also explain DICOM files of lateral and oblique views.

    Raises:
        DataError: the inputs name nothing.
        StorageError: the folder cannot be written, or an input cannot be listed.
    """
    listing = list_images(inputs, columns)
    rows = listing.slice(0, limit).to_pylist()
    digits = max(MIN_DIGITS, len(str(len(rows))))
    table: list[dict[str, Any]] = []
    shown: list[ScoredImage] = []
    images = read_images(
        rows, trained.recipe.image_px, any_body_part=any_body_part, any_view=any_view
    )
    # With an iterator on both sides, the next batch is fetched while one is explained.
    pairs = zip(rows, images, strict=True)
    with Progress(f"explaining with {trained.recipe.name}", len(rows)) as progress:
        while batch := list(itertools.islice(pairs, batch_size(gpu=False))):
            explained = _explain_batch([image for _, image in batch], trained, method)
            for (row, image), result in zip(batch, explained, strict=True):
                number = f"{len(table) + 1:0{digits}}"
                table.append(_to_row(number, row, image))
                if result is not None:
                    table[-1] |= _write(output, number, image, result, trained)
                    shown.append(_to_shown(table[-1], image, result[1]))
            progress.add(len(batch))
    written = pa.Table.from_pylist(table, schema=EXPLANATIONS)
    sink = pa.BufferOutputStream()
    csv.write_csv(written, sink)
    storage.write_bytes(storage.join(output, "explanations.csv"), sink.getvalue().to_pybytes())
    report = storage.join(output, "index.html")
    page = explanation_page(
        ExplanationReport(
            title=f"{trained.title}: where it looked in {len(shown):,} radiographs",
            note=trained.note,
            inputs=[storage.absolute(uri) for uri in inputs],
            num_listed=len(listing),
            num_read=len(rows),
            method=_METHODS[method],
            border_share=pc.mean(written["border_share"]).as_py(),
            operating_point=trained.operating_point,
            images=shown,
            failures=_failures(table),
            facts={
                "checkpoint": trained.fingerprint,
                "recipe": trained.recipe.name,
                "method": method,
                "versions": package_versions(),
            },
        )
    )
    storage.write_bytes(report, page.encode())
    counts = Counter(row["status"] for row in table)
    return Explained(
        num_listed=len(listing),
        num_explained=len(shown),
        num_refused=counts["refused"],
        num_unreadable=counts["unreadable"],
        report=report,
    )


def list_images(inputs: Sequence[str], columns: Sequence[str] = ()) -> pa.Table:
    """Every image that the inputs name, of schema `sources.INVENTORY`, in the order of scoring.

    Raises:
        DataError: an input does not exist, or they name nothing.
    """
    listed = sources.list_inputs(inputs, columns)
    tables = {"": listed.table().sort_by("uri")}
    for file, paths in listed.archives.items():
        tables[file] = listed.join_entries(sources.list_archive(file, paths)[0])
    return pa.concat_tables(tables[file] for file in sorted(tables))


def _explain_batch(
    images: Sequence[Image], trained: Checkpoint, method: Method
) -> list[tuple[float, NDArray[np.float32]] | None]:
    """Calibrated probability and heatmap of each image; None for those without pixels."""
    read = [image.pixels for image in images if image.pixels is not None]
    if not read:
        return [None] * len(images)
    pixels, normalization = np.stack(read), trained.recipe.normalization
    logits = compute_logits(trained.model, normalization, pixels)
    probs = metrics.probabilities(logits, trained.scaling).tolist()
    results = zip(probs, explain(trained.model, normalization, pixels, method), strict=True)
    return [None if image.pixels is None else next(results) for image in images]


def _to_row(number: str, row: Mapping[str, Any], image: Image) -> dict[str, Any]:
    status = "explained" if image.status == "ok" else image.status
    return {"number": number, "uri": row["uri"], "status": status, "reason": image.reason}


def _write(
    output: str,
    number: str,
    image: Image,
    result: tuple[float, NDArray[np.float32]],
    trained: Checkpoint,
) -> dict[str, Any]:
    """Write the files of an image; returns what its row says of them."""
    prob, heatmap = result
    assert image.pixels is not None
    array, picture = io.BytesIO(), io.BytesIO()
    np.save(array, heatmap)
    PillowImage.fromarray(overlay(image.pixels, heatmap)).save(picture, "PNG")
    names = {"map": f"{number}.map.npy", "overlay": f"{number}.overlay.png"}
    for name, file in zip(names.values(), (array, picture), strict=True):
        storage.write_bytes(storage.join(output, name), file.getvalue())
    positive = prob >= trained.operating_point.threshold
    return {
        "prob_pneumonia": prob,
        "prediction": CLASSES[positive],
        "border_share": metrics.border_share(heatmap),
        **names,
    }


def _to_shown(row: Mapping[str, Any], image: Image, heatmap: NDArray[np.float32]) -> ScoredImage:
    assert image.pixels is not None
    return ScoredImage(
        number=row["number"],
        uri=row["uri"],
        prob=row["prob_pneumonia"],
        positive=row["prediction"] == CLASSES[1],
        warnings=image.warnings,
        thumbnail=thumbnail(image.pixels),
        heatmap=thumbnail(image.pixels, heatmap),
    )


def _failures(table: Sequence[Mapping[str, Any]]) -> list[FailureGroup]:
    uris: dict[tuple[str, str], list[str]] = {}
    for row in table:
        if row["status"] != "explained":
            key = (row["status"], without_numbers(row["reason"]))
            uris.setdefault(key, []).append(row["uri"])
    return [
        FailureGroup(status, reason, len(named), named) for (status, reason), named in uris.items()
    ]
