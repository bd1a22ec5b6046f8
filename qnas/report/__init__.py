"""The report of a run: one page that opens offline, and its front as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from qnas.report.data import ReportData
from qnas.report.html import render_html
from qnas.report.plots import write_front_png

__all__ = ["ReportData", "render_html", "write_front_png", "write_report"]


def write_report(data: ReportData, directory: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` and ``front.png``; each is replaced as a whole or not at all.

    Args:
        data: the run, finished or not.
        directory: made if it is missing.

    Returns:
        The path of the page.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    page = render_html(data)
    _replace(folder / "report.html", lambda path: path.write_bytes(page.encode("utf-8")))
    _replace(folder / "front.png", lambda path: write_front_png(data, path))
    return folder / "report.html"


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and move it there."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
