"""Figures as inline SVG with the typeface and colors of the page around it.

Matplotlib draws with the colors of the light theme. They are then replaced by the page's variables
of the same names, so that a figure is legible in the light and the dark theme.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

PALETTE = {
    "ink": "#17212b",
    "muted": "#5b6875",
    "line": "#dfe4ea",
    "card": "#ffffff",
    "accent": "#0b7a80",
    "warm": "#d0602a",
    "violet": "#6d5bd0",
    "blue": "#2c72c7",
    "rose": "#b93a76",
}
"""The variables of `templates/style.css`, with the values of its light theme."""

SERIES = tuple(PALETTE[name] for name in ("accent", "warm", "violet", "blue", "rose"))

NAME_CHARS = 20
"""Longest name beside a figure; a longer one is cut."""

SMALL, WIDE = (3.9, 3.3), (4.8, 2.9)
"""Inches: a third and half of the page's width, so that text has the same size in both."""

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cxr",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.size": 9,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.labelsize": 9,
    "axes.edgecolor": PALETTE["line"],
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.7,
    "xtick.color": PALETTE["line"],
    "ytick.color": PALETTE["line"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
}

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def figure(
    name: str, description: str, draw: Callable[[Figure], None], size: tuple[float, float] = SMALL
) -> Markup:
    """Draw a new figure and return it as inline SVG.

    Args:
        name: unique on the page; the prefix of the SVG's ids.
        description: for screen readers.
        draw: puts axes on the figure.
        size: inches, width and height.
    """
    file = io.StringIO()
    # Settings hold for this block only: nothing of matplotlib's global state is changed.
    with mpl.rc_context(RC):
        canvas = Figure(figsize=size, layout="constrained")
        draw(canvas)
        canvas.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(file.getvalue(), name, description)


def fitted(name: str) -> str:
    """A name cut to `NAME_CHARS`; the tables of the page have it in full."""
    return name if len(name) <= NAME_CHARS else name[: NAME_CHARS - 3] + "..."


def _inline(svg: str, name: str, description: str) -> Markup:
    """An SVG document as an element of a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1 HEAD>", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"<]*;? ?", "", svg)
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{name}-\1"', svg)
    svg = svg.replace("xlink:href", "href").replace('href="#', f'href="#{name}-')
    svg = svg.replace("url(#", f"url(#{name}-")
    for variable, color in PALETTE.items():
        svg = svg.replace(color, f"var(--{variable})")
    svg = re.sub(r"\s*\n\s*", " ", svg)
    return Markup(svg.replace("HEAD", f'role="img" aria-label="{escape(description)}"', 1))
