"""Labeled radiographs: a folder, bucket or archive in the layout of Kermany et al., or a manifest.

The layout is `train|val|test / NORMAL|PNEUMONIA`, at the root or below other folders.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr import labels, storage
from cxr.errors import DataError
from cxr.sources.archives import SEPARATOR, archive_kind
from cxr.sources.inputs import (
    INVENTORY,
    Inputs,
    in_words,
    list_archive,
    list_inputs,
    plain,
    split_address,
)
from cxr.sources.manifests import beside, read_manifest, required, texts
from cxr.sources.settings import SetSettings

LISTING: Final = pa.schema(
    [
        *INVENTORY,
        ("split", pa.string()),
        ("label", pa.int64()),
        ("patient", pa.string()),
        ("subtype", pa.string()),
    ]
)
"""The columns of a listing, one row per radiograph: those of an inventory, and what is known of the
radiograph. `label` is an index of `labels.CLASSES`."""

_LAYOUT: Final = f"{'|'.join(labels.SPLITS)} / {'|'.join(labels.CLASSES)}"

_MANIFEST: Final = "a CSV or Parquet manifest (uri,label[,patient,split,subtype])"

_NUM_NAMED: Final = 3
"""Folders named in a message."""

Row = dict[str, Any]

DEFAULTS: Final = SetSettings()


@dataclass(frozen=True)
class LabeledSet:
    """A set of labeled radiographs, listed once."""

    uri: str
    rows: tuple[Row, ...]
    """Of schema `LISTING`, but `label` is text: a class name, or what a manifest says."""
    skipped: Counter[str]
    """Files that were passed over, by type."""

    def split(self, name: str) -> pa.Table:
        """The radiographs of one split.

        Args:
            name: `"train"`, `"val"` or `"test"`.

        Returns:
            A table of schema `LISTING`, sorted by uri.

        Raises:
            DataError: the split or one of its classes is missing, or a label is unknown.
        """
        rows = [row | {"label": self._label(row)} for row in self.rows if row["split"] == name]
        if not rows:
            counts = Counter(row["split"] for row in self.rows)
            listed = ", ".join(f"{counts[s]:,} of {s}" for s in labels.SPLITS if counts[s])
            raise DataError(
                f"{self.uri}: no radiographs of split {name!r}; found {listed}. A folder"
                f" {'|'.join(labels.SPLITS)}, or the column split of a manifest, says where a"
                " radiograph belongs; without that column it is train."
            )
        counts = Counter(row["label"] for row in rows)
        missing = [name for label, name in enumerate(labels.CLASSES) if not counts[label]]
        if missing:
            listed = ", ".join(f"{counts[i]:,} {name}" for i, name in enumerate(labels.CLASSES))
            raise DataError(
                f"{self.uri}: split {name!r} has no {' and no '.join(missing)} ({listed})."
            )
        return pa.Table.from_pylist(rows, schema=LISTING).sort_by("uri")

    def _label(self, row: Row) -> int:
        indices = {name: i for i, name in enumerate(labels.CLASSES)} | {"0": 0, "1": 1}
        text = row["label"]
        if not text:
            raise DataError(f"{self.uri}: row {row['row'] + 1} of the manifest has no label.")
        if text.upper() not in indices:
            raise DataError(
                f"{self.uri}: unknown label {text!r}. Choices: {', '.join(labels.CLASSES)}, 0, 1."
            )
        return indices[text.upper()]


def list_set(uri: str, settings: SetSettings = DEFAULTS) -> LabeledSet:  # noqa: ARG001
    """List a set of labeled radiographs; archives are read as folders are.

    Args:
        uri: a folder, bucket prefix or archive with `train|val|test / NORMAL|PNEUMONIA` in it, a
            folder with such archives, a folder of an archive (`archive.zip!/folder`), or a CSV or
            Parquet manifest with columns `uri,label[,patient,split,subtype]`, whose URIs may be
            archive members. A row of a manifest without a split belongs to train; patient and
            subtype that are not given are taken from the file name.

    Raises:
        DataError: there is nothing, or not a set; an archive or folder of it cannot be listed; a
            manifest lacks a column or a value, has an unknown one, or names an image twice.
    """
    uri = storage.absolute(uri)
    archive, _ = split_address(uri)
    kind = storage.kind(uri)
    if kind == "nothing" and (archive == uri or storage.kind(archive) != "file"):
        raise DataError(
            f"{uri}: not found. Give a folder, a bucket prefix, an archive or {_MANIFEST} as"
            " --data."
        )
    is_manifest = kind == "file" and not archive_kind(uri)
    return _list_manifest(uri) if is_manifest else _list_layout(uri)


def list_radiographs(uri: str, split: str) -> pa.Table:
    """The labeled radiographs of one split; see `list_set` and `LabeledSet.split`."""
    return list_set(uri).split(split)


def _list_layout(uri: str) -> LabeledSet:
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
        _refuse_layout(uri, files, skipped)
    skipped["image outside the folders of the classes"] += len(files) - len(rows)
    return LabeledSet(uri, tuple(rows), +skipped)


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
        if path[: len(root)] != root or not below or below[0] not in labels.SPLITS:
            continue
        if row["uri"].endswith("/"):
            _refuse_part(row)
        if len(below) < 3 or below[1] not in labels.CLASSES:
            continue
        same = first.setdefault(below, row)
        if same["file"] != row["file"]:
            raise DataError(
                f"{uri}: {'/'.join(below)} is in two archives, {same['file']} and {row['file']}."
                " Give one of them as --data."
            )
        rows.append(_labeled(row, below[0], below[1]))
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
        if path[i] in labels.SPLITS and path[i + 1] in labels.CLASSES:
            return tuple(path[:i])
    return None


def _refuse_several(uri: str, *roots: Sequence[str]) -> NoReturn:
    names = [repr("/".join(parts)) if parts else "its root" for parts in roots]
    raise DataError(
        f"{uri}: holds several sets, in {', '.join(names[:_NUM_NAMED])}. Give one of them as"
        " --data."
    )


def _refuse_layout(uri: str, files: Sequence[Row], skipped: Counter[str]) -> NoReturn:
    for row in files:
        if row["uri"].endswith("/"):
            _refuse_part(row)
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


def _list_manifest(uri: str) -> LabeledSet:
    table = read_manifest(uri)
    if missing := {"uri", "label"} - set(table.column_names):
        raise DataError(
            f"{uri}: the manifest lacks column {', '.join(sorted(missing))}."
            f" Expected uri,label[,patient,split]; found {', '.join(table.column_names)}."
        )
    uris = [required(uri, "uri", i, text) for i, text in enumerate(texts(table, "uri"))]
    addresses = [_entry_address(uri, i, text) for i, text in enumerate(uris)]
    if twice := [address for address, count in Counter(addresses).items() if count > 1]:
        raise DataError(f"{uri}: {len(twice)} URIs stand twice, the first {twice[0]}.")
    splits = [text or "train" for text in texts(table, "split")]
    if unknown := sorted(set(splits) - set(labels.SPLITS)):
        raise DataError(
            f"{uri}: unknown split {unknown[0]!r}. Choices: {', '.join(labels.SPLITS)}."
        )
    inputs = Inputs()
    inputs.add_named(addresses, uri)
    files: list[Row] = inputs.table().to_pylist() + _list_archives(inputs)[0]
    by_address = {_row_address(row): row for row in files}
    names = {name: texts(table, name) for name in ("label", "patient", "subtype")}
    rows = []
    for i, address in enumerate(addresses):
        if address not in by_address:
            raise DataError(
                f"{uri}: row {i + 1} of the manifest names a folder of an archive, not an image:"
                f" {address}."
            )
        label = names["label"][i]
        row = _labeled(by_address[address], splits[i], label) | {"row": i}
        given = {name: names[name][i] for name in ("patient", "subtype") if names[name][i]}
        rows.append(row | given)
    return LabeledSet(uri, tuple(rows), Counter())


def _entry_address(manifest: str, row: int, text: str) -> str:
    """The address that an entry of a manifest means, in the one form that a listing has."""
    file, path = split_address(text)
    file = storage.printable(beside(manifest, file))
    if not path and archive_kind(file):
        raise DataError(
            f"{manifest}: row {row + 1} of the manifest names an archive, not an image: {file}."
            f" Name a member, as in archive.zip{SEPARATOR}image.jpeg."
        )
    return f"{file}{SEPARATOR}{plain(path)}" if path else file


def _row_address(row: Row) -> str:
    file, member = row["file"], row["uri"][len(row["file"]) + len(SEPARATOR) :]
    return f"{file}{SEPARATOR}{plain(member)}" if member else file


def _labeled(row: Row, split: str, label: str) -> Row:
    path = row["uri"].replace("\\", "/") if row["uri"] != row["file"] else row["uri"]
    is_pneumonia = label.upper() in (labels.CLASSES[1], "1")
    return row | {
        "split": split,
        "label": label,
        "patient": labels.patient_key(path),
        "subtype": labels.subtype(path) if is_pneumonia else "",
    }


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as an array, (N,); strings as numpy strings."""
    return np.asarray(table[name].to_pylist())
