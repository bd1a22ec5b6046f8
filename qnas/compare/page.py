"""A comparison -> one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from qnas.report.charts import metric_shown
from qnas.report.data import Json
from qnas.report.formats import MINUS, MISSING, count, label, many, metric, p_value, percent_error
from qnas.report.markup import Markup, empty, join, num, table, tag
from qnas.report.page import Section, chart, render_page, text_file

INKS = ("accent", "chosen", "good", "fourth", "fifth", "bad", "seventh", "muted")  # as in plot.js


def render_comparison(found: Json) -> str:
    """Return the page of a comparison. Equal comparisons give an equal page."""
    parts = [
        Section("fronts", "Fronts", "Fronts", fronts(found)),
        Section("budgets", "Equal cost", "Accuracy at equal cost", budgets(found)),
        Section("pairs", "Differences", "Which differences are real?", pairs(found)),
    ]
    if found["groups"]:
        parts.append(Section("seeds", "Seeds", "Over several seeds", groups(found)))
    parts.append(Section("notes", "Notes", "How to read these numbers", notes(found)))
    score, names = found["metric"], [str(o["name"]) for o in found["objectives"]]
    shown = list(dict.fromkeys([score, found["cost"], *names]))
    data = {**found, "metrics": [metric_shown(name, score, "search") for name in shown]}
    goals = ", ".join(f"{label(str(o['name']))} ({o['direction']})" for o in found["objectives"])
    return render_page(
        "qnas compare",
        " · ".join(run["name"] for run in found["runs"]),
        f"{many(len(found['runs']), 'search').replace('searchs', 'searches')} · objectives: {goals} · "
        f"budgets in {label(found['cost'])}",
        tiles(found),
        parts,
        data,
        [text_file("plot.js"), text_file("charts.js", "qnas.compare")],
        drawn=True,
    )


def tiles(found: Json) -> Markup:
    """Return the headline: who has the largest hypervolume, who leads at the largest budget, what is significant."""
    shown = []
    for split in ("search", "test"):
        known = [
            (run["hypervolume"][split], run["name"]) for run in found["runs"] if run["hypervolume"][split] is not None
        ]
        if known:
            value, name = max(known)
            shown.append(_tile(f"Largest hypervolume, {split} split", f"{value:.3f}", name))
    tested = [pair for pair in found["pairs"] if pair["paired"]]
    real = sum(pair["significant"] for pair in tested)
    note = f"of {many(len(tested), 'paired test')}" if tested else "no two runs share their test images"
    shown.append(_tile("Significant differences", real if tested else MISSING, note))
    return join(shown, "\n")


def _tile(name: str, value: object, note: object) -> Markup:
    parts = (tag("dt", name), tag("dd", value, class_="value"), tag("dd", note, class_="note"))
    return tag("div", *parts, class_="tile")


def fronts(found: Json) -> Markup:
    """Return all fronts in one chart, and the runs with their hypervolumes."""
    choice = [tag("option", f"{split} split", value=split) for split in ("search", "test")]
    selector = tag("label", "Accuracies of the ", tag("select", *choice, id="split"))
    described = f"Fronts of {many(len(found['runs']), 'run')} in one chart; the table below holds their ends"
    said = (
        "Each line is the front of a run, points ± one standard error; between points the cheaper one is the best "
        "there is. A run that trained its searched points again stands for these nets, and one that searches several "
        "stages of its training for their fronts together. The points were selected on the search split; the test "
        "split shows the same subnets on images that selected nothing, so a line may fall back there."
    )
    controls = tag("div", selector, class_="controls scripted")
    return join(
        [tag("p", said), controls, chart("fronts", described, "tall"), _runs_table(found), _box_said(found)], "\n"
    )


def _runs_table(found: Json) -> Markup:
    rows = []
    for i, run in enumerate(found["runs"]):
        chosen = next((p for p in run["points"] if p["key"] == run["chosen"]), None) or {}
        test, score = chosen.get("test") or {}, found["metric"]
        numbers = [
            run["seed"],
            run["evaluations"],
            len(run["points"]),
            count(run["image_passes"]),
            percent_error((chosen.get("metrics") or {}).get(score), chosen.get("standard_error")),
            percent_error(test.get(score), test.get("standard_error")),
            *(_volume(run["hypervolume"][split]) for split in ("search", "test")),
        ]
        cells = [tag("td", run["search"]), tag("td", run["strategy"]), *(tag("td", n, class_="num") for n in numbers)]
        rows.append(tag("tr", _name_cell(i, run["name"]), *cells))
    split = (f"Chosen: {label(found['metric'])}, search split", "Chosen: test split")
    numeric = ("Seed", "Evaluations", "Points", "Image passes", *split, "Hypervolume, search", "Hypervolume, test")
    return table("The runs and their fronts", ["Run", "Search", "Strategy", *map(num, numeric)], rows)


def _box_said(found: Json) -> Markup:
    box = found["box"]
    if box is None:
        return tag("p", "The points span no box, so there is no hypervolume.", class_="note")
    corners = "; ".join(
        f"{label(name)} {metric(name, box['reference'][name], found['metric'])} to "
        f"{metric(name, box['ideal'][name], found['metric'])}"
        for name in sorted(box["reference"])
    )
    said = (
        "Hypervolume: the share of a box of objectives that a front dominates, from 0 to 1. All runs are measured in "
        f"one box ({box['source']}): {corners}. It may differ from the one in a run's own report."
    )
    return tag("p", said, class_="note")


def budgets(found: Json) -> Markup:
    """Return what each run offers within each budget."""
    cost, score = found["cost"], found["metric"]
    rows = []
    for i, (run, offers) in enumerate(zip(found["runs"], found["at_budget"], strict=True)):
        rows.append(tag("tr", _name_cell(i, run["name"]), *(_offer_cell(offer, cost, score) for offer in offers)))
    limits = [num(f"{label(cost)} ≤ {metric(cost, budget, score)}") for budget in found["budgets"]]
    said = (
        f"Within each budget of {label(cost)}, the point of a run's front with the best {label(score)} on the search "
        "split, and its test accuracy ± one standard error. Below: what it costs."
    )
    described = "Test accuracy of each run within each budget; the table below holds the numbers"
    return join([tag("p", said), chart("budgets", described), table("At equal cost", ["Run", *limits], rows)], "\n")


def _offer_cell(offer: Json, cost: str, score: str) -> Markup:
    if offer["key"] is None:
        return tag("td", MISSING, class_="num", title="no point within this budget")
    below = tag("small", metric(cost, offer["cost"], score))
    return tag("td", percent_error(offer["test"], offer["test_error"]), below, class_="num", title=offer["key"])


def pairs(found: Json) -> Markup:
    """Return the tests of all pairs within all budgets."""
    if not found["pairs"]:
        return empty("No two runs have a point with a test accuracy within the same budget.")
    rows = [_pair_row(pair, found) for pair in found["pairs"]]
    said = (
        "Runs with the same test images are compared image by image: McNemar's exact test counts the images that "
        "only one of the two subnets answers right. All these tests together are corrected by Holm's method: where "
        "nothing differs, the chance that even one of them is called significant is below 5%. A test of the same two "
        "subnets counts once. Runs with different test images cannot be paired; they get the interval for two "
        "separate samples and no test."
    )
    columns = ["Budget", "First", "Second", num("First minus second"), "95% interval", "Only first : only second"]
    captions = "Differences of test accuracy within each budget, in percentage points"
    listing = table(captions, [*columns, num("p"), num("p, corrected"), "Verdict"], rows)
    return join([tag("p", said), listing], "\n")


def _pair_row(pair: Json, found: Json) -> Markup:
    value, low, high = (_points(pair[name]) for name in ("value", "low", "high"))
    counts = f"{pair['only_first']} : {pair['only_second']}" if pair["paired"] else MISSING
    values = [
        p_value(pair[name]).removeprefix("p ").removeprefix("= ") for name in ("p_value", "corrected") if name in pair
    ]
    if not pair["paired"]:
        verdict: object = pair["why"]
    elif pair["significant"]:
        verdict = tag("strong", f"{pair['first'] if pair['value'] > 0 else pair['second']} is better")
    else:
        verdict = "within noise"
    return tag(
        "tr",
        tag("td", metric(found["cost"], pair["budget"], found["metric"]), class_="num"),
        tag("td", pair["first"]),
        tag("td", pair["second"]),
        tag("td", value, class_="num"),
        tag("td", f"{low} to {high}"),
        tag("td", counts),
        *(tag("td", shown, class_="num") for shown in values or [MISSING, MISSING]),
        tag("td", verdict),
    )


def groups(found: Json) -> Markup:
    """Return means over the seeds of each configuration."""
    score, cost = found["metric"], found["cost"]
    rows = []
    for group in found["groups"]:
        volumes = [
            tag("td", _interval(group["hypervolume"][s], "{:.3f}", 1.0), class_="num") for s in ("search", "test")
        ]
        offers = [tag("td", _interval(mean, "{:.1f}", 100.0, "%"), class_="num") for mean in group["at_budget"]]
        seeds = ", ".join(map(str, group["seeds"]))
        rows.append(tag("tr", tag("th", group["name"], scope="row"), tag("td", seeds), *volumes, *offers))
    said = (
        "Runs whose configurations differ in nothing but the seed: the mean over seeds with its 95% interval "
        "(Student's t). Unlike a standard error over images, it holds what another seed changes: splits, weights and "
        "the search."
    )
    limits = [num(f"{label(cost)} ≤ {metric(cost, budget, score)}") for budget in found["budgets"]]
    headers = ["Runs", "Seeds", num("Hypervolume, search"), num("Hypervolume, test"), *limits]
    return join([tag("p", said), table(f"Means over seeds: hypervolume and test {label(score)}", headers, rows)], "\n")


def notes(found: Json) -> Markup:
    """Return what the comparison can and cannot say."""
    score = label(found["metric"])
    said = [
        f"Points were selected by their {score} on the search split, and judged here by the test split, which selected "
        "nothing. Budgets were chosen from costs alone unless they were given.",
        "± is one standard error over images of one trained supernet. A significant difference means that these two "
        "trained subnets differ, not that one method beats the other: that takes several seeds of each.",
        "An image pass is one image forward and backward through a run's largest subnet; smaller subnets count by "
        "their MACs. It is what training took: of the supernet, and of the nets that were trained again.",
        "Runs with different seeds split the images differently, so a test image of one may be a training image of "
        "another.",
    ]
    return tag("ul", *(tag("li", sentence) for sentence in said))


def _name_cell(i: int, name: str) -> Markup:
    swatch = tag("span", class_="swatch", style=f"--shown: var(--{INKS[i % len(INKS)]})", aria_hidden="true")
    return tag("th", swatch, name, scope="row")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", MINUS)


def _volume(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _interval(mean: Json, form: str, scale: float, unit: str = "") -> Markup | str:
    """Return a mean over seeds and, below it, its interval and the number of seeds."""
    if mean["value"] is None:
        return MISSING
    ends: Sequence[float | None] = [mean["low"], mean["high"]]
    shown = " to ".join(form.format(scale * end) for end in ends if end is not None) or "no interval"
    below = tag("small", f"{shown}, {many(mean['num_seeds'], 'seed')}")
    return join([form.format(scale * mean["value"]) + unit, below])
