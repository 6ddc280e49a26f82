"""Labeled radiographs: a folder, bucket or archive in the layout of Kermany et al., or a manifest.

The layout is `train|val|test / NORMAL|PNEUMONIA`, at the root or below other folders.
"""

import dataclasses
import operator
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr import labels, storage
from cxr.errors import DataError, StorageError
from cxr.sources.archives import SEPARATOR, archive_kind
from cxr.sources.inputs import (
    INVENTORY,
    Entry,
    Inputs,
    address_in_listing,
    entry_address,
    in_words,
    list_archive,
    list_inputs,
    plain,
    split_address,
)
from cxr.sources.manifests import Manifest, is_manifest, read_manifest
from cxr.sources.patients import NOT_IDENTIFIED, PatientSource, ReadHeaders, identify
from cxr.sources.settings import SetSettings, parse_labels

LISTING: Final = pa.schema(
    [
        *(column for column in INVENTORY if column.name not in Entry._fields),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("patient", pa.string()),
        ("patient_digest", pa.string()),
        ("subtype", pa.string()),
    ]
)
"""The columns of a listing, one row per radiograph: those of an inventory, and what is known of the
radiograph. `label` is an index of `labels.CLASSES`; `patient` is a number within the set, and by
`patient_digest` the same patient is recognized in another one."""

_LAYOUT: Final = f"{'|'.join(labels.SPLITS)} / {'|'.join(labels.CLASSES)}"

_MANIFEST: Final = "a CSV, Parquet or Excel manifest (uri,label[,patient,split,subtype])"

_SPLITS: Final = {
    **dict(zip(labels.SPLITS, labels.SPLITS, strict=True)),
    **{"training": "train", "validation": "val", "validate": "val", "valid": "val"},
    "testing": "test",
}
"""What manifests call the splits, in lower case; an empty cell is train."""

_NUM_NAMED: Final = 3
"""Folders named in a message."""

Row = dict[str, Any]

DEFAULTS: Final = SetSettings()


@dataclass(frozen=True)
class LabeledSet:
    """A set of labeled radiographs, listed once."""

    uri: str
    rows: tuple[Row, ...]
    """Of schema `LISTING`, but `label` is a class name, empty where a manifest has none or another;
    and `row`, the row of the manifest from 0, -1 without one."""
    skipped: Counter[str]
    """Files and rows that were passed over, by type."""
    source: Manifest | None = None
    """The manifest that was given, if one was."""
    settings: SetSettings = DEFAULTS
    """How it was read."""
    patients: PatientSource = NOT_IDENTIFIED
    """How the patients are known."""

    @property
    def manifest(self) -> pa.Table | None:
        """The rows of the manifest, all columns as text; None without one."""
        return self.source.table if self.source else None

    def refuse_shared_patients(self) -> None:
        """Refuse a set in which a patient is in two splits.

        Raises:
            DataError: names images of the first such patient.
        """
        first: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            first.setdefault(row["patient_digest"], {}).setdefault(row["split"], row)
        if shared := [by_split for by_split in first.values() if len(by_split) > 1]:
            one, other, *_ = shared[0].values()
            are = "1 patient is" if len(shared) == 1 else f"{len(shared):,} patients are"
            raise DataError(
                f"{self.uri}: {are} in two splits, first with {one['uri']} in {one['split']} and"
                f" {other['uri']} in {other['split']}. Figures would be too good; divide the data"
                f" by patient. {self.patients.sentence}"
            )

    def split(self, name: str) -> pa.Table:
        """The radiographs of one split.

        Args:
            name: `"train"`, `"val"` or `"test"`.

        Returns:
            A table of schema `LISTING`, sorted by uri.

        Raises:
            DataError: the split or one of its classes is missing, or a label is unknown.
        """
        rows = [row for row in self.rows if row["split"] == name]
        if not rows:
            counts = Counter(row["split"] for row in self.rows)
            listed = ", ".join(f"{counts[s]:,} of {s}" for s in labels.SPLITS if counts[s])
            raise DataError(
                f"{self.uri}: no radiographs of split {name!r}; found {listed}. A folder"
                f" {'|'.join(labels.SPLITS)}, or the column split of a manifest, says where a"
                " radiograph belongs; without that column it is train."
            )
        if self.source and (others := [row["row"] for row in rows if not row["label"]]):
            self._refuse_labels(self.source, others)
        counts = Counter(row["label"] for row in rows)
        if missing := [label for label in labels.CLASSES if not counts[label]]:
            listed = ", ".join(f"{counts[label]:,} {label}" for label in labels.CLASSES)
            raise DataError(
                f"{self.uri}: split {name!r} has no {' and no '.join(missing)} ({listed})."
            )
        rows = [row | {"label": labels.CLASSES.index(row["label"])} for row in rows]
        return pa.Table.from_pylist(rows, schema=LISTING).sort_by("uri")

    def _refuse_labels(self, manifest: Manifest, rows: Sequence[int]) -> NoReturn:
        """Say which rows have another label or none; a label is not printed."""
        column, texts = manifest.columns["label"], manifest.texts("label")
        if empty := [row for row in rows if not texts[row]]:
            raise DataError(f"{self.uri}: column {column} is empty in {manifest.locate(empty)}.")
        num_others = len({_plain_label(texts[row]) for row in rows})
        raise DataError(
            f"{self.uri}: column {column} has {num_others:,} other"
            f" {'label' if num_others == 1 else 'labels'}, in {manifest.locate(rows)}. Choices:"
            f" {', '.join(parse_labels(self.settings.labels))}. Name yours with --labels"
            " normal='No finding' pneumonia='Pneumonia', or leave others out with --other-labels"
            " skip."
        )


def list_set(
    uri: str, settings: SetSettings = DEFAULTS, read_headers: ReadHeaders | None = None
) -> LabeledSet:
    """List a set of labeled radiographs; archives are read as folders are.

    Args:
        uri: a folder, bucket prefix or archive with `train|val|test / NORMAL|PNEUMONIA` in it, a
            folder with such archives, a folder of an archive (`archive.zip!/folder`), or a
            manifest with columns `uri,label[,patient,split,subtype]`, whose URIs may be archive
            members. Names of these folders are compared without case. A row of a manifest without
            a split belongs to train; a subtype that is not given is taken from the file name.
        settings: what the manifest calls its columns and labels, and how patients are known.
        read_headers: reads DICOM headers, for sets whose patients are known by them only.

    Raises:
        DataError: there is nothing, or not a set; an archive or folder of it cannot be listed; a
            manifest lacks a column or a value, has an unknown one, or gives an image two labels,
            splits, patients or subtypes; the patient of an image is not known.
    """
    uri = storage.absolute(uri)
    archive, _ = split_address(uri)
    kind = storage.kind(uri)
    if kind == "nothing" and (archive == uri or storage.kind(archive) != "file"):
        raise DataError(
            f"{uri}: not found. Give a folder, a bucket prefix, an archive or {_MANIFEST} as"
            " --data."
        )
    is_manifest_file = kind == "file" and not archive_kind(uri)
    listed = _list_manifest(uri, settings) if is_manifest_file else _list_layout(uri, settings)
    rows, patients = identify(uri, listed.rows, settings, listed.source, read_headers)
    return dataclasses.replace(listed, rows=rows, patients=patients)


def list_radiographs(uri: str, split: str, settings: SetSettings = DEFAULTS) -> pa.Table:
    """The labeled radiographs of one split; see `list_set` and `LabeledSet.split`."""
    return list_set(uri, settings).split(split)


def _list_layout(uri: str, settings: SetSettings) -> LabeledSet:
    inputs = list_inputs([uri])
    skipped = inputs.skipped
    files: list[Row] = inputs.table().to_pylist()
    rows = _in_layout(uri, files)
    if rows:
        # An archive beside the folders may be the very file that they were unpacked from.
        skipped["archive beside the folders"] += len(inputs.archives)
    else:
        members, other_members = _list_archives(inputs)
        skipped.update(other_members)
        rows = _in_layout(uri, members)
        files += members
    if not rows:
        _refuse_layout(uri, files, skipped, sorted(inputs.other_files))
    listed = {row["uri"] for row in rows}
    skipped += _count_outside(uri, [row for row in files if row["uri"] not in listed])
    return LabeledSet(uri, tuple(rows), +skipped, settings=settings)


def _count_outside(uri: str, files: Iterable[Row]) -> Counter[str]:
    """Count the images that are in no folder of a class, by the folder that they are in."""
    folders: Counter[str] = Counter()
    for row in files:
        path = _path_below(uri, row)[:-1]
        # A class that is not used is one folder, whatever is in it.
        split = next((i for i, part in enumerate(path) if part.lower() in labels.SPLITS), len(path))
        folders["/".join(path[: split + 2]) or "its root"] += 1
    named = folders.most_common(_NUM_NAMED)
    others = folders.total() - sum(count for _, count in named)
    return Counter({f"in {name}": count for name, count in named} | {"in other folders": others})


def _list_archives(inputs: Inputs) -> tuple[list[Row], Counter[str]]:
    """The members of all archives.

    Raises:
        DataError: one of them cannot be listed to its end.
    """
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for file, paths in sorted(inputs.archives.items()):
        table, other_members = list_archive(file, paths)
        rows += table.to_pylist()
        skipped.update(other_members)
    for row in rows:
        if row["status"] and archive_kind(row["uri"]):
            _refuse_part(row)
    return rows, skipped


def _in_layout(uri: str, files: Iterable[Row]) -> list[Row]:
    """Those of the files that the layout labels.

    A set within the folders of a set is passed over; of archives, only if it is a copy.

    Raises:
        DataError: they form more than one set, two archives hold the same image, or a folder
            cannot be listed.
    """
    paths = [(row, _path_below(uri, row)) for row in files]
    roots = {root for _, path in paths if (root := _layout_root(path)) is not None}
    if not roots:
        return []
    root = min(roots, key=lambda parts: (len(parts), parts))
    if others := sorted(other for other in roots if other[: len(root)] != root):
        _refuse_several(uri, root, *others)
    rows: list[Row] = []
    first: dict[tuple[str, ...], Row] = {}
    for row, path in paths:
        below = path[len(root) :]
        if path[: len(root)] != root or not below or below[0].lower() not in labels.SPLITS:
            continue
        if row["uri"].endswith("/"):
            _refuse_part(row)
        if len(below) < 3 or below[1].upper() not in labels.CLASSES:
            continue
        same = first.setdefault(below, row)
        if same["file"] != row["file"]:
            raise DataError(
                f"{uri}: {'/'.join(below)} is in two archives, {same['file']} and {row['file']}."
                " Give one of them as --data."
            )
        rows.append(_labeled(row, below[0].lower(), below[1].upper()) | {"row": -1})
    for row, path in paths:
        other = _layout_root(path)
        if row["place"] and other not in (None, root) and path[len(other or ()) :] not in first:
            _refuse_several(uri, root, other or ())
    return rows


def _path_below(uri: str, row: Row) -> tuple[str, ...]:
    """The parts of a file's path below the root, as if archives were unpacked where they are.

    If the layout is within an archive, the folders that the archive is in do not count.
    """
    file, root = storage.absolute(row["file"]), uri
    member: str = row["uri"][len(row["file"]) + len(SEPARATOR) :]
    if not member:
        end = ("",) if row["uri"].endswith("/") else ()
        return (*file[len(root) :].strip("/").split("/"), *end)
    archive, folder = split_address(root)
    member = member.replace("\\", "/")  # As some Windows programs write it.
    if file == archive:
        member, folders = plain(member)[len(plain(folder)) :].removeprefix("!"), ""
    else:
        folders = posixpath.dirname(file[len(root) :])
    while (inner := split_address(member))[1]:
        member = posixpath.join(posixpath.dirname(inner[0]), inner[1])
    inside = tuple(plain(member).split("/"))
    return (
        inside
        if _layout_root(inside) is not None
        else (*filter(None, plain(folders).split("/")), *inside)
    )


def _layout_root(path: Sequence[str]) -> tuple[str, ...] | None:
    """The folders above `split / CLASS / file`; None if that is not in the path."""
    for i in range(len(path) - 2):
        if path[i].lower() in labels.SPLITS and path[i + 1].upper() in labels.CLASSES:
            return tuple(path[:i])
    return None


def _refuse_several(uri: str, *roots: Sequence[str]) -> NoReturn:
    names = [repr("/".join(parts)) if parts else "its root" for parts in roots]
    raise DataError(
        f"{uri}: holds several sets, in {', '.join(names[:_NUM_NAMED])}. Give one of them as"
        " --data."
    )


def _refuse_layout(
    uri: str, files: Sequence[Row], skipped: Counter[str], other_files: Sequence[str]
) -> NoReturn:
    for row in files:
        if row["uri"].endswith("/"):
            _refuse_part(row)
    if manifests := [file for file in other_files if is_manifest(file)]:
        names = [manifest[len(uri) :].strip("/") for manifest in manifests[:_NUM_NAMED]]
        more = f" and {len(manifests) - _NUM_NAMED:,} more" if len(manifests) > _NUM_NAMED else ""
        raise DataError(
            f"{uri}: no folders {_LAYOUT}; found {len(files):,} files that may be images, and"
            f" {', '.join(names)}{more}. Give --data {manifests[0]}, with columns uri and label."
        )
    if not files:
        raise DataError(f"{uri}: no radiographs found. {in_words(skipped)}")
    folders = Counter("/".join(_path_below(uri, row)[:-1]) or "its root" for row in files)
    named = ", ".join(f"{count:,} in {name}" for name, count in folders.most_common(_NUM_NAMED))
    more = f" and {len(folders) - _NUM_NAMED:,} other folders" if len(folders) > _NUM_NAMED else ""
    raise DataError(
        f"{uri}: not a labeled set. Expected images in {_LAYOUT}, or {_MANIFEST}; found"
        f" {len(files):,} files that may be images: {named}{more}."
    )


def _refuse_part(row: Row) -> NoReturn:
    raise DataError(
        f"{row['uri']}: {row['reason']}. A labeled set has to be complete: restore this part, or"
        " remove it."
    )


def _list_manifest(uri: str, settings: SetSettings) -> LabeledSet:
    manifest = read_manifest(uri, settings.columns, ("uri", "label"))
    if not len(manifest.table):
        raise DataError(f"{uri}: the manifest has no rows.")
    addresses = _entry_addresses(manifest)
    classes = parse_labels(settings.labels)
    cells = {name: manifest.texts(name) for name in ("label", "patient", "subtype")}
    cells["split"] = _splits(manifest)
    label_names = [classes.get(_plain_label(text), "") for text in cells["label"]]
    skip = settings.other_labels == "skip"
    kept = [i for i in range(len(addresses)) if label_names[i] or not skip]
    first = {addresses[i]: i for i in reversed(kept)}
    # Labels of one class are one label, and other labels are compared as they are written.
    compared = cells | {"label": [a or b for a, b in zip(label_names, cells["label"], strict=True)]}
    for name, texts in compared.items():
        if rows := [i for i in kept if texts[i] != texts[first[addresses[i]]]]:
            pair = " and ".join(manifest.locate([i]) for i in (first[addresses[rows[0]]], rows[0]))
            more = f"; {len(rows) - 1:,} more" if len(rows) > 1 else ""
            raise DataError(f"{uri}: one image has two {name}s, in {pair}{more}.")
    skipped = Counter(
        {
            "with another label": len(addresses) - len(kept),
            "named again": len(kept) - len(first),
        }
    )
    inputs = Inputs()
    inputs.add_named(first, uri)
    files: list[Row] = inputs.table().to_pylist() + _list_archives(inputs)[0]
    by_address = {address_in_listing(row["uri"], row["file"]): row for row in files}
    if folders := [i for address, i in first.items() if address not in by_address]:
        raise DataError(
            f"{uri}: a folder of an archive, not an image, in {manifest.locate(sorted(folders))}."
        )
    rows_of_set = []
    for address, i in sorted(first.items(), key=operator.itemgetter(1)):
        row = _labeled(by_address[address], cells["split"][i], label_names[i]) | {"row": i}
        given = {name: cells[name][i] for name in ("patient", "subtype") if cells[name][i]}
        rows_of_set.append(row | given)
    return LabeledSet(uri, tuple(rows_of_set), +skipped, manifest, settings)


def _plain_label(text: str) -> str:
    """A label as it is compared: without case, and 1 for 1.0, as tables with gaps have it."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.casefold())


def _splits(manifest: Manifest) -> list[str]:
    """The split of each row.

    Raises:
        DataError: a cell names none.
    """
    texts = manifest.texts("split")
    splits = [_SPLITS.get(text.lower(), "") if text else "train" for text in texts]
    if unknown := [i for i, split in enumerate(splits) if not split]:
        raise DataError(
            f"{manifest.uri}: column {manifest.columns['split']} has an unknown split in"
            f" {manifest.locate(unknown)}. Choices: {', '.join(labels.SPLITS)}."
        )
    return splits


def _entry_addresses(manifest: Manifest) -> list[str]:
    """The address of each row, in the form that a listing has.

    Raises:
        DataError: there is none, or it is that of an archive.
    """
    addresses = []
    for i, text in enumerate(manifest.required_texts("uri")):
        try:
            address = entry_address(manifest.uri, text)
        except StorageError as error:
            raise DataError(f"{manifest.uri}: {manifest.locate([i])}: {error}") from None
        if archive_kind(address) and not split_address(address)[1]:
            raise DataError(
                f"{manifest.uri}: an archive, not an image, in {manifest.locate([i])}. Name a"
                f" member, as in archive.zip{SEPARATOR}image.jpeg."
            )
        addresses.append(address)
    return addresses


def _labeled(row: Row, split: str, label: str) -> Row:
    path = row["uri"].replace("\\", "/") if row["uri"] != row["file"] else row["uri"]
    is_pneumonia = label.upper() in (labels.CLASSES[1], "1")
    return row | {
        "split": split,
        "label": label,
        "patient": "",
        "subtype": labels.subtype(path) if is_pneumonia else "",
    }


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as an array, (N,); strings as numpy strings."""
    return np.asarray(table[name].to_pylist())
