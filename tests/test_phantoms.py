"""Phantoms: deterministic, laid out like the real set, learnable, not told apart by brightness."""

import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr import labels, phantoms
from cxr.errors import SettingsError, StorageError
from cxr.phantoms import Phantom, PhantomSettings

SMALL = PhantomSettings(num_train=40, num_val=8, num_test=16, image_px=48, seed=3)
NAMES = {
    "NORMAL": re.compile(r"(NORMAL2-)?IM-\d{4}-\d{4}\.jpeg"),
    "PNEUMONIA": re.compile(r"person\d+_(bacteria|virus)_\d+\.jpeg"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantoms.write(SMALL, tmp_path_factory.mktemp("drawn") / "set")


@pytest.fixture(scope="module")
def chests() -> list[Phantom]:
    """300 phantoms, one patient each, at the default size."""
    cycle: tuple[phantoms.Subtype, ...] = ("normal", "bacteria", "normal", "virus")
    return [phantoms.draw(np.random.default_rng([7, i]), cycle[i % 4]) for i in range(300)]


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def is_pneumonia(chests: list[Phantom]) -> list[bool]:
    return [chest.subtype != "normal" for chest in chests]


def test_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    again = phantoms.write(SMALL, tmp_path / "again")
    assert files(again) == files(drawn)


def test_another_seed_draws_other_chests(drawn: Path, tmp_path: Path) -> None:
    other = PhantomSettings(num_train=8, num_val=4, num_test=4, image_px=48, seed=4)
    assert not set(files(phantoms.write(other, tmp_path)).values()) & set(files(drawn).values())


def test_layout_and_names_are_those_of_the_real_set(drawn: Path) -> None:
    paths = [Path(name) for name in files(drawn) if name != "truth.json"]
    counts = Counter(path.parent.as_posix() for path in paths)
    assert counts == {
        "train/NORMAL": 15,
        "train/PNEUMONIA": 25,
        "val/NORMAL": 3,
        "val/PNEUMONIA": 5,
        "test/NORMAL": 6,
        "test/PNEUMONIA": 10,
    }
    assert all(NAMES[path.parent.name].fullmatch(path.name) for path in paths)
    assert {labels.subtype(path.name) for path in paths} == {"", "bacteria", "virus"}
    with Image.open(drawn / paths[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (48, 48))


def test_no_patient_spans_two_splits_and_some_have_several_images(drawn: Path) -> None:
    splits, num_images = defaultdict(set), Counter[str]()
    for name in files(drawn):
        if name != "truth.json":
            patient = labels.patient_key(name)
            splits[patient].add(Path(name).parts[0])
            num_images[patient] += 1
    assert {len(found) for found in splits.values()} == {1}
    assert {1, 2} <= set(num_images.values()) <= {1, 2, 3}


def test_truth_names_every_file_with_its_opacities(drawn: Path) -> None:
    truth = json.loads((drawn / "truth.json").read_text())
    assert set(truth["images"]) == {name for name in files(drawn) if name != "truth.json"}
    assert PhantomSettings(**truth["settings"]) == SMALL
    num_opacities = {"normal": {0}, "bacteria": {1}, "virus": {2, 3}}
    for name, image in truth["images"].items():
        assert image["subtype"] == (labels.subtype(name) or "normal")
        assert len(image["opacities"]) in num_opacities[image["subtype"]]


def test_opacities_lie_inside_the_image(chests: list[Phantom]) -> None:
    for chest in chests:
        for opacity in chest.opacities:
            assert 0 <= opacity.x - opacity.radius_x < opacity.x + opacity.radius_x <= 1
            assert 0 <= opacity.y - opacity.radius_y < opacity.y + opacity.radius_y <= 1


def test_viral_opacities_are_in_both_lungs(chests: list[Phantom]) -> None:
    for chest in chests:
        if chest.subtype == "virus":
            x = [opacity.x for opacity in chest.opacities]
            assert min(x) < 0.5 < max(x)


@pytest.mark.parametrize("subtype", ["bacteria", "virus"])
def test_the_marked_place_is_brighter_than_without_disease(subtype: phantoms.Subtype) -> None:
    for seed in range(20):
        normal = phantoms.draw(np.random.default_rng(seed), "normal", 112)
        diseased = phantoms.draw(np.random.default_rng(seed), subtype, 112)
        gain = diseased.pixels.astype(int) - normal.pixels
        y, x = (np.mgrid[:112, :112] + 0.5) / 112
        for opacity in diseased.opacities:
            shape = ((x - opacity.x) / opacity.radius_x) ** 2
            shape += ((y - opacity.y) / opacity.radius_y) ** 2
            assert gain[shape < 0.25].mean() > 3
        # Scatter carries a little light over the whole image, never as much as the disease itself.
        assert gain[:, :4].mean() < 1


def test_brightness_does_not_give_the_class_away(chests: list[Phantom]) -> None:
    for summary in (np.mean, np.median, np.std):
        auc = roc_auc_score(is_pneumonia(chests), [summary(chest.pixels) for chest in chests])
        assert max(auc, 1 - auc) < 0.7


def test_a_linear_model_learns_the_class_but_not_perfectly(chests: list[Phantom]) -> None:
    coarse = np.stack([chest.pixels.reshape(16, 14, 16, 14).mean((1, 3)) for chest in chests])
    coarse -= coarse.mean((1, 2), keepdims=True)
    coarse /= coarse.std((1, 2), keepdims=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003))
    features, y_true = coarse.reshape(len(chests), -1), is_pneumonia(chests)
    y_score = cross_val_predict(model, features, y_true, cv=5, method="decision_function")
    assert 0.75 < roc_auc_score(y_true, y_score) < 0.98


@pytest.mark.parametrize("image_px", [32, 97, 300])
def test_any_size_can_be_drawn(image_px: int) -> None:
    pixels = phantoms.draw(np.random.default_rng(0), "virus", image_px).pixels
    assert pixels.shape == (image_px, image_px)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 20


def test_cache_draws_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = phantoms.cached(SMALL, tmp_path)
    assert folder.parent == tmp_path / "phantoms"
    monkeypatch.setattr(phantoms, "write", None)
    assert phantoms.cached(SMALL, tmp_path) == folder


def test_other_settings_or_format_have_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phantoms, "write", lambda _, folder: folder.mkdir(parents=True))
    folders = {phantoms.cached(SMALL, tmp_path), phantoms.cached(PhantomSettings(), tmp_path)}
    monkeypatch.setattr(phantoms, "FORMAT_VERSION", 999)
    folders.add(phantoms.cached(SMALL, tmp_path))
    assert len(folders) == 3


@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
def test_an_interrupted_drawing_is_not_used(
    killed: bool, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_halfway(_settings: PhantomSettings, folder: Path) -> Path:
        shutil.copytree(drawn / "train", folder / "train")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "write", stop_halfway)
        if killed:  # a killed process cleans nothing up
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            phantoms.cached(SMALL, tmp_path)
    assert len(list((tmp_path / "phantoms").iterdir())) == killed
    assert files(phantoms.cached(SMALL, tmp_path)) == files(drawn)


def test_of_two_drawings_at_once_one_wins(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish_second(settings: PhantomSettings, folder: Path) -> Path:
        shutil.copytree(drawn, folder)
        with monkeypatch.context() as patch:
            patch.setattr(phantoms, "write", lambda _, other: shutil.copytree(drawn, other))
            phantoms.cached(settings, tmp_path)
        return folder

    monkeypatch.setattr(phantoms, "write", finish_second)
    folder = phantoms.cached(SMALL, tmp_path)
    assert files(folder) == files(drawn)
    assert list(folder.parent.iterdir()) == [folder]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, where a folder should be")
    with pytest.raises(StorageError, match=r"blocked: cannot be written .* Name a folder"):
        phantoms.write(SMALL, blocked)
    with pytest.raises(StorageError, match=r"blocked.phantoms: cannot be written .* Name a folder"):
        phantoms.cached(SMALL, blocked)


def test_a_folder_in_use_is_left_alone(drawn: Path) -> None:
    before = files(drawn)
    with pytest.raises(StorageError, match="not empty"):
        phantoms.write(SMALL, drawn)
    assert files(drawn) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train", 0),
        ("num_val", -1),
        ("num_test", 1),
        ("pneumonia_fraction", 0.0),
        ("pneumonia_fraction", 1.0),
        ("pneumonia_fraction", float("nan")),
        ("image_px", 8),
        ("image_px", 100_000),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name):
        PhantomSettings(**{name: value})  # type: ignore[arg-type]


def test_an_unknown_subtype_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown subtype 'fungus'"):
        phantoms.draw(np.random.default_rng(0), "fungus")  # type: ignore[arg-type]
