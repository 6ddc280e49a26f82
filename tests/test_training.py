"""Training through Ray Train: the same figures however many workers, and after any interruption."""

import dataclasses
import json
import os
import re
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from cxr import metrics, storage
from cxr.cluster import Workers
from cxr.datasets.shards import Shards, read_part
from cxr.datasets.split import SplitConfig
from cxr.errors import CheckpointError, SettingsError
from cxr.metrics import Scaling, probabilities
from cxr.models import checkpoint, classifier, transforms
from cxr.models.acquisition import CHANGES
from cxr.models.outputs import logit
from cxr.recipes import Recipe, named
from cxr.sources import PatientSource
from cxr.training import loop, members, run, trainer
from cxr.training.loaders import Loader, MemoryLoader, StreamLoader
from cxr.training.loop import Learner
from cxr.training.preparation import (
    TrainingImages,
    list_training_images,
    load_model,
    prepare,
    skipped_notes,
    write_skipped,
)
from cxr.training.settings import RunSettings
from cxr.training.trainer import Plan
from tests.support.jobs import SMALL, TEN_EPOCHS, UNSTRESSED, Ended, Job, execute, history

pytestmark = pytest.mark.cluster

RECIPE = Recipe(
    name="small", backbone="alexnet", pretrained=3, frozen=3, image_px=64, normalization="unit",
    class_weighting="balanced", pooling="average", hidden=(8,), dropout=(0.0, 0.0), batch_size=7,
    epochs=2, loading="memory",
)  # fmt: skip


REGULARIZED: dict[str, Any] = {
    "augmentation": "acquisition", "schedule": "one_cycle", "layer_decay": 0.8, "ema": 0.9,
    "label_smoothing": 0.05, "gradient_clipping": 1.0, "weight_decay": 0.05, "optimizer": "adamw",
}  # fmt: skip
"""Everything that a whole network can be trained with, at once."""


def planned(recipes: list[Recipe], folder: Path, cache: str, output: Path) -> list[Plan]:
    settings = RunSettings(
        data=str(folder), weights="none", folds=3, cache=cache, output=str(output)
    )
    images = list_training_images(str(folder), settings)
    models = [load_model(recipe, settings) for recipe in recipes]
    return prepare(recipes, models, images.listing, images.folds, settings, gpu=False)


def fit(
    recipes: list[Recipe], folder: Path, cache: str, output: Path, num_workers: int
) -> list[trainer.Outcome]:
    plans = planned(recipes, folder, cache, output)
    return trainer.fit(plans, str(output), workers=Workers(num_workers, num_workers))


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
        dataclasses.replace(RECIPE, name="augmented", frozen=0, **REGULARIZED),
        dataclasses.replace(RECIPE, name="views", augmentation="acquisition", views=3, epochs=4),
        dataclasses.replace(
            RECIPE,
            name="streamed views",
            augmentation="acquisition",
            views=2,
            loading="stream",
        ),
    ]
    return {
        workers: fit(recipes, small_set, cache, tmp_path_factory.mktemp(f"by{workers}"), workers)
        for workers in (1, 2)
    }


@pytest.mark.parametrize("index", [0, 1, 4, 5], ids=["cached", "whole", "augmented", "views"])
def test_two_workers_report_the_loss_of_one(
    outcomes: dict[int, list[trainer.Outcome]], index: int
) -> None:
    for alone, together in zip(outcomes[1][index].history, outcomes[2][index].history, strict=True):
        for name in ("train_loss", "val_loss"):
            assert together[name] == pytest.approx(alone[name], abs=1e-4)


def test_every_validation_image_is_judged_once_by_any_number_of_workers(
    outcomes: dict[int, list[trainer.Outcome]], small_set: Path, cache: str
) -> None:
    [plan] = planned([RECIPE], small_set, cache, Path("unused"))
    expected = sorted(plan.shards.rows([0])["row"].to_pylist())
    for workers in (1, 2):
        for outcome in outcomes[workers]:
            assert outcome.validation["row"].to_pylist() == expected


def test_views_are_of_the_images_that_train_and_the_first_one_validates(
    ray_cluster: None, small_set: Path, cache: str
) -> None:
    recipe = dataclasses.replace(RECIPE, augmentation="acquisition", views=3)
    [alone] = planned([RECIPE], small_set, cache, Path("unused"))
    [plan] = planned([recipe], small_set, cache, Path("unused"))
    assert plan.cached
    assert plan.shards.folder == alone.shards.folder
    assert len({shards.folder for shards in (plan.shards, *plan.drawn)}) == 3
    of_views = [
        dict(zip(table["row"].to_pylist(), table["x"].to_pylist(), strict=True))
        for shards in (plan.shards, *plan.drawn)
        for table in [pa.concat_tables(map(read_part, shards.parts[1]))]
    ]
    assert of_views[0].keys() == of_views[1].keys() == of_views[2].keys()
    assert all(len({view[row] for view in of_views}) == 3 for row in of_views[0])


@pytest.mark.parametrize("world", [1, 2])
def test_a_streamed_epoch_has_every_image_once(
    ray_cluster: None, small_set: Path, cache: str, world: int
) -> None:
    """As the workers of Ray Train read it, each its own part at the same time."""
    recipe = dataclasses.replace(RECIPE, loading="stream")
    [plan] = planned([recipe], small_set, cache, Path("unused"))
    dataset = plan.shards.dataset(plan.train_folds, ("row", "label", "x"))
    parts = SplitConfig(whole=[]).configure({"train": dataset}, world)
    form = (recipe, plan.shards.shape, plan.shards.dtype)

    def rows(rank: int) -> list[int]:
        loader = StreamLoader(parts[rank]["train"], *form, rank, world)
        return [row for batch in loader.batches(epoch=1) for row in batch.row.tolist()]

    with ThreadPoolExecutor(world) as pool:
        read = [row for part in pool.map(rows, range(world)) for row in part]
    assert sorted(read) == sorted(plan.shards.rows([1, 2])["row"].to_pylist())


@pytest.mark.parametrize("cached", [False, True], ids=["end to end", "on features"])
def test_frozen_layers_do_not_move_and_the_others_do(cached: bool) -> None:
    recipe = dataclasses.replace(RECIPE, augmentation="none" if cached else "affine")
    start = {name: value.clone() for name, value in classifier.build(recipe).state_dict().items()}
    shape = classifier.build(recipe).prefix_shape(64) if cached else (64, 64)
    learner = Learner(
        recipe, start, (1.0, 1.0), cached=cached, shape=shape, dtype="float32" if cached else
        "uint8", gpu=False, num_images=14, rank=0, world=1,
    )  # fmt: skip
    x = torch.rand(14, *shape) if cached else torch.randint(0, 256, (14, *shape)).byte()
    loader: Loader = MemoryLoader(x, torch.arange(14) % 2, recipe, np.arange(14))
    for epoch in (1, 2):
        learner.train(loader, epoch)
    after = learner.model.state_dict()
    moved = {name.rsplit(".", 1)[0] for name in start if not torch.equal(after[name], start[name])}
    fixed = {name.rsplit(".", 1)[0] for name in start} - moved
    assert fixed == {"features.0", "features.3", "features.6"}
    assert {"features.8", "features.10"} < moved
    if cached:  # What crosses to the workers and back is the tail alone.
        assert not [name for name in learner.trained() if name.rsplit(".", 1)[0] in fixed]


def learner_of(recipe: Recipe, num_images: int = 14) -> Learner:
    return Learner(
        recipe, classifier.build(recipe).state_dict(), (1.0, 1.0), cached=False, shape=(64, 64),
        dtype="uint8", gpu=False, num_images=num_images, rank=0, world=1,
    )  # fmt: skip


@pytest.mark.parametrize("schedule", ["decay", "one_cycle", "cosine"])
def test_a_restored_learner_continues_to_the_last_bit(schedule: str) -> None:
    recipe = dataclasses.replace(RECIPE, frozen=0, epochs=3, **REGULARIZED | {"schedule": schedule})
    pixels = torch.randint(0, 256, (14, 64, 64), dtype=torch.uint8)
    loader = MemoryLoader(pixels, torch.arange(14) % 2, recipe, np.arange(14))
    through, before, after = (learner_of(recipe) for _ in range(3))
    means = [through.train(loader, epoch) for epoch in (1, 2, 3)]
    assert [before.train(loader, epoch) for epoch in (1, 2)] == means[:2]
    after.restore(before.state())
    assert after.train(loader, 3) == means[2]
    for name, tensor in through.trained().items():
        assert torch.equal(tensor, after.trained()[name]), name
    assert after.evaluate(loader)[0] == through.evaluate(loader)[0]


def test_the_average_is_what_is_validated_and_kept() -> None:
    recipe = dataclasses.replace(RECIPE, frozen=0, **REGULARIZED)
    pixels = torch.randint(0, 256, (14, 64, 64), dtype=torch.uint8)
    loader = MemoryLoader(pixels, torch.arange(14) % 2, recipe, np.arange(14))
    learner = learner_of(recipe)
    learner.train(loader, 1)
    last = [name for name in learner.trained() if name.endswith("weight")][-1]
    assert not torch.equal(learner.trained()[last], learner.model.state_dict()[last])
    kept = classifier.build(recipe)
    kept.load_state_dict(learner.trained())
    images = transforms.normalize(pixels[:, None], recipe.normalization)
    with torch.no_grad():
        expected = logit(kept.eval()(images)).numpy()
    np.testing.assert_allclose(learner.evaluate(loader)[1]["logit"], expected, atol=1e-5)


def test_the_average_is_short_at_first() -> None:
    """After n steps its decay is (1 + n) / (10 + n) at most, so no start stays in it for long."""
    recipe = dataclasses.replace(RECIPE, frozen=0, ema=0.999)
    pixels = torch.randint(0, 256, (28, 64, 64), dtype=torch.uint8)
    learner = learner_of(recipe, 28)
    name = [name for name in learner.trained() if name.endswith("weight")][-1]
    seen: list[torch.Tensor] = []
    learner.on_step = lambda _: seen.append(learner.model.state_dict()[name].clone())
    learner.train(MemoryLoader(pixels, torch.arange(28) % 2, recipe, np.arange(28)), 1)
    expected = seen[0]
    for steps, weights in enumerate(seen[1:], start=1):
        decay = (1 + steps) / (10 + steps)
        expected = decay * expected + (1 - decay) * weights
    assert len(seen) == 4
    torch.testing.assert_close(learner.trained()[name], expected)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("one_cycle", (4e-5, 1e-3, 4e-9)), ("cosine", (2.5e-4, 1e-3, 0.0))],
)
def test_the_learning_rate_rises_and_falls(schedule: str, rates: tuple[float, ...]) -> None:
    """PyTorch's own start and end: 1/25 and 1/250,000 of the highest rate for one_cycle."""
    fields: dict[str, Any] = {
        "schedule": schedule,
        "warmup": 0.3,
        "epochs": 5,
        "optimizer": "adamw",
    }
    recipe = dataclasses.replace(RECIPE, frozen=0, **fields)
    loader = MemoryLoader(
        torch.zeros(14, 64, 64, dtype=torch.uint8), torch.arange(14) % 2, recipe, np.arange(14)
    )
    learner = learner_of(recipe)
    seen = [learner.optimizer.param_groups[0]["lr"]]
    learner.on_step = lambda _: seen.append(learner.optimizer.param_groups[0]["lr"])
    for epoch in range(1, 6):
        learner.train(loader, epoch)
    assert len(seen) == 11  # The start, and two steps in each of five epochs.
    assert seen[0] == pytest.approx(rates[0])
    assert max(seen) == pytest.approx(rates[1], rel=0.1)
    assert seen[-1] == pytest.approx(rates[2], abs=5e-5)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("num_images", [1, 7, 8, 70])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_a_schedule_has_a_rate_for_every_step(
    schedule: str, num_images: int, warmup: float
) -> None:
    fields: dict[str, Any] = {"schedule": schedule, "warmup": warmup}
    learner = learner_of(dataclasses.replace(RECIPE, frozen=0, **fields), num_images)
    for _ in range(learner.num_steps + 3):
        learner._step()
        assert 0 <= learner.optimizer.param_groups[0]["lr"] <= RECIPE.learning_rate * 1.0001


def test_earlier_layers_learn_more_slowly() -> None:
    recipe = dataclasses.replace(RECIPE, frozen=0, layer_decay=0.5)
    learner = learner_of(recipe)
    rates = [group["lr"] for group in learner.optimizer.param_groups]
    assert rates == [recipe.learning_rate * 0.5**depth for depth in range(len(rates))]
    last = learner.optimizer.param_groups[0]["params"]
    assert last[0] is list(learner.model.head.parameters())[-2]


def test_reported_figures_are_those_of_the_predictions(
    outcomes: dict[int, list[trainer.Outcome]], small_set: Path, cache: str
) -> None:
    outcome = outcomes[2][0]
    logits = np.asarray(outcome.validation["logit"])
    labels = np.asarray(outcome.validation["label"])
    assert outcome.best["val_auc"] == metrics.roc_auc(labels, logits)
    [plan] = planned([RECIPE], small_set, cache, Path("unused"))
    trained_on = plan.shards.rows([1, 2])["label"]
    weights = np.array(trainer.class_weights(RECIPE, np.asarray(trained_on)))[labels]
    losses = -np.log(probabilities(np.where(labels == 1, logits, -logits), Scaling()))
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
        recipe, classifier.build(recipe).state_dict(), (1.0, 1.0), cached=False, shape=(64, 64),
        dtype="uint8", gpu=False, num_images=9, rank=0, world=1,
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
        lost = outcomes[workers][2]
        assert lost.best["score"] == loop.EMPTY_SCORE
        assert len(lost.history) == 1
        others = [outcome for outcome in outcomes[workers] if outcome is not lost]
        assert all(kept.best["val_auc"] is not None for kept in others)


def test_killed_worker_and_killed_driver_end_with_the_figures_of_an_undisturbed_run(
    trained: tuple[Ended, Path], small_set: Path, cache: str, tmp_path: Path
) -> None:
    killed = str(tmp_path / "killed")
    words = [*SMALL, *TEN_EPOCHS, *UNSTRESSED, "--data", str(small_set), "--cache", cache]
    words += ["--output", killed]
    first = Job("train", *words)
    first.read_until(r"epoch 2 of 10")
    # The cluster of this process and that of the job are two on one machine.
    assert "Traceback" not in first.printed
    first.kill_worker("RayTrainWorker")
    first.read_until(r"epoch 5 of 10")
    first.kill()
    assert not (tmp_path / "killed" / "best" / "result.json").exists(), "killed too late"
    assert execute("train", "--resume", killed).code == 0
    assert history(killed) == history(str(trained[1]))
    assert checkpoint.exists(f"{killed}/best/checkpoint")


def test_a_checkpoint_says_how_it_holds_under_acquisition_changes(
    trained: tuple[Ended, Path],
) -> None:
    ended, output = trained
    saved = checkpoint.load(str(output / "best" / "checkpoint"))
    assert len(saved.clean_validation) == 16
    assert len(saved.validation) == 16 * (1 + len(CHANGES))
    assert saved.robustness is not None
    assert list(saved.robustness.changes) == list(CHANGES)
    assert saved.calibrated_on == "stressed"
    assert saved.operating_point.n == 16
    assert saved.operating_point.stressed_sensitivity is not None
    # The same pixels through the same network: one change that leaves them nearly as they are.
    logits = {
        change: np.asarray(
            saved.validation.filter(pc.equal(saved.validation["change"], change))["logit"]
        )
        for change in ("", "jpeg", "gamma_low")
    }
    assert np.corrcoef(logits[""], logits["jpeg"])[0, 1] > 0.9
    assert not np.allclose(logits[""], logits["gamma_low"])
    result = json.loads((output / "best" / "result.json").read_text())
    assert result["stressed_auc"] == saved.robustness.mean["auc"].value
    assert result["worst_change"] in CHANGES
    assert "AUC stressed" in ended.out
    assert "AUC stressed" in (output / "report.html").read_text()


def test_the_command_in_a_model_card_has_the_last_part_of_paths_alone() -> None:
    settings = RunSettings(
        data="/home/roentgen/chest_xray", weights="s3://roentgen/vgg16.pth", cache="/roentgen",
        output="/home/roentgen/runs", fold=3, members=2, members_of="seeds",
    )  # fmt: skip
    assert run._command(settings) == (
        "python jobs/train.py --recipe recipe.json --data chest_xray --weights vgg16.pth --fold 3"
        " --members 2 --members-of seeds"
    )


def test_trained_members_become_one_checkpoint_one_row_and_one_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster: what the workers would give is made up."""
    settings = RunSettings(
        data="/data/set", weights="none", output=str(tmp_path), folds=3, members=2, stress_images=0
    )
    labels = np.arange(12) % 2
    table = pa.table(
        {
            "row": np.arange(12), "label": labels, "fold": np.arange(12) // 4,
            "patient": [f"{row:03}" for row in range(12)], "subtype": [""] * 12,
            "sha256": [f"{row:064}" for row in range(12)],
            "pixels_sha256": [f"{row:064}" for row in range(12)],
        }
    )  # fmt: skip
    none = pa.table({"uri": pa.array([], pa.string())})
    pixels = np.random.default_rng(0).integers(0, 256, (12, 64, 64), np.uint8)
    parts = {fold: (f"{tmp_path}/{fold}.parquet",) for fold in range(3)}
    for fold, (path,) in parts.items():
        own = [image.tobytes() for image in pixels[4 * fold : 4 * fold + 4]]
        storage.write_table(path, pa.table({"x": own}))
    shards = Shards("", (64, 64), "uint8", parts, table, none)
    monkeypatch.setattr(run, "decode_shards", lambda *_: shards)
    digests = [f"{row:064}" for row in range(12)]
    listing = pa.table({"patient_digest": digests, "patient": digests})
    source = PatientSource("the names of files", 12, 1)
    images = TrainingImages(listing, np.arange(12) // 4, listing.slice(0, 0), False, source)
    plans, outcomes = [], []
    for member in members.plan(RECIPE, settings):
        model = classifier.build(RECIPE)
        others = tuple(k for k in range(3) if k != member.fold)
        plans.append(
            Plan(member.recipe, model, shards, False, others, (member.fold,),
                 f"{tmp_path}/{member.recipe.name}", {"source": "none", "tensors": 0})
        )  # fmt: skip
        rows = np.arange(4) + 4 * member.fold
        logits = pa.array(labels[rows] * 2.0 - 1 + member.fold, pa.float32())
        figures = ("score", "train_loss", "val_loss", "val_auc", "train_accuracy", "val_accuracy")
        entry = dict.fromkeys(figures, 1.0) | {"epoch": 1, "seconds": 2.0, "peak_memory_mb": 5.0}
        start = classifier.build(dataclasses.replace(RECIPE, seed=member.fold + 5)).state()
        predictions = pa.table({"row": rows, "label": labels[rows], "logit": logits})
        outcomes.append(trainer.Outcome(start, predictions, [entry], entry))
    [group] = run._best_first([RECIPE], plans, outcomes)
    run._finish(*group, settings, "set", images, gpu=False, keep=True)
    run._write_cards([RECIPE], settings, images)
    saved = checkpoint.load(f"{tmp_path}/small/checkpoint")
    assert saved.member_of_fold == {0: 0, 1: 1}
    assert saved.validation["logit"].to_pylist() == [-1, 1, -1, 1, 0, 2, 0, 2]
    assert saved.splits is not None
    assert set(saved.splits["role"].to_pylist()) == {"train"}
    assert saved.provenance["data"]["fold"] == [0, 1]
    assert [len(part["history"]) for part in saved.provenance["members"]] == [1, 1]
    finished = run._compare([RECIPE], settings, images, {}, [])
    assert [row.name for row in finished.results] == ["small"]
    assert finished.results[0].num_images == 8
    assert finished.results[0].train_seconds == 4.0
    page = Path(finished.report).read_text()
    assert "small/members/1" in page
    assert "average of 2 members" in page
    card = (tmp_path / "small/checkpoint/MODEL_CARD.md").read_text()
    assert card.startswith("# Model card: small of 2 members")
    assert "--data set --folds 3 --weights none --members 2 --stress-images 0\n" in card
    assert re.search(r"[0-9]% of a Grad-CAM heatmap .* measured on [1-8] validation images", card)


def test_an_ensemble_that_was_killed_is_resumed_and_used_by_every_job(
    trained: tuple[Ended, Path], small_set: Path, cache: str, tmp_path: Path
) -> None:
    killed, data = str(tmp_path / "killed"), ("--data", str(small_set), "--cache", cache)
    first = Job("train", *SMALL, *TEN_EPOCHS, "--members", "2", *data, "--output", killed)
    first.read_until(r"best/members/1: epoch 5 of 10")
    first.kill()
    assert not (tmp_path / "killed" / "best" / "result.json").exists(), "killed too late"
    resumed = execute("train", "--resume", killed)
    assert resumed.code == 0, resumed.err
    assert "best/members/0: epoch" not in resumed.out
    assert "average of 2 members" in (tmp_path / "killed" / "report.html").read_text()
    # The first member is the classifier that is trained alone.
    assert history(killed, "best/members/0") == history(str(trained[1]))
    assert [entry["epoch"] for entry in history(killed, "best/members/1")] == list(range(1, 11))
    folder = f"{killed}/best/checkpoint"
    ensemble, alone = checkpoint.load(folder), checkpoint.load(f"{trained[1]}/best/checkpoint")
    assert ensemble.member_of_fold == {0: 0, 1: 1}
    own, both = alone.clean_validation["logit"], ensemble.clean_validation["logit"]
    assert both[: len(own)].equals(own)
    assert len(both) > len(own)
    assert [node.op_type for node in onnx.load_from_string(ensemble.onnx).graph.node].count(
        "Conv"
    ) == 5, "the frozen AlexNet runs once"
    examined = execute(
        "evaluate", "--checkpoint", folder, *data, "--output", str(tmp_path / "examined")
    )
    assert examined.code == 0, examined.err
    assert "best of 2 members: evaluation" in (tmp_path / "examined/report.html").read_text()
    refused = execute(
        "evaluate", "--checkpoint", folder, *data, "--split", "validation", "--output",
        str(tmp_path / "refused"),
    )  # fmt: skip
    assert refused.code == 1
    assert refused.own_err[-1].startswith("error: --split validation: each member of this")
    scored = execute(
        "score", "--checkpoint", folder, "--input", str(small_set / "test"), "--output",
        str(tmp_path / "scores"),
    )  # fmt: skip
    assert "scored 12 of 12" in scored.out, scored.err


def test_skipped_images_are_listed_once_with_their_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shards(**failed: str) -> Shards:
        table = pa.table({"uri": list(failed), "reason": list(failed.values())})
        return Shards("", (64, 64), "uint8", {}, pa.table({}), table)

    assert write_skipped([shards()], str(tmp_path)) == {}
    assert not list(tmp_path.iterdir())
    skipped = [shards(a="the file is empty"), shards(a="the file is empty", b="cut at byte 7")]
    assert skipped_notes(write_skipped(skipped, str(tmp_path))) == [
        "2 images could not be used and were skipped (unreadable.json)."
    ]
    listed = json.loads((tmp_path / "unreadable.json").read_text())
    assert listed == {"a": "the file is empty", "b": "cut at byte 7"}
    assert capsys.readouterr().out.splitlines() == [
        f"skipped: 2 images, listed in {tmp_path}/unreadable.json",
        "  1 the file is empty", "  1 cut at byte N",
    ]  # fmt: skip


OLD_RUN = {
    "settings": {
        "data": "/data/set", "weights": "none", "output": "/elsewhere", "workers": "1",
        "gpu": "auto", "limit": None, "folds": 5, "fold": 0, "operating_point": "youden",
        "cache": "/cache",
    },
    "recipes": [
        {"name": "v0", "backbone": "alexnet", "pretrained": 2, "frozen": 2, "image_px": 128,
         "normalization": "none", "class_weighting": "none", "pooling": "flatten", "hidden": [16],
         "dropout": [0.4, 0.4], "augmentation": "none", "optimizer": "adam",
         "learning_rate": 0.001, "learning_rate_decay": 0.0, "weight_decay": 0.0,
         "batch_size": 10, "epochs": 2, "patience": 5, "loading": "memory", "seed": 0}
    ],
    "packages": {"cxr": "0.1.0"},
}  # fmt: skip
"""A run.json of version 0.1.0."""


def test_a_run_of_an_earlier_version_is_resumed_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(OLD_RUN))
    recipes, settings = run.reopen(str(tmp_path))
    assert recipes == [named("v0")]
    assert settings == RunSettings(
        data="/data/set", weights="none", output=str(tmp_path), cache="/cache", folds=5
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        (json.dumps({"settings": {}}), "'recipes'"),
        (json.dumps(OLD_RUN | {"settings": {"device": "cuda"}}), "'device'"),
        (json.dumps(OLD_RUN | {"recipes": [{"lr": 1}]}), "unknown recipe field lr"),
        (json.dumps(OLD_RUN | {"settings": {"folds": 1}}), "folds: 1 is below 2"),
    ],
)
def test_a_run_that_cannot_be_read_is_refused_with_one_line(
    content: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot be resumed by this version") as caught:
        run.reopen(str(tmp_path))
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_ctrl_c_ends_training_although_ray_train_would_exit_with_0() -> None:
    def train() -> None:
        with trainer.usual_interrupts():
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # As Ray Train's handler.
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert signal.getsignal(signal.SIGINT) is before
