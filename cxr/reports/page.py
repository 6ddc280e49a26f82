"""The parts that every page is made of: skeleton, tables, tiles, thumbnails, what it is not for.

Text becomes markup in one place: `markup` escapes whatever is not `Html` already, so a hostile file
name or a stray `<` in a setting can only ever be read, never run.
"""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cxr.errors import ImageError

UNDEFINED = "undefined"

RESEARCH_ONLY = "Research software. Not a medical device, not for clinical use."

THUMBNAIL_PX = 224
"""Longest side of a thumbnail."""

_WIDE_FIGURE_CHARS = 7
"""A longer headline figure is set smaller: `1,234,567` would break over two lines."""


class Html(str):
    """Markup that is safe to put on a page as it is."""

    __slots__ = ()


def markup(value: object) -> Html:
    """`Html` as it is, anything else as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], separator: str = "") -> Html:
    return Html(separator.join(markup(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """`tag("td", "5 < 6", class_="n")` -> `<td class="n">5 &lt; 6</td>`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value != ""
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def page(title: str, kicker: str, summary: str, sections: Iterable[Html]) -> str:
    """A whole HTML document around its sections."""
    header = tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", title),
        tag("p", summary, class_="summary"),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{tag('title', title)}\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{tag('main', header, *sections)}\n</body>\n</html>\n"
    )


def section(heading: str, caption: str, *content: Html) -> Html:
    """A card with a heading, a sentence on what is shown, and its content."""
    lead = [tag("p", caption, class_="caption")] if caption else []
    return tag("section", tag("h2", heading), *lead, *content)


def banner(text: str) -> Html:
    return tag("p", text, class_="banner", role="note")


def grid(parts: Iterable[Html], kind: str = "") -> Html:
    return tag("div", *parts, class_=f"grid {kind}".strip())


def titled(heading: str, content: Html, caption: str = "") -> Html:
    """A figure under its own small heading."""
    below = [tag("figcaption", caption)] if caption else []
    return tag("figure", tag("h3", heading), content, *below)


def tiles(values: Iterable[tuple[str, str, Sequence[str]]]) -> Html:
    """Headline figures: name, figure, and the lines below that say what it is of."""
    return tag(
        "div",
        *(
            tag(
                "div",
                tag("dt", name),
                tag("dd", figure, class_=_figure_kind(figure)),
                *(tag("dd", line) for line in lines),
            )
            for name, figure, lines in values
        ),
        class_="tiles",
    )


def _figure_kind(figure: str) -> str:
    if figure == UNDEFINED:
        return "figure missing"
    if any(character.isalpha() for character in figure):
        return "figure words"
    return "figure long" if len(figure) > _WIDE_FIGURE_CHARS else "figure"


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    kind: str = "",
) -> Html:
    """A table whose first column names the row.

    Args:
        header: one cell for each column.
        rows: as long as the header each.
        groups: a row above the header, text and number of columns each; empty for none.
        kind: a class for the style; `"stacked"` and `"figures"` turn rows into cards on
            a narrow screen.
    """
    above = [tag("tr", *(tag("th", text, colspan=span) for text, span in groups))] if groups else []
    body = (
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", cell, data_label=html.unescape(str(name)))
                for name, cell in zip(header[1:], row[1:], strict=True)
            ),
        )
        for row in rows
    )
    head = tag("thead", *above, tag("tr", *(tag("th", name, scope="col") for name in header)))
    return tag("table", head, tag("tbody", *body), class_=kind)


def facts(values: Mapping[str, Any]) -> Html:
    """Settings or provenance as name and value; nested ones are flattened with dots."""
    return table(("name", "value"), _flatten(values), kind="facts")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            rows.append((f"{prefix}{name}", value))
        else:
            rows.append((f"{prefix}{name}", json.dumps(value, default=str)))
    return rows


def bullets(lines: Iterable[str]) -> Html:
    return tag("ul", *(tag("li", line) for line in lines))


def number(value: float | None, digits: int = 3) -> str:
    """`0.968`; `undefined` where there is none."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def count(value: int, noun: str) -> str:
    """`1,204 images`, `1 image`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def short_uri(uri: str) -> str:
    """The last two parts of a path: enough to find the image, none of the machine it lay on."""
    parts = [part for part in uri.replace("\\", "/").split("/") if part not in ("", "..")]
    return "/".join(parts[-2:])


def thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A small JPEG of a radiograph, longest side at most `THUMBNAIL_PX`, without metadata.

    Args:
        pixels: gray levels 0-255, uint8, (H, W), bone bright.

    Raises:
        ImageError: `pixels` is not uint8 with two dimensions.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        raise ImageError(
            f"thumbnail of {pixels.dtype} pixels {pixels.shape}: expected gray uint8 (H, W)."
        )
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return file.getvalue()


def picture(jpeg: bytes, text: str) -> Html:
    """An image inside the page; `text` is what a screen reader says."""
    source = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    return Html(f'<img src="{source}" alt="{html.escape(text)}" loading="lazy">')


def not_for() -> Html:
    """The section that ends a page with calls on it."""
    return section(
        "What this is not for",
        "",
        bullets(
            (
                RESEARCH_ONLY + " No call made here may guide the care of a person.",
                "The public research set behind this project (Kermany et al. 2018, Cell 172:1122) "
                "holds radiographs of children of one to five years from one hospital. Nothing is "
                "known of adults, other hospitals or other devices.",
                "Only normal and pneumonia are told apart. Any other finding is called one of the "
                "two; the labels come from readers of the image, not from a culture or a course.",
                "A score is evidence on the image alone. The threshold was chosen on validation "
                "images of the set that the model was trained on, and must be chosen anew for "
                "another population.",
            )
        ),
    )


# The colors of the figures are these variables: see `figures.PALETTE`.
_STYLE = """
:root {
  --page: #f5f6f8; --card: #ffffff; --ink: #17212b; --muted: #5b6875; --line: #dfe4ea;
  --accent: #0b7a80; --warm: #d0602a; --violet: #6d5bd0; --blue: #2c72c7; --rose: #b93a76;
  --banner: #fff4e0; --banner-ink: #6b4708;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10161c; --card: #18212a; --ink: #e6ebf0; --muted: #98a6b3; --line: #2d3944;
    --accent: #3dbdc2; --warm: #f0935f; --violet: #a698f5; --blue: #6ea8ef; --rose: #ea7fb0;
    --banner: #33290f; --banner-ink: #f2d79b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 64px; }
header { margin-bottom: 24px; }
.kicker {
  margin: 0; color: var(--accent); font-size: 12.5px; font-weight: 650;
  letter-spacing: .09em; text-transform: uppercase;
}
h1 { margin: 4px 0 6px; font-size: 32px; line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 0; font-size: 19px; letter-spacing: -.005em; }
h3 { margin: 0 0 8px; font-size: 14px; font-weight: 650; }
h1, li, p, figcaption, .facts td, .facts th { overflow-wrap: anywhere; }
.summary, .caption, figcaption, .tiles dd, td small { color: var(--muted); }
.summary { margin: 0; font-size: 16px; }
.caption { margin: 4px 0 20px; max-width: 78ch; font-size: 14px; }
section {
  margin-top: 20px; padding: 26px 28px 28px; background: var(--card);
  border: 1px solid var(--line); border-radius: 14px;
}
.banner {
  margin: 0 0 20px; padding: 12px 18px; border-radius: 10px;
  background: var(--banner); color: var(--banner-ink); font-size: 14px;
}
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 16px; }
.tiles > div {
  padding: 18px 20px; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px;
}
.tiles dt { font-size: 13px; font-weight: 650; }
.tiles dd { margin: 0; font-size: 13px; line-height: 1.45; }
.tiles dd.figure {
  margin: 2px 0 4px; color: var(--accent); font-size: 40px; font-weight: 680; line-height: 1.15;
  letter-spacing: -.025em; overflow-wrap: anywhere;
}
.tiles dd.long { font-size: 27px; line-height: 46px; }
.tiles dd.missing { color: var(--warm); font-size: 24px; line-height: 1.9; }
.tiles dd.words { font-size: 20px; line-height: 1.15; letter-spacing: -.01em; min-height: 46px; }
.grid { display: grid; gap: 30px; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.grid.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.grid.one { grid-template-columns: minmax(0, 1fr); }
.grid.photos { gap: 22px 18px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: 8px; font-size: 13px; line-height: 1.45; }
figcaption b { color: var(--ink); font-weight: 650; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; }
svg text { font-family: inherit !important; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000;
  border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
.figures th:first-child { width: 28%; }
.figures th:nth-child(2):not(:last-child) { width: 36%; }
th, td { padding: 8px 12px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { padding-left: 0; }
tr > :last-child { padding-right: 0; }
thead th { color: var(--muted); font-size: 12.5px; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
td small, th small { display: block; font-size: 12.5px; font-weight: 400; line-height: 1.4; }
th small { color: var(--muted); }
table + h3 { margin-top: 28px; }
h3 + p { margin: 0; }
.estimate { display: flex; flex-wrap: wrap; gap: 0 14px; align-items: center; }
.estimate b { min-width: 3.2em; font-size: 15px; }
.range { position: relative; flex: 1 1 90px; max-width: 200px; height: 6px; border-radius: 3px;
  background: var(--line); }
.range i { position: absolute; top: 0; bottom: 0; border-radius: 3px; background: var(--accent);
  opacity: .45; }
.range u { position: absolute; top: -3px; width: 4px; height: 12px; margin-left: -2px;
  border-radius: 2px; background: var(--accent); }
.undefined { color: var(--warm); font-weight: 600; }
.facts th { width: 36%; font-weight: 500; color: var(--muted); }
.facts td { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: 13px; }
.facts thead { display: none; }
.confusion td, .confusion th { border: 0; padding: 6px; }
.confusion { table-layout: fixed; }
.confusion td { position: relative; height: 92px; text-align: center; vertical-align: middle;
  isolation: isolate; }
.confusion td::before { content: ""; position: absolute; inset: 3px; z-index: -1;
  border-radius: 10px; background: var(--tint); opacity: calc(.1 + .4 * var(--share)); }
.confusion thead th { text-align: center; }
.confusion tbody th { vertical-align: middle; }
.confusion b { display: block; font-size: 24px; line-height: 1.2; }
.confusion td small { color: var(--ink); }
.scroll { overflow-x: auto; }
.heat { table-layout: fixed; max-width: calc(106px + var(--columns) * 170px); }
.heat th, .heat td { border: 0; padding: 4px; overflow-wrap: anywhere; }
.heat thead th { text-align: center; }
.heat tr > :first-child { width: 106px; padding-left: 0; text-align: left; }
.heat tbody th { vertical-align: middle; font-size: 13px; }
.heat tbody td { position: relative; height: 88px; padding: 4px 6px; text-align: center;
  vertical-align: middle; isolation: isolate; line-height: 1.3; }
.heat tbody td::before { content: ""; position: absolute; inset: 2px; z-index: -1;
  border-radius: 8px; background: var(--accent); opacity: calc(.06 + .44 * var(--share)); }
.heat .empty::before { background: repeating-linear-gradient(45deg, transparent 0 6px,
  var(--muted) 6px 7px); opacity: .35; }
.heat tbody .empty { padding: 4px 2px; color: var(--muted); font-size: 10.5px;
  overflow-wrap: normal; }
.heat .empty span { padding: 1px 3px; border-radius: 3px; background: var(--card); }
.heat .best::after { content: ""; position: absolute; inset: 2px; border-radius: 8px;
  border: 2px solid var(--ink); pointer-events: none; }
.heat b { display: block; font-size: 15px; white-space: nowrap; }
.heat td small { color: var(--ink); font-size: 10.5px; line-height: 1.25; }
.heat td .mark { font-weight: 700; }
.scale { display: flex; align-items: center; gap: 8px; max-width: 260px; }
.scale i { flex: 1; height: 8px; border-radius: 4px; opacity: .5;
  background: linear-gradient(90deg, transparent, var(--accent)); border: 1px solid var(--muted); }
.caution { margin: 16px 0 0; max-width: 78ch; color: var(--muted); font-size: 14px; }
.figures.trials th:first-child { width: 26%; }
.figures.trials th:nth-child(2) { width: 17%; }
.trials th:nth-child(3) { width: 17%; }
.trials th { overflow-wrap: anywhere; }
.trials td:last-child, .trials thead th:last-child { text-align: right; }
.compared thead tr:first-child th { color: var(--ink); font-size: 13px; }
.compared thead tr:first-child th:not(:first-child):not(:empty) {
  border-bottom: 2px solid var(--accent); }
.compared thead tr:first-child th:not(:first-child):last-child:not(:empty) {
  border-bottom-color: var(--warm); }
.compared { font-size: 13.5px; }
.compared th, .compared td { padding: 8px 7px; }
.compared td { white-space: nowrap; }
.reasons { table-layout: fixed; }
.reasons th, .reasons td, .counts tbody th { overflow-wrap: anywhere; }
.counts thead th { white-space: nowrap; }
.reasons th:first-child { width: 34%; }
.reasons th:nth-child(2) { width: 90px; }
.reasons th:nth-child(2), .reasons td:nth-child(2), .counts td, .counts thead th:last-child {
  text-align: right; }
.reasons th:last-child, .reasons td:last-child { padding-left: 28px; }
.reasons ul { padding: 0; list-style: none; color: var(--muted); font-size: 13px; }
h2 + ul, h2 + table, h2 + .grid { margin-top: 12px; }
table + ul { margin-top: 18px; color: var(--muted); font-size: 13.5px; }
ul { margin: 0; padding-left: 1.2em; }
li + li { margin-top: 4px; }
@media (max-width: 1160px) {
  .grid.maps { grid-template-columns: minmax(0, 1fr); }
  .stacked thead { display: none; }
  .stacked tr { display: block; padding: 12px 0; border-bottom: 1px solid var(--line); }
  .stacked tr:last-child { border: 0; }
  .stacked th { display: block; padding: 0 0 4px; border: 0; font-size: 16px; }
  .stacked td { display: flex; justify-content: space-between; gap: 16px; padding: 3px 0;
    border: 0; text-align: right; }
  .stacked td::before { content: attr(data-label); color: var(--muted); text-align: left; }
}
@media (max-width: 960px) {
  .grid, .grid.two:not(.maps) { grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); }
}
@media (max-width: 760px) {
  main { padding: 24px 14px 40px; }
  h1 { font-size: 25px; }
  section { padding: 20px 16px; }
  .tiles { gap: 10px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles > div { padding: 14px; }
  .tiles > div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tiles dd.figure { font-size: 30px; }
  .tiles dd.missing { font-size: 20px; }
  .tiles dd.words { font-size: 17px; min-height: 35px; }
  .tiles dd.long { font-size: 23px; line-height: 35px; }
  .grid.photos { gap: 16px 12px; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: 8px; }
  .range { flex-basis: 100%; margin: 4px 0; }
  .figures thead { display: none; }
  .figures tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 6px 18px;
    padding: 12px 0; border-bottom: 1px solid var(--line); }
  .figures tr:last-child { border: 0; }
  .figures th, .figures td { padding: 0; border: 0; }
  .figures th:first-child { grid-column: 1 / -1; width: auto; }
  .figures td:last-child:nth-child(2) { grid-column: 1 / -1; }
  .figures td:not(:nth-child(2):last-child)::before { content: attr(data-label);
    display: block; color: var(--muted); font-size: 12px; }
  .heat tr > :first-child { width: auto; }
  .heat thead td { display: none; }
  .heat thead th[colspan] { grid-column: 1 / -1; }
  .heat tr { display: grid; grid-template-columns: repeat(var(--columns), minmax(46px, 1fr)); }
  .heat tr > th:first-child { grid-column: 1 / -1; padding: 10px 0 2px; }
  .heat thead th { padding: 2px; font-size: 11px; }
  .heat tbody td { display: grid; align-content: center; height: auto; min-height: 78px;
    padding: 4px 3px; }
  .heat tbody .empty { font-size: 9.5px; }
  .figures.trials th:first-child { width: auto; }
  .trials td:last-child { text-align: left; }
  .reasons thead { display: none; }
  .reasons tr { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 6px 18px;
    padding: 12px 0; border-bottom: 1px solid var(--line); }
  .reasons tr:last-child { border: 0; }
  .reasons th:first-child { width: auto; }
  .reasons th, .reasons td, .reasons td:last-child { padding: 0; border: 0; }
  .reasons td:last-child { grid-column: 1 / -1; }
}
@media print {
  body { background: none; }
  section, .tiles > div, figure { break-inside: avoid; }
}
"""
