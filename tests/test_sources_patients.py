"""Who is on an image is known or asked for, never guessed; nobody is named beyond the listing."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cxr import sources
from cxr.datasets.folds import assign_folds
from cxr.errors import DataError
from cxr.images.decoding.header import read_header
from cxr.sources.patients import RASTER_SUFFIXES, PatientSource, digest
from cxr.sources.settings import SetSettings
from tests.support.radiographs import dicom, drawn

NUM_PATIENTS, NUM_IMAGES = 24, 4

NAMES: dict[str, Callable[[int, int], str]] = {
    "NIH": lambda patient, image: f"{patient:08}_{image:03}.png",
    "MIMIC": lambda patient, image: (
        f"p{10000000 + patient}/s{50000000 + image}/{patient:08x}-{image:04x}.jpg"
    ),
    "CheXpert": lambda patient, image: f"patient{patient:05}/study{image + 1}/view1_frontal.jpg",
    "Kermany": lambda patient, image: (
        f"person{patient}_virus_{patient * NUM_IMAGES + image}.jpeg"
        if patient % 2
        else f"IM-{patient:04}-{image:04}.jpeg"
    ),
    "PadChest": lambda patient, image: (
        f"2168401113669640123733108839420{patient:05}{image:05}_00-074-{image:03}.png"
    ),
    "viewer": lambda patient, image: f"export {patient}/IM-0001-{image + 1:04}.jpg",
    "own": lambda patient, image: f"thorax {patient * 7 + image * 1000}.jpg",
}
"""Names of the images of a patient as data sets and programs give them."""


def names_of(form: str) -> list[tuple[str, int]]:
    """Names and patients of 24 patients with 4 images each."""
    pairs = [(p, i) for p in range(NUM_PATIENTS) for i in range(NUM_IMAGES)]
    return [(NAMES[form](patient, image), patient) for patient, image in pairs]


def write_set(root: Path, form: str, column: bool = False) -> str:
    """A manifest of the images, every other patient with pneumonia; it does not say who is who."""
    rows = [f"uri,label{',patient' if column else ''}"]
    for name, patient in names_of(form):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
        rows.append(f"{name},{patient % 2}{f',P-{patient}' if column else ''}")
    (root / "labels.csv").write_text("\n".join(rows))
    return str(root / "labels.csv")


def refusal(root: Path, settings: SetSettings = SetSettings(), **options: object) -> str:  # noqa: B008
    """The one line with which a set is refused."""
    with pytest.raises(DataError) as caught:
        sources.list_set(str(root), settings, **options)  # type: ignore[arg-type]
    [line] = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("form", "how"),
    [
        ("NIH", "the file names of NIH ChestX-ray14"),
        ("MIMIC", "the file names of MIMIC-CXR"),
        ("CheXpert", "the file names of CheXpert"),
        ("Kermany", "the file names of Kermany et al. 2018"),
    ],
)
def test_images_of_a_patient_share_a_fold_where_names_tell(
    tmp_path: Path, form: str, how: str
) -> None:
    data = sources.list_set(write_set(tmp_path, form))
    assert data.patients == PatientSource(how, NUM_PATIENTS, NUM_IMAGES)
    table = data.split("train")
    folds = assign_folds(sources.column(table, "label"), sources.column(table, "patient"), 4)
    names = [uri.removeprefix(f"{tmp_path}/") for uri in table["uri"].to_pylist()]
    patient_of = dict(names_of(form))
    pairs = {(patient_of[name], fold) for name, fold in zip(names, folds.tolist(), strict=True)}
    assert Counter(fold for _, fold in pairs) == dict.fromkeys(range(4), NUM_PATIENTS // 4)


@pytest.mark.parametrize("form", ["viewer", "own"])
def test_names_that_do_not_tell_are_refused_with_what_to_do(tmp_path: Path, form: str) -> None:
    line = refusal(Path(write_set(tmp_path, form)))
    assert "the patient of an image is not known: the file names are those of no known" in line
    assert names_of(form)[0][0] in line
    for way in ("column patient", "--columns patient=NAME", "folder", "file", "one group"):
        assert way in line


def test_names_of_padchest_are_refused_with_the_column_that_tells(tmp_path: Path) -> None:
    line = refusal(Path(write_set(tmp_path, "PadChest")))
    assert "--columns uri=ImageID patient=PatientID" in line


@pytest.mark.parametrize("form", NAMES)
def test_a_column_decides_whatever_the_names(tmp_path: Path, form: str) -> None:
    data = sources.list_set(write_set(tmp_path, form, column=True))
    assert data.patients == PatientSource("the column patient", NUM_PATIENTS, NUM_IMAGES)


def test_one_name_of_another_form_refuses_the_rule(tmp_path: Path) -> None:
    manifest = Path(write_set(tmp_path, "NIH"))
    (tmp_path / "copy of 00000001.png").write_bytes(b"x")
    with manifest.open("a") as file:
        file.write("\ncopy of 00000001.png,1\n")
    line = refusal(manifest)
    assert "96 of 97 file names are those of NIH ChestX-ray14, but not copy of 00000001.png" in line


def test_an_empty_cell_is_refused_with_its_row(tmp_path: Path) -> None:
    manifest = Path(write_set(tmp_path, "NIH", column=True))
    text = manifest.read_text().replace(",P-3\n", ",\n")
    manifest.write_text(text)
    line = refusal(manifest)
    assert "column patient is empty in row 13 (line 14), row 14 (line 15), row 15" in line
    assert "and 1 more. Fill it in" in line
    manifest.write_text(text.replace(",\n", ",nan\n"))  # A patient of that name.
    assert sources.list_set(str(manifest)).patients.num_patients == NUM_PATIENTS


@pytest.mark.parametrize(
    ("form", "rule", "num_patients"),
    [
        ("viewer", "folder", NUM_PATIENTS),
        ("viewer", r"export (\d+)/", NUM_PATIENTS),
        ("own", "file", NUM_PATIENTS * NUM_IMAGES),
        ("NIH", "file", NUM_PATIENTS * NUM_IMAGES),
    ],
)
def test_what_is_asked_for_decides(tmp_path: Path, form: str, rule: str, num_patients: int) -> None:
    column = form == "NIH"
    data = sources.list_set(write_set(tmp_path, form, column), SetSettings(patients=rule))
    assert data.patients.num_patients == num_patients
    assert len(data.table["patient"].unique()) == num_patients
    if rule == "file":
        assert "Patients are not identified (--patients file): each of the 96" in (
            data.patients.sentence
        )
    else:
        assert data.patients.sentence.endswith(": 24 patients with at most 4 images each.")
        assert rule in data.patients.sentence


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (r"export \d+", "has 0 groups, not one"),
        (r"(export) (\d+)", "has 2 groups, not one"),
        ("(", "not a regular expression"),
        (
            r"export (1\d)/",
            r"finds no patient in 56 of 96 paths, such as export 0/IM-0001-0001.jpg, export 0/",
        ),
    ],
)
def test_an_expression_that_does_not_tell_is_refused(
    tmp_path: Path, rule: str, reason: str
) -> None:
    assert reason in refusal(Path(write_set(tmp_path, "viewer")), SetSettings(patients=rule))


def test_folders_of_classes_are_no_patients(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        for name in ("ann/1.png", "2.png"):
            path = tmp_path / "train" / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    line = refusal(tmp_path, SetSettings(patients="folder"))
    assert "2 of 4 images are in no folder of a patient, such as train/NORMAL/2.png" in line


def test_a_patient_is_a_number_in_the_order_of_what_identifies_it(tmp_path: Path) -> None:
    rows = [
        "uri,label,patient",
        "a.png,0,roentgen",
        "b.png,1,Ann",
        "c.png,1,roentgen",
        "d.png,0,bea",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = sources.list_set(str(tmp_path / "labels.csv"))
    assert data.table["patient"].to_pylist() == ["2", "0", "2", "1"]
    assert data.table["patient_digest"].to_pylist() == [
        digest(name) for name in ("roentgen", "Ann", "roentgen", "bea")
    ]
    assert "oentgen" not in str(data.split("train").to_pylist())


def test_a_patient_is_recognized_wherever_it_is_named(tmp_path: Path) -> None:
    """By the names of a folder, and by the column of a manifest."""
    names = [name for name, _ in names_of("Kermany")]
    by_name = sources.list_set(write_set(tmp_path, "Kermany"))
    rows = [
        f"{name},{int('virus' in name)},{re.split('_virus|-0...[.]', name)[0]}" for name in names
    ]
    rows = [row + "_virus" if "virus" in row else row for row in rows]
    (tmp_path / "again.csv").write_text("\n".join(["uri,label,patient", *rows]))
    by_column = sources.list_set(str(tmp_path / "again.csv"))
    digests = [set(data.table["patient_digest"].to_pylist()) for data in (by_name, by_column)]
    assert digests[0] == digests[1]


# DICOM --------------------------------------------------------------------------------------------


def headers(listing: pa.Table) -> pa.Table:
    """Headers as the cluster reads them."""
    read = [read_header(Path(file).read_bytes()) for file in listing["file"].to_pylist()]
    return pa.table(
        {
            "format": [header.format for header in read],
            "patient_digest": [digest(h.patient_id) if h.patient_id else "" for h in read],
        }
    )


def write_dicom(root: Path, patients: list[str | None], suffix: str = "") -> Path:
    for number, patient in enumerate(patients):
        folder = root / "train" / ("NORMAL", "PNEUMONIA")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"1.2.840.{number}{suffix}").write_bytes(dicom(drawn(), PatientID=patient))
    return root


def test_dicom_files_tell_their_patients(tmp_path: Path) -> None:
    root = write_dicom(tmp_path, ["roentgen 1", "roentgen 2", "roentgen 1 ", "roentgen 3"])
    (root / "train" / "NORMAL" / "damaged").write_bytes(b"no image")
    (root / "train" / "NORMAL" / "empty").write_bytes(b"")
    data = sources.list_set(str(root), read_headers=headers)
    assert data.patients == PatientSource("PatientID in the DICOM files", 3, 2)
    by_name = {Path(row["uri"]).name: row for row in data.table.to_pylist()}
    assert by_name["1.2.840.0"]["patient"] == by_name["1.2.840.2"]["patient"]
    assert len(data.table["patient"].unique()) == 5
    assert "roentgen" not in str(data.table.to_pylist())
    assert by_name["1.2.840.1"]["patient_digest"] == digest("roentgen 2")


def test_dicom_files_without_a_patient_are_refused(tmp_path: Path) -> None:
    root = write_dicom(tmp_path, ["1", None, "", "2"], ".dcm")
    line = refusal(root, read_headers=headers)
    match = re.search(
        r"2 of 4 DICOM files have no PatientID, such as (.*), and the file names", line
    )
    assert match is not None
    assert sorted(match[1].split(", ")) == [
        "train/NORMAL/1.2.840.2.dcm",
        "train/PNEUMONIA/1.2.840.1.dcm",
    ]


def test_a_set_of_dicom_and_others_is_refused(tmp_path: Path) -> None:
    root = write_dicom(tmp_path, ["1", "2", "3"])
    (root / "train" / "PNEUMONIA" / "scan").write_bytes(b"\xff\xd8\xff\xe0")
    assert "3 of 4 images are DICOM, and the file names" in refusal(root, read_headers=headers)


def test_headers_come_before_names_and_after_a_column(tmp_path: Path) -> None:
    def unread(_: pa.Table) -> pa.Table:
        raise AssertionError("opened")

    for number in range(2):
        path = tmp_path / f"p1000000{number}" / "s50000000" / "a.dcm"
        path.parent.mkdir(parents=True)
        path.write_bytes(dicom(drawn(), PatientID="1"))
    rows = [f"p1000000{number}/s50000000/a.dcm,{number}" for number in range(2)]
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(["uri,label", *rows]))
    assert sources.list_set(str(manifest), read_headers=headers).patients.num_patients == 1
    manifest.write_text("\n".join(["uri,label,patient", *(f"{row},{row[8]}" for row in rows)]))
    assert sources.list_set(str(manifest), read_headers=unread).patients.num_patients == 2


@pytest.mark.parametrize("suffix", RASTER_SUFFIXES)
def test_files_named_as_other_images_are_not_opened(tmp_path: Path, suffix: str) -> None:
    def unread(_: pa.Table) -> pa.Table:
        raise AssertionError("opened")

    root = write_dicom(tmp_path, ["1", "2"], suffix.upper())
    assert "not known" in refusal(root, read_headers=unread)


# Splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["NIH", "MIMIC", "CheXpert", "own"])
def test_a_patient_in_two_splits_is_refused_by_its_images(tmp_path: Path, form: str) -> None:
    column = form == "own"
    manifest = Path(write_set(tmp_path, form, column))
    header, *rows = manifest.read_text().splitlines()
    splits = ["test" if number // NUM_IMAGES < 6 else "train" for number in range(len(rows))]
    manifest.write_text(
        "\n".join([f"{header},split", *(f"{r},{s}" for r, s in zip(rows, splits, strict=True))])
    )
    sources.list_set(str(manifest)).refuse_shared_patients()
    splits[0] = "train"
    manifest.write_text(
        "\n".join([f"{header},split", *(f"{r},{s}" for r, s in zip(rows, splits, strict=True))])
    )
    with pytest.raises(DataError) as caught:
        sources.list_set(str(manifest)).refuse_shared_patients()
    first, second = (f"{tmp_path}/{NAMES[form](0, image)}" for image in (0, 1))
    assert f"1 patient is in two splits, first with {first} in train and {second} in test" in str(
        caught.value
    )
    assert "P-0" not in str(caught.value)
