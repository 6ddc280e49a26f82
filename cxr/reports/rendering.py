"""Templates to pages: the environment, its filters, and how values read.

Autoescape is on for every template, and only figures come as `Markup`. So a hostile file name or a
stray `<` in a setting is shown as text and never becomes part of the page.
"""

import base64
import functools
import json
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from cxr.labels import CLASSES
from cxr.metrics import BORDER, BORDER_AREA, LEVEL, NUM_BINS, Estimate
from cxr.metrics.results import Interval

UNDEFINED: Final = "undefined"


def render(template: str, **values: Any) -> str:
    """A whole HTML document that loads nothing.

    Args:
        template: a file of `templates/`.
        values: what it shows; one that is missing is an error.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cxr.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "data_uri": data_uri,
        "flatten": flatten,
        "interval": interval,
        "measured": measured,
        "most_frequent": most_frequent,
        "number": number,
        "percent": "{:.1%}".format,
        "short_uri": short_uri,
        "thousands": "{:,}".format,
    }
    environment.globals |= {
        "border": f"{BORDER:.0%}",
        "border_area": f"{BORDER_AREA:.0%}",
        "classes": CLASSES,
        "level": f"{LEVEL:.0%}",
        "num_bins": NUM_BINS,
    }
    return environment


def number(value: float | None, missing: str = UNDEFINED) -> str:
    """`0.968`; `undefined` where there is none."""
    return missing if value is None else f"{value:.3f}"


def measured(value: float | None) -> str:
    """Seconds or megabytes, `12.3` or `2,310`; `-` where not measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def interval(estimate: Interval | Estimate) -> str:
    """The bounds, `[0.991, 0.997]`; empty where there are none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def count(value: int, noun: str) -> str:
    """`1,204 images`, `1 image`."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def short_uri(uri: str) -> str:
    """The last two parts of a path: enough to recognize the image, without the folders above."""
    parts = [part for part in uri.replace("\\", "/").split("/") if part not in ("", "..")]
    return "/".join(parts[-2:])


def data_uri(jpeg: bytes) -> str:
    """A JPEG as the source of an image inside the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names with their counts, the most frequent first, equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values as text; nested names are joined by dots."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            rows.append((f"{prefix}{name}", value))
        else:
            rows.append((f"{prefix}{name}", json.dumps(value, default=str)))
    return rows
