"""From the scores of images to those of their studies, or of their patients."""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from cxr.labels import CLASSES
from cxr.metrics import OperatingPoint

STUDIES: Final = pa.schema(
    [
        ("num_images", pa.int64()),
        ("num_scored", pa.int64()),
        ("num_refused", pa.int64()),
        ("num_unreadable", pa.int64()),
        ("num_frontal", pa.int64()),
        ("max_prob_pneumonia", pa.float64()),
        ("mean_prob_pneumonia", pa.float64()),
        ("prediction", pa.string()),
    ]
)
"""The columns of `studies.parquet` after that of the study or patient. `num_frontal` scored images
are neither lateral nor oblique by their header; the probabilities are theirs, null if there is
none; `prediction` is the class of the highest at the operating point."""


_SUMS: Final = ("num_images", "num_scored", "num_refused", "num_unreadable", "num_frontal")


def group_scores(scores: pa.Table, group: str, point: OperatingPoint) -> pa.Table:
    """A row for each study or patient, sorted by it; images without one are left out.

    Args:
        scores: schema `SCORES` and a column `group`.
        group: name of the column that says which study or patient an image is of.
        point: the operating point.

    Returns:
        The column `group`, and those of `STUDIES`.
    """
    return merge_groups([partial_groups(scores, group)], group, point)


def partial_groups(scores: pa.Table, group: str) -> pa.Table:
    """What some images add to their studies or patients, a row for each.

    Args:
        scores: schema `SCORES` and a column `group`.
        group: name of the column.

    Returns:
        The column `group`, sums of images, and `highest` and `sum` of the probabilities of the
        frontal ones, null if there is none.
    """
    scored = pc.equal(scores["status"], "scored")
    # As everywhere, a projection that is not given is taken as frontal.
    frontal = pc.and_(scored, pc.is_in(scores["view"], pa.array(["frontal", ""])))
    marks = {
        "num_images": pc.is_valid(scores["status"]),
        "num_scored": scored,
        "num_refused": pc.equal(scores["status"], "refused"),
        "num_unreadable": pc.equal(scores["status"], "unreadable"),
        "num_frontal": frontal,
    }
    prob = pc.if_else(frontal, scores["prob_pneumonia"], pa.scalar(None, pa.float64()))
    columns = {name: pc.cast(mark, pa.int64()) for name, mark in marks.items()}
    table = pa.table({group: scores[group], "highest": prob, "sum": prob, **columns})
    return _aggregate(table.filter(pc.fill_null(pc.not_equal(table[group], ""), False)), group)


def merge_groups(partial: Sequence[pa.Table], group: str, point: OperatingPoint) -> pa.Table:
    """A row for each study or patient, sorted by it.

    Args:
        partial: as `partial_groups` gives them, in the order of the manifest.
        group: name of the column.
        point: the operating point.

    Returns:
        The column `group`, and those of `STUDIES`.
    """
    merged = _aggregate(pa.concat_tables(partial), group).sort_by(group)
    highest = merged["highest"]
    classes = pc.if_else(pc.greater_equal(highest, point.threshold), CLASSES[1], CLASSES[0])
    means = pc.divide(merged["sum"], pc.cast(merged["num_frontal"], pa.float64()))
    return pa.table(
        [merged[group], *(merged[name] for name in _SUMS), highest, means, classes],
        schema=studies_schema(group),
    )


def studies_schema(group: str) -> pa.Schema:
    """The columns of `studies.parquet`."""
    return pa.schema([(group, pa.string()), *STUDIES])


def _aggregate(table: pa.Table, group: str) -> pa.Table:
    # One thread: the last digits of a sum depend on the order.
    sums = [(name, "sum") for name in ("sum", *_SUMS)]
    grouped = table.group_by(group, use_threads=False).aggregate([("highest", "max"), *sums])
    return pa.table(
        {
            group: grouped[group],
            "highest": grouped["highest_max"],
            **{name: grouped[f"{name}_sum"] for name, _ in sums},
        }
    )
