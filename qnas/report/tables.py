"""The tables of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qnas.report.answers import tied
from qnas.report.data import Json, ReportData, layer_bitops, number
from qnas.report.drawing import shade
from qnas.report.formats import (
    MISSING,
    TIMES,
    bits,
    count,
    heading,
    label,
    metric,
    p_value,
    percent,
    percent_error,
    seconds,
    size,
)
from qnas.report.markup import Markup, cell, empty, join, num, table, tag
from qnas.retrained import bits_said

_LAYER_HEADERS = ("Layer", "Kind", *map(num, ("Channels", "Kernel", "Stride", "Output")), "W bits", "A bits")


def trials_table(data: ReportData) -> Markup:
    """Return all trials; scripts make it sortable and fill in the samples."""
    names = data.metrics()
    searches = {trial["search"] for trial in data.trials}
    plain = ["Search", "Subnet"] if len(searches) > 1 else ["Subnet"]
    headers = [
        num(_button("Trial")),
        *map(_button, plain),
        *(num(_button(heading(name))) for name in names),
        num(_button("Violation")),
        _button("Front"),
        "Sample",
    ]
    on_front = {point["key"] for point in data.points}
    rows = []
    for position, trial in enumerate(data.trials):
        violation = trial.get("violation") or 0
        cells = [
            cell(trial["number"], trial["number"]),
            cell(trial["search"]) if len(searches) > 1 else None,
            tag("td", tag("code", trial["key"])),
            *(_metric_cell(trial["metrics"], name, data) for name in names),
            cell(f"{violation:.3g}" if violation else MISSING, violation),
            tag("td", "yes" if trial["key"] in on_front else "", data_v=int(trial["key"] in on_front)),
            tag("td", tag("details", tag("summary", f"{len(trial['sample'])} knobs"), tag("p"))),
        ]
        rows.append(tag("tr", *cells, data_i=position))
    return table("Trials, in the order they were run", headers, rows, id="trials")


def _button(text: str) -> Markup:
    return tag("button", text, type="button")


def front_table(data: ReportData) -> Markup:
    """Return the points of the front with their scores on both splits."""
    score = data.score
    costs = [name for name in data.metrics() if name != score]
    split = data.front.get("split", "search")
    scores = (f"{heading(score)}, {split} split", f"{heading(score)}, test split")
    headers = ["Subnet", *map(num, [*scores, *map(heading, costs)])]
    if data.ties:
        headers += ["Against the chosen", "Against the next lower"]
    rows = []
    for point in data.points:
        chosen = point["key"] == data.front.get("chosen")
        test = point.get("test") or {}
        mark = tag("span", "chosen", class_="badge") if chosen else None
        cells = [
            tag("th", tag("code", point["key"]), " ", mark, scope="row"),
            _score_cell(point["metrics"], number(point, "standard_error"), score),
            _score_cell(test, number(test, "standard_error"), score),
            *(_metric_cell(point["metrics"], name, data) for name in costs),
        ]
        if data.ties:
            found = data.ties.get(point["key"]) or {}
            cells += [_tie_cell(number(found, "chosen")), _tie_cell(number(found, "next"))]
        rows.append(tag("tr", *cells, class_="chosen" if chosen else None))
    return table("The front: points that no other trial of the search dominates", headers, rows)


def retrained_table(data: ReportData) -> Markup:
    """Return the nets that were trained again: their test scores as searched and after, and the difference."""
    score = heading(data.score)
    scores = (f"{score}, test, as searched", f"{score}, test", "Difference")
    rows = []
    for net in data.retrained:
        before = net.get("before") or {}
        errors = net.get("standard_error") or {}
        error, metrics = number(before.get("standard_error"), "test"), before.get("metrics") or {}
        cells = [
            tag("th", tag("code", net["key"]), scope="row"),
            tag("td", ", ".join(str(stage["name"]) for stage in net.get("stages") or [])),
            tag("td", bits_said(net["sample"])),
            _score_cell({data.score: metrics.get("test")}, error, data.score),
            _score_cell(net["metrics"]["test"], number(errors, "test"), data.score),
            _difference_cell(before.get("difference") or {}),
        ]
        rows.append(tag("tr", *cells))
    return table("Points trained again by themselves", ["Subnet", "Stages", "Bits", *map(num, scores)], rows)


def kfold_table(found: Json, score: str) -> Markup:
    """Return the net that each fold chose, with its score on the fold and on all other images."""
    headers = ["Fold", *map(num, ("Images", "Subnets")), "Chosen", *map(num, ("On the fold", "On the others"))]
    rows = []
    for number_, fold in enumerate(found["folds"], start=1):
        cells = [tag("th", number_, scope="row"), cell(fold["images"]), cell(fold["evaluations"])]
        cells.append(tag("td", tag("code", fold["key"]) if fold["key"] else "none meets the constraints"))
        cells += [_score_cell({score: fold.get(name)}, None, score) for name in ("own", "others")]
        rows.append(tag("tr", *cells))
    return table(f"{heading(score)} of the nets that the folds chose", headers, rows)


def _difference_cell(difference: Json) -> Markup:
    value, low, high = (number(difference, name) for name in ("value", "low", "high"))
    if value is None:
        return tag("td", MISSING, class_="num")
    interval = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return tag("td", f"{100 * value:+.1f}{interval}", class_="num", data_v=value)


def _tie_cell(value: float | None) -> Markup:
    """Return whether two points are tied within noise."""
    if value is None:
        return tag("td", MISSING)
    word = tag("span", "tied", class_="badge plain") if tied(value) else "differs"
    return tag("td", word, f" ({p_value(value)})", data_v=value)


def volumes_table(data: ReportData) -> Markup:
    """Return the hypervolume that each finished search recorded of its front."""
    rows = []
    for front in data.fronts:
        found = front.get("hypervolume") or {}
        values = [number(found, split) for split in ("search", "test")]
        shown = [tag("td", "not recorded" if v is None else f"{v:.3f}", class_="num") for v in values]
        bounds = "; ".join(
            f"{label(name)} {metric(name, number(found.get('reference'), name), data.score)} to "
            f"{metric(name, number(found.get('ideal'), name), data.score)}"
            for name in found.get("reference") or {}
        )
        stage = tag("td", front.get("stage") or MISSING)
        rows.append(tag("tr", tag("th", front["search"], scope="row"), stage, *shown, tag("td", bounds or MISSING)))
    headers = ["Search", "Stage", num("Search split"), num("Test split"), "Its own box"]
    return table("Hypervolume of each search's front, in the box that the search recorded", headers, rows)


def family_table(data: ReportData, fronts: Sequence[Json]) -> Markup:
    """Return the chosen subnet after each stage of training."""
    names = [name for name in data.metrics() if name != data.score]
    rows = []
    for front in fronts:
        point = next((p for p in front["points"] if p["key"] == front.get("chosen")), None)
        if point is None:
            continue
        test = point.get("test") or {}
        cells = [
            tag("td", front.get("search")),
            tag("td", tag("code", point["key"])),
            _score_cell(point["metrics"], number(point, "standard_error"), data.score),
            _score_cell(test, number(test, "standard_error"), data.score),
            *(_metric_cell(point["metrics"], name, data) for name in names),
            cell(count(len(front["points"])), len(front["points"])),
        ]
        rows.append(tag("tr", tag("th", front.get("stage") or MISSING, scope="row"), *cells))
    scores = (num(f"{heading(data.score)}, {split} split") for split in ("search", "test"))
    headers = ["Stage", "Search", "Chosen subnet", *scores, *(num(heading(name)) for name in names), num("Points")]
    return table("The last search after each stage of training", headers, rows)


def _score_cell(values: Json, error: float | None, score: str) -> Markup:
    value = number(values, score)
    return cell(percent_error(value, error), value if value is not None else "")


def _metric_cell(values: Json, name: str, data: ReportData) -> Markup:
    value = number(values, name)
    return cell(metric(name, value, data.score), "" if value is None else value, title=value)


def layers_table(point: Json) -> Markup:
    """Return a subnet layer by layer, with each layer's share of the bit operations."""
    layers = point.get("layers") or []
    if not layers:
        return empty("The layers of this subnet were not recorded.")
    costs = [layer_bitops(layer) for layer in layers]
    total = sum(costs) or 1
    rows = [
        _layer_row(layer, cost / total, cost / (max(costs) or 1)) for layer, cost in zip(layers, costs, strict=True)
    ]
    macs, weights = (sum(layer.get(name, 0) for layer in layers) for name in ("macs", "num_weights"))
    foot = tag(
        "tr",
        tag("th", "Sum", scope="row"),
        tag("td", colspan=len(_LAYER_HEADERS) - 1),
        cell(count(weights), weights, title=weights),
        cell(count(macs), macs, title=macs),
        tag("td", count(sum(costs)), title=sum(costs)),
    )
    headers = [*_LAYER_HEADERS, num("Parameters"), num("MACs"), "Share of BitOPs"]
    return table(f"Layers of subnet {point['key']}", headers, rows, foot, class_="layers")


def _layer_row(layer: Json, share: float, width: float) -> Markup:
    quantize = layer["kind"] == "quantize"
    bar = tag("span", class_="bar", style=f"--share:{width:.4f}", aria_hidden="true")
    channels = f"{layer['in_channels']} → {layer['out_channels']}"
    kernel, out = layer.get("kernel_size", 1), layer.get("out_size", 1)
    return tag(
        "tr",
        tag("th", layer["name"], scope="row"),
        cell(_kind(layer)),
        cell(channels, layer["out_channels"]),
        cell(MISSING if quantize else f"{kernel}{TIMES}{kernel}", kernel),
        cell(MISSING if quantize else layer.get("stride", 1), layer.get("stride", 1)),
        cell(f"{out}{TIMES}{out}", out),
        tag("td", MISSING if quantize else _chip(layer.get("w_bits", 32))),
        tag("td", _chip(layer.get("a_bits", 32))),
        cell(count(layer.get("num_weights", 0)), layer.get("num_weights", 0), title=layer.get("num_weights", 0)),
        cell(count(layer.get("macs", 0)), layer.get("macs", 0), title=layer.get("macs", 0)),
        tag("td", bar, percent(share), class_="share"),
    )


def _kind(layer: Json) -> str:
    """Return the kind of a layer, and how its channels are grouped."""
    groups = layer.get("groups", 1)
    if groups == 1:
        return str(layer["kind"])
    return f"depthwise {layer['kind']}" if groups == layer["in_channels"] else f"{layer['kind']}, {groups} groups"


def _chip(value: Any) -> Markup:
    """Return a bit-width on a shade of its own."""
    return tag("span", bits(value), class_="chip", style=f"--shade:{shade(value)}")


def exports_table(exports: Sequence[Json]) -> Markup:
    """Return the exported models and what verification found."""
    numbers = ("Score, reference", "Score, model", "Equal predictions", "Max steps")
    headers = ["Subnet", "ONNX", "Packed weights", "Verified", *map(num, numbers)]
    rows = []
    for export in exports:
        verify = export.get("verify") or {}
        reference, model = number(verify, "subnet_accuracy"), number(verify, "device_accuracy")
        rows.append(
            tag(
                "tr",
                tag("th", tag("code", export["key"]), scope="row"),
                _file_cell(export, "onnx"),
                _file_cell(export, "packed"),
                tag("td", verdict(export)),
                cell(percent(reference, 2), reference),
                cell(percent(model, 2), model),
                cell(_equal(verify.get("agreement")), verify.get("agreement")),
                cell(verify.get("largest_steps", MISSING), verify.get("largest_steps")),
            )
        )
    return table("Exported models", headers, rows)


def export_details(export: Json) -> Markup:
    """Return what the exported graph is made of and each failure of its verification."""
    operators = ", ".join(f"{name} {TIMES} {n}" for name, n in sorted((export.get("operators") or {}).items()))
    islands = ", ".join(f"{island['name']} ({island['reason']})" for island in export.get("float_islands") or [])
    failures = (export.get("verify") or {}).get("failures") or []
    listed = tag("ul", *(tag("li", failure) for failure in failures), class_="failures") if failures else None
    return tag(
        "details",
        tag("summary", "Graph of ", tag("code", export["key"])),
        tag("p", tag("strong", "Operators: "), operators or "not recorded"),
        tag("p", tag("strong", "Left in float: "), islands or "nothing"),
        join([tag("p", tag("strong", "Failures:")), listed]) if listed else None,
        open=bool(failures),
    )


def verdict(export: Json) -> Markup:
    """Return whether an export was verified, in a word."""
    verify = export.get("verify")
    if not verify:
        return tag("span", "not checked", class_="badge plain")
    return tag("span", "passed", class_="badge good") if verify["passed"] else tag("span", "failed", class_="badge bad")


def _file_cell(export: Json, kind: str) -> Markup:
    value = export.get(f"{kind}_bytes")
    path = tag("code", export[kind]) if export.get(kind) else None
    return tag("td", size(value), " ", path, data_v=value, class_="file")


def _equal(value: Any) -> str:
    if value is None:
        return MISSING
    return percent(value, 2) if isinstance(value, float) and value <= 1 else str(value)


def timings_table(timings: dict[str, float]) -> Markup:
    """Return the time by phase."""
    total = sum(timings.values())
    longest = max(timings.values()) or 1
    rows = [
        tag(
            "tr",
            tag("th", phase, scope="row"),
            cell(seconds(value), value),
            tag(
                "td",
                tag("span", class_="bar", style=f"--share:{value / longest:.4f}", aria_hidden="true"),
                class_="share",
            ),
        )
        for phase, value in timings.items()
    ]
    foot = tag("tr", tag("th", "sum", scope="row"), cell(seconds(total), total), tag("td"))
    return table("Time by phase", ("Phase", num("Time"), "Share"), rows, foot, class_="narrow")


def history_table(history: Sequence[Json]) -> Markup:
    """Return the history of training, an epoch a row."""
    numbers = (num("Learning rate"), num("Gradient norm"), num("Image passes"))
    headers = ("Stage", num("Epoch"), "Losses, largest subnet first", *numbers)
    rows = []
    for entry in history:
        losses = ", ".join(MISSING if loss is None else f"{loss:.3f}" for loss in entry.get("losses") or [])
        rate, norm, passes = (number(entry, name) for name in ("lr", "gradient_norm", "image_passes"))
        cells = [
            cell(entry.get("stage", "")),
            cell(entry.get("epoch", ""), entry.get("epoch")),
            tag("td", losses),
            cell(MISSING if rate is None else f"{rate:.3g}", rate),
            cell(MISSING if norm is None else f"{norm:.3g}", norm),
            cell(count(passes), passes),
        ]
        rows.append(tag("tr", *cells))
    return table("Training, epoch by epoch", headers, rows)


def mapping_table(caption: str, mapping: Json) -> Markup:
    """Return names and values; nested names are joined by dots."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in _flat(mapping)]
    return table(caption, ("Name", "Value"), rows, class_="narrow")


def _flat(mapping: Json, prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in mapping.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", str(value))]
    return found
