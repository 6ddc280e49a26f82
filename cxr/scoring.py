"""Score an archive: every listed image has one row in the end, however often the job was killed.

settings.json      what was asked for: another checkpoint or option is refused
manifest.parquet   every file and member that is to be scored, with its place and its part
scores/            a Parquet file a part
scores.csv         all of them, sorted by uri
summary.json       counts, rates, versions; index.html for people

The manifest comes first, so nothing can be forgotten. Rows of it form parts, a part's scores are
written whole under the part's name, and a job that is started again computes the parts whose files
are not there.
"""

import json
import re
import time
from collections import Counter as Counts
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray
from pyarrow import csv
from ray.actor import ActorHandle

from cxr import cluster, devices, parts, sources, storage
from cxr.checkpoint import Checkpoint, package_versions
from cxr.data import READ_CPUS
from cxr.errors import CxrError, DataError
from cxr.labels import CLASSES
from cxr.prediction import PartPredictor
from cxr.progress import Counter, Progress
from cxr.reports import FailedKind, ScoringReport, SuspiciousImage, scoring_page, thumbnail

FORMAT: Final = 1

PART_ROWS: Final = 64
"""Rows of a part, at most: work of a second or more, lost when a process is killed."""

PARTS_PER_CPU: Final = 4
"""Parts that each CPU has to compute of a small archive, at least, so that none waits for long."""

MIN_WRITERS: Final = 2
"""Tasks that write parts at once, at least; with more predictors as many as there are."""

NUM_SUSPICIOUS: Final = 12
"""Thumbnails of the most suspicious images."""

NUM_EXAMPLES: Final = 3
"""Files that are named of each reason."""

MAX_STREAMS: Final = 8
"""Times that a compressed tar is read, each for another range of its members."""


@dataclass(frozen=True)
class ScoreSettings:
    """What a scores folder was made of; the same for every job that works on it."""

    inputs: tuple[str, ...]
    any_body_part: bool
    checkpoint: str
    """Fingerprint."""
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "checkpoint": self.checkpoint,
            "inputs": list(self.inputs),
            "any_body_part": self.any_body_part,
        }


@dataclass(frozen=True)
class Summary:
    """What became of the listed files."""

    num_listed: int
    num_scored: int
    num_refused: int
    num_unreadable: int
    computed: int
    """Rows that this job added; the others were there."""

    @property
    def failed_fraction(self) -> float:
        """Share of the listed files that have no score."""
        return 1 - self.num_scored / max(self.num_listed, 1)


def score(
    inputs: Sequence[str],
    checkpoint: Checkpoint,
    output: str,
    *,
    any_body_part: bool = False,
    update: bool = False,
    gpu: bool = False,
) -> Summary:
    """Score every file that the inputs name, or what an earlier job has left of them.

    Args:
        inputs: as `sources.list_inputs` takes them.
        checkpoint: whose model, temperature and operating point are used.
        output: folder, path or URI: empty, or that of a job with the same settings.
        any_body_part: score DICOM files of other body parts than the chest, too.
        update: list the inputs again and add what is new in them.
        gpu: compute on GPUs.

    Raises:
        SettingsError: the folder holds the scores of other settings.
        DataError: the inputs name nothing.
        CxrError: rows are missing after all.
    """
    started = time.time()
    output = storage.absolute(output)
    settings = ScoreSettings(
        tuple(storage.absolute(each) for each in inputs), any_body_part, checkpoint.fingerprint
    )
    storage.check_same(output, "settings.json", settings.to_json(), "scores")
    manifest, skipped = _manifest(output, settings, update=update)
    listed = parts.by_part(manifest)
    folder = storage.join(output, "scores")
    done = parts.finished_parts(folder, listed)
    missing = manifest.filter(pc.invert(pc.is_in(manifest["part"], pa.array(done, pa.int64()))))
    rates: dict[str, Any] = {}
    if len(missing):
        if done:
            print(f"going on: {len(manifest) - len(missing):,} of {len(manifest):,} have their row")
        with Progress(f"scoring with {checkpoint.recipe.name}", len(missing)) as progress:
            _run(missing, checkpoint, folder, settings, progress.counter, gpu=gpu)
            marks: list[tuple[float, int]] = ray.get(progress.counter.marks.remote())
        rates = _rates(marks, started, _pool(len(missing), gpu=gpu).least)
        done = parts.finished_parts(folder, listed)
        if lost := listed.keys() - done.keys():
            raise CxrError(f"{folder}: {len(lost)} parts are missing. Run the same command again.")
    elif _is_summed_up(output, len(manifest)):
        print("nothing to do: every listed image has its row")
        return _summary(pa.concat_tables(done.values()), 0)
    scores = pa.concat_tables(done[part] for part in sorted(done)).sort_by("uri")
    summary = _summary(scores, len(missing))
    _write_csv(output, scores)
    storage.write_json(
        storage.join(output, "summary.json"),
        facts := _facts(scores, summary, skipped, checkpoint, settings, rates),
    )
    page = _page(scores, summary, skipped, checkpoint, settings, manifest, facts)
    storage.write_bytes(storage.join(output, "index.html"), page.encode())
    return summary


def _is_summed_up(output: str, num_listed: int) -> bool:
    place = storage.join(output, "summary.json")
    return storage.kind(place) == "file" and storage.read_json(place)["listed"] == num_listed


def _manifest(
    output: str, settings: ScoreSettings, *, update: bool
) -> tuple[pa.Table, dict[str, int]]:
    """What is to be scored, listed at the first job and where an update is wanted."""
    place = storage.join(output, "manifest.parquet")
    known = storage.read_table(place) if storage.kind(place) == "file" else None
    listing = storage.join(output, "listing.json")
    if known is not None and not update:
        skipped: dict[str, int] = storage.read_json(listing)["skipped"]
        return known, skipped
    began = time.monotonic()
    table, skipped = list_everything(settings.inputs)
    print(f"listed {len(table):,} images in {time.monotonic() - began:.1f} s", flush=True)
    if known is not None:
        new = pc.invert(pc.is_in(table["uri"], known["uri"]))
        table = table.filter(new)
        gone = len(known) + pc.sum(new).as_py() - len(new)
        print(f"update: {len(table):,} new; {gone:,} of the {len(known):,} known are gone")
    first = 0 if known is None else pc.max(known["part"]).as_py() + 1
    table = table.append_column("part", pa.array(first + number_parts(table)))
    if known is not None:
        table = pa.concat_tables([known, table])
    # Not before: inputs that name nothing leave nothing behind.
    storage.write_json(storage.join(output, "settings.json"), settings.to_json())
    storage.write_json(listing, {"skipped": skipped})
    # Last: a manifest that is there is whole.
    storage.write_table(place, table)
    return table, skipped


def list_everything(inputs: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """Every image that the inputs name, and the files passed over by kind.

    Files of their own by uri, then archives by uri, their members in the order in which they stand
    in them. Archives are listed by the cluster, one task each: a compressed tar has to be read
    whole.
    """
    found = sources.list_inputs(inputs)
    skipped = found.skipped
    tables = {"": found.table().sort_by("uri")}
    if found.archives:
        asked = [
            pa.table({"file": [file], "wanted": pa.array([wanted], pa.list_(pa.string()))})
            for file, wanted in sorted(found.archives.items())
        ]
        listed = ray.data.from_blocks(asked).map_batches(
            parts.list_archives, batch_format="pyarrow", batch_size=None, num_cpus=1
        )
        for row in listed.iter_rows():
            tables[row["file"]] = parts.unpack(row["rows"])
            skipped.update(json.loads(row["skipped"]))
    table = pa.concat_tables(tables[file] for file in sorted(tables))
    if not len(table):
        raise DataError(f"{', '.join(inputs)}: no radiographs found in the archives.")
    return table, dict(skipped)


def number_parts(listed: pa.Table) -> NDArray[np.int64]:
    """The part of each listed row, (N,), from 0 on.

    Parts are small enough to give every CPU some, and a long compressed tar begins a new one, so
    that hardly any part needs two of them.
    """
    rows = int(np.clip(len(listed) / (PARTS_PER_CPU * _num_cpus()), 1, PART_ROWS))
    streams = [_stream(row) for row in listed.select(["file", "place"]).to_pylist()]
    lengths = Counts(streams)
    numbers: NDArray[np.int64] = np.zeros(len(listed), np.int64)
    size = number = 0
    for index, stream in enumerate(streams):
        before = streams[max(0, index - 1)]
        alone = stream != before and max(lengths[stream] if stream else 0,
                                         lengths[before] if before else 0) > rows  # fmt: skip
        if size == rows or alone:
            size, number = 0, number + 1
        numbers[index] = number
        size += 1
    return numbers


def _num_cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _stream(row: dict[str, Any]) -> str:
    """The archive that a row is read from, if only from front to back; else empty."""
    steps = [sources.Step(**step) for step in row["place"]]
    return str(row["file"]) if sources.is_sequential(steps) else ""


def tasks(missing: pa.Table) -> list[pa.Table]:
    """The rows of each task: one part, or of a compressed tar a range of parts in one pass."""
    streams: dict[str, list[pa.Table]] = {}
    singles = []
    for table in parts.by_part(missing).values():
        stream = _stream(table.slice(len(table) - 1).select(["file", "place"]).to_pylist()[0])
        if stream:
            streams.setdefault(stream, []).append(table)
        else:
            singles.append(table)
    ranges = [
        pa.concat_tables([tables[i] for i in indices])
        for tables in streams.values()
        for indices in np.array_split(
            np.arange(len(tables)), min(MAX_STREAMS, _num_cpus(), len(tables))
        )
    ]
    return ranges + singles  # What takes longest first.


def _pool(num_images: int, *, gpu: bool) -> cluster.Pool:
    return cluster.pool(-(-num_images // PART_ROWS), devices.CPU_THREADS, gpu=gpu)


def _run(
    missing: pa.Table,
    checkpoint: Checkpoint,
    folder: str,
    settings: ScoreSettings,
    counter: "ActorHandle[Counter]",
    *,
    gpu: bool,
) -> None:
    cluster.check_reach([folder], missing["file"].to_pylist()[:1])
    pool = _pool(len(missing), gpu=gpu)
    share = pool.share
    point = checkpoint.operating_point
    state = ray.put(dict(checkpoint.model.state_dict()))
    pixels = ray.data.from_blocks(tasks(missing)).map_batches(
        parts.read_parts,
        fn_args=(checkpoint.recipe.image_px, settings.any_body_part),
        batch_format="pyarrow",
        batch_size=None,
        # On CPUs the same claim as the predictors', so that Ray Data joins the two: each process
        # reads and predicts in turn, and none waits for a core. GPUs are fed by tasks beside them.
        num_cpus=1 if gpu else share.num_cpus,
    )
    scored = pixels.map_batches(
        PartPredictor,
        fn_constructor_args=(
            checkpoint.recipe, state, share.threads, gpu, counter, checkpoint.temperature,
            point.threshold,
        ),
        batch_format="pyarrow",
        batch_size=None,
        compute=pool.strategy,
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus,
    )  # fmt: skip
    cluster.execute(
        lambda: scored.write_datasink(
            parts.PartSink(folder),
            ray_remote_args={"num_cpus": READ_CPUS},
            # Each is a process that takes seconds to start: without a bound Ray started ten.
            concurrency=max(MIN_WRITERS, pool.least),
        )
    )


def _rates(marks: Sequence[tuple[float, int]], started: float, num_actors: int) -> dict[str, Any]:
    """Seconds until the first images were scored, and images a second from then on.

    The clock starts where each actor has finished a part: what they do after is counted whole.
    """
    rates: dict[str, Any] = {"seconds": marks[-1][0] - started, "images_per_second": None}
    first = min(num_actors, len(marks)) - 1
    rates["start_up_seconds"] = marks[0][0] - started
    if len(marks) > 2 * num_actors:
        images = sum(count for _, count in marks[first + 1 :])
        rates["images_per_second"] = images / (marks[-1][0] - marks[first][0])
    return rates


def _summary(scores: pa.Table, computed: int) -> Summary:
    counts = Counts(scores["status"].to_pylist())
    return Summary(len(scores), counts["scored"], counts["refused"], counts["unreadable"], computed)


def _write_csv(output: str, scores: pa.Table) -> None:
    joined = pc.binary_join(scores["warnings"].combine_chunks(), "; ")
    flat = scores.set_column(scores.column_names.index("warnings"), "warnings", joined)
    sink = pa.BufferOutputStream()
    csv.write_csv(flat, sink)
    storage.write_bytes(storage.join(output, "scores.csv"), sink.getvalue().to_pybytes())


def _reason(reason: str) -> str:
    """A reason without its numbers, so that like cases count together."""
    return re.sub(r"\d[\d,]*", "N", reason)


def _facts(
    scores: pa.Table,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    settings: ScoreSettings,
    rates: dict[str, Any],
) -> dict[str, Any]:
    reasons: dict[str, dict[str, int]] = {}
    for failed in _failures(scores):
        reasons.setdefault(failed.status, {})[failed.reason] = failed.count
    return {
        "listed": summary.num_listed,
        "scored": summary.num_scored,
        "refused": summary.num_refused,
        "unreadable": summary.num_unreadable,
        "reasons": reasons,
        "warnings": _warnings(scores),
        "skipped": skipped,
        "formats": dict(Counts(scores["format"].to_pylist())),
        "called_pneumonia": scores["prediction"].to_pylist().count(CLASSES[1]),
        "computed_by_this_job": summary.computed,
        **rates,
        "checkpoint": {
            "fingerprint": checkpoint.fingerprint,
            "recipe": checkpoint.recipe.name,
            "temperature": checkpoint.temperature,
            "operating_point": checkpoint.operating_point.to_dict(),
        },
        "settings": settings.to_json(),
        "versions": package_versions(),
    }


def _failures(scores: pa.Table) -> list[FailedKind]:
    """The files without a score by reason, the most frequent first."""
    failed = scores.filter(pc.not_equal(scores["status"], "scored"))
    uris: dict[tuple[str, str], list[str]] = {}
    for status, reason, uri in zip(
        *(failed[name].to_pylist() for name in ("status", "reason", "uri")), strict=True
    ):
        uris.setdefault((status, _reason(reason)), []).append(uri)
    return [
        FailedKind(status, reason, len(named), named[:NUM_EXAMPLES])
        for (status, reason), named in sorted(uris.items(), key=lambda item: -len(item[1]))
    ]


def _warnings(scores: pa.Table) -> dict[str, int]:
    scored = scores.filter(pc.equal(scores["status"], "scored"))
    return dict(
        Counts(
            _reason(warning) for row in scored["warnings"].to_pylist() for warning in row
        ).most_common()
    )


def _page(
    scores: pa.Table,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    settings: ScoreSettings,
    manifest: pa.Table,
    facts: dict[str, Any],
) -> str:
    scored = scores.filter(pc.equal(scores["status"], "scored"))
    names = ("computed_by_this_job", "seconds", "start_up_seconds", "images_per_second",
             "checkpoint", "formats", "versions")  # fmt: skip
    return scoring_page(
        ScoringReport(
            title=f"{summary.num_scored:,} radiographs scored",
            inputs=settings.inputs,
            num_listed=summary.num_listed,
            num_refused=summary.num_refused,
            num_unreadable=summary.num_unreadable,
            probs=np.asarray(scored["prob_pneumonia"]),
            num_called=facts["called_pneumonia"],
            operating_point=checkpoint.operating_point,
            suspicious=_suspicious(scored, manifest, checkpoint.recipe.image_px, settings),
            failures=_failures(scores),
            warnings=_warnings(scores),
            skipped=skipped,
            facts={
                name: round(value, 1) if isinstance(value, float) else value
                for name in names
                if (value := facts.get(name)) is not None
            },
        )
    )


def _suspicious(
    scored: pa.Table, manifest: pa.Table, image_px: int, settings: ScoreSettings
) -> list[SuspiciousImage]:
    """The images of the highest scores, read once more for their thumbnails."""
    top = scored.take(pc.select_k_unstable(scored, NUM_SUSPICIOUS, [("logit", "descending")]))
    listed = manifest.filter(pc.is_in(manifest["uri"], top["uri"])).to_pylist()
    listed.sort(key=lambda row: (row["file"], [step["offset"] for step in row["place"]]))
    read = {
        row["uri"]: thumbnail(parts.pixels(row, image_px))
        for row in parts.read_rows(listed, image_px, settings.any_body_part)
        if row["x"] is not None
    }
    return [
        SuspiciousImage(
            row["uri"], row["prob_pneumonia"], row["prediction"] == CLASSES[1], row["warnings"],
            read[row["uri"]],
        )
        for row in top.to_pylist()
        if row["uri"] in read
    ]  # fmt: skip
