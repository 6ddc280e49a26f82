"""Score an archive: every listed image has one row in the end, however often the job was killed.

settings.json      checkpoint, inputs and options; other ones are refused
manifest.parquet   every file and archive member to be scored, and its part
scores/            one Parquet file per part
damaged/           files of parts that could not be read; there if there were any
scores.csv         all scores, sorted by uri
studies.parquet    scores of studies or patients; there if there is what to group by
summary.json       counts, rates, versions
index.html         the same as a page

The pipeline: manifest -> tasks -> read -> predict -> write -> results. The manifest comes first, so
no image can be forgotten. Its rows form parts, the scores of a part are written atomically under
its name, and a job that is started again computes the parts that have no file.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import ray

from cxr import cli, cluster, storage
from cxr.cluster.crew import Crew, read_ahead
from cxr.errors import CxrError
from cxr.inference.engine import CPU_THREADS
from cxr.inference.networks import send_classifier
from cxr.metrics import OperatingPoint
from cxr.models.checkpoint import Checkpoint
from cxr.progress import Progress
from cxr.scoring import parts
from cxr.scoring.columns import DEFAULTS, ColumnSettings, scores_schema
from cxr.scoring.manifest import ScoreSettings, check_output, kept_columns, open_manifest
from cxr.scoring.parts import pack
from cxr.scoring.predict import PartPredictor
from cxr.scoring.read import ReadSettings, read_packed, tasks
from cxr.scoring.summary import Summary, summarize

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
    gpu: bool = False,
) -> Summary:
    """Score every image that the inputs name, or those that an earlier job has not scored yet.

    Args:
        inputs: as `sources.list_inputs` takes them.
        checkpoint: whose model and temperature are used.
        output: folder, path or URI: empty, or that of a job with the same settings.
        operating_point: chosen on the checkpoint's validation images.
        columns: that the scores have beyond their own.
        any_body_part: also score DICOM files of body parts other than the chest.
        any_view: also score DICOM files of lateral and oblique views.
        update: list the inputs again, and add what is new.
        heatmaps: show on the page where the network looked.
        gpu: compute on GPUs.

    Raises:
        SettingsError: the folder holds scores of other settings or of another format, a column
            cannot be kept, or the key of hashed identifiers is too short.
        DataError: the inputs name nothing.
        CxrError: scores are missing in the end.
        KeyboardInterrupt: says how many rows are kept.
    """
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
        checkpoint_name=checkpoint.name,
    )
    check_output(output, settings)
    if checkpoint.distribution is None:
        print(
            "unusual: the checkpoint does not know its training images (it is of an older version,"
            " or had too few); the columns unusual and unusual_warning are empty"
        )
    manifest, skipped = open_manifest(output, settings, update=update)
    schema = scores_schema(uid_columns, kept_columns(manifest))
    folder = storage.join(output, "scores")
    listed = parts.by_part(manifest)
    done = parts.open_parts(folder, listed, schema)
    missing = {part: rows for part, rows in listed.items() if part not in done}
    num_missing = sum(map(len, missing.values()))
    rates: dict[str, Any] = {}
    if missing:
        if done:
            num_done = len(manifest) - num_missing
            print(f"resumed: {num_done:,} of {len(manifest):,} images have their row")
        with (
            cli.on_interrupt(lambda: _kept(folder, listed, len(manifest))),
            Progress(f"scoring with {checkpoint.recipe.name}", num_missing) as progress,
        ):
            reading = ReadSettings(
                checkpoint.recipe.image_px, any_body_part, any_view, schema, uid_columns
            )
            marks, num_actors = _run(
                missing, checkpoint, operating_point, folder, reading, progress, gpu=gpu
            )
        rates = _rates(marks, started, num_actors)
        done |= parts.read_parts(folder, missing, schema)
        if lost := listed.keys() - done.keys():
            raise CxrError(f"{folder}: {len(lost)} parts are missing. Run the same command again.")
    from cxr.scoring import results  # Matplotlib takes a second, in which parts are scored.

    if not missing and not heatmaps and results.is_written(output, len(manifest)):
        print("nothing to do: every listed image has its row")
        return summarize(pa.concat_tables(done.values()), 0)
    scores = pa.concat_tables(done[part] for part in sorted(done)).sort_by(
        [("uri", "ascending"), ("file", "ascending")]
    )
    summary = summarize(scores, num_missing)
    results.write(
        output, scores, summary, skipped, checkpoint, operating_point, settings, manifest, rates,
        heatmaps=heatmaps,
    )  # fmt: skip
    return summary


def _kept(folder: str, listed: Mapping[int, pa.Table], num_listed: int) -> str:
    kept = parts.count_rows(folder, listed)
    return f"{kept:,} of {num_listed:,} rows are kept; the same command continues"


def _run(
    missing: Mapping[int, pa.Table],
    checkpoint: Checkpoint,
    point: OperatingPoint,
    folder: str,
    reading: ReadSettings,
    progress: Progress,
    *,
    gpu: bool,
) -> tuple[list[tuple[float, int]], int]:
    """When how many rows were done, in seconds since 1970, and how many actors began."""
    first = next(iter(missing.values()))
    cluster.check_reach([folder], first["file"].to_pylist()[:1])
    work = tasks(missing)
    distribution = checkpoint.distribution
    network = send_classifier(checkpoint, gpu=gpu, features=distribution is not None)
    args = (network, CPU_THREADS, reading, folder, checkpoint.temperature, point.threshold,
            ray.put(distribution))  # fmt: skip
    crew = Crew(PartPredictor, args, len(work), CPU_THREADS, gpu=gpu)
    packed = ([pack(rows) for rows in task] for task in work)
    if gpu:
        read = read_ahead(read_packed, ((reading, *rows) for rows in packed), READ_CPUS)
        counts = crew.run("predict", ((part,) for part in read))
    else:
        counts = crew.run("score", packed)
    marks = []
    for count in counts:
        marks.append((time.time(), count))
        progress.add(count)
    return marks, crew.num_first


def _rates(marks: Sequence[tuple[float, int]], started: float, num_actors: int) -> dict[str, Any]:
    """Seconds until the first images were scored, and images per second from then on.

    The rate is measured from when every actor has finished a part.
    """
    rates: dict[str, Any] = {"seconds": marks[-1][0] - started, "images_per_second": None}
    first = min(num_actors, len(marks)) - 1
    rates["start_up_seconds"] = marks[0][0] - started
    if len(marks) > 2 * num_actors:
        images = sum(count for _, count in marks[first + 1 :])
        rates["images_per_second"] = images / (marks[-1][0] - marks[first][0])
    return rates
