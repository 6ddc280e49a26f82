"""The page and the table on several versions: ours as measured, beside what was published."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cxr.metrics.results import PUBLISHED_FIGURES, History, VersionResult
from cxr.reports.figures import comparison, training
from cxr.reports.rendering import measured, number, render

_Column = tuple[str, int, Callable[[VersionResult], str]]
"""Header, width, and the text of a row's cell."""


def _figure(name: str, missing: str = "undef") -> Callable[[VersionResult], str]:
    return lambda row: number(getattr(row, name), missing)


_MEASURED: Final[tuple[_Column, ...]] = (
    ("images", 6, lambda row: f"{row.num_images:,}"),
    ("AUC", 5, _figure("auc")),
    ("acc", 5, _figure("accuracy")),
    ("bal acc", 7, _figure("balanced_accuracy")),
    ("sens", 5, _figure("sensitivity")),
    ("spec", 5, _figure("specificity")),
)
_GROUPS: Final[tuple[tuple[str, tuple[_Column, ...]], ...]] = (
    ("", (("version", 8, lambda row: row.name), ("data", 10, lambda row: row.data))),
    ("measured here: validation fold", _MEASURED),
    (
        "cost",
        (
            ("train s", 7, lambda row: measured(row.train_seconds)),
            ("MB", 6, lambda row: measured(row.peak_memory_mb)),
        ),
    ),
)
_STRESSED: Final[tuple[str, tuple[_Column, ...]]] = (
    "AUC stressed",
    (("mean", 5, _figure("stressed_auc", "-")), ("worst", 5, _figure("worst_auc", "-"))),
)
_PUBLISHED: Final[tuple[str, tuple[_Column, ...]]] = (
    "published",
    (
        ("acc", 5, _figure("published_accuracy", "-")),
        ("sens", 5, _figure("published_sensitivity", "-")),
    ),
)
"""Shown if there is such a figure. All widths, with two spaces between, are at most 110 columns."""

_TEXT_COLUMNS: Final = ("version", "data")


def comparison_table(rows: Sequence[VersionResult], remarks: Sequence[str] = ()) -> str:
    """A plain-text table of at most 110 columns, for the terminal.

    Undefined figures read `undef`, figures that were never published or measured `-`.

    Args:
        rows: one per version, in the order shown.
        remarks: lines below the table, after those on where its figures are from.
    """
    groups = [*_GROUPS]
    if _is_stressed(rows):
        groups.insert(2, _STRESSED)
    if _is_published(rows):
        groups.append(_PUBLISHED)
    columns = [column for _, members in groups for column in members]
    header = _line(columns, [name for name, *_ in columns])
    body = [_line(columns, [cell(row) for *_, cell in columns]) for row in rows]
    footnotes = [
        "measured here: validation fold, at the operating point chosen on it (cost: of training)."
    ]
    if _is_stressed(rows):
        worst = ", ".join(f"{row.name} {row.worst_change}" for row in rows if row.worst_change)
        footnotes.append(f"AUC stressed: under acquisition changes; the worst: {worst}.")
    if _is_published(rows):
        footnotes.append(
            "published: official test split, by the 2019 experiment. Different images: do not"
            " compare."
        )
    if _synthetic(rows):
        footnotes.append("phantoms are synthetic: figures on them say nothing about radiographs.")
    rule = "-" * len(header)
    return "\n".join([_group_line(groups), header, rule, *body, rule, *footnotes, *remarks])


def _line(columns: Sequence[_Column], cells: Sequence[str]) -> str:
    """Cells padded to the widths of their columns; longer ones are cut."""
    fitted = []
    for cell, (name, width, _) in zip(cells, columns, strict=True):
        short = cell if len(cell) <= width else cell[: width - 1] + "~"
        fitted.append(short.ljust(width) if name in _TEXT_COLUMNS else short.rjust(width))
    return "  ".join(fitted)


def _group_line(groups: Sequence[tuple[str, tuple[_Column, ...]]]) -> str:
    """The headings of the column groups, each above its first column."""
    line, start = "", 0
    for heading, members in groups:
        line = line.ljust(start) + heading
        start += sum(width + 2 for _, width, _ in members)
    return line


def comparison_page(
    rows: Sequence[VersionResult],
    histories: Mapping[str, History],
    notes: Sequence[str],
    title: str,
) -> str:
    """Several versions side by side as one HTML document that loads nothing.

    Args:
        rows: one per version, in the order shown.
        histories: by version, its epochs; a version without any has no learning curve.
        notes: what a reader must know, such as what the data were.
        title: the heading of the page.
    """
    data = ", ".join(dict.fromkeys(row.data for row in rows))
    sizes = " / ".join(dict.fromkeys(f"{row.num_images:,}" for row in rows))
    trained = {name: history for name, history in histories.items() if history}
    memory = {row.name: (row.peak_memory_mb, row.loading) for row in rows}
    seconds = {row.name: (row.train_seconds, row.loading) for row in rows}
    return render(
        "comparison.html",
        title=title,
        sample=f"Validation fold of {data}, {sizes} images",
        synthetic=_synthetic(rows),
        stressed=_is_stressed(rows),
        published=_is_published(rows),
        rows=rows,
        footnotes=_footnotes(rows),
        curves=[
            (heading, training.learning_curves(trained, key, heading))
            for heading, key in (("Validation AUC", "val_auc"), ("Validation loss", "val_loss"))
            if trained
        ],
        memory=comparison.bars("memory", "Peak memory of each version", memory, "MB"),
        time=comparison.bars("time", "Training time of each version", seconds, "seconds"),
        notes=notes,
    )


def _metrics(row: VersionResult) -> tuple[float | None, ...]:
    return row.auc, row.accuracy, row.balanced_accuracy, row.sensitivity, row.specificity


def _is_stressed(rows: Sequence[VersionResult]) -> bool:
    return any(row.stressed_auc is not None for row in rows)


def _is_published(rows: Sequence[VersionResult]) -> bool:
    return any(row.published_accuracy is not None for row in rows)


def _synthetic(rows: Sequence[VersionResult]) -> bool:
    return any(row.data.startswith("phantom") for row in rows)


def _footnotes(rows: Sequence[VersionResult]) -> list[str]:
    """Remarks on published figures, and why a figure is undefined."""
    footnotes = [
        f"{row.name}, published: {published.remark}."
        for row in rows
        if row.published_accuracy is not None
        and (published := PUBLISHED_FIGURES.get(row.name))
        and published.remark
    ]
    if any(None in _metrics(row) for row in rows):
        footnotes.append("undefined: the validation fold has no images of one class.")
    return footnotes
