"""Pages that load nothing, hide nothing and invent nothing; a table that fits the terminal."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxr import metrics, reports
from cxr.errors import ImageError

HOSTILE = "/home/someone/secret/<script>alert('x')</script>/\"><img src=x onerror=y>.jpeg"

HISTORY = [
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
            reports.WrongImage("bucket/a/test/NORMAL/x.png", 0, 0.987, reports.thumbnail(pixels))
        ],
        notes=["2 images could not be read: truncated"],
    )
    return dataclasses.replace(report, **changes)


@pytest.fixture(scope="module")
def default_page() -> str:
    return reports.evaluation_page(evaluation())


def version(name: str = "v0", **changes: Any) -> reports.VersionResult:
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
    return reports.VersionResult(**(values | changes))


# ---------------------------------------------------------------- evaluation


def test_evaluation_page_shows_every_figure_with_its_interval(default_page: str) -> None:
    text = read(default_page).text
    examination = evaluation().examination
    groups = (
        examination.threshold_free,
        examination.at_half.estimates,
        examination.at_operating_point.estimates,
    )
    for group in groups:
        for name, estimate in group.items():
            if estimate.value is None:
                assert name == "sensitivity_virus"
                continue
            assert f"{estimate.value:.3f}" in text, name
            assert f"[{estimate.low:.3f}, {estimate.high:.3f}]" in text, name
    for label in ("AUC", "Average precision", "Brier", "Calibration error", "Sensitivity, viral"):
        assert label in text
    for label in ("Balanced accuracy", "Accuracy", "PPV", "NPV", "F1", "Sensitivity, bacterial"):
        assert label in text


def test_evaluation_page_says_on_whom_and_for_what(default_page: str) -> None:
    text = read(default_page).text
    assert "Test of chest_xray: 60 images of 30 patients" in text
    assert "not for clinical use" in text
    assert "children" in text
    assert "2 images could not be read: truncated" in text
    assert "optimizer.lr" in text
    assert "0.001" in text
    assert "2.8.0" in text
    assert "phantoms" not in text


def test_evaluation_page_shows_the_most_wrong(default_page: str) -> None:
    assert "normal, scored 0.987" in read(default_page).text
    assert default_page.count("data:image/jpeg;base64,") == 1


def test_evaluation_page_is_self_contained(default_page: str) -> None:
    assert_self_contained(default_page)


def test_evaluation_page_is_the_same_each_time(default_page: str) -> None:
    assert reports.evaluation_page(evaluation()) == default_page


def test_hostile_names_are_read_never_run() -> None:
    wrong = [reports.WrongImage(HOSTILE, 1, 0.01, b"jpeg")]
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


@pytest.mark.parametrize("label", [0, 1])
def test_undefined_figures_say_why(label: int) -> None:
    page = reports.evaluation_page(evaluation(y_true=np.full(20, label)))
    text = " ".join(read(page).text.split())
    assert "AUC area under the ROC curve undefined it needs normal and pneumonia images" in text
    missing = "no normal image" if label else "no pneumonia"
    assert f"undefined {missing}" in text
    assert not re.search(r"\b(nan|None)\b", text)
    assert_self_contained(page)


def test_undefined_epochs_are_gaps() -> None:
    history = [{"epoch": 1, "train_loss": 0.5, "val_loss": None, "val_auc": None, "seconds": 1.0}]
    page = reports.evaluation_page(evaluation(history=history))
    assert "Loss by epoch" in page
    assert "Validation AUC by epoch" not in page


def test_phantoms_are_called_so() -> None:
    text = read(reports.evaluation_page(evaluation(data="phantoms"))).text
    assert "they say nothing about radiographs of patients" in text


# ---------------------------------------------------------------- comparison


def test_table_fits_the_terminal() -> None:
    rows = [
        version(),
        version("a-very-long-name", data="a-very-long-data-set", num_images=999_999),
        version("v9", train_seconds=123_456.0, peak_memory_mb=123_456.0, published_sensitivity=0.9),
    ]
    lines = reports.comparison_table(rows).splitlines()
    assert max(map(len, lines)) <= 110
    assert len({len(line) for line in lines[1:6]}) == 1


def test_table_tells_ours_from_the_published() -> None:
    table = reports.comparison_table([version()])
    groups, header, _, row = table.splitlines()[:4]
    cells = "v0 phantoms 240 0.911 0.822 0.833 0.844 0.855 12.3 2,310 memory 0.625 -"
    assert " ".join(row.split()) == cells
    # A group's name stands at its first column's left edge, and the last two are published.
    assert row[: groups.index("published")].split()[-1] == "memory"
    assert header[groups.index("published") :].split() == ["acc", "sens"]
    assert "Different images" in table
    assert "validation fold" in table
    assert "official test split" in table
    assert "synthetic" in table


def test_table_leaves_undefined_figures_undefined() -> None:
    row = reports.comparison_table([version(auc=None, peak_memory_mb=None)]).splitlines()[3]
    assert row.split()[3] == "undef"
    assert row.split()[9] == "-"


def test_published_figures_are_those_of_the_2019_experiment() -> None:
    found = {
        name: (result.test_accuracy, result.test_sensitivity)
        for name, result in reports.PUBLISHED.items()
    }
    assert found == {
        "v0": (0.625, None),
        "v1": (0.742, 0.987),
        "v2": (0.8, None),
        "v3": (0.628, None),
    }


def test_comparison_page_shows_all_rows_and_is_self_contained() -> None:
    rows = [version(), version("v2", loading="stream", auc=None, peak_memory_mb=None)]
    page = reports.comparison_page(rows, {"v0": HISTORY, "v2": []}, ["A note."], "Versions")
    text = read(page).text
    for figure in ("0.911", "0.822", "0.833", "0.844", "0.855", "12.3", "2,310", "0.625"):
        assert figure in text
    for words in ("undefined", "not measured", "A note.", "phantoms", "cannot be set against"):
        assert words in text
    assert "they say nothing about radiographs of patients" in text
    assert "holds no image of a class" in text
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


# ---------------------------------------------------------------- thumbnail


def test_thumbnail_is_a_small_grey_jpeg_of_the_same_shape() -> None:
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
def test_thumbnail_refuses_what_is_not_grey(pixels: Any) -> None:
    with pytest.raises(ImageError, match=r"expected grey uint8 \(H, W\)"):
        reports.thumbnail(pixels)
