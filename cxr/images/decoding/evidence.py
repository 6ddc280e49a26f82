"""What a report on a DICOM image has to copy from its header: identifiers, patient and study.

Read only where a report is to be written; what is read names the patient.
"""

from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from cxr.images.decoding.dicom import EXPLICIT_BIG, IMPLICIT_LITTLE, open_data_set
from cxr.images.decoding.quiet import NO_LOGS, NO_WARNINGS

IDENTIFIERS: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""What a reference to an image consists of. Source: DICOM PS3.3 section C.17.2.1."""

COPIED: Final = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
)
"""What a document of a study has to have as the study's images have it, empty where that is
unknown. Source: DICOM PS3.3 sections C.7.1.1 (Patient) and C.7.2.1 (General Study), attributes of
type 2; optional ones are not copied."""

_TAGS: Final = sorted(
    Tag(keyword) for keyword in (*IDENTIFIERS, *COPIED, "SpecificCharacterSet", "NumberOfFrames")
)


def read_evidence(data: bytes) -> Dataset:
    """Read `IDENTIFIERS`, `COPIED`, character set and number of frames of a DICOM file.

    Returns:
        What there is of them, unchecked; nothing for bytes that cannot be read.
    """

    def stop(tag: Any, *_: object) -> bool:
        return bool(tag > _TAGS[-1])

    try:
        with NO_WARNINGS, NO_LOGS:
            stream, syntax = open_data_set(data)
            return read_dataset(
                stream, syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG, stop_when=stop,
                specific_tags=list(_TAGS),
            )  # fmt: skip
    except Exception:  # Damaged headers make pydicom raise anything.
        return Dataset()
