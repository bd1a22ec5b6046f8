"""The report of a run: one page that opens offline, and its front as a picture."""

from __future__ import annotations

import os
from pathlib import Path

from qnas.files import write_atomically, write_text
from qnas.report.collect import report_data
from qnas.report.data import ReportData
from qnas.report.html import render_html
from qnas.report.plots import write_front_png

__all__ = ["ReportData", "render_html", "report_data", "write_front_png", "write_report"]


def write_report(data: ReportData, directory: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` and ``front.png``; each is replaced as a whole or not at all.

    Args:
        data: the run, finished or not.
        directory: made if it is missing.

    Returns:
        The path of the page.
    """
    folder = Path(directory)
    page = render_html(data)
    write_text(folder / "report.html", page)
    write_atomically(folder / "front.png", lambda partial: write_front_png(data, partial))
    return folder / "report.html"
