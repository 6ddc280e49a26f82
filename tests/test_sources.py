"""Folders and manifests become one listing; what is missing or ambiguous is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import sources
from cxr.errors import DataError, StorageError

TREE = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0666-0001-0002.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_6.jpeg",
    "val/NORMAL/IM-0200-0001.jpeg",
    "val/PNEUMONIA/person9_virus_1.jpeg",
)


def plant(root: Path, *paths: str) -> Path:
    """Files of as many bytes as their names have letters; listings do not look inside."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x" * len(Path(path).name))
    return root


def write_csv(root: Path, text: str, name: str = "manifest.csv") -> str:
    (root / name).write_text(text)
    return str(root / name)


def test_a_folder_is_listed_with_all_its_facts(tmp_path: Path) -> None:
    plant(tmp_path, *TREE)
    table = sources.list_radiographs(str(tmp_path), "train")
    assert table.schema == sources.LISTING
    assert table["uri"].to_pylist() == [f"{tmp_path}/{path}" for path in TREE[:4]]
    assert table["split"].to_pylist() == ["train"] * 4
    assert table["label"].to_pylist() == [0, 0, 1, 1]
    assert table["patient"].to_pylist() == [
        "IM-0115",
        "NORMAL2-IM-0666",
        "person1_bacteria",
        "person1_virus",
    ]
    assert table["subtype"].to_pylist() == ["", "", "bacteria", "virus"]
    assert table["size"].to_pylist() == [len(Path(path).name) for path in TREE[:4]]
    assert table["modified_ns"][0].as_py() == (tmp_path / TREE[0]).stat().st_mtime_ns


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    plant(tmp_path, *TREE)
    table = sources.list_radiographs(str(tmp_path), "val")
    assert table["uri"].to_pylist() == [f"{tmp_path}/{path}" for path in TREE[4:]]
    assert set(table["split"].to_pylist()) == {"val"}


@pytest.mark.parametrize("form", ["file uri", "slash at the end", "relative", "with dots"])
def test_a_folder_may_be_named_in_several_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    root = plant(tmp_path / "x rays", *TREE)
    monkeypatch.chdir(tmp_path)
    name = {
        "file uri": root.as_uri(),
        "slash at the end": f"{root}/",
        "relative": "x rays",
        "with dots": "../" + tmp_path.name + "/x rays",
    }[form]
    table = sources.list_radiographs(name, "train")
    assert len(table) == 4
    assert all(Path(uri).is_file() for uri in table["uri"].to_pylist())


def test_hidden_junk_and_other_files_are_not_listed(tmp_path: Path) -> None:
    plant(
        tmp_path,
        *TREE,
        "train/NORMAL/.DS_Store",
        "train/NORMAL/._IM-0115-0001.jpeg",
        "train/NORMAL/Thumbs.db",
        "train/NORMAL/notes.txt",
        "train/NORMAL/.thumbnails/IM-0115-0001.jpeg",
        "__MACOSX/train/NORMAL/IM-0115-0001.jpeg",
        "train/OTHER/IM-0116-0001.jpeg",
        "train/IM-0117-0001.jpeg",
    )
    listed = sources.list_radiographs(str(tmp_path), "train")["uri"].to_pylist()
    assert listed == [f"{tmp_path}/{path}" for path in TREE[:4]]


def test_a_hidden_folder_may_be_named(tmp_path: Path) -> None:
    plant(tmp_path / ".cache", *TREE)
    assert len(sources.list_radiographs(str(tmp_path / ".cache"), "train")) == 4


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: not found\. Give a folder"):
        sources.list_radiographs(str(tmp_path / "none"), "train")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "notes.txt")
    message = r": no radiographs found\. Looked for \.jpeg \.jpg \.png \.dcm .* in 1 files\."
    with pytest.raises(DataError, match=message):
        sources.list_radiographs(str(tmp_path), "train")


@pytest.mark.parametrize(("present", "missing"), [("NORMAL", "PNEUMONIA"), ("PNEUMONIA", "NORMAL")])
def test_one_class_alone_is_refused(tmp_path: Path, present: str, missing: str) -> None:
    plant(tmp_path, f"train/{present}/a.jpeg", f"train/{present}/b.jpeg")
    with pytest.raises(DataError, match=rf"split 'train' has no {missing} \(.*2 {present}"):
        sources.list_radiographs(str(tmp_path), "train")


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "NORMAL/a.jpeg", "PNEUMONIA/b.jpeg")
    with pytest.raises(
        DataError,
        match=r"no folder 'train' .*train\|val\|test / NORMAL\|PNEUMONIA.*; found neither\.",
    ):
        sources.list_radiographs(str(tmp_path), "train")


def test_a_missing_split_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    plant(tmp_path, *TREE)
    with pytest.raises(DataError, match=r"no folder 'test' with radiographs.*found train, val\."):
        sources.list_radiographs(str(tmp_path), "test")


# Manifests ----------------------------------------------------------------------------------------


def test_a_manifest_names_radiographs_anywhere(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "else where", "person1_virus_6.jpeg", "b.jpeg")
    plant(tmp_path, "images/IM-0115-0001.jpeg", "c.jpeg")
    manifest = write_csv(
        tmp_path,
        "uri,label,patient,split\n"
        "images/IM-0115-0001.jpeg,NORMAL,,train\n"
        f"{elsewhere}/person1_virus_6.jpeg,PNEUMONIA,,\n"
        f"{(elsewhere / 'b.jpeg').as_uri()},1,0042,train\n"
        "./c.jpeg,0,0043,val\n"
        "gone.jpeg,pneumonia,0044,train\n",
    )
    table = sources.list_radiographs(manifest, "train")
    assert table.schema == sources.LISTING
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert {name: (row["label"], row["patient"], row["subtype"]) for name, row in rows.items()} == {
        "IM-0115-0001.jpeg": (0, "IM-0115", ""),
        "person1_virus_6.jpeg": (1, "person1_virus", "virus"),
        "b.jpeg": (1, "0042", ""),
        "gone.jpeg": (1, "0044", ""),
    }
    assert {name: row["size"] for name, row in rows.items()} == {
        "IM-0115-0001.jpeg": 17,
        "person1_virus_6.jpeg": 20,
        "b.jpeg": 6,
        "gone.jpeg": -1,
    }
    assert rows["b.jpeg"]["uri"] == f"{elsewhere}/b.jpeg"
    assert table["uri"].to_pylist() == sorted(table["uri"].to_pylist())


def test_a_parquet_manifest_reads_as_the_same_csv(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpeg", "b.jpeg", "c.jpeg")
    table = pa.table(
        {
            "uri": ["a.jpeg", "b.jpeg", "c.jpeg"],
            "label": [0, 1, 1],
            "patient": [0, 7, None],
            "split": pa.array(["train", None, "val"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "manifest.parquet")
    listed = sources.list_radiographs(str(tmp_path / "manifest.parquet"), "train")
    assert listed["patient"].to_pylist() == ["0", "7"]
    text = "uri,label,patient,split\na.jpeg,0,0,train\nb.jpeg,1,7,\nc.jpeg,1,,val\n"
    assert listed.equals(sources.list_radiographs(write_csv(tmp_path, text), "train"))


def test_a_manifest_needs_uri_and_label_alone(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path, "label,uri,site\nNORMAL,a.jpeg,x\nPNEUMONIA,b.jpeg,y\n")
    table = sources.list_radiographs(manifest, "train")
    assert table["patient"].to_pylist() == ["a", "b"]
    with pytest.raises(DataError, match=r"has no column split, so no 'test' radiographs"):
        sources.list_radiographs(manifest, "test")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("uri,label\na.jpeg,0\na.jpeg,1\n", r"1 URIs stand twice, the first .*a\.jpeg"),
        ("uri,label\na.jpeg,0\n./a.jpeg,1\n", r"1 URIs stand twice, the first .*a\.jpeg"),
        ("uri,label,split\na.jpeg,0,train\na.jpeg,0,test\n", "1 URIs stand twice"),
        ("uri,class\na.jpeg,0\n", r"lacks column label\. Expected uri,label.*; found uri, class\."),
        ("path,class\na.jpeg,0\n", "lacks column label, uri"),
        ("uri,label\na.jpeg,COVID\n", r"unknown label 'COVID'\. Choices: NORMAL, PNEUMONIA, 0, 1"),
        ("uri,label\na.jpeg,0\nb.jpeg,\n", "row 2 of the manifest has no label"),
        ("uri,label\na.jpeg,0\n,1\n", "row 2 of the manifest has no uri"),
        (
            "uri,label,split\na.jpeg,0,training\n",
            r"unknown split 'training'\. Choices: train, val, test",
        ),
        ("uri,label\na.jpeg,0\n", "split 'train' has no PNEUMONIA"),
        ("", "neither a folder nor a manifest"),
        ("uri,label\na.jpeg\n", "neither a folder nor a manifest"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"manifest\.csv: .*{reason}"):
        sources.list_radiographs(write_csv(tmp_path, text), "train")


def test_a_manifest_must_be_what_its_name_says(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a Parquet file"):
        sources.list_radiographs(write_csv(tmp_path, "uri,label\n", "m.parquet"), "train")


def test_columns_become_arrays(tmp_path: Path) -> None:
    table = sources.list_radiographs(str(plant(tmp_path, *TREE)), "val")
    assert sources.column(table, "label").tolist() == [0, 1]
    assert sources.column(table, "patient").dtype.kind == "U"


# The real set -------------------------------------------------------------------------------------


def test_the_real_train_split_is_listed_whole(real_data: Path) -> None:
    table = sources.list_radiographs(str(real_data / "chest_xray"), "train")
    labels = table["label"].to_pylist()
    assert (labels.count(0), labels.count(1)) == (1341, 3875)
    assert len(set(table["patient"].to_pylist())) == 3654
    assert set(table["subtype"].to_pylist()) == {"", "bacteria", "virus"}


def test_patient_and_subtype_of_a_manifest_are_taken_over(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpeg", "b.jpeg", "person1_virus_6.jpeg", "d.jpeg")
    manifest = write_csv(
        tmp_path,
        "uri,label,patient,subtype\na.jpeg,0,ann,\nb.jpeg,1,bea,fungus\n"
        "person1_virus_6.jpeg,1,,bacteria\nd.jpeg,1,,\n",
    )
    table = sources.list_radiographs(manifest, "train")
    assert table["patient"].to_pylist() == ["ann", "bea", "d", "person1_virus"]
    assert table["subtype"].to_pylist() == ["", "fungus", "", "bacteria"]
