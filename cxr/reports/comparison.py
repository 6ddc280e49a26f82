"""The page and the table on several versions: ours as measured, beside what was published."""

from collections.abc import Mapping, Sequence
from typing import Final

from cxr.metrics.results import PUBLISHED_FIGURES, History, VersionResult
from cxr.reports.figures import comparison, training
from cxr.reports.rendering import measured, number, render

# Header and width: at most 110 columns with two spaces between.
_COLUMNS: Final = (
    ("version", 8),
    ("data", 10),
    ("images", 6),
    ("AUC", 5),
    ("acc", 5),
    ("bal acc", 7),
    ("sens", 5),
    ("spec", 5),
    ("train s", 7),
    ("peak MB", 7),
    ("loading", 7),
    ("acc", 6),
    ("sens", 6),
)
_TEXT_COLUMNS: Final = ("version", "data", "loading")

# Heading and number of columns.
_GROUPS: Final = (
    ("", 2),
    ("measured here: validation fold", 6),
    ("cost", 3),
    ("published test", 2),
)


def comparison_table(rows: Sequence[VersionResult]) -> str:
    """A plain-text table of at most 110 columns, for the terminal.

    Undefined figures read `undef`, figures that were never published or measured `-`.
    """
    header = _line([name for name, _ in _COLUMNS])
    body = [
        _line(
            [
                row.name,
                row.data,
                f"{row.num_images:,}",
                *(number(value, "undef") for value in _metrics(row)),
                measured(row.train_seconds),
                measured(row.peak_memory_mb),
                row.loading,
                number(row.published_accuracy, "-"),
                number(row.published_sensitivity, "-"),
            ]
        )
        for row in rows
    ]
    footnotes = [
        "measured here: validation fold, at the operating point chosen on it (cost: of training).",
        "published: official test split, by the 2019 experiment. Different images: do not compare.",
    ]
    if _synthetic(rows):
        footnotes.append("phantoms are synthetic: figures on them say nothing about radiographs.")
    rule = "-" * len(header)
    return "\n".join([_group_line(), header, rule, *body, rule, *footnotes])


def _line(cells: Sequence[str]) -> str:
    """Cells padded to the widths of their columns; longer ones are cut."""
    fitted = []
    for cell, (name, width) in zip(cells, _COLUMNS, strict=True):
        short = cell if len(cell) <= width else cell[: width - 1] + "~"
        fitted.append(short.ljust(width) if name in _TEXT_COLUMNS else short.rjust(width))
    return "  ".join(fitted)


def _group_line() -> str:
    """The headings of the column groups, each above its first column."""
    line, column, start = "", 0, 0
    for heading, span in _GROUPS:
        line = line.ljust(start) + heading
        start += sum(width + 2 for _, width in _COLUMNS[column : column + span])
        column += span
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
