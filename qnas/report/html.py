"""A run -> one HTML page that opens offline and loads nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from importlib import resources
from string import Template

from qnas.report import sections
from qnas.report.charts import chart_data
from qnas.report.data import ReportData
from qnas.report.markup import Markup, escape


def render_html(data: ReportData) -> str:
    """Return the page. Equal data give an equal page.

    Plotly's script travels inside, compressed, and only where there is something to draw. A content security policy
    names the page's scripts by their digests, so that no other script runs and nothing is fetched.
    """
    drawn = bool(data.trials or data.points or data.history)
    plotly = _plotly() if drawn else ""
    scripts = [_file("tables.js"), _file("charts.js")]
    values: dict[str, str] = {
        "policy": _policy([*scripts, plotly]),
        "title": escape(data.name),
        "subtitle": escape(sections.subtitle(data)),
        "style": _file("style.css"),
        "data": script_json(chart_data(data)),
        "plotly": _packed(plotly) if drawn else "",
        "tables_script": scripts[0],
        "charts_script": scripts[1],
    }
    for part in (
        "tiles",
        "front",
        "subnets",
        "exports",
        "training",
        "search",
        "trials",
        "timings",
        "reproduce",
        "notes",
    ):
        content: Markup = getattr(sections, part)(data)
        values[part] = content
    return Template(_file("template.html")).substitute(values)


def script_json(value: object) -> str:
    """Return JSON that is safe within a ``script`` element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _packed(script: str) -> str:
    """Return a script as base64 of gzip, without a time stamp: 2 MB instead of 5."""
    return base64.b64encode(gzip.compress(script.encode("utf-8"), compresslevel=9, mtime=0)).decode("ascii")


def _policy(scripts: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _file(name: str) -> str:
    """Return a text file of this package."""
    return resources.files("qnas.report").joinpath(name).read_text(encoding="utf-8")
