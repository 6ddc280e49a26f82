"""Folders, archives and manifests become one listing; what is missing or ambiguous is refused."""

import dataclasses
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr import sources
from cxr.errors import DataError, StorageError
from cxr.sources.settings import SetSettings
from tests.support.archives import MAKERS, zipped
from tests.support.folders import as_nobody, readable_folder

TREE = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0666-0001-0002.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_6.jpeg",
    "val/NORMAL/IM-0200-0001.jpeg",
    "val/PNEUMONIA/person9_virus_1.jpeg",
)


BY_FILE = SetSettings(patients="file")
"""For names that do not tell the patient."""


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
    assert table["patient"].to_pylist() == ["0", "2", "3", "4"]  # IM-0200 is in val.
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
    message = r": no radiographs found\. Passed over: 1 \.txt\.$"
    with pytest.raises(DataError, match=message):
        sources.list_radiographs(str(tmp_path), "train")


@pytest.mark.parametrize(("present", "missing"), [("NORMAL", "PNEUMONIA"), ("PNEUMONIA", "NORMAL")])
def test_one_class_alone_is_refused(tmp_path: Path, present: str, missing: str) -> None:
    plant(tmp_path, f"train/{present}/a.jpeg", f"train/{present}/b.jpeg")
    with pytest.raises(DataError, match=rf"split 'train' has no {missing} \(.*2 {present}"):
        sources.list_radiographs(str(tmp_path), "train", BY_FILE)


def test_a_folder_without_splits_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "NORMAL/a.jpeg", "PNEUMONIA/b.jpeg")
    with pytest.raises(
        DataError,
        match=r"not a labeled set\. Expected images in train\|val\|test / NORMAL\|PNEUMONIA, or a"
        r" CSV.*; found 2 files that may be images: 1 in NORMAL, 1 in PNEUMONIA\.$",
    ):
        sources.list_radiographs(str(tmp_path), "train")


def test_a_missing_split_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    plant(tmp_path, *TREE)
    with pytest.raises(
        DataError, match=r"no radiographs of split 'test'; found 4 of train, 2 of val\."
    ):
        sources.list_radiographs(str(tmp_path), "test")


# Manifests ----------------------------------------------------------------------------------------


def test_a_manifest_names_radiographs_anywhere(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "else where", "person1_virus_6.jpeg", "b.jpeg")
    plant(tmp_path, "images/IM-0115-0001.jpeg", "c.jpeg")
    manifest = write_csv(
        tmp_path,
        "uri,label,patient,split\n"
        "images/IM-0115-0001.jpeg,NORMAL,0041,train\n"
        f"{elsewhere}/person1_virus_6.jpeg,PNEUMONIA,0045,\n"
        f"{(elsewhere / 'b.jpeg').as_uri()},1,0042,train\n"
        "./c.jpeg,0,0043,val\n"
        "gone.jpeg,pneumonia,0044,train\n",
    )
    table = sources.list_radiographs(manifest, "train")
    assert table.schema == sources.LISTING
    rows = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert {name: (row["label"], row["patient"], row["subtype"]) for name, row in rows.items()} == {
        "IM-0115-0001.jpeg": (0, "0", ""),
        "person1_virus_6.jpeg": (1, "4", "virus"),
        "b.jpeg": (1, "1", ""),
        "gone.jpeg": (1, "3", ""),
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
            "patient": [0, 7, 9],
            "split": pa.array(["train", None, "val"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "manifest.parquet")
    listed = sources.list_radiographs(str(tmp_path / "manifest.parquet"), "train")
    assert listed["patient"].to_pylist() == ["0", "1"]
    text = "uri,label,patient,split\na.jpeg,0,0,train\nb.jpeg,1,7,\nc.jpeg,1,9,val\n"
    assert listed.equals(sources.list_radiographs(write_csv(tmp_path, text), "train"))


def test_a_manifest_needs_uri_and_label_alone(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path, "label,uri,site\nNORMAL,a.jpeg,x\nPNEUMONIA,b.jpeg,y\n")
    table = sources.list_radiographs(manifest, "train", BY_FILE)
    assert table["patient"].to_pylist() == ["0", "1"]
    with pytest.raises(
        DataError, match=r"no radiographs of split 'test'; found 2 of train\. .*column split"
    ):
        sources.list_radiographs(manifest, "test", BY_FILE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "uri,label\na.jpeg,0\nb.jpeg,0\na.jpeg,1\n",
            r"one image has two labels, in row 1 \(line 2\) and row 3 \(line 4\)\.$",
        ),
        ("uri,label\na.jpeg,0\n./a.jpeg,1\na.jpeg,1\n", r"two labels, .* row 2 \(line 3\); 1 more"),
        ("uri,label\na.jpeg,COVID\na.jpeg,1\n", "two labels, in row 1"),
        ("uri,label,split\na.jpeg,0,train\na.jpeg,0,test\n", "two splits, in row 1"),
        ("uri,label,patient\na.jpeg,0,1\na.jpeg,0,2\n", "two patients, in row 1"),
        ("uri,class\na.jpeg,0\n", r"lacks column label; found uri, class\. .*label=COLUMN"),
        ("path,class\na.jpeg,0\n", r"lacks column uri, label; .* uri=COLUMN label=COLUMN"),
        (
            "uri,label\na.jpeg,0\nb.jpeg,COVID\nc.jpeg,Covid\nd.jpeg,hip\ne.jpeg,hip\n",
            r"column label has 2 other labels, in row 2 \(line 3\), row 3 \(line 4\), row 4"
            r" \(line 5\) and 1 more\. Choices: normal, 0, pneumonia, 1\. .*--other-labels skip\.$",
        ),
        ("uri,label\na.jpeg,0\nb.jpeg,\n", r"column label is empty in row 2 \(line 3\)\.$"),
        ("uri,label\na.jpeg,0\n,1\n", r"column uri is empty in row 2 \(line 3\)\.$"),
        (
            "uri,label,Split\na.jpeg,0,train\nb.jpeg,0,fold 3\n",
            r"column Split has an unknown split in row 2 \(line 3\)\. Choices: train, val, test\.$",
        ),
        ("uri,label\n", r"the manifest has no rows\.$"),
        ("uri,label\na.jpeg,0\n", "split 'train' has no PNEUMONIA"),
        ("", "not a folder, an archive or a manifest"),
        ("uri,label\na.jpeg\n", r"column label is empty in row 1 \(line 2\)"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"manifest\.csv: .*{reason}") as caught:
        sources.list_radiographs(write_csv(tmp_path, text), "train", BY_FILE)
    assert not re.search("covid|hip|fold 3", str(caught.value), re.I)


def test_a_manifest_must_be_what_its_name_says(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a Parquet file"):
        sources.list_radiographs(write_csv(tmp_path, "uri,label\n", "m.parquet"), "train")


def test_columns_become_arrays(tmp_path: Path) -> None:
    table = sources.list_radiographs(str(plant(tmp_path, *TREE)), "val")
    assert sources.column(table, "label").tolist() == [0, 1]
    assert sources.column(table, "patient").dtype.kind == "U"


OWN = SetSettings(
    columns=("uri=File", "label=Finding", "patient=Patient ID", "split=Set", "subtype=Germ"),
    labels=("normal=No finding", "pneumonia=Pneumonia,Bronchopneumonia"),
)

OWN_TEXT = (
    "Finding;File;Patient ID;Set;Germ;Age\r\n"
    "no finding;a.png;007;Training;;41\r\n"
    '" PNEUMONIA ";"b.png";0012;;virus;"4\r\n2"\r\n'
    "Bronchopneumonia;c.png;0012;train;;43\r\n"
    ";;;;;\r\n"
    "No Finding;d.png;8;validate;;44\r\n"
    "No Finding;./a.png;007;train;;45\r\n"
)
"""A manifest as Excel writes it, by `OWN`."""


def test_columns_and_labels_may_have_names_of_their_own(tmp_path: Path) -> None:
    uri = write_csv(tmp_path, "")
    Path(uri).write_bytes(OWN_TEXT.encode())
    data = sources.list_set(uri, OWN)
    train = data.split("train")
    assert train["label"].to_pylist() == [0, 1, 1]
    assert train["patient"].to_pylist() == ["1", "0", "0"]
    assert train["subtype"].to_pylist() == ["", "virus", ""]
    assert data.table["split"].to_pylist() == ["train", "train", "train", "val"]
    assert data.skipped == {"named again": 1}
    # What else a manifest says is joined by row.
    assert data.manifest is not None
    ages = data.manifest["Age"].to_pylist()
    assert [ages[row] for row in data.table["row"].to_pylist()] == ["41", "4\r\n2", "43", "44"]


def test_other_labels_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    text = OWN_TEXT.replace("c.png", "c.png;9;;;\r\nOedema Smith;a.png;7;test;;1\r\n;e.png")
    uri = write_csv(tmp_path, text)
    with pytest.raises(DataError, match="two labels, in row 1"):
        sources.list_set(uri, OWN)
    data = sources.list_set(uri, dataclasses.replace(OWN, other_labels="skip"))
    assert len(data.split("train")) == 3
    assert data.skipped == {"with another label": 2, "named again": 1}


def test_a_manifest_of_other_labels_alone_has_no_split(tmp_path: Path) -> None:
    skip = SetSettings(patients="file", other_labels="skip")
    data = sources.list_set(write_csv(tmp_path, "uri,label\na.png,hip\na.png,knee\n"), skip)
    assert data.skipped == {"with another label": 2}
    with pytest.raises(DataError, match=r"no radiographs of split 'train'; found \."):
        data.split("train")


def test_a_listed_image_costs_few_bytes(tmp_path: Path) -> None:
    """The whole listing is in the memory of the driver."""
    names = [f"images/{number:09}.png" for number in range(2000)]
    rows = [f"{name},{number % 2},P{number // 4}" for number, name in enumerate(names)]
    table = sources.list_set(write_csv(tmp_path, "\n".join(["uri,label,patient", *rows]))).table
    # Beside its name, and the reason for which these files cannot be read.
    facts = table.drop_columns(["uri", "file", "status", "reason"])
    assert facts.nbytes / len(table) < 100
    assert pa.types.is_dictionary(table["patient_digest"].type)


def test_labels_are_compared_as_numbers_and_without_case(tmp_path: Path) -> None:
    text = "uri,label\na.png,0.0\nb.png,1.0\nc.png,1\nd.png,Normal\ne.png, pneumonia \n"
    labels = sources.list_radiographs(write_csv(tmp_path, text), "train", BY_FILE)["label"]
    assert labels.to_pylist() == [0, 1, 1, 0, 1]


def test_rows_of_a_manifest_do_not_change_what_is_cached(tmp_path: Path) -> None:
    """Pixels are cached by the listing: another order of rows, or another column, is the same."""
    one = write_csv(tmp_path, "uri,label\na.png,0\nb.png,1\n")
    two = write_csv(tmp_path, "uri,age,label\n./b.png,41,1.0\na.png,42,NORMAL\n", "2.csv")
    first, second = (sources.list_radiographs(uri, "train", BY_FILE) for uri in (one, two))
    assert first == second


# Archives -----------------------------------------------------------------------------------------


def files_of(*paths: str) -> dict[str, bytes]:
    """The content that `plant` gives files."""
    return {path: b"x" * len(Path(path).name) for path in paths}


def comparable(table: pa.Table, root: str) -> list[dict[str, object]]:
    """What training uses of a listing, in its order."""
    names = ("split", "label", "patient", "subtype", "size", "status")
    return [
        {"path": row["uri"].removeprefix(root).lstrip("!/")} | {name: row[name] for name in names}
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize("maker", MAKERS)
def test_an_archive_is_listed_as_the_folder_it_was_made_of(tmp_path: Path, maker: str) -> None:
    kind, make = MAKERS[maker]
    root = plant(tmp_path / "set", *TREE, "train/NORMAL/notes.txt", "train/NORMAL/IM-0007.7.23")
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}
    archive = tmp_path / f"set.{kind}"
    # The order of the archive does not matter.
    archive.write_bytes(make(dict(sorted(files.items(), reverse=True))))
    for split in ("train", "val"):
        table = sources.list_radiographs(str(archive), split)
        assert table.schema == sources.LISTING
        folder = sources.list_radiographs(str(root), split)
        assert comparable(table, str(archive)) == comparable(folder, str(root))
    assert sources.list_set(str(archive)).skipped == sources.list_set(str(root)).skipped
    assert sources.list_set(str(archive)).skipped == {".txt": 1}


@pytest.mark.parametrize(
    "members",
    [
        files_of(*(f"chest_xray/{path}" for path in TREE)),
        files_of(*(f"./a/b/{path}" for path in TREE)),
        {f"chest_xray/{path}".replace("/", "\\"): data for path, data in files_of(*TREE).items()},
        # As Kaggle has it: the set twice, and the files of a Mac.
        files_of(
            *(f"chest_xray/{path}" for path in TREE),
            *(f"chest_xray/chest_xray/{path}" for path in TREE),
            *(f"chest_xray/__MACOSX/{path}" for path in TREE),
        ),
        # As it came to Kaggle.
        {"chest_xray.zip": zipped(files_of(*(f"chest_xray/{path}" for path in TREE)))},
    ],
)
def test_the_layout_is_found_below_the_folders_of_an_archive(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    (tmp_path / "set.zip").write_bytes(zipped(members))
    table = sources.list_radiographs(str(tmp_path / "set.zip"), "train")
    folder = sources.list_radiographs(str(plant(tmp_path / "folder", *TREE)), "train")
    for name in ("label", "patient", "subtype", "size"):
        assert table[name].to_pylist() == folder[name].to_pylist()


def test_a_folder_of_archives_is_one_set(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(files_of(*TREE[:2])))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.tar").write_bytes(MAKERS["tar"][1](files_of(*TREE[2:])))
    table = sources.list_radiographs(str(tmp_path), "train")
    uris = [f"{tmp_path}/a.zip!/{path}" for path in TREE[:2]]
    uris += [f"{tmp_path}/more/b.tar!/{path}" for path in TREE[2:4]]
    assert table["uri"].to_pylist() == uris
    (tmp_path / "copy.zip").write_bytes(zipped(files_of(TREE[0])))
    with pytest.raises(DataError, match=rf"{TREE[0]} is in two archives, .*a\.zip and .*copy\.zip"):
        sources.list_set(str(tmp_path))


def test_archives_of_two_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(files_of(*TREE)))
    (tmp_path / "b.zip").write_bytes(zipped(files_of("old/train/NORMAL/other.jpeg")))
    with pytest.raises(DataError, match=r"holds several sets, in its root, 'old'\. Give one"):
        sources.list_set(str(tmp_path))


def test_images_of_a_class_may_be_in_archives(tmp_path: Path) -> None:
    for folder in ("train/NORMAL", "train/PNEUMONIA"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "scans.zip").write_bytes(zipped(files_of("x/1.dcm", "2.dcm")))
    table = sources.list_radiographs(str(tmp_path), "train", BY_FILE)
    assert table["label"].to_pylist() == [0, 0, 1, 1]
    assert table["patient"].to_pylist() == ["0", "1", "2", "3"]


def test_an_archive_beside_the_folders_is_passed_over(tmp_path: Path) -> None:
    plant(tmp_path, *TREE)
    (tmp_path / "download.zip").write_bytes(zipped(files_of(*TREE)))
    data = sources.list_set(str(tmp_path))
    assert len(data.split("train")) == 4
    assert data.skipped == {"archive beside the folders": 1}


def test_images_that_are_not_used_are_named_with_their_folders(tmp_path: Path) -> None:
    plant(tmp_path, *TREE, "elsewhere.jpeg", "train/c.jpeg", "a/b/c.jpeg", "a/b/d.jpeg")
    plant(tmp_path, *(f"train/COVID/{name}.jpeg" for name in ("a", "b", "sub/c", "sub/d")))
    data = sources.list_set(str(tmp_path))
    assert len(data.split("train")) == 4
    assert data.skipped == {"in train/COVID": 4, "in a/b": 2, "in its root": 1,
                            "in other folders": 1}  # fmt: skip
    assert sources.in_words(data.skipped).startswith("Passed over: 4 in train/COVID, 2 in a/b, ")


def test_images_are_listed_whatever_their_suffix(tmp_path: Path) -> None:
    names = ("a.jpe", "b.IMA", "c", "d.1.2.840", "e.JPEG")
    plant(
        tmp_path, *(f"train/{label}/{name}" for label in ("NORMAL", "PNEUMONIA") for name in names)
    )
    train = sources.list_radiographs(str(tmp_path), "train", BY_FILE)
    assert [Path(uri).name for uri in train["uri"].to_pylist()] == [*names, *names]
    assert set(train["uri"].to_pylist()) == set(sources.list_inputs([str(tmp_path)]).files)


def test_names_of_folders_are_compared_without_case(tmp_path: Path) -> None:
    plant(tmp_path, "Train/normal/a.jpeg", "Train/Pneumonia/b.jpeg", "TRAIN/PNEUMONIA/c.jpeg")
    train = sources.list_radiographs(str(tmp_path), "train", BY_FILE)
    assert [Path(uri).name for uri in train["uri"].to_pylist()] == ["c.jpeg", "b.jpeg", "a.jpeg"]
    assert train["label"].to_pylist() == [1, 1, 0]
    assert sources.list_set(str(tmp_path), BY_FILE).skipped == {}


def test_a_folder_that_is_no_set_names_the_manifests_in_it(tmp_path: Path) -> None:
    plant(tmp_path, "images/a.png", "images/b.png", "labels.csv", "notes.txt")
    message = (
        rf"{tmp_path}: no folders train\|val\|test / NORMAL\|PNEUMONIA; found 2 files that may be"
        rf" images, and labels\.csv\. Give --data {tmp_path}/labels\.csv, with columns uri and"
        r" label\.$"
    )
    with pytest.raises(DataError, match=message):
        sources.list_set(str(tmp_path))
    plant(tmp_path, "old/1.xlsx", "old/2.parquet", "old/3.csv.gz")
    with pytest.raises(
        DataError, match=r", and labels\.csv, old/1\.xlsx, old/2\.parquet and 1 more"
    ):
        sources.list_set(str(tmp_path))


def test_a_folder_of_an_archive_may_be_named(tmp_path: Path) -> None:
    archive = tmp_path / "record.zip"
    archive.write_bytes(
        zipped(
            files_of(*(f"record/chest_xray/{path}" for path in TREE))
            | files_of("record/OCT/train/NORMAL/a.jpeg", "record/OCT/train/CNV/b.jpeg")
        )
    )
    message = r"several sets, in 'record/OCT', 'record/chest_xray'\. Give one of them"
    with pytest.raises(DataError, match=message):
        sources.list_set(str(archive))
    table = sources.list_radiographs(f"{archive}!/record/chest_xray", "train")
    assert table["uri"].to_pylist() == [f"{archive}!/record/chest_xray/{path}" for path in TREE[:4]]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            files_of("scans/a.jpeg", "scans/b.jpeg", "c.jpeg"),
            r"set\.zip: not a labeled set\. Expected images in train\|val\|test / NORMAL\|PNEUMONIA"
            r".*; found 3 files that may be images: 2 in scans, 1 in its root\.$",
        ),
        (
            files_of("train/NORMAL/a.jpeg", "train/NORMAL/b.jpeg"),
            r"set\.zip: split 'train' has no PNEUMONIA \(2 NORMAL, 0 PNEUMONIA\)\.$",
        ),
        (
            files_of("test/NORMAL/a.jpeg", "test/PNEUMONIA/b.jpeg"),
            r"set\.zip: no radiographs of split 'train'; found 2 of test\.",
        ),
        (files_of("notes.txt"), r"set\.zip: no radiographs found\. Passed over: 1 \.txt\.$"),
        (
            {"in.zip": b"no archive"},
            r"in\.zip: not a zip archive\. A labeled set has to be complete",
        ),
    ],
)
def test_an_archive_that_is_no_set_is_refused(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    (tmp_path / "set.zip").write_bytes(zipped(members))
    with pytest.raises(DataError, match=message):
        sources.list_radiographs(str(tmp_path / "set.zip"), "train", BY_FILE)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = zipped(files_of(*TREE))
    for data, reason in (
        (whole[: len(whole) // 2], "the archive is cut short or damaged; . members were found"),
        (b"no archive", "not a zip archive"),
        (b"", "the archive is empty"),
    ):
        (tmp_path / "set.zip").write_bytes(data)
        with pytest.raises(DataError, match=rf"set\.zip: {reason}\. A labeled set has to be"):
            sources.list_set(str(tmp_path / "set.zip"))


def test_members_change_with_the_file_that_holds_them(tmp_path: Path) -> None:
    """A cache of decoded pixels is keyed by it: members of a tar have no checksum."""
    archive = tmp_path / "set.tar"
    archive.write_bytes(MAKERS["tar"][1](files_of(*TREE)))
    before = sources.list_radiographs(str(archive), "train")
    assert set(before["modified_ns"].to_pylist()) == {archive.stat().st_mtime_ns}
    os.utime(archive, ns=(0, archive.stat().st_mtime_ns + 1_000))
    assert sources.list_radiographs(str(archive), "train") != before


def test_members_that_cannot_be_read_are_listed_with_the_reason(tmp_path: Path) -> None:
    members = files_of(*TREE) | {"train/NORMAL/IM-0001-0001.jpeg": b""}
    (tmp_path / "set.zip").write_bytes(zipped(members))
    rows = sources.list_radiographs(str(tmp_path / "set.zip"), "train").to_pylist()
    assert [row["reason"] for row in rows if row["status"]] == ["the file is empty"]
    assert len(rows) == 5


def test_a_manifest_may_name_archive_members(tmp_path: Path) -> None:
    plant(tmp_path, "c.jpeg")
    (tmp_path / "a.zip").write_bytes(
        zipped(files_of("x/1.dcm", "x/2.dcm", "3.dcm") | {"in.zip": zipped(files_of("4.dcm"))})
    )
    manifest = write_csv(
        tmp_path,
        "uri,label,patient\na.zip!/x/1.dcm,0,ann\na.zip!/./3.dcm,1,eve\nc.jpeg,1,bea\n"
        f"{tmp_path}/a.zip!/in.zip!/4.dcm,0,dan\na.zip!/gone.dcm,1,cid\n",
    )
    rows = sources.list_radiographs(manifest, "train").to_pylist()
    assert [
        (row["uri"].removeprefix(f"{tmp_path}/"), row["label"], row["patient"], row["reason"])
        for row in rows
    ] == [
        ("a.zip!/3.dcm", 1, "4", ""),
        ("a.zip!/gone.dcm", 1, "2", "no such member"),
        ("a.zip!/in.zip!/4.dcm", 0, "3", ""),
        ("a.zip!/x/1.dcm", 0, "0", ""),
        ("c.jpeg", 1, "1", ""),
    ]
    with sources.Reader() as reader:
        steps = [sources.Step(**step) for step in rows[3]["place"]]
        assert reader.read(rows[3]["file"], steps) == b"x" * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.zip,0", r"an archive, not an image, in row 1 \(line 2\)\. Name a member, as in"),
        ("a.zip!/x,0", r"a folder of an archive, not an image, in row 1 \(line 2\)\.$"),
        ("a.zip!/x/1.dcm,0\na.zip!/./x/1.dcm,1", r"two labels, in row 1 \(line 2\) and row 2"),
        ("file://server/a.png,0", r"csv: row 1 \(line 2\): .*lies on host 'server'"),
        ("C:\\a.png,0", r"csv: row 1 \(line 2\): C:\\a\.png: an absolute path of Windows"),
        ("gone.zip!/x,0", r"gone\.zip: cannot be read: No such file or directory\. A labeled set"),
    ],
)
def test_a_manifest_names_single_images(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(files_of("x/1.dcm", "x/2.dcm")))
    with pytest.raises(DataError, match=message):
        sources.list_set(write_csv(tmp_path, f"uri,label\n{text}\n"))


def test_labels_of_a_split_that_is_not_used_may_be_missing(tmp_path: Path) -> None:
    manifest = write_csv(tmp_path, "uri,label,split\na.png,0,\nb.png,1,\nc.png,,test\n")
    assert len(sources.list_radiographs(manifest, "train", BY_FILE)) == 2
    with pytest.raises(DataError, match=r"column label is empty in row 3 \(line 4\)"):
        sources.list_radiographs(manifest, "test", BY_FILE)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    with readable_folder() as root:
        plant(root, *TREE, "lost+found/a.jpeg")
        (root / "lost+found").chmod(0)
        with as_nobody():
            assert len(sources.list_radiographs(str(root), "train")) == 4
        (root / "val" / "NORMAL").chmod(0)
        message = r"val/NORMAL/: a folder that cannot be listed: Permission denied\. A labeled set"
        with as_nobody(), pytest.raises(DataError, match=message):
            sources.list_set(str(root))


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
        "person1_virus_6.jpeg,1,cid,bacteria\nd.jpeg,1,ann,\n",
    )
    table = sources.list_radiographs(manifest, "train")
    assert table["patient"].to_pylist() == ["0", "1", "0", "2"]
    assert table["subtype"].to_pylist() == ["", "fungus", "", "bacteria"]
