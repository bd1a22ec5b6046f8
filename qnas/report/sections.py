"""The parts of the page, from the headline to how to reproduce the run."""

from __future__ import annotations

import shlex

from qnas.report import tables
from qnas.report.data import Json, ReportData, number, toml_safe
from qnas.report.formats import MISSING, count, heading, label, metric, percent, percent_error, size
from qnas.report.markup import Markup, empty, join, tag


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
        shown.append(_verified_tile(data.export_of(point["key"])))
    shown.append(_tile("Evaluations", count(evaluations), _many(len(data.points), "point") + " on the front"))
    return join(shown, "\n")


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
        else _tile("Verified?", "no", _many(failures, "failure"), "bad")
    )


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
    picture = _chart("front-chart", "Trials and front; the table below holds the numbers of the front", "tall")
    picked = tag("p", id="picked", class_="note", aria_live="polite")
    listing = tables.front_table(data) if data.points else empty("No trial is on a front yet.")
    return join([tag("div", *selects, class_="controls", id="axes"), picture, picked, listing], "\n")


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
        tag("div", tables.layers_table(point), _knobs(point), class_="subnet", hidden=i != chosen)
        for i, point in enumerate(points)
    ]
    return join([tag("div", selector, class_="controls"), *parts], "\n")


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
    note = _many(len(data.history), "epoch") + (f", {count(passes)} image passes in all." if passes else ".")
    details = tag("details", tag("summary", "All epochs as a table"), tables.history_table(data.history))
    return join([tag("p", note), _chart("training-chart", "Loss of the largest, random and smallest subnets"), details])


def search(data: ReportData) -> Markup:
    """Return how the search went, trial by trial."""
    if not data.trials:
        return empty("No trial has been run yet.")
    return _chart("search-chart", "Score of each trial, best score so far and size of the front so far")


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
    return join([tag("div", *controls, class_="controls"), tables.trials_table(data)], "\n")


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


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _chart(name: str, description: str, kind: str = "") -> Markup:
    return tag("div", id=name, class_=f"chart {kind}".strip(), role="group", aria_label=description)


def _code(text: str) -> Markup:
    return tag("pre", tag("code", text), tabindex="0")
