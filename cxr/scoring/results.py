"""The results of a scores folder: one table, a summary, a page."""

from collections import Counter as Counts
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cxr import storage
from cxr.images.read import read_all, without_numbers
from cxr.labels import CLASSES
from cxr.metrics import OperatingPoint
from cxr.models.checkpoint import Checkpoint, package_versions
from cxr.reports import (
    FailureGroup,
    ScoringReport,
    SuspiciousImage,
    scoring_page,
    thumbnail,
)
from cxr.scoring.columns import choose_group
from cxr.scoring.explained import explain_pixels
from cxr.scoring.manifest import ScoreSettings, kept_columns
from cxr.scoring.studies import group_scores
from cxr.scoring.summary import Summary

NUM_SUSPICIOUS: Final = 12
"""Images of the highest scores that are shown."""

NUM_UNDECIDED: Final = 6
"""Images nearest to the threshold that are shown."""

NUM_UNUSUAL: Final = 6
"""Of the images that are unlike the training images, those that are shown."""

NUM_EXAMPLES: Final = 3
"""Files that are named for a reason."""


def write(
    output: str,
    scores: pa.Table,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    point: OperatingPoint,
    settings: ScoreSettings,
    manifest: pa.Table,
    rates: dict[str, Any],
    *,
    heatmaps: bool,
) -> None:
    """Write `scores.csv`, `studies.parquet` if there is what to group by, `summary.json`, a page.

    Args:
        output: the scores folder.
        scores: all rows, of the folder's schema, by uri.
        summary: of the scores.
        skipped: files that the listing passed over, by type.
        checkpoint: that the scores are from.
        point: the operating point of the predictions.
        settings: of the folder.
        manifest: the listed files, to read thumbnails from.
        rates: seconds and images per second.
        heatmaps: show where the network looked in the images on the page.
    """
    _write_csv(output, scores)
    facts = _facts(scores, summary, skipped, checkpoint, point, settings, rates)
    if group := choose_group(settings.columns, kept_columns(manifest)):
        studies = group_scores(scores, group, point)
        storage.write_table(storage.join(output, "studies.parquet"), studies)
        in_studies = pc.sum(studies["num_images"]).as_py() or 0
        facts["studies"] = {
            "by": group,
            "rows": len(studies),
            "images_without": len(scores) - in_studies,
        }
    storage.write_json(storage.join(output, "summary.json"), facts)
    page = _page(
        scores, summary, skipped, checkpoint, point, settings, manifest, facts, heatmaps=heatmaps
    )
    storage.write_bytes(storage.join(output, "index.html"), page.encode())


def is_written(output: str, num_listed: int) -> bool:
    """Whether the results of so many listed files are written."""
    summary_uri = storage.join(output, "summary.json")
    is_file = storage.kind(summary_uri) == "file"
    return is_file and storage.read_json(summary_uri)["listed"] == num_listed


def _write_csv(output: str, scores: pa.Table) -> None:
    joined = pc.binary_join(scores["warnings"].combine_chunks(), "; ")
    flat = scores.set_column(scores.column_names.index("warnings"), "warnings", joined)
    sink = pa.BufferOutputStream()
    csv.write_csv(flat, sink)
    storage.write_bytes(storage.join(output, "scores.csv"), sink.getvalue().to_pybytes())


def _facts(
    scores: pa.Table,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    point: OperatingPoint,
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
        "unusual": None
        if checkpoint.distribution is None
        else pc.sum(scores["unusual_warning"]).as_py() or 0,
        "computed_by_this_job": summary.computed,
        **rates,
        "checkpoint": {
            "fingerprint": checkpoint.fingerprint,
            "recipe": checkpoint.recipe.name,
            "precision": checkpoint.precision,
            "temperature": checkpoint.temperature,
            "operating_point": point.to_dict(),
        },
        "settings": settings.to_json(),
        "versions": package_versions(),
    }


def _page(
    scores: pa.Table,
    summary: Summary,
    skipped: dict[str, int],
    checkpoint: Checkpoint,
    point: OperatingPoint,
    settings: ScoreSettings,
    manifest: pa.Table,
    facts: dict[str, Any],
    *,
    heatmaps: bool,
) -> str:
    scored = scores.filter(pc.equal(scores["status"], "scored"))
    shown = _shown(scored, point)
    pictures = _pictures(pa.concat_tables(shown), manifest, checkpoint, settings, heatmaps=heatmaps)
    top, nearest, unusual = (_suspicious(rows, pictures) for rows in shown)
    names = ("studies", "computed_by_this_job", "seconds", "start_up_seconds", "images_per_second",
             "checkpoint", "formats", "versions")  # fmt: skip
    return scoring_page(
        ScoringReport(
            title=f"{summary.num_scored:,} radiographs scored",
            inputs=settings.inputs,
            num_listed=summary.num_listed,
            num_refused=summary.num_refused,
            num_unreadable=summary.num_unreadable,
            probs=np.asarray(scored["prob_pneumonia"]),
            num_predicted=facts["called_pneumonia"],
            operating_point=point,
            suspicious=top,
            undecided=nearest,
            unusual=unusual,
            num_unusual=facts["unusual"],
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


def _failures(scores: pa.Table) -> list[FailureGroup]:
    """The files without a score by reason, the most frequent first."""
    failed = scores.filter(pc.not_equal(scores["status"], "scored"))
    uris: dict[tuple[str, str], list[str]] = {}
    for status, reason, uri in zip(
        *(failed[name].to_pylist() for name in ("status", "reason", "file")), strict=True
    ):
        uris.setdefault((status, without_numbers(reason)), []).append(uri)
    return [
        FailureGroup(status, reason, len(named), named[:NUM_EXAMPLES])
        for (status, reason), named in sorted(uris.items(), key=lambda item: -len(item[1]))
    ]


def _warnings(scores: pa.Table) -> dict[str, int]:
    scored = scores.filter(pc.equal(scores["status"], "scored"))
    return dict(
        Counts(
            without_numbers(warning) for row in scored["warnings"].to_pylist() for warning in row
        ).most_common()
    )


def _shown(scored: pa.Table, point: OperatingPoint) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The rows of the highest scores, of those nearest to the threshold, of the most unusual."""
    top = pc.select_k_unstable(scored, NUM_SUSPICIOUS, [("logit", "descending")])
    distance = pc.abs(pc.subtract(scored["prob_pneumonia"], point.threshold))
    nearest = pc.select_k_unstable(
        pa.table({"distance": distance}), NUM_UNDECIDED, [("distance", "ascending")]
    )
    unusual = scored.filter(scored["unusual_warning"])
    unusual = unusual.sort_by([("unusual", "descending"), ("uri", "ascending")])
    return scored.take(top), scored.take(nearest), unusual.slice(0, NUM_UNUSUAL)


def _pictures(
    rows: pa.Table,
    manifest: pa.Table,
    checkpoint: Checkpoint,
    settings: ScoreSettings,
    *,
    heatmaps: bool,
) -> dict[str, tuple[bytes, bytes]]:
    """Thumbnails of images, read again, and of their heatmaps, empty unless asked for; by file."""
    listed = manifest.filter(pc.is_in(manifest["uri"], rows["file"])).to_pylist()
    images = read_all(
        listed,
        checkpoint.recipe.image_px,
        any_body_part=settings.any_body_part,
        any_view=settings.any_view,
    )
    pixels = {
        row["uri"]: image.pixels
        for row, image in zip(listed, images, strict=True)
        if image.pixels is not None
    }
    overlays: dict[str, bytes] = {}
    if heatmaps and pixels:
        maps = explain_pixels(checkpoint, np.stack(list(pixels.values())))
        overlays = {
            uri: thumbnail(pixels[uri], heatmap) for uri, heatmap in zip(pixels, maps, strict=True)
        }
    return {uri: (thumbnail(image), overlays.get(uri, b"")) for uri, image in pixels.items()}


def _suspicious(
    rows: pa.Table, pictures: Mapping[str, tuple[bytes, bytes]]
) -> list[SuspiciousImage]:
    return [
        SuspiciousImage(
            row["file"], row["prob_pneumonia"], row["prediction"] == CLASSES[1], row["warnings"],
            *pictures[row["file"]],
        )
        for row in rows.to_pylist()
        if row["file"] in pictures
    ]  # fmt: skip
