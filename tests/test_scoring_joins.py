"""Scores join the tables of those who asked for them, and hold no more of a patient than asked."""

import csv
import gzip
import hashlib
import hmac
import json
import re
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cxr.models import checkpoint
from cxr.scoring import results, work
from tests.support.jobs import ROOT, Ended, execute
from tests.support.radiographs import PATIENT, dicom, drawn, radiograph

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

KEY = "0123456789abcdef0123456789abcdef"
STUDY = "1.2.826.0.1.4711"
SERIES = "1.2.826.0.1.4711.7"
ROWS = [
    {"File": "images/1.jpeg", "Site": "Nord", "Name": "Curie^Marie", "Born": "18671107"},
    {"File": "images/2.jpeg ", "Site": "", "Name": "Meitner^Lise", "Born": "18781107"},
    {"File": "old.zip!/3.jpeg", "Site": "00123", "Name": "Curie^Irene", "Born": "18970912"},
    {"File": "gone.jpeg", "Site": "West", "Name": "Noether^Emmy", "Born": "18820323"},
]
PLANTED = (
    KEY, STUDY, SERIES, *PATIENT.values(), "Roentgen",
    *(row[name] for row in ROWS for name in ("Name", "Born")),
)  # fmt: skip
"""Of DICOM tags, of columns that are not kept, and the key."""

WORDS = (
    "--columns", "uri=File", "--keep-columns", "Site", "--study-columns", "hashed", "--any-view",
    "--operating-point", "specificity=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest beside its images and a zip, a folder of DICOM files, and a key."""
    folder = tmp_path_factory.mktemp("hospital")
    (folder / "images").mkdir()
    for i in (1, 2):
        (folder / "images" / f"{i}.jpeg").write_bytes(radiograph(i))
    with zipfile.ZipFile(folder / "old.zip", "w") as members:
        members.writestr("3.jpeg", radiograph(3))
        members.writestr("4.jpeg", radiograph(4))
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    (folder / "pacs").mkdir()
    uids = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES, "AccessionNumber": "P4711"}
    planted: dict[str, dict[str, str | None]] = {
        "PA": {"ViewPosition": "PA"}, "LL": {"ViewPosition": "LL"}, "CT": {"Modality": "CT"},
        "none": {"StudyInstanceUID": None},
    }  # fmt: skip
    for name, tags in planted.items():
        pixels = drawn(seed=len(name))
        (folder / "pacs" / name).write_bytes(dicom(pixels, **{**uids, **tags}))
    (folder / "hash.key").write_text(KEY + "\n")
    return folder


@pytest.fixture(scope="module")
def scored(
    data: Path, small_checkpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    output = tmp_path_factory.mktemp("joined") / "scores"
    return score(small_checkpoint, data, output, *WORDS), output


def score(checkpoint_folder: str, data: Path, output: Path, *words: str) -> Ended:
    return execute(
        "score", "--checkpoint", checkpoint_folder, "--output", str(output), *words,
        "--hash-key-file", str(data / "hash.key"),
        "--input", str(data / "list.csv"), str(data / "pacs"),
    )  # fmt: skip


def hashed(uid: str) -> str:
    return hmac.new(KEY.encode(), uid.encode(), hashlib.sha256).hexdigest()


def test_rows_have_the_address_as_written_and_where_it_was_read(
    scored: tuple[Ended, Path], data: Path
) -> None:
    ended, output = scored
    assert ended.code == 0, ended.err
    rows = {row["uri"]: row for row in pq.read_table(output / "scores").to_pylist()}
    named = {
        "images/1.jpeg": ("images/1.jpeg", "Nord"),
        "images/2.jpeg": ("images/2.jpeg", ""),
        "old.zip!/3.jpeg": ("old.zip!/3.jpeg", "00123"),
        "gone.jpeg": ("gone.jpeg", "West"),
    }
    listed = {str(data / "pacs" / name): name for name in ("PA", "LL", "CT", "none")}
    assert rows.keys() == {*named, *listed}
    for uri, (file, site) in named.items():
        assert (rows[uri]["file"], rows[uri]["Site"]) == (str(data / file), site)
        assert rows[uri]["study_instance_uid"] is None
    for uri in listed:
        assert (rows[uri]["file"], rows[uri]["Site"]) == (uri, None)
    assert rows["gone.jpeg"]["status"] == "unreadable"
    lines = list(csv.DictReader((output / "scores.csv").open(newline="")))
    # As the manifest has them, then folders, then archives.
    assert [line["uri"] for line in lines] == [
        *(uri for uri in named if uri != "old.zip!/3.jpeg"), *sorted(listed), "old.zip!/3.jpeg",
    ]  # fmt: skip
    assert {line["uri"]: line["Site"] for line in lines} == {
        uri: row["Site"] or "" for uri, row in rows.items()
    }


def test_studies_take_their_frontal_images_and_count_the_others(
    scored: tuple[Ended, Path], data: Path
) -> None:
    output = scored[1]
    rows = {Path(r["file"]).name: r for r in pq.read_table(output / "scores").to_pylist()}
    prob = rows["PA"]["prob_pneumonia"]
    [study] = pq.read_table(output / "studies.parquet").to_pylist()
    assert study == {
        "study_instance_uid": hashed(STUDY), "num_images": 3, "num_scored": 2, "num_refused": 1,
        "num_unreadable": 0, "num_frontal": 1, "max_prob_pneumonia": prob,
        "mean_prob_pneumonia": prob, "prediction": rows["PA"]["prediction"],
    }  # fmt: skip
    assert rows["none"]["warnings"][-1] == "no valid Study Instance UID in the file"
    assert rows["none"]["series_instance_uid"] == hashed(SERIES)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["studies"] == {"by": "study_instance_uid", "rows": 1, "images_without": 5}


def test_the_threshold_is_chosen_on_the_validation_images(
    scored: tuple[Ended, Path], small_checkpoint: str
) -> None:
    """The logits of the six are -2, -1, 0.4 of normal images, and -0.3, 1 and 3."""
    ended, output = scored
    point = json.loads((output / "summary.json").read_text())["checkpoint"]["operating_point"]
    assert (point["rule"], point["n"]) == ("specificity=1", 6)
    assert (point["specificity"], point["sensitivity"]) == (1.0, pytest.approx(2 / 3))
    assert point["threshold"] != checkpoint.load(small_checkpoint).operating_point.threshold
    assert f"specificity=1 -> threshold {point['threshold']:.4f}; on 6 validation" in ended.out
    page = " ".join((output / "index.html").read_text().split())
    assert "The rule specificity=1 chose this threshold on 6 validation images" in page
    for row in pq.read_table(output / "scores").to_pylist():
        if row["status"] == "scored":
            positive = row["prob_pneumonia"] >= point["threshold"]
            assert row["prediction"] == ("PNEUMONIA" if positive else "NORMAL")


def test_nothing_of_a_patient_is_stored_or_printed_but_hashed(scored: tuple[Ended, Path]) -> None:
    ended, output = scored
    texts = [ended.out, ended.err]
    for path in output.rglob("*"):
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pylist()))
        if path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    assert any(hashed(STUDY) in text for text in texts)
    for text in texts:
        assert not [planted for planted in PLANTED if planted in text]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--keep-columns", "Ward"),
            "list.csv: no column Ward to keep. Choices: File, Site, Name, Born.",
        ),
        (("--columns", "uri=File", "patient=Name"), "Add --keep-columns Name."),
        (("--operating-point", "sensitivity=2"), "unknown operating point rule 'sensitivity=2'"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    words: tuple[str, ...], message: str, data: Path, small_checkpoint: str, tmp_path: Path
) -> None:
    words = ("--columns", "uri=File", *words)
    ended = execute(
        "score", "--checkpoint", small_checkpoint, "--output", str(tmp_path / "out"), *words,
        "--input", str(data / "list.csv"),
    )  # fmt: skip
    assert ended.code == 1
    assert message in ended.own_err[0]
    assert len(ended.own_err) == 1
    assert not (tmp_path / "out").exists()


def test_another_key_is_refused(
    scored: tuple[Ended, Path], data: Path, small_checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "hash.key").write_text(KEY[::-1])
    words = (*WORDS, "--hash-key-file", str(tmp_path / "hash.key"))
    ended = execute(
        "score", "--checkpoint", small_checkpoint, "--output", str(scored[1]), *words,
        "--input", str(data / "list.csv"), str(data / "pacs"),
    )  # fmt: skip
    assert ended.code == 1
    assert "holds scores with hash_key " in ended.err
    assert KEY[::-1] not in ended.err


def test_an_update_keeps_the_columns_that_the_folder_has(
    small_checkpoint: str, tmp_path: Path
) -> None:
    (tmp_path / "1.jpeg").write_bytes(radiograph())
    (tmp_path / "list.csv").write_text("uri,Site\n1.jpeg,Nord\n")
    words = (
        *("--checkpoint", small_checkpoint, "--output", str(tmp_path / "out")),
        *("--input", str(tmp_path / "list.csv"), "--keep-columns", "all"),
    )
    assert execute("score", *words).code == 0
    (tmp_path / "list.csv").write_text("uri,Site,Ward\n1.jpeg,Nord,3\n")
    ended = execute("score", *words, "--update")
    assert ended.code == 1
    assert re.search(r"keeps columns Site, and the manifests .* Site, Ward\.", ended.err)
    assert "nothing to do" in execute("score", *words).out


def documented(title: str) -> str:
    """The block of code in docs/scoring.md that follows a line."""
    text = (ROOT / "docs" / "scoring.md").read_text()
    block = re.search(rf"^{title}\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert block
    return textwrap.dedent(block[1])


@pytest.fixture
def where_the_docs_are(
    scored: tuple[Ended, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with `list.csv` and `scores`."""
    (tmp_path / "list.csv").symlink_to(data / "list.csv")
    (tmp_path / "scores").symlink_to(scored[1])
    monkeypatch.chdir(tmp_path)


def test_the_scores_open_as_one_table_where_people_work(scored: tuple[Ended, Path]) -> None:
    import duckdb
    import pandas
    import polars
    import ray.data

    folder = scored[1] / "scores"
    expected = sorted(pq.read_table(folder)["uri"].to_pylist())
    assert len(expected) == 8
    files = {path.suffix for path in folder.rglob("*")}
    assert files == {".parquet"}
    tables = {
        "pandas": list(pandas.read_parquet(folder)["uri"]),
        "Polars": polars.read_parquet(folder)["uri"].to_list(),
        "DuckDB": list(duckdb.execute(f"SELECT uri FROM '{folder}/*.parquet'").df()["uri"]),
        "Ray Data": [row["uri"] for row in ray.data.read_parquet(str(folder)).take_all()],
    }
    assert {library: sorted(uris) for library, uris in tables.items()} == dict.fromkeys(
        tables, expected
    )


def test_a_large_archive_has_the_results_of_a_small_one(
    scored: tuple[Ended, Path], data: Path, small_checkpoint: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Several files of the manifest, studies in several partitions, and a compressed CSV."""
    monkeypatch.setattr(work, "FILE_ROWS", 3)
    monkeypatch.setattr(results, "PARTITION_ROWS", 3)
    monkeypatch.setattr(results, "MAX_CSV_ROWS", 5)
    output = tmp_path / "large"
    ended = score(small_checkpoint, data, output, *WORDS)
    assert ended.code == 0, ended.err
    assert len(list((output / "manifest").iterdir())) == 3
    lines = gzip.decompress((output / "scores.csv.gz").read_bytes()).decode().splitlines()
    expected = (scored[1] / "scores.csv").read_text().splitlines()
    assert [line.split(",")[:6] for line in lines] == [line.split(",")[:6] for line in expected]
    assert not (output / "scores.csv").exists()
    keys = ["study_instance_uid", "num_images", "num_scored", "num_refused", "num_frontal"]
    studies = [pq.read_table(folder / "studies.parquet", columns=keys) for folder in
               (output, scored[1])]  # fmt: skip
    assert studies[0].equals(studies[1])
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in
                 (output, scored[1])]  # fmt: skip
    for name in ("listed", "scored", "refused", "reasons", "warnings", "formats", "studies"):
        assert summaries[0][name] == summaries[1][name]
    assert (output / "index.html").read_text().count("<figure") == (
        (scored[1] / "index.html").read_text().count("<figure")
    )
    assert "nothing to do" in score(small_checkpoint, data, output, *WORDS).out


@pytest.mark.parametrize("library", ["pandas", "DuckDB"])
def test_the_documented_joins_give_each_row_of_the_manifest_its_score(
    library: str, where_the_docs_are: None, data: Path
) -> None:
    names: dict[str, Any] = {}
    exec(documented(f"In {library}:"), names)
    joined = names["joined"].df() if library == "DuckDB" else names["joined"]
    rows = joined.set_index("Name")
    assert dict(rows["status"]) == {
        "Curie^Marie": "scored", "Meitner^Lise": "scored", "Curie^Irene": "scored",
        "Noether^Emmy": "unreadable",
    }  # fmt: skip
    assert rows.loc["Curie^Irene", "prob_pneumonia"] > 0
    assert rows.loc["Noether^Emmy", "reason"]
