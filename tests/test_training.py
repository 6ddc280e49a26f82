"""Training through Ray Train: the same figures however many workers, and after any interruption."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from cxr import metrics
from cxr.cluster import Workers
from cxr.errors import SettingsError
from cxr.metrics import probabilities
from cxr.models import checkpoint, classifier
from cxr.recipes import Recipe
from cxr.training import loop, run, trainer
from cxr.training.loaders import MemoryLoader
from cxr.training.loop import Learner
from cxr.training.run import RunSettings
from tests.support.jobs import SMALL, TEN_EPOCHS, Ended, Job, execute, history

pytestmark = pytest.mark.cluster

RECIPE = Recipe(
    name="small", backbone="alexnet", pretrained=3, frozen=3, image_px=64, normalization="unit",
    class_weighting="balanced", pooling="average", hidden=(8,), dropout=(0.0, 0.0), batch_size=7,
    epochs=2, loading="memory",
)  # fmt: skip


def prepared(recipe: Recipe, folder: Path, cache: str) -> run.Prepared:
    settings = RunSettings(data=str(folder), weights="none", folds=3, cache=cache)
    listing, folds = run.labeled_folds(str(folder), settings)
    loaded = [run.load_model(recipe, settings)]
    return run.prepare(loaded, listing, folds, settings, gpu=False)[0]


def plan(each: run.Prepared, output: Path) -> trainer.Plan:
    return trainer.Plan(
        each.recipe, each.features or each.pixels, each.features is not None, (1, 2), (0,),
        str(output / each.recipe.name),
    )  # fmt: skip


def fit(
    recipes: list[Recipe], folder: Path, cache: str, output: Path, num_workers: int
) -> list[trainer.Outcome]:
    all_prepared = [prepared(recipe, folder, cache) for recipe in recipes]
    return trainer.fit(
        [plan(each, output) for each in all_prepared],
        [each.model for each in all_prepared],
        str(output),
        workers=Workers(num_workers, num_workers),
    )


@pytest.fixture(scope="module")
def outcomes(
    ray_cluster: None, small_set: Path, cache: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[trainer.Outcome]]:
    """The same recipes, cached and end to end, held in memory and streamed, by 1 and 2 workers.

    The third diverges, which the others must not notice.
    """
    recipes = [
        RECIPE,
        dataclasses.replace(
            RECIPE, name="whole", frozen=0, epochs=1, class_weighting="fixed", image_px=64
        ),
        dataclasses.replace(RECIPE, name="wild", optimizer="sgd", learning_rate=1e30),
        dataclasses.replace(RECIPE, name="streamed", loading="stream", epochs=1),
    ]
    return {
        workers: fit(recipes, small_set, cache, tmp_path_factory.mktemp(f"by{workers}"), workers)
        for workers in (1, 2)
    }


@pytest.mark.parametrize("index", [0, 1], ids=["cached", "whole"])
def test_two_workers_report_the_loss_of_one(
    outcomes: dict[int, list[trainer.Outcome]], index: int
) -> None:
    for alone, together in zip(outcomes[1][index].history, outcomes[2][index].history, strict=True):
        for name in ("train_loss", "val_loss"):
            assert together[name] == pytest.approx(alone[name], abs=1e-4)


def test_every_validation_image_is_judged_once_by_any_number_of_workers(
    outcomes: dict[int, list[trainer.Outcome]], small_set: Path, cache: str
) -> None:
    expected = sorted(prepared(RECIPE, small_set, cache).pixels.rows([0])["row"].to_pylist())
    for workers in (1, 2):
        for outcome in outcomes[workers]:
            assert outcome.validation["row"].to_pylist() == expected


def test_a_streamed_epoch_trains_on_every_image(
    outcomes: dict[int, list[trainer.Outcome]], small_set: Path, cache: str
) -> None:
    num_train = len(prepared(RECIPE, small_set, cache).pixels.rows([1, 2]))
    for workers in (1, 2):
        accuracy = outcomes[workers][-1].history[0]["train_accuracy"]
        assert (accuracy * num_train) == pytest.approx(round(accuracy * num_train), abs=1e-6)


def test_frozen_layers_do_not_move_and_the_others_do(
    outcomes: dict[int, list[trainer.Outcome]], small_set: Path, cache: str
) -> None:
    start = classifier.build(RECIPE)
    trained = outcomes[2][0].state
    assert not any(
        name.startswith(("features.0.", "features.3.", "features.6.")) for name in trained
    )
    assert any(not torch.equal(trained[name], start.state_dict()[name]) for name in trained)


def test_reported_figures_are_those_of_the_predictions(
    outcomes: dict[int, list[trainer.Outcome]], small_set: Path, cache: str
) -> None:
    outcome = outcomes[2][0]
    logits = np.asarray(outcome.validation["logit"])
    labels = np.asarray(outcome.validation["label"])
    assert outcome.best["val_auc"] == metrics.roc_auc(labels, logits)
    trained_on = prepared(RECIPE, small_set, cache).pixels.rows([1, 2])["label"]
    weights = np.array(trainer.class_weights(RECIPE, np.asarray(trained_on)))[labels]
    losses = -np.log(probabilities(np.where(labels == 1, logits, -logits), 1.0))
    assert outcome.best["val_loss"] == pytest.approx(
        float((losses * weights).sum() / weights.sum()), abs=1e-5
    )


def test_class_weights() -> None:
    labels = np.array([0, 1, 1, 1])
    assert trainer.class_weights(RECIPE, labels) == pytest.approx((2.0, 2 / 3))
    fixed = dataclasses.replace(RECIPE, class_weighting="fixed")
    assert trainer.class_weights(fixed, labels) == (1.0, 0.4)
    none = dataclasses.replace(RECIPE, class_weighting="none")
    assert trainer.class_weights(none, labels) == (1.0, 1.0)
    focal = dataclasses.replace(RECIPE, class_weighting="focal")
    assert trainer.class_weights(focal, labels) == (1.0, 1.0)


def test_effective_weights_are_those_of_cui_et_al() -> None:
    """Their equation 5, with beta 0.999, scaled to sum to the number of classes."""
    effective = dataclasses.replace(RECIPE, class_weighting="effective")
    weights = trainer.class_weights(effective, np.repeat([0, 1], [1341, 3875]))
    numbers = [(1 - 0.999**n) / (1 - 0.999) for n in (1341, 3875)]
    assert sum(weights) == pytest.approx(2)
    assert weights[0] / weights[1] == pytest.approx(numbers[1] / numbers[0])


def test_focal_loss_is_that_of_lin_et_al() -> None:
    recipe = dataclasses.replace(RECIPE, class_weighting="focal", batch_size=5)
    learner = Learner(
        recipe, {}, (1.0, 1.0), cached=False, shape=(64, 64), dtype="uint8", gpu=False, rank=0,
        world=1,
    )  # fmt: skip
    pixels = torch.randint(0, 256, (9, 64, 64), dtype=torch.uint8)
    label = torch.arange(9) % 2
    loader = MemoryLoader(pixels, label, recipe, np.arange(9))
    means, seen = learner.evaluate(loader)
    # torchvision's is of one logit, which is the difference of our two.
    expected = sigmoid_focal_loss(
        torch.from_numpy(seen["logit"]), label.float(), alpha=-1, gamma=2, reduction="mean"
    )
    assert means["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_more_workers_than_cpus_are_refused_at_once(ray_cluster: None) -> None:
    with pytest.raises(SettingsError, match="99 workers need 99 CPUs, this cluster has 2"):
        trainer.check_workers(Workers(99, 99), RECIPE, gpu=False)
    streamed = dataclasses.replace(RECIPE, loading="stream", batch_size=1)
    with pytest.raises(SettingsError, match="a batch of 1 cannot be divided among 2 workers"):
        trainer.check_workers(Workers(1, 2), streamed, gpu=False)


def test_a_diverging_recipe_does_not_take_the_others_with_it(
    outcomes: dict[int, list[trainer.Outcome]],
) -> None:
    for workers in (1, 2):
        *others, lost, last = outcomes[workers]
        assert lost.best["score"] == loop.EMPTY_SCORE
        assert len(lost.history) == 1
        assert all(kept.best["val_auc"] is not None for kept in [*others, last])


def test_killed_worker_and_killed_driver_end_with_the_figures_of_an_undisturbed_run(
    trained: tuple[Ended, Path], small_set: Path, cache: str, tmp_path: Path
) -> None:
    killed = str(tmp_path / "killed")
    words = (*SMALL, *TEN_EPOCHS, "--data", small_set, "--cache", cache, "--output", killed)
    first = Job("train", *words)
    first.read_until(r"epoch 2 of 10")
    first.kill_worker("RayTrainWorker")
    first.read_until(r"epoch 5 of 10")
    first.kill()
    assert not (tmp_path / "killed" / "best" / "result.json").exists(), "killed too late"
    assert execute("train", "--resume", killed).code == 0
    assert history(killed) == history(str(trained[1]))
    assert checkpoint.exists(f"{killed}/best/checkpoint")
