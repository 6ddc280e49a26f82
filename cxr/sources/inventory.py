"""What is to be scored: every file that may be a radiograph, once, each with its place.

Nothing that could be a radiograph is left out: a file or archive that cannot be read stands in the
list with the reason. Evident other files are counted by kind instead.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from cxr import storage
from cxr.errors import DataError, StorageError
from cxr.sources.archives import (
    SEPARATOR,
    Step,
    archive_kind,
    check_size,
    list_members,
    open_archive,
)
from cxr.sources.manifests import beside, read_manifest, required, texts
from cxr.sources.names import passed_over
from cxr.storage import File

INVENTORY: Final = pa.schema(
    [
        ("uri", pa.string()),
        ("file", pa.string()),
        (
            "place",
            pa.list_(
                pa.struct(
                    [("kind", pa.string())]
                    + [(n, pa.int64()) for n in ("offset", "packed", "size", "method", "crc")]
                )
            ),
        ),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("warnings", pa.list_(pa.string())),
    ]
)
"""The columns of an inventory, a row a file or member. `file` is what storage opens, `place` the
steps from there; `status` and `reason` are set where it is known already that nothing can be read;
`size` in bytes, -1 if unknown."""

_GLOB: Final = re.compile(r"[*?\[]")


@dataclass
class Found:
    """What the inputs name."""

    files: dict[str, File] = field(default_factory=dict)
    """Files that may be radiographs, by URI."""
    archives: dict[str, list[str] | None] = field(default_factory=dict)
    """Paths that are wanted of each archive, None for all."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are evidently no radiographs, by kind."""

    def table(self) -> pa.Table:
        """The files, of schema `INVENTORY`."""
        return _table(_row(file) for file in self.files.values())


def list_inputs(inputs: Sequence[str]) -> Found:
    """Find every file that the inputs name; archives are found, not yet opened.

    Args:
        inputs: files, folders, globs, bucket prefixes, archives, `archive.zip!/path` addresses, and
            CSV or Parquet manifests with a column `uri`, in any mix.

    Raises:
        DataError: an input is not there, or nothing at all was found.
        StorageError: a folder or bucket cannot be listed.
    """
    found = Found()
    for each in inputs:
        _list_input(found, storage.absolute(each))
    if not found.files and not found.archives:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.skipped.items())
        raise DataError(
            f"{', '.join(inputs)}: no radiographs found. Passed over: {kinds or 'nothing'}."
        )
    return found


def _list_input(found: Found, uri: str) -> None:
    archive, _, path = uri.partition(SEPARATOR)
    if path and archive_kind(archive):
        _want(found, archive, path)
        return
    match storage.kind(uri):
        case "file" if archive_kind(uri):
            _want(found, uri, None)
        case "file" if uri.lower().endswith((".csv", ".parquet")):
            for entry in _manifest(uri):
                _name(found, entry)
        case "file":
            _name(found, uri)
        case "folder":
            _sift(found, storage.list_files(uri), uri)
        case _ if _GLOB.search(uri):
            root = uri[: _GLOB.search(uri).start()].rpartition("/")[0] or "/"  # type: ignore[union-attr]
            pattern = re.compile(_translate(uri))
            matching = [f for f in storage.list_files(root) if pattern.fullmatch(f.uri)]
            if not matching:
                raise DataError(f"{uri}: no file matches.")
            _sift(found, matching, root)
        case _:
            raise DataError(
                f"{uri}: not found. Give files, folders, bucket prefixes, archives, globs, or a CSV"
                " or Parquet manifest with a column uri."
            )


def _manifest(uri: str) -> list[str]:
    table = read_manifest(uri)
    if "uri" not in table.column_names:
        raise DataError(
            f"{uri}: the manifest lacks column uri; found {', '.join(table.column_names)}."
        )
    return [beside(uri, required(uri, "uri", i, u)) for i, u in enumerate(texts(table, "uri"))]


def _name(found: Found, uri: str) -> None:
    """A file that was named itself is listed whatever its name."""
    archive, _, path = uri.partition(SEPARATOR)
    if archive_kind(archive):
        _want(found, archive, path or None)
        return
    [file] = storage.stat([uri])
    found.files[uri] = file or File(uri, -1, 0, "cannot be read: no such file")


def _want(found: Found, archive: str, path: str | None) -> None:
    wanted = found.archives.setdefault(archive, [])
    if path is None or wanted is None:
        found.archives[archive] = None
    else:
        wanted.append(path)


def _sift(found: Found, files: Iterable[File], root: str) -> None:
    for file in files:
        path = storage.absolute(file.uri)[len(root) :]
        if kind := passed_over(path):
            found.skipped[kind] += 1
        elif archive_kind(path) and not file.problem:
            _want(found, file.uri, None)
        else:
            found.files[file.uri] = file


def _translate(glob: str) -> str:
    """A glob as a regular expression: `*` stays within a folder, `**` does not; what matches a
    folder matches all that is in it."""
    parts = re.split(r"(\*\*/?|\*|\?|\[[^]]+\])", glob)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(
        meanings.get(part) or (part.replace("[!", "[^") if part[:1] == "[" else re.escape(part))
        for part in parts
    )
    return text + "(?:/.*)?"


def list_archive(file: str, wanted: Sequence[str] | None) -> tuple[pa.Table, dict[str, int]]:
    """The members of an archive that may be radiographs.

    Args:
        file: path or URI of a zip or tar archive.
        wanted: paths in it, or folders; None for all.

    Returns:
        A table of schema `INVENTORY` in the archive's order, and the number of members that were
        passed over by kind. Whatever the archive holds, an exception never.
    """
    lister = _Lister(file, wanted)
    lister.list((), file, archive_kind(file))
    for path in wanted or ():
        if path not in lister.met:
            lister.add(f"{file}{SEPARATOR}{path}", (), -1, "unreadable", "no such member")
    return _table(lister.rows), dict(lister.skipped)


class _Lister:
    """Walks through an archive and the archives in it."""

    def __init__(self, file: str, wanted: Sequence[str] | None) -> None:
        self.file, self.wanted = file, wanted
        self.rows: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()
        self.met: set[str] = set()
        self.times: Counter[str] = Counter()

    def list(self, place: tuple[Step, ...], uri: str, kind: str) -> None:
        nested: list[tuple[tuple[Step, ...], str, str]] = []
        try:
            with open_archive(self.file, place, kind) as stream:
                for member in list_members(stream, kind):
                    inside = f"{uri}{SEPARATOR}{member.name}"
                    if not member.name:
                        self.add(uri, place, -1, member.status, member.reason)
                    elif member.link:
                        self.skipped["link or device in an archive"] += 1
                    elif other := passed_over(member.name):
                        self.skipped[other] += 1
                    elif member.step is None or member.status or not archive_kind(member.name):
                        steps = (*place, member.step) if member.step else place
                        self.add(inside, steps, member.size, member.status, member.reason)
                    elif place:
                        reason = "an archive nested deeper than one level; unpack it first"
                        self.add(inside, place, member.size, "unreadable", reason)
                    else:
                        nested.append(((member.step,), inside, archive_kind(member.name)))
        except (DataError, StorageError) as error:
            self.add(uri, place, -1, "unreadable", str(error).removeprefix(f"{self.file}: "))
        except Exception as error:  # What hostile archives make libraries raise has no end.
            reason = f"the archive cannot be listed ({type(error).__name__})"
            self.add(uri, place, -1, "unreadable", reason)
        # After the outer list, which a compressed archive gives in one pass.
        for each in nested:
            self.list(*each)

    def add(self, uri: str, place: tuple[Step, ...], size: int, status: str, reason: str) -> None:
        path = uri[len(self.file) + len(SEPARATOR) :]
        if path and self.wanted is not None:
            met = [w for w in self.wanted if path == w or path.startswith(f"{w.rstrip('/')}/")]
            if not met and not any(w.startswith(f"{path}{SEPARATOR}") for w in self.wanted):
                return
            self.met.update(met)
        self.times[uri] += 1
        warnings = []
        if (number := self.times[uri]) > 1:
            uri = f"{uri}#{number}"
            warnings.append(f"member {number} of this name in the archive")
        if size == 0 and not status:
            status, reason = "unreadable", "the file is empty"
        self.rows.append(
            {
                "uri": uri, "file": self.file, "place": [step._asdict() for step in place],
                "size": size, "modified_ns": 0, "status": status, "reason": reason,
                "warnings": warnings,
            }
        )  # fmt: skip


def _row(file: File) -> dict[str, Any]:
    status, reason = ("unreadable", file.problem) if file.problem else ("", "")
    if too_large := check_size(file.size):
        status, reason = "refused", too_large
    return {
        "uri": file.uri, "file": file.uri, "place": [], "size": file.size,
        "modified_ns": file.modified_ns, "status": status, "reason": reason, "warnings": [],
    }  # fmt: skip


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INVENTORY)
