"""Does what is chosen on some acquisition changes hold under others?

    python -m benchmarks.held_back --checkpoint DIR --changes sharpening low_resolution

Half of the patients of a checkpoint's validation images choose calibration and operating point,
without the images under the changes that are named; the images of the other half are examined under
each of those. Give changes that the recipe's augmentation does not draw either (`acquisition` draws
no sharpening, low_resolution, jpeg and marker), so that neither weights nor threshold have met
them. Beside it stands the same, chosen on images as they are.
"""

from dataclasses import dataclass
from typing import Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr import cli, metrics
from cxr.errors import SettingsError
from cxr.metrics import CalibrateOn, Examination
from cxr.models import checkpoint, validation
from cxr.reports.rendering import interval, number

SEED: Final = 0
"""Of the halves."""


@dataclass(frozen=True)
class HeldBackBenchmark:
    """What is examined."""

    checkpoint: str
    """Folder of a checkpoint with images under acquisition changes."""
    changes: tuple[str, ...] = ("sharpening", "low_resolution")
    """Acquisition changes that choose nothing."""


def main() -> None:
    job = cli.parse(HeldBackBenchmark, __doc__ or "")
    trained = checkpoint.load(job.checkpoint)
    table = trained.validation
    known = [name for name in pc.unique(table["change"]).to_pylist() if name]
    if unknown := sorted(set(job.changes) - set(known)):
        raise SettingsError(
            f"changes: {job.checkpoint} has no images under {', '.join(unknown)}."
            f" Choices: {', '.join(known) or 'none, since it was trained with --stress-images 0'}."
        )
    rule = trained.operating_point.rule
    print(f"{'chosen on':10} {'examined under':16} {'accuracy':24} {'calibration error':24} "
          f"{'sensitivity':24} specificity")  # fmt: skip
    for calibrate_on in get_args(CalibrateOn):
        for change in job.changes:
            result = examine(table, change, job.changes, rule, calibrate_on)
            point = result.at_operating_point.estimates
            error = result.threshold_free["expected_calibration_error"]
            figures = (point["accuracy"], error, point["sensitivity"], point["specificity"])
            columns = " ".join(
                f"{number(figure.value)} {interval(figure):18}" for figure in figures
            )
            print(f"{calibrate_on:10} {change:16} {columns}")
    print(f"{result.num_images} images of {result.num_patients} patients under each change")


def examine(
    table: pa.Table,
    change: str,
    held_back: tuple[str, ...],
    rule: str,
    calibrate_on: CalibrateOn,
) -> Examination:
    """Examine half of the patients under one change, by what the other half has chosen.

    Args:
        table: of `validation.COLUMNS`.
        change: under which images are examined.
        held_back: changes under which no image chooses anything.
        rule: of the operating point.
        calibrate_on: as in `validation.calibrate`.
    """
    patients = np.asarray(pc.unique(table["patient"]))
    first = np.random.default_rng(SEED).permutation(patients)[: len(patients) // 2]
    is_first = np.isin(np.asarray(table["patient"]), first)
    is_held_back = np.isin(np.asarray(table["change"]), held_back)
    chosen = validation.calibrate(
        table.filter(pa.array(is_first & ~is_held_back)), rule, calibrate_on
    )
    examined = table.filter(pa.array(~is_first)).filter(pc.field("change") == change)
    return metrics.examine(
        np.asarray(examined["label"]),
        metrics.probabilities(np.asarray(examined["logit"]), chosen.scaling),
        patients=examined["patient"].cast(pa.string()).to_pylist(),
        subtypes=examined["subtype"].to_pylist(),
        operating_point=chosen.operating_point,
    )


if __name__ == "__main__":
    cli.run(main)
