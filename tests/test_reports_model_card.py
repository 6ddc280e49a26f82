"""A model card says what the checkpoint holds, and of the rest that it is not available."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cxr.metrics import Estimate, OperatingPoint, Robustness, Scaling
from cxr.models.checkpoint import Checkpoint, Member
from cxr.models.unusual import fit_distribution
from cxr.recipes import RECIPES
from cxr.reports import model_card

PROVENANCE: dict[str, Any] = {
    "data": {
        "name": "chest_xray", "num_images": 4172, "num_left_out": 13, "fingerprint": "f00d" * 4,
        "fold": 0, "folds": 5, "num_validation": 40, "num_held_out": 900,
        "patients": "Patients are identified by the column patient: 20 patients with 1 image each.",
    },
    "weights": {"source": "/home/roentgen/squeezenet1_1-b8a52dc0.pth", "tensors": 52,
                "sha256": "beef" * 16},
    "packages": {"cxr": "9.8.7", "torch": "2.6.0"},
    "command": "python jobs/train.py --recipe recipe.json --data chest_xray",
}  # fmt: skip

POINT = OperatingPoint("sensitivity=0.95", 0.25, 0.95, 0.9, 40)


@pytest.fixture
def trained(tmp_path: Path) -> Checkpoint:
    """40 validation images of 20 patients; two normal ones are called pneumonia, one surely."""
    y_true = np.arange(40) % 2
    logits = np.where(y_true == 1, 2.0, -2.0)
    logits[0], logits[2] = 4.0, -0.5
    splits = pa.table(
        {
            "role": ["train"] * 3 + ["validation"] * 2 + ["test"],
            "patient": ["a", "a", "b", "c", "d", "e"],
        }
    )
    subtypes = ["" if label == 0 else "virus" if i % 4 == 1 else "bacteria"
                for i, label in enumerate(y_true)]  # fmt: skip
    return Checkpoint(
        recipe=RECIPES["best"],
        weights=b"",
        operating_point=POINT,
        scaling=Scaling(1.25, 0.5),
        provenance=PROVENANCE,
        validation=pa.table(
            {
                "label": y_true,
                "logit": logits,
                "subtype": subtypes,
                "patient": np.arange(40) // 2,
                "change": [""] * 40,
                "image": np.arange(40),
            }
        ),
        fingerprint="cafe" * 16,
        folder=str(tmp_path),
        network=None,
        splits=splits,
    )


def section(card: str, heading: str) -> str:
    return card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_what_the_checkpoint_holds_is_in_its_card(trained: Checkpoint) -> None:
    card = model_card(trained)
    assert card.startswith("# Model card: best\n")
    assert "| Fingerprint | " + "cafe" * 16 in section(card, "Model")
    assert "| Made by | cxr 9.8.7 |" in section(card, "Model")
    assert "squeezenet1_1, 160 x 160 px" in section(card, "Model")
    assert "| Images used | 4,172 |" in section(card, "Training data")
    assert "| Images left out (unreadable, or duplicates) | 13 |" in section(card, "Training data")
    assert "f00d" * 4 in section(card, "Training data")
    assert "20 patients with 1 image each" in section(card, "Training data")
    splits = section(card, "Splits")
    assert "| training | 2 | 3 |\n| validation | 2 | 2 |\n| held out to test on | 1 | not" in splits
    figures = section(card, "Figures")
    assert "40 images (20 normal, 20 pneumonia) of 20 patients" in figures
    assert re.search(r"\| AUC \| 0\.9\d\d \[0\.\d{3}, 1\.000\] \| 40 \| 20 \|", figures)
    assert "| Specificity | 0.900 [" in figures
    assert "| Sensitivity, viral | 1.000 [1.000, 1.000] | 10 | 10 |" in figures
    point = section(card, "Operating point")
    assert "at a probability of 0.2500 or above" in point
    assert "40 validation images by the rule `sensitivity=0.95`" in point
    assert "sensitivity of\n0.950 and a specificity of 0.900" in point
    calibration = section(card, "Calibration")
    assert "Platt scaling (temperature 1.250, bias +0.500)" in calibration
    assert "Of these, 50% show pneumonia" in calibration
    failures = section(card, "Known failures")
    assert "2 of 20 normal validation images are called pneumonia, and 0 of 20" in failures
    assert "1 of these errors are confident" in failures
    assert PROVENANCE["command"] in section(card, "How it was made")
    assert "| torch | 2.6.0 |" in section(card, "How it was made")
    assert "squeezenet1_1-b8a52dc0.pth, 52 tensors" in section(card, "Licenses")


def test_what_it_does_not_hold_is_not_available(trained: Checkpoint) -> None:
    empty = dataclasses.replace(
        trained,
        provenance={},
        splits=None,
        validation=trained.validation.set_column(2, "subtype", pa.array([""] * 40)),
    )
    card = model_card(empty)
    for heading in ("Splits", "Robustness"):
        assert section(card, heading).strip() == "Not available."
    data = section(card, "Training data")
    lines = [line for line in data.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 8
    assert all(line.endswith("| not available |") for line in lines)
    assert "By type of pneumonia: not available." in card
    assert "8-bit integers: not available." in section(card, "Precision")
    assert "not available" in section(card, "Unusual images")
    assert "| Made by | cxr not available |" in section(card, "Model")
    assert "Command: not available." in section(card, "How it was made")
    assert "Pretrained weights: not available." in section(card, "Licenses")


def test_no_folder_of_a_path_is_in_the_card(trained: Checkpoint) -> None:
    assert "roentgen" not in model_card(trained)
    assert trained.folder not in model_card(trained)


def test_robustness_is_in_the_card_where_it_is_known(trained: Checkpoint) -> None:
    def figures(auc: float) -> dict[str, Estimate]:
        estimate = Estimate(0.5, 0.25, 0.75, 40, 20, 0)
        return {
            "auc": dataclasses.replace(estimate, value=auc),
            "sensitivity": estimate,
            "specificity": Estimate(None, None, None, 0, 0, 0),
        }

    table = Robustness(
        num_images=40, num_patients=20, num_resamples=100, seed=0, clean=figures(0.95),
        changes={"noise": figures(0.875), "blur": figures(0.75)}, mean=figures(0.8125),
    )  # fmt: skip
    stressed = dataclasses.replace(
        trained.operating_point, stressed_sensitivity=0.75, stressed_specificity=0.5
    )
    features = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    card = model_card(
        dataclasses.replace(
            trained,
            robustness=table,
            operating_point=stressed,
            calibrated_on="stressed",
            distribution=fit_distribution(features[:200], features[200:]),
        )
    )
    robustness = section(card, "Robustness")
    assert "| none | 0.950" in robustness
    assert "| mean | 0.812" in robustness
    assert "and of\n0.750 and 0.500 under acquisition changes" in section(card, "Operating point")
    half = "0.500 [0.250, 0.750]"
    assert f"| noise | 0.875 [0.250, 0.750] | {half} | undefined |" in robustness
    assert "| blur | 0.750" in robustness
    unusual = section(card, "Unusual images")
    assert "those of 200 training images than those of 99% of 100 validation images" in unusual


def test_shortcuts_are_measured_or_said_to_be_unknown(trained: Checkpoint) -> None:
    unknown = section(model_card(trained), "Shortcuts")
    assert "in the border of the image: not available." in unknown
    measured = section(model_card(trained, [0.5, 0.75, 0.625]), "Shortcuts")
    assert "62% of a Grad-CAM heatmap lies in the border of the image" in measured
    assert "measured on 3 validation images" in measured
    assert "the outer 10% of the image's sides" in measured
    assert "and 36% of its area" in measured
    assert "not available" not in measured
    for text in (unknown, measured):
        assert "text markers" in text
        assert "`jobs/explain.py --checkpoint DIR" in text


def test_an_ensemble_says_whose_the_figures_are(trained: Checkpoint) -> None:
    members = tuple(Member(trained.recipe, fold) for fold in range(3))
    card = model_card(dataclasses.replace(trained, members=members))
    assert card.startswith("# Model card: best of 3 members\n")
    assert "mean probability of 3 members" in section(card, "Model")
    assert "figures are of single members" in section(card, "Figures")
    assert "no image is left that\nvalidates" in section(card, "Splits")


def test_phantoms_are_called_synthetic(trained: Checkpoint) -> None:
    assert "synthetic" not in model_card(trained)
    data = PROVENANCE["data"] | {"name": "phantoms"}
    phantoms = dataclasses.replace(trained, provenance=PROVENANCE | {"data": data})
    assert "**Trained on synthetic radiographs" in model_card(phantoms)


def test_hostile_names_are_text(trained: Checkpoint) -> None:
    name = "a|b\n# <img src=x> `c` [d](e) *f*"
    data = PROVENANCE["data"] | {"name": name}
    card = model_card(dataclasses.replace(trained, provenance=PROVENANCE | {"data": data}))
    expected = r"| Name | a\|b # \<img src=x\> \`c\` [d\](e) \*f\* |"
    assert expected in section(card, "Training data").splitlines()


def test_the_card_is_markdown(trained: Checkpoint) -> None:
    """Every row of a table has as many cells as its head, and no placeholder is left."""
    card = model_card(trained)
    assert not re.search(r"\{\{|\{%|None|nan\b", card)
    lines = card.splitlines()
    assert [line for line in lines if line.startswith("# ")] == ["# Model card: best"]
    for number, line in enumerate(lines):
        if re.fullmatch(r"(\|-+)+\|", line):
            columns = line.count("|")
            assert lines[number - 2] == "", "a table begins after an empty line"
            row = number + 1
            while row < len(lines) and lines[row].startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", lines[row])) == columns, lines[row]
                row += 1
            assert row > number + 1, "a table without rows"
    assert card.count("```") == 2
    assert card.endswith("\n")
