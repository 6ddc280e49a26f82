"""The model card of a checkpoint, in Markdown: what is known of it, and what is not.

Everything in it comes from the checkpoint; what that does not hold is said to be not available.
Source: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993, for the sections.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined

from cxr import metrics, storage
from cxr.labels import CLASSES
from cxr.metrics import BORDER, BORDER_AREA, LEVEL, Estimate, Examination, Scaling
from cxr.metrics.robustness import METRICS, Robustness
from cxr.models.checkpoint import Checkpoint
from cxr.models.unusual import WARN_ABOVE
from cxr.reports.rendering import count, interval, number

MODEL_CARD: Final = "MODEL_CARD.md"
"""Its name in the checkpoint's folder."""

NOT_AVAILABLE: Final = "not available"

CONFIDENT: Final = 0.9
"""Probability from which a wrong prediction is called confident."""

_MARKUP: Final = re.compile(r"[\\`*<>|&]|\](?=[(\[:])")
"""What begins or ends markup inside a line; of brackets those of a link."""

_NAMES: Final = {
    "auc": "AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score (lower is better)",
    "expected_calibration_error": "Calibration error (lower is better)",
}

_SUBTYPES: Final = {"bacteria": "Sensitivity, bacterial", "virus": "Sensitivity, viral"}

_ROLES: Final = {"train": "training", "validation": "validation", "test": "held out to test on"}

Row = tuple[str, ...]


class _Code(str):
    """A text that is shown as it is, inside a block of code."""


def model_card(trained: Checkpoint, border_shares: Sequence[float] = ()) -> str:
    """The model card of a checkpoint.

    Args:
        trained: the checkpoint in float32.
        border_shares: `metrics.border_share` of Grad-CAM heatmaps of validation images; empty if it
            was not measured.

    Returns:
        Markdown, as GitHub renders it.
    """
    examination = _examine(trained)
    facts, point = trained.provenance, trained.operating_point
    data = facts.get("data", {})
    return _environment().get_template("model_card.md").render(
        title=trained.title,
        classes=CLASSES,
        note=trained.note,
        is_synthetic=str(data.get("name", "")).startswith("phantom"),
        model=_model(trained),
        recipe=[(name, _text(value)) for name, value in vars(trained.recipe).items()],
        data=_data(data),
        splits=_splits(trained),
        by_folds=bool(trained.member_of_fold),
        num_members=len(trained.members),
        sample=(
            f"{count(examination.num_images, 'image')} ({examination.num_normal:,} normal,"
            f" {examination.num_pneumonia:,} pneumonia) of"
            f" {count(examination.num_patients, 'patient')}"
        ),
        level=f"{LEVEL:.0%}",
        num_resamples=examination.num_resamples,
        figures=[
            _estimate(name, estimate)
            for key, name in _NAMES.items()
            for estimate in [_find(examination, key)]
        ],
        subtypes=[
            _estimate(name, estimate)
            for key, name in _SUBTYPES.items()
            if (estimate := _subtype(examination, key)) is not None
        ],
        point=point,
        threshold=f"{point.threshold:.4f}",
        reached=(number(point.sensitivity), number(point.specificity)),
        scaling=_scaling(trained.scaling),
        calibration=_shown(_find(examination, "expected_calibration_error")),
        calibrated_on=trained.calibrated_on,
        stressed=(number(point.stressed_sensitivity), number(point.stressed_specificity)),
        robustness=_robustness(trained.robustness),
        num_stressed=trained.robustness.num_images if trained.robustness else 0,
        distribution=trained.distribution,
        warn_above=f"{WARN_ABOVE:g}%",
        int8=_int8(trained),
        prevalence=f"{examination.num_pneumonia / examination.num_images:.0%}",
        border=f"{BORDER:.0%}",
        border_area=f"{BORDER_AREA:.0%}",
        border_share=f"{np.mean(border_shares):.0%}" if border_shares else "",
        num_explained=count(len(border_shares), "validation image"),
        failures=_failures(trained, examination),
        weights=_weights(facts.get("weights", {})),
        command=_Code(facts.get("command", NOT_AVAILABLE)),
        has_command="command" in facts,
        packages=[(name, str(version)) for name, version in facts.get("packages", {}).items()],
    )  # fmt: skip


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("cxr.reports"),
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _escape(value: object) -> str:
    """A value as text of Markdown on one line, in which nothing of it is markup."""
    text = " ".join(str(value).split())
    return text if isinstance(value, _Code) else _MARKUP.sub(r"\\\g<0>", text)


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _examine(trained: Checkpoint) -> Examination:
    """The figures of the validation images."""
    table = trained.clean_validation
    return metrics.examine(
        np.asarray(table["label"]),
        metrics.probabilities(np.asarray(table["logit"]), trained.scaling),
        patients=[str(patient) for patient in table["patient"].to_pylist()],
        subtypes=table["subtype"].to_pylist(),
        operating_point=trained.operating_point,
    )


def _robustness(robustness: Robustness | None) -> list[Row]:
    """The images as they are, under each change, and the mean over the changes."""
    if robustness is None:
        return []
    figures = {
        "none": robustness.clean,
        **robustness.changes,
        "mean": robustness.mean,
    }
    return [(name, *(_shown(own[key]) for key in METRICS)) for name, own in figures.items()]


def _find(examination: Examination, name: str) -> Estimate:
    figures = examination.threshold_free | examination.at_operating_point.estimates
    return figures[name]


def _subtype(examination: Examination, name: str) -> Estimate | None:
    return examination.at_operating_point.estimates.get(f"sensitivity_{name}")


def _estimate(name: str, estimate: Estimate) -> Row:
    return (name, _shown(estimate), f"{estimate.n:,}", f"{estimate.num_patients:,}")


def _shown(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {interval(estimate)}".strip()


def _model(trained: Checkpoint) -> list[Row]:
    recipe, packages = trained.recipe, trained.provenance.get("packages", {})
    network = f"{recipe.backbone}, {recipe.image_px} x {recipe.image_px} px"
    if trained.members:
        network += f", mean probability of {len(trained.members)} members"
    return [
        ("Recipe", recipe.name),
        ("Network", network),
        ("Fingerprint", f"{trained.fingerprint} (SHA-256 of checkpoint.json)"),
        ("Made by", f"cxr {packages.get('cxr', NOT_AVAILABLE)}"),
    ]


def _data(data: Mapping[str, Any]) -> list[Row]:
    def of(name: str) -> str:
        value = data.get(name)
        if value is None:
            return NOT_AVAILABLE
        return f"{value:,}" if isinstance(value, int) else str(value)

    return [
        ("Name", of("name")),
        ("Images used", of("num_images")),
        ("Images left out (unreadable, or duplicates)", of("num_left_out")),
        ("Images held out to test on", of("num_held_out")),
        ("Fingerprint of the images used", of("fingerprint")),
        ("Patients of the whole set", of("patients")),
        ("Hospitals, devices, years", NOT_AVAILABLE),
        ("Ages and sexes", NOT_AVAILABLE),
    ]


def _splits(trained: Checkpoint) -> list[Row]:
    """Patients and images of each role; empty where the checkpoint does not hold them."""
    if trained.splits is None:
        return []
    rows: list[Row] = []
    for role, name in _ROLES.items():
        own = trained.splits.filter(pc.equal(trained.splits["role"], role))
        if len(own):
            # Of patients who are held out, images were not decoded.
            images = NOT_AVAILABLE if role == "test" else f"{len(own):,}"
            rows.append((name, f"{pc.count_distinct(own['patient']).as_py():,}", images))
    return rows


def _int8(trained: Checkpoint) -> list[Row]:
    """The network in 8-bit integers; empty where there is none."""
    if storage.kind(storage.join(trained.folder, "int8.json")) != "file":
        return []
    quantized = trained.at("int8")
    difference = quantized.provenance["int8"].get("auc_difference")
    point = quantized.operating_point
    return [
        (
            "AUC minus that in float32, on the validation images",
            NOT_AVAILABLE
            if difference is None
            else "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference),
        ),
        ("Calibration", _scaling(quantized.scaling)),
        ("Threshold", f"{point.threshold:.4f} ({point.rule})"),
        ("Sensitivity and specificity", f"{point.sensitivity:.3f} and {point.specificity:.3f}"),
        ("Fingerprint", f"{quantized.fingerprint} (SHA-256 of int8.json)"),
    ]


def _scaling(scaling: Scaling) -> str:
    return f"temperature {scaling.temperature:.3f}, bias {scaling.bias:+.3f}"


def _failures(trained: Checkpoint, examination: Examination) -> list[str]:
    """What the validation images say of its errors."""
    confusion = examination.at_operating_point.confusion
    table = trained.clean_validation
    y_true = np.asarray(table["label"])
    probs = metrics.probabilities(np.asarray(table["logit"]), trained.scaling)
    wrong = np.where(y_true == 1, 1 - probs, probs)[
        trained.operating_point.predict(probs) != (y_true == 1)
    ]
    return [
        f"{confusion.false_positive:,} of {examination.num_normal:,} normal validation images are"
        f" called pneumonia, and {confusion.false_negative:,} of {examination.num_pneumonia:,} with"
        " pneumonia normal.",
        f"{int((wrong >= CONFIDENT).sum()):,} of these errors are confident: the wrong class has a"
        f" probability of at least {CONFIDENT}.",
    ]


def _weights(weights: Mapping[str, Any]) -> str:
    source = str(weights.get("source", ""))
    if not source:
        return NOT_AVAILABLE
    if source == "none":
        return "none: the network started from random numbers"
    # Of a path the name alone: the folders above may name anyone.
    name = PurePosixPath(source).name
    sha256 = weights.get("sha256", NOT_AVAILABLE)
    return f"{name}, {weights.get('tensors', 0)} tensors, SHA-256 of these {sha256}"
