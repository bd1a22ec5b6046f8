"""The parts of the page that weigh a run: gaps, bit-widths, training alone, and what went on inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qnas.report.data import Json, ReportData, number
from qnas.report.formats import MINUS, MISSING, count, label, many, percent, percent_error
from qnas.report.inside import QUANTITIES, quantities
from qnas.report.markup import Markup, cell, empty, join, num, table, tag
from qnas.report.page import chart
from qnas.report.sensitivity import NETWORK, ROLES, Effect, Sensitivity, sensitivity


def gap(data: ReportData) -> Markup:
    """Return how far the points of the front fall from the split they were selected on to the one they were not."""
    if not any(point.get("test") for point in data.points):
        return empty("No point of a front has been measured on the test split yet.")
    score = label(data.score)
    said = (
        f"Each point is the {score} on the search split minus that on the test split, with its 95% interval. Points "
        "were selected because they did well on the search split, so a gap above zero is to be expected (the "
        "winner's curse)."
    )
    mean = "The images that each point answers right were not stored, so the mean gap has no interval."
    if data.gap:
        verdict = "zero is within it" if data.gap["low"] <= 0 <= data.gap["high"] else "zero is outside of it"
        value, low, high = (f"{100 * data.gap[name]:+.1f}".replace("-", MINUS) for name in ("value", "low", "high"))
        mean = (
            f"Mean gap over the front: {value} points, 95% interval {low} to {high}: {verdict}. The "
            "interval allows for all points answering the same images."
        )
    shown = "Gap from the search to the test split for each point of the front; the front's table holds both accuracies"
    return join([tag("p", said), tag("p", tag("strong", mean)), chart("gap", shown)], "\n")


def bit_widths(data: ReportData) -> Markup:
    """Return the mean effect of every bit-width of every group of layers, or why it cannot be told."""
    if not data.trials:
        return empty("No trial has been run yet.")
    found = sensitivity(data.trials, data.score)
    if not found.effects:
        return empty(f"Left out: {found.reason}.")
    said = (
        f"Mean {label(data.score)} of the subnets with a bit-width minus the overall mean, in percentage points ± "
        f"standard error, when all else is equal in an additive fit to {found.num_subnets} judged subnets "
        f"({found.num_coefficients} coefficients; {found.covariates}; {100 * found.residual:.1f} points of residual "
        "standard deviation). Bold: more than two standard errors from zero."
    )
    caution = (
        "This is observational: the search chose which subnets to judge, bit-widths interact, and of many entries a "
        "few are bold by chance. Small numbers below: how many subnets have the bit-width."
    )
    return join([tag("p", said), tag("p", caution, class_="note"), _effects_table(found)], "\n")


def _effects_table(found: Sensitivity) -> Markup:
    columns = [(role, bits) for role in ROLES for bits in sorted({e.bits for e in found.effects if e.role == role})]
    effects = {(e.group, e.role, e.bits): e for e in found.effects}
    largest = max(abs(e.value) for e in found.effects) or 1.0
    rows = []
    for group in dict.fromkeys(e.group for e in found.effects):
        name = "all layers" if group == NETWORK else group
        cells = [_effect_cell(effects.get((group, role, bits)), largest) for role, bits in columns]
        rows.append(tag("tr", tag("th", name, scope="row"), *cells))
    headers = ["Layers", *(num(f"{'W' if role == 'w_bits' else 'A'} {bits}") for role, bits in columns)]
    return table(
        "Effect of each bit-width (W: weights, A: activations) by group of layers", headers, rows, class_="heat"
    )


def _effect_cell(effect: Effect | None, largest: float) -> Markup:
    if effect is None:
        return tag("td", MISSING, class_="num")
    text = f"{100 * effect.value:+.1f} ± {100 * effect.error:.1f}".replace("-", MINUS)
    sure = abs(effect.value) > 2 * effect.error
    return tag(
        "td",
        tag("strong", text) if sure else text,
        tag("small", effect.num_subnets),
        data_v=f"{effect.value:.6g}",
        class_="num " + ("up" if effect.value >= 0 else "down"),
        style=f"--heat:{abs(effect.value) / largest:.2f}",
    )


def ranks(data: ReportData) -> Markup:
    """Return each comparison of the supernet's ranking with training alone."""
    parts = []
    for i, comparison in enumerate(data.ranks):
        tau, settings = comparison.get("tau") or {}, comparison.get("settings") or {}
        values = [v for name in ("value", "low", "high") if (v := number(tau, name)) is not None]
        shown = "{:.2f}, 95% interval {:.2f} to {:.2f}".format(*values) if len(values) == 3 else MISSING
        name = f"{comparison.get('num_configs', MISSING)} random subnets, trained {_start(settings)}"
        images = comparison.get("num_images") or {}
        said = (
            f"Kendall's tau {shown}. 1 means the same order, 0 no relation. Across: the supernet's "
            f"{label(data.score)} on the search split ({images.get('supernet', MISSING)} images); up: that of the same "
            f"subnet trained alone on the test split ({images.get('alone', MISSING)} images)."
        )
        listing = tag("details", tag("summary", "The subnets as a table"), _rank_table(comparison, name))
        described = f"Supernet against alone, {name}: Kendall's tau {shown}; the table below holds the numbers"
        parts += [tag("h3", name), tag("p", said), chart(f"rank-{i}", described, "square"), listing]
    return join(parts, "\n")


def _start(settings: Mapping[str, Any]) -> str:
    start = {"scratch": "from scratch", "supernet": "from the supernet's weights"}
    said = start.get(str(settings.get("start")), str(settings.get("start", "alone")))
    return f"{said}, {settings.get('budget', 1.0):g} times the supernet's epochs, seed {settings.get('seed', MISSING)}"


def _rank_table(comparison: Json, name: str) -> Markup:
    rows = []
    for entry in sorted(comparison.get("configs") or [], key=lambda e: (-(number(e, "alone") or 0.0), str(e["key"]))):
        supernet, true, error = (number(entry, name) for name in ("supernet", "alone", "alone_standard_error"))
        cells = [cell(percent(supernet), supernet), cell(percent_error(true, error), true)]
        rows.append(tag("tr", tag("th", tag("code", entry["key"]), scope="row"), *cells))
    return table(f"Ranking: {name}", ["Subnet", num("Supernet, search split"), num("Alone, test split")], rows)


def alone(data: ReportData) -> Markup:
    """Return the subnets that were trained by themselves."""
    metric = data.score
    judged = {trial["key"]: number(trial["metrics"], metric) for trial in data.trials}
    tested = {point["key"]: number(point.get("test"), metric) for point in data.points}
    rows = []
    for result in data.alone:
        metrics, errors = result.get("metrics") or {}, result.get("standard_error") or {}
        scores = [(number(metrics.get(s), metric), number(errors, s)) for s in ("search", "test")]
        key = result["key"]
        epochs = " + ".join(str(stage.get("epochs")) for stage in result.get("stages") or []) or MISSING
        cells = [
            tag("td", result.get("start", MISSING)),
            cell(result.get("seed", MISSING), number(result, "seed")),
            tag("td", epochs, class_="num"),
            cell(count(number(result, "image_passes")), number(result, "image_passes")),
            *(tag("td", percent_error(*score), class_="num") for score in scores),
            *(tag("td", percent(known.get(key)), class_="num") for known in (judged, tested)),
        ]
        rows.append(tag("tr", tag("th", tag("code", key), scope="row"), *cells))
    numbers = ("Seed", "Epochs", "Image passes", "Alone, search split", "Alone, test split")
    supernet = ("In the supernet, search split", "In the supernet, test split")
    said = "An image pass is one image through the run's largest subnet; smaller subnets count by their MACs."
    headers = ["Subnet", "Start", *map(num, numbers), *map(num, supernet)]
    return join([tag("p", said, class_="note"), table("Subnets trained alone", headers, rows)], "\n")


def inside(data: ReportData) -> Markup:
    """Return a choice of quantities over the training, a row a layer."""
    found = quantities(data.inside)
    options = [tag("option", QUANTITIES[name], value=name) for name in found]
    said = (
        f"{many(len(data.inside), 'look')} inside while the supernet trained, the first subnet of the step each time "
        "(the largest, where steps draw a sandwich). Clip ratio: the share of values beyond the grid. Step sizes and "
        "gradient norms are coloured by their logarithm. A layer is missing where its quantizer was off."
    )
    selector = tag("label", "Quantity ", tag("select", *options, id="quantity"))
    shown = "A quantity of every layer over the steps of the training as a heat map; pointing at a cell tells its value"
    return join([tag("p", said), tag("div", selector, class_="controls scripted"), chart("inside", shown)], "\n")
