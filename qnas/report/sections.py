"""The parts of the page, from the headline to how to reproduce the run."""

from __future__ import annotations

import shlex

from qnas import kfold_said
from qnas.latency.said import sentences
from qnas.report import tables
from qnas.report.charts import family, search_box
from qnas.report.data import Json, ReportData, number, toml_safe
from qnas.report.drawing import draw_subnet
from qnas.report.formats import MISSING, count, heading, label, many, metric, percent, percent_error, size
from qnas.report.markup import Markup, empty, join, tag
from qnas.report.page import chart


def subtitle(data: ReportData) -> str:
    """Return what was searched, in a line."""
    front = data.front
    if not front:
        return "Unfinished run: no front yet"
    goals = ", ".join(f"{label(str(o['name']))} ({o['direction']})" for o in data.objectives)
    limits = "; ".join(map(str, front.get("constraints") or [])) or "none"
    return (
        f"Search {front.get('search', MISSING)} · strategy {front.get('strategy', MISSING)} · "
        f"seed {front.get('seed', MISSING)} · objectives: {goals} · constraints: {limits}"
    )


def tiles(data: ReportData) -> Markup:
    """Return the headline: the chosen subnet in a few numbers."""
    point, score = data.chosen, data.score
    evaluations = data.front.get("evaluations", len(data.trials))
    shown = [_score_tile(point, data)]
    costs = [str(o["name"]) for o in data.objectives if o["name"] != score] + ["bitops", "size_bytes", "macs"]
    if point:
        known = [name for name in dict.fromkeys(costs) if number(point["metrics"], name) is not None][:3]
        shown += [
            _tile(heading(name), metric(name, point["metrics"][name], score), _exactly(point, name)) for name in known
        ]
        export = data.export_of(point["key"])
        shown.append(_retrained_tile(data) if export is None and data.retrained else _verified_tile(export))
    shown.append(_tile("Evaluations", count(evaluations), _searched(data)))
    return join(shown, "\n")


def _searched(data: ReportData) -> str:
    """Return how many points the front has and, where a predictor led there, how far that is to be believed."""
    points = many(len(data.points), "point") + " on the front"
    used = data.front.get("predictor")
    if not used:
        return points
    tau = number((used.get("score") or {}).get("kendall_tau") or {}, "value")
    said = "" if tau is None else f" (held-out Kendall tau {tau:.2f})"
    return f"{points}; the best of {count(used.get('evaluations'))} predictions by {used.get('name', MISSING)}{said}"


def _tile(name: str, value: object, note: object, kind: str = "") -> Markup:
    parts = (tag("dt", name), tag("dd", value, class_="value"), tag("dd", note, class_="note"))
    return tag("div", *parts, class_=f"tile {kind}".strip())


def _score_tile(point: Json | None, data: ReportData) -> Markup:
    name = f"Test {label(data.score)}"
    if point is None:
        return _tile(name, MISSING, "no subnet was chosen yet")
    test = point.get("test") or {}
    search = percent_error(number(point["metrics"], data.score), number(point, "standard_error"))
    value, error = number(test, data.score), number(test, "standard_error")
    shown = [percent(value), tag("small", f" ± {100 * error:.1f}") if value is not None and error is not None else None]
    return _tile(name, join(shown), f"{data.front.get('split', 'search')} split: {search}", "lead")


def _exactly(point: Json, name: str) -> str:
    value = point["metrics"][name]
    return f"{value:,} {'bytes' if name.endswith('bytes') else ''}".strip() if isinstance(value, int) else f"{value:g}"


def _verified_tile(export: Json | None) -> Markup:
    if export is None:
        return _tile("Export", "none", "the chosen subnet was not exported")
    verify, file = export.get("verify"), f"ONNX file: {size(export.get('onnx_bytes'))}"
    if not verify:
        return _tile("Verified?", "not checked", file)
    failures = len(verify.get("failures") or [])
    return (
        _tile("Verified?", "yes", file, "good")
        if verify["passed"]
        else _tile("Verified?", "no", many(failures, "failure"), "bad")
    )


def _retrained_tile(data: ReportData) -> Markup:
    """Return how many of the nets that were trained again, in the chosen subnet's place, passed their verification."""
    ids = {f"alone/{net['id']}" for net in data.retrained}
    passed = [e for e in data.exports if e.get("stage") in ids and (e.get("verify") or {}).get("passed")]
    said = f"{many(len(passed), 'verified export')} of {many(len(ids), 'net')} trained again"
    kind = "good" if len(passed) == len(ids) else ""
    return _tile("Verified?", "yes" if kind else "not all", said, kind)


def front(data: ReportData) -> Markup:
    """Return the interactive front and its table."""
    if not data.trials and not data.points:
        return empty("Nothing has been evaluated yet.")
    names = ["number", *data.metrics()]
    options = [tag("option", "trial" if name == "number" else label(name), value=name) for name in names]
    selects = [
        tag("label", text, " ", tag("select", *extra, *options, data_axis=axis))
        for axis, text, extra in (
            ("x", "Across", []),
            ("y", "Up", []),
            ("colour", "Colour", [tag("option", "none", value="")]),
        )
    ]
    shown = (
        f"{len(data.trials)} trials and {many(len(data.points), 'point')} of the front; the table below holds the front"
    )
    picked = tag("p", id="picked", class_="note", aria_live="polite")
    parts = [tag("div", *selects, class_="controls", id="axes"), chart("front", shown, "tall"), picked]
    if not data.points:
        return join([*parts, empty("No trial is on a front yet.")], "\n")
    fronts = family(data)
    if len(fronts) > 1:
        parts.append(tables.family_table(data, fronts))
    saves = [tag("button", f"Front as {kind.upper()}", type="button", data_save=kind) for kind in ("csv", "json")]
    downloads = tag("div", *saves, class_="controls scripted")
    latency = [tag("p", f"{said}.", class_="note") for said in sentences(data.front)]
    again = _retrained(data)
    return join([*parts, tables.front_table(data), *latency, _ties_said(data), downloads, *again], "\n")


def _retrained(data: ReportData) -> list[Markup]:
    """Return the points that were trained again, before and after; nothing where none was."""
    if not data.retrained:
        return []
    said = (
        "Trained again from the searched points, each net by itself. They were chosen on the search split; the test "
        "split is only reported. Differences have the 95% interval of two nets on the same images."
    )
    return [tables.retrained_table(data), tag("p", said, class_="note")]


def _ties_said(data: ReportData) -> Markup | None:
    """Return what the marks of ties mean, in words."""
    if not data.ties:
        return None
    said = (
        "Tied (hollow in the chart): the difference is within noise. McNemar's exact test on the images of the "
        "search split that only one of the two subnets answers right gives p of 0.05 or more, so these images cannot "
        "tell which of the two is better; the cheaper one is as good a choice. The tests are not corrected for their "
        "number, and the points were selected on the same images, so real differences are rather smaller than they "
        "look."
    )
    return tag("p", said, class_="note")


def subnets(data: ReportData) -> Markup:
    """Return the points of the front layer by layer, the chosen one first in sight."""
    points = data.points
    if not points:
        return empty("There is no front to choose from yet.")
    chosen = next((i for i, point in enumerate(points) if point["key"] == data.front.get("chosen")), 0)
    options = [
        tag("option", _point_title(point, data), value=i, selected=i == chosen) for i, point in enumerate(points)
    ]
    selector = tag("label", "Subnet ", tag("select", *options, id="point"))
    parts = [
        tag(
            "div",
            draw_subnet(point),
            tables.layers_table(point),
            _knobs(point),
            class_="subnet",
            hidden=i != chosen,
        )
        for i, point in enumerate(points)
    ]
    said = (
        "From input to output: a bar is as wide as the square root of the layer's output channels and as dark as its "
        "weights have bits; a thin bar is a tensor that is only put on a grid. Text: kernel (dw: depthwise), stride, "
        "channels, output size; bits of weights (W) and input activations (A)."
    )
    return join([tag("div", selector, class_="controls"), tag("p", said, class_="note"), *parts], "\n")


def _point_title(point: Json, data: ReportData) -> str:
    numbers = [metric(str(o["name"]), number(point["metrics"], str(o["name"])), data.score) for o in data.objectives]
    mark = " (chosen)" if point["key"] == data.front.get("chosen") else ""
    return f"{point['key']} · {' · '.join(numbers)}{mark}"


def _knobs(point: Json) -> Markup:
    pairs = [tag("span", tag("b", name), f" {value}") for name, value in point["sample"].items()]
    return tag("details", tag("summary", f"Sample: {len(pairs)} knobs"), tag("p", *pairs, class_="knobs"))


def exports(data: ReportData) -> Markup:
    """Return the exported models."""
    if not data.exports:
        return empty("Nothing has been exported yet.")
    return join([tables.exports_table(data.exports), *map(tables.export_details, data.exports)], "\n")


def training(data: ReportData) -> Markup:
    """Return the losses over the epochs."""
    if not data.history:
        return empty("No epoch has been finished yet.")
    passes = sum(number(entry, "image_passes") or 0 for entry in data.history)
    note = many(len(data.history), "epoch") + (f", {count(passes)} image passes in all." if passes else ".")
    details = tag("details", tag("summary", "All epochs as a table"), tables.history_table(data.history))
    return join(
        [
            tag("p", note),
            chart(
                "training",
                "Loss of the largest, random and smallest subnets over the epochs; the table below holds the numbers",
            ),
            details,
        ]
    )


def search(data: ReportData) -> Markup:
    """Return how the search went, trial by trial."""
    if not data.trials:
        return empty("No trial has been run yet.")
    shown = f"{heading(data.score)} of each trial and the best so far, by search; the table of trials holds the numbers"
    return join([chart("search", shown), *_volumes(data), *_kfolds(data)], "\n")


def _kfolds(data: ReportData) -> list[Markup]:
    """Return what choosing on a part of the search split is worth on the rest; nothing where no search did that."""
    parts = []
    for found in data.kfolds:
        parts.append(tag("h3", f"{found['k']}-fold selection of {found['search']}"))
        parts += [tag("p", sentence) for sentence in kfold_said.sentences(found)]
        parts.append(tables.kfold_table(found, data.score))
    return parts


def _volumes(data: ReportData) -> list[Markup]:
    """Return the hypervolume of the front so far and, for each search, of its front."""
    box = search_box(data)
    if box is None:
        return [tag("p", "The objectives found so far span no box, so there is no hypervolume.", class_="note")]
    corners = "; ".join(
        f"{label(name)} {metric(name, box.reference[name], data.score)} to {metric(name, box.ideal[name], data.score)}"
        for name in box.reference
    )
    said = (
        "Hypervolume: the share of a box of objectives that the front so far dominates on the search split, from 0 "
        f"to 1. One box for all searches ({box.source}): {corners}."
    )
    shown = "Hypervolume of the front so far by number of evaluations, a line a search; the table below holds the ends"
    listing = tables.volumes_table(data) if data.fronts else None
    return [tag("h3", "Hypervolume so far"), tag("p", said), chart("volume", shown), *([listing] if listing else [])]


def trials(data: ReportData) -> Markup:
    """Return all trials, with a filter and a download."""
    if not data.trials:
        return empty("No trial has been run yet.")
    field = tag("input", type="search", id="filter", placeholder="key, or knob=value", autocomplete="off")
    controls = [
        tag("label", "Filter ", field),
        tag("button", "Download as CSV", type="button", id="csv"),
        tag("output", f"{len(data.trials)} trials", id="matches", for_="filter"),
    ]
    return join([tag("div", *controls, class_="controls scripted"), tables.trials_table(data)], "\n")


def timings(data: ReportData) -> Markup:
    """Return the time by phase."""
    return tables.timings_table(data.timings) if data.timings else empty("No phase has been finished yet.")


def reproduce(data: ReportData) -> Markup:
    """Return the command, the configuration as TOML and the environment."""
    import tomli_w

    command = data.command if isinstance(data.command, str) else shlex.join(data.command)
    return join(
        [
            tag("h3", "Command"),
            _code(command) if command else empty("The command was not recorded."),
            tag("h3", "Environment"),
            tables.mapping_table("Environment", data.environment) if data.environment else empty("Not recorded."),
            tag("h3", "Configuration"),
            _code(tomli_w.dumps(toml_safe(data.config)).strip()) if data.config else empty("Not recorded."),
        ],
        "\n",
    )


def notes(data: ReportData) -> Markup:
    """Return what the numbers can and cannot say."""
    images = data.front.get("num_images") or {}
    split, score = str(data.front.get("split", "search")), label(data.score)
    tested = any(point.get("test") for point in data.points)
    num_search, num_test = (f" ({images[name]} images)" if name in images else "" for name in (split, "test"))
    said = [
        f"The {score} of trials and of the front is measured on the {split} split{num_search}. These numbers "
        "are used for selection, so the best of them flatter the subnets they belong to.",
        f"The test split{num_test} was looked at only for the points of the front, after selection."
        if tested
        else "The test split has not been looked at.",
        "± is one standard error over the images of the split. It says nothing about how another seed would train.",
        "BitOPs, MACs and size come from cost models; only the sizes of exported files are measured on files.",
    ]
    return tag("ul", *(tag("li", sentence) for sentence in said))


def _code(text: str) -> Markup:
    return tag("pre", tag("code", text), tabindex="0")
