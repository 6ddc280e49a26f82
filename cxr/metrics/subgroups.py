"""The metrics of groups of images, such as those of one sex or one scanner."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cxr.errors import SettingsError
from cxr.metrics.examination import Estimate, examine
from cxr.metrics.operating_point import OperatingPoint

SMALL_GROUP: Final = 20
"""Patients of a class below which a group is called small: with 20 of 20 predicted correctly, the
95 % interval of a sensitivity still begins at 0.83 (Clopper and Pearson 1934)."""

MAX_VALUES: Final = 20
"""Values of a column that can be a group each; a column with more is probably a name, a date or a
measurement."""

NOT_GIVEN: Final = "not given"
"""The group of images whose cell is empty."""


@dataclass(frozen=True)
class Subgroup:
    """The metrics of the images that share a value."""

    column: str
    value: str
    """`NOT_GIVEN` where the cell is empty."""
    num_images: int
    num_patients: int
    num_normal: int
    num_pneumonia: int
    num_patients_normal: int
    """Patients with a normal image; one may also have an image with pneumonia."""
    num_patients_pneumonia: int
    estimates: Mapping[str, Estimate]
    """auc, and sensitivity and specificity at the operating point."""

    @property
    def is_small(self) -> bool:
        """Whether a class has fewer than `SMALL_GROUP` patients."""
        return min(self.num_patients_normal, self.num_patients_pneumonia) < SMALL_GROUP

    @property
    def size(self) -> str:
        """The patients of each class, in words: `"small: n = 7 normal, 31 pneumonia"`."""
        small = "small: " if self.is_small else ""
        return (
            f"{small}n = {self.num_patients_normal:,} normal,"
            f" {self.num_patients_pneumonia:,} pneumonia"
        )

    def undefined_because(self, name: str) -> str:
        """Why a metric is undefined; empty if it is not."""
        if self.estimates[name].value is not None:
            return ""
        return "no pneumonia images" if not self.num_pneumonia else "no normal images"

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, numbers and texts; an undefined metric has its reason."""
        return {
            **{name: value for name, value in vars(self).items() if name != "estimates"},
            "is_small": self.is_small,
            "estimates": {
                name: asdict(estimate) | {"undefined_because": self.undefined_because(name)}
                for name, estimate in self.estimates.items()
            },
        }


def check_values(column: str, values: Sequence[str]) -> None:
    """Refuse a column that does not form groups.

    Args:
        column: its name.
        values: its cells, of the whole set: a small split may have few values of many.

    Raises:
        SettingsError: more than `MAX_VALUES` values; none of them is in the message.
    """
    num_values = len({value for value in values if value})
    if num_values > MAX_VALUES:
        raise SettingsError(
            f"by: column {column!r} has {num_values:,} values, more than {MAX_VALUES}. Give a"
            " column of groups, such as age bands; names, dates and measurements are none."
        )


def examine_subgroups(
    columns: Mapping[str, Sequence[str]],
    y_true: npt.ArrayLike,
    probs: npt.ArrayLike,
    *,
    patients: Sequence[str],
    operating_point: OperatingPoint,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[Subgroup]:
    """The metrics of each value of each column, with intervals as `examine` has them.

    Args:
        columns: by name, the value of each image, N; empty where it is not given.
        y_true: 0 normal, 1 pneumonia, (N,).
        probs: calibrated probabilities of pneumonia, 0-1, (N,).
        patients: key of the patient of each image, N.
        operating_point: chosen on validation images, never on those evaluated here.
        num_resamples: of the bootstrap of each group, at least 1.
        seed: of the bootstrap of each group.

    Returns:
        Subgroups in the order of the columns, then of the values; `NOT_GIVEN` comes last.

    Raises:
        DataError: as `examine`.
    """
    label, prob = np.asarray(y_true), np.asarray(probs, dtype=np.float64)
    patient = np.asarray(patients, dtype=np.str_)
    groups = []
    for column, cells in columns.items():
        values = np.asarray(cells, dtype=np.str_)
        for value in sorted(set(cells), key=_order):
            members = values == value
            examination = examine(
                label[members],
                prob[members],
                patients=patient[members].tolist(),
                subtypes=[""] * int(members.sum()),
                operating_point=operating_point,
                num_resamples=num_resamples,
                seed=seed,
            )
            at_point = examination.at_operating_point.estimates
            groups.append(
                Subgroup(
                    column=column,
                    value=value or NOT_GIVEN,
                    num_images=examination.num_images,
                    num_patients=examination.num_patients,
                    num_normal=examination.num_normal,
                    num_pneumonia=examination.num_pneumonia,
                    num_patients_normal=at_point["specificity"].num_patients,
                    num_patients_pneumonia=at_point["sensitivity"].num_patients,
                    estimates={
                        "auc": examination.threshold_free["auc"],
                        "sensitivity": at_point["sensitivity"],
                        "specificity": at_point["specificity"],
                    },
                )
            )
    return groups


def _order(value: str) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts by the numbers in a value, 5-9 before 10-19; the empty value is last."""
    parts = re.split(r"(\d+)", value)
    return not value, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
