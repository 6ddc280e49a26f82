"""The parts that are to be computed, found while the inputs are still being listed.

A thread of the driver lists the inputs and writes the manifest, file by file. Which parts of a file
have their scores, tasks of the cluster find out. The driver keeps a few numbers for each file, and
reads its rows when it hands them over.
"""

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cxr import cluster, sources, storage
from cxr.scoring.columns import append_kept
from cxr.scoring.listing import RowLister
from cxr.scoring.manifest import (
    FILE_ROWS,
    MAX_COST,
    Listing,
    Manifest,
    ManifestFile,
    ScoreSettings,
    describe,
    in_files,
    max_part_cost,
    number_parts,
    read_file,
)
from cxr.scoring.parts import by_part, damaged_folder, find_missing
from cxr.scoring.read import tasks


@dataclass(frozen=True)
class Checked:
    """A file of the manifest, and what of it is to be computed."""

    file: ManifestFile | None
    """None if it is damaged."""
    missing: list[int]
    """Parts."""
    num_missing: int
    """Rows of these."""
    num_damaged: int
    """Files of parts that were moved."""


_END: Final = object()

STOP_S: Final = 10.0
"""Longest time that a job which ends early waits for its listing, which may wait for a store."""


class _StoppedError(Exception):
    """The job has ended before the listing did."""


class Work(threading.Thread):
    """A context that lists and finds; the parts are taken with `tasks`."""

    def __init__(
        self,
        output: str,
        settings: ScoreSettings,
        manifest: Manifest,
        schema: pa.Schema,
        lister: RowLister | None,
        *,
        resumed: bool,
        update: bool,
    ) -> None:
        """Nothing is listed before the context is entered.

        Args:
            output: the scores folder.
            settings: of it, which are stored before the first row.
            manifest: as far as it is written.
            schema: of the scores.
            lister: lists the inputs; None for those of a complete manifest.
            resumed: the folder was begun by an earlier job.
            update: the inputs are listed again, although the manifest is complete.
        """
        super().__init__(daemon=True, name="listing")
        self._output, self._settings, self._manifest = output, settings, manifest
        self._folder, self._schema = storage.join(output, "scores"), schema
        self._lister, self._resumed, self._update = lister, resumed, update
        self.num_listed = self.num_missing = self.num_done = 0
        """Rows; of the manifest so far, of parts that are to be computed, and of others."""
        self.is_listed = False
        """Whether the numbers of rows are final."""
        self.listing: Listing | None = None
        """The complete listing, once all parts were taken."""
        self._num_damaged = 0
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()

    @property
    def total(self) -> int | None:
        """Rows that are to be computed; None while nobody knows."""
        return self.num_missing if self.is_listed else None

    def __enter__(self) -> "Work":
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self.join(STOP_S)

    def tasks(self) -> Iterator[list[list[pa.Table]] | None]:
        """The parts to be computed, those of one file of the manifest at a time.

        Yields:
            Calls, each the rows of some parts; None if there are none yet, but not at first: that
            is waited for.

        Raises:
            CxrError: the inputs cannot be listed; what was listed before was yielded.
        """
        item = self._queue.get()
        while item is not _END:
            if item is None:
                yield None
            elif isinstance(item, BaseException):
                raise item
            else:
                rows = by_part(self._manifest.read(item.file.number))
                yield tasks({part: rows[part] for part in item.missing})
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                item = None

    def run(self) -> None:
        """Put what is missing into the queue."""
        try:
            self.listing = cluster.execute(self._find_and_list)
            self.is_listed = True
            self._queue.put(_END)
        except BaseException as error:
            self._queue.put(error)

    def _find_and_list(self) -> Listing:
        files: dict[int, ManifestFile] = {}
        for number, checked in self._check_files():
            if checked.file:
                files[number] = checked.file
                self._put(checked)
        lost = [number for number in range(self._manifest.num_files) if number not in files]
        listing = self._manifest.listing
        if lost or self._lister or listing is None:
            for number in lost:
                uri = self._manifest.uri(number)
                print(f"{uri}: damaged or missing; the inputs are listed again", flush=True)
            lister = self._lister or RowLister(self._settings.inputs, self._settings.columns)
            self._manifest.check_kept(lister.kept)
            for file in self._list(lister, files, lost):
                files[file.number] = file
                self._put(self._check_new(file))
            in_order = [files[number] for number in sorted(files)]
            listing = self._manifest.finish(in_order, dict(lister.skipped))
        if self._num_damaged:
            print(f"damaged: {self._num_damaged:,} parts, moved to {damaged_folder(self._folder)}"
                  " and computed again", flush=True)  # fmt: skip
        if self.num_done and self.num_missing:
            print(f"resumed: {self.num_done:,} of {self.num_listed:,} images have their row",
                  flush=True)  # fmt: skip
        return listing

    def _put(self, checked: Checked) -> None:
        assert checked.file
        self.num_listed += checked.file.num_rows
        self.num_missing += checked.num_missing
        self.num_done += checked.file.num_rows - checked.num_missing
        self._num_damaged += checked.num_damaged
        if checked.missing:
            self._queue.put(checked)

    def _check_files(self) -> Iterator[tuple[int, Checked]]:
        """The files that are there, each by a task."""
        numbers = sorted(self._manifest.numbers)
        calls = ((n, self._manifest.uri(n), self._folder, self._schema) for n in numbers)
        streams = cluster.run_in_order(
            _check_file, calls, cluster.SPARE_CPUS, here=len(numbers) == 1
        )
        for number, stream in zip(numbers, streams, strict=True):
            for reference in stream:
                yield number, ray.get(reference)
            self._check_stopped()

    def _check_new(self, file: ManifestFile) -> Checked:
        """A file that was just written; of a folder that was begun, parts of it may be there."""
        if not self._resumed:
            return Checked(file, list(range(file.first_part, file.end)), file.num_rows, 0)
        [checked] = _check_file(
            file.number, self._manifest.uri(file.number), self._folder, self._schema
        )
        return checked

    def _list(
        self, lister: RowLister, files: Mapping[int, ManifestFile], lost_numbers: Sequence[int]
    ) -> Iterator[ManifestFile]:
        """List the inputs, and write what is new: in place of lost files, then in new ones.

        The order of a listing is stable, so what is new fills lost files with the rows that they
        had, and a listing that was cut continues where it ended.
        """
        began = time.monotonic()
        num_known = sum(file.num_rows for file in files.values())
        listing = self._manifest.listing
        former = {file.number: file for file in listing.files} if listing else {}
        lost = deque(lost_numbers)
        sizes = [former[number].num_rows if number in former else FILE_ROWS for number in lost]
        new = _NewRows(self._pages(lister), self._digests(files.values()))
        for rows in in_files(new, itertools.chain(sizes, itertools.repeat(FILE_ROWS))):
            number = lost.popleft() if lost else max(files, default=-1) + 1
            if not files and not self._resumed:
                # Not before: inputs that name nothing leave nothing behind.
                settings_uri = storage.join(self._output, "settings.json")
                storage.write_json(settings_uri, self._settings.to_json())
            if number in former:
                max_cost = former[number].max_cost
            else:
                max_cost = MAX_COST if len(rows) == FILE_ROWS else max_part_cost(rows)
            yield self._write(number, rows, max_cost, files)
        for number in lost:  # Their rows were not found again.
            rows = append_kept(sources.INVENTORY.empty_table(), lister.kept)
            yield self._write(number, rows, MAX_COST, files)
        if self._update:
            print(f"update: {new.num_new:,} new; {num_known - new.num_again:,} of the"
                  f" {num_known:,} known are gone", flush=True)  # fmt: skip
        else:
            seconds = time.monotonic() - began
            print(f"listed {new.num_new + new.num_again:,} images in {seconds:.1f} s", flush=True)

    def _pages(self, lister: RowLister) -> Iterator[pa.Table]:
        for page in lister.pages():
            self._check_stopped()
            yield page

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise _StoppedError

    def _digests(self, files: Collection[ManifestFile]) -> sources.Digests:
        """Of what the files list, by tasks."""
        known = sources.Digests()
        calls = ((self._manifest.uri(file.number),) for file in files)
        here = len(files) == 1
        for stream in cluster.run_in_order(_digest_file, calls, cluster.SPARE_CPUS, here=here):
            for reference in stream:
                known.add(ray.get(reference))
        return known

    def _write(
        self, number: int, rows: pa.Table, max_cost: int, files: Mapping[int, ManifestFile]
    ) -> ManifestFile:
        """Write a file, whose parts are numbered between those of its neighbors if they fit."""
        parts = number_parts(rows, max_cost)
        first = max((file.end for file in files.values() if file.number < number), default=0)
        end = first + (int(parts[-1]) + 1 if len(parts) else 0)
        if any(file.number > number and file.first_part < end for file in files.values()):
            first = max(file.end for file in files.values())
        return self._manifest.write(number, rows, parts, first, max_cost)


class _NewRows:
    """The rows of a listing that are not known."""

    def __init__(self, pages: Iterable[pa.Table], known: sources.Digests) -> None:
        self._pages, self._known = pages, known
        self.num_new = self.num_again = 0
        """Rows that were not known, and that were."""

    def __iter__(self) -> Iterator[pa.Table]:
        for page in self._pages:
            rows = page
            if len(self._known):
                is_known = self._known.contain(sources.digest(page["uri"].to_pylist()))
                rows = page.filter(pa.array(~is_known))
            self.num_new += len(rows)
            self.num_again += len(page) - len(rows)
            if len(rows):
                yield rows


def _check_file(number: int, uri: str, folder: str, schema: pa.Schema) -> Iterator[Checked]:
    """Find what is missing of a file of the manifest.

    Args:
        number: of the file.
        uri: of the file.
        folder: of the parts.
        schema: of the scores.
    """
    rows = read_file(uri)
    if rows is None:
        yield Checked(None, [], 0, 0)
        return
    listed = by_part(rows)
    missing, num_damaged = find_missing(folder, listed, schema)
    num_missing = sum(len(listed[part]) for part in missing)
    yield Checked(describe(number, rows), missing, num_missing, num_damaged)


def _digest_file(uri: str) -> Iterator[NDArray[np.bytes_]]:
    yield sources.digest(storage.read_table(uri, ["uri"])["uri"].to_pylist())
