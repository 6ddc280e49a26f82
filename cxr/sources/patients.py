"""How the patient of an image is known: by a column, PatientID of DICOM, known names, or as asked.

What identifies a patient in clear text stays in `identify`. Beyond it a patient is a number within
the set, and a digest by which the same patient is recognized elsewhere.
"""

import functools
import hashlib
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr import labels, storage
from cxr.errors import DataError
from cxr.sources import texts
from cxr.sources.archives import SEPARATOR
from cxr.sources.manifests import Manifest
from cxr.sources.settings import SetSettings

ReadHeaders = Callable[[pa.Table], pa.Table]
"""Reads the headers of files. Rows in: the first columns of `sources.LISTING`, which say where a
file is; rows out, in the same order: `format`, as the decoder names it, and `patient_digest`, empty
where a file has no PatientID."""

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
    table: pa.Table,
    settings: SetSettings,
    manifest: Manifest | None = None,
    read_headers: ReadHeaders | None = None,
) -> tuple[pa.Table, PatientSource]:
    """Replace what a set says of patients by numbers and digests.

    What `settings.patients` asks for decides, else the column, else PatientID if all files are
    DICOM, else the names if all of them are those of one known data set.

    Args:
        uri: of the set.
        table: the first columns of `sources.LISTING`, `patient`, the text of the column, and `row`,
            that of the manifest.
        settings: of the set.
        manifest: that the set is listed in, if it is one.
        read_headers: reads the headers of files that may be DICOM; they are not read if None.

    Returns:
        The table with `patient`, a zero-padded number in the order of the clear texts, and
        `patient_digest`; and how the patients are known.

    Raises:
        DataError: the patient of an image is not known.
    """
    column = manifest.columns.get("patient") if manifest else None
    digest_key: Callable[[str], str] = digest
    if settings.patients:
        how, keys = _as_asked(uri, _paths(uri, table), settings.patients)
    elif manifest and column:
        how, keys = f"the column {column}", table["patient"]
        if len(empty := table["row"].filter(pc.equal(keys, ""))):
            raise DataError(
                f"{uri}: column {column} is empty in {manifest.locate(np.sort(empty.to_numpy()))}."
                " Fill it in, or say with --patients how patients are known otherwise."
            )
    else:
        paths = _paths(uri, table)
        headers = _Headers.read(table, paths, read_headers)
        if headers.tell:
            how = "PatientID in the DICOM files"
            # A file that cannot be read gives no image: a patient of its own, behind the others.
            keys = texts.compute(lambda text, path: text or f"~{path}", headers.digests, paths)
            digest_key = _digest_unread
        else:
            how, keys = _by_name(uri, paths, headers)
    numbers, distinct = texts.rank(keys)
    sizes = np.bincount(numbers, minlength=len(distinct))
    sizes = sizes[np.asarray(pc.invert(pc.starts_with(distinct, "~")), dtype=bool)]
    source = PatientSource(how, len(sizes), int(sizes.max(initial=0)))
    width = len(str(len(distinct)))
    names = texts.compute(lambda number: f"{number:0{width}}", pa.array(np.arange(len(distinct))))
    # Texts that differ in blanks alone have the same digest.
    codes, digests = texts.encode(texts.compute(digest_key, distinct))
    return (
        table.drop_columns(["patient"])
        .append_column("patient", names.take(numbers))
        .append_column("patient_digest", texts.share(codes[numbers], digests)),
        source,
    )


def _digest_unread(key: str) -> str:
    """The digest of a key that is one, or begins with `~` and is the path of an unread file."""
    return digest(key[1:]) if key.startswith("~") else key


def _paths(uri: str, table: pa.Table) -> pa.ChunkedArray:
    """The path of each image of a set, see `_path`."""
    path = functools.partial(_path, storage.printable(uri))
    return texts.compute(path, table["uri"], table["file"])


def _path(root: str, path: str, file: str) -> str:
    """The path of an image below the folder or archive of its set, or the whole URI if elsewhere;
    archives in it are like folders."""
    if path != file:  # As some Windows programs write members.
        path = path.replace("\\", "/")
    if not path.startswith((f"{root}/", f"{root}{SEPARATOR}")):
        root = posixpath.dirname(root)
    return path.removeprefix(root).removeprefix(SEPARATOR).lstrip("/").replace(SEPARATOR, "/")


# As asked -----------------------------------------------------------------------------------------


def _as_asked(uri: str, paths: pa.ChunkedArray, rule: str) -> tuple[str, pa.ChunkedArray]:
    """How patients are known by `--patients`, and what identifies that of each path."""
    if rule == "file":
        return "", paths
    if rule == "folder":
        named = ("", *labels.CLASSES, *labels.SPLITS)
        keys = texts.compute(lambda path: posixpath.basename(posixpath.dirname(path)), paths)
        if len(missing := paths.filter(pc.is_in(keys, pa.array(named)))):
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

    def find_key(path: str) -> str:
        match = pattern.search(path)
        return (match[1] or "").strip() if match else ""

    keys = texts.compute(find_key, paths)
    if len(missing := paths.filter(pc.equal(keys, ""))):
        raise DataError(
            f"{uri}: --patients '{rule}' finds no patient in {len(missing):,} of"
            f" {len(paths):,} paths, such as {_examples(missing)}."
        )
    return f"--patients '{rule}'", keys


# DICOM --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Headers:
    """What the files of a set say of patients."""

    digests: pa.ChunkedArray
    """Of PatientID; empty where there is none."""
    tell: bool
    """Whether every file that may give an image is DICOM and has a PatientID."""
    problem: str
    """What is not as it should be, for a message."""

    @classmethod
    def read(
        cls, table: pa.Table, paths: pa.ChunkedArray, read_headers: ReadHeaders | None
    ) -> "_Headers":
        is_sound = pc.equal(table["status"], "")
        sound = table.filter(is_sound)
        if read_headers is None or not len(sound) or _has_raster(sound["uri"]):
            return cls(pa.chunked_array([], pa.string()), False, "")
        read = read_headers(sound)
        # Empty for the other files.
        position = np.cumsum(is_sound) - 1
        positions = pa.array(position, mask=~np.asarray(is_sound, dtype=bool))
        digests = read["patient_digest"].take(positions).fill_null("")
        is_dicom = pc.equal(read["format"], "dicom")
        num_dicom = pc.sum(is_dicom).as_py()
        num_images = pc.sum(pc.not_equal(read["format"], "")).as_py()
        lacks = pc.and_(is_dicom, pc.equal(read["patient_digest"], ""))
        without = paths.filter(is_sound).filter(lacks)
        problem = ""
        if 0 < num_dicom < num_images:
            problem = f"{num_dicom:,} of {num_images:,} images are DICOM"
        elif len(without):
            problem = (
                f"{len(without):,} of {num_dicom:,} DICOM files have no PatientID, such as"
                f" {_examples(without)}"
            )
        return cls(digests, 0 < num_dicom == num_images and not len(without), problem)


def _has_raster(uris: pa.ChunkedArray) -> bool:
    """Whether a file has a name of `RASTER_SUFFIXES`."""
    return any(
        uri.lower().endswith(RASTER_SUFFIXES) for rows in texts.batches(uris) for (uri,) in rows
    )


# Names of known data sets -------------------------------------------------------------------------


def _kermany(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    # Viewers export every image as IM-0001-0001: only names of pneumonias show that it is this set.
    if not any(labels.subtype(path) for rows in texts.batches(paths) for (path,) in rows):
        return pa.chunked_array([pa.repeat("", len(paths))])
    return texts.compute(labels.patient_key, paths)


def _matching(expression: str) -> Callable[[pa.ChunkedArray], pa.ChunkedArray]:
    pattern = re.compile(rf"(?:^|/){expression}$", re.IGNORECASE)

    def find_key(path: str) -> str:
        return match[1].lower() if (match := pattern.search(path)) else ""

    return functools.partial(texts.compute, find_key)


KNOWN_NAMES: Final[Mapping[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]]] = {
    "Kermany et al. 2018": _kermany,
    "NIH ChestX-ray14": _matching(r"(\d{8})_\d{3}\.\w+"),
    "MIMIC-CXR": _matching(r"(p\d{8})/s\d{8}/[^/]+"),
    "CheXpert": _matching(r"(patient\d{5,})/study\d+/[^/]+"),
}
"""Data sets whose names tell the patient: from the paths of all images to their patients, empty
where a path is none of the set's. As their publishers describe them: `00000013_005.png`,
`p10000032/s50414267/02aa804e-....jpg`, `patient00001/study1/view1_frontal.jpg`."""


def _by_name(uri: str, paths: pa.ChunkedArray, headers: _Headers) -> tuple[str, pa.ChunkedArray]:
    others = paths
    best = ""
    for name, find_keys in KNOWN_NAMES.items():
        keys = find_keys(paths)
        is_other = pc.equal(keys, "")
        if not pc.any(is_other).as_py():
            return f"the file names of {name}", keys
        if not best or pc.sum(is_other).as_py() < len(others):
            best, others = name, paths.filter(is_other)
    basenames = (posixpath.basename(path) for rows in texts.batches(paths) for (path,) in rows)
    if all(map(_PADCHEST.fullmatch, basenames)):
        raise DataError(
            f"{uri}: the file names of PadChest do not tell the patient, the column PatientID of"
            " its table does. Give a manifest with that column: --columns uri=ImageID"
            " patient=PatientID label=..."
        )
    fitting = len(paths) - len(others)
    what = (
        f"{fitting:,} of {len(paths):,} file names are those of {best}, but not"
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


def _examples(paths: pa.ChunkedArray) -> str:
    return ", ".join(paths.slice(0, _NUM_EXAMPLES).to_pylist())
