"""The validation images of a checkpoint: their logits, and what is chosen on them.

A row is a validation image as it is (`change` is empty), or under an acquisition change; `image` is
the number of the image that both have in common. Nothing in it names a patient or a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cxr import metrics
from cxr.metrics import CalibrateOn, OperatingPoint, Robustness, Scaling

COLUMNS: Final = ("label", "logit", "subtype", "patient", "change", "image")


@dataclass(frozen=True)
class Calibration:
    """What is chosen on validation images."""

    scaling: Scaling
    operating_point: OperatingPoint
    robustness: Robustness | None
    """None where no image was scored under changes."""
    calibrated_on: CalibrateOn
    """`clean` where there is nothing else."""


def add_changed(
    clean: pa.Table, images: npt.NDArray[np.int64], logits: Mapping[str, npt.ArrayLike]
) -> pa.Table:
    """Append rows of images under acquisition changes.

    Args:
        clean: a row of each validation image as it is, (N,): label, logit, subtype, patient.
        images: positions of those that were scored under changes, (K,).
        logits: by change, the logit of each of them, (K,).
    """
    clean = complete(clean)
    chosen = clean.take(pa.array(images, pa.int64()))
    tables = [clean]
    for change, values in logits.items():
        own = {"logit": pa.array(values, pa.float64()), "change": pa.array([change] * len(chosen))}
        columns = {name: own.get(name, chosen[name]) for name in clean.column_names}
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def complete(table: pa.Table) -> pa.Table:
    """A table with `change` and `image`; without them all rows are images as they are."""
    if "change" not in table.column_names:
        table = table.append_column("change", pa.array([""] * len(table), pa.string()))
    if "image" not in table.column_names:
        table = table.append_column("image", pa.array(np.arange(len(table))))
    return table


def anonymize(table: pa.Table) -> pa.Table:
    """The columns of `COLUMNS` alone, patients as consecutive numbers."""
    table = complete(table)
    patients = np.unique(np.asarray(table["patient"]), return_inverse=True)[1]
    columns = {name: table[name] for name in COLUMNS} | {"patient": patients.astype(np.int64)}
    return pa.table(columns)


def clean_rows(table: pa.Table) -> pa.Table:
    """The rows of images as they are."""
    return table.filter(pc.equal(table["change"], ""))


def changed_images(table: pa.Table) -> npt.NDArray[np.int64]:
    """The numbers of the images that were scored under changes, sorted, int64 (K,)."""
    return np.unique(np.asarray(table["image"])[_is_changed(table)])


def choose(
    table: pa.Table, scaling: Scaling, rule: str, calibrate_on: CalibrateOn
) -> OperatingPoint:
    """The operating point that a rule picks on validation images.

    Raises:
        SettingsError: an unknown rule.
        DataError: a class is absent.
    """
    return metrics.choose_operating_point(
        np.asarray(table["label"]),
        metrics.probabilities(np.asarray(table["logit"]), scaling),
        rule,
        is_changed=_is_changed(table),
        on_changed=calibrate_on == "stressed",
    )


def calibrate(table: pa.Table, rule: str, calibrate_on: CalibrateOn) -> Calibration:
    """Fit the scaling, choose the operating point, and examine the changes.

    Args:
        table: of `COLUMNS`.
        rule: by which the operating point is chosen.
        calibrate_on: which images decide; `clean` if none was scored under changes.

    Raises:
        DataError: a class is absent.
    """
    is_changed = _is_changed(table)
    if not is_changed.any():
        calibrate_on = "clean"
    y_true, logits = np.asarray(table["label"]), np.asarray(table["logit"])
    used = np.full(len(table), True) if calibrate_on == "stressed" else ~is_changed
    scaling = metrics.fit_scaling(y_true[used], logits[used], is_changed[used])
    point = choose(table, scaling, rule, calibrate_on)
    robustness = _examine(table, scaling, point) if is_changed.any() else None
    return Calibration(scaling, point, robustness, calibrate_on)


def _is_changed(table: pa.Table) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.not_equal(table["change"], ""))


def _examine(table: pa.Table, scaling: Scaling, point: OperatingPoint) -> Robustness:
    probs = metrics.probabilities(np.asarray(table["logit"]), scaling)
    change, image = np.asarray(table["change"]), np.asarray(table["image"])
    names = [name for name in dict.fromkeys(change.tolist()) if name]
    # Every change has the same images in the same order.
    rows = {name: np.flatnonzero(change == name) for name in names}
    clean = np.flatnonzero(change == "")
    position = dict(zip(image[clean].tolist(), clean.tolist(), strict=True))
    own = np.array([position[number] for number in image[rows[names[0]]].tolist()])
    return metrics.examine_changes(
        np.asarray(table["label"])[own],
        probs[own],
        {name: probs[members] for name, members in rows.items()},
        patients=np.asarray(table["patient"])[own].tolist(),
        operating_point=point,
    )
