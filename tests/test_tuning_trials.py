"""A trial of heads, without Ray: what it trains on, and what its files of folds hold."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from cxr import storage
from cxr.cluster import Workers
from cxr.datasets.shards import Shards, finish_shards
from cxr.datasets.variation import Variation, views
from cxr.models import acquisition
from cxr.recipes import Recipe
from cxr.storage.arrays import to_column
from cxr.tuning import trials
from cxr.tuning.trials import CHANGES, Shared

pytestmark = pytest.mark.cluster

RECIPE = Recipe(
    backbone="squeezenet1_1", image_px=32, pooling="average", hidden=(), dropout=(0.0,),
    normalization="unit", augmentation="acquisition", views=3, epochs=4, loading="memory",
    optimizer="adamw", learning_rate=0.05,
)  # fmt: skip

LABEL = np.random.default_rng(0).integers(0, 2, 60)


def features(folder: Path, name: str, shift: float, rows: np.ndarray) -> Shards:
    """Features whose mean is the label, and which a change shifts away from it."""
    rng = np.random.default_rng(list(name.encode()))
    parts: dict[int, list[str]] = {}
    tables = []
    for fold in (0, 1):
        for number in (0, 1):
            chosen = rows[(rows % 2 == fold) & (rows // 2 % 2 == number)]
            x = LABEL[chosen, None] * (1 - shift) + rng.normal(0, 0.5, (len(chosen), 512))
            table = pa.table(
                {"row": chosen, "label": LABEL[chosen], "fold": np.full(len(chosen), fold)}
            )
            path = str(folder / name / f"{fold}-{number}")
            storage.write_table(path, table.append_column("x", to_column(x.astype(np.float32))))
            parts.setdefault(fold, []).append(path)
            tables.append(table)
    table = pa.concat_tables(tables).sort_by("row")
    return finish_shards(
        str(folder / name), (512,), "float32", parts, table, table.slice(0, 0)
    )  # fmt: skip


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """A search over views, with changes of the first 40 images."""
    monkeypatch.setattr("ray.get", lambda state: state)
    rows = np.arange(60)
    of_views: dict[tuple[str, Variation | None], Shards] = {
        ("unit", view): features(tmp_path, f"view{number}", 0.1 * number, rows)
        for number, view in enumerate(views(RECIPE))
    }
    of_changes = {
        ("unit", change): features(tmp_path, change.name, 0.5, rows[:40]) for change in CHANGES
    }
    state: Any = {}
    return Shared(
        recipe=RECIPE, folder=str(tmp_path / "trials"), folds=2, cached=True,
        shards=of_views | of_changes, changed=of_changes["unit", CHANGES[0]],
        ranks_stressed=True, state=state, workers=Workers(1, 1), gpu=False, stops=False,
    )  # fmt: skip


def test_a_trial_judges_changed_images_and_reads_back_what_it_wrote(shared: Shared) -> None:
    setting = {"views": 3}
    trials._train_heads(RECIPE, shared, setting, [0, 1])
    images = shared.shards["unit", None].table
    read = trials.read(shared, [setting], images)
    assert np.isfinite(read.logits).all()
    assert read.members.tolist() == list(range(40))
    assert read.stressed.shape == (1, len(acquisition.STRESS), 40)
    assert np.isfinite(read.stressed).all()
    scores = [
        roc_auc_score(LABEL[fold:40:2], logits[fold::2])
        for logits in read.stressed[0]
        for fold in (0, 1)
    ]
    assert trials.score(shared, setting) == pytest.approx(np.mean(scores))
    clean = dataclasses.replace(shared, ranks_stressed=False)
    aucs = [roc_auc_score(LABEL[k::2], read.logits[0, k::2]) for k in (0, 1)]
    assert trials.score(clean, setting) == pytest.approx(np.mean(aucs))


def test_views_change_what_is_learned_and_images_as_they_are_validate(shared: Shared) -> None:
    alone = dataclasses.replace(RECIPE, views=1, augmentation="none")
    trials._train_heads(alone, shared, {"views": 1}, [0, 1])
    trials._train_heads(RECIPE, shared, {"views": 3}, [0, 1])
    images = shared.shards["unit", None].table
    read = trials.read(shared, [{"views": 1}, {"views": 3}], images)
    assert (read.logits[0] != read.logits[1]).all()
    # Batches of the first epoch hold the views in turn, file by file.
    unchanged, first = (
        trials._read_features(tuple(shared.shards["unit", view].folder for view in views(recipe)))
        for recipe in (alone, RECIPE)
    )
    assert (unchanged.unchanged == first.unchanged).all()
    is_same = (unchanged.unchanged == first.rotation[0]).all(dim=1).numpy()
    assert is_same.tolist() == [row // 2 % 2 == 0 for row in range(60)]


def test_a_search_without_changed_images_has_none_in_its_files(shared: Shared) -> None:
    clean = dataclasses.replace(shared, changed=None, ranks_stressed=False)
    trials._train_heads(RECIPE, clean, {}, [0])
    table = storage.read_table(trials._fold_file(clean, {}, 0))
    assert table.column_names == ["row", "label", "logit"]
    read = trials.read(clean, [{}], shared.shards["unit", None].table)
    assert read.members.tolist() == []
