"""Labeled radiographs: a folder, bucket or archive in the layout of Kermany et al., or a manifest.

The layout is `train|val|test / NORMAL|PNEUMONIA`, at the root or below other folders.
"""

import dataclasses
import functools
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import labels, storage
from cxr.errors import DataError, StorageError
from cxr.sources import texts
from cxr.sources.archives import SEPARATOR, archive_kind
from cxr.sources.inputs import (
    INVENTORY,
    Entry,
    InputPages,
    Inputs,
    Page,
    address_in_listing,
    entry_address,
    in_words,
    list_archive,
    plain,
    split_address,
)
from cxr.sources.manifests import Manifest, is_manifest, read_manifest
from cxr.sources.patients import NOT_IDENTIFIED, PatientSource, ReadHeaders, identify
from cxr.sources.settings import SetSettings, parse_labels

_FILES: Final = pa.schema([column for column in INVENTORY if column.name not in Entry._fields])

_REPEATED: Final = pa.dictionary(pa.int32(), pa.string())
"""Text that many rows share."""

LISTING: Final = pa.schema(
    [
        *_FILES,
        ("split", _REPEATED),
        ("label", pa.int8()),
        ("patient", pa.string()),
        ("patient_digest", _REPEATED),
        ("subtype", _REPEATED),
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

DEFAULTS: Final = SetSettings()


@dataclass(frozen=True)
class LabeledSet:
    """A set of labeled radiographs, listed once."""

    uri: str
    table: pa.Table
    """A row a radiograph: the columns of `LISTING`, but `label` is null where a manifest has none
    or another; and `row`, int64, the row of the manifest from 0, -1 without one."""
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
        patients, digests = texts.encode(self.table["patient_digest"])
        splits, _ = texts.encode(self.table["split"])
        # The first image of each patient in each split, in the order of the set.
        _, first = np.unique(patients * len(labels.SPLITS) + splits, return_index=True)
        first.sort()
        is_shared = np.bincount(patients[first], minlength=len(digests)) > 1
        if num_shared := int(is_shared.sum()):
            patient = patients[first[np.argmax(is_shared[patients[first]])]]
            images = self.table.take(first[patients[first] == patient])
            one, other, *_ = images.select(["uri", "split"]).to_pylist()
            are = "1 patient is" if num_shared == 1 else f"{num_shared:,} patients are"
            raise DataError(
                f"{self.uri}: {are} in two splits, first with {one['uri']} in {one['split']} and"
                f" {other['uri']} in {other['split']}. Figures would be too good; divide the data"
                f" by patient. {self.patients.sentence}"
            )

    def find_split(self, name: str) -> NDArray[np.int64]:
        """The positions in `table` of the radiographs of a split."""
        return np.flatnonzero(pc.equal(self.table["split"], name))

    def split(self, name: str) -> pa.Table:
        """The radiographs of one split.

        Args:
            name: `"train"`, `"val"` or `"test"`.

        Returns:
            A table of schema `LISTING`, sorted by uri.

        Raises:
            DataError: the split or one of its classes is missing, or a label is unknown.
        """
        rows = self.find_split(name)
        if not len(rows):
            counts = {split: len(self.find_split(split)) for split in labels.SPLITS}
            listed = ", ".join(f"{count:,} of {s}" for s, count in counts.items() if count)
            raise DataError(
                f"{self.uri}: no radiographs of split {name!r}; found {listed}. A folder"
                f" {'|'.join(labels.SPLITS)}, or the column split of a manifest, says where a"
                " radiograph belongs; without that column it is train."
            )
        label = self.table["label"].take(rows)
        if self.source and label.null_count:
            others = self.table["row"].take(rows).filter(pc.is_null(label))
            self._refuse_labels(self.source, others.to_numpy())
        num_images = np.bincount(label.to_numpy(), minlength=len(labels.CLASSES))
        counts = dict(zip(labels.CLASSES, num_images, strict=True))
        if missing := [label for label in labels.CLASSES if not counts[label]]:
            listed = ", ".join(f"{counts[label]:,} {label}" for label in labels.CLASSES)
            raise DataError(
                f"{self.uri}: split {name!r} has no {' and no '.join(missing)} ({listed})."
            )
        order = pc.sort_indices(self.table["uri"].take(rows)).to_numpy()
        return self.table.select(LISTING.names).take(rows[order])

    def _refuse_labels(self, manifest: Manifest, rows: NDArray[np.int64]) -> NoReturn:
        """Say which rows have another label or none; a label is not printed."""
        column, cells = manifest.columns["label"], manifest.cells("label").take(rows)
        if len(empty := rows[np.asarray(pc.equal(cells, ""))]):
            raise DataError(f"{self.uri}: column {column} is empty in {manifest.locate(empty)}.")
        num_others = len(set(map(_plain_label, texts.encode(cells)[1].to_pylist())))
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
    table, patients = identify(uri, listed.table, settings, listed.source, read_headers)
    return dataclasses.replace(
        listed, table=table.select([*LISTING.names, "row"]), patients=patients
    )


def list_radiographs(uri: str, split: str, settings: SetSettings = DEFAULTS) -> pa.Table:
    """The labeled radiographs of one split; see `list_set` and `LabeledSet.split`."""
    return list_set(uri, settings).split(split)


def _list_layout(uri: str, settings: SetSettings) -> LabeledSet:
    tables = [_FILES.empty_table()]
    inputs = Inputs()
    skipped: Counter[str] = Counter()
    manifests: list[str] = []
    for page in InputPages([uri]):
        tables.append(page.table().select(_FILES.names))
        inputs.add_page(Page(requests=page.requests))
        skipped.update(name for _, name in page.other_files)
        manifests += [file for file, _ in page.other_files if is_manifest(file)]
    files = pa.concat_tables(tables)
    if not len(files) and not inputs.archives:
        raise DataError(f"{uri}: no radiographs found. {in_words(skipped)}")
    layout = _find_layout(uri, files)
    if layout.any():
        # An archive beside the folders may be the very file that they were unpacked from.
        skipped["archive beside the folders"] += len(inputs.archives)
    else:
        members, other_members = _list_archives(inputs)
        skipped.update(other_members)
        layout = layout.behind(_find_layout(uri, members))
        files = pa.concat_tables([files, members])
    if not layout.any():
        _refuse_layout(uri, files, skipped, sorted(manifests))
    is_labeled = layout.split >= 0
    skipped += _count_outside(uri, files.filter(~is_labeled))
    table = files if is_labeled.all() else files.filter(is_labeled)
    table = _add_labels(table, layout.split[is_labeled], pa.array(layout.label[is_labeled]))
    row = pa.array(np.full(len(table), -1, dtype=np.int64))
    return LabeledSet(uri, table.append_column("row", row), +skipped, settings=settings)


def _count_outside(uri: str, files: pa.Table) -> Counter[str]:
    """Count the images that are in no folder of a class, by the folder that they are in."""
    folders: Counter[str] = Counter()
    for (text,) in _cells(_paths_below(uri, files)):
        path = text.split("/")[:-1]
        # A class that is not used is one folder, whatever is in it.
        split = next((i for i, part in enumerate(path) if part.lower() in labels.SPLITS), len(path))
        folders["/".join(path[: split + 2]) or "its root"] += 1
    named = folders.most_common(_NUM_NAMED)
    others = folders.total() - sum(count for _, count in named)
    return Counter({f"in {name}": count for name, count in named} | {"in other folders": others})


def _list_archives(inputs: Inputs) -> tuple[pa.Table, Counter[str]]:
    """The members of all archives, of schema `_FILES`.

    Raises:
        DataError: one of them cannot be listed to its end.
    """
    tables = [_FILES.empty_table()]
    skipped: Counter[str] = Counter()
    for file, paths in sorted(inputs.archives.items()):
        table, other_members = list_archive(file, paths)
        tables.append(table.select(_FILES.names))
        skipped.update(other_members)
    members = pa.concat_tables(tables)
    unread = members.filter(pc.not_equal(members["status"], ""))
    for uri, reason in _cells(unread["uri"], unread["reason"]):
        if archive_kind(uri):
            _refuse_part(uri, reason)
    return members, skipped


@dataclass(frozen=True)
class _Layout:
    """What the layout says of each file of a table."""

    split: NDArray[np.int8]
    """Index of `labels.SPLITS`, -1 where a file is in no folder of a class, (N,)."""
    label: NDArray[np.int8]
    """Index of `labels.CLASSES`, (N,)."""

    def any(self) -> bool:
        """Whether it labels a file."""
        return bool((self.split >= 0).any())

    def behind(self, other: "_Layout") -> "_Layout":
        """This one, and behind it that of more files."""
        return _Layout(
            np.concatenate([self.split, other.split]), np.concatenate([self.label, other.label])
        )


def _find_layout(uri: str, files: pa.Table) -> _Layout:
    """Which of the files the layout labels, and how.

    A set within the folders of a set is passed over; of archives, only if it is a copy.

    Raises:
        DataError: they form more than one set, two archives hold the same image, or a folder
            cannot be listed.
    """
    paths = _paths_below(uri, files)
    roots = {
        root for (path,) in _cells(paths) if (root := _layout_root(path.split("/"))) is not None
    }
    if not roots:
        return _Layout(np.full(len(files), -1, np.int8), np.zeros(len(files), np.int8))
    root = min(roots, key=lambda parts: (len(parts), parts))
    if others := sorted(other for other in roots if other[: len(root)] != root):
        _refuse_several(uri, root, *others)

    def find_class(path: str, uri: str, reason: str) -> int:
        """The index of split and class together; -1 for neither."""
        parts = path.split("/")
        below = parts[len(root) :]
        if tuple(parts[: len(root)]) != root or not below or below[0].lower() not in labels.SPLITS:
            return -1
        if uri.endswith("/"):
            _refuse_part(uri, reason)
        if len(below) < 3 or below[1].upper() not in labels.CLASSES:
            return -1
        split, label = labels.SPLITS.index(below[0].lower()), labels.CLASSES.index(below[1].upper())
        return split * len(labels.CLASSES) + label

    classes = texts.compute(find_class, paths, files["uri"], files["reason"], dtype=pa.int8())
    split, label = np.divmod(classes.to_numpy(), len(labels.CLASSES))
    if pc.any(pc.greater(pc.list_value_length(files["place"]), 0)).as_py():
        _check_archives(uri, files, paths, roots - {root}, root, split >= 0)
    return _Layout(split, label)


def _check_archives(
    uri: str,
    members: pa.Table,
    paths: pa.ChunkedArray,
    others: Collection[tuple[str, ...]],
    root: tuple[str, ...],
    is_labeled: NDArray[np.bool_],
) -> None:
    """Refuse members of archives that form a second set, other than copies of the first one's.

    Args:
        uri: of the set.
        members: of schema `_FILES`.
        paths: of the members, see `_path_below`.
        others: the folders above other sets, below `root`.
        root: the folders above the set.
        is_labeled: whether each member is in the set, (N,).

    Raises:
        DataError: there is such a member, or two archives hold the same one.
    """

    def name_in_set(path: str) -> str:
        parts = path.split("/")
        return "/".join(parts[len(_layout_root(parts) or ()) :])

    labeled_paths = paths.filter(pa.array(is_labeled))
    names = texts.compute(lambda path: "/".join(path.split("/")[len(root) :]), labeled_paths)
    archives, archive_uris = texts.encode(members["file"].filter(pa.array(is_labeled)))
    first = archives[texts.find_first(names)]
    if len(copies := np.flatnonzero(archives != first)):
        member = copies[0]
        one, other = (archive_uris[int(k[member])].as_py() for k in (first, archives))
        raise DataError(
            f"{uri}: {names[int(member)].as_py()} is in two archives, {one} and {other}."
            " Give one of them as --data."
        )
    if not others:
        return
    is_known = pc.is_in(texts.compute(name_in_set, paths), names)
    is_member = pc.greater(pc.list_value_length(members["place"]), 0)
    for (path,) in _cells(paths.filter(pc.and_not(is_member, is_known))):
        if (other := _layout_root(path.split("/"))) in others:
            _refuse_several(uri, root, other or ())


def _cells(*columns: pa.ChunkedArray) -> Iterable[tuple[Any, ...]]:
    """The cells of columns of the same length, row by row."""
    return (row for rows in texts.batches(*columns) for row in rows)


def _paths_below(uri: str, files: pa.Table) -> pa.ChunkedArray:
    """The path of each file below the root, see `_path_below`."""
    return texts.compute(functools.partial(_path_below, uri), files["uri"], files["file"])


def _path_below(root: str, uri: str, file: str) -> str:
    """A file's path below the root, as if archives were unpacked where they are.

    If the layout is within an archive, the folders that the archive is in do not count.
    """
    member = uri[len(file) + len(SEPARATOR) :]
    file = storage.absolute(file)
    if not member:
        path = file[len(root) :].strip("/")
        return f"{path}/" if uri.endswith("/") else path
    archive, folder = split_address(root)
    member = member.replace("\\", "/")  # As some Windows programs write it.
    if file == archive:
        member, folders = plain(member)[len(plain(folder)) :].removeprefix("!"), ""
    else:
        folders = posixpath.dirname(file[len(root) :])
    while (inner := split_address(member))[1]:
        member = posixpath.join(posixpath.dirname(inner[0]), inner[1])
    inside = plain(member)
    if _layout_root(inside.split("/")) is not None:
        return inside
    return "/".join([*filter(None, [plain(folders)]), inside])


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
    uri: str, files: pa.Table, skipped: Counter[str], manifests: Sequence[str]
) -> NoReturn:
    unread = files.filter(pc.ends_with(files["uri"], "/"))
    for row in unread.slice(0, 1).to_pylist():
        _refuse_part(row["uri"], row["reason"])
    if manifests:
        names = [manifest[len(uri) :].strip("/") for manifest in manifests[:_NUM_NAMED]]
        more = f" and {len(manifests) - _NUM_NAMED:,} more" if len(manifests) > _NUM_NAMED else ""
        raise DataError(
            f"{uri}: no folders {_LAYOUT}; found {len(files):,} files that may be images, and"
            f" {', '.join(names)}{more}. Give --data {manifests[0]}, with columns uri and label."
        )
    if not len(files):
        raise DataError(f"{uri}: no radiographs found. {in_words(skipped)}")
    paths = (path for (path,) in _cells(_paths_below(uri, files)))
    folders = Counter(path.rpartition("/")[0] or "its root" for path in paths)
    named = ", ".join(f"{count:,} in {name}" for name, count in folders.most_common(_NUM_NAMED))
    more = f" and {len(folders) - _NUM_NAMED:,} other folders" if len(folders) > _NUM_NAMED else ""
    raise DataError(
        f"{uri}: not a labeled set. Expected images in {_LAYOUT}, or {_MANIFEST}; found"
        f" {len(files):,} files that may be images: {named}{more}."
    )


def _refuse_part(uri: str, reason: str) -> NoReturn:
    raise DataError(
        f"{uri}: {reason}. A labeled set has to be complete: restore this part, or remove it."
    )


def _list_manifest(uri: str, settings: SetSettings) -> LabeledSet:
    manifest = read_manifest(uri, settings.columns, ("uri", "label"))
    if not len(manifest.table):
        raise DataError(f"{uri}: the manifest has no rows.")
    addresses = _entry_addresses(manifest)
    classes = parse_labels(settings.labels)
    cells = {name: manifest.cells(name) for name in ("label", "patient", "subtype")}
    cells["split"] = _splits(manifest)
    indices = {name: index for index, name in enumerate(labels.CLASSES)}
    label = texts.compute(
        functools.cache(lambda text: indices.get(classes.get(_plain_label(text), ""))),
        cells["label"],
        dtype=pa.int8(),
    )
    kept = np.arange(len(addresses))
    if settings.other_labels == "skip":
        kept = np.flatnonzero(pc.is_valid(label))
    first = kept[texts.find_first(addresses.take(kept))]
    is_again = first != kept
    _check_repeated(manifest, cells, classes, first[is_again], kept[is_again])
    chosen = kept[~is_again]
    skipped = Counter(
        {"with another label": len(addresses) - len(kept), "named again": len(kept) - len(chosen)}
    )
    if len(chosen) < len(addresses):
        addresses, label = addresses.take(chosen), label.take(chosen)
        cells = {name: column.take(chosen) for name, column in cells.items()}
    table = _list_named(manifest, addresses, chosen)
    split = pc.index_in(cells["split"], pa.array(labels.SPLITS)).to_numpy()
    table = _add_labels(table, split, label, cells["patient"], cells["subtype"])
    table = table.append_column("row", pa.array(chosen))
    return LabeledSet(uri, table, +skipped, manifest, settings)


def _check_repeated(
    manifest: Manifest,
    cells: Mapping[str, pa.ChunkedArray],
    classes: Mapping[str, str],
    first: NDArray[np.int64],
    again: NDArray[np.int64],
) -> None:
    """Check that rows say of an image what the first row that names it says.

    Args:
        manifest: that names them.
        cells: its columns, by our names.
        classes: the class of each label.
        first: the first row that names the image of each of `again`, (N,).
        again: rows that name an image again, sorted, (N,).

    Raises:
        DataError: two rows differ.
    """

    def compare(name: str, text: str) -> str:
        # Labels of one class are one label, and other labels are compared as they are written.
        return (name == "label" and classes.get(_plain_label(text))) or text

    for name, column in cells.items():
        one, other = (
            texts.compute(functools.partial(compare, name), column.take(rows))
            for rows in (first, again)
        )
        if len(pairs := np.flatnonzero(pc.not_equal(one, other))):
            pair = " and ".join(manifest.locate([row[pairs[0]]]) for row in (first, again))
            more = f"; {len(pairs) - 1:,} more" if len(pairs) > 1 else ""
            raise DataError(f"{manifest.uri}: one image has two {name}s, in {pair}{more}.")


def _list_named(
    manifest: Manifest, addresses: pa.ChunkedArray, rows: NDArray[np.int64]
) -> pa.Table:
    """The files and archive members that a manifest names.

    Args:
        manifest: that names them.
        addresses: of the images, each once, as `_entry_addresses` has them.
        rows: that name them, sorted, (N,).

    Returns:
        A table of schema `_FILES` in the order of the addresses.

    Raises:
        DataError: one is a folder of an archive, or an archive cannot be listed to its end.
    """
    tables = [_FILES.empty_table()]
    inputs = Inputs()
    for named in texts.batches(addresses):
        page = Page()
        page.add_named((address for (address,) in named), manifest.uri, list)
        tables.append(page.table().select(_FILES.names))
        inputs.add_page(Page(requests=page.requests))
    files = pa.concat_tables(tables)
    if files["uri"].equals(addresses):
        return files
    members, _ = _list_archives(inputs)
    # Of members of the same name the last one counts.
    members = members.take(np.arange(len(members))[::-1])
    listed = texts.compute(address_in_listing, members["uri"], members["file"])
    listed = pa.chunked_array([*files["uri"].chunks, *listed.chunks], pa.string())
    positions = pc.index_in(addresses, listed)
    if positions.null_count:
        folders = manifest.locate(rows[np.asarray(pc.is_null(positions))])
        raise DataError(f"{manifest.uri}: a folder of an archive, not an image, in {folders}.")
    return pa.concat_tables([files, members]).take(positions)


def _plain_label(text: str) -> str:
    """A label as it is compared: without case, and 1 for 1.0, as tables with gaps have it."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.casefold())


def _splits(manifest: Manifest) -> pa.ChunkedArray:
    """The split of each row.

    Raises:
        DataError: a cell names none.
    """
    name_split = functools.cache(lambda text: _SPLITS.get(text.lower(), "") if text else "train")
    splits = texts.compute(name_split, manifest.cells("split"))
    if len(unknown := np.flatnonzero(pc.equal(splits, ""))):
        raise DataError(
            f"{manifest.uri}: column {manifest.columns['split']} has an unknown split in"
            f" {manifest.locate(unknown)}. Choices: {', '.join(labels.SPLITS)}."
        )
    return splits


def _entry_addresses(manifest: Manifest) -> pa.ChunkedArray:
    """The address of each row, in the form that a listing has.

    Raises:
        DataError: there is none, or it is that of an archive.
    """

    def find_address(row: int, text: str) -> str:
        try:
            address = entry_address(manifest.uri, text)
        except StorageError as error:
            raise DataError(f"{manifest.uri}: {manifest.locate([row])}: {error}") from None
        if archive_kind(address) and not split_address(address)[1]:
            raise DataError(
                f"{manifest.uri}: an archive, not an image, in {manifest.locate([row])}. Name a"
                f" member, as in archive.zip{SEPARATOR}image.jpeg."
            )
        return address

    cells = manifest.required_cells("uri")
    return texts.compute(find_address, pa.array(np.arange(len(cells))), cells)


def _add_labels(
    files: pa.Table,
    split: NDArray[np.integer[Any]],
    label: pa.Array | pa.ChunkedArray,
    patient: pa.ChunkedArray | None = None,
    subtype: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Add what is known of radiographs.

    Args:
        files: of schema `_FILES`.
        split: indices of `labels.SPLITS`, (N,).
        label: indices of `labels.CLASSES`, null for none of them, (N,).
        patient: what identifies the patients, (N,).
        subtype: those that are given, (N,); else the file name says it.

    Returns:
        `files` with the columns split, label, patient and subtype.
    """

    def find_subtype(uri: str, file: str, index: int | None, given: str) -> str:
        path = uri.replace("\\", "/") if uri != file else uri
        return given or (labels.subtype(path) if index == 1 else "")

    empty = pa.repeat("", len(files))
    subtypes = texts.compute(
        find_subtype, files["uri"], files["file"], label, empty if subtype is None else subtype
    )
    return (
        files.append_column("split", texts.share(split, pa.array(labels.SPLITS)))
        .append_column("label", label)
        .append_column("patient", empty if patient is None else patient)
        .append_column("subtype", texts.share(*texts.rank(subtypes)))
    )


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as an array, (N,); strings as numpy strings."""
    return np.asarray(table[name].to_pylist())
