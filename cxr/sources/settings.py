"""How a labeled set is read: the settings that every job on one shares."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import tyro

from cxr import labels
from cxr.errors import SettingsError

COLUMNS: Final = ("uri", "label", "patient", "split", "subtype")
"""The columns of a manifest that mean something to us; uri and label are needed."""

LABELS: Final = {name: (name, str(index)) for index, name in enumerate(labels.CLASSES)}
"""What a manifest calls the classes unless --labels says otherwise."""

Split = Literal["train", "val", "test", "validation"]
"""A split of a set, or `"validation"`: the images that validated the checkpoint. Where the set has
no test split, `"test"` are the patients whom training held out."""


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
    """How the patient of an image is known: folder, file (each image is a patient of its own), or a
    regular expression with one group that is searched in the path. Default: by the manifest's
    column patient, else by PatientID if all files are DICOM, else by the names of a known set."""

    def __post_init__(self) -> None:
        parse_columns(self.columns)
        parse_labels(self.labels)

    @property
    def how_read(self) -> dict[str, Any]:
        """How the set is read, without where it is: values of JSON."""
        own = (field.name for field in dataclasses.fields(SetSettings) if field.name != "data")
        values = {name: getattr(self, name) for name in own}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """The names that a manifest has for our columns, by our names.

    Args:
        columns: each `NAME=COLUMN`, such as `"label=Finding"`.

    Raises:
        SettingsError: one is not of this form, names no column of ours, or one that is named.
    """
    return {name: _only(name, texts) for name, texts in _pairs("columns", columns, COLUMNS).items()}


def parse_labels(labels: Sequence[str]) -> Mapping[str, str]:
    """The class that each label of a manifest stands for; labels without case.

    Args:
        labels: each `CLASS=LABEL[,LABEL]`, such as `"normal=No finding"`; a class that is not named
            has the labels of `LABELS`.

    Raises:
        SettingsError: one is not of this form, names no class, or a label stands for both.
    """
    given = _pairs("labels", labels, tuple(LABELS))
    classes: dict[str, str] = {}
    for name, default in LABELS.items():
        texts = [part for text in given.get(name, default) for part in text.split(",")]
        for label in filter(None, (text.strip().casefold() for text in texts)):
            if classes.setdefault(label, name) != name:
                raise SettingsError(f"labels: {label!r} stands for both classes.")
    return classes


def _pairs(flag: str, entries: Sequence[str], choices: Sequence[str]) -> dict[str, list[str]]:
    """The values of entries `NAME=VALUE` by name, spelled as the choices are."""
    spelling = {choice.casefold(): choice for choice in choices}
    values: dict[str, list[str]] = {}
    for entry in entries:
        name, _, value = (part.strip() for part in entry.partition("="))
        if not value or name.casefold() not in spelling:
            raise SettingsError(
                f"{flag}: {entry!r} is not NAME=VALUE with a name of {', '.join(choices)}."
            )
        values.setdefault(spelling[name.casefold()], []).append(value)
    return values


def _only(name: str, values: Sequence[str]) -> str:
    if len(values) > 1:
        raise SettingsError(f"columns: {name} is given {len(values)} times.")
    return values[0]
