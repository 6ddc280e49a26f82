"""What is to be scored: every file that may be a radiograph, once, each with its place.

Nothing that could be a radiograph is left out: a file or archive that cannot be read stands in the
list with the reason. Evident other files are counted by kind instead.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from cxr import storage
from cxr.errors import DataError, StorageError, UnavailableError
from cxr.sources.archives.members import (
    SEPARATOR,
    Member,
    Step,
    archive_kind,
    check_size,
    printable,
)
from cxr.sources.archives.reader import Reader
from cxr.sources.manifests import beside, read_manifest, required, texts
from cxr.sources.names import passed_over
from cxr.storage import File, s3

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
    others: dict[str, str] = field(default_factory=dict)
    """The kind of each file that is evidently no radiograph, by URI."""

    @property
    def skipped(self) -> Counter[str]:
        """Files that are evidently no radiographs and were not named themselves, by kind."""
        return Counter(kind for uri, kind in self.others.items() if uri not in self.files)

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
        _list_input(found, each)
    if not found.files and not found.archives:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.skipped.items())
        raise DataError(
            f"{', '.join(inputs)}: no radiographs found. Passed over: {kinds or 'nothing'}."
        )
    return found


def _list_input(found: Found, given: str) -> None:
    archive, path = _split(given)
    if archive != given and storage.kind(archive) == "file":
        _want(found, archive, path)
        return
    uri = storage.absolute(given)
    match storage.kind(uri):
        case "file" if archive_kind(uri):
            _want(found, uri, "")
        case "file" if uri.lower().endswith((".csv", ".parquet")):
            _name(found, _manifest(uri), uri)
        case "file":
            _name(found, [uri], uri)
        case "folder":
            _sift(found, storage.list_files(uri), uri)
        case _ if _GLOB.search(uri, len(s3.root(uri))):
            _list_glob(found, uri)
        case _:
            raise DataError(
                f"{uri}: not found. Give files, folders, bucket prefixes, archives, globs, or a CSV"
                " or Parquet manifest with a column uri."
            )


def _split(address: str) -> tuple[str, str]:
    """A file and the path in it, empty for the file itself."""
    for separator in re.finditer(SEPARATOR, address):
        if archive_kind(address[: separator.start()]):
            return address[: separator.start()], address[separator.end() :]
    return address, ""


def _manifest(uri: str) -> list[str]:
    table = read_manifest(uri)
    if "uri" not in table.column_names:
        raise DataError(
            f"{uri}: the manifest lacks column uri; found {', '.join(table.column_names)}."
        )
    return [required(uri, "uri", i, text) for i, text in enumerate(texts(table, "uri"))]


def _name(found: Found, addresses: Iterable[str], manifest: str) -> None:
    """Files that were named themselves are listed whatever their names."""
    files = []
    for address in addresses:
        uri, path = _split(address)
        try:
            uri = beside(manifest, uri)
        except StorageError as error:
            found.files[uri] = _problem(uri, error)
            continue
        if archive_kind(uri):
            _want(found, uri, path)
        else:
            files.append(uri)
    for file in storage.for_all(_look_up, files):
        found.files[file.uri] = file


def _look_up(uri: str) -> File:
    try:
        return storage.look_up(uri)
    except UnavailableError:  # Of the store, and not of this file.
        raise
    except StorageError as error:
        return _problem(uri, error)


def _problem(uri: str, error: StorageError) -> File:
    return File(uri, -1, 0, str(error).removeprefix(f"{uri}: ").rstrip("."))


def _want(found: Found, archive: str, path: str) -> None:
    uri = storage.printable(storage.absolute(archive))
    wanted = found.archives.setdefault(uri, [])
    if not path or wanted is None:
        found.archives[uri] = None
    else:
        wanted.append(printable(path))


def _sift(found: Found, files: Iterable[File], root: str) -> None:
    for file in files:
        path = storage.absolute(file.uri)[len(root) :]
        if file.uri.endswith("/"):  # A folder, whatever its suffix.
            path += "/"
        if kind := passed_over(path):
            found.others[file.uri] = kind
        elif archive_kind(path) and not file.problem:
            _want(found, file.uri, "")
        else:
            found.files[file.uri] = file


def _list_glob(found: Found, glob: str) -> None:
    bucket = s3.root(glob)
    path = _GLOB.split(glob[len(bucket) :], maxsplit=1)[0]
    root = bucket + path.rpartition("/")[0] or "/"
    whole, above = _translate(glob, bucket), _translate_above(glob, root)
    files = storage.list_files(root, enter=lambda folder: bool(above.fullmatch(folder)))
    # Of a folder that cannot be listed nobody knows what in it matches.
    matching = [
        file
        for file in files
        if whole.fullmatch(storage.absolute(file.uri)) or file.uri.endswith("/")
    ]
    if not matching:
        raise DataError(f"{glob}: no file matches.")
    _sift(found, matching, root)


def _translate(glob: str, bucket: str) -> "re.Pattern[str]":
    """A glob as a regular expression: what matches a folder matches all that is in it."""
    expression = re.escape(bucket) + _expression(glob[len(bucket) :])
    return re.compile(expression + "(?:/.*)?", re.DOTALL)


def _translate_above(glob: str, root: str) -> "re.Pattern[str]":
    """A regular expression of the folders in or above which something may match."""
    text = "(?:/.*)?"
    for part in reversed(glob[len(root) :].strip("/").split("/")):
        text = "(?:/.*)?" if "**" in part else f"(?:/{_expression(part)}{text})?"
    return re.compile(re.escape(root.rstrip("/")) + text, re.DOTALL)


def _expression(glob: str) -> str:
    """`*` stays within a folder, `**` does not."""
    parts = re.split(r"(\*\*/?|\*|\?|\[!?\]?[^]/]*\])", glob)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    # Brackets as `fnmatch` takes them, without the mark of the end.
    return "".join(
        meanings.get(part)
        or ("(?!/)" + fnmatch.translate(part)[:-2] if part[:1] == "[" else re.escape(part))
        for part in parts
    )


def list_archive(file: str, wanted: Sequence[str] | None) -> tuple[pa.Table, dict[str, int]]:
    """The members of an archive that may be radiographs.

    Args:
        file: path or URI of a zip or tar archive.
        wanted: paths in it, or folders; None for all.

    Returns:
        A table of schema `INVENTORY` in the archive's order, and the number of members that were
        passed over by kind. Whatever the archive holds, an exception never.

    Raises:
        UnavailableError: the object store cannot be reached.
    """
    with Reader() as reader:
        lister = _Lister(file, wanted, reader)
        lister.walk((), "", archive_kind(file))
    lister.explain_missing()
    return _table(lister.rows), dict(lister.skipped)


class _Lister:
    """Walks through an archive and the archives in it. Paths are those in the outermost file."""

    def __init__(self, file: str, wanted: Sequence[str] | None, reader: Reader) -> None:
        self.file, self.reader = file, reader
        self.wanted = {_plain(path.removesuffix(SEPARATOR)): path for path in wanted or ()}
        self.all = wanted is None or "" in self.wanted
        self.met: set[str] = set()
        # Archives in this one of which something is wanted.
        self.around = {
            path[: separator.start()]
            for path in self.wanted
            for separator in re.finditer(SEPARATOR, path)
        }
        self.times: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()

    def walk(self, place: tuple[Step, ...], archive: str, kind: str) -> None:
        nested: list[tuple[tuple[Step, ...], str, str]] = []
        try:
            for member in self.reader.members(self.file, place, kind):
                if not member.name:
                    self.add(archive, place, -1, member.status, member.reason)
                    continue
                if inner := self.list_member(member, place, archive):
                    nested.append(inner)
        except UnavailableError:
            raise
        except (DataError, StorageError) as error:
            reason = str(error).removeprefix(f"{self.file}: ").rstrip(".")
            self.add(archive, place, -1, "unreadable", reason)
        except Exception as error:  # What hostile archives make libraries raise has no end.
            reason = f"the archive cannot be listed ({type(error).__name__})"
            self.add(archive, place, -1, "unreadable", reason)
        # After the outer list, which a compressed archive gives in one pass.
        for inner in nested:
            self.walk(*inner)

    def list_member(
        self, member: Member, place: tuple[Step, ...], archive: str
    ) -> tuple[tuple[Step, ...], str, str] | None:
        """Add a member's row or count it; an archive that is to be listed is given back."""
        path = f"{archive}{SEPARATOR}{member.name}" if archive else member.name
        wanted = self.wanted_parts(path, archive)
        other = passed_over(_plain(path)[len(wanted[-1]) if wanted else 0 :])
        if member.link:
            other = "link or device in an archive"
        if other and _plain(path) not in wanted:  # What was named itself has a row.
            if wanted:
                self.skipped[other] += 1
            return None
        path, number = self.numbered(path)
        if number > 1:
            wanted += self.wanted_parts(path, archive)
        if not wanted and _plain(path) not in self.around:
            return None
        steps = (*place, member.step) if member.step else place
        warnings = [f"member {number} of this name in the archive"] if number > 1 else []
        status, reason = member.status, member.reason
        kind = archive_kind(member.name)
        if member.link:
            status, reason = "unreadable", other
        elif kind and member.step and not status:
            if not place:
                return steps, path, kind
            status = "unreadable"
            reason = "an archive nested deeper than one level; unpack it first"
        self.add(path, steps, member.size, status, reason, warnings)
        return None

    def wanted_parts(self, path: str, archive: str) -> list[str]:
        """The wanted paths at or above a path, the empty one if all are wanted."""
        if self.all:
            return [""]
        plain = _plain(path)
        ends = [len(_plain(archive)), *(slash.start() for slash in re.finditer("/", plain))]
        parts = [plain[:end] for end in (*ends, len(plain)) if plain[:end] in self.wanted]
        self.met.update(parts)
        return parts

    def numbered(self, path: str) -> tuple[str, int]:
        """A path of its own for each member of the same path; which one it is."""
        number = self.times.get(path, 0) + 1
        while (own := f"{path}#{number}" if number > 1 else path) in self.times:
            number += 1
        self.times[path] = number
        self.times.setdefault(own, 1)
        return own, number

    def explain_missing(self) -> None:
        for part, path in self.wanted.items():
            if not self.all and part not in self.met:
                self.add(self.numbered(path)[0], (), -1, "unreadable", "no such member")

    def add(
        self, path: str, place: tuple[Step, ...], size: int, status: str, reason: str,
        warnings: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if size == 0 and not status:
            status, reason = "unreadable", "the file is empty"
        self.rows.append(
            {
                "uri": f"{self.file}{SEPARATOR}{path}" if path else self.file, "file": self.file,
                "place": [step._asdict() for step in place], "size": size, "modified_ns": 0,
                "status": status, "reason": reason, "warnings": list(warnings),
            }
        )  # fmt: skip


def _plain(path: str) -> str:
    """A path without what means nothing, such as `./` at its beginning."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _row(file: File) -> dict[str, Any]:
    status, reason = ("unreadable", file.problem) if file.problem else ("", "")
    if file.size == 0:
        status, reason = "unreadable", "the file is empty"
    elif too_large := check_size(file.size):
        status, reason = "refused", too_large
    return {
        "uri": file.uri, "file": file.uri, "place": [], "size": file.size,
        "modified_ns": file.modified_ns, "status": status, "reason": reason, "warnings": [],
    }  # fmt: skip


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INVENTORY)
