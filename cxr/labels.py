"""What a path says of a radiograph, as Kermany et al. 2018 laid it out: class, patient, subtype."""

import re
from pathlib import PurePosixPath

CLASSES = ("NORMAL", "PNEUMONIA")
"""Class names in index order: label 0 is normal, label 1 is pneumonia."""

SPLITS = ("train", "val", "test")
"""The folders of the set. Only `train` is trained on; `test` is read by evaluation alone."""

_PNEUMONIA = re.compile(r"^(person\d+)_(bacteria|virus)_\d+", re.IGNORECASE)
_NORMAL = re.compile(r"^(?:NORMAL2-)?IM-\d+", re.IGNORECASE)


def patient_key(uri: str) -> str:
    """The patient that a file name carries; the file's stem where it carries none.

    `person1_bacteria_1.jpeg` is patient `person1_bacteria`: the number alone is not enough, since
    the set counts its bacterial and viral patients separately (808 numbers occur in both).
    """
    stem = _stem(uri)
    if match := _PNEUMONIA.match(stem):
        return f"{match[1]}_{match[2]}".lower()
    if match := _NORMAL.match(stem):
        return match[0].upper()
    return stem


def subtype(uri: str) -> str:
    """`"bacteria"`, `"virus"` or `""`, from the file name."""
    match = _PNEUMONIA.match(_stem(uri))
    return match[2].lower() if match else ""


def _stem(uri: str) -> str:
    path = PurePosixPath(uri)
    # DICOM files are often named by their UID, whose last number tells them apart.
    return path.name if path.suffix[1:].isdigit() else path.stem
