"""Class names, and the patient and subtype in a file name of Kermany et al. 2018."""

import re

CLASSES = ("NORMAL", "PNEUMONIA")
"""Class names in index order: label 0 is normal, label 1 is pneumonia."""

SPLITS = ("train", "val", "test")
"""The folders of the set. Training reads only `train`; only evaluation reads `test`."""

_PNEUMONIA = re.compile(r"^(person\d+)_(bacteria|virus)_\d+", re.IGNORECASE)
_NORMAL = re.compile(r"^(?:NORMAL2-)?IM-\d+", re.IGNORECASE)
_RENAMED = re.compile(r"^(NORMAL|BACTERIA|VIRUS)-(\d+)-\d+", re.IGNORECASE)
"""Names of the set's version 3: "(disease)-(randomized patient ID)-(image number by this patient)",
as described in its record at Mendeley Data."""


def patient_key(uri: str) -> str:
    """The patient in a file name of the set; empty if the name is none of its three forms.

    `person1_bacteria_1.jpeg` is patient `person1_bacteria`: the number alone is not enough, since
    the set counts its bacterial and viral patients separately (808 numbers occur in both).
    """
    name = uri.rpartition("/")[2]
    if match := _PNEUMONIA.match(name):
        return f"{match[1]}_{match[2]}".lower()
    if match := _NORMAL.match(name):
        return match[0].upper()
    if match := _RENAMED.match(name):
        return match[2]
    return ""


def subtype(uri: str) -> str:
    """`"bacteria"`, `"virus"` or `""`, from the file name."""
    name = uri.rpartition("/")[2]
    if match := _PNEUMONIA.match(name):
        return match[2].lower()
    match = _RENAMED.match(name)
    return match[1].lower().replace("normal", "") if match else ""
