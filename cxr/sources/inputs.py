"""What inputs name: every file that may be an image, once, with the steps to its bytes.

Nothing that may be an image is dropped: a file or archive that cannot be read is listed with the
reason. Files that are evidently no images are counted by type.
"""

import fnmatch
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pyarrow as pa

from cxr import storage
from cxr.errors import DataError, StorageError, UnavailableError
from cxr.sources.archives import SEPARATOR, Member, Reader, Step, archive_kind, check_size
from cxr.sources.archives import printable as printable_name
from cxr.sources.digests import Digests, digest
from cxr.sources.manifests import SUFFIXES, Manifest, ManifestReader, beside, is_manifest
from cxr.sources.names import passed_over, unread_archive
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
        ("written", pa.string()),
        ("manifest", pa.string()),
        ("manifest_row", pa.int64()),
    ]
)
"""The columns of an inventory, one row per file or archive member. `file` is what storage opens,
`place` holds the `Step`s from there to the bytes, none for the file itself; `size` in bytes, -1 if
unknown; `modified_ns` is of the file; `status` and `reason` are set if it is already known that
there is nothing to decode. `manifest` is the manifest that names it, empty if none does, and
`manifest_row` the row of that from 0, -1 if none; `written` is the text of its cell,
empty also if the manifest names an archive or a folder of one that it is in."""

_GLOB: Final = re.compile(r"[*?\[]")


PAGE_MEMBERS: Final = 10_000
"""Members of an archive that are listed at a time."""


class Entry(NamedTuple):
    """The first row of a manifest that names a file, or members of an archive."""

    written: str
    """The text of its cell."""
    manifest: str
    manifest_row: int


NO_ENTRY: Final = Entry("", "", -1)


@dataclass
class Page:
    """A piece of a listing; archives are named, not yet opened."""

    files: list[File] = field(default_factory=list)
    """Files that may be images."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """The URI of an archive and a path in it, empty for all of it."""
    other_files: list[tuple[str, str]] = field(default_factory=list)
    """The URI of a file that is evidently no image, and its type."""
    manifest: Manifest | None = None
    """The rows that name the files and paths, if the page is of a manifest."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """What these rows name, by the address that a listing has."""

    def table(self) -> pa.Table:
        """The files, of schema `INVENTORY`."""
        return join_entries(_file_table(self.files), self.entries)

    def add_named(
        self, addresses: Iterable[str], manifest: str, choose_new: "_ChooseNew"
    ) -> list[str]:
        """Add files and archive members that were named themselves, whatever their names.

        Args:
            addresses: absolute, or relative to the manifest's folder.
            manifest: path or URI of the manifest that names them.
            choose_new: those of the files that were not listed before.

        Returns:
            The addresses, as a listing has them.
        """
        in_listing: list[str] = []
        uris: dict[str, str] = {}
        problems: dict[str, StorageError] = {}
        for address in addresses:
            text, path = split_address(address)
            try:
                uri = beside(manifest, text)
            except StorageError as error:
                uris[text] = text
                problems[text] = error
                in_listing.append(text)
                continue
            listed = storage.printable(uri)
            if archive_kind(uri):
                self.requests.append(_request(uri, path))
            else:
                uris[listed] = uri
            in_listing.append(member_address(listed, path))
        new = choose_new(list(uris))
        self.files += [_problem(uri, problems[uri]) for uri in new if uri in problems]
        self.files += storage.for_all(_look_up, [uris[uri] for uri in new if uri not in problems])
        return in_listing


_ChooseNew = Callable[[list[str]], list[str]]
"""Of URIs, those that were not listed before."""


class InputPages:
    """What inputs name, page by page: manifests first, then files, then folders and buckets.

    The order depends on nothing but the inputs and the names in them. Each file is listed once, at
    its first place; memory grows by `digests.DIGEST_BYTES` for each file if there are several
    inputs or a manifest, and else by nothing.
    """

    def __init__(self, inputs: Sequence[str], columns: Sequence[str] = ()) -> None:
        """Look at each input; manifests are checked.

        Args:
            inputs: files, folders, globs, bucket prefixes, archives, `archive.zip!/path` addresses,
                and manifests with a column uri, in any combination.
            columns: what manifests call their columns, each as `NAME=COLUMN`; see `read_manifest`.

        Raises:
            DataError: an input does not exist, or a manifest cannot be read.
            SettingsError: `columns` are not what they should be.
            StorageError: a store cannot be reached.
        """
        self.manifests: dict[str, ManifestReader] = {}
        """By URI."""
        self._files: list[str] = []
        self._archives: list[tuple[str, str]] = []
        self._folders: list[str] = []
        for address in inputs:
            self._add(address, columns)
        # A folder, or what is named once, cannot be listed twice.
        self._seen = Digests() if len(inputs) > 1 or self.manifests else None

    def _add(self, address: str, columns: Sequence[str]) -> None:
        archive, path = split_address(address)
        if archive != address and storage.kind(archive) == "file":
            self._archives.append((archive, path))
            return
        uri = storage.absolute(address)
        match storage.kind(uri):
            case "file" if archive_kind(uri):
                self._archives.append((uri, ""))
            case "file" if is_manifest(uri):
                self.manifests.setdefault(uri, ManifestReader(uri, columns))
            case "file":
                self._files.append(uri)
            case "folder":
                self._folders.append(uri)
            case _ if _GLOB.search(uri, len(s3.root(uri))):
                self._folders.append(uri)
            case _:
                raise DataError(
                    f"{uri}: not found. Give files, folders, bucket prefixes, archives, globs, or"
                    f" a manifest ({', '.join(SUFFIXES)})."
                )

    def __iter__(self) -> Iterator[Page]:
        """List, from the beginning.

        Raises:
            DataError: a manifest cannot be read, or nothing matches a glob.
            StorageError: a folder or bucket cannot be listed.
        """
        for reader in self.manifests.values():
            for batch in reader.batches():
                yield self._manifest_page(batch)
        named = Page(requests=[_request(uri, path) for uri, path in self._archives])
        for uri in self._files:
            named.add_named([uri], uri, self._choose_new)
        yield named
        for uri in self._folders:
            is_folder = storage.kind(uri) == "folder"
            yield from self._folder_pages(uri) if is_folder else self._matching_pages(uri)

    def _choose_new(self, uris: list[str]) -> list[str]:
        if self._seen is None or not uris:
            return uris
        return list(itertools.compress(uris, self._seen.add(digest(uris))))

    def _manifest_page(self, batch: Manifest) -> Page:
        page = Page(manifest=batch)
        written = batch.table[batch.columns["uri"]].to_pylist()
        named = batch.required_cells("uri").to_pylist()
        addresses = page.add_named(named, batch.uri, self._choose_new)
        for row, address in enumerate(addresses):
            page.entries.setdefault(address, Entry(written[row], batch.uri, batch.first_row + row))
        return page

    def _folder_pages(self, root: str) -> Iterator[Page]:
        for files in storage.list_pages(root):
            yield self._listed_page(files, root)

    def _matching_pages(self, glob: str) -> Iterator[Page]:
        bucket = s3.root(glob)
        path = _GLOB.split(glob[len(bucket) :], maxsplit=1)[0]
        root = bucket + path.rpartition("/")[0] or "/"
        whole, above = _translate(glob, bucket), _translate_above(glob, root)
        matches = False
        for files in storage.list_pages(root, lambda folder: bool(above.fullmatch(folder))):
            # A folder that cannot be listed may contain matches.
            matching = [
                file
                for file in files
                if file.uri.endswith("/") or whole.fullmatch(_path_or_uri(file.uri))
            ]
            matches |= bool(matching)
            yield self._listed_page(matching, root)
        if not matches:
            raise DataError(f"{glob}: no file matches.")

    def _listed_page(self, files: Sequence[File], root: str) -> Page:
        page = Page()
        new = set(self._choose_new([file.uri for file in files]))
        for file in files:
            if file.uri not in new:
                continue
            path = _path_or_uri(file.uri)[len(root) :]
            if other_type := passed_over(path):
                page.other_files.append((file.uri, other_type))
            elif archive_kind(path) and not file.problem:
                page.requests.append(_request(file.uri, ""))
            else:
                page.files.append(file)
        return page


@dataclass
class Inputs:
    """All that inputs name; archives are named, not yet opened."""

    files: dict[str, File] = field(default_factory=dict)
    """Files that may be images, by URI."""
    archives: dict[str, list[str] | None] = field(default_factory=dict)
    """The requested paths of each archive, None for all, by URI."""
    other_files: dict[str, str] = field(default_factory=dict)
    """The type of each file that is evidently no image, by URI."""
    manifests: dict[str, pa.Table] = field(default_factory=dict)
    """The rows of each manifest, all columns as text, by URI."""
    entries: dict[str, Entry] = field(default_factory=dict)
    """What manifests name, by the address that a listing has."""

    @property
    def skipped(self) -> Counter[str]:
        """Files that are evidently no images and were not named themselves, by type."""
        return Counter(name for uri, name in self.other_files.items() if uri not in self.files)

    def table(self) -> pa.Table:
        """The files, of schema `INVENTORY`."""
        return self.join_entries(_file_table(self.files.values()))

    def join_entries(self, table: pa.Table) -> pa.Table:
        """Fill in which row of which manifest names each file or member, see `join_entries`."""
        return join_entries(table, self.entries)

    def add(self, address: str) -> None:
        """Add what one input names.

        Raises:
            DataError: it is not there, or a manifest that cannot be read or has no column uri.
            StorageError: a folder or bucket cannot be listed.
        """
        for page in InputPages([address]):
            self.add_page(page)

    def add_named(self, addresses: Iterable[str], manifest: str) -> None:
        """Add files and archive members that were named themselves, whatever their names.

        Args:
            addresses: absolute, or relative to the manifest's folder.
            manifest: path or URI of the manifest that names them.
        """
        page = Page()
        page.add_named(addresses, manifest, list)
        self.add_page(page)

    def add_page(self, page: Page) -> None:
        """Add a piece of a listing."""
        self.files |= {file.uri: file for file in page.files}
        self.other_files |= page.other_files
        for uri, path in page.requests:
            paths = self.archives.setdefault(uri, [])
            if not path or paths is None:
                self.archives[uri] = None
            else:
                paths.append(path)
        self.entries = page.entries | self.entries
        if page.manifest:
            uri, rows = page.manifest.uri, page.manifest.table
            self.manifests[uri] = pa.concat_tables([*filter(None, [self.manifests.get(uri)]), rows])


def list_inputs(inputs: Sequence[str], columns: Sequence[str] = ()) -> Inputs:
    """List every file that the inputs name; archives are not opened.

    Args:
        inputs: see `InputPages`.
        columns: what manifests call their columns, each as `NAME=COLUMN`; see `read_manifest`.

    Raises:
        DataError: an input does not exist, a manifest cannot be read, or nothing at all may be an
            image.
        SettingsError: `columns` are not what they should be.
        StorageError: a folder or bucket cannot be listed.
    """
    listed = Inputs()
    for page in InputPages(inputs, columns):
        listed.add_page(page)
    if not listed.files and not listed.archives:
        raise DataError(f"{', '.join(inputs)}: no radiographs found. {in_words(listed.skipped)}")
    return listed


def join_entries(table: pa.Table, entries: Mapping[str, Entry]) -> pa.Table:
    """Fill in which row of which manifest names each file or member.

    Args:
        table: of schema `INVENTORY`.
        entries: rows of manifests, by the address that a listing has.
    """
    if not entries:
        return table
    addresses = zip(table["uri"].to_pylist(), table["file"].to_pylist(), strict=True)
    rows = [_find_entry(uri, file, entries) for uri, file in addresses]
    for name in Entry._fields:
        column = INVENTORY.field(name)
        cells = pa.array([getattr(entry, name) for entry in rows], column.type)
        table = table.set_column(INVENTORY.get_field_index(name), column, cells)
    return table


def _find_entry(uri: str, file: str, entries: Mapping[str, Entry]) -> Entry:
    address = address_in_listing(uri, file)
    if entry := entries.get(address):
        return entry
    while address != file:  # A folder of an archive, or the archive.
        address = max(address.rpartition("/")[0].removesuffix("!"), file, key=len)
        if entry := entries.get(address):
            return entry._replace(written="")
    return NO_ENTRY


def in_words(skipped: Counter[str]) -> str:
    """What a listing passed over, as a sentence."""
    counts = ", ".join(f"{count:,} {name}" for name, count in skipped.items())
    return f"Passed over: {counts or 'nothing'}."


def split_address(address: str) -> tuple[str, str]:
    """Split `archive.zip!/path` into the file and the path in it, empty for the file itself."""
    for separator in re.finditer(SEPARATOR, address):
        if archive_kind(address[: separator.start()]):
            return address[: separator.start()], address[separator.end() :]
    return address, ""


def entry_address(manifest: str, text: str) -> str:
    """The address that an entry of a manifest means, in the one form that a listing has.

    Raises:
        StorageError: there is no such address.
    """
    file, path = split_address(text)
    return member_address(storage.printable(beside(manifest, file)), path)


def address_in_listing(uri: str, file: str) -> str:
    """The address of a listed file or member, in the form of `entry_address`."""
    return member_address(file, uri[len(file) + len(SEPARATOR) :])


def member_address(file: str, path: str) -> str:
    """The address of a path in a file, in the form of `entry_address`; empty for the file."""
    return f"{file}{SEPARATOR}{plain(path)}" if path else file


def _path_or_uri(uri: str) -> str:
    """A URI of a listing as its folder is written: only a name that is not UTF-8 is a URI there."""
    return storage.absolute(uri) if uri.startswith("file://") else uri


def _request(archive: str, path: str) -> tuple[str, str]:
    uri = storage.printable(storage.absolute(archive))
    return uri, printable_name(path) if path else ""


def _look_up(uri: str) -> File:
    try:
        return storage.look_up(uri)
    except UnavailableError:  # It concerns the store, not this file.
        raise
    except StorageError as error:
        return _problem(uri, error)


def _problem(uri: str, error: StorageError) -> File:
    return File(uri, -1, 0, str(error).removeprefix(f"{uri}: ").rstrip("."))


def _translate(glob: str, bucket: str) -> "re.Pattern[str]":
    """A glob as a regular expression; a match of a folder covers everything in it."""
    expression = re.escape(bucket) + _expression(glob[len(bucket) :])
    return re.compile(expression + "(?:/.*)?", re.DOTALL)


def _translate_above(glob: str, root: str) -> "re.Pattern[str]":
    """A regular expression of the folders in or below which something may match."""
    text = "(?:/.*)?"
    for part in reversed(glob[len(root) :].strip("/").split("/")):
        text = "(?:/.*)?" if "**" in part else f"(?:/{_expression(part)}{text})?"
    return re.compile(re.escape(root.rstrip("/")) + text, re.DOTALL)


def _expression(glob: str) -> str:
    """`*` stays within a folder, `**` does not."""
    parts = re.split(r"(\*\*/?|\*|\?|\[!?\]?[^]/]*\])", glob)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    # Brackets as `fnmatch` translates them, without the mark of the end.
    return "".join(
        meanings.get(part)
        or ("(?!/)" + fnmatch.translate(part)[:-2] if part[:1] == "[" else re.escape(part))
        for part in parts
    )


def list_archive(file: str, paths: Sequence[str] | None) -> tuple[pa.Table, Counter[str]]:
    """List the members of an archive that may be images: `archive_pages` in one table."""
    pages, skipped = zip(*archive_pages(file, paths), strict=True)
    return pa.concat_tables(pages), sum(skipped, Counter())


def archive_pages(
    file: str, paths: Sequence[str] | None
) -> Iterator[tuple[pa.Table, Counter[str]]]:
    """List the members of an archive that may be images, also of archives within it.

    Args:
        file: path or URI of a zip or tar archive.
        paths: requested paths in it, members or folders; None for all.

    Yields:
        A table of schema `INVENTORY` with at most `PAGE_MEMBERS` rows in the archive's order, and
        the number of members that were passed over by type. Whatever the archive holds, no
        exception is raised for it.

    Raises:
        UnavailableError: the object store cannot be reached.
    """
    with Reader() as reader:
        lister = _ArchiveLister(file, paths, reader)
        for _ in lister.walk((), "", archive_kind(file)):
            if len(lister.rows) >= PAGE_MEMBERS:
                yield lister.take()
    lister.explain_missing()
    yield lister.take()


class _ArchiveLister:
    """Walks through an archive and the archives in it; paths are those in the outermost file."""

    def __init__(self, file: str, paths: Sequence[str] | None, reader: Reader) -> None:
        self.file, self.reader = file, reader
        self.modified_ns = _look_up(file).modified_ns
        self.requested = {plain(path.removesuffix(SEPARATOR)): path for path in paths or ()}
        self.all = paths is None or "" in self.requested
        self.matched: set[str] = set()
        # Archives within this one that contain a requested path.
        self.outer = {
            path[: separator.start()]
            for path in self.requested
            for separator in re.finditer(SEPARATOR, path)
        }
        self.num_same: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()

    def take(self) -> tuple[pa.Table, Counter[str]]:
        """The rows that were added since, and the numbers of members that were passed over."""
        taken = _table(self.rows), self.skipped
        self.rows, self.skipped = [], Counter()
        return taken

    def walk(self, steps: tuple[Step, ...], archive: str, kind: str) -> Iterator[None]:
        """List an archive: the file itself, or the one that the steps lead to, at a path in it.

        Yields after each member.
        """
        nested: list[tuple[tuple[Step, ...], str, str]] = []
        try:
            for member in self.reader.members(self.file, steps, kind):
                if not member.name:
                    self.add_row(archive, steps, -1, member.status, member.reason)
                    continue
                if inner := self.add_member(member, steps, archive):
                    nested.append(inner)
                yield
        except UnavailableError:
            raise
        except (DataError, StorageError) as error:
            reason = str(error).removeprefix(f"{self.file}: ").rstrip(".")
            self.add_row(archive, steps, -1, "unreadable", reason)
        except Exception as error:  # Hostile archives make libraries raise anything.
            reason = f"the archive cannot be listed ({type(error).__name__})"
            self.add_row(archive, steps, -1, "unreadable", reason)
        # After the outer archive, which is listed in one pass if it is compressed.
        for inner in nested:
            yield from self.walk(*inner)

    def add_member(
        self, member: Member, steps: tuple[Step, ...], archive: str
    ) -> tuple[tuple[Step, ...], str, str] | None:
        """Add a member's row or count it; of an archive to list, return the arguments of `walk`."""
        path = f"{archive}{SEPARATOR}{member.name}" if archive else member.name
        requested = self.requested_parts(path, archive)
        other_type = passed_over(plain(path)[len(requested[-1]) if requested else 0 :])
        if member.link:
            other_type = "link or device in an archive"
        if other_type and plain(path) not in requested:  # What was named itself has a row.
            if requested:
                self.skipped[other_type] += 1
            return None
        path, number = self.unique_path(path)
        if number > 1:
            requested += self.requested_parts(path, archive)
        if not requested and plain(path) not in self.outer:
            return None
        member_steps = (*steps, member.step) if member.step else steps
        warnings = [f"member {number} of this name in the archive"] if number > 1 else []
        status, reason = member.status, member.reason
        kind = archive_kind(member.name)
        if member.link:
            status, reason = "unreadable", other_type
        elif kind and member.step and not status:
            if not steps:
                return member_steps, path, kind
            status = "unreadable"
            reason = "an archive nested deeper than one level; unpack it first"
        self.add_row(path, member_steps, member.size, status, reason, warnings)
        return None

    def requested_parts(self, path: str, archive: str) -> list[str]:
        """The requested paths at or above a path; the empty one if all are requested."""
        if self.all:
            return [""]
        text = plain(path)
        ends = [len(plain(archive)), *(slash.start() for slash in re.finditer("/", text))]
        parts = [text[:end] for end in (*ends, len(text)) if text[:end] in self.requested]
        self.matched.update(parts)
        return parts

    def unique_path(self, path: str) -> tuple[str, int]:
        """A unique path for each member of the same path, and its number among them."""
        number = self.num_same.get(path, 0) + 1
        while (unique := f"{path}#{number}" if number > 1 else path) in self.num_same:
            number += 1
        self.num_same[path] = number
        self.num_same.setdefault(unique, 1)
        return unique, number

    def explain_missing(self) -> None:
        """Add a row for each requested path that is not in the archive."""
        for part, path in self.requested.items():
            if not self.all and part not in self.matched:
                self.add_row(self.unique_path(path)[0], (), -1, "unreadable", "no such member")

    def add_row(
        self, path: str, steps: tuple[Step, ...], size: int, status: str, reason: str,
        warnings: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Add the row of a path; an empty one stands for the file itself."""
        if size == 0 and not status:
            status, reason = "unreadable", "the file is empty"
        if not status and (archive := unread_archive(path)):
            status, reason = "unreadable", archive
        self.rows.append(
            {
                "uri": f"{self.file}{SEPARATOR}{path}" if path else self.file, "file": self.file,
                "place": [step._asdict() for step in steps], "size": size,
                "modified_ns": self.modified_ns, "status": status, "reason": reason,
                "warnings": list(warnings), **NO_ENTRY._asdict(),
            }
        )  # fmt: skip


def plain(path: str) -> str:
    """A path without parts that mean nothing, such as `./` at its beginning."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _file_table(files: Iterable[File]) -> pa.Table:
    """The files, of schema `INVENTORY`: by columns, which takes a fifth of the time of rows."""
    files = list(files)
    uris = pa.array([file.uri for file in files], pa.string())  # One array for both columns.
    states = [_state(file) for file in files]
    columns: dict[str, Any] = {
        "uri": uris,
        "file": uris,
        "place": [[]] * len(files),
        "size": [file.size for file in files],
        "modified_ns": [file.modified_ns for file in files],
        "status": [status for status, _ in states],
        "reason": [reason for _, reason in states],
        "warnings": [[]] * len(files),
        **{name: [value] * len(files) for name, value in NO_ENTRY._asdict().items()},
    }
    return pa.table(columns, schema=INVENTORY)


def _state(file: File) -> tuple[str, str]:
    """Status and reason of a file; empty if it may be an image."""
    if file.size == 0:
        return "unreadable", "the file is empty"
    if archive := unread_archive(file.uri):
        return "unreadable", archive
    if too_large := check_size(file.size):
        return "refused", too_large
    return ("unreadable", file.problem) if file.problem else ("", "")


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INVENTORY)
