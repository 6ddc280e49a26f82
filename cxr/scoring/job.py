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
import ray.data
from ray.actor import ActorHandle

from cxr import cli, cluster, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import READ_CPUS
from cxr.errors import CxrError
from cxr.inference.engine import CPU_THREADS
from cxr.inference.networks import send_classifier
from cxr.metrics import OperatingPoint
from cxr.models.checkpoint import Checkpoint
from cxr.scoring import parts, results
from cxr.scoring.columns import DEFAULTS, ColumnSettings, UidColumns, scores_schema
from cxr.scoring.manifest import (
    PART_ROWS,
    ScoreSettings,
    check_output,
    kept_columns,
    open_manifest,
)
from cxr.scoring.predict import PartPredictor
from cxr.scoring.read import read_parts, tasks
from cxr.scoring.results import Summary
from cxr.scoring.write import PartSink

MIN_WRITERS: Final = 2
"""Least number of concurrent tasks that write parts; with more predictors, as many as those."""


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
    )
    check_output(output, settings)
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
            ClusterProgress(f"scoring with {checkpoint.recipe.name}", num_missing) as progress,
        ):
            _run(
                missing, num_missing, checkpoint, operating_point, folder, settings, schema,
                uid_columns, progress.counter, gpu=gpu,
            )  # fmt: skip
            marks: list[tuple[float, int]] = ray.get(progress.counter.marks.remote())
        rates = _rates(marks, started, _pool(num_missing, gpu=gpu).min_size)
        done |= parts.read_parts(folder, missing, schema)
        if lost := listed.keys() - done.keys():
            raise CxrError(f"{folder}: {len(lost)} parts are missing. Run the same command again.")
    elif results.is_written(output, len(manifest)):
        print("nothing to do: every listed image has its row")
        return results.summarize(pa.concat_tables(done.values()), 0)
    scores = pa.concat_tables(done[part] for part in sorted(done)).sort_by(
        [("uri", "ascending"), ("file", "ascending")]
    )
    summary = results.summarize(scores, num_missing)
    results.write(
        output, scores, summary, skipped, checkpoint, operating_point, settings, manifest, rates
    )
    return summary


def _kept(folder: str, listed: Mapping[int, pa.Table], num_listed: int) -> str:
    kept = parts.count_rows(folder, listed)
    return f"{kept:,} of {num_listed:,} rows are kept; the same command continues"


def _pool(num_images: int, *, gpu: bool) -> cluster.Pool:
    return cluster.pool(-(-num_images // PART_ROWS), CPU_THREADS, gpu=gpu)


def _run(
    missing: Mapping[int, pa.Table],
    num_images: int,
    checkpoint: Checkpoint,
    point: OperatingPoint,
    folder: str,
    settings: ScoreSettings,
    schema: pa.Schema,
    uid_columns: UidColumns | None,
    counter: "ActorHandle[Counter]",
    *,
    gpu: bool,
) -> None:
    first = next(iter(missing.values()))
    cluster.check_reach([folder], first["file"].to_pylist()[:1])
    pool = _pool(num_images, gpu=gpu)
    share = pool.share
    network = send_classifier(checkpoint, gpu=gpu)
    work = tasks(missing)
    pixels = ray.data.from_blocks(work).map_batches(
        read_parts,
        fn_args=(
            checkpoint.recipe.image_px,
            settings.any_body_part,
            settings.any_view,
            schema,
            uid_columns,
        ),
        batch_format="pyarrow",
        batch_size=None,
        # On CPUs the same claim as the predictors', so that Ray Data fuses the two: a process reads
        # and predicts in turn, and none waits for a core. GPUs are fed by separate tasks.
        num_cpus=1 if gpu else share.num_cpus,
    )
    scored = pool.map(
        pixels,
        PartPredictor,
        (
            network, checkpoint.recipe.image_px, share.threads, counter,
            checkpoint.temperature, point.threshold, schema,
        ),
    )  # fmt: skip
    cluster.execute(
        lambda: scored.write_datasink(
            PartSink(folder),
            ray_remote_args={"num_cpus": READ_CPUS},
            # A process takes seconds to start, and without a limit Ray started ten.
            # Ray warns of a limit above the number of tasks.
            concurrency=min(len(work), max(MIN_WRITERS, pool.min_size)),
        )
    )


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
