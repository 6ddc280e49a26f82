"""The header of a DICOM file is read from its beginning, and what it may hold is not let out."""

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from cxr.images.decoding.header import HEADER_BYTES, Header, read_header
from tests.support.radiographs import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PATIENT,
    dicom,
    drawn,
    in_16_bits,
    radiograph,
)

UIDS = {"StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.5"}


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_the_header_is_read_in_every_encoding(syntax: str) -> None:
    data = dicom(in_16_bits(), syntax, ViewPosition="PA", PatientAge="034Y", **UIDS)
    assert read_header(data) == Header(
        "dicom", True, PATIENT["PatientID"], "PA", 34, "CR", True, True, True
    )


def test_a_bare_data_set_is_read() -> None:
    data = dicom(drawn(), StudyInstanceUID="1.2.3")
    start = data.index(b"\x08\x00\x16\x00")
    assert read_header(data[start:]).patient_id == PATIENT["PatientID"]


@pytest.mark.parametrize(
    ("tags", "years"),
    [
        ({"PatientAge": "018M", "PatientBirthDate": None}, 1),
        ({"PatientAge": "003D", "PatientBirthDate": None}, 0),
        ({"PatientBirthDate": "20010302", "StudyDate": "20240301"}, 22),
        ({"PatientBirthDate": "20010302", "StudyDate": "20240302"}, 23),
        ({"PatientBirthDate": "", "StudyDate": "20240302"}, None),
        ({"PatientBirthDate": "20240302", "StudyDate": "20010302"}, None),
        ({"PatientAge": "", "PatientBirthDate": None}, None),
    ],
)
def test_the_age_is_in_completed_years(tags: dict[str, str | None], years: int | None) -> None:
    assert read_header(dicom(drawn(), **tags)).age_years == years


@pytest.mark.parametrize(
    ("written", "view"),
    [("AP", "AP"), ("", ""), (None, ""), ("LATERAL", "lateral"), ("ROENTGEN", "other")],
)
def test_a_view_is_one_of_a_list(written: str | None, view: str) -> None:
    assert read_header(dicom(drawn(), ViewPosition=written)).view == view
    assert read_header(dicom(drawn(), Modality="ROENTGEN")).modality == "other"


def test_large_elements_before_the_tags_are_noticed() -> None:
    private = Dataset()
    private.add_new((0x0009, 0x0010), "LO", "MAKER")
    private.add_new((0x0009, 0x1001), "OB", bytes(2 * HEADER_BYTES))
    data = dicom(drawn(), PatientID="7")
    start = data.index(b"\x10\x00\x10\x00")  # Group 0010 follows.
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, private)
    whole = data[:start] + stream.getvalue() + data[start:]
    assert not read_header(whole[:HEADER_BYTES]).complete
    assert read_header(whole).patient_id == "7"
    assert read_header(data[:HEADER_BYTES]).complete


@pytest.mark.parametrize(
    ("data", "file_format"), [(radiograph(), "jpeg"), (b"", ""), (b"a file " * 99, "")]
)
def test_other_files_have_their_format(data: bytes, file_format: str) -> None:
    assert read_header(data) == Header(file_format)


def test_no_bytes_raise() -> None:
    whole = dicom(drawn(), DEFLATED)
    for end in range(0, len(whole), 97):
        read_header(whole[:end])
    for at in range(132, 600):
        read_header(whole[:at] + b"\xff\xff" + whole[at + 2 :])
