"""The page on one model: what it is worth, on whom it was measured, and where it is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr.labels import CLASSES
from cxr.metrics import LEVEL, NUM_BINS, AtThreshold, Confusion, Estimate, Examination
from cxr.metrics.results import History
from cxr.reports import figures, page
from cxr.reports.page import RESEARCH_ONLY, UNDEFINED, Html, tag

PHANTOMS = (
    "Phantoms are drawn by a program, with known truth. Figures on them show that the software "
    "works; they say nothing about radiographs of patients."
)


@dataclass(frozen=True)
class WrongImage:
    """An image that was miscalled at the operating point."""

    uri: str
    """Only its last two parts are shown."""
    y_true: int
    """0 normal, 1 pneumonia."""
    prob: float
    """Calibrated probability of pneumonia."""
    thumbnail: bytes
    """JPEG, from `thumbnail`."""


@dataclass(frozen=True)
class EvaluationReport:
    """All that the evaluation page shows."""

    title: str
    data: str
    """What the images are, as a reader would name them; `"phantoms"` puts a warning on the page."""
    split: str
    """Which part of the data was examined: `"test"`, `"validation fold 0"`."""
    examination: Examination
    y_true: npt.ArrayLike
    """0 normal, 1 pneumonia, (N,)."""
    probs: npt.ArrayLike
    """Calibrated probabilities of pneumonia, 0-1, (N,)."""
    history: History = ()
    """One mapping for each epoch: epoch, train_loss, val_loss, val_auc, seconds; may be empty."""
    recipe: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None
    wrong: Sequence[WrongImage] = ()
    """The most wrong first."""
    notes: Sequence[str] = ()
    """What a reader must know, such as how many images were left out and why."""


_BOTH_CLASSES = "it needs normal and pneumonia images"

# Name -> label, remark, and when it is undefined.
_THRESHOLD_FREE = {
    "auc": ("AUC", "area under the ROC curve", _BOTH_CLASSES),
    "average_precision": ("Average precision", "area under precision-recall", "no pneumonia"),
    "brier": ("Brier score", "mean squared error of the probability; lower is better", ""),
    "expected_calibration_error": (
        "Calibration error",
        f"expected, {NUM_BINS} equal-width bins; lower is better",
        "",
    ),
}
_AT_THRESHOLD = {
    "sensitivity": ("Sensitivity", "pneumonia called pneumonia", "no pneumonia"),
    "specificity": ("Specificity", "normal called normal", "no normal image"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the two above", _BOTH_CLASSES),
    "accuracy": ("Accuracy", "calls that are right", ""),
    "ppv": ("PPV", "called pneumonia and so", "nothing was called pneumonia"),
    "npv": ("NPV", "called normal and so", "nothing was called normal"),
    "f1": ("F1", "of pneumonia", "no pneumonia, and none called"),
    "sensitivity_bacteria": ("Sensitivity, bacterial", "", "no image marked bacterial"),
    "sensitivity_virus": ("Sensitivity, viral", "", "no image marked viral"),
}


def evaluation_page(report: EvaluationReport) -> str:
    """The report as one HTML document that loads nothing."""
    examination = report.examination
    sample = _sample(report)
    banners = [page.banner(text) for text in (PHANTOMS,) if report.data.startswith("phantom")]
    sections = [
        _headline(report),
        page.section(
            "What it is worth",
            f"{sample}. In brackets the {LEVEL:.0%} interval: percentiles of "
            f"{examination.num_resamples:,} resamples of patients, all images of a patient "
            "together. Predictive values hold only where pneumonia is as common as here. The "
            f"operating point was chosen on {page.count(examination.operating_point.n, 'image')} "
            f"by the rule {examination.operating_point.rule}.",
            *_metric_tables(examination),
        ),
        page.section("Curves", f"{sample}.", page.grid(_curves(report))),
        page.section(
            "Calls",
            f"{sample}. Images by truth (rows) and call (columns), with the share of the row.",
            page.grid(
                [_confusion(*named) for named in _thresholds(examination)],
                "two",
            ),
        ),
        _most_wrong(report),
        _training(report.history),
    ]
    if report.notes:
        sections.insert(1, page.section("To note", "", page.bullets(report.notes)))
    settings = [
        page.section(heading, "", page.facts(values))
        for heading, values in (("Recipe", report.recipe), ("Provenance", report.provenance))
        if values
    ]
    return page.page(
        report.title,
        "Evaluation",
        f"{sample}. {RESEARCH_ONLY}",
        [*banners, *sections, *settings, page.not_for()],
    )


def _sample(report: EvaluationReport) -> str:
    """The split, its images and its patients: the caption of everything on the page."""
    examination = report.examination
    return (
        f"{report.split[:1].upper()}{report.split[1:]} of {report.data}: "
        f"{page.count(examination.num_images, 'image')} of "
        f"{page.count(examination.num_patients, 'patient')}"
    )


def _headline(report: EvaluationReport) -> Html:
    examination = report.examination
    chosen = examination.at_operating_point
    at = f"at threshold {chosen.threshold:.3f}"
    estimates = [
        ("AUC", examination.threshold_free["auc"], "area under the ROC curve"),
        ("Sensitivity", chosen.estimates["sensitivity"], at),
        ("Specificity", chosen.estimates["specificity"], at),
    ]
    shown: list[tuple[str, str, Sequence[str]]] = [
        (name, page.number(estimate.value), (f"{LEVEL:.0%} {_brackets(estimate)}", detail))
        if estimate.value is not None
        else (name, UNDEFINED, ("a class is absent",))
        for name, estimate, detail in estimates
    ]
    counts = (f"{examination.num_normal:,} normal", f"{examination.num_pneumonia:,} pneumonia")
    return page.tiles(
        [
            *shown,
            ("Images", f"{examination.num_images:,}", counts),
            ("Patients", f"{examination.num_patients:,}", (report.data, report.split)),
        ]
    )


def _brackets(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"


# ---------------------------------------------------------------- metrics


def _metric_tables(examination: Examination) -> list[Html]:
    free = examination.threshold_free
    (half_name, half), (chosen_name, chosen) = _thresholds(examination)
    return [
        page.table(
            ("without a threshold", "estimate"),
            [
                (_label(label, remark), _estimate(free[name], reason, examination))
                for name, (label, remark, reason) in _THRESHOLD_FREE.items()
            ],
            kind="figures",
        ),
        tag("h3", "At a threshold"),
        page.table(
            ("", half_name, chosen_name),
            [
                (
                    _label(label, remark),
                    _estimate(half.estimates[name], reason, examination),
                    _estimate(chosen.estimates[name], reason, examination),
                )
                for name, (label, remark, reason) in _AT_THRESHOLD.items()
            ],
            kind="figures",
        ),
    ]


def _thresholds(examination: Examination) -> list[tuple[str, AtThreshold]]:
    chosen = examination.at_operating_point
    return [
        ("Threshold 0.5", examination.at_half),
        (f"Operating point {chosen.threshold:.3f}", chosen),
    ]


def _label(label: str, remark: str) -> Html:
    return page.join([label, *([tag("small", remark)] if remark else [])])


def _estimate(estimate: Estimate, reason: str, examination: Examination) -> Html:
    """A metric in a cell: value, interval as figures and as a bar, and what it is a figure of."""
    size = f"{page.count(estimate.n, 'image')}, {page.count(estimate.num_patients, 'patient')}"
    if estimate.value is None:
        return page.join([tag("span", UNDEFINED, class_="undefined"), tag("small", reason)])
    if estimate.num_undefined:
        size += (
            f"; undefined in {estimate.num_undefined:,} of {examination.num_resamples:,} resamples"
        )
    parts = [tag("b", page.number(estimate.value)), tag("span", _brackets(estimate))]
    if estimate.low is not None and estimate.high is not None:
        low, width, value = (
            f"{100 * share:.1f}%"
            for share in (estimate.low, estimate.high - estimate.low, estimate.value)
        )
        band = tag("i", style=f"left:{low};width:{width}") + tag("u", style=f"left:{value}")
        parts.append(tag("span", Html(band), class_="range", aria_hidden="true"))
    return page.join([tag("div", *parts, class_="estimate"), tag("small", size)])


# ---------------------------------------------------------------- figures


def _curves(report: EvaluationReport) -> list[Html]:
    examination = report.examination
    point = examination.operating_point
    arrays = report.y_true, report.probs
    auc, precision = (examination.threshold_free[name] for name in ("auc", "average_precision"))
    both = examination.num_normal > 0 and examination.num_pneumonia > 0
    missing = figures.undefined(_BOTH_CLASSES)
    return [
        page.titled(
            "ROC",
            figures.roc(*arrays, point) if both else missing,
            f"AUC {page.number(auc.value)}. Dotted: chance." if both else "",
        ),
        page.titled(
            "Precision and recall",
            figures.precision_recall(*arrays, point) if both else missing,
            f"Average precision {page.number(precision.value)}. Dotted: the share of pneumonia."
            if both
            else "",
        ),
        page.titled(
            "Reliability",
            figures.reliability_diagram(*arrays),
            f"On the dotted line a probability means what it says. {NUM_BINS} bins; below, how "
            "many images each holds.",
        ),
    ]


def _confusion(heading: str, at: AtThreshold) -> Html:
    counts: Confusion = at.confusion
    rows = [
        (CLASSES[0], (counts.true_negative, counts.false_positive)),
        (CLASSES[1], (counts.false_negative, counts.true_positive)),
    ]

    def cell(truth: int, call: int, number: int, total: int) -> Html:
        share = number / total if total else 0.0
        tint = "accent" if truth == call else "warm"
        inside = tag("b", f"{number:,}") + tag("small", f"{share:.1%}" if total else UNDEFINED)
        return tag("td", Html(inside), style=f"--tint:var(--{tint});--share:{share:.3f}")

    body = [
        tag(
            "tr",
            tag("th", f"is {name.lower()}", scope="row"),
            *(cell(truth, call, number, sum(row)) for call, number in enumerate(row)),
        )
        for truth, (name, row) in enumerate(rows)
    ]
    calls = [tag("th", f"called {name.lower()}", scope="col") for name in CLASSES]
    head = tag("thead", tag("tr", tag("th"), *calls))
    return page.titled(heading, tag("table", head, tag("tbody", *body), class_="confusion"))


def _training(history: History) -> Html:
    curves = figures.training_curves(history)
    if not curves:
        return page.section("Training", "No training history was recorded with this model.")
    return page.section(
        "Training",
        f"{page.count(len(history), 'epoch')}, measured on the training and validation folds.",
        page.grid([page.titled(heading, drawn) for heading, drawn in curves]),
    )


def _most_wrong(report: EvaluationReport) -> Html:
    point = report.examination.operating_point
    miscalled = np.asarray(report.y_true) != point.predict(report.probs)
    num_wrong = int(miscalled.sum())
    caption = (
        f"{page.count(num_wrong, 'image')} of {report.examination.num_images:,} miscalled at the "
        f"operating point ({point.threshold:.3f}). Shown: the {len(report.wrong)} furthest off."
    )

    def photo(image: WrongImage) -> Html:
        name, truth = page.short_uri(image.uri), CLASSES[image.y_true].lower()
        told = tag("b", f"{truth}, scored {image.prob:.3f}")
        return tag(
            "figure",
            page.picture(image.thumbnail, f"radiograph, {truth}, {name}"),
            tag("figcaption", told, Html("<br>"), name),
        )

    photos = [photo(image) for image in report.wrong]
    content = [page.grid(photos, "photos")] if photos else []
    return page.section("Most wrong", caption, *content)
