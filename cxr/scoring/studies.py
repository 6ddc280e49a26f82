"""From the scores of images to those of their studies, or of their patients."""

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


def group_scores(scores: pa.Table, group: str, point: OperatingPoint) -> pa.Table:
    """A row for each study or patient, sorted by it; images without one are left out.

    Args:
        scores: schema `SCORES` and a column `group`.
        group: name of the column that says which study or patient an image is of.
        point: the operating point.

    Returns:
        The column `group`, and those of `STUDIES`.
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
    table = pa.table({group: scores[group], "prob": prob, **columns})
    known = pc.fill_null(pc.not_equal(table[group], ""), False)
    grouped = (
        table.filter(known)
        # One thread: a mean is a sum, whose last digits depend on the order.
        .group_by(group, use_threads=False)
        .aggregate([("prob", "max"), ("prob", "mean"), *((name, "sum") for name in columns)])
        .sort_by(group)
    )
    highest = grouped["prob_max"]
    classes = pc.if_else(pc.greater_equal(highest, point.threshold), CLASSES[1], CLASSES[0])
    return pa.table(
        [
            grouped[group],
            *(grouped[f"{name}_sum"] for name in columns),
            highest,
            grouped["prob_mean"],
            classes,
        ],
        schema=pa.schema([(group, pa.string()), *STUDIES]),
    )
