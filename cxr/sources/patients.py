"""How the patient of an image is known: by a column, PatientID of DICOM, known names, or as asked.

What identifies a patient in clear text stays in `identify`. Beyond it a patient is a number within
the set, and a digest by which the same patient is recognized elsewhere.
"""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from cxr import labels, storage
from cxr.errors import DataError
from cxr.sources.archives import SEPARATOR
from cxr.sources.inputs import INVENTORY
from cxr.sources.manifests import Manifest
from cxr.sources.settings import SetSettings

Row = dict[str, Any]

ReadHeaders = Callable[[pa.Table], pa.Table]
"""Reads the headers of files. Rows in: of `sources.INVENTORY`; rows out, in the same order:
`format`, as the decoder names it, and `patient_digest`, empty where a file has no PatientID."""

RASTER_SUFFIXES: Final = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".tiff", ".tif", ".bmp")
"""Files of these names are not opened to look for a DICOM header."""

_PADCHEST: Final = re.compile(r"\d{20,}_[^/_]+\.png", re.IGNORECASE)
"""`216840111366964012373310883942009111091105016_00-074-014.png`. The number is that of the image;
the patient is in the column PatientID of the set's table (Bustos et al. 2020)."""

_NUM_EXAMPLES: Final = 3


@dataclass(frozen=True)
class PatientSource:
    """How the patients of a set are known, and how many there are."""

    how: str
    """Such as `"the column patient"`; empty if every image counts as a patient of its own."""
    num_patients: int
    largest: int
    """Images of the patient with the most."""

    @property
    def sentence(self) -> str:
        """What every run and report says of it."""
        if not self.how:
            return (
                "Patients are not identified (--patients file): each of the"
                f" {self.num_patients:,} images counts as a patient of its own, so images of one"
                " person may be on both sides of a split."
            )
        images = "1 image" if self.largest == 1 else f"at most {self.largest:,} images"
        patients = "1 patient" if self.num_patients == 1 else f"{self.num_patients:,} patients"
        each = " each" if self.num_patients > 1 else ""
        return f"Patients are identified by {self.how}: {patients} with {images}{each}."


NOT_IDENTIFIED: Final = PatientSource("", 0, 0)


def digest(text: str) -> str:
    """A digest of what identifies a patient: the same for the same text in any set."""
    return hashlib.sha256(f"patient {text.strip()}".encode()).hexdigest()


def identify(
    uri: str,
    rows: Sequence[Row],
    settings: SetSettings,
    manifest: Manifest | None = None,
    read_headers: ReadHeaders | None = None,
) -> tuple[tuple[Row, ...], PatientSource]:
    """Replace what rows say of patients by numbers and digests.

    What `settings.patients` asks for decides, else the column, else PatientID if all files are
    DICOM, else the names if all of them are those of one known data set.

    Args:
        uri: of the set.
        rows: of `INVENTORY`, with `patient`, the text of the column.
        settings: of the set.
        manifest: that the set is listed in, if it is one.
        read_headers: reads the headers of files that may be DICOM; they are not read if None.

    Returns:
        The rows with `patient`, a zero-padded number in the order of the clear texts, and
        `patient_digest`; and how the patients are known.

    Raises:
        DataError: the patient of an image is not known.
    """
    paths = [_path(uri, row) for row in rows]
    column = manifest.columns.get("patient") if manifest else None
    if settings.patients:
        how, keys = _as_asked(uri, paths, settings.patients)
        digests = [digest(key) for key in keys]
    elif manifest and column:
        how, keys = f"the column {column}", [row["patient"] for row in rows]
        if empty := [row["row"] for row, key in zip(rows, keys, strict=True) if not key]:
            raise DataError(
                f"{uri}: column {column} is empty in {manifest.locate(sorted(empty))}. Fill it in,"
                " or say with --patients how patients are known otherwise."
            )
        digests = [digest(key) for key in keys]
    else:
        headers = _Headers.read(rows, paths, read_headers)
        if headers.tell:
            how = "PatientID in the DICOM files"
            # A file that cannot be read gives no image: a patient of its own, behind the others.
            keys = [text or f"~{path}" for text, path in zip(headers.digests, paths, strict=True)]
            digests = [
                text or digest(path) for text, path in zip(headers.digests, paths, strict=True)
            ]
        else:
            how, keys = _by_name(uri, paths, headers)
            digests = [digest(key) for key in keys]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    width = len(str(len(numbers)))
    sizes = Counter(key for key in keys if not key.startswith("~"))
    source = PatientSource(how, len(sizes), max(sizes.values(), default=0))
    numbered = tuple(
        row | {"patient": f"{numbers[key]:0{width}}", "patient_digest": text}
        for row, key, text in zip(rows, keys, digests, strict=True)
    )
    return numbered, source


def _path(uri: str, row: Row) -> str:
    """The path of an image below the folder or archive of its set, or the whole URI if elsewhere;
    archives in it are like folders."""
    path: str = row["uri"]
    if path != row["file"]:  # As some Windows programs write members.
        path = path.replace("\\", "/")
    root = storage.printable(uri)
    if not path.startswith((f"{root}/", f"{root}{SEPARATOR}")):
        root = posixpath.dirname(root)
    return path.removeprefix(root).removeprefix(SEPARATOR).lstrip("/").replace(SEPARATOR, "/")


# As asked -----------------------------------------------------------------------------------------


def _as_asked(uri: str, paths: Sequence[str], rule: str) -> tuple[str, list[str]]:
    """How patients are known by `--patients`, and what identifies that of each path."""
    if rule == "file":
        return "", list(paths)
    if rule == "folder":
        keys = [posixpath.basename(posixpath.dirname(path)) for path in paths]
        named = ("", *labels.CLASSES, *labels.SPLITS)
        if missing := [path for path, key in zip(paths, keys, strict=True) if key in named]:
            raise DataError(
                f"{uri}: --patients folder: {len(missing):,} of {len(paths):,} images are in no"
                f" folder of a patient, such as {_examples(missing)}."
            )
        return "their folders (--patients folder)", keys
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise DataError(
            f"--patients '{rule}': not a regular expression ({error}). Give folder, file or a"
            " regular expression with one group, which is searched in the path of each image."
        ) from None
    if pattern.groups != 1:
        raise DataError(
            f"--patients '{rule}': has {pattern.groups} groups, not one. Put what identifies the"
            r" patient in parentheses, as in '(pat\d+)_'."
        )
    matches = [pattern.search(path) for path in paths]
    keys = [(match[1] or "").strip() if match else "" for match in matches]
    if missing := [path for path, key in zip(paths, keys, strict=True) if not key]:
        raise DataError(
            f"{uri}: --patients '{rule}' finds no patient in {len(missing):,} of"
            f" {len(paths):,} paths, such as {_examples(missing)}."
        )
    return f"--patients '{rule}'", keys


# DICOM --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Headers:
    """What the files of a set say of patients."""

    digests: Sequence[str]
    """Of PatientID; empty where there is none."""
    tell: bool
    """Whether every file that may give an image is DICOM and has a PatientID."""
    problem: str
    """What is not as it should be, for a message."""

    @classmethod
    def read(
        cls, rows: Sequence[Row], paths: Sequence[str], read_headers: ReadHeaders | None
    ) -> "_Headers":
        sound = [index for index, row in enumerate(rows) if not row["status"]]
        names = [rows[index]["uri"].lower() for index in sound]
        if read_headers is None or not sound or any(n.endswith(RASTER_SUFFIXES) for n in names):
            return cls((), False, "")
        table = read_headers(pa.Table.from_pylist([rows[index] for index in sound], INVENTORY))
        digests = [""] * len(rows)
        for index, text in zip(sound, table["patient_digest"].to_pylist(), strict=True):
            digests[index] = text
        formats = table["format"].to_pylist()
        dicom = [index for index, name in zip(sound, formats, strict=True) if name == "dicom"]
        num_images = len(sound) - formats.count("")
        without = [paths[index] for index in dicom if not digests[index]]
        problem = ""
        if 0 < len(dicom) < num_images:
            problem = f"{len(dicom):,} of {num_images:,} images are DICOM"
        elif without:
            problem = (
                f"{len(without):,} of {len(dicom):,} DICOM files have no PatientID, such as"
                f" {_examples(without)}"
            )
        return cls(digests, 0 < len(dicom) == num_images and not without, problem)


# Names of known data sets -------------------------------------------------------------------------


def _kermany(paths: Sequence[str]) -> list[str]:
    # Viewers export every image as IM-0001-0001: only names of pneumonias show that it is this set.
    if not any(map(labels.subtype, paths)):
        return [""] * len(paths)
    return [labels.patient_key(path) for path in paths]


def _matching(expression: str) -> Callable[[Sequence[str]], list[str]]:
    pattern = re.compile(rf"(?:^|/){expression}$", re.IGNORECASE)

    def keys(paths: Sequence[str]) -> list[str]:
        return [match[1].lower() if (match := pattern.search(path)) else "" for path in paths]

    return keys


KNOWN_NAMES: Final[Mapping[str, Callable[[Sequence[str]], list[str]]]] = {
    "Kermany et al. 2018": _kermany,
    "NIH ChestX-ray14": _matching(r"(\d{8})_\d{3}\.\w+"),
    "MIMIC-CXR": _matching(r"(p\d{8})/s\d{8}/[^/]+"),
    "CheXpert": _matching(r"(patient\d{5,})/study\d+/[^/]+"),
}
"""Data sets whose names tell the patient: from the paths of all images to their patients, empty
where a path is none of the set's. As their publishers describe them: `00000013_005.png`,
`p10000032/s50414267/02aa804e-....jpg`, `patient00001/study1/view1_frontal.jpg`."""


def _by_name(uri: str, paths: Sequence[str], headers: _Headers) -> tuple[str, list[str]]:
    by_set = {name: keys(paths) for name, keys in KNOWN_NAMES.items()}
    for name, keys in by_set.items():
        if all(keys):
            return f"the file names of {name}", keys
    if all(_PADCHEST.fullmatch(posixpath.basename(path)) for path in paths):
        raise DataError(
            f"{uri}: the file names of PadChest do not tell the patient, the column PatientID of"
            " its table does. Give a manifest with that column: --columns uri=ImageID"
            " patient=PatientID label=..."
        )
    name, keys = max(by_set.items(), key=lambda item: sum(map(bool, item[1])))
    others = [path for path, key in zip(paths, keys, strict=True) if not key]
    fitting = len(paths) - len(others)
    what = (
        f"{fitting:,} of {len(paths):,} file names are those of {name}, but not"
        if fitting
        else "the file names are those of no known data set, such as"
    )
    problem = f"{headers.problem}, and " if headers.problem else ""
    raise DataError(
        f"{uri}: the patient of an image is not known: {problem}{what} {_examples(others)}. Give a"
        " manifest with a column patient (or --columns patient=NAME), or --patients folder,"
        " --patients 'regular expression with one group', or --patients file, with which each"
        " image counts as a patient of its own."
    )


def _examples(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_NUM_EXAMPLES])
