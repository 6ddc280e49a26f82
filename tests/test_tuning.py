"""A search: settings judged on the same folds, resumable, never waiting for itself."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray import tune
from sklearn.metrics import roc_auc_score

from cxr.cluster import Workers
from cxr.datasets.shards import read_part
from cxr.datasets.variation import NamedChange, varied
from cxr.errors import SettingsError
from cxr.models import acquisition, classifier, transforms
from cxr.models.outputs import logit
from cxr.progress import Progress
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array
from cxr.training import loop, trainer
from cxr.training.loaders import MemoryLoader
from cxr.training.loop import Learner
from cxr.training.preparation import list_training_images, load_model, prepare
from cxr.training.settings import RunSettings
from cxr.tuning import search, space, trials, tuner
from cxr.tuning.settings import SearchSettings
from tests.support.jobs import ROOT, SMALL, Ended, execute, run

pytestmark = pytest.mark.cluster

HEADS = (*SMALL, "--epochs", "2")
GRID = ("--search", "normalization=none,imagenet", "class_weighting=none,focal")


@pytest.fixture(scope="module")
def searched(
    ray_cluster: None, small_set: Path, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    """A search over two normalizations and two weightings."""
    output = tmp_path_factory.mktemp("search") / "out"
    words = (*HEADS, *GRID, "--data", str(small_set), "--cache", cache, "--output", str(output))
    return execute("tune", *words), output


def test_a_search_leaves_what_its_docstring_lists(searched: tuple[Ended, Path]) -> None:
    ended, output = searched
    assert ended.code == 0, ended.err
    assert {path.name for path in output.iterdir()} == {
        "search.json", "trials", "trials.parquet", "best.json", "report.html",
    }  # fmt: skip
    found = pq.read_table(output / "trials.parquet").to_pylist()
    assert len(found) == 4
    for trial in found:
        assert len(trial["fold_aucs"]) == 3
        assert trial["auc"] == pytest.approx(np.mean(trial["fold_aucs"]))
        assert trial["auc_low"] <= trial["auc"] <= trial["auc_high"]
        assert trial["stressed_auc_low"] <= trial["stressed_auc"] <= trial["stressed_auc_high"]
        by_change = [trial[f"auc_{name}"] for name in acquisition.STRESS]
        assert trial["stressed_auc"] == pytest.approx(np.mean(by_change))
    best = max(found, key=lambda trial: trial["stressed_auc"])
    recipe = Recipe.from_json((output / "best.json").read_text())
    assert recipe.normalization == best["normalization"]
    assert recipe.class_weighting == best["class_weighting"]
    assert "4 of 4: " in ended.out
    assert "settings by stressed AUC (--select stressed):" in ended.out
    assert "normalization: imagenet against none" in ended.out
    assert "n = 48 images of " in ended.out


def test_every_image_is_judged_once_and_no_patient_in_two_folds(
    searched: tuple[Ended, Path], small_set: Path, cache: str
) -> None:
    patients = np.asarray(
        plan_of(Recipe(image_px=64, frozen=0), small_set, cache).shards.table["patient"]
    )
    for folder in (searched[1] / "trials").iterdir():
        folds = [np.asarray(pq.read_table(folder / f"fold-{k}.parquet")["row"]) for k in range(3)]
        assert sorted(np.concatenate(folds).tolist()) == list(range(48))
        judged = [set(patients[rows]) for rows in folds]
        assert sum(map(len, judged)) == len(set.union(*judged))


def test_a_folds_logits_are_those_of_a_model_trained_on_the_other_patients(
    searched: tuple[Ended, Path], small_set: Path, cache: str
) -> None:
    """A head trained here, without Ray, on every image of a patient who is not in the fold."""
    base = json.loads((searched[1] / "search.json").read_text())["recipe"]
    folder = next((searched[1] / "trials").iterdir())
    setting = json.loads((folder / "setting.json").read_text())
    recipe = space.apply(Recipe.from_json(json.dumps(base)), setting)
    plan = plan_of(recipe, small_set, cache)
    assert plan.cached
    decoded = plan_of(Recipe(image_px=64, frozen=0), small_set, cache).shards
    pixels = pa.concat_tables(
        [read_part(path) for paths in decoded.parts.values() for path in paths]
    ).sort_by("row")
    dark = varied(
        NamedChange("gamma_high", 3), to_array(pixels["x"], (64, 64), "uint8"), np.arange(48)
    )
    images = transforms.normalize(torch.from_numpy(dark)[:, None], recipe.normalization)
    parts = [read_part(path) for paths in plan.shards.parts.values() for path in paths]
    rows = pa.concat_tables(parts).sort_by("row")
    x = torch.from_numpy(to_array(rows["x"], plan.shards.shape, plan.shards.dtype))
    label, row = (np.asarray(rows[name]) for name in ("label", "row"))
    for k in range(3):
        judged = pq.read_table(folder / f"fold-{k}.parquet")
        held_out = np.isin(row, np.asarray(judged["row"]))
        patients = set(np.asarray(rows["patient"])[held_out])
        trained_on = ~np.isin(np.asarray(rows["patient"]), list(patients))
        assert trained_on.sum() + held_out.sum() == 48
        learner = Learner(
            recipe, plan.model.states(frozen=False),
            trainer.class_weights(recipe, label[trained_on]), cached=True,
            shape=plan.shards.shape, dtype=plan.shards.dtype, gpu=False,
            num_images=int(trained_on.sum()), rank=0, world=1,
        )  # fmt: skip
        loader, validation = (
            MemoryLoader(x[chosen], torch.from_numpy(label[chosen]), recipe, row[chosen])
            for chosen in (trained_on, held_out)
        )
        for _, is_best, predictions in loop.epochs(learner, loader, validation, []):
            if is_best:
                best = predictions
                kept = classifier.build(recipe).eval()
                kept.load_state_dict(learner.trained(), strict=False)
                with torch.no_grad():
                    darkened = logit(kept(images[held_out])).numpy()
        assert best["row"].tolist() == judged["row"].to_pylist()
        assert best["logit"] == pytest.approx(np.asarray(judged["logit"]), abs=1e-5)
        assert darkened == pytest.approx(np.asarray(judged["gamma_high"]), rel=1e-3, abs=1e-3)


def plan_of(recipe: Recipe, small_set: Path, cache: str) -> trainer.Plan:
    """What a run with the search's folds would train."""
    settings = RunSettings(data=str(small_set), weights="none", folds=3, cache=cache, output="out")
    images = list_training_images(str(small_set), settings)
    models = [load_model(recipe, settings)]
    [plan] = prepare([recipe], models, images.listing, images.folds, settings, gpu=False)
    return plan


def test_best_json_trains_to_the_trials_figure(
    searched: tuple[Ended, Path], small_set: Path, cache: str, tmp_path: Path
) -> None:
    """The AUC of fold 0, which jobs/train.py holds out by default."""
    ended = execute(
        "train", "--recipe", str(searched[1] / "best.json"), "--data", str(small_set), "--weights",
        "none", "--folds", "3", "--cache", cache, "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "run" / "tuned" / "result.json").read_text())
    found = pq.read_table(searched[1] / "trials.parquet").to_pylist()
    best = max(found, key=lambda trial: trial["stressed_auc"])
    assert result["auc"] == pytest.approx(best["fold_aucs"][0], abs=1e-6)


def test_an_interrupted_search_goes_on_repeats_nothing_and_outlives_a_trial_that_crashes(
    searched: tuple[Ended, Path], small_set: Path, cache: str, tmp_path: Path
) -> None:
    """Of four trials two are done, one lost a fold, and one will crash: a file is in its way."""
    output = tmp_path / "out"
    shutil.copytree(searched[1], output)
    before = trial_rows(output)
    (output / "trials.parquet").unlink()
    lost, crashing = (
        space.identity({"normalization": "imagenet", "class_weighting": "focal"}),
        space.identity({"normalization": "none", "class_weighting": "none"}),
    )
    (output / "trials" / lost / "fold-1.parquet").unlink()
    shutil.rmtree(output / "trials" / crashing)
    (output / "trials" / crashing).write_text("a file where a folder should be")
    kept = {p: p.stat().st_mtime_ns for p in (output / "trials").glob("*/fold-*.parquet")}
    words = (*HEADS, *GRID, "--data", str(small_set), "--cache", cache, "--output", str(output))
    ended = execute("tune", *words)
    assert ended.code == 0, ended.err
    assert "resuming: 2 of 4 settings are done" in ended.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = trial_rows(output)
    [failed] = [trial for trial in after if trial["auc"] is None]
    assert (failed["normalization"], failed["class_weighting"]) == ("none", "none")
    assert "cannot be written" in failed["reason"]
    assert [trial for trial in after if trial is not failed] == [
        trial
        for trial in before
        if (trial["normalization"], trial["class_weighting"]) != ("none", "none")
    ]


def trial_rows(output: Path) -> list[dict[str, Any]]:
    """The trials of a search, without their seconds."""
    table = pq.read_table(output / "trials.parquet").drop_columns(["seconds"])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_another_search_into_the_same_output_is_refused(
    searched: tuple[Ended, Path], small_set: Path, cache: str
) -> None:
    words = (*HEADS, "--data", str(small_set), "--cache", cache, "--output", str(searched[1]))
    ended = execute("tune", *words, "--search", "normalization")
    assert ended.code == 1
    assert "holds a search with space" in ended.err


def test_optuna_draws_from_finished_trials_and_goes_on(
    ray_cluster: None, small_set: Path, cache: str, tmp_path: Path
) -> None:
    words = (
        *HEADS, "--data", str(small_set), "--cache", cache, "--output", str(tmp_path / "out"),
        "--augmentation", "acquisition", "--search", "views=1,3", "learning_rate", "head_width",
        "--sampler", "optuna", "--trials", "4",
    )  # fmt: skip
    assert execute("tune", *words).code == 0
    before = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert len(before) == 4
    for trial in before:
        assert 1e-5 <= trial["learning_rate"] <= 1e-2
        assert 16 <= trial["head_width"] <= 1024
        assert trial["views"] in (1, 3)
        assert np.isfinite(trial["fold_aucs"]).all()
    folders = sorted((tmp_path / "out" / "trials").iterdir())
    (folders[1] / "fold-1.parquet").unlink()
    ended = execute("tune", *words)
    assert ended.code == 0, ended.err
    assert "resuming: 3 of 4 settings are done" in ended.out
    after = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert len(after) == 4
    kept = [t["learning_rate"] for t in after if t["learning_rate"] in
            [b["learning_rate"] for b in before]]  # fmt: skip
    assert len(kept) == 3


def test_whole_networks_are_searched_through_ray_train_even_on_one_cpu(
    small_set: Path, cache: str, tmp_path: Path
) -> None:
    """Two trials that each start a run of Ray Train, and one CPU for everything."""
    words = [
        *SMALL, "--frozen", "0", "--epochs", "1", "--search", "class_weighting=none,balanced",
        "--data", str(small_set), "--cache", cache, "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    program = f"""
import runpy, sys
from cxr import cluster
cluster.connect(num_cpus=1)
sys.argv = ["tune.py", *{words!r}]
runpy.run_path({str(ROOT / "jobs" / "tune.py")!r}, run_name="__main__")
"""
    ended = run([sys.executable, "-c", program], timeout_s=420)
    assert ended.code == 0, ended.out + ended.err
    assert "Dataset" not in ended.out + ended.err  # No progress bars of Ray Data.
    found = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert len(found) == 2
    for trial in found:
        setting = {"class_weighting": trial["class_weighting"]}
        folder = tmp_path / "out" / "trials" / space.identity(setting)
        for k, auc in enumerate(trial["fold_aucs"]):
            table = pq.read_table(folder / f"fold-{k}.parquet")
            assert auc == pytest.approx(roc_auc_score(table["label"], table["logit"]))
        tables = [pq.read_table(folder / f"fold-{k}.parquet") for k in range(3)]
        under_changes = [
            roc_auc_score(table["label"], table[name])
            for table in tables
            for name in acquisition.STRESS
        ]
        assert trial["stressed_auc"] == pytest.approx(np.mean(under_changes))
        assert all(len(set(table["noise"].to_pylist())) > 10 for table in tables)
        assert all(table["noise"] != table["logit"] for table in tables)


def test_a_drawn_network_behind_the_others_is_stopped_and_says_so(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = space.parse(("learning_rate",), 3)
    rates = [setting["learning_rate"] for setting in wanted.settings]

    def judge(config: Mapping[str, Any], shared: trials.Shared) -> None:
        for num_folds in range(1, shared.folds + 1):
            score = config["setting"]["learning_rate"]
            tune.report({"auc": score, "score": score, "folds": num_folds})

    monkeypatch.setattr(trials, "judge", judge)
    shared = trials.Shared(
        Recipe(), str(tmp_path / "trials"), 3, cached=False, shards={}, changed=None,
        ranks_stressed=False, state=ray.put({}), workers=Workers(1, 1), gpu=False, stops=True,
    )  # fmt: skip
    reasons = tuner.run_trials(shared, wanted, str(tmp_path / "out"))
    expected: dict[str, str] = {}
    rungs: dict[int, list[float]] = {1: [], 2: []}
    for setting, rate in zip(wanted.settings, rates, strict=True):
        for num_folds, before in rungs.items():
            # Successive halving: the lower half of those before it ends here.
            if before and rate < np.median(before):
                reason = f"stopped after {num_folds} of 3 folds: others were ahead"
                expected[space.identity(setting)] = reason
            before.append(rate)
            if space.identity(setting) in expected:
                break
    assert 0 < len(expected) < 3
    assert reasons == expected


def test_a_search_at_random_needs_no_optuna(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("optuna", "ray.tune.search.optuna"):
        monkeypatch.setitem(sys.modules, name, None)
    shared = trials.Shared(
        Recipe(), str(tmp_path / "trials"), 3, cached=True, shards={}, changed=None,
        ranks_stressed=False, state=ray.put({}), workers=Workers(1, 1), gpu=False, stops=False,
    )  # fmt: skip
    asked = space.parse(("normalization",), None)
    progress = Progress("trials", 5, lines=False)
    tuner.build_tuner(shared, asked, [], asked.settings, 5, str(tmp_path / "ray"), progress)
    drawn = dataclasses.replace(asked, sampler="optuna", sampled=("learning_rate",))
    with pytest.raises(ImportError, match="optuna"):
        tuner.build_tuner(shared, drawn, [], [], 5, str(tmp_path / "ray"), progress)


def test_a_search_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    """search.json as version 0.1.0 wrote it."""
    asked, recipe = space.parse(("class_weighting=none,focal",), None), Recipe()
    settings = SearchSettings(output=str(tmp_path), weights="none", stress_images=0, folds=5)
    kept = {
        "space": {"grid": {"class_weighting": ["none", "focal"]}, "sampled": [], "trials": 2,
                  "seed": 0, "sampler": "random"},
        "recipe": json.loads(recipe.to_json()), "data": None, "weights": "none", "limit": None,
        "folds": 5, "packages": {"cxr": "0.1.0"},
    }  # fmt: skip
    (tmp_path / "search.json").write_text(json.dumps(kept))
    search.open_output(recipe, asked, settings)
    search.open_output(recipe, asked, dataclasses.replace(settings, select="clean"))
    with pytest.raises(SettingsError, match="holds a search with stress_images None, not 128"):
        search.open_output(recipe, asked, dataclasses.replace(settings, stress_images=128))
    with pytest.raises(SettingsError, match="holds a search with folds 5, not 4"):
        search.open_output(recipe, asked, dataclasses.replace(settings, folds=4))


@pytest.mark.parametrize("content", ["{", "[]", '{"space": {}}'])
def test_a_search_that_cannot_be_read_is_refused_with_one_line(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "search.json").write_text(content)
    settings = SearchSettings(output=str(tmp_path), weights="none")
    with pytest.raises(SettingsError, match="not a search that this version of cxr can resume"):
        search.open_output(Recipe(), space.parse(("normalization",), None), settings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--search", "color"), "unknown factor 'color'. Choices: normalization"),
        (("--folds", "40"), "cannot fill 40 patient-disjoint folds"),
        (("--data", "/nowhere"), "/nowhere: not found"),
        (("--trials", "3"), "trials: 3 cannot try the 25 points of the grid"),
        (("--sampler", "optuna"), "sampler: optuna has nothing to draw"),
        (("--search", "views=1,4"), "views: 4 views need an augmentation that draws them"),
        (("--stress-images", "-1"), "stress_images: -1 is below 0"),
        (("--image-px", "31", "--backbone", "squeezenet1_1"), "too small for acquisition changes"),
    ],
)
def test_bad_input_is_one_clear_message(
    words: tuple[str, ...],
    message: str,
    ray_cluster: None,
    small_set: Path,
    cache: str,
    tmp_path: Path,
    run_job: Callable[..., Ended],
) -> None:
    common = (*HEADS, "--data", str(small_set), "--cache", cache, "--output", str(tmp_path / "o"))
    ended = run_job("tune", *common, *words)
    assert ended.code == 1
    assert message in ended.err
    assert not (tmp_path / "o").exists()
