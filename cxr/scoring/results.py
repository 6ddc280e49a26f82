"""The results of a scores folder: one CSV, a summary, a page; made from the parts by tasks."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cxr import cluster, storage
from cxr.errors import CxrError
from cxr.images.read import read_all
from cxr.labels import CLASSES
from cxr.metrics import OperatingPoint
from cxr.models.checkpoint import Checkpoint, package_versions
from cxr.reports import FailureGroup, ScoredImage, ScoringReport, scoring_page, thumbnail
from cxr.scoring.explained import explain_pixels
from cxr.scoring.manifest import Listing, Manifest, ScoreSettings
from cxr.scoring.studies import merge_groups, studies_schema
from cxr.scoring.summary import Summary, summarize
from cxr.scoring.totals import Shown, Totals, count_file, csv_lines

MAX_CSV_ROWS: Final = 1_000_000
"""Rows of `scores.csv`; more are written to `scores.csv.gz`."""

PARTITION_ROWS: Final = 1_000_000
"""Images whose studies or patients are grouped by one task, about."""

MAX_PARTITIONS: Final = 256

TASK_CPUS: Final = 1
"""CPUs of a task, when no actor is left that holds them."""


def write(
    output: str,
    listing: Listing,
    manifest: Manifest,
    schema: pa.Schema,
    group: str,
    checkpoint: Checkpoint,
    point: OperatingPoint,
    settings: ScoreSettings,
    computed: int,
    rates: dict[str, Any],
    *,
    heatmaps: bool,
) -> Summary:
    """Write `scores.csv`, `studies.parquet` if there is what to group by, `summary.json`, a page.

    Args:
        output: the scores folder.
        listing: what was scored.
        manifest: its files.
        schema: of the scores.
        group: the column of studies or patients; empty if there is none.
        checkpoint: that the scores are from.
        point: the operating point of the predictions.
        settings: of the folder.
        computed: rows that this job has computed.
        rates: seconds and images per second.
        heatmaps: show where the network looked in the images on the page.

    Raises:
        CxrError: parts are missing.
    """
    num_partitions = min(-(-listing.num_rows // PARTITION_ROWS), MAX_PARTITIONS) if group else 0
    totals, partitions = _count(output, listing, manifest, schema, group, num_partitions, point)
    summary = summarize(totals.statuses, computed)
    facts = _facts(totals, summary, listing.skipped, checkpoint, point, settings, rates)
    if settings.dicom_sr:
        facts["structured_reports"] = _count_reports(totals, summary)
    if group:
        facts["studies"] = _write_studies(output, partitions, group, point, summary.num_listed)
    storage.write_json(storage.join(output, "summary.json"), facts)
    page = _page(
        totals, summary, listing.skipped, checkpoint, point, settings, facts, heatmaps=heatmaps
    )
    storage.write_bytes(storage.join(output, "index.html"), page.encode())
    return summary


def written(output: str, num_listed: int) -> Summary | None:
    """The summary of the results that are written, if they are of so many listed files."""
    summary_uri = storage.join(output, "summary.json")
    if storage.kind(summary_uri) != "file":
        return None
    facts = storage.read_json(summary_uri)
    if facts["listed"] != num_listed:
        return None
    return summarize({name: facts[name] for name in ("scored", "refused", "unreadable")}, 0)


def _count(
    output: str,
    listing: Listing,
    manifest: Manifest,
    schema: pa.Schema,
    group: str,
    num_partitions: int,
    point: OperatingPoint,
) -> tuple[Totals, list[list[Any]]]:
    """Write `scores.csv` in the order of the manifest.

    Returns:
        What the scores add up to, and references to the tables of each partition of the groups.
    """
    compressed = listing.num_rows > MAX_CSV_ROWS
    names = ("scores.csv.gz", "scores.csv") if compressed else ("scores.csv", "scores.csv.gz")
    csv_uri, other_uri = (storage.join(output, name) for name in names)
    folder = storage.join(output, "scores")
    totals = Totals(point.threshold)
    partitions: list[list[Any]] = [[] for _ in range(num_partitions)]
    fixed = (folder, schema, point.threshold, group, num_partitions, compressed)
    calls = ((manifest.uri(file.number), *fixed) for file in listing.files)
    with storage.write_stream(csv_uri) as lines:
        lines.write(csv_lines(schema.empty_table(), compressed=compressed, header=True))
        here = len(listing.files) == 1
        for stream in cluster.run_in_order(count_file, calls, TASK_CPUS, here=here):
            totals.add(ray.get(next(stream)))
            if totals.missing:
                raise CxrError(
                    f"{folder}: {len(totals.missing)} parts are missing. Run the same command"
                    " again."
                )
            for tables in partitions:
                tables.append(next(stream))
            for reference in stream:
                lines.write(ray.get(reference))
    storage.delete_file(other_uri)
    return totals, partitions


def _write_studies(
    output: str,
    partitions: Sequence[Sequence[Any]],
    group: str,
    point: OperatingPoint,
    num_rows: int,
) -> dict[str, Any]:
    """Write `studies.parquet`, one partition after the other; what the summary says of it."""
    num_groups = num_images = 0
    calls = ((group, point, tables) for tables in partitions)
    here = len(partitions) == 1
    with (
        storage.write_stream(storage.join(output, "studies.parquet")) as file,
        pq.ParquetWriter(file, studies_schema(group), write_page_checksum=True) as writer,
    ):
        for stream in cluster.run_in_order(_merge, calls, TASK_CPUS, here=here):
            for reference in stream:
                studies = ray.get(reference)
                writer.write_table(studies)
                num_groups += len(studies)
                num_images += sum(studies["num_images"].to_pylist())
    return {"by": group, "rows": num_groups, "images_without": num_rows - num_images}


def _merge(group: str, point: OperatingPoint, tables: Sequence[Any]) -> Iterator[pa.Table]:
    yield merge_groups(ray.get(list(tables)), group, point)


def _facts(
    totals: Totals,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    point: OperatingPoint,
    settings: ScoreSettings,
    rates: dict[str, Any],
) -> dict[str, Any]:
    reasons: dict[str, dict[str, int]] = {}
    for failed in _failures(totals):
        reasons.setdefault(failed.status, {})[failed.reason] = failed.count
    return {
        "listed": summary.num_listed,
        "scored": summary.num_scored,
        "refused": summary.num_refused,
        "unreadable": summary.num_unreadable,
        "reasons": reasons,
        "warnings": dict(totals.warnings.most_common()),
        "skipped": skipped,
        "formats": dict(totals.formats),
        "called_pneumonia": totals.num_predicted,
        "unusual": None if checkpoint.distribution is None else totals.num_unusual,
        "computed_by_this_job": summary.computed,
        **rates,
        "checkpoint": {
            "fingerprint": checkpoint.fingerprint,
            "recipe": checkpoint.recipe.name,
            "precision": checkpoint.precision,
            "calibration": dataclasses.asdict(checkpoint.scaling),
            "operating_point": point.to_dict(),
        },
        "settings": settings.to_json(),
        "versions": package_versions(),
    }


def _count_reports(totals: Totals, summary: Summary) -> dict[str, int]:
    """Scored images by whether they have a Structured Report, which is printed as well."""
    others = summary.num_scored - totals.num_reports - totals.num_not_dicom
    line = f"structured reports: of {totals.num_reports:,} images"
    if totals.num_not_dicom:
        line += f"; {totals.num_not_dicom:,} are not DICOM and have none"
    if others:
        line += f"; {others:,} DICOM images have none, for the reason in their warnings"
    print(line)
    return {
        "images": totals.num_reports, "not_dicom": totals.num_not_dicom, "not_possible": others
    }  # fmt: skip


def _page(
    totals: Totals,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    point: OperatingPoint,
    settings: ScoreSettings,
    facts: dict[str, Any],
    *,
    heatmaps: bool,
) -> str:
    names = ("studies", "structured_reports", "computed_by_this_job", "seconds", "start_up_seconds",
             "images_per_second", "checkpoint", "formats", "versions")  # fmt: skip
    shown = [*totals.highest, *totals.nearest, *totals.unusual]
    pictures = _pictures(shown, checkpoint, settings, heatmaps=heatmaps)
    return scoring_page(
        ScoringReport(
            title=f"{summary.num_scored:,} radiographs scored",
            note=checkpoint.note,
            inputs=settings.inputs,
            num_listed=summary.num_listed,
            num_refused=summary.num_refused,
            num_unreadable=summary.num_unreadable,
            histogram=totals.histogram,
            num_predicted=facts["called_pneumonia"],
            operating_point=point,
            suspicious=_show(totals.highest, pictures),
            nearest=_show(totals.nearest, pictures),
            unusual=_show(totals.unusual, pictures),
            num_unusual=facts["unusual"],
            failures=_failures(totals),
            warnings=facts["warnings"],
            skipped=skipped,
            facts={
                name: round(value, 1) if isinstance(value, float) else value
                for name in names
                if (value := facts.get(name)) is not None
            },
        )
    )


def _failures(totals: Totals) -> list[FailureGroup]:
    """The files without a score by reason, the most frequent first."""
    return [
        FailureGroup(status, reason, failures.count, failures.examples)
        for (status, reason), failures in sorted(
            totals.failures.items(), key=lambda item: -item[1].count
        )
    ]


def _pictures(
    images: Sequence[Shown], checkpoint: Checkpoint, settings: ScoreSettings, *, heatmaps: bool
) -> dict[str, tuple[bytes, bytes]]:
    """Thumbnails of images, read again, and of their heatmaps, empty unless asked for; by file."""
    listed = {image.listed["uri"]: image.listed for image in images}
    read = read_all(
        list(listed.values()), checkpoint.recipe.image_px,
        any_body_part=settings.any_body_part, any_view=settings.any_view,
    )  # fmt: skip
    pixels = {
        uri: image.pixels
        for uri, image in zip(listed, read, strict=True)
        if image.pixels is not None
    }
    overlays: dict[str, bytes] = {}
    if heatmaps and pixels:
        maps = explain_pixels(checkpoint, np.stack(list(pixels.values())))
        overlays = {
            uri: thumbnail(pixels[uri], heatmap) for uri, heatmap in zip(pixels, maps, strict=True)
        }
    return {uri: (thumbnail(image), overlays.get(uri, b"")) for uri, image in pixels.items()}


def _show(
    images: Sequence[Shown], pictures: Mapping[str, tuple[bytes, bytes]]
) -> list[ScoredImage]:
    return [
        ScoredImage(
            uri=row["file"],
            prob=row["prob_pneumonia"],
            positive=row["prediction"] == CLASSES[1],
            warnings=row["warnings"],
            unusual=row["unusual"],
            thumbnail=pictures[row["file"]][0],
            heatmap=pictures[row["file"]][1],
        )
        for row in (image.score for image in images)
        if row["file"] in pictures
    ]
