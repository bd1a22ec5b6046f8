"""The frame of a page: one HTML file that opens offline and loads nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template

from qnas.report.markup import Markup, escape, join, tag


@dataclass(frozen=True)
class Section:
    """A part of a page: its anchor, its name in the list of sections, its title, and what it shows."""

    anchor: str
    short: str
    title: str
    content: Markup


def render_page(
    brand: str,
    title: str,
    subtitle: str,
    tiles: Markup,
    sections: Sequence[Section],
    data: object,
    scripts: Sequence[str],
    *,
    drawn: bool,
) -> str:
    """Return a page. Equal arguments give an equal page.

    Plotly's script travels inside, compressed, and only where there is something to draw. A content security policy
    names the page's scripts by their digests, so that no other script runs and nothing is fetched.

    Args:
        brand: the kind of page.
        title: of the page.
        subtitle: a line below it.
        tiles: the headline.
        sections: in order.
        data: what the scripts need, JSON.
        scripts: their texts, run in order.
        drawn: whether there are charts.
    """
    plotly, packed = _plotly() if drawn else ("", "")
    links = [tag("a", section.short, href=f"#{section.anchor}") for section in sections if section.short]
    return Template(text_file("template.html")).substitute(
        policy=_policy([*scripts, plotly]),
        brand=escape(brand),
        title=escape(title),
        subtitle=escape(subtitle),
        style=text_file("style.css"),
        tiles=tiles,
        nav=join(links, "\n"),
        sections=join(map(_section, sections), "\n"),
        data=script_json(data),
        plotly=packed,
        scripts="\n".join(f"<script>{text}</script>" for text in scripts),
    )


def _section(section: Section) -> Markup:
    heading = tag("h2", section.title, id=f"{section.anchor}-title")
    parts = (Markup("\n"), heading, Markup("\n"), section.content, Markup("\n"))
    return tag("section", *parts, id=section.anchor, aria_labelledby=f"{section.anchor}-title")


def chart(name: str, description: str, kind: str = "") -> Markup:
    """Return the place of a chart; ``description`` says in words what it shows and where the numbers are."""
    return tag("div", id=f"{name}-chart", class_=f"chart {kind}".strip(), role="figure", aria_label=description)


def script_json(value: object) -> str:
    """Return JSON that is safe within a ``script`` element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _plotly() -> tuple[str, str]:
    """Return Plotly's script, and the same as base64 of gzip, without a time stamp: 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    script = str(get_plotlyjs())
    packed = gzip.compress(script.encode("utf-8"), compresslevel=9, mtime=0)
    return script, base64.b64encode(packed).decode("ascii")


def _policy(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def text_file(name: str, package: str = "qnas.report") -> str:
    """Return a text file of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
