"""Several runs side by side: fronts or retrained nets, what each reaches at equal cost, which differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qnas.compare.entries import read_entries
from qnas.compare.result import compare
from qnas.errors import StoreError
from qnas.files import PARTIAL, write_atomically, write_json, write_text
from qnas.report.data import Json

__all__ = ["compare", "compare_runs", "write_comparison"]

FILES = ("compare.html", "compare.json", "compare.png")


def compare_runs(paths: Sequence[Path], out: Path, cost: str = "bitops", budgets: Sequence[float] = ()) -> Json:
    """Compare runs, which are only read, and write what was found.

    Args:
        paths: of run directories (see :func:`~qnas.compare.entries.read_entries` for what each stands for) or of
            folders of searches, ``RUN/searches/NAME``.
        out: the folder to write to.
        cost: the metric that budgets are in.
        budgets: to compare at; by default chosen from the costs of the fronts.

    Returns:
        What ``compare.json`` holds; see :func:`qnas.compare.result.compare`.

    Raises:
        StoreError: a path is no run, has no finished search, or ``out`` holds something else.
        ConfigError: the runs cannot be compared.
    """
    check_folder(out)
    found = compare(read_entries(paths), cost, budgets)
    write_comparison(found, out)
    return found


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier comparison.

    Raises:
        StoreError: it does, or it is no folder.
    """
    if not out.exists():
        return
    own = {*FILES, *(name + PARTIAL for name in FILES)}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in own) if out.is_dir() else [out.name]
    if foreign:
        raise StoreError(
            f"{out} holds something else than a comparison ({foreign[0]}), and nothing there is overwritten. "
            "Choose another --out."
        )


def write_comparison(found: Json, out: Path) -> None:
    """Write ``compare.html``, ``compare.png`` and ``compare.json``; each is replaced as a whole or not at all."""
    from qnas.compare.page import render_comparison
    from qnas.compare.picture import write_picture

    page = render_comparison(found)
    write_text(out / "compare.html", page)
    write_atomically(out / "compare.png", lambda partial: write_picture(found, partial))
    write_json(out / "compare.json", found)
