"""Read a labeled set as training reads it, and report what is found."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr import cli, labels, phantoms, storage
from cxr.checking import findings
from cxr.cluster.settings import CacheSettings
from cxr.datasets.headers import HEADERS, list_labeled_set, read_headers
from cxr.datasets.pixels import decode_listing
from cxr.datasets.shards import Shards, read_part
from cxr.errors import DataError
from cxr.reports import CheckReport, Sample, checking_page, thumbnail
from cxr.reports.rendering import count
from cxr.sources import LISTING, LabeledSet
from cxr.storage.arrays import to_array
from cxr.training.preparation import choose_training_images
from cxr.training.settings import ImageSettings, RecipeChoice

TEST_FRACTION: Final = 0.2
"""Share of the patients that is held out of a set without a test split, unless the user says."""

NUM_SAMPLES: Final = 6
"""Images of each class on the page."""


@dataclasses.dataclass
class _Part:
    """The images of one split."""

    listing: pa.Table
    """Of schema `sources.LISTING`; labels that training refuses are null."""
    folds: NDArray[np.int64]
    shards: Shards | None = None
    """Of pixels, once they are decoded."""


@dataclasses.dataclass
class _Reading:
    """A set as it was read, and what stands against using it."""

    settings: ImageSettings
    """With the test fraction that was chosen."""
    parts: dict[str, _Part]
    """By split."""
    problems: list[str]
    """Why training cannot start."""
    warnings: list[str]


def check(
    choice: RecipeChoice, settings: ImageSettings, cached: CacheSettings, output: str
) -> CheckReport:
    """Read every image of a set once, and write check.json and report.html.

    Images are decoded as a training with the same settings decodes them, so that it finds them in
    the cache.

    Args:
        choice: the recipes that are to be trained; images are decoded at their sizes.
        settings: the set, and which of its images train.
        cached: where decoded pixels are kept.
        output: folder, empty.

    Raises:
        DataError: there is no labeled set. For one that cannot be trained on there is a report.
    """
    recipes = choice.read()
    data, name = phantoms.data_or_default(settings.data, cached.cache)
    labeled = list_labeled_set(data, settings, cached.cache)
    reading = _choose(labeled, settings)
    if not reading.parts:
        raise DataError(reading.problems[0])
    # The largest size last: it is the one that is looked at.
    for image_px in sorted({recipe.image_px for recipe in recipes}):
        for part in reading.parts.values():
            part.shards = decode_listing(part.listing, part.folds, image_px, cached.cache)
    report = _report(
        labeled, reading, name, max(recipe.image_px for recipe in recipes),
        _command(choice, reading.settings, cached), cached.cache,
    )  # fmt: skip
    storage.write_json(storage.join(output, "check.json"), report.to_json())
    storage.write_bytes(storage.join(output, "report.html"), checking_page(report).encode())
    return report


def _command(choice: RecipeChoice, settings: ImageSettings, cached: CacheSettings) -> str:
    """The training that follows."""
    words = [*cli.flags(choice, RecipeChoice), *cli.flags(settings), *cli.flags(cached)]
    return cli.command("train", words)


def _choose(labeled: LabeledSet, settings: ImageSettings) -> _Reading:
    """The images of each split as jobs read them; all of them where a job would refuse them."""
    reading = _Reading(settings, {}, [], [])
    _choose_training(labeled, reading)
    for split in labels.SPLITS:
        if split in reading.parts or not len(labeled.find_split(split)):
            continue
        try:
            reading.parts[split] = _whole(labeled.split(split))
        except DataError as error:
            # The problem of the training images, if any, is the first to solve.
            if split != "train":
                reading.warnings.append(str(error))
            rows = labeled.table.take(labeled.find_split(split))
            reading.parts[split] = _whole(rows.select(LISTING.names))
    order = [split for split in labels.SPLITS if split in reading.parts]
    reading.parts = {split: reading.parts[split] for split in order}
    return reading


def _choose_training(labeled: LabeledSet, reading: _Reading) -> None:
    """Add the training images and those that are held out, or why there are none."""
    settings = reading.settings
    has_test = len(labeled.find_split("test")) > 0
    proposals = [settings]
    if settings.test_fraction is None and not has_test:
        proposals.insert(0, dataclasses.replace(settings, test_fraction=TEST_FRACTION))
    for proposal in proposals:
        try:
            images = choose_training_images(labeled, proposal)
        except DataError as error:
            problem = str(error)
            continue
        reading.settings = proposal
        reading.parts["train"] = _Part(images.listing, images.folds)
        if len(images.held_out):
            reading.parts["test"] = _whole(images.held_out)
        if not images.has_test:
            reading.warnings.append(
                "No test split, and too few patients to hold some out: nothing is left to evaluate"
                " on but the fold that validates."
            )
        elif proposal is not settings:
            reading.warnings.append(
                f"No test split: the command holds out {TEST_FRACTION:.0%} of the patients of each"
                " class, for jobs/evaluate.py."
            )
        return
    reading.problems.append(problem)


def _whole(listing: pa.Table) -> _Part:
    """A split that is not divided into folds."""
    return _Part(listing, np.zeros(len(listing), np.int64))


def _report(
    labeled: LabeledSet, reading: _Reading, name: str, image_px: int, command: str, cache: str
) -> CheckReport:
    parts = reading.parts
    shards = {split: part.shards for split, part in parts.items() if part.shards}
    used = _concat({split: one.table for split, one in shards.items()})
    failed = _concat({split: one.failed for split, one in shards.items()})
    # Duplicates are left out after they were decoded.
    is_decoded = pc.not_equal(failed["pixels_sha256"], "")
    decoded = pa.concat_tables([used, failed.filter(is_decoded).select(used.column_names)])
    counts = {
        table: Counter(images["split"].to_pylist())
        for table, images in (("decoded", decoded), ("used", used))
    }
    duplicates = findings.find_duplicates(decoded)
    train_labels = Counter(shards["train"].table["label"].to_pylist()) if "train" in shards else {}
    problems = reading.problems or [
        f"train: not one {label} image can be used."
        for index, label in enumerate(labels.CLASSES)
        if not train_labels.get(index)
    ]
    shared = findings.count_shared_patients({s: part.listing for s, part in parts.items()})
    headers = _read_headers(labeled, decoded, failed, cache)
    return CheckReport(
        title=f"{name}: what is in it",
        data=name,
        command="" if problems else command,
        problems=problems,
        warnings=[*reading.warnings, *findings.describe_duplicates(duplicates[-1])],
        patients=labeled.patients.sentence,
        num_patients=len(
            {p for part in parts.values() for p in part.listing["patient"].to_pylist()}
        ),
        largest_patient=labeled.patients.largest,
        splits=[
            findings.count_split(
                split, part.listing, counts["decoded"][split], counts["used"][split]
            )
            for split, part in parts.items()
        ],
        shared_patients=shared,
        formats=findings.count_formats(
            decoded["format"].to_pylist(),
            failed.filter(pc.invert(is_decoded))["format"].to_pylist(),
        ),
        failures=findings.group_failures(failed),
        skipped=dict(labeled.skipped),
        duplicates=duplicates,
        sizes=findings.measure_sizes(decoded, image_px),
        image_px=image_px,
        views=Counter(view or "not given" for view in headers["view"].to_pylist()),
        ages=findings.count_ages(headers["age_years"].to_pylist()),
        samples=_draw_samples(shards["train"]) if "train" in shards else [],
        facts={
            name: value
            for name, value in dataclasses.asdict(reading.settings).items()
            if name != "data"
        },
    )


def _concat(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Tables of all splits as one with a column `split`."""
    return pa.concat_tables(
        table.append_column("split", pa.array([split] * len(table), pa.string()))
        for split, table in tables.items()
    )


def _read_headers(labeled: LabeledSet, decoded: pa.Table, failed: pa.Table, cache: str) -> pa.Table:
    """The headers of the DICOM files among the images, of schema `HEADERS`."""
    dicom = [table.filter(pc.equal(table["format"], "dicom"))["uri"] for table in (decoded, failed)]
    uris = pa.chunked_array([chunk for column in dicom for chunk in column.chunks], pa.string())
    rows = labeled.table.filter(pc.is_in(labeled.table["uri"], uris))
    return read_headers(rows, cache) if len(rows) else HEADERS.empty_table()


def _draw_samples(shards: Shards) -> list[Sample]:
    """Images of each class, from the first files: their rows are in random order."""
    samples: dict[int, list[Sample]] = {index: [] for index in range(len(labels.CLASSES))}
    for path in (path for paths in shards.parts.values() for path in paths):
        rows = read_part(path, ("uri", "label", "x"))
        arrays = to_array(rows["x"], shards.shape, shards.dtype)
        for uri, label, pixels in zip(
            rows["uri"].to_pylist(), rows["label"].to_pylist(), arrays, strict=True
        ):
            drawn = samples.get(label)
            if drawn is not None and len(drawn) < NUM_SAMPLES:
                drawn.append(Sample(uri=uri, label=label, thumbnail=thumbnail(pixels)))
        if all(len(drawn) == NUM_SAMPLES for drawn in samples.values()):
            break
    return [sample for drawn in samples.values() for sample in drawn]


def summary(report: CheckReport) -> str:
    """What was found, in a few lines."""
    lines = [
        f"{count(report.num_images, 'image')} of {count(report.num_patients, 'patient')} in"
        f" {report.data}. {report.patients}"
    ]
    lines += [
        f"  {split.split:5} {count(split.num_images, 'image')}: {split.num_normal:,}"
        f" {labels.CLASSES[0]}, {split.num_pneumonia:,} {labels.CLASSES[1]};"
        f" {count(split.num_patients, 'patient')}; decoded {split.num_decoded:,}"
        for split in report.splits
    ]
    formats = ", ".join(f"{name} {sum(pair):,}" for name, pair in report.formats.items())
    lines.append(f"formats: {formats or 'none'}")
    lines += [f"  {group.count:,} {group.status}: {group.reason}" for group in report.failures]
    if report.skipped:
        passed_over = ", ".join(f"{number:,} {name}" for name, number in report.skipped.items())
        lines.append(f"passed over: {passed_over}")
    equal = "; ".join(
        f"{count(found.num_groups, 'group')} by {found.compared}" for found in report.duplicates
    )
    lines.append(f"duplicates: {equal}")
    return "\n".join([*lines, *(f"note: {warning}" for warning in report.warnings)])
