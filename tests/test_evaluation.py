"""A set without a split, from training to evaluation: who is tested on was never trained on."""

import dataclasses
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import evaluation, labels, sources
from cxr.datasets.splits import Splits, collect
from cxr.errors import CheckpointError, DataError
from cxr.models import checkpoint
from cxr.sources.settings import SetSettings
from cxr.training.preparation import TrainingImages, list_training_images
from cxr.training.settings import RunSettings
from tests.support.jobs import SMALL, UNSTRESSED, Ended, execute

pytestmark = pytest.mark.cluster

COLUMNS = ("uri=File", "label=Finding", "patient=Person")

FRACTION = 0.25


def write_manifest(folder: Path, rows: Sequence[tuple[str, ...]], name: str = "labels.csv") -> str:
    header = ("File", "Finding", "Person", "split")[: len(rows[0])]
    text = "\n".join(";".join(row) for row in (header, *rows))
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.fixture(scope="module")
def own_rows(
    small_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Sequence[tuple[str, ...]]]:
    """48 phantoms under names that do not tell the patient, and the rows of their manifest."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number, path in enumerate(sorted((small_set / "train").rglob("*.jpeg"))):
        shutil.copy(path, folder / f"scan {number}.jpeg")
        person = f"Roentgen {labels.patient_key(str(path))}"
        rows.append((f"scan {number}.jpeg", path.parent.name, person))
    return folder, rows


@pytest.fixture(scope="module")
def run(
    ray_cluster: None,
    own_rows: tuple[Path, Sequence[tuple[str, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Ended, Path, Path]:
    """What training printed, its folder and the cache."""
    folder, rows = own_rows
    output, cache = (tmp_path_factory.mktemp(name) / name for name in ("run", "cache"))
    ended = execute(
        "train", *SMALL, "--epochs", "2", "--data", write_manifest(folder, rows), "--columns",
        *COLUMNS, "--test-fraction", str(FRACTION), "--output", str(output), "--cache", str(cache),
    )  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    return ended, output, cache


def evaluate(trained: Path, cache: Path, output: Path, *words: str) -> Ended:
    return execute(
        "evaluate", "--checkpoint", str(trained / "best" / "checkpoint"), "--output", str(output),
        "--cache", str(cache), *UNSTRESSED, *words,
    )  # fmt: skip


def test_the_next_command_evaluates_exactly_the_patients_held_out(
    run: tuple[Ended, Path, Path], own_rows: tuple[Path, Sequence[tuple[str, ...]]], tmp_path: Path
) -> None:
    ended, output, _ = run
    [line] = re.findall(r"^next: python jobs/evaluate\.py (.*)$", ended.out, re.M)
    tested = execute("evaluate", *shlex.split(line), "--output", str(tmp_path / "tested"))
    assert tested.code == 0, tested.err
    counts = re.search(r"; (\d+) radiographs of (\d+) patients are held out to test on", ended.out)
    assert counts is not None
    figures = json.loads((tmp_path / "tested" / "metrics.json").read_text())
    assert [figures["num_images"], figures["num_patients"]] == [int(n) for n in counts.groups()]
    uris = pq.read_table(tmp_path / "tested" / "predictions.parquet")["uri"].to_pylist()
    person = {row[0]: row[2] for row in own_rows[1]}
    tested_on = {person[Path(uri).name] for uri in uris}
    trained_on = set(person.values()) - tested_on
    for finding in labels.CLASSES:
        own = {row[2] for row in own_rows[1] if row[1] == finding}
        assert len(own & tested_on) == round(FRACTION * len(own))
    saved = checkpoint.load(str(output / "best" / "checkpoint"))
    assert saved.splits is not None
    assert len(Splits(saved.splits).patients("train", "validation")) == len(trained_on)
    assert "Patients are identified by the column Person" in tested.out
    robustness = figures["robustness"]
    assert robustness["num_images"] == figures["num_images"]
    for metric in ("auc", "sensitivity"):
        values = {name: own[metric]["value"] for name, own in robustness["changes"].items()}
        assert robustness["mean"][metric]["value"] == pytest.approx(sum(values.values()) / 17)
        assert values[robustness["worst"][metric]] == min(values.values())
    of_all = figures["threshold_free"] | figures["at_operating_point"]["estimates"]
    assert robustness["clean"] == {name: of_all[name] for name in robustness["clean"]}
    assert "under 17 acquisition changes" in tested.out
    assert "Robustness" in (tmp_path / "tested" / "report.html").read_text()
    [line] = re.findall(r"^next: python jobs/score\.py (.*)$", tested.out, re.M)
    scored = execute("score", *shlex.split(line))
    assert scored.code == 0, scored.err
    assert "scored 48 of 48" in scored.out


def test_the_validation_images_can_be_evaluated(
    run: tuple[Ended, Path, Path], tmp_path: Path
) -> None:
    _, output, cache = run
    data = json.loads((output / "run.json").read_text())["settings"]["data"]
    again = evaluate(output, cache, tmp_path / "again", "--data", data, "--split", "validation")
    assert again.code == 0, again.err
    saved = checkpoint.load(str(output / "best" / "checkpoint"))
    seen = pq.read_table(tmp_path / "again" / "predictions.parquet")
    assert sorted(seen["logit"].to_pylist()) == pytest.approx(
        sorted(saved.clean_validation["logit"].to_pylist()), abs=1e-4
    )


def test_every_page_says_how_patients_are_known(
    run: tuple[Ended, Path, Path], tmp_path: Path
) -> None:
    ended, output, _ = run
    sentence = re.search(r"^Patients are identified by the column Person: .*$", ended.out, re.M)
    assert sentence is not None
    assert sentence[0] in (output / "report.html").read_text()


def test_no_patient_is_named_in_a_run_or_a_cache(run: tuple[Ended, Path, Path]) -> None:
    ended, output, cache = run
    assert "Roentgen" not in ended.out + ended.err
    for path in [*output.rglob("*"), *cache.rglob("*")]:
        if path.is_file():
            content = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
            assert "Roentgen" not in content + path.read_bytes().decode("latin-1"), path


def test_copies_of_trained_images_are_left_out_and_counted(
    run: tuple[Ended, Path, Path],
    own_rows: tuple[Path, Sequence[tuple[str, ...]]],
    small_set: Path,
    tmp_path: Path,
) -> None:
    """Another set, with other people in its manifest."""
    _, output, cache = run
    saved = checkpoint.load(str(output / "best" / "checkpoint"))
    assert saved.splits is not None
    num_trained = len(Splits(saved.splits).table) - len(Splits(saved.splits).patients("test"))
    folder, rows = own_rows
    others = sorted((small_set / "test").rglob("*.jpeg"))
    test = [(str(folder / name), finding, f"New {name}", "test") for name, finding, _ in rows]
    test += [(str(path), path.parent.name, f"New {path.name}", "test") for path in others]
    data = write_manifest(tmp_path, test)
    ended = evaluate(output, cache, tmp_path / "out", "--data", data)
    assert ended.code == 0, ended.err
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["num_images"] == len(test) - num_trained
    note = f"{num_trained} images were left out: the checkpoint was trained or validated"
    assert note in ended.out
    assert note in (tmp_path / "out" / "report.html").read_text()


# Choices, without a cluster -----------------------------------------------------------------------


def listed(folder: Path, rows: Sequence[tuple[str, ...]]) -> sources.LabeledSet:
    data = write_manifest(folder, rows)
    return sources.list_set(data, SetSettings(data, COLUMNS))


def splits_of(folder: Path, rows: Sequence[tuple[str, ...]], fold: int | None = 0) -> Splits:
    """Of a run whose first patient of each class trained, second validated, third was held out."""
    table = listed(folder, rows).split("train")
    roles = ["train", "validation", "test"]
    patients = table["patient"].to_pylist()
    numbers = sorted(set(patients))
    role = {number: roles[index % 3] for index, number in enumerate(numbers)}
    kept = [i for i, number in enumerate(patients) if role[number] != "test"]
    images = pa.table(
        {
            "row": kept,
            "fold": [int(role[patients[i]] == "train") for i in kept],
            "sha256": [f"{i:064}" for i in kept],
            "pixels_sha256": [f"{i:064}" for i in kept],
        }
    )
    held_out = table.take([i for i, number in enumerate(patients) if role[number] == "test"])
    return collect(images, table, held_out, fold)


ROWS: Sequence[tuple[str, ...]] = [
    (f"{number}.png", labels.CLASSES[number % 2], f"Person {number // 2}") for number in range(12)
]


HELD_OUT = "The data have no test split: these are the patients whom training held out."


def test_images_are_chosen_by_the_role_of_their_patients(tmp_path: Path) -> None:
    data, splits = listed(tmp_path, ROWS), splits_of(tmp_path, ROWS)
    for split, numbers in (("validation", (2, 3, 8, 9)), ("test", (4, 5, 10, 11))):
        table, remark = evaluation.choose_images(data, split, splits)  # type: ignore[arg-type]
        names = {Path(uri).name for uri in table["uri"].to_pylist()}
        assert names == {f"{number}.png" for number in numbers}
        assert remark == ("" if split == "validation" else HELD_OUT)


def test_patients_that_are_not_there_any_more_are_counted(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, ROWS)
    table, remark = evaluation.choose_images(listed(tmp_path, ROWS[:10]), "test", splits)
    assert len(table) == 2
    assert remark.startswith(HELD_OUT)
    assert remark.endswith(" 1 of the 2 test patients of the checkpoint are not in these data.")
    with pytest.raises(DataError, match="none of the 2 test patients of the checkpoint is in it"):
        evaluation.choose_images(listed(tmp_path, ROWS[:4]), "test", splits)


def test_patients_of_training_are_refused_in_any_set(tmp_path: Path) -> None:
    splits = splits_of(tmp_path, ROWS)
    other = [(f"new {i}.png", label, person, "test") for i, (_, label, person) in enumerate(ROWS)]
    with pytest.raises(DataError) as caught:
        evaluation.choose_images(listed(tmp_path, other), "test", splits)
    assert "trained or validated on 4 of the patients of test, such as that of" in str(caught.value)
    assert "Person" not in str(caught.value)
    only_held_out = [row for row in other if row[2] in ("Person 2", "Person 5")]
    table, _ = evaluation.choose_images(listed(tmp_path, only_held_out), "test", splits)
    assert len(table) == 4


def test_a_set_without_a_test_split_says_what_can_be_done(tmp_path: Path) -> None:
    data = listed(tmp_path, ROWS)
    with pytest.raises(DataError, match=r"--split validation, or train with --test-fraction"):
        evaluation.choose_images(data, "test", None)
    with pytest.raises(CheckpointError, match="did not keep which images validated") as caught:
        evaluation.choose_images(data, "validation", None)
    assert len(str(caught.value).splitlines()) == 1


def test_images_that_trained_the_other_members_do_not_validate_their_average(
    tmp_path: Path,
) -> None:
    data, splits = listed(tmp_path, ROWS), splits_of(tmp_path, ROWS, fold=None)
    with pytest.raises(CheckpointError, match=r"--split validation: each member .*test-fraction"):
        evaluation.choose_images(data, "validation", splits)


def test_settings_that_are_not_given_are_those_of_training(small_checkpoint: str) -> None:
    saved = checkpoint.load(small_checkpoint)
    kept = SetSettings("/elsewhere", COLUMNS, patients="folder", other_labels="skip")
    trained = dataclasses.replace(saved, provenance={"set": json.loads(json.dumps(kept.how_read))})
    given = SetSettings("/here", patients="file")
    assert evaluation.read_as_trained(given, trained) == SetSettings(
        "/here", COLUMNS, patients="file", other_labels="skip"
    )
    assert evaluation.read_as_trained(given, saved) == given


def training_images(
    folder: Path,
    rows: Sequence[tuple[str, ...]],
    fraction: float | None,
    remembered: Splits | None = None,
) -> TrainingImages:
    settings = RunSettings(
        data=write_manifest(folder, rows), columns=COLUMNS, folds=2, test_fraction=fraction
    )
    return list_training_images(str(settings.data), settings, remembered)


def test_a_resumed_run_tests_on_the_patients_that_it_held_out(tmp_path: Path) -> None:
    """Although the set has grown."""
    splits = splits_of(tmp_path, ROWS)
    more = [(f"new {i}.png", labels.CLASSES[i % 2], f"A {i}") for i in range(20)]
    images = training_images(tmp_path, [*ROWS, *more], 0.4, splits)
    names = {Path(uri).name for uri in images.held_out["uri"].to_pylist()}
    assert names == {"4.png", "5.png", "10.png", "11.png"}
    fresh = training_images(tmp_path, [*ROWS, *more], 0.4)
    assert len(set(fresh.held_out["patient"].to_pylist())) == 10


def test_a_test_fraction_besides_a_test_split_is_refused(tmp_path: Path) -> None:
    rows = [(*row, "test" if row[2] == "Person 0" else "train") for row in ROWS]
    with pytest.raises(DataError, match=r"has a test split of 2 radiographs already\. Leave out"):
        training_images(tmp_path, rows, 0.4)
    images = training_images(tmp_path, rows, None)
    assert (images.has_test, len(images.held_out)) == (True, 0)
    assert not training_images(tmp_path, ROWS, None).has_test
