"""The fronts of several runs as a picture."""

from __future__ import annotations

import os
from typing import Any

from qnas.report.charts import metric_shown
from qnas.report.data import Json, number
from qnas.report.plots import scale_axis

INKS = ("#1d5fd1", "#d9480f", "#17804a", "#8b3fc7", "#a06a00", "#c0262d", "#0b7f8a", "#5b6775")
DASHES = ("-", "--", ":", "-.")


def write_picture(found: Json, path: str | os.PathLike[str]) -> None:
    """Draw the accuracy on the search split over the cost, and beside it that on the test split.

    Equal comparisons give equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    score, cost = found["metric"], found["cost"]
    both = figure.subplots(1, 2, sharey=True)
    for axes, split in zip(both, ("search", "test"), strict=True):
        shown = [x for i, run in enumerate(found["runs"]) for x in _draw_front(axes, run, i, split, found)]
        content = {"metrics": [metric_shown(name, score, split) for name in (score, cost)]}
        scale_axis(axes, "x", cost, [x for x, _ in shown], content)
        scale_axis(axes, "y", score, [y for _, y in shown], content)
        axes.grid(True, color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = both[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_front(axes: Any, run: Json, i: int, split: str, found: Json) -> list[tuple[float, float]]:
    """Draw one front with its standard errors; return the points."""
    score, cost = found["metric"], found["cost"]
    points = []
    for point in run["points"]:
        values = point["metrics"] if split == "search" else point["test"] or {}
        error = number(point if split == "search" else values, "standard_error")
        x, y = number(point["metrics"], cost), number(values, score)
        if x is not None and y is not None:
            points.append((x, y, error or 0.0))
    points.sort()
    if not points:
        return []
    xs, ys, errors = zip(*points, strict=True)
    line = DASHES[i // len(INKS) % len(DASHES)] if len(found["objectives"]) == 2 else "none"
    style = {
        "markersize": 5,
        "linewidth": 1.4,
        "elinewidth": 1,
        "capsize": 2.5,
        "drawstyle": "steps-post",
        "color": INKS[i % len(INKS)],
    }
    axes.errorbar(xs, ys, yerr=errors, fmt="o", linestyle=line, label=f"\u200b{run['name']}", **style)
    return list(zip(xs, ys, strict=True))
