"""The page and the table on several versions: ours as measured, beside what was published."""

from collections.abc import Mapping, Sequence

from cxr.metrics.results import PUBLISHED_FIGURES, History, VersionResult
from cxr.reports import figures, page
from cxr.reports.evaluation import PHANTOMS
from cxr.reports.page import RESEARCH_ONLY, Html

_OURS = "measured here: validation fold"
_COST = "cost"
_THEIRS = "published: official test split"

_SPLITS_DIFFER = (
    "The two sides were measured on different images and cannot be set against each other: ours on "
    "the validation fold, at the operating point chosen on that fold; the published ones on the "
    "official test split, by the 2019 experiment, which also stopped early on it."
)


# ---------------------------------------------------------------- terminal


# Header and width: at most 110 columns with two spaces between.
_COLUMNS = (
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
_TEXT_COLUMNS = ("version", "data", "loading")
_GROUPS = (("", 2), (_OURS, 6), (_COST, 3), (_THEIRS, 2))


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
                *(page.number(value)[:5] for value in _ours(row)),
                _measured(row.train_seconds),
                _measured(row.peak_memory_mb),
                row.loading,
                *(_published(value) for value in _theirs(row)),
            ]
        )
        for row in rows
    ]
    footnote = [
        f"{_OURS}, at the operating point chosen on it (cost: of the training).",
        "published: official test split, by the 2019 experiment. Different images: do not compare.",
    ]
    if any(row.data.startswith("phantom") for row in rows):
        footnote.append("phantoms are synthetic: figures on them say nothing about radiographs.")
    rule = "-" * len(header)
    return "\n".join([_group_line(), header, rule, *body, rule, *footnote])


def _line(cells: Sequence[str]) -> str:
    fitted = []
    for cell, (name, width) in zip(cells, _COLUMNS, strict=True):
        short = cell if len(cell) <= width else cell[: width - 1] + "~"
        fitted.append(short.ljust(width) if name in _TEXT_COLUMNS else short.rjust(width))
    return "  ".join(fitted)


def _group_line() -> str:
    """The headings of the column groups, each above its first column."""
    line, column, start = "", 0, 0
    for text, span in (*_GROUPS[:-1], ("published test", 2)):
        line = line.ljust(start) + text
        start += sum(width + 2 for _, width in _COLUMNS[column : column + span])
        column += span
    return line


def _ours(row: VersionResult) -> tuple[float | None, ...]:
    return row.auc, row.accuracy, row.balanced_accuracy, row.sensitivity, row.specificity


def _theirs(row: VersionResult) -> tuple[float | None, float | None]:
    return row.published_accuracy, row.published_sensitivity


def _measured(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _published(value: float | None) -> str:
    return "-" if value is None else page.number(value)


# ---------------------------------------------------------------- page


def comparison_page(
    rows: Sequence[VersionResult],
    histories: Mapping[str, History],
    notes: Sequence[str],
    title: str,
) -> str:
    """Several versions side by side as one HTML document that loads nothing.

    Args:
        rows: one for each version, in the order shown.
        histories: by version, its epochs; a version without one is left out of the curves.
        notes: what a reader must know, such as what the data were.
        title: the page's heading.
    """
    data = ", ".join(dict.fromkeys(row.data for row in rows))
    sizes = " / ".join(dict.fromkeys(f"{row.num_images:,}" for row in rows))
    sample = f"Validation fold of {data}, {sizes} images"
    banners = [page.banner(PHANTOMS)] if any(_synthetic(row) for row in rows) else []
    sections = [
        page.section("Figures", _SPLITS_DIFFER, _table(rows), *_footnotes(rows)),
        page.section(
            "Learning",
            f"{sample}: after each epoch.",
            _curves(histories),
        ),
        page.section(
            "Cost",
            "Greatest memory of the training worker, and wall clock of the training, on the "
            "machine and images of this run. Colors tell how the images were loaded.",
            page.grid([_cost_bars(rows, memory=True), _cost_bars(rows, memory=False)], "two"),
        ),
    ]
    if notes:
        sections.append(page.section("To note", "", page.bullets(notes)))
    return page.page(title, "Comparison", f"{sample}. {RESEARCH_ONLY}", [*banners, *sections])


def _synthetic(row: VersionResult) -> bool:
    return row.data.startswith("phantom")


def _table(rows: Sequence[VersionResult]) -> Html:
    metrics = ("AUC", "accuracy", "balanced accuracy", "sensitivity", "specificity")
    cost, published = (
        ("train, s", "peak, MB", "loading"),
        ("published accuracy", "published sensitivity"),
    )
    return page.table(
        ("version", "data", "images", *metrics, *cost, *published),
        [
            (
                row.name,
                row.data,
                f"{row.num_images:,}",
                *(page.number(value) for value in _ours(row)),
                _measured(row.train_seconds),
                _measured(row.peak_memory_mb),
                row.loading,
                *(_published(value) for value in _theirs(row)),
            )
            for row in rows
        ],
        groups=_GROUPS,
        kind="stacked compared",
    )


def _footnotes(rows: Sequence[VersionResult]) -> list[Html]:
    """Why a figure is undefined, and what is to be known of the published ones."""
    lines = [
        f"{row.name}, published: {PUBLISHED_FIGURES[row.name].remark}."
        for row in rows
        if row.published_accuracy is not None
        and row.name in PUBLISHED_FIGURES
        and PUBLISHED_FIGURES[row.name].remark
    ]
    if any(None in _ours(row) for row in rows):
        lines.append("undefined: the validation fold holds no image of a class.")
    return [page.bullets(lines)] if lines else []


def _curves(histories: Mapping[str, History]) -> Html:
    shown = {name: history for name, history in histories.items() if history}
    if not shown:
        return page.markup("No training history was recorded.")
    return page.grid(
        [
            page.titled(heading, figures.learning_curves(shown, key, heading))
            for heading, key in (("Validation AUC", "val_auc"), ("Validation loss", "val_loss"))
        ],
        "two",
    )


def _cost_bars(rows: Sequence[VersionResult], *, memory: bool) -> Html:
    heading = "Peak memory" if memory else "Training time"
    values = {
        row.name: (row.peak_memory_mb if memory else row.train_seconds, row.loading) for row in rows
    }
    drawn = figures.bars(
        heading.split()[1], f"{heading} of each version", values, "MB" if memory else "seconds"
    )
    return page.titled(heading, drawn)
