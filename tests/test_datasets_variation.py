"""What is done to pixels before frozen layers run, and how views are mixed."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from cxr import storage
from cxr.datasets import shards as shards_module
from cxr.datasets.extractor import FeatureExtractor, Work
from cxr.datasets.features import Pass
from cxr.datasets.shards import Shards, finish_shards, read_part, take_first
from cxr.datasets.variation import (
    CHUNK_ROWS,
    DrawnView,
    NamedChange,
    Variation,
    rotate,
    varied,
    views,
)
from cxr.errors import SettingsError
from cxr.inference.engine import Engine
from cxr.models import acquisition, classifier
from cxr.recipes import Recipe
from cxr.storage.arrays import to_array, to_column
from tests.support.jobs import environment

pytestmark = pytest.mark.cluster  # Shards and the extractor name Ray; none is started.

RECIPE = Recipe(
    backbone="squeezenet1_1", frozen=1, image_px=32, hidden=(), dropout=(0.0,),
    augmentation="acquisition", views=3,
)  # fmt: skip

DRAWN = DrawnView("acquisition", 1.0, 0, 1)

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 32, 32), np.uint8)


def written(folder: Path, name: str, pixels: NDArray[np.uint8], part_rows: int = 7) -> Shards:
    """Shards of two folds, odd and even rows, in files of a few rows."""
    tables, parts = [], {}
    for fold in (0, 1):
        rows = np.arange(fold, len(pixels), 2)
        parts[fold] = [str(folder / name / f"{fold}-{i}") for i in range(0, len(rows), part_rows)]
        for path, start in zip(parts[fold], range(0, len(rows), part_rows), strict=True):
            chosen = rows[start : start + part_rows]
            table = pa.table(
                {"row": chosen, "label": chosen // 2 % 2, "fold": np.full(len(chosen), fold)}
            )
            tables.append(table)
            storage.write_table(path, table.append_column("x", to_column(pixels[chosen])))
    table = pa.concat_tables(tables).sort_by("row")
    return finish_shards(str(folder / name), (32, 32), "uint8", parts, table, table.slice(0, 0))


def read(shards: Shards) -> dict[int, NDArray[np.uint8]]:
    """The array of each row."""
    tables = [read_part(path) for paths in shards.parts.values() for path in paths]
    rows = pa.concat_tables(tables)
    arrays = to_array(rows["x"], shards.shape, shards.dtype)
    assert len(rows) == len(set(rows["row"].to_pylist()))
    return dict(zip(rows["row"].to_pylist(), arrays, strict=True))


def test_a_drawn_view_belongs_to_the_row_and_not_to_its_place() -> None:
    rows = np.arange(40)
    together = varied(DRAWN, PIXELS, rows)
    assert together.dtype == np.uint8
    apart = [varied(DRAWN, PIXELS[[i]], rows[[i]])[0] for i in (0, CHUNK_ROWS, 39)]
    for image, i in zip(apart, (0, CHUNK_ROWS, 39), strict=True):
        # A blur's kernel is as wide as the widest of its chunk needs: a rounding apart.
        assert np.abs(together[i].astype(int) - image).max() <= 1
    others = varied(dataclasses.replace(DRAWN, number=2), PIXELS, rows)
    assert (others != together).mean() > 0.5


def test_a_named_change_is_that_of_every_image() -> None:
    change = NamedChange("gamma_low", 3)
    expected = acquisition.change(torch.from_numpy(PIXELS)[:, None], "gamma_low", 3)[:, 0].numpy()
    assert np.array_equal(varied(change, PIXELS, np.arange(40)), expected)
    noisy = varied(NamedChange("noise", 3), np.full_like(PIXELS, 128), np.arange(40))
    assert not (noisy[0] == noisy[CHUNK_ROWS]).all()
    assert np.array_equal(
        noisy, varied(NamedChange("noise", 3), np.full_like(PIXELS, 128), np.arange(40))
    )


def test_the_first_view_is_the_image_as_it_is() -> None:
    drawn = [DrawnView("acquisition", 1.0, 0, number) for number in (1, 2)]
    assert views(RECIPE) == [None, *drawn]
    assert views(Recipe()) == [None]


def test_images_that_are_changed_have_features_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    none = pa.table({})
    pixels = Shards("cache/pixels/a1", (32, 32), "uint8", {}, none, none)
    model = classifier.build(RECIPE)
    others: list[Variation] = [
        DRAWN,
        dataclasses.replace(DRAWN, augmentation="affine"),
        dataclasses.replace(DRAWN, strength=0.5),
        dataclasses.replace(DRAWN, seed=1),
        dataclasses.replace(DRAWN, number=2),
        NamedChange("noise", 3),
        NamedChange("noise", 2),
        NamedChange("blur", 3),
    ]
    passes = [Pass(pixels, RECIPE, model, variation) for variation in (None, *others)]
    folders = [frozen.folder("cache", onnx=True) for frozen in passes]
    assert len(set(folders)) == len(passes)
    # Features of images as they are do not depend on what is drawn, and are those of before.
    assert Pass(pixels, Recipe(**vars(RECIPE) | {"seed": 5}), model).folder(
        "cache", onnx=True
    ) == folders[0]  # fmt: skip
    monkeypatch.setattr(acquisition, "VERSION", acquisition.VERSION + 1)
    again = [frozen.folder("cache", onnx=True) for frozen in passes]
    assert again[0] == folders[0]
    assert not set(again[1:]) & set(folders)


def test_the_extractor_changes_the_images_and_opens_a_network_once(tmp_path: Path) -> None:
    """The network of this test gives the pixels themselves."""
    opened = []

    class Same:
        def open(self, threads: int) -> Engine:
            opened.append(threads)
            return self  # type: ignore[return-value]

        def run(self, pixels: NDArray[np.uint8], on_batch: object) -> NDArray[np.uint8]:  # noqa: ARG002
            return pixels

    class Counter:
        class add:
            remote = staticmethod(len)

    shards = written(tmp_path, "pixels", PIXELS)
    change = NamedChange("gamma_low", 3)
    extractor = FeatureExtractor(
        [Same()], [Work(0, 32, variation) for variation in (None, DRAWN, change)], 1, Counter  # type: ignore[arg-type]
    )  # fmt: skip
    path = shards.parts[0][1]
    targets = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    extractor(
        pa.table({"number": [0, 1, 2], "fold": [0] * 3, "path": [path] * 3, "target": targets})
    )
    assert opened == [1]
    before = read_part(path)
    row = np.asarray(before["row"])
    expected = [PIXELS[row], varied(DRAWN, PIXELS[row], row), varied(change, PIXELS[row], row)]
    for target, pixels in zip(targets, expected, strict=True):
        after = read_part(target)
        assert after.drop_columns(["x"]).equals(before.drop_columns(["x"]))
        assert np.array_equal(to_array(after["x"], (32, 32), "uint8"), pixels)


def test_rotated_views_are_mixed_and_together_every_view_of_every_image(tmp_path: Path) -> None:
    of_views = [
        written(tmp_path, f"view{number}", np.full_like(PIXELS, number)) for number in range(3)
    ]
    rotation = rotate(of_views)
    seen = [{row: int(array[0, 0]) for row, array in read(shards).items()} for shards in rotation]
    for row in range(40):
        assert sorted(views_of[row] for views_of in seen) == [0, 1, 2]
    for views_of in seen:
        assert len(views_of) == 40
        assert set(views_of.values()) == {0, 1, 2}
    [alone] = rotate(of_views[:1])
    assert alone == of_views[0]


def test_the_first_rows_of_each_fold_are_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = written(tmp_path, "pixels", PIXELS)
    taken = take_first(shards, 9, str(tmp_path / "cache"))
    assert taken.table["row"].to_pylist() == list(range(18))
    assert taken.table.schema == shards.table.schema
    for row, array in read(taken).items():
        assert np.array_equal(array, PIXELS[row])
    assert len(take_first(shards, 99, str(tmp_path / "cache")).table) == 40
    monkeypatch.setattr(shards_module, "read_part", None)
    assert take_first(shards, 9, str(tmp_path / "cache")).parts == taken.parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augmentation": "none"}, "views: 3 views need an augmentation that draws them"),
        ({"frozen": 0}, "views: 3 views are of frozen layers, and this recipe trains all"),
    ],
)
def test_views_that_nothing_draws_or_reads_are_refused(
    changes: dict[str, object], message: str
) -> None:
    classifier.check(RECIPE)
    with pytest.raises(SettingsError, match=message):
        classifier.check(Recipe(**vars(RECIPE) | changes))


def test_a_pass_over_images_as_they_are_needs_no_pytorch() -> None:
    program = """
import sys
sys.modules["torch"] = None
from cxr.datasets.extractor import FeatureExtractor, Work
FeatureExtractor([], [Work(0, 32, None)], 1, None)
"""
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)
