"""The columns that scores are joined by: kept ones of manifests, identifiers, studies."""

import hashlib
import hmac
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from cxr.errors import SettingsError, StorageError
from cxr.images.read import Image, read_image
from cxr.metrics import OperatingPoint
from cxr.scoring import columns
from cxr.scoring.columns import ColumnSettings, UidColumns
from cxr.scoring.studies import group_scores, merge_groups, partial_groups
from tests.support.radiographs import dicom, drawn, radiograph

KEY = "0123456789abcdef0123456789abcdef"
UIDS = {"StudyInstanceUID": "1.2.840.1", "SeriesInstanceUID": "1.2.840.1.7"}


def image(path: Path, data: bytes) -> Image:
    path.write_bytes(data)
    row = {"file": str(path), "place": [], "status": "", "reason": "", "warnings": []}
    return read_image(row, 64, any_view=True)


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "hash.key"
    path.write_text(KEY + "\n")
    return str(path)


def uid_columns(settings: ColumnSettings) -> UidColumns:
    made = settings.uid_columns()
    assert made is not None
    return made


def test_identifiers_are_those_of_the_header(tmp_path: Path) -> None:
    read = image(tmp_path / "a", dicom(drawn(), **UIDS))
    assert uid_columns(ColumnSettings(study_columns="uids")).values(read) == (
        {
            "study_instance_uid": "1.2.840.1",
            "series_instance_uid": "1.2.840.1.7",
            "sop_instance_uid": "1.2.3",
        },
        [],
    )


def test_a_refused_file_has_its_identifiers(tmp_path: Path) -> None:
    read = image(tmp_path / "a", dicom(drawn(), Modality="CT", **UIDS))
    assert read.status == "refused"
    values, _ = UidColumns().values(read)
    assert values["study_instance_uid"] == "1.2.840.1"


def test_hashed_identifiers_are_hmac_sha256_under_the_key(tmp_path: Path, key_file: str) -> None:
    hashed = uid_columns(ColumnSettings(study_columns="hashed", hash_key_file=key_file))
    values, warnings = hashed.values(image(tmp_path / "a", dicom(drawn(), **UIDS)))
    expected = hmac.new(KEY.encode(), b"1.2.840.1", hashlib.sha256).hexdigest()
    assert values["study_instance_uid"] == expected
    assert warnings == []


@pytest.mark.parametrize("wrong", [None, "", "Roentgen^Wilhelm", "1.2." + "3" * 80])
def test_an_identifier_that_is_missing_or_none_is_null_with_a_warning(
    tmp_path: Path, wrong: str | None
) -> None:
    data = dicom(drawn(), **UIDS | {"SeriesInstanceUID": None})
    if wrong:
        # In place of a description: pydicom would not write it as an identifier.
        data = dicom(drawn(), **UIDS | {"SeriesInstanceUID": None, "SeriesNumber": None})
        element = b"\x20\x00\x0e\x00UI" + len(wrong).to_bytes(2, "little") + wrong.encode()
        at = data.index(b"\x28\x00\x02\x00US")
        data = data[:at] + element + data[at:]
    values, warnings = UidColumns().values(image(tmp_path / "a", data))
    assert values["series_instance_uid"] is None
    assert values["study_instance_uid"] == "1.2.840.1"
    assert warnings == ["no valid Series Instance UID in the file"]


def test_files_without_a_dicom_header_have_neither_identifiers_nor_warnings(tmp_path: Path) -> None:
    for data in (radiograph(), b"no image"):
        values, warnings = UidColumns().values(image(tmp_path / "a", data))
        assert set(values.values()) == {None}
        assert warnings == []


def test_another_key_has_another_digest_and_no_key_is_shown(key_file: str) -> None:
    hashed = uid_columns(ColumnSettings(study_columns="hashed", hash_key_file=key_file))
    digest = hmac.new(KEY.encode(), b"key of cxr scores", hashlib.sha256).hexdigest()[:16]
    assert hashed.key_digest == digest
    assert UidColumns(b"x" * 32).key_digest != digest
    assert UidColumns().key_digest == ""
    assert KEY not in repr(hashed) + str(hashed)
    # As it reaches the workers.
    assert pickle.loads(pickle.dumps(hashed)).key_digest == digest


def test_bad_keys_are_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"hashed needs --hash-key-file\. Make a key once.*hex"):
        ColumnSettings(study_columns="hashed")
    with pytest.raises(SettingsError, match="hash_key_file: belongs to --study-columns hashed"):
        ColumnSettings(study_columns="uids", hash_key_file="x")
    short = tmp_path / "short.key"
    short.write_text("secret\n")
    with pytest.raises(SettingsError, match=r"a key of 6 characters; at least 32") as refused:
        ColumnSettings(study_columns="hashed", hash_key_file=str(short)).uid_columns()
    assert "secret\n" not in str(refused.value)
    gone = ColumnSettings(study_columns="hashed", hash_key_file=str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="gone"):
        gone.uid_columns()


MANIFESTS = {
    "/a.csv": pa.table({"URI": ["1.png", "2.png"], "Site": ["N", ""], "PatientID": ["7", "8"]}),
    "/b.csv": pa.table({"uri": ["3.png"], "PatientID": ["9"], "Age": ["007"]}),
}


NAMES = {uri: table.column_names for uri, table in MANIFESTS.items()}


def test_all_keeps_every_column_but_the_addresses() -> None:
    for keep, kept in (
        (("all",), ["Site", "PatientID", "Age"]),
        (("PatientID", "PatientID"), ["PatientID"]),
        ((), []),
    ):
        assert columns.choose_kept(ColumnSettings(keep_columns=keep), NAMES) == kept
    files = {"/d.csv": ["File", "Site"]}
    asked = ColumnSettings(columns=("uri=File",), keep_columns=("all",))
    assert columns.choose_kept(asked, files) == ["Site"]


@pytest.mark.parametrize(
    ("keep", "manifests", "message"),
    [
        (
            ("Site",),
            NAMES,
            r"/b\.csv: no column Site to keep\. Choices: uri, Pat.*, Age\.$",
        ),
        (("Site",), {}, "keep_columns: no input is a manifest"),
        (
            ("all",),
            {"/c.csv": ["uri", "status"]},
            "keep_columns: status is a column of the scores themselves",
        ),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(
    keep: tuple[str, ...], manifests: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        columns.choose_kept(ColumnSettings(keep_columns=keep), manifests)


@pytest.mark.parametrize("name", ["uri", "logit", "structured_report", "study_instance_uid"])
def test_a_name_of_ours_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(SettingsError, match=f"keep_columns: {name} is a column of the scores"):
        ColumnSettings(keep_columns=("Age", name))


def test_kept_columns_stand_in_the_row_that_names_the_file() -> None:
    table = pa.table({"uri": ["/2.png", "/x/free.png", "/1.png"], "manifest_row": [11, -1, 10]})
    kept = columns.append_kept(table, ["Site", "Age"], MANIFESTS["/a.csv"], first_row=10)
    assert kept["kept"].to_pylist() == [
        {"Site": "", "Age": None},
        None,
        {"Site": "N", "Age": None},
    ]
    assert kept.drop_columns(["kept"]).equals(table)
    unnamed = columns.append_kept(table, ["Site", "Age"])
    assert unnamed["kept"].to_pylist() == [None] * 3
    assert unnamed.schema == kept.schema
    assert columns.append_kept(table, []) is table


def test_the_group_is_the_study_else_a_kept_patient() -> None:
    asked = ColumnSettings(columns=("patient=PatientID",))
    assert columns.choose_group(asked, ["Site", "PatientID"]) == "PatientID"
    assert columns.choose_group(ColumnSettings(study_columns="uids"), ["patient"]) == (
        "study_instance_uid"
    )
    assert columns.choose_group(ColumnSettings(), ["Site", "Patient"]) == "Patient"
    assert columns.choose_group(ColumnSettings(), ["Site"]) == ""
    with pytest.raises(SettingsError, match=r"Add --keep-columns PatientID\.$"):
        columns.choose_group(asked, ["Site"])


POINT = OperatingPoint("youden", 0.5, 0.9, 0.8, 100)


def test_studies_count_every_image_and_take_the_frontal_ones() -> None:
    scores = pa.Table.from_pylist(
        [
            {"who": "b", "status": "scored", "view": "frontal", "prob_pneumonia": 0.5},
            {"who": "b", "status": "scored", "view": "", "prob_pneumonia": 0.25},
            {"who": "b", "status": "scored", "view": "lateral", "prob_pneumonia": 0.875},
            {"who": "b", "status": "refused", "view": "oblique", "prob_pneumonia": None},
            {"who": "a", "status": "scored", "view": "oblique", "prob_pneumonia": 0.75},
            {"who": "a", "status": "unreadable", "view": "", "prob_pneumonia": None},
            {"who": "c", "status": "scored", "view": "frontal", "prob_pneumonia": 0.125},
            {"who": "", "status": "scored", "view": "", "prob_pneumonia": 0.125},
            {"who": None, "status": "scored", "view": "", "prob_pneumonia": 0.125},
        ]
    )
    assert group_scores(scores, "who", POINT).to_pylist() == [
        {
            "who": "a", "num_images": 2, "num_scored": 1, "num_refused": 0, "num_unreadable": 1,
            "num_frontal": 0, "max_prob_pneumonia": None, "mean_prob_pneumonia": None,
            "prediction": None,
        },
        {
            "who": "b", "num_images": 4, "num_scored": 3, "num_refused": 1, "num_unreadable": 0,
            "num_frontal": 2, "max_prob_pneumonia": 0.5, "mean_prob_pneumonia": 0.375,
            "prediction": "PNEUMONIA",
        },
        {
            "who": "c", "num_images": 1, "num_scored": 1, "num_refused": 0, "num_unreadable": 0,
            "num_frontal": 1, "max_prob_pneumonia": 0.125, "mean_prob_pneumonia": 0.125,
            "prediction": "NORMAL",
        },
    ]  # fmt: skip


def test_studies_in_several_files_are_those_of_one() -> None:
    """Divided between images of a study, and with probabilities whose sums are exact."""
    rows = [
        {"who": f"{i % 3}", "status": "scored", "view": "", "prob_pneumonia": i / 16}
        for i in range(16)
    ]
    rows.append({"who": "x", "status": "refused", "view": "", "prob_pneumonia": None})
    scores = pa.Table.from_pylist(rows)
    partial = [partial_groups(scores.slice(*part), "who") for part in ((0, 5), (5, 1), (6, 11))]
    assert merge_groups(partial, "who", POINT).equals(group_scores(scores, "who", POINT))


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "PA"}, "frontal"),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "RAO"}, "oblique"),
        ({"SeriesDescription": "Thorax seitlich"}, "lateral"),
        ({"StudyDescription": "Chest PA and lateral"}, ""),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({}, ""),
    ],
)
def test_the_view_is_what_the_header_says(
    tmp_path: Path, tags: dict[str, object], view: str
) -> None:
    read = image(tmp_path / "a", dicom(drawn(), **tags))
    assert (read.view, read.status) == (view, "ok")
