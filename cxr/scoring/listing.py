"""The rows of a manifest, listed page by page: files first, then the members of archives.

The order depends on nothing but the inputs, so a listing that was cut is begun again, and what is
known already is left out. The driver keeps the names of archives and, of what manifests name in
them, references to tables in Ray's object store.
"""

from collections import Counter as Counts
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray

from cxr import cluster, sources
from cxr.errors import DataError
from cxr.scoring.columns import ColumnSettings, append_kept, choose_group, choose_kept

REQUESTS: Final = pa.schema(
    [
        ("file", pa.string()),
        ("path", pa.string()),
        ("written", pa.string()),
        ("manifest", pa.string()),
        ("manifest_row", pa.int64()),
    ]
)
"""What is named in archives, with `kept` if columns are kept: the archive, the path in it (empty
for all of it), and which row of which manifest names it, -1 if none does."""


class RowLister:
    """Lists what is to be scored."""

    def __init__(self, inputs: Sequence[str], asked: ColumnSettings) -> None:
        """Look at the inputs.

        Args:
            inputs: see `sources.InputPages`.
            asked: columns of manifests.

        Raises:
            DataError: an input does not exist, or a manifest cannot be read.
            SettingsError: a column cannot be kept.
        """
        self.inputs = inputs
        self._pages = sources.InputPages(inputs, asked.columns)
        manifests = {uri: reader.names for uri, reader in self._pages.manifests.items()}
        self.kept = choose_kept(asked, manifests)
        """Columns of manifests that the rows keep."""
        choose_group(asked, self.kept)
        self.skipped: Counts[str] = Counts()
        """Files that were passed over, by type."""
        self._requests: dict[str, list[Any]] = {}
        """Tables of `REQUESTS` by archive."""
        self._whole: set[str] = set()
        """Archives of which all was asked for."""

    def pages(self) -> Iterator[pa.Table]:
        """The rows, of schema `sources.INVENTORY`, and `kept` if columns are kept.

        Raises:
            DataError: the inputs name nothing.
            StorageError: a folder or bucket cannot be listed.
        """
        num_rows = 0
        for page in self._pages:
            self.skipped.update(other_type for _, other_type in page.other_files)
            self._keep_requests(page)
            if page.files:
                num_rows += len(page.files)
                yield self._append_kept(page.table(), page)
        if not num_rows and not self._requests:
            raise DataError(
                f"{', '.join(self.inputs)}: no radiographs found. {sources.in_words(self.skipped)}"
            )
        calls = (
            (file, file in self._whole, self.kept, *self._requests.pop(file))
            for file in sorted(self._requests)
        )
        for stream in cluster.run_in_order(_list_archive, calls, cluster.SPARE_CPUS):
            for reference in stream:
                members, skipped = ray.get(reference)
                self.skipped.update(skipped)
                num_rows += len(members)
                if len(members):
                    yield members
        if not num_rows:
            raise DataError(f"{', '.join(self.inputs)}: no radiographs found in the archives.")

    def _append_kept(self, table: pa.Table, page: sources.Page) -> pa.Table:
        if not page.manifest:
            return append_kept(table, self.kept)
        return append_kept(table, self.kept, page.manifest.table, page.manifest.first_row)

    def _keep_requests(self, page: sources.Page) -> None:
        """Remember which archives the page names; what of them, in the object store."""
        named = []
        for file, path in page.requests:
            self._requests.setdefault(file, [])
            if not path and not page.manifest:
                self._whole.add(file)
                continue
            entry = page.entries.get(sources.member_address(file, path), sources.NO_ENTRY)
            named.append({"file": file, "path": path, **entry._asdict()})
        if not named:
            return
        table = self._append_kept(pa.Table.from_pylist(named, schema=REQUESTS), page)
        reference = ray.put(table)
        for file in pc.unique(table["file"]).to_pylist():
            self._requests[file].append(reference)


def _list_archive(
    file: str, whole: bool, kept: Sequence[str], *requests: pa.Table
) -> Iterator[tuple[pa.Table, Counts[str]]]:
    """The members of an archive, as a manifest has them, and what was passed over by type.

    Args:
        file: path or URI of the archive.
        whole: all of it was asked for.
        kept: columns of manifests that are kept.
        requests: tables of `REQUESTS`, with rows of other archives among them.
    """
    asked = pa.concat_tables(
        [table.filter(pc.equal(table["file"], file)) for table in requests]
        or [append_kept(REQUESTS.empty_table(), kept)]
    )
    entries: dict[str, sources.Entry] = {}
    indices: dict[tuple[str, int], int] = {}
    for index, row in enumerate(asked.drop_columns(["kept"] if kept else []).to_pylist()):
        if row["manifest"]:
            entry = sources.Entry(row["written"], row["manifest"], row["manifest_row"])
            entries.setdefault(sources.member_address(file, row["path"]), entry)
            indices[entry.manifest, entry.manifest_row] = index
    paths = asked["path"].to_pylist()
    everything = whole or "" in paths
    for page, skipped in sources.archive_pages(file, None if everything else paths):
        table = sources.join_entries(page, entries)
        if kept:
            named = zip(
                table["manifest"].to_pylist(), table["manifest_row"].to_pylist(), strict=True
            )
            rows = pa.array([indices.get(entry) for entry in named], pa.int64())
            table = table.append_column("kept", asked["kept"].combine_chunks().take(rows))
        yield table, skipped
