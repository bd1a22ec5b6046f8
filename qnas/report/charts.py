"""A run -> the numbers that its charts draw. Pure functions; no plotting library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qnas.report.answers import point_gap, tied
from qnas.report.data import Json, ReportData, json_safe, number
from qnas.report.formats import count, label
from qnas.report.inside import quantities
from qnas.report.insights import insight_charts
from qnas.report.volume import Box, common_box, complete, objectives_of, volume
from qnas.retrained import bits_said

_CONSTRAINT = re.compile(r"\s*(\w+)\s*(<=|>=|<|>|≤|≥)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
_CURVES = ("number", "score", "best", "front", "feasible", "volume")


def chart_data(data: ReportData) -> Json:
    """Return all that the page's scripts need, JSON-safe. Samples are rows over one list of labels, to stay small."""
    names = data.metrics()
    labels = list(dict.fromkeys(str(knob) for entry in [*data.trials, *data.points] for knob in entry["sample"]))
    on_front = {point["key"] for point in data.points}
    content = {
        "objectives": data.objectives,
        "score": data.score,
        "split": data.front.get("split", "search"),
        "metrics": [metric_shown(name, data.score, data.front.get("split", "search")) for name in names],
        "constraints": constraints(data),
        "labels": labels,
        "trials": [
            {
                "number": trial["number"],
                "search": trial["search"],
                "key": trial["key"],
                "metrics": [number(trial["metrics"], name) for name in names],
                "violation": trial.get("violation") or 0,
                "sample": [trial["sample"].get(knob) for knob in labels],
                "front": trial["key"] in on_front,
            }
            for trial in data.trials
        ],
        "points": [_point(point, data, names, labels) for point in data.points],
        "search": data.front.get("search"),
        "stage": data.front.get("stage"),
        "others": [
            {
                "search": front["search"],
                "stage": front.get("stage"),
                "family": front in family(data),
                "points": [_point(point, data, names, labels) for point in front["points"]],
            }
            for front in data.fronts[:-1]
            if front.get("objectives") == data.objectives
        ],
        "retrained": [_net(net, data, names) for net in data.retrained],
        "progress": progress(data),
        "training": training(data.history),
        "gap": data.gap,
        "ranks": [_rank(comparison) for comparison in data.ranks],
        "inside": _inside(data),
        "insights": insight_charts(data.insights),
    }
    content["axes"] = axis_names(content)
    if content["retrained"] and "bitops" in names and "bitops" not in content["axes"]:
        y, _, colour = content["axes"]
        content["axes"] = (y, "bitops", colour)  # nets of one architecture at several bit-widths differ in this alone
    safe: Json = json_safe(content)
    return safe


def family(data: ReportData) -> list[Json]:
    """Return the last front of every stage of training, in the order of the stages."""
    stages = [stage["name"] for stage in (data.config.get("train") or {}).get("stages") or []]
    last = {front.get("stage"): front for front in data.fronts}
    return sorted(last.values(), key=lambda front: stages.index(front["stage"]) if front.get("stage") in stages else -1)


def metric_shown(name: str, score: str, split: str) -> Json:
    """Return how a metric is shown: its name in lists, its name at an axis, whether it is a fraction."""
    units = {"bytes": " (bytes)", "ms": " (ms)"}
    fraction = name == score or "accuracy" in name
    unit = f" ({split} split)" if fraction else units.get(name.rpartition("_")[2], "")
    return {"name": name, "label": label(name), "axis": label(name) + unit, "fraction": fraction}


def _point(point: Json, data: ReportData, names: Sequence[str], labels: Sequence[str]) -> Json:
    trials = (trial for trial in data.trials if trial["key"] == point["key"])
    same_search = sorted(trials, key=lambda trial: trial["search"] != data.front.get("search"))
    return {
        "number": same_search[0]["number"] if same_search else None,
        "key": point["key"],
        "metrics": [number(point["metrics"], name) for name in names],
        "error": number(point, "standard_error"),
        "test": number(point.get("test"), data.score),
        "test_error": number(point.get("test"), "standard_error"),
        "gap": _gap(point, data.score),
        "tied": tied(number(data.ties.get(point["key"]), "chosen")),
        "sample": [point["sample"].get(knob) for knob in labels],
        "chosen": point["key"] == data.front.get("chosen"),
    }


def _net(net: Json, data: ReportData, names: Sequence[str]) -> Json:
    """Return a net that was trained again, placed like a point of a front."""
    metrics, errors = net.get("metrics") or {}, net.get("standard_error") or {}
    return {
        "key": net["key"],
        "metrics": [number(metrics.get("search"), name) for name in names],
        "error": number(errors, "search"),
        "test": number(metrics.get("test"), data.score),
        "test_error": number(errors, "test"),
        "bits": bits_said(net.get("sample") or {}),
        "passes": count(number(net, "image_passes")),
        "from": net.get("searched_key"),
        "start": net.get("start"),
    }


def _gap(point: Json, score: str) -> list[float] | None:
    """Return value, low and high of a point's fall from the search to the test split."""
    test = point.get("test")
    found = [number(point["metrics"], score), number(point, "standard_error")]
    found += [number(test, score), number(test, "standard_error")]
    if any(value is None for value in found):
        return None
    gap = point_gap(*(float(value) for value in found if value is not None))
    return [gap.value, gap.low, gap.high]


def _rank(comparison: Json) -> list[Json]:
    return [
        {
            "key": c["key"],
            "x": number(c, "supernet"),
            "y": number(c, "alone"),
            "error": number(c, "alone_standard_error"),
        }
        for c in comparison.get("configs") or []
    ]


def _inside(data: ReportData) -> Json:
    """Return the looks inside: when they were, and the quantities by layer; numbers with four digits."""
    found = quantities(data.inside)
    rounded = {
        name: {**part, "values": [[v and float(f"{v:.4g}") for v in row] for row in part["values"]]}
        for name, part in found.items()
    }
    return {
        "when": [
            f"{look.get('stage', '')}, step {look.get('number', position)}" for position, look in enumerate(data.inside)
        ],
        "quantities": rounded,
    }


def search_box(data: ReportData) -> Box | None:
    """Return the box in which the hypervolumes of all searches are measured."""
    objectives = objectives_of({"objectives": data.objectives})
    met = [trial["metrics"] for trial in data.trials if not (trial.get("violation") or 0) > 0]
    same = [front for front in data.fronts if front.get("objectives") == data.objectives]
    return common_box(same, complete(met, objectives), objectives)


def constraints(data: ReportData) -> list[Json]:
    """Return the constraints that bound one metric, as ``{"metric", "bound", "text"}``."""
    found = []
    for text in data.front.get("constraints") or []:
        match = _CONSTRAINT.fullmatch(str(text))
        if match:
            found.append({"metric": match[1], "bound": float(match[3]), "text": str(text)})
    return found


def progress(data: ReportData) -> list[Json]:
    """Return, by search, what its trials had reached: the best score, the size of the front so far and its hypervolume.

    A trial that violates a constraint or lacks an objective counts for neither.
    """
    signs = [(str(o["name"]), 1.0 if o["direction"] == "max" else -1.0) for o in data.objectives]
    sign = dict(signs).get(data.score, 1.0)
    box, objectives = search_box(data), objectives_of({"objectives": data.objectives})
    searches: list[Json] = []
    for search in dict.fromkeys(str(trial["search"]) for trial in data.trials):
        curve: Json = {"search": search, **{column: [] for column in _CURVES}}
        front: list[list[float]] = []
        dominated: float | None = None
        best: float | None = None
        for trial in sorted((t for t in data.trials if t["search"] == search), key=lambda t: int(t["number"])):
            score = number(trial["metrics"], data.score)
            vector = [s * v for name, s in signs if (v := number(trial["metrics"], name)) is not None]
            feasible = not (trial.get("violation") or 0) > 0
            if feasible and len(vector) == len(signs):
                before, front = front, extend_front(front, vector)
                if front is not before:
                    named = [{o.name: s * v for o, (_, s), v in zip(objectives, signs, w, strict=True)} for w in front]
                    dominated = volume(named, objectives, box)
            if feasible and score is not None and (best is None or sign * score > sign * best):
                best = score
            values = (trial["number"], score, best, len(front), feasible, dominated)
            for column, value in zip(_CURVES, values, strict=True):
                curve[column].append(value)
        searches.append(curve)
    return searches


def axis_names(content: Json) -> tuple[str, str, str | None]:
    """Return what the axes show by default: y, x (``number`` for the trial's number) and colour."""
    names = [str(objective["name"]) for objective in content["objectives"]]
    y = content["score"] if content["score"] in names else names[0]
    others = [name for name in names if name != y]
    return y, (others[0] if others else "number"), (others[1] if len(others) > 1 else None)


def extend_front(front: list[list[float]], vector: list[float]) -> list[list[float]]:
    """Return a front of distinct vectors to maximise with one more vector in it, if nothing there is as good."""
    if any(all(a >= b for a, b in zip(other, vector, strict=True)) for other in front):
        return front
    return [other for other in front if not all(b >= a for a, b in zip(other, vector, strict=True))] + [vector]


def training(history: Sequence[Json]) -> Json:
    """Return the losses by epoch, counted through all stages, and where each stage starts."""
    curves: dict[str, list[Any]] = {"epoch": [], "largest": [], "random": [], "smallest": []}
    stages: list[Json] = []
    for position, entry in enumerate(history, start=1):
        losses = [value for value in entry.get("losses") or [] if value is not None]
        between = losses[1:-1]
        curves["epoch"].append(position)
        curves["largest"].append(losses[0] if losses else None)
        curves["random"].append(sum(between) / len(between) if between else None)
        curves["smallest"].append(losses[-1] if len(losses) > 1 else None)
        if not stages or stages[-1]["name"] != entry.get("stage", ""):
            stages.append({"name": entry.get("stage", ""), "start": position})
    return {**curves, "stages": stages}
