"""The jobs from the command line: what they write, and one clear message for each bad input."""

import ast
import dataclasses
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from cxr import storage
from cxr.datasets.shards import load_shards
from cxr.metrics import probabilities
from cxr.models import checkpoint
from cxr.models.export import export
from cxr.models.quantization import quantize
from cxr.recipes import COMPARED, RECIPES
from cxr.reports import comparison_table
from cxr.training.run import _is_better, summarize
from cxr.training.trainer import Outcome
from tests.support.jobs import ROOT, UNSTRESSED, Ended

pytestmark = pytest.mark.cluster

Run = Callable[..., Ended]


def test_a_run_says_where_things_are_and_what_to_do_next(
    trained: tuple[Ended, Path], small_set: Path
) -> None:
    ended, output = trained
    for promised in (
        f"run: {output}",
        "measured here",
        f"report: {output}/report.html",
        f"checkpoint: {output}/best/checkpoint",
        f"next: python jobs/evaluate.py --checkpoint {output}/best/checkpoint --data {small_set}",
    ):
        assert promised in ended.out


def test_the_default_run_learns_and_keeps_one_small_checkpoint(
    run_job: Run, tmp_path: Path
) -> None:
    """Without v0 to v3, which take a minute and learn nothing from random features."""
    output = tmp_path / "run"
    ended = run_job(
        "train", "--version", "best", "--output", str(output), "--cache", str(tmp_path / "cache")
    )
    assert ended.code == 0, ended.err
    result = json.loads((output / "best" / "result.json").read_text())
    assert result["num_images"] >= 60
    assert result["auc"] >= 0.95
    assert ended.out.count("next: ") == 1
    assert sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) < 100e6


def test_with_one_checkpoint_the_best_recipe_keeps_its_own(tmp_path: Path) -> None:
    """Also where a run is resumed after some recipes were finished."""
    recipes = [RECIPES["v0"], RECIPES["v3"], RECIPES["best"]]
    outcomes = [Outcome({}, pa.table({}), [], {"score": 0.8})]
    assert _is_better(outcomes, recipes, str(tmp_path))
    (tmp_path / "v0").mkdir()
    (tmp_path / "v0" / "result.json").write_text('{"auc": null}')
    assert _is_better(outcomes, recipes, str(tmp_path))
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "result.json").write_text('{"auc": 0.8}')
    assert not _is_better(outcomes, recipes, str(tmp_path))


@pytest.fixture
def finished(trained: tuple[Ended, Path]) -> Path:
    """The folder of a finished run."""
    return trained[1]


def test_a_run_leaves_what_its_docstring_lists(finished: Path) -> None:
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert left == {
        "run.json", "splits.parquet", "report.html",
        "best/recipe.json", "best/metrics.jsonl", "best/result.json",
        "best/tensorboard/events.out.tfevents.0.cxr", "best/checkpoint/checkpoint.json",
        "best/checkpoint/model.safetensors", "best/checkpoint/validation.parquet",
        "best/checkpoint/splits.parquet", "best/checkpoint/model.onnx",
        "best/checkpoint/MODEL_CARD.md",
    }  # fmt: skip
    settings = json.loads((finished / "run.json").read_text())
    assert settings["recipes"][0]["epochs"] == 10
    assert settings["settings"]["folds"] == 3


def test_a_run_that_another_job_writes_is_not_resumed(finished: Path, run_job: Run) -> None:
    with storage.lock_folder(str(finished)):
        ended = run_job("train", "--resume", str(finished))
    assert ended.code == 1
    assert "another job is writing to it (process " in ended.own_err[0]


def test_scores_are_the_validation_logits(
    finished: Path, run_job: Run, small_set: Path, tmp_path: Path, cache: str
) -> None:
    """Training, evaluation and scoring meet an image through the same functions."""
    saved = checkpoint.load(str(finished / "best" / "checkpoint"))
    ended = run_job(
        "score", "--checkpoint", str(finished / "best" / "checkpoint"),
        "--input", str(small_set / "train"), "--output", str(tmp_path / "scores"), "--heatmaps",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    page = (tmp_path / "scores" / "index.html").read_text()
    assert page.count('alt="heatmap of radiograph') == 12 + 12  # Highest, nearest to the threshold.
    assert "scored 48 of 48; refused 0; unreadable 0 -> " in ended.out
    scores = pq.read_table(tmp_path / "scores" / "scores").to_pydict()
    by_uri = dict(zip(scores["uri"], scores["logit"], strict=True))
    assert len(by_uri) == 48
    expected = sorted(np.asarray(saved.clean_validation["logit"]))
    validation = _validation_uris(saved, cache)
    assert sorted(by_uri[uri] for uri in validation) == pytest.approx(expected, abs=1e-4)
    probs = probabilities(scores["logit"], saved.scaling)
    assert np.allclose(scores["prob_pneumonia"], probs)
    called = ["PNEUMONIA" if p >= saved.operating_point.threshold else "NORMAL" for p in probs]
    assert scores["prediction"] == called


def _validation_uris(saved: checkpoint.Checkpoint, cache: str) -> list[str]:
    for folder in Path(cache, "pixels").iterdir():
        shards = load_shards(str(folder))
        if shards and shards.fingerprint == saved.provenance["data"]["fingerprint"]:
            return list(shards.rows([0])["uri"].to_pylist())
    raise AssertionError("no shards of the training data")


def test_evaluation_writes_figures_predictions_and_a_page(
    finished: Path, run_job: Run, small_set: Path, tmp_path: Path, cache: str
) -> None:
    output = tmp_path / "examined"
    ended = run_job(
        "evaluate", "--checkpoint", str(finished / "best" / "checkpoint"), "--data", str(small_set),
        "--operating-point", "sensitivity=0.95", "--output", str(output), "--cache", cache,
        *UNSTRESSED,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "sensitivity=0.95, chosen on validation" in ended.out
    assert {p.name for p in output.iterdir()} == {
        "metrics.json", "predictions.parquet", "report.html",
    }  # fmt: skip
    predictions = pq.read_table(output / "predictions.parquet")
    assert predictions.column_names == ["uri", "patient", "y_true", "logit", "prob", "prediction"]
    assert len(predictions) == 12
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["num_images"] == 12
    assert figures["split"] == "test"
    page = (output / "report.html").read_text()
    assert "<script" not in page
    num_wrong = int(pc.sum(pc.not_equal(predictions["y_true"], predictions["prediction"])).as_py())
    assert page.count('alt="heatmap of radiograph') == num_wrong


@pytest.fixture(scope="module")
def described_test_split(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the small set's test images, with columns that describe them."""
    rows = ["uri,label,split,sex,age,name"]
    for number, path in enumerate(sorted((small_set / "test").rglob("*.jpeg"))):
        sex = ("F", "M", "")[number % 3]
        rows.append(f"{path},{path.parent.name},test,{sex},{number % 2}0-{number % 2}9,{number}")
    # Names of 21 people, most of them in no image of the test split.
    for number, path in enumerate(sorted((small_set / "train").rglob("*.jpeg"))[:21]):
        rows.append(f"{path},{path.parent.name},train,,,person {number}")
    manifest = tmp_path_factory.mktemp("described") / "manifest.csv"
    manifest.write_text("\n".join(rows))
    return manifest


def test_subgroups_are_those_of_the_manifest_s_columns(
    finished: Path, run_job: Run, described_test_split: Path, tmp_path: Path, cache: str
) -> None:
    ended = run_job(
        "evaluate", "--checkpoint", str(finished / "best" / "checkpoint"),
        "--data", str(described_test_split), "--by", "sex,age", "--output", str(tmp_path / "x"),
        "--cache", cache, *UNSTRESSED,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    groups = json.loads((tmp_path / "x" / "metrics.json").read_text())["subgroups"]
    assert [(g["column"], g["value"], g["num_images"]) for g in groups] == [
        ("sex", "F", 4), ("sex", "M", 4), ("sex", "not given", 4),
        ("age", "00-09", 6), ("age", "10-19", 6),
    ]  # fmt: skip
    assert all(group["is_small"] for group in groups)
    assert "sex not given " in ended.out
    assert "Subgroups" in (tmp_path / "x" / "report.html").read_text()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("scanner", "has no column 'scanner'. Choices: uri, label, split, sex, age, name."),
        ("name", "by: column 'name' has 33 values, more than 20."),
        ("", "is no manifest, so it has no columns. Leave --by out."),
    ],
)
def test_columns_that_form_no_subgroups_are_refused_before_anything_is_decoded(
    column: str, message: str, finished: Path, run_job: Run, small_set: Path,
    described_test_split: Path, tmp_path: Path,
) -> None:  # fmt: skip
    ended = run_job(
        "evaluate", "--checkpoint", str(finished / "best" / "checkpoint"),
        "--data", str(described_test_split if column else small_set), "--by", column or "sex",
        "--output", str(tmp_path / "x"), "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    assert ended.code == 1
    assert len(ended.own_err) == 1
    assert message in ended.own_err[0]
    assert "decoding" not in ended.out


def test_a_patient_in_train_and_test_is_refused(
    finished: Path, run_job: Run, small_set: Path, tmp_path: Path, cache: str
) -> None:
    rows = ["uri,label,patient,split"]
    for split in ("train", "test"):
        for number, path in enumerate(sorted((small_set / split).rglob("*.jpeg"))):
            patient = "shared" if number == 0 else f"{split}{number}"
            rows.append(f"{path},{path.parent.name},{patient},{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    ended = run_job(
        "evaluate", "--checkpoint", str(finished / "best" / "checkpoint"),
        "--data", str(tmp_path / "manifest.csv"), "--output", str(tmp_path / "x"),
        "--cache", cache,
    )  # fmt: skip
    assert ended.code == 1
    assert "1 patient is in two splits, first with" in ended.err
    assert "shared" not in ended.err


def test_a_finished_run_resumed_for_int8_trains_nothing_and_judges_it(
    finished: Path, run_job: Run, small_set: Path, tmp_path: Path, cache: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # A gain is asked for, which no network can have.
    monkeypatch.setattr("cxr.training.int8.MAX_LOSS", -1.1)
    again = shutil.copytree(finished, tmp_path / "again")
    folder = again / "best" / "checkpoint"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    ended = run_job("train", "--resume", str(again), "--int8")
    assert ended.code == 0, ended.err
    assert "epoch" not in ended.out
    assert "measured here" in ended.out
    verdict = r"best in int8: AUC .* against float32 on 16 validation images .*: refused, since .*"
    (sentence,) = re.findall(verdict, ended.out)
    assert sentence in html.unescape((again / "report.html").read_text())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    words = (
        *("--checkpoint", str(folder), "--data", str(small_set), "--precision", "int8"),
        *("--cache", cache, *UNSTRESSED),
    )
    ended = run_job("evaluate", *words)
    assert ended.code == 1
    assert f"python jobs/train.py --resume {again} --int8" in ended.err

    trained = checkpoint.load(str(folder))
    source = export(trained.model, trained.recipe, {}, split_gray=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64), dtype=np.uint8)
    network = quantize(source, pixels, trained.recipe.normalization, threads=1)
    validation = trained.validation.set_column(
        1, "logit", pc.multiply(trained.validation["logit"], 2.0)
    )
    scaling = checkpoint.add_int8(trained, network, validation, {}).scaling
    ended = run_job("evaluate", *words, "--output", str(tmp_path / "examined"))
    assert ended.code == 0, ended.err
    assert "best in int8" in (tmp_path / "examined" / "report.html").read_text()
    figures = json.loads((tmp_path / "examined" / "metrics.json").read_text())
    assert (figures["num_images"], figures["precision"]) == (12, "int8")
    assert figures["calibration"] == dataclasses.asdict(scaling)


def test_published_figures_stand_beside_ours() -> None:
    """The accuracies of the 2019 experiment on the official test split."""
    published = {"v0": 0.625, "v1": 0.742, "v2": 0.8, "v3": 0.628}
    figures: dict[str, float | None] = dict.fromkeys(
        ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"), 0.5
    )
    epochs = [{"seconds": 1.0, "peak_memory_mb": 1.0}]
    results = {name: summarize(RECIPES[name], "set", 10, figures, 1.0, epochs) for name in COMPARED}
    shown = {name: result.published_accuracy for name, result in results.items()}
    assert shown == published | {"best": None}
    for line in comparison_table(list(results.values())).splitlines():
        if (name := line.partition(" ")[0]) in published:
            assert f" {published[name]:.3f} " in line


def _empty(folder: Path) -> list[str]:
    return ["--data", str(folder)]


def _one_class(folder: Path) -> list[str]:
    (folder / "train" / "PNEUMONIA").mkdir(parents=True)
    (folder / "train" / "PNEUMONIA" / "person1_virus_1.jpeg").write_bytes(b"x")
    return ["--data", str(folder)]


def _no_splits(folder: Path) -> list[str]:
    (folder / "NORMAL").mkdir()
    (folder / "NORMAL" / "IM-0001-0001.jpeg").write_bytes(b"x")
    return ["--data", str(folder)]


def _wrong_weights(folder: Path) -> list[str]:
    save_file({"features.0.weight": torch.zeros(3, 3)}, folder / "w.safetensors")
    return ["--weights", str(folder / "w.safetensors")]


def _wrong_shapes(folder: Path) -> list[str]:
    tensors = {f"features.{i}.{n}": torch.zeros(1) for i in (0, 3) for n in ("weight", "bias")}
    save_file(tensors, folder / "w.safetensors")
    return ["--version", "v0", "--image-px", "64", "--weights", str(folder / "w.safetensors")]


def _unwritable(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["--output", str(folder / "file" / "run")]


def _exists(folder: Path) -> list[str]:
    (folder / "something").write_text("")
    return ["--output", str(folder)]


def _bad_recipe(folder: Path) -> list[str]:
    (folder / "recipe.json").write_text('{"backbone": "vgg16", "lr": 1}')
    return ["--recipe", str(folder / "recipe.json")]


def _few_patients(folder: Path) -> list[str]:
    for name in ("NORMAL/IM-0001-0001.jpeg", "PNEUMONIA/person1_virus_1.jpeg"):
        (folder / "train" / name).parent.mkdir(parents=True)
        (folder / "train" / name).write_bytes(b"x")
    return ["--data", str(folder)]


BAD_INPUT: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "version": (lambda _: ["--version", "v7"], 2, "v7"),
    "network": (lambda _: ["--backbone", "alexnet9"], 1, "'alexnet9' is not available. Choices:"),
    "other network": (lambda _: ["--backbone", "vit_b_16"], 1, "'vit_b_16' is not available"),
    "flag": (lambda _: ["--batchsize", "3"], 2, "--batchsize"),
    "normalization": (lambda _: ["--normalization", "zscore"], 2, "zscore"),
    "batch": (lambda _: ["--batch-size", "0"], 1, "batch_size: 0 is below 1"),
    "fold": (lambda _: ["--fold", "5"], 1, "fold: 5 is outside 0 to 4"),
    "operating point": (lambda _: ["--operating-point", "best"], 1, "youden"),
    "missing data": (lambda folder: ["--data", str(folder / "no")], 1, "not found"),
    "empty folder": (_empty, 1, "no radiographs found"),
    "one class": (_one_class, 1, "has no NORMAL"),
    "no splits": (_no_splits, 1, "not a labeled set. Expected images in train|val|test"),
    "few patients": (_few_patients, 1, "cannot fill 5 patient-disjoint folds"),
    "weights names": (_wrong_weights, 1, "features.0.bias"),
    "weights shapes": (_wrong_shapes, 1, "has shape (1,)"),
    "weights file": (lambda folder: ["--weights", str(folder / "no.pth")], 1, "cannot be read"),
    "unwritable": (_unwritable, 1, "cannot be written"),
    "exists": (_exists, 1, "exists already"),
    "resume": (lambda folder: ["--resume", str(folder)], 1, "no run to resume"),
    "workers": (lambda _: ["--workers", "64"], 1, "64 workers need 64 CPUs"),
    "gpu": (lambda _: ["--gpu", "on"], 1, "no GPU"),
    "recipe": (_bad_recipe, 1, "unknown recipe field lr"),
}


def test_flags_are_over_the_version_that_is_named(run_job: Run, tmp_path: Path) -> None:
    """The head of `best` has one dense layer, that of v0, the first version, two."""
    words = ["--dropout", "0.1", "--data", str(tmp_path / "no")]
    assert "dropout: 1 rates for 2 dense layers" in run_job("train", *words).err
    assert "not found" in run_job("train", "--version", "best", *words).err


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_to_training_ends_with_one_clear_message(
    case: str, run_job: Run, ray_cluster: None, small_set: Path, tmp_path: Path, cache: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "input"
    folder.mkdir()
    make, code, message = BAD_INPUT[case]
    words = make(folder)
    base = ["--cache", cache]
    if "--data" not in words:
        base += ["--data", str(small_set)]
    if "--weights" not in words:
        base += ["--weights", "none"]
    ended = run_job("train", *base, *words)
    assert ended.code == code, ended
    assert message in ended.err + ended.out
    assert "Traceback" not in ended.err
    if code == 1:
        assert len(ended.own_err) == 1
        assert ended.own_err[0].startswith("error: ")


@pytest.mark.parametrize("job", ["score", "evaluate", "explain"])
def test_no_checkpoint_is_one_clear_message(
    job: str, run_job: Run, small_set: Path, tmp_path: Path
) -> None:
    flag = {"score": "--input", "evaluate": "--data", "explain": "--input"}[job]
    ended = run_job(
        job, "--checkpoint", str(tmp_path), flag, str(small_set), "--output", str(tmp_path / "o")
    )
    assert ended.code == 1
    assert "no checkpoint here" in ended.err


@pytest.mark.parametrize(
    "job", ["check", "train", "evaluate", "score", "explain", "tune", "download"]
)
def test_help_tells_every_flag_and_gives_commands_to_copy(job: str, run_job: Run) -> None:
    ended = run_job(job, "--help")
    assert ended.code == 0
    flags = {
        "check": ("--data", "--patients", "--test-fraction", "--folds", "--cache"),
        "train": ("--data", "--frozen"),
        "evaluate": ("--split", "--by"),
        "score": ("--input", "--heatmaps"),
        "explain": ("--input", "--method"),
        "tune": ("--search", "--trials"),
        "download": ("--what", "--to", "--url", "--features-only"),
    }
    for flag in flags[job]:
        assert flag in ended.out
    assert "{True,False}" not in ended.out  # Yes or no is a flag without a value.
    text = ast.get_docstring(ast.parse((ROOT / "jobs" / f"{job}.py").read_text())) or ""
    commands = [line for line in text.splitlines() if "python jobs/" in line]
    assert commands
    shown = [line.strip() for line in ended.out.splitlines()]
    assert all(command in shown for command in commands)
