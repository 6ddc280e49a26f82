"""A checkpoint is used as it was saved, or refused; it names no patient."""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import torchvision

from cxr import metrics
from cxr.errors import CheckpointError, SettingsError
from cxr.metrics import CalibrateOn, Scaling
from cxr.models import checkpoint, classifier
from cxr.models.checkpoint import Checkpoint
from cxr.models.classifier import Classifier
from cxr.models.validation import add_changed
from cxr.recipes import Recipe

RECIPE = Recipe(
    name="small",
    backbone="squeezenet1_1",
    pretrained=0,
    frozen=0,
    image_px=32,
    pooling="average",
    hidden=(),
    dropout=(0.2,),
)

# Ordered by logit. At 3 of 4 sensitivity the third-highest pneumonia decides, at 1.0 the lowest.
LOGITS = [-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0]
LABELS = [0, 0, 1, 0, 1, 0, 1, 1]


def validation() -> pa.Table:
    return pa.table(
        {
            "uri": [f"s3://hospital/PNEUMONIA/person{i}_virus_6.jpeg" for i in range(8)],
            "label": LABELS,
            "logit": LOGITS,
            "subtype": ["", "", "virus", "", "bacteria", "", "virus", "virus"],
            "patient": ["roentgen", *(f"person{i}_virus" for i in range(7))],
        },
        metadata={"source": "s3://hospital"},
    )


@pytest.fixture
def model() -> Classifier:
    return classifier.build(RECIPE).eval()


@pytest.fixture
def saved(tmp_path: Path, model: Classifier) -> Checkpoint:
    return checkpoint.save(
        str(tmp_path / "checkpoint"), RECIPE, model, validation(), {"data": "phantoms"}
    )


def test_a_loaded_model_gives_the_same_logits_bit_for_bit(
    tmp_path: Path, model: Classifier, saved: Checkpoint
) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = checkpoint.load(str(tmp_path / "checkpoint"))
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(loaded.model(images), expected)
        assert torch.equal(saved.model(images), expected)
    assert not any(module.training for module in loaded.model.modules())


def test_a_checkpoint_of_format_1_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    # Written here as the first version wrote it, with torchvision's own layers for reference.
    features = torchvision.models.squeezenet1_1().features
    head = torch.nn.Linear(512, 2)
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    state |= {f"head.3.{name}": tensor for name, tensor in head.state_dict().items()}
    files = {"model.safetensors": safetensors.torch.save(state)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"label": LABELS, "logit": LOGITS}), sink)
    files["validation.parquet"] = sink.getvalue().to_pybytes()
    settings = {
        "name": "small", "backbone": "squeezenet1_1", "pretrained": 0, "frozen": 0, "image_px": 32,
        "pooling": "average", "hidden": [], "dropout": [0.2], "normalization": "unit",
    }  # fmt: skip
    point = {
        "rule": "youden", "threshold": 0.5, "sensitivity": 0.75, "specificity": 0.75, "n": 8,
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    description = {
        "format": 1,
        "recipe": settings,
        "classes": ["NORMAL", "PNEUMONIA"],
        "operating_point": point,
        "temperature": 1.5,
        "provenance": {},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    (tmp_path / "checkpoint.json").write_text(json.dumps(description))
    loaded = checkpoint.load(str(tmp_path))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = head(features.eval()(images).mean(dim=(2, 3), keepdim=True).flatten(1))
        assert torch.equal(loaded.model(images), expected)
    assert (loaded.scaling, loaded.operating_point.threshold) == (Scaling(1.5), 0.5)
    assert (loaded.recipe.normalization, loaded.recipe.dropout) == ("unit", (0.2,))
    assert (loaded.robustness, loaded.calibrated_on) == (None, "clean")
    assert loaded.clean_validation["logit"].to_pylist() == LOGITS
    sensitive = loaded.choose("sensitivity=1.0")
    assert (sensitive.specificity, sensitive.stressed_specificity) == (0.5, None)


def test_all_that_was_saved_is_loaded(tmp_path: Path, saved: Checkpoint) -> None:
    loaded = checkpoint.load(str(tmp_path / "checkpoint"))
    assert loaded.recipe == RECIPE
    assert loaded.operating_point == saved.operating_point
    assert loaded.operating_point.rule == "youden"
    assert loaded.scaling == saved.scaling
    assert loaded.provenance["data"] == "phantoms"
    assert loaded.provenance["packages"]["torch"] == metadata.version("torch")
    assert loaded.fingerprint == saved.fingerprint
    assert loaded.validation["label"].to_pylist() == LABELS
    assert loaded.validation["logit"].to_pylist() == LOGITS


def test_the_files_are_those_that_are_described(tmp_path: Path, saved: Checkpoint) -> None:
    folder = tmp_path / "checkpoint"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.json",
        "model.onnx",
        "model.safetensors",
        "validation.parquet",
    ]
    content = json.loads((folder / "checkpoint.json").read_text())
    assert content["classes"] == ["NORMAL", "PNEUMONIA"]
    assert content["transform"]["image_px"] == 32
    assert content["transform"]["normalization"] == "none"
    assert content["operating_point"]["threshold"] == saved.operating_point.threshold


def test_splits_are_one_of_the_files(tmp_path: Path, model: Classifier, saved: Checkpoint) -> None:
    assert checkpoint.load(str(tmp_path / "checkpoint")).splits is None  # As of older versions.
    splits = pa.table({"role": ["train"], "patient": ["a1"]}).replace_schema_metadata({"salt": "b"})
    folder = tmp_path / "other"
    checkpoint.save(str(folder), RECIPE, model, validation(), {}, splits=splits)
    loaded = checkpoint.load(str(folder)).splits
    assert loaded is not None
    assert loaded.equals(splits, check_metadata=True)
    content = bytearray((folder / "splits.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "splits.parquet").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"splits\.parquet: changed since"):
        checkpoint.load(str(folder))


def test_a_loaded_checkpoint_has_its_folder_and_date_as_name(
    tmp_path: Path, saved: Checkpoint
) -> None:
    os.utime(tmp_path / "checkpoint" / "checkpoint.json", (0, 1_780_000_000))
    assert checkpoint.load(str(tmp_path / "checkpoint")).name == (
        f"{tmp_path}/checkpoint (written 2026-05-28 20:26 UTC)"
    )


def test_a_checkpoint_names_no_patient_and_no_file(tmp_path: Path, saved: Checkpoint) -> None:
    for path in (tmp_path / "checkpoint").iterdir():
        for name in (b"hospital", b"person", b"roentgen", b".jpeg", str(tmp_path).encode()):
            assert name not in path.read_bytes()
    table = pq.read_table(tmp_path / "checkpoint" / "validation.parquet")
    assert table.column_names == ["label", "logit", "subtype", "patient", "change", "image"]
    assert sorted(table["patient"].to_pylist()) == list(range(8))
    assert table.schema.metadata is None
    assert saved.validation.equals(table)


@pytest.mark.parametrize(
    ("rule", "between", "sensitivity", "specificity"),
    [
        ("sensitivity=1.0", (-2.0, -1.0), 1.0, 0.5),
        ("sensitivity=0.75", (-0.5, 0.5), 0.75, 0.75),
        ("specificity=1.0", (1.0, 2.0), 0.5, 1.0),
    ],
)
def test_another_operating_point_is_chosen_from_the_stored_validation(
    saved: Checkpoint,
    rule: str,
    between: tuple[float, float],
    sensitivity: float,
    specificity: float,
) -> None:
    point = saved.choose(rule)
    low, high = metrics.probabilities(between, saved.scaling)
    assert (point.rule, point.n) == (rule, 8)
    assert low < point.threshold < high
    assert (point.sensitivity, point.specificity) == (sensitivity, specificity)


def test_the_stored_operating_point_is_kept_unless_another_is_asked_for(saved: Checkpoint) -> None:
    assert saved.choose(None) == saved.operating_point
    assert saved.choose("youden") == saved.operating_point
    with pytest.raises(SettingsError, match="unknown operating point rule 'best'"):
        saved.choose("best")


# Acquisition changes ------------------------------------------------------------------------------

STRESSED = [0, 3, 4, 7]
"""The images that were scored under changes: two of each class."""


def stressed() -> pa.Table:
    """Noise raises every logit by 2; a shift changes nothing."""
    own = np.array(LOGITS)[STRESSED]
    return add_changed(validation(), np.array(STRESSED), {"noise": own + 2, "shift": own})


def save_stressed(folder: Path, model: Classifier, calibrate_on: CalibrateOn) -> Checkpoint:
    return checkpoint.save(
        str(folder), RECIPE, model, stressed(), {}, "sensitivity=1.0", calibrate_on=calibrate_on
    )


def test_figures_under_changes_are_loaded_as_they_were_saved(
    tmp_path: Path, model: Classifier
) -> None:
    saved = save_stressed(tmp_path, model, "stressed")
    loaded = checkpoint.load(str(tmp_path))
    assert loaded.robustness == saved.robustness
    assert loaded.robustness is not None
    assert (loaded.robustness.num_images, loaded.robustness.num_patients) == (4, 4)
    assert list(loaded.robustness.changes) == ["noise", "shift"]
    assert loaded.robustness.changes["shift"] == loaded.robustness.clean
    assert loaded.calibrated_on == "stressed"
    assert loaded.clean_validation["logit"].to_pylist() == LOGITS
    assert b"person" not in (tmp_path / "validation.parquet").read_bytes()
    assert checkpoint.load(str(tmp_path)).choose(None) == saved.operating_point


@pytest.mark.parametrize("calibrate_on", ["stressed", "clean"])
def test_the_operating_point_states_what_it_reaches_on_clean_and_on_changed_images(
    tmp_path: Path, model: Classifier, calibrate_on: CalibrateOn
) -> None:
    saved = save_stressed(tmp_path, model, calibrate_on)
    y_true, logits = np.array(LABELS), np.array(LOGITS)
    own = np.concatenate([logits[STRESSED] + 2, logits[STRESSED]])
    odds = saved.operating_point.threshold / (1 - saved.operating_point.threshold)
    threshold = saved.scaling.temperature * (np.log(odds) - saved.scaling.bias)
    point = saved.operating_point
    assert point.sensitivity == (logits[y_true == 1] >= threshold).mean() == 1
    assert point.specificity == (logits[y_true == 0] < threshold).mean()
    labels = np.tile(y_true[STRESSED], 2)
    assert point.stressed_sensitivity == (own[labels == 1] >= threshold).mean() == 1
    assert point.stressed_specificity == (own[labels == 0] < threshold).mean()
    # The clean images alone put the least pneumonia at -1, and so do both.
    assert point.n == 8


def test_another_rule_is_applied_to_the_images_that_the_checkpoint_was_calibrated_on(
    tmp_path: Path, model: Classifier
) -> None:
    clean = save_stressed(tmp_path / "clean", model, "clean").choose("specificity=1.0")
    both = save_stressed(tmp_path / "both", model, "stressed").choose("specificity=1.0")
    # Of the clean images the highest normal one has a logit of 1, under noise it has 1.5.
    assert (clean.specificity, clean.stressed_specificity) == (1.0, 0.75)
    assert (both.specificity, both.stressed_specificity) == (1.0, 1.0)


def test_a_network_in_int8_is_calibrated_on_the_same_kind_of_images(
    tmp_path: Path, model: Classifier
) -> None:
    saved = save_stressed(tmp_path, model, "stressed")
    checkpoint.add_int8(saved, b"", stressed(), {})
    quantized = checkpoint.load(str(tmp_path)).at("int8")
    assert (quantized.calibrated_on, quantized.robustness) == ("stressed", saved.robustness)
    assert quantized.operating_point == saved.operating_point


def test_a_damaged_robustness_table_is_refused(tmp_path: Path, model: Classifier) -> None:
    save_stressed(tmp_path, model, "stressed")
    content = json.loads((tmp_path / "checkpoint.json").read_text())
    del content["robustness"]["clean"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="lacks 'clean'"):
        checkpoint.load(str(tmp_path))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert not checkpoint.exists(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no checkpoint here .*jobs/train\.py printed"):
        checkpoint.load(str(tmp_path))


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("name", ["model.safetensors", "validation.parquet"])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"checkpoint/{name}: changed since .*Copy the"):
        checkpoint.load(str(folder))


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("name", ["model.safetensors", "validation.parquet", "checkpoint.json"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(str(folder))


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 99}, r"format 99, this version of cxr reads 1 and 2\."),
        ({"format": 99, "sha256": None}, r"format 99, this version of cxr reads 1 and 2\."),
        ({"recipe": {"epochz": 1}}, "unknown recipe field epochz"),
        ({"classes": None}, "lacks 'classes'"),
        (
            {"classes": ["PNEUMONIA", "NORMAL"]},
            r"its outputs are \['PNEUMONIA', 'NORMAL'\], this version of cxr expects \['NORMAL',"
            r" 'PNEUMONIA'\], in this order\.",
        ),
        ({"classes": ["NORMAL", "TUBERCULOSIS"]}, r"its outputs are \['NORMAL', 'TUBERCULOSIS'\]"),
        ({"classes": "NORMAL"}, "its outputs are NORMAL"),
        ({"temperature": None}, "lacks 'temperature'"),
        ({"operating_point": {"rule": "youden"}}, "lacks 'threshold'"),
    ],
)
def test_a_changed_description_is_refused(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    place = tmp_path / "checkpoint" / "checkpoint.json"
    content = json.loads(place.read_text()) | changes
    place.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    with pytest.raises(CheckpointError, match=f"checkpoint: .*{reason}"):
        checkpoint.load(str(tmp_path / "checkpoint"))


@pytest.mark.usefixtures("saved")
def test_weights_of_another_recipe_are_refused(tmp_path: Path) -> None:
    description = tmp_path / "checkpoint" / "checkpoint.json"
    content = json.loads(description.read_text())
    content["recipe"] |= {"backbone": "alexnet", "image_px": 64}
    description.write_text(json.dumps(content))
    loaded = checkpoint.load(str(tmp_path / "checkpoint"))
    with pytest.raises(CheckpointError, match="checkpoint small: the weights do not fit its"):
        _ = loaded.model


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint" / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match="checkpoint: not a complete checkpoint"):
        checkpoint.load(str(tmp_path / "checkpoint"))


def test_a_half_written_folder_is_no_checkpoint(tmp_path: Path, saved: Checkpoint) -> None:
    (tmp_path / "checkpoint" / "checkpoint.json").rename(tmp_path / "checkpoint" / "x.part")
    assert not checkpoint.exists(str(tmp_path / "checkpoint"))
    assert saved.recipe == RECIPE


def test_versions_are_stated_even_where_cxr_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "PACKAGES", ("no-such-package-as-this", "torch"))
    assert checkpoint.package_versions()["no-such-package-as-this"] == "not installed"
