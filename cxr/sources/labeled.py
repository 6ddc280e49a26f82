"""Labeled radiographs: a folder or bucket in the layout of Kermany et al., or a manifest."""

from collections import Counter
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr import labels, storage
from cxr.errors import DataError
from cxr.sources.manifests import beside, read_manifest, required, texts
from cxr.sources.names import IMAGE_SUFFIXES, may_be_image

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
    """The labeled radiographs of one split.

    Args:
        uri: a folder or bucket prefix with `train|val|test / NORMAL|PNEUMONIA` below it, or a CSV
            or Parquet manifest with columns `uri,label[,patient,split,subtype]`; a row without a
            split belongs to train, and patient and subtype that are not given are those that the
            file name carries.
        split: `"train"`, `"val"` or `"test"`.

    Returns:
        A table of schema `LISTING`, sorted by uri.

    Raises:
        DataError: nothing is there, the split is missing, or a class is; a manifest lacks a
            column or a value, holds an unknown one, or names a radiograph twice.
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


def _folder(root: str, split: str) -> pa.Table:
    rows = []
    splits = set()
    for file in _images_below(root):
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
    table = read_manifest(uri)
    if missing := {"uri", "label"} - set(table.column_names):
        raise DataError(
            f"{uri}: the manifest lacks column {', '.join(sorted(missing))}."
            f" Expected uri,label[,patient,split]; found {', '.join(table.column_names)}."
        )
    if "split" not in table.column_names and split != "train":
        raise DataError(f"{uri}: the manifest has no column split, so no {split!r} radiographs.")
    uris = [beside(uri, required(uri, "uri", i, u)) for i, u in enumerate(texts(table, "uri"))]
    if duplicates := [u for u, n in Counter(uris).items() if n > 1]:
        raise DataError(f"{uri}: {len(duplicates)} URIs stand twice, the first {duplicates[0]}.")
    splits = [s or "train" for s in texts(table, "split")]
    if unknown := sorted(set(splits) - set(labels.SPLITS)):
        raise DataError(
            f"{uri}: unknown split {unknown[0]!r}. Choices: {', '.join(labels.SPLITS)}."
        )
    wanted = [i for i, s in enumerate(splits) if s == split]
    names = texts(table, "label")
    given = {name: texts(table, name) for name in ("patient", "subtype")}
    rows = []
    for i, file in zip(wanted, storage.stat([uris[i] for i in wanted]), strict=True):
        label = _label(uri, required(uri, "label", i, names[i]))
        row = _row(file or storage.File(uris[i], -1, 0), split, label)
        rows.append(row | {name: values[i] for name, values in given.items() if values[i]})
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


def _images_below(root: str) -> list[storage.File]:
    files = storage.list_files(root)
    images = [file for file in files if may_be_image(storage.absolute(file.uri)[len(root) :])]
    if not images:
        known = " ".join(suffix for suffix in IMAGE_SUFFIXES if suffix)
        raise DataError(
            f"{root}: no radiographs found. Looked for {known} in {len(files):,} files."
        )
    return images


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as an array, (N,); strings as numpy strings."""
    return np.asarray(table[name].to_pylist())
