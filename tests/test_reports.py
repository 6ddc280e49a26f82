"""Pages: what they show, that they are self-contained and escaped; a table for the terminal."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cxr import metrics, reports
from cxr.errors import ImageError
from cxr.metrics.results import (
    PUBLISHED_FIGURES,
    Effect,
    History,
    Interval,
    TrialResult,
    VersionResult,
)
from cxr.models.unusual import fit_distribution
from cxr.reports.figures import model
from cxr.reports.figures.drawing import PALETTE
from cxr.scoring.totals import bin_scores

PACKAGE = Path(reports.__file__).parent

TEMPLATES = PACKAGE / "templates"

HOSTILE = "/home/someone/secret/<script>alert('x')</script>/\"><img src=x onerror=y>.jpeg"

HISTORY: History = [
    {"epoch": 1, "train_loss": 0.61, "val_loss": 0.52, "val_auc": None, "seconds": 4.0},
    {"epoch": 2, "train_loss": 0.42, "val_loss": 0.45, "val_auc": 0.91, "seconds": 3.9},
]

VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """Collects what a browser would see; fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


def words_of(page: str) -> str:
    """What a reader sees, with single spaces."""
    return " ".join(read(page).text.split())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def assert_self_contained(page: str) -> None:
    reader = read(page)
    assert not {name for name, _ in reader.tags} & {"script", "link", "iframe", "object", "base"}
    for name, attributes in reader.tags:
        assert not [key for key in attributes if key.startswith("on")], name
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?://|@import", page)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", page):
        assert "".join(target) in ids


def evaluation(**changes: Any) -> reports.EvaluationReport:
    generator = np.random.default_rng(0)
    y_true = changes.pop("y_true", (np.arange(60) < 40).astype(int))
    probs = np.clip(0.25 + 0.5 * y_true + generator.normal(0, 0.2, len(y_true)), 0, 1)
    point = metrics.OperatingPoint("youden", 0.437, 0.9, 0.9, 200)
    examination = metrics.examine(
        y_true,
        probs,
        patients=[f"p{index // 2}" for index in range(len(y_true))],
        subtypes=["bacteria" if label else "" for label in y_true],
        operating_point=point,
        num_resamples=40,
    )
    pixels = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
    report = reports.EvaluationReport(
        title="A title",
        data="chest_xray",
        split="test",
        examination=examination,
        y_true=y_true,
        probs=probs,
        history=HISTORY,
        recipe={"name": "v2", "optimizer": {"lr": 1e-3}, "head": [1024, 512]},
        provenance={"torch": "2.8.0"},
        wrong=[
            reports.WrongImage(
                uri="bucket/a/test/NORMAL/x.png",
                y_true=0,
                prob=0.987,
                thumbnail=reports.thumbnail(pixels),
            )
        ],
        notes=["2 images could not be read: truncated"],
    )
    return dataclasses.replace(report, **changes)


@pytest.fixture(scope="module")
def default_page() -> str:
    return reports.evaluation_page(evaluation())


def version(name: str = "v0", **changes: Any) -> VersionResult:
    values: dict[str, Any] = {
        "name": name,
        "data": "phantoms",
        "num_images": 240,
        "auc": 0.911,
        "accuracy": 0.822,
        "balanced_accuracy": 0.833,
        "sensitivity": 0.844,
        "specificity": 0.855,
        "train_seconds": 12.34,
        "peak_memory_mb": 2310.0,
        "loading": "memory",
        "published_accuracy": 0.625,
    }
    return VersionResult(**(values | changes))


def scored(**changes: Any) -> reports.ScoredImage:
    values: dict[str, Any] = {
        "uri": "a/b.png",
        "prob": 0.44,
        "positive": True,
        "warnings": [],
        "thumbnail": reports.thumbnail(np.tile(np.arange(64, dtype=np.uint8), (48, 1))),
    }
    return reports.ScoredImage(**(values | changes))


def scoring(**changes: Any) -> reports.ScoringReport:
    values: dict[str, Any] = {
        "title": "A title",
        "inputs": ["s3://bucket/xrays/", "more.zip"],
        "num_listed": 1_317,
        "num_refused": 15,
        "num_unreadable": 2,
        "histogram": [1_000, *[0] * 18, 300],
        "num_predicted": 300,
        "operating_point": metrics.OperatingPoint("sensitivity=0.95", 0.437, 0.951, 0.884, 1_046),
        "suspicious": [
            scored(
                uri="s3://bucket/xrays/a.zip!/p1/x.dcm",
                prob=0.987,
                positive=True,
                warnings=["no window in the file"],
            ),
            scored(uri="s3://bucket/xrays/a.zip!/p2/y.png", prob=0.321, positive=False),
        ],
        "nearest": [],
        "failures": [
            reports.FailureGroup("unreadable", "the file is empty", 2, ["more.zip!/n.png"]),
            reports.FailureGroup(
                "refused", "modality CT, not CR", 15, ["s3://bucket/xrays/ct.dcm"]
            ),
        ],
        "warnings": {"first of 2 frames": 4, "no window in the file": 1_203},
        "skipped": {"hidden": 7, ".txt": 41},
        "facts": {"checkpoint": "s3://models/best", "versions": {"torch": "2.8.0"}},
    }
    return reports.ScoringReport(**(values | changes))


def scoring_text(**changes: Any) -> str:
    return words_of(reports.scoring_page(scoring(**changes)))


def checking(**changes: Any) -> reports.CheckReport:
    pixels = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    report = reports.CheckReport(
        title="labels.csv: what is in it",
        data="labels.csv",
        command="python jobs/train.py --version best --data labels.csv --test-fraction 0.2",
        problems=[],
        warnings=["Duplicates (equal decoded pixels) with both labels: 2 groups of images."],
        patients="Patients are identified by the column PatientID: 702 patients.",
        num_patients=702,
        largest_patient=9,
        splits=[
            reports.SplitCounts("train", 1005, 401, 604, 561, 1003, 1001),
            reports.SplitCounts("test", 251, 99, 152, 141, 251, 251),
        ],
        shared_patients={"train and test": 3},
        formats={"jpeg": (1200, 1), "dicom": (54, 0), "unknown": (0, 1)},
        failures=[reports.FailureGroup("refused", "N frames, not one", 2, ["/data/x.dcm"])],
        skipped={".txt": 17, "hidden": 4},
        duplicates=[
            reports.Duplicates("file content", 11, 22, 4, 3, 2, 1, ["a = b"]),
            reports.Duplicates("decoded pixels", 13, 27, 5, 3, 2, 2, ["/data/c = /data/d"]),
        ],
        sizes=reports.Sizes((400, 1336, 2916), (127, 888, 2713), 31, [1336, 400, 2916]),
        image_px=224,
        views={"PA": 40, "not given": 14},
        ages={"0-9": 6, "40-49": 33, "90 or older": 2, "not given": 13},
        samples=[
            reports.Sample(
                uri=f"/data/{label}/{index}.jpeg",
                label=label,
                thumbnail=reports.thumbnail(pixels),
            )
            for label in (0, 1)
            for index in range(6)
        ],
        facts={"folds": 5, "columns": ["uri=File"]},
    )
    return dataclasses.replace(report, **changes)


def checking_text(**changes: Any) -> str:
    return words_of(reports.checking_page(checking(**changes)))


def trial(auc: float | None, *, reason: str = "", **setting: Any) -> TrialResult:
    def around(value: float) -> Interval:
        return Interval(value, value - 0.011, value + 0.007)

    return TrialResult(
        setting=setting,
        auc=None if auc is None else around(auc),
        balanced_accuracy=None if auc is None else around(auc - 0.05),
        fold_aucs=[] if reason else [auc, 0.955, 0.966],
        seconds=1_234.5,
        reason=reason,
    )


def tuning(**changes: Any) -> reports.TuningReport:
    difference = Interval(0.021, -0.004, 0.046)
    values: dict[str, Any] = {
        "title": "A title",
        "data": "chest_xray",
        "recipe": {"backbone": "squeezenet1_1"},
        "grid": {"normalization": ["none", "per_image"], "class_weighting": ["none", "balanced"]},
        "sampled": [],
        "trials": [
            trial(0.911, normalization="none", class_weighting="none"),
            trial(None, normalization="none", class_weighting="balanced", reason="it diverged"),
            trial(0.977, normalization="per_image", class_weighting="none"),
            trial(None, normalization="per_image", class_weighting="balanced"),
        ],
        "effects": [
            Effect("normalization", "per_image", "none", difference, 5_232, 2_790),
            Effect("class_weighting", "balanced", "none", difference, 5_200, 2_780),
        ],
        "answers": ["per_image against none: AUC +0.021 [-0.004, +0.046], n = 2,790 patients"],
        "num_folds": 3,
        "num_images": 5_232,
        "num_patients": 2_790,
        "notes": ["2 images could not be read: truncated"],
        "facts": {"versions": {"torch": "2.8.0"}},
    }
    return reports.TuningReport(**(values | changes))


def tuning_text(**changes: Any) -> str:
    return words_of(reports.tuning_page(tuning(**changes)))


# ---------------------------------------------------------------- templates


def test_templates_escape_everything_but_our_figures() -> None:
    """Markup is made in one function, of a figure; no template turns escaping off."""
    templates = [path.read_text() for path in TEMPLATES.glob("*.html")]
    assert len(templates) == 8
    for text in templates:
        assert not re.search(r"\|\s*safe\b|autoescape|\bMarkup\b", text)
    makers = [path.name for path in PACKAGE.rglob("*.py") if "Markup(" in path.read_text()]
    assert makers == ["drawing.py"]


def test_an_installed_package_has_its_templates() -> None:
    """What setuptools would put into a wheel, not what happens to be in the source tree."""
    program = """
from setuptools import Distribution
distribution = Distribution()
distribution.parse_config_files(["pyproject.toml"])
# Else setuptools writes a manifest into the source tree.
distribution.include_package_data = False
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
for _, source, _, names in build.data_files:
    for name in names:
        print(source + "/" + name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    installed = {path for path in done.stdout.splitlines() if path.startswith("cxr/reports/")}
    assert installed == {f"cxr/reports/templates/{path.name}" for path in TEMPLATES.iterdir()}


def test_figures_have_the_colors_of_the_style_sheet() -> None:
    light = (TEMPLATES / "style.css").read_text().split("@media")[0]
    variables = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light))
    assert {name: variables[name] for name in PALETTE} == PALETTE


def test_paper_is_white_whatever_the_theme_and_no_row_or_figure_is_cut() -> None:
    style = (TEMPLATES / "style.css").read_text()
    assert re.findall(r"@media (.*prefers-color-scheme.*) \{", style) == [
        "screen and (prefers-color-scheme: dark)"
    ]
    printed = style.partition("@media print {")[2]
    [uncut] = re.findall(r"([^{};]*) \{ break-inside: avoid; \}", printed)
    assert {"tr", "li", "figure", ".caption"} <= set(uncut.strip().split(", "))
    assert "print-color-adjust: exact" in printed, "shading is data"


def test_radiographs_stand_on_a_page_in_one_way() -> None:
    templates = {path.name: path.read_text() for path in TEMPLATES.glob("*.html")}
    assert {name for name, text in templates.items() if "<img" in text} == {"parts.html"}
    shared = templates["parts.html"]
    assert shared.count("<img") == len(re.findall(r'<img [^>]*alt="[^"]*radiograph', shared)) == 2
    for name in ("scoring", "explanation", "evaluation", "checking"):
        assert re.search(r"parts\.(scored_)?photos\(", templates[f"{name}.html"])


# ---------------------------------------------------------------- evaluation


def test_evaluation_page_shows_every_figure_with_its_interval(default_page: str) -> None:
    text = words_of(default_page)
    examination = evaluation().examination
    groups = (
        examination.threshold_free,
        examination.at_half.estimates,
        examination.at_operating_point.estimates,
    )
    for group in groups:
        for name, estimate in group.items():
            assert f"{estimate.value:.3f}" in text, name
            assert f"[{estimate.low:.3f}, {estimate.high:.3f}]" in text, name
    for label in ("AUC", "Average precision", "Brier", "Calibration error"):
        assert label in text
    assert "Sensitivity, viral" not in text  # Known of no image here.
    for label in ("Balanced accuracy", "Accuracy", "PPV", "NPV", "F1", "Sensitivity, bacterial"):
        assert label in text


def test_evaluation_page_describes_its_sample_and_limitations(default_page: str) -> None:
    text = words_of(default_page)
    assert "Test split of chest_xray: 60 images of 30 patients" in text
    assert "not for clinical use" in text
    assert "children" in text
    assert "2 images could not be read: truncated" in text
    assert "optimizer.lr" in text
    assert "0.001" in text
    assert "2.8.0" in text
    assert "phantoms" not in text


def test_evaluation_page_shows_the_most_wrong(default_page: str) -> None:
    assert "normal, scored 0.987" in words_of(default_page)
    assert default_page.count("data:image/jpeg;base64,") == 1


def test_evaluation_page_is_self_contained(default_page: str) -> None:
    assert_self_contained(default_page)


def test_evaluation_page_is_the_same_each_time(default_page: str) -> None:
    assert reports.evaluation_page(evaluation()) == default_page


def test_hostile_names_are_shown_as_text() -> None:
    wrong = [reports.WrongImage(uri=HOSTILE, y_true=1, prob=0.01, thumbnail=b"jpeg")]
    report = evaluation(
        title=HOSTILE,
        data=HOSTILE,
        split=HOSTILE,
        wrong=wrong,
        notes=[HOSTILE],
        recipe={HOSTILE: HOSTILE},
        provenance={"of": {HOSTILE: [HOSTILE]}},
    )
    page = reports.evaluation_page(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert_self_contained(page)


def test_image_shows_the_last_two_parts_of_its_path(default_page: str) -> None:
    assert "NORMAL/x.png" in default_page
    assert "bucket" not in default_page
    assert "test/NORMAL" not in default_page


def test_page_without_history_recipe_or_images() -> None:
    report = evaluation(history=[], recipe=None, provenance=None, wrong=[], notes=[])
    page = reports.evaluation_page(report)
    assert "No training history was recorded" in page
    assert_self_contained(page)


def test_an_operating_point_without_positive_predictions_has_no_mark() -> None:
    """matplotlib warns of a legend without entries, and warnings are errors here."""
    y_true, probs = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    point = metrics.OperatingPoint("youden", 0.9, 0.0, 1.0, 4)
    assert "<svg" in model.precision_recall(y_true, probs, point)


@pytest.mark.parametrize("label", [0, 1])
def test_undefined_figures_say_why(label: int) -> None:
    page = reports.evaluation_page(evaluation(y_true=np.full(20, label)))
    text = words_of(page)
    assert "AUC area under the ROC curve undefined needs normal and pneumonia images" in text
    missing = "no normal images" if label else "no pneumonia images"
    assert f"undefined {missing}" in text
    assert not re.search(r"\b(nan|None)\b", text)
    assert_self_contained(page)


def test_subgroups_have_their_figures_sizes_and_reasons() -> None:
    report = evaluation()
    scanners = ["<b>one</b>"] * 40 + ["two"] * 20  # Those of the first have pneumonia, all of them.
    subgroups = metrics.examine_subgroups(
        {"scanner": scanners},
        report.y_true,
        report.probs,
        patients=[f"p{index // 2}" for index in range(60)],
        operating_point=report.examination.operating_point,
        num_resamples=40,
    )
    text = words_of(reports.evaluation_page(dataclasses.replace(report, subgroups=subgroups)))
    table = text.partition(" Subgroups ")[2].partition(" Curves ")[0]
    for group in subgroups:
        assert f"{group.value} {group.size}" in table
        for estimate in group.estimates.values():
            assert estimate.value is None or f"{estimate.value:.3f} [" in table
    assert "fewer than 20 patients of a class is small" in table
    assert "undefined no normal images" in table
    assert "small: n = 0 normal, 20 pneumonia" in table


def test_an_evaluation_without_subgroups_says_nothing_of_them(default_page: str) -> None:
    assert "Subgroups" not in words_of(default_page)


def test_undefined_epochs_are_gaps() -> None:
    history = [{"epoch": 1, "train_loss": 0.5, "val_loss": None, "val_auc": None, "seconds": 1.0}]
    page = reports.evaluation_page(evaluation(history=history))
    assert "Loss by epoch" in page
    assert "Validation AUC by epoch" not in page


def test_phantoms_are_labeled_as_such() -> None:
    text = words_of(reports.evaluation_page(evaluation(data="phantoms")))
    assert "they say nothing about radiographs of patients" in text


def robustness(y_true: npt.ArrayLike) -> metrics.Robustness:
    label = np.asarray(y_true)
    generator = np.random.default_rng(1)
    scores = [
        np.clip(0.25 + 0.5 * label + generator.normal(0, width, len(label)), 0, 1)
        for width in (0.2, 0.3, 0.6)
    ]
    return metrics.examine_changes(
        label, scores[0], {"low_resolution": scores[1], "noise": scores[2]},
        patients=[f"p{index // 2}" for index in range(len(label))],
        operating_point=metrics.OperatingPoint("youden", 0.437, 0.9, 0.9, 200), num_resamples=40,
    )  # fmt: skip


def test_every_change_stands_beside_the_images_as_they_are(default_page: str) -> None:
    report = evaluation()
    table = robustness(report.y_true)
    page = reports.evaluation_page(
        dataclasses.replace(report, robustness=table, parameters={"noise": "standard deviation: 8"})
    )
    text = words_of(page)
    for figures in (table.clean, table.mean, *table.changes.values()):
        for estimate in figures.values():
            assert f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" in text
    assert "low resolution" in text
    assert "noise standard deviation: 8" in text
    assert f"{table.lowest('auc'):.3f} {table.worst('auc')}" in text
    for heading in ("AUC", "Sensitivity", "Specificity"):
        assert f'aria-label="{heading} under acquisition changes"' in page
    assert_self_contained(page)
    assert "Robustness" not in words_of(default_page)


def test_changes_of_images_of_one_class_have_undefined_figures() -> None:
    report = evaluation(y_true=np.ones(10, int))
    page = reports.evaluation_page(
        dataclasses.replace(report, robustness=robustness(report.y_true))
    )
    words = words_of(page)
    section = words[words.index("Robustness") : words.index("Curves")]
    assert "needs normal and pneumonia images" in section
    assert "low resolution undefined 1.000 [1.000, 1.000] undefined" in section
    assert "nan" not in section.lower().split()
    assert 'aria-label="Sensitivity under acquisition changes"' in page
    assert 'aria-label="AUC under acquisition changes"' not in page


def test_pages_state_what_the_operating_point_reached_under_changes() -> None:
    point = metrics.OperatingPoint("youden", 0.437, 0.951, 0.884, 200, 0.912, 0.871)
    page = words_of(reports.scoring_page(scoring(operating_point=point)))
    assert "a specificity of 0.884 (0.912 and 0.871 under acquisition changes)" in page
    examination = dataclasses.replace(evaluation().examination, operating_point=point)
    page = words_of(reports.evaluation_page(evaluation(examination=examination)))
    assert "specificity of 0.884, and 0.912 and 0.871 on validation images under" in page


# ---------------------------------------------------------------- comparison


def test_table_fits_the_terminal() -> None:
    rows = [
        version(),
        version("a-very-long-name", data="a-very-long-data-set", num_images=999_999),
        version("v9", train_seconds=123_456.0, peak_memory_mb=123_456.0, published_sensitivity=0.9),
        version("v8", stressed_auc=0.9, worst_auc=0.8, worst_change="noise"),
    ]
    lines = reports.comparison_table(rows).splitlines()
    assert max(map(len, lines)) <= 110
    assert len({len(line) for line in lines[1:8]}) == 1


def test_table_separates_our_figures_from_the_published() -> None:
    table = reports.comparison_table([version()])
    groups, header, _, row = table.splitlines()[:4]
    cells = "v0 phantoms 240 0.911 0.822 0.833 0.844 0.855 12.3 2,310 0.625 -"
    assert " ".join(row.split()) == cells
    # A group's name stands at its first column's left edge, and the last two are published.
    assert row[: groups.index("published")].split()[-1] == "2,310"
    assert header[groups.index("published") :].split() == ["acc", "sens"]
    assert "Different images" in table
    assert "validation fold" in table
    assert "official test split" in table
    assert "synthetic" in table


def test_figures_that_no_version_has_take_no_column() -> None:
    own: dict[str, Any] = {"published_accuracy": None}
    stressed = own | {"stressed_auc": 0.981, "worst_auc": 0.87, "worst_change": "low_resolution"}
    plain = reports.comparison_table([version("best", **own)])
    assert "published" not in plain
    assert "stressed" not in plain
    table = reports.comparison_table([version("best", **stressed), version("v9", **own)])
    groups, header, _, best, other = table.splitlines()[:5]
    start = groups.index("AUC stressed")
    assert header[start:].split()[:2] == ["mean", "worst"]
    assert best[start:].split()[:2] == ["0.981", "0.870"]
    assert other[start:].split()[:2] == ["-", "-"]
    assert "the worst: best low_resolution." in table
    for row, has in ((version(), True), (version(**own), False)):
        page = words_of(reports.comparison_page([row], {}, [], "Versions"))
        assert ("official test split" in page) is has
        assert "stressed" not in page.lower()
    page = words_of(reports.comparison_page([version("best", **stressed)], {}, [], "Versions"))
    assert "AUC stressed" in page
    assert "0.870 low resolution" in page


def test_table_leaves_undefined_figures_undefined() -> None:
    row = reports.comparison_table([version(auc=None, peak_memory_mb=None)]).splitlines()[3]
    assert row.split()[3] == "undef"
    assert row.split()[9] == "-"


def test_published_figures_are_those_of_the_2019_experiment() -> None:
    figures = {
        name: (result.test_accuracy, result.test_sensitivity)
        for name, result in PUBLISHED_FIGURES.items()
    }
    assert figures == {
        "v0": (0.625, None),
        "v1": (0.742, 0.987),
        "v2": (0.8, None),
        "v3": (0.628, None),
    }


def test_comparison_page_shows_all_rows_and_is_self_contained() -> None:
    rows = [version(), version("v2", loading="stream", auc=None, peak_memory_mb=None)]
    page = reports.comparison_page(rows, {"v0": HISTORY, "v2": []}, ["A note."], "Versions")
    text = words_of(page)
    for figure in ("0.911", "0.822", "0.833", "0.844", "0.855", "12.3", "2,310", "0.625"):
        assert figure in text
    for words in ("undefined", "not measured", "A note.", "phantoms", "do not compare"):
        assert words in text
    assert "they say nothing about radiographs of patients" in text
    assert "has no images of one class" in text
    assert_self_contained(page)


def test_comparison_page_without_histories_and_of_real_images() -> None:
    page = reports.comparison_page([version(data="chest_xray")], {}, [], "Versions")
    assert "No training history was recorded" in page
    assert "phantoms" not in page
    assert_self_contained(page)


def test_comparison_page_with_hostile_names() -> None:
    rows = [version(HOSTILE, data=HOSTILE, loading=HOSTILE), version("$x^2$ &amp; font-family: y")]
    histories = {row.name: HISTORY for row in rows}
    page = reports.comparison_page(rows, histories, [HOSTILE], HOSTILE)
    assert "<script" not in page
    assert_self_contained(page)


def test_many_versions_have_lines_of_their_own() -> None:
    rows = [version(f"v{index}") for index in range(7)]
    page = reports.comparison_page(rows, {row.name: HISTORY for row in rows}, [], "Versions")
    assert all(f">v{index}</text>" in page for index in range(7))


# ---------------------------------------------------------------- scoring


def test_scoring_page_shows_the_numbers_it_was_given() -> None:
    text = scoring_text()
    for words in (
        "1,300 of 1,317 images from s3://bucket/xrays/ and 1 more input scored",
        "Listed 1,317 images",
        "Scored 1,300 98.7% of listed",
        "Predicted pneumonia 300 23.1% of scored at threshold 0.437",
        "Refused 15 ",
        "Unreadable 2 ",
        "17 images: 15 refused, 2 unreadable",
        "modality CT, not CR refused 15 s3://bucket/xrays/ct.dcm "
        "the file is empty unreadable 2 more.zip!/n.png",
        "no window in the file 1,203 first of 2 frames 4",
        ".txt 41 hidden 7",
        "versions.torch 2.8.0",
    ):
        assert words in text


def test_scoring_page_explains_the_threshold_and_its_limitations() -> None:
    text = scoring_text()
    assert "at a calibrated probability of 0.437 or above" in text
    assert "The rule sensitivity=0.95 chose this threshold on 1,046 validation images" in text
    assert "a sensitivity of 0.951 and a specificity of 0.884" in text
    assert "only for images like those" in text
    assert "not a prevalence" in text
    assert "not for clinical use. No prediction shown here may guide the care" in text


def test_scoring_page_shows_the_most_suspicious() -> None:
    page = reports.scoring_page(scoring())
    assert "0.987 predicted pneumonia p1/x.dcm Warnings: no window in the file." in scoring_text()
    assert "0.321 predicted normal p2/y.png" in scoring_text()
    assert page.count("data:image/jpeg;base64,") == 2
    titles = [attributes.get("title") for name, attributes in read(page).tags if name == "span"]
    assert "s3://bucket/xrays/a.zip!/p1/x.dcm" in titles
    assert "Nearest to the threshold" not in page


def test_scoring_page_shows_the_images_nearest_to_the_threshold() -> None:
    nearest = [scored(uri="s3://b/x.zip!/p/y.png", prob=0.421, positive=False, warnings=["odd"])]
    page = reports.scoring_page(scoring(nearest=nearest))
    shown = words_of(page).partition("Nearest to the threshold")[2].partition("Not scored")[0]
    assert "The 1 image whose calibrated probability is nearest to the threshold of 0.437" in shown
    assert "s3://b/x.zip!/p/y.png Warnings: odd. 0.421 -0.016 normal" in shown
    assert "unusual" not in shown.lower()
    assert page.count("data:image/jpeg;base64,") == 3


def test_the_nearest_have_their_percentiles_where_the_checkpoint_knows_unusual_images() -> None:
    nearest = [scored(unusual=62.5), scored(unusual=None)]
    text = scoring_text(nearest=nearest, num_unusual=0)
    shown = text.partition("Nearest to the threshold")[2].partition("Not scored")[0]
    assert "predicted unusual" in shown
    assert "0.440 +0.003 pneumonia 62.5% a/b.png 0.440 +0.003 pneumonia - " in shown


def test_scoring_page_is_self_contained_and_the_same_each_time() -> None:
    page = reports.scoring_page(scoring())
    assert_self_contained(page)
    assert reports.scoring_page(scoring()) == page


def test_scoring_page_with_hostile_names() -> None:
    page = reports.scoring_page(
        scoring(
            title=HOSTILE,
            inputs=[HOSTILE],
            suspicious=[scored(uri=HOSTILE, warnings=[HOSTILE])],
            nearest=[scored(uri=HOSTILE, warnings=[HOSTILE])],
            failures=[reports.FailureGroup(HOSTILE, HOSTILE, 17, [HOSTILE])],
            warnings={HOSTILE: 1},
            skipped={HOSTILE: 1},
            facts={HOSTILE: {HOSTILE: [HOSTILE]}},
            operating_point=metrics.OperatingPoint(HOSTILE, 0.437, 0.9, 0.9, 200),
        )
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert_self_contained(page)


def test_images_beside_the_threshold_and_heatmaps_are_shown_where_there_are_some() -> None:
    assert "Nearest to the threshold" not in scoring_text()
    pixels, heatmap = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32)
    shown = scored(uri="a/b.png", heatmap=reports.thumbnail(pixels, heatmap))
    page = reports.scoring_page(scoring(suspicious=[shown], nearest=[shown]))
    assert "Nearest to the threshold" in page
    assert page.count('alt="radiograph a/b.png"') == page.count('alt="heatmap of ') == 2
    assert page.count('alt="heatmap of radiograph a/b.png"') == 2
    assert words_of(page).count("It shows neither where a disease is") == 1


def test_pages_show_images_unlike_the_training_images_where_the_checkpoint_knows() -> None:
    assert "Unlike the training images" not in scoring_text()
    text = scoring_text(num_unusual=37)
    assert "37 images of 1,300 scored" in text
    assert "37 2.8% of scored" in text
    features = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    distribution = fit_distribution(features[:200], features[200:])
    assert distribution is not None
    distances = np.append(distribution.distances(features[:57]), [50.0, 60.0, 70.0])
    report = dataclasses.replace(evaluation(), distances=distances, distribution=distribution)
    page = reports.evaluation_page(report)
    assert_self_contained(page)
    flagged = int((distances > distribution.threshold).sum())
    assert f"{flagged} images of 60 ({flagged / 60:.1%})" in words_of(page)
    assert "Histogram of distances to the training images" in page
    assert "Histogram of distances" not in reports.evaluation_page(evaluation())


def explanation(**changes: Any) -> reports.ExplanationReport:
    pixels, heatmap = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32)
    image = scored(
        number="0001",
        uri="a/b.png",
        prob=0.437,
        warnings=["no window in the file"],
        heatmap=reports.thumbnail(pixels, heatmap),
    )
    values: dict[str, Any] = {
        "title": "A title",
        "inputs": ["s3://bucket/xrays/"],
        "num_listed": 2,
        "num_read": 2,
        "method": "Occlusion.",
        "border_share": 0.634,
        "operating_point": metrics.OperatingPoint("youden", 0.437, 0.951, 0.884, 1_046),
        "images": [image],
        "failures": [reports.FailureGroup("refused", "modality CT, not CR", 1, ["a/c.dcm"])],
        "facts": {"method": "occlusion"},
    }
    return reports.ExplanationReport(**(values | changes))


def test_explanation_page_says_what_a_heatmap_is_not_and_what_was_left_out() -> None:
    page = reports.explanation_page(explanation())
    assert_self_contained(page)
    text = words_of(page)
    assert "It shows neither where a disease is nor whether the score is right" in text
    assert "0001: 0.437 predicted pneumonia" in text
    assert "63% on average lies in the border of the images: the outer 10% of their sides" in text
    assert "and 36% of their area" in text
    assert "modality CT, not CR" in text
    assert "--limit" not in text
    cut = words_of(reports.explanation_page(explanation(num_listed=1_200)))
    assert "1,200 images listed; only the first 2 were read" in cut


def test_explanation_page_with_hostile_names_and_without_images() -> None:
    [image] = explanation().images
    hostile = dataclasses.replace(image, uri=HOSTILE, warnings=[HOSTILE])
    page = reports.explanation_page(explanation(images=[hostile], inputs=[HOSTILE]))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert_self_contained(page)
    empty = reports.explanation_page(explanation(images=[], failures=[], border_share=None))
    assert "No image was explained." in empty
    assert "on average lies in the border" not in empty


def test_an_overlay_is_the_radiograph_where_the_heatmap_is_zero() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    heatmap = np.zeros((8, 8), np.float32)
    heatmap[0, 0] = 1
    mixed = reports.overlay(pixels, heatmap)
    assert mixed.shape == (8, 8, 3)
    assert mixed.dtype == np.uint8
    changed = (mixed != pixels[..., None]).any(axis=2)
    assert np.argwhere(changed).tolist() == [[0, 0]]
    with Image.open(io.BytesIO(reports.thumbnail(pixels, heatmap))) as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize("num_listed", [0, 17])
def test_scoring_page_of_nothing_scored(num_listed: int) -> None:
    changes: dict[str, Any] = {"histogram": [0] * 20, "num_predicted": 0, "suspicious": []}
    if not num_listed:
        changes |= {"num_refused": 0, "num_unreadable": 0, "failures": []}
    report = scoring(num_listed=num_listed, **changes)
    text = scoring_text(num_listed=num_listed, **changes)
    assert "Predicted pneumonia 0 no images scored" in text
    assert "No image was scored." in text
    assert ("no images listed" in text) == (not num_listed)
    assert not re.search(r"\b(nan|None)\b", text.replace("None of them", ""))
    assert "<svg" not in reports.scoring_page(report)
    assert_self_contained(reports.scoring_page(report))


def test_scoring_page_of_nothing_failed_warned_or_skipped() -> None:
    changes: dict[str, Any] = {"num_listed": 1_300, "num_refused": 0, "num_unreadable": 0}
    changes |= {"failures": [], "warnings": {}, "skipped": {}, "facts": {}, "inputs": ["x.zip"]}
    text = scoring_text(**changes)
    assert "1,300 of 1,300 images from x.zip scored" in text
    assert "No image was refused or unreadable." in text
    assert "No scored image has a warning." in text
    assert "every file in the inputs was listed" in text
    assert "Provenance" not in text
    assert_self_contained(reports.scoring_page(scoring(**changes)))


def test_scoring_page_hides_no_image() -> None:
    assert "scored or explained" not in scoring_text()
    assert "1,320 images listed, 1,317 scored or explained" in scoring_text(num_listed=1_320)
    assert "without a recorded reason" not in scoring_text()
    few = [reports.FailureGroup("refused", "modality CT, not CR", 14, [])]
    assert "3 images without a recorded reason" in scoring_text(failures=few)
    assert "17 images without a recorded reason" in scoring_text(failures=[])


def histogram(probs: list[float]) -> tuple[str, list[float]]:
    """The histogram on the page and the heights of its bars, from the left."""
    page = reports.scoring_page(scoring(histogram=bin_scores(np.array(probs))))
    drawn = page[page.index("<svg") : page.index("</svg>")]
    bars = re.findall(r'd="M ([^"]*)z " clip-path="[^"]*" style="fill: var\(--accent\)', drawn)
    ends = [[float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", bar)] for bar in bars]
    return drawn, [max(y) - min(y) for y in ends]


def test_histogram_counts_every_score_in_its_bin() -> None:
    # 0, 0.15 and 0.95 open a bin, 1 closes the last.
    drawn, heights = histogram([0.0] * 6 + [0.04] * 4 + [0.15, 0.19] + [0.95, 0.99, 1.0])
    assert np.divide(heights, heights[1]) == pytest.approx([5, 1, 1.5], rel=1e-4)
    assert ">images</text>" in drawn
    assert ">threshold 0.437</text>" in drawn


def test_histogram_shows_one_image_beside_thousands() -> None:
    drawn, heights = histogram([0.02] * 5_000 + [0.98])
    assert len(heights) == 2
    assert ">images (logarithmic)</text>" in drawn
    assert ">1,000</text>" in drawn


# ---------------------------------------------------------------- tuning


def test_checking_page_shows_the_numbers_it_was_given() -> None:
    text = checking_text()
    for shown in (
        "1,256 images of 702 patients in labels.csv.",
        "1,254 99.8% of listed",
        "702 at most 9 images of one",
        "Normal 500 images, all splits",
        "python jobs/train.py --version best --data labels.csv --test-fraction 0.2",
        "Patients are identified by the column PatientID: 702 patients.",
        "In two splits: 3 patients in train and test.",
        "train 1,005 401 604 561 1,003 1,001",
        "jpeg 1,200 1 dicom 54 0 unknown 0 1",
        ".txt 17 hidden 4",
        "N frames, not one refused 2 /data/x.dcm",
        "decoded pixels 13 27 5 3 2 2",
        "/data/c = /data/d",
        "31 images with a side below that: enlarged.",
        "width 400 1,336 2,916 height 127 888 2,713",
        "PA 40 not given 14",
        "0-9 6 40-49 33 90 or older 2 not given 13",
        "with both labels: 2 groups of images.",
    ):
        assert shown in text, shown
    assert "Training cannot start" not in text


def test_checking_page_of_a_set_that_cannot_be_trained_on_says_why_and_gives_no_command() -> None:
    text = checking_text(problems=["labels.csv: split 'train' has no NORMAL."], command="")
    assert "Training cannot start: labels.csv: split 'train' has no NORMAL." in text
    assert "Next" not in text


def test_checking_page_of_what_could_not_be_decoded() -> None:
    splits = [reports.SplitCounts("train", 2, 1, 1, 2, 0, 0)]
    nothing = reports.Duplicates("file content", 0, 0, 0, 0, 0, 0, [])
    text = checking_text(
        splits=splits, sizes=None, samples=[], views={}, ages={}, duplicates=[nothing],
        shared_patients={}, skipped={}, warnings=[], failures=[],
    )  # fmt: skip
    assert "0 0.0% of listed" in text
    assert "No two images are equal" in text
    assert "No patient is in two splits." in text
    assert "Sizes" not in text
    assert "DICOM headers" not in text


def test_checking_page_with_images_of_one_size_has_no_histogram() -> None:
    sizes = reports.Sizes((224, 224, 224), (224, 224, 224), 0, [224, 224])
    assert "The longer side is 224 pixels in every image." in checking_text(sizes=sizes)


def test_checking_page_is_self_contained_and_escaped() -> None:
    page = reports.checking_page(checking(data=HOSTILE, title=HOSTILE, command=HOSTILE))
    assert_self_contained(page)
    assert "<script>" not in page


def test_a_check_as_json_has_counts_and_no_pictures() -> None:
    content = json.loads(json.dumps(checking().to_json(), allow_nan=False))
    assert content["num_images"] == 1256
    assert content["formats"]["jpeg"] == {"decoded": 1200, "not_decoded": 1}
    assert content["duplicates"][1]["contradicting"] == 2
    assert content["sizes"]["width"] == [400, 1336, 2916]
    assert "long_sides" not in content["sizes"]
    assert "samples" not in content


def test_tuning_page_shows_the_numbers_it_was_given() -> None:
    text = tuning_text()
    for words in (
        "Cross-validation on chest_xray: 5,232 images of 2,790 patients in 3 folds",
        "Trials with an AUC 2 of 4 trials 1 failed, 1 undefined",
        "Best AUC 0.977 95% [0.966, 0.984] the highest of 2: optimistic",
        "Best setting per_image, none normalization, class_weighting Images 5,232",
        "2 images could not be read: truncated",
        "AUC +0.021 [-0.004, +0.046], n = 2,790 patients",
        "normalization, against none",
        "+0.021 [-0.004, +0.046]",
        "5,200 images of 2,780 patients",
        "0.977, 0.955, 0.966 1,234.5",
        "backbone squeezenet1_1",
        "versions.torch 2.8.0",
    ):
        assert words in text
    assert "phantoms" not in text


def test_tuning_page_has_every_setting_on_both_maps() -> None:
    text = tuning_text()
    assert (
        "AUC class_weighting normalization none balanced "
        "none 0.911 [0.900, 0.918] failed per_image 0.977 [0.966, 0.984] best undefined 0.911 0.977"
    ) in text
    assert (
        "Balanced accuracy class_weighting normalization none balanced "
        "none 0.861 [0.850, 0.868] failed per_image 0.927 [0.916, 0.934] best undefined 0.861 0.927"
    ) in text


def test_tuning_page_lists_all_trials_best_first() -> None:
    text = tuning_text()
    table = text[text.index("4 trials, highest AUC first") :]
    ranks = [table.index(f"{name} ") for name in ("per_image, none", "none, none")]
    ranks += [table.index(f"{name} ") for name in ("none, balanced", "per_image, balanced")]
    assert ranks == sorted(ranks)


def test_tuning_page_says_why_a_trial_has_no_auc() -> None:
    text = tuning_text()
    assert "none, balanced failed 0 of 3 it diverged" in text
    assert "per_image, balanced undefined 2 of 3 the AUC is undefined in 1 of 3 folds" in text
    assert "undefined, 0.955, 0.966" in text
    assert not re.search(r"\b(nan|None)\b", text.replace("None of them", ""))
    trials = [trial(0.9, normalization="none", class_weighting="none")]
    assert "Trials without an AUC" not in tuning_text(trials=trials)
    assert "not tried" in tuning_text(trials=trials)


def test_tuning_page_warns_of_its_best_trial() -> None:
    text = tuning_text()
    assert "The best of 2 trials is optimistic" in text
    assert "Nothing was chosen on the test split" in text
    assert "not for clinical use" in text
    phantoms = tuning_text(data="phantoms, 240 of them")
    assert "they say nothing about radiographs of patients" in phantoms


def test_tuning_page_is_self_contained_and_the_same_each_time() -> None:
    page = reports.tuning_page(tuning())
    assert_self_contained(page)
    assert reports.tuning_page(tuning()) == page


def test_tuning_page_with_hostile_names() -> None:
    other = "$x^2$ &amp; font-family: y"
    settings: list[dict[str, Any]] = [{HOSTILE: HOSTILE, other: other, "<rate>": 0.1}]
    settings += [{HOSTILE: other, other: other, "<rate>": 0.2}]
    page = reports.tuning_page(
        tuning(
            title=HOSTILE,
            data=HOSTILE,
            recipe={HOSTILE: HOSTILE},
            grid={HOSTILE: [HOSTILE, other], other: [other], "third": [HOSTILE]},
            sampled=["<rate>"],
            trials=[
                trial(0.9, third=HOSTILE, **settings[0]),
                trial(None, reason=HOSTILE, third=HOSTILE, **settings[1]),
            ],
            effects=[Effect(HOSTILE, HOSTILE, other, Interval(0, 0, 0), 1, 1)],
            answers=[HOSTILE],
            notes=[HOSTILE],
            facts={HOSTILE: {HOSTILE: [HOSTILE]}},
        )
    )
    assert "<script" not in page
    assert "<rate" not in page
    assert_self_contained(page)


def test_tuning_page_of_one_factor_is_one_column() -> None:
    trials = [trial(0.911, batch_size=16), trial(0.977, batch_size=64.0)]
    changes = {"grid": {"batch_size": ["16", "64"]}, "trials": trials, "effects": []}
    text = tuning_text(**changes)
    assert "AUC batch_size AUC 16 0.911 [0.900, 0.918] 64 0.977 [0.966, 0.984] best" in text
    assert "Best setting 64 batch_size" in text
    assert "none failed" in text
    assert "Effects" not in text


def test_tuning_page_of_three_factors_has_maps_for_each_value_of_the_third() -> None:
    grid = {"a": ["a1", "a2"], "b": ["b1", "b2"], "c": ["c1", "c2"]}
    aucs = iter(np.arange(0.901, 0.909, 0.001))
    trials = [
        trial(float(next(aucs)), a=a, b=b, c=c)
        for a in grid["a"]
        for b in grid["b"]
        for c in grid["c"]
    ]
    page = reports.tuning_page(tuning(grid=grid, trials=trials))
    text = words_of(page)
    assert page.count('class="heat"') == 4
    for third, expected in (("c1", (1, 3, 5, 7)), ("c2", (2, 4, 6, 8))):
        heat_map = text[text.index(f"AUC, c {third}") :]
        cells = re.findall(r"0\.(\d{3}) \[", heat_map)[:4]
        assert cells == [f"90{figure}" for figure in expected]
    # One scale and one best over all maps of a figure.
    assert page.count('class="best"') == 2
    assert_self_contained(page)


def test_tuning_page_marks_equal_settings_alike() -> None:
    grid = {"a": ["a1", "a2", "a3"]}
    trials = [trial(0.9, a="a1"), trial(0.95, a="a2"), trial(0.95, a="a3")]
    page = reports.tuning_page(tuning(grid=grid, trials=trials))
    assert page.count('class="best"') == 4
    assert "Best setting a2 a 1 other setting with the same AUC" in " ".join(words_of(page).split())


def test_tuning_page_ranks_by_the_stressed_auc_and_says_so() -> None:
    stressed = {"none": (0.941, "noise"), "per_image": (0.905, "zoom_in")}
    trials = [
        dataclasses.replace(
            trial(auc, normalization=name),
            stressed_auc=Interval(stressed[name][0], 0.9, 0.95),
            change_aucs={"blur": 0.96, stressed[name][1]: 0.812},
        )
        for auc, name in ((0.911, "none"), (0.977, "per_image"))
    ]
    trials += [dataclasses.replace(trial(0.99, normalization="unit"), reason="no stressed AUC")]
    changes: dict[str, Any] = {
        "grid": {"normalization": ["none", "per_image", "unit"]}, "trials": trials,
        "stress": "Stressed AUC: the mean of two.",
    }  # fmt: skip
    text = tuning_text(**changes, select="stressed")
    assert "Stressed AUC: the mean of two. Trials are ranked by the stressed AUC" in text
    assert "effects are of it (--select stressed)." in text
    assert "Best stressed AUC 0.941 95% [0.900, 0.950] the highest of 2" in text
    assert "Best setting none normalization" in text
    assert "Stressed AUC normalization Stressed AUC none 0.941 [0.900, 0.950] best" in text
    assert "Change in stressed AUC from the reference" in text
    table = text[text.index("3 trials, highest stressed AUC first") :]
    assert "0.905 [0.900, 0.950] 0.812 under zoom in" in table
    assert table.index("none 0.911") < table.index("per_image 0.977") < table.index("unit")
    clean = tuning_text(**changes, select="clean")
    assert "Best AUC 0.990" in clean
    assert "(--select clean)" in clean
    assert "0.905 [0.900, 0.950] 0.812 under zoom in" in clean


def test_tuning_page_without_changed_images_does_not_name_them() -> None:
    assert "stressed" not in tuning_text().lower()


def test_tuning_page_shows_sampled_settings() -> None:
    rates = (1e-4, 1e-3, 3e-2)
    trials = [
        trial(None if rate > 0.01 else 0.9 + rate, learning_rate=rate, dropout=0.2 + rate)
        for rate in rates
    ]
    page = reports.tuning_page(
        tuning(grid={}, sampled=["learning_rate", "dropout", "absent"], trials=trials)
    )
    text = words_of(page)
    assert page.count("2 trials with an AUC, 1 without.") == 2
    assert ">learning_rate (logarithmic)</text>" in page
    assert ">dropout</text>" in page
    assert "absent undefined : no trial has an AUC" in text
    assert "Best setting learning_rate 0.001, dropout 0.201" in text
    assert "Rows:" not in text
    assert_self_contained(page)


def test_tuning_page_shows_the_best_of_the_trials_in_a_cell() -> None:
    grid = {"a": ["a1", "a2"]}
    trials = [trial(0.9, a="a1", rate=0.1), trial(0.95, a="a1", rate=0.2)]
    trials += [trial(None, a="a2", rate=0.1, reason="it diverged")]
    text = tuning_text(grid=grid, trials=trials, sampled=["rate"])
    assert "a1 0.950 [0.939, 0.957] best 1 of 2 trials a2 failed" in text
    assert "it shows the one with the highest AUC" in text


@pytest.mark.parametrize("num_trials", [0, 1])
def test_tuning_page_without_an_auc(num_trials: int) -> None:
    trials = [trial(None, normalization="none", class_weighting="none", reason="no space left")]
    changes: dict[str, Any] = {"trials": trials[:num_trials], "effects": [], "answers": []}
    changes |= {"sampled": ["learning_rate"], "notes": [], "facts": None, "recipe": {}}
    text = tuning_text(**changes)
    assert "Best AUC undefined no trial has an AUC" in text
    assert "No trial has a figure here." in text
    assert ("no space left" in text) == bool(num_trials)
    assert ("No trial was started." in text) == (not num_trials)
    assert not re.search(r"\b(nan|None)\b", text.replace("None of them", ""))
    assert_self_contained(reports.tuning_page(tuning(**changes)))


# ---------------------------------------------------------------- thumbnail


def test_thumbnail_is_a_small_gray_jpeg_of_the_same_shape() -> None:
    pixels = np.tile(np.linspace(0, 255, 1000).astype(np.uint8), (500, 1))
    with Image.open(io.BytesIO(reports.thumbnail(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (224, 112))
        small = np.asarray(image)
    assert small[:, 0].max() < 10
    assert small[:, -1].min() > 245


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_thumbnail_refuses_what_is_not_gray(pixels: Any) -> None:
    with pytest.raises(ImageError, match=r"expected gray uint8 \(H, W\)"):
        reports.thumbnail(pixels)
