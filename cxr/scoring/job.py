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

import time
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.actor import ActorHandle

from cxr import cluster, storage
from cxr.cluster.counter import ClusterProgress, Counter
from cxr.datasets.shards import READ_CPUS
from cxr.errors import CxrError
from cxr.inference import devices
from cxr.models.checkpoint import Checkpoint
from cxr.scoring import parts, results
from cxr.scoring.manifest import PART_ROWS, ScoreSettings, manifest_of, tasks
from cxr.scoring.predict import PartPredictor
from cxr.scoring.results import Summary

MIN_WRITERS: Final = 2
"""Tasks that write parts at once, at least; with more predictors as many as there are."""


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
    manifest, skipped = manifest_of(output, settings, update=update)
    listed = parts.by_part(manifest)
    folder = storage.join(output, "scores")
    done = parts.finished_parts(folder, listed)
    missing = manifest.filter(pc.invert(pc.is_in(manifest["part"], pa.array(done, pa.int64()))))
    rates: dict[str, Any] = {}
    if len(missing):
        if done:
            print(f"going on: {len(manifest) - len(missing):,} of {len(manifest):,} have their row")
        with ClusterProgress(f"scoring with {checkpoint.recipe.name}", len(missing)) as progress:
            _run(missing, checkpoint, folder, settings, progress.counter, gpu=gpu)
            marks: list[tuple[float, int]] = ray.get(progress.counter.marks.remote())
        rates = _rates(marks, started, _pool(len(missing), gpu=gpu).min_size)
        done = parts.finished_parts(folder, listed)
        if lost := listed.keys() - done.keys():
            raise CxrError(f"{folder}: {len(lost)} parts are missing. Run the same command again.")
    elif results.is_written(output, len(manifest)):
        print("nothing to do: every listed image has its row")
        return results.summarize(pa.concat_tables(done.values()), 0)
    scores = pa.concat_tables(done[part] for part in sorted(done)).sort_by("uri")
    summary = results.summarize(scores, len(missing))
    results.write(output, scores, summary, skipped, checkpoint, settings, manifest, rates)
    return summary


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
            concurrency=max(MIN_WRITERS, pool.min_size),
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
