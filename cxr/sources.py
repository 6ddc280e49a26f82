"""Where radiographs come from: a folder or bucket in the layout of Kermany et al., or a manifest.

A listing travels, the bytes of the radiographs do not: workers open each file where they decode it.
"""

import posixpath
from collections import Counter
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cxr import labels, storage
from cxr.errors import DataError

IMAGE_SUFFIXES: Final = (
    ".jpeg", ".jpg", ".png", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", "",
)  # fmt: skip
"""Names that may hold a radiograph. What a file really is, its content tells when it is decoded."""

LISTING: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("patient", pa.string()),
        ("subtype", pa.string()),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)
"""The columns of a listing, a row a radiograph. `size` is -1 for a file that is not there."""


def list_radiographs(uri: str, split: str) -> pa.Table:
    """The labelled radiographs of one split.

    Args:
        uri: a folder or bucket prefix with `train|val|test / NORMAL|PNEUMONIA` below it, or a CSV or
            Parquet manifest with columns `uri,label[,patient,split]`; a row without a split belongs
            to train, and one without a patient to the patient that its file name carries.
        split: `"train"`, `"val"` or `"test"`.

    Returns:
        A table of schema `LISTING`, sorted by uri.

    Raises:
        DataError: nothing is there, the split is missing, or a class is.
    """
    uri = storage.absolute(uri)
    what = storage.kind(uri)
    if what == "nothing":
        raise DataError(
            f"{uri}: not found. Give a folder, a bucket prefix or a manifest as --data."
        )
    table = _manifest(uri, split) if what == "file" else _folder(uri, split)
    counts = Counter(table["label"].to_pylist())
    missing = [name for label, name in enumerate(labels.CLASSES) if not counts[label]]
    if missing:
        found = ", ".join(f"{counts[i]} {name}" for i, name in enumerate(labels.CLASSES))
        raise DataError(f"{uri}: split {split!r} has no {' and no '.join(missing)} ({found}).")
    return table.sort_by("uri")


def list_images(uri: str) -> pa.Table:
    """Every file below a folder that may be a radiograph, or one file; labels unknown.

    Returns:
        A table with columns `uri` and `size` (bytes), sorted by uri.

    Raises:
        DataError: nothing is there, or nothing that may be a radiograph.
    """
    uri = storage.absolute(uri)
    files = storage.list_files(uri)
    if not files and storage.kind(uri) == "file":
        files = [file for file in storage.stat([uri]) if file]
    images = [file for file in files if _may_be_image(file.uri)]
    if not images:
        raise _no_radiographs(uri, len(files))
    return pa.table({"uri": [f.uri for f in images], "size": [f.size for f in images]})


def _folder(root: str, split: str) -> pa.Table:
    files = storage.list_files(root)
    images = [file for file in files if _may_be_image(file.uri)]
    if not images:
        raise _no_radiographs(root, len(files))
    rows = []
    splits = set()
    for file in images:
        folders = file.uri[len(root) :].strip("/").split("/")[:-1]
        if len(folders) < 2 or folders[0] not in labels.SPLITS:
            continue
        splits.add(folders[0])
        if folders[0] == split and folders[1] in labels.CLASSES:
            rows.append(_row(file, split, labels.CLASSES.index(folders[1])))
    if split not in splits:
        raise DataError(
            f"{root}: no folder {split!r} with radiographs. Expected"
            f" {'|'.join(labels.SPLITS)} / {'|'.join(labels.CLASSES)}, or a manifest"
            f" (uri,label[,patient,split]); found {', '.join(sorted(splits)) or 'neither'}."
        )
    return pa.Table.from_pylist(rows, schema=LISTING)


def _manifest(uri: str, split: str) -> pa.Table:
    data = storage.read_bytes(uri)
    if uri.endswith(".parquet"):
        table = storage.read_table(uri)
    else:
        try:
            table = csv.read_csv(
                pa.BufferReader(data),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(("uri", "label", "patient", "split"), pa.string())
                ),
            )
        except pa.ArrowInvalid as error:
            raise DataError(f"{uri}: neither a folder nor a manifest: {error}.") from None
    if missing := {"uri", "label"} - set(table.column_names):
        raise DataError(
            f"{uri}: the manifest lacks column {', '.join(sorted(missing))}."
            f" Expected uri,label[,patient,split]; found {', '.join(table.column_names)}."
        )
    if "split" in table.column_names:
        table = table.filter(pc.equal(pc.fill_null(table["split"], "train"), split))
    elif split != "train":
        raise DataError(f"{uri}: the manifest has no column split, so no {split!r} radiographs.")
    if duplicates := [u for u, n in Counter(table["uri"].to_pylist()).items() if n > 1]:
        raise DataError(f"{uri}: {len(duplicates)} URIs stand twice, the first {duplicates[0]}.")
    base = posixpath.dirname(uri)
    uris = [u if "://" in u or u.startswith("/") else storage.join(base, u)
            for u in table["uri"].to_pylist()]  # fmt: skip
    patients = (
        table["patient"].to_pylist() if "patient" in table.column_names else [None] * len(uris)
    )
    rows = []
    for row_uri, label, patient, file in zip(
        uris, table["label"].to_pylist(), patients, storage.stat(uris), strict=True
    ):
        row = _row(file or storage.File(row_uri, -1, 0), split, _label(uri, str(label)))
        rows.append(row | ({"patient": str(patient)} if patient else {}))
    return pa.Table.from_pylist(rows, schema=LISTING)


def _row(file: storage.File, split: str, label: int) -> dict[str, object]:
    return {
        "uri": file.uri,
        "split": split,
        "label": label,
        "patient": labels.patient_key(file.uri),
        "subtype": labels.subtype(file.uri) if label == 1 else "",
        "size": file.size,
        "modified_ns": file.modified_ns,
    }


def _label(uri: str, text: str) -> int:
    names = {name: i for i, name in enumerate(labels.CLASSES)} | {"0": 0, "1": 1}
    if text.upper() not in names:
        raise DataError(
            f"{uri}: unknown label {text!r}. Choices: {', '.join(labels.CLASSES)}, 0, 1."
        )
    return names[text.upper()]


def _may_be_image(uri: str) -> bool:
    name = posixpath.basename(uri)
    return not name.startswith(".") and posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _no_radiographs(uri: str, num_files: int) -> DataError:
    known = " ".join(suffix for suffix in IMAGE_SUFFIXES if suffix)
    return DataError(
        f"{uri}: no radiographs found. Looked for {known} in {num_files:,} files."
    )


def numpy_column(table: pa.Table, name: str) -> "np.ndarray[tuple[int], np.dtype[np.generic]]":
    """A column as an array, (N,); strings as numpy strings."""
    return np.asarray(table[name].to_pylist())
