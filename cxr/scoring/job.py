"""Score an archive: every listed image has one row in the end, however often the job was killed.

settings.json      checkpoint, inputs and options; other ones are refused
manifest/          every file and archive member to be scored, and its part: Parquet files
listing.json       how many there are; there once all are listed
scores/            one Parquet file per part
structured-reports/  a folder for each part, with a DICOM Structured Report for each DICOM image
damaged/           files that could not be read; there if there were any
scores.csv         all scores in the order of the manifest; scores.csv.gz above a million rows
studies.parquet    scores of studies or patients; there if there is what to group by
summary.json       counts, rates, versions
index.html         the same as a page

The pipeline: manifest -> tasks -> read -> predict -> write -> results. A file of the manifest is
written before its rows are scored, so no image can be forgotten, and scoring begins with the first
one. Its rows form parts, the scores of a part are written atomically under its name, and a job that
is started again lists what was not listed, and computes the parts that have no file. The driver
holds the rows of one or two files of the manifest, whatever the size of the archive.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray

from cxr import cli, cluster, storage
from cxr.cluster.crew import Crew, read_ahead
from cxr.inference.engine import CPU_THREADS
from cxr.inference.networks import send_classifier
from cxr.metrics import OperatingPoint
from cxr.models.checkpoint import Checkpoint
from cxr.progress import Progress
from cxr.scoring.columns import DEFAULTS, ColumnSettings, choose_group, scores_schema
from cxr.scoring.listing import RowLister
from cxr.scoring.manifest import Listing, Manifest, ScoreSettings, check_output, when_begun
from cxr.scoring.parts import damaged_folder, pack, remove_others
from cxr.scoring.predict import PartPredictor
from cxr.scoring.read import ReadSettings, read_packed
from cxr.scoring.report_settings import ReportSettings, check_installed
from cxr.scoring.summary import Summary
from cxr.scoring.work import Work

READ_CPUS: Final = 1
"""CPUs of a task that reads for a GPU."""


def score(
    inputs: Sequence[str],
    checkpoint: Checkpoint,
    output: str,
    *,
    operating_point: OperatingPoint,
    columns: ColumnSettings = DEFAULTS,
    any_body_part: bool = False,
    any_view: bool = False,
    update: bool = False,
    heatmaps: bool = False,
    dicom_sr: bool = False,
    gpu: bool = False,
) -> Summary:
    """Score every image that the inputs name, or those that an earlier job has not scored yet.

    Args:
        inputs: as `sources.InputPages` takes them.
        checkpoint: whose model and calibration are used.
        output: folder, path or URI: empty, or that of a job with the same settings.
        operating_point: chosen on the checkpoint's validation images.
        columns: that the scores have beyond their own.
        any_body_part: also score DICOM files of body parts other than the chest.
        any_view: also score DICOM files of lateral and oblique views.
        update: list the inputs again, and add what is new.
        heatmaps: show on the page where the network looked.
        dicom_sr: write a Structured Report for each DICOM image.
        gpu: compute on GPUs.

    Raises:
        SettingsError: the folder holds scores of other settings or of another format, a column
            cannot be kept, the key of hashed identifiers is too short, or highdicom is not
            installed.
        DataError: the inputs name nothing.
        StorageError: another job is writing to the folder.
        CxrError: scores are missing in the end.
        KeyboardInterrupt: says how many rows are kept.
    """
    if dicom_sr:
        check_installed()
    started = time.time()
    output = storage.absolute(output)
    uid_columns = columns.uid_columns()
    settings = ScoreSettings(
        tuple(storage.absolute(uri) for uri in inputs),
        any_body_part,
        any_view,
        checkpoint.fingerprint,
        operating_point.rule,
        columns,
        uid_columns.key_digest if uid_columns else "",
        dicom_sr=dicom_sr,
        checkpoint_name=checkpoint.name,
        begun=time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(started)),
    )
    check_output(output, settings)  # Before anything is written there.
    with storage.lock_folder(output) as lock:
        resumed = check_output(output, settings)
        if resumed:
            settings = dataclasses.replace(settings, begun=when_begun(output))
        cluster.check_reach([output])
        manifest = Manifest(output)
        kept = manifest.kept_columns()
        lister = None
        if kept is None or update or not manifest.is_complete:
            lister = RowLister(settings.inputs, columns)
            kept = manifest.check_kept(lister.kept)
        schema = scores_schema(uid_columns, kept, dicom_sr=dicom_sr)
        group = choose_group(columns, kept)
        folder = storage.join(output, "scores")
        reading = ReadSettings(
            checkpoint.recipe.image_px, any_body_part, any_view, schema, uid_columns,
            keep_evidence=dicom_sr,
        )  # fmt: skip
        reports = None
        if dicom_sr:
            reports = ReportSettings(
                folder, checkpoint.title, checkpoint.fingerprint, operating_point, settings.begun
            )
        rates = Rates(started)
        if checkpoint.distribution is None:
            print(
                "unusual: the checkpoint does not know its training images (it is of an older"
                " version, or had too few); the columns unusual and unusual_warning are empty"
            )
        with Work(
            output, settings, manifest, schema, lister, resumed=resumed, update=update
        ) as work:
            _compute(
                work, lock, checkpoint, operating_point, folder, reading, reports, rates, gpu=gpu
            )
        listing = work.listing
        assert listing is not None
        _remove_others(folder, listing)
        from cxr.scoring import results  # Matplotlib takes a second, in which parts are scored.

        finished = None if heatmaps or rates.num_rows else results.written(output, listing.num_rows)
        if finished:
            print("nothing to do: every listed image has its row")
            return finished
        return cluster.execute(
            lambda: results.write(
                output, listing, manifest, schema, group, checkpoint, operating_point, settings,
                rates.num_rows, rates.facts(), heatmaps=heatmaps,
            )
        )  # fmt: skip


def _kept(work: Work, rates: "Rates") -> str:
    of = f"{work.num_listed:,}{'' if work.is_listed else ' or more'}"
    return f"{work.num_done + rates.num_rows:,} of {of} rows are kept; the same command continues"


def _compute(
    work: Work,
    lock: storage.Lock,
    checkpoint: Checkpoint,
    point: OperatingPoint,
    folder: str,
    reading: ReadSettings,
    reports: ReportSettings | None,
    rates: "Rates",
    *,
    gpu: bool,
) -> None:
    """Compute what is missing."""
    batches = work.tasks()
    first = next(batches, None)
    if first is None:
        return
    with (
        cli.on_interrupt(lambda: _kept(work, rates)),
        Progress(f"scoring with {checkpoint.recipe.name}", work.total) as progress,
    ):
        cluster.check_reach([], first[0][0]["file"].to_pylist()[:1])
        for count in _run(
            first, batches, checkpoint, point, folder, reading, reports, rates, gpu=gpu
        ):
            lock.check()
            rates.add(count)
            progress.add(count)
            progress.total = work.total


def _run(
    first: list[list[pa.Table]],
    batches: Iterator[list[list[pa.Table]] | None],
    checkpoint: Checkpoint,
    point: OperatingPoint,
    folder: str,
    reading: ReadSettings,
    reports: ReportSettings | None,
    rates: "Rates",
    *,
    gpu: bool,
) -> Iterator[int]:
    """Start actors, and give them the calls of the first batch and of those to come.

    Yields:
        The rows of each part that is done.
    """
    distribution = checkpoint.distribution
    network = send_classifier(
        checkpoint, gpu=gpu, appended=distribution.output if distribution else None
    )
    args = (
        network, CPU_THREADS, reading, folder, checkpoint.scaling, point.threshold,
        ray.put(distribution), reports,
    )  # fmt: skip
    crew = Crew(PartPredictor, args, len(first), CPU_THREADS, gpu=gpu)
    rates.num_actors = crew.num_first

    def packed() -> Iterator[list[bytes] | None]:
        yield from ([pack(rows) for rows in task] for task in first)
        for batch in batches:
            if batch is None:
                yield None
                continue
            crew.expect(len(batch))
            yield from ([pack(rows) for rows in task] for task in batch)

    if not gpu:
        return crew.run("score", packed())
    calls = (None if rows is None else (reading, *rows) for rows in packed())
    read = read_ahead(read_packed, calls, READ_CPUS)
    return crew.run("predict", (None if part is None else (part,) for part in read))


class Rates:
    """Seconds until the first images were scored, and images per second from then on.

    The rate is measured from when every actor has finished a part.
    """

    def __init__(self, started: float) -> None:
        """Begin to measure.

        Args:
            started: seconds since 1970.
        """
        self.num_actors = 1
        """That there was room for at the start."""
        self.num_rows = 0
        """Rows that were computed."""
        self._started = started
        self._num_parts = self._num_first = 0
        self._first = self._all_began = self._last = 0.0

    def add(self, count: int) -> None:
        """Note that a part of so many rows is done."""
        self._last = time.time()
        self._num_parts += 1
        self.num_rows += count
        if self._num_parts == 1:
            self._first = self._last
        if self._num_parts <= self.num_actors:
            self._all_began, self._num_first = self._last, self.num_rows

    def facts(self) -> dict[str, Any]:
        """What the summary says of it; empty if nothing was computed."""
        if not self._num_parts:
            return {}
        rate = None
        if self._num_parts > 2 * self.num_actors:
            rate = (self.num_rows - self._num_first) / (self._last - self._all_began)
        return {
            "seconds": self._last - self._started,
            "images_per_second": rate,
            "start_up_seconds": self._first - self._started,
        }


def _remove_others(folder: str, listing: Listing) -> None:
    """Leave nothing in the folder of the parts that would be read as scores."""
    is_part = np.zeros(max((file.end for file in listing.files), default=0), dtype=bool)
    for file in listing.files:
        is_part[file.first_part : file.end] = True
    if num_moved := remove_others(folder, is_part):
        print(f"damaged: {num_moved:,} files of parts that are in no manifest, moved to"
              f" {damaged_folder(folder)}", flush=True)  # fmt: skip
