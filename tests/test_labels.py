"""Names of files carry class, patient and subtype as the data set's authors wrote them."""

from pathlib import Path

import pytest

from cxr.labels import CLASSES, SPLITS, patient_key, subtype


def test_normal_is_0_and_pneumonia_is_1() -> None:
    assert CLASSES == ("NORMAL", "PNEUMONIA")
    assert SPLITS == ("train", "val", "test")


@pytest.mark.parametrize(
    ("uri", "patient"),
    [
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0640-0001-0002.jpeg", "IM-0640"),
        ("NORMAL2-IM-0666-0001.jpeg", "NORMAL2-IM-0666"),
        ("NORMAL2-IM-0666-0001-0002.jpeg", "NORMAL2-IM-0666"),
        ("person1_bacteria_1.jpeg", "person1_bacteria"),
        ("person1_bacteria_2.jpeg", "person1_bacteria"),
        ("person1_virus_6.jpeg", "person1_virus"),
        ("person1949_bacteria_4880.jpeg", "person1949_bacteria"),
        ("s3://bucket/train/NORMAL/IM-0115-0001.jpeg", "IM-0115"),
        ("train/PNEUMONIA/Person1_Virus_6.JPEG", "person1_virus"),
        ("im-0115-0001.png", "IM-0115"),
        ("NORMAL-1003233-0001.jpeg", "1003233"),
        ("BACTERIA-1003233-0002.jpeg", "1003233"),
        ("VIRUS-1008087-0001.jpeg", "1008087"),
        ("scans/0042.dcm", ""),
        ("scans/1.2.840.10008.7", ""),
    ],
)
def test_the_patient_is_read_from_the_file_name(uri: str, patient: str) -> None:
    assert patient_key(uri) == patient


def test_the_same_number_is_another_patient_in_another_series() -> None:
    names = (
        "person1_bacteria_1.jpeg",
        "person1_virus_6.jpeg",
        "IM-0001-0001.jpeg",
        "NORMAL2-IM-0001-0001.jpeg",
    )
    assert len({patient_key(name) for name in names}) == 4


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("a/person1_bacteria_1.jpeg", "bacteria"),
        ("a/person1_virus_6.jpeg", "virus"),
        ("a/IM-0115-0001.jpeg", ""),
        ("a/BACTERIA-1003233-0002.jpeg", "bacteria"),
        ("a/VIRUS-1008087-0001.jpeg", "virus"),
        ("a/NORMAL-1003233-0001.jpeg", ""),
        ("a/bacteria.jpeg", ""),
    ],
)
def test_the_subtype_is_read_from_the_file_name(uri: str, kind: str) -> None:
    assert subtype(uri) == kind


@pytest.mark.parametrize(("split", "num_patients"), [("train", 3654), ("val", 15)])
def test_the_real_set_has_the_patients_that_its_description_counts(
    real_data: Path, split: str, num_patients: int
) -> None:
    names = [path.name for path in (real_data / "chest_xray" / split).glob("*/*.jpeg")]
    assert len({patient_key(name) for name in names}) == num_patients


def test_no_real_patient_is_in_both_classes(real_data: Path) -> None:
    train = real_data / "chest_xray" / "train"
    patients = [{patient_key(path.name) for path in (train / name).iterdir()} for name in CLASSES]
    assert not patients[0] & patients[1]
