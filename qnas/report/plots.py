"""The front as a picture, for READMEs and papers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from qnas.report.charts import axis_names, chart_data
from qnas.report.data import Json, ReportData

_INK, _FAINT, _FRONT, _CHOSEN = "#1f2933", "#9aa5b1", "#1d5fd1", "#d9480f"
_FAMILY = ("#a16207", "#7c3aed", "#0f766e", "#be185d", "#4d7c0f")
_LOG_RATIO = 5.0  # values that span more than this are drawn on a logarithmic axis


def write_front_png(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Draw trials, front and chosen subnet: the score over the first other objective, a third one as colour.

    With a single objective the score is drawn over the number of the trial. Equal data give equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    content = chart_data(data)
    if content["trials"] or content["points"]:
        _draw(figure, axes, content)
    else:
        axes.text(0.5, 0.5, "No trials yet", ha="center", va="center", transform=axes.transAxes, color=_INK)
        axes.set_axis_off()
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw(figure: Any, axes: Any, content: Json) -> None:
    """Draw everything on empty axes."""
    y, x, colour = axis_names(content)
    trials = [t for t in content["trials"] if _value(t, x, content) is not None and _value(t, y, content) is not None]
    points = [p for p in content["points"] if _value(p, x, content) is not None and _value(p, y, content) is not None]
    fine, broken = ([trial for trial in trials if (trial["violation"] > 0) is bad] for bad in (False, True))
    faint = {"s": 14, "color": _FAINT, "alpha": 0.55, "zorder": 1}
    if fine:
        axes.scatter(_values(fine, x, content), _values(fine, y, content), label="trials", linewidths=0, **faint)
    if broken:
        xs, ys = _values(broken, x, content), _values(broken, y, content)
        axes.scatter(xs, ys, label="trials that violate a constraint", marker="x", linewidths=0.8, **faint)
    _draw_family(axes, (x, y), content)
    if points:
        _draw_front(figure, axes, points, (x, y, colour), content)
    family = [point for front in content["others"] if front["family"] for point in front["points"]]
    for name, axis in ((x, "x"), (y, "y")):
        scale_axis(
            axes,
            axis,
            name,
            [*_values(trials, name, content), *_values(points, name, content), *_values(family, name, content)],
            content,
        )
    axes.grid(True, color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")


def _draw_family(axes: Any, names: tuple[str, str], content: Json) -> None:
    """Draw the fronts after the other stages of training, a colour each."""
    x, y = names
    fronts = [front for front in content["others"] if front["family"]]
    line = "-" if len(content["objectives"]) == 2 else "none"
    for number, front in enumerate(fronts):
        points = [p for p in front["points"] if None not in (_value(p, x, content), _value(p, y, content))]
        points.sort(key=lambda point: (_value(point, x, content), _value(point, y, content)))
        style: dict[str, Any] = {"color": _FAMILY[number % len(_FAMILY)], "markersize": 4, "linewidth": 1.2}
        style |= {"drawstyle": _stairs(x, content), "linestyle": line, "marker": "s", "zorder": 2}
        xs, ys = _values(points, x, content), _values(points, y, content)
        axes.plot(xs, ys, label=f"front of stage {front['stage']}", **style)


def _stairs(x: str, content: Json) -> str:
    """Return how a front's points are joined: between two of them the cheaper one is the best."""
    return "steps-post" if {"name": x, "direction": "min"} in content["objectives"] else "steps-pre"


def _draw_front(figure: Any, axes: Any, points: list[Json], names: tuple[str, str, str | None], content: Json) -> None:
    """Draw the points of the front, their standard errors, and the chosen one."""
    from matplotlib.ticker import EngFormatter

    x, y, colour = names
    points = sorted(points, key=lambda point: (_value(point, x, content), _value(point, y, content)))
    xs, ys = _values(points, x, content), _values(points, y, content)
    errors = [point["error"] or 0.0 for point in points]
    score = content["score"]
    bars = {"yerr": errors} if y == score else {"xerr": errors} if x == score else {}
    line = "-" if len(content["objectives"]) == 2 else "none"
    style: dict[str, Any] = {"color": _FRONT, "markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2.5}
    style["drawstyle"] = _stairs(x, content)
    of = f" of stage {content['stage']}" if any(front["family"] for front in content["others"]) else ""
    axes.errorbar(xs, ys, fmt="o", linestyle=line, label=f"front{of} (± standard error)", zorder=3, **bars, **style)
    if colour:
        shades = axes.scatter(xs, ys, c=_shades(points, colour, content), cmap="viridis", s=44, zorder=4)
        ruler = figure.colorbar(shades, ax=axes, format=EngFormatter(sep=""))
        ruler.set_label(_axis_label(colour, content), parse_math=False)
    chosen = [point for point in points if point["chosen"]]
    ring = {"s": 150, "facecolors": "none", "edgecolors": _CHOSEN, "linewidths": 2, "label": "chosen"}
    if chosen:
        axes.scatter(_values(chosen, x, content), _values(chosen, y, content), zorder=5, **ring)


def scale_axis(axes: Any, axis: str, name: str, values: Sequence[float], content: Json) -> None:
    """Label the axis ``x`` or ``y`` with a metric and choose its scale; ``content`` has the ``metrics``."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    ruler = axes.xaxis if axis == "x" else axes.yaxis
    fraction = any(m["fraction"] for m in content["metrics"] if m["name"] == name)
    ruler.set_label_text(_axis_label(name, content), parse_math=False)
    if fraction:
        ruler.set_major_formatter(PercentFormatter(1.0))
    elif name != "number":
        if values and min(values) > 0 and max(values) / min(values) > _LOG_RATIO:
            (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
            ruler.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            ruler.set_minor_formatter(NullFormatter())
        ruler.set_major_formatter(EngFormatter(sep=""))


def _axis_label(name: str, content: Json) -> str:
    return next((str(metric["axis"]) for metric in content["metrics"] if metric["name"] == name), "trial")


def _value(entry: Json, name: str, content: Json) -> Any:
    if name == "number":
        return entry["number"]
    return next((v for m, v in zip(content["metrics"], entry["metrics"], strict=True) if m["name"] == name), None)


def _values(entries: Sequence[Json], name: str, content: Json) -> list[Any]:
    return [_value(entry, name, content) for entry in entries]


def _shades(entries: Sequence[Json], name: str, content: Json) -> list[float]:
    return [float("nan") if value is None else float(value) for value in _values(entries, name, content)]
