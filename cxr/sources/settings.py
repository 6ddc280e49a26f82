"""How a labeled set is read: the settings that every job on one shares."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class SetSettings:
    """A labeled set, and how it is read."""

    data: str | None = None
    """Folder, s3:// prefix, zip or tar archive with train|val|test / NORMAL|PNEUMONIA in it, or a
    manifest (.csv .tsv .csv.gz .parquet .xlsx). Without it, synthetic radiographs are drawn."""
    columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=COLUMN [NAME=COLUMN ...]")] = ()
    """Columns of the manifest, where it names them otherwise: uri=File label=Finding
    patient=PatientID split=Set subtype=Kind."""
    labels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS=LABEL[,LABEL]")] = ()
    """What the manifest calls the classes: normal='No finding' pneumonia='Pneumonia,Infiltrate'."""
    other_labels: Literal["refuse", "skip"] = "refuse"
    """What happens where a manifest has labels that --labels does not name: skip counts them."""
    patients: str | None = None
    """How the patient of an image is known, where neither a column, nor DICOM, nor the names of a
    known data set tell: folder, file (each image is a patient of its own), or a regular expression
    with one group that is searched in the path."""
