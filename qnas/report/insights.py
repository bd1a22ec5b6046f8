"""What good subnets prefer at each training stage: the page's section and the numbers of its charts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qnas.effects import NETWORK
from qnas.insights_said import by_choice, difference_said, sentence
from qnas.report.data import Json, ReportData
from qnas.report.formats import MINUS, MISSING, label, many, percent
from qnas.report.markup import Markup, empty, join, num, table, tag
from qnas.report.page import chart

WHOLE = "whole network"


def insights(data: ReportData) -> Markup:
    """Return what `qnas insights` found, or how to get it."""
    found = data.insights
    if not found:
        said = (
            "Not asked yet. `qnas insights RUN` judges random subnets at every training stage and tells which kernel "
        )
        return empty(said + "sizes, widths, depths, ... the good ones prefer; then make the report again.")
    stages, kinds = found["stages"], by_choice(found["stages"])
    parts = [_method(found), tag("ul", *(tag("li", minus(sentence(s, label(found["cost"])))) for s in stages))]
    for i, (kind, rows) in enumerate(kinds.items()):
        whole = {place: r for place, r in rows.items() if place[0] == NETWORK}
        parts += [
            tag("h3", kind),
            chart(
                f"insight-{i}", f"Effect of each {kind} by training stage with its interval; the table below says it"
            ),
            _table(f"{kind}, {WHOLE}", whole, stages, found),
        ]
        if len(rows) > len(whole):
            described = f"Effect of each {kind} by part of the network and training stage; the table below says it"
            parted = {place: r for place, r in rows.items() if place[0] != NETWORK}
            listing = _table(f"{kind}, by part of the network", parted, stages, found)
            parts += [
                chart(f"insight-place-{i}", described),
                tag("details", tag("summary", f"{kind} by part of the network as a table"), listing),
            ]
    if found.get("difference"):
        parts += [tag("h3", "Between training stages"), *_difference(found["difference"])]
    return join(parts, "\n")


def _method(found: Json) -> Markup:
    """Return how the numbers came about."""
    cost, score = label(found["cost"]), label(found["metric"])
    said = (
        f"Which choices go with a good {score} at equal {cost}, at each training stage, and so at each bit-width. An "
        f"effect is the {score} that a random subnet gains, in percentage points, as it goes from none of its knobs "
        f"with a choice to all of them, while its {cost} stays equal (least squares with log {cost} and its square). "
        "Bold, and filled in the charts: zero is outside of the 95% interval."
    )
    sizes = "; ".join(
        f"{stage['name']}: {many(stage['num_subnets'], 'subnet')}, {cost} explain {percent(stage['r2'], 0)} of the "
        "differences"
        for stage in found["stages"]
    )
    share = percent(found["good"], 0)
    caution = (
        f"The same architectures at every stage, judged on the {found['num_images']} images of the search split "
        f"({sizes}). Intervals are of a bootstrap over subnets: other subnets of this supernet on the same images; not "
        "another training. At equal cost whoever spends more here spends less elsewhere, so an effect tells how to "
        "spend. Small in the tables: the share of active knobs with the choice among all subnets, then among the best "
        f"{share} by {score} at equal cost."
    )
    return join([tag("p", said), tag("p", caution, class_="note")], "\n")


def _table(
    caption: str,
    rows: Mapping[tuple[str, Any], Sequence[Json | None]],
    stages: Sequence[Json],
    found: Json,
) -> Markup:
    """Return a row a choice, a column a stage."""
    values = [abs(p["effect"]["value"]) for stage in stages for p in stage["preferences"] if p["effect"]]
    largest = max(values, default=0.0) or 1.0
    whole = all(place == NETWORK for place, _ in rows)
    body = [
        tag(
            "tr",
            tag("th", str(choice) if whole else f"{place}: {choice}", scope="row"),
            *(_cell(p, largest) for p in row),
        )
        for (place, choice), row in rows.items()
    ]
    headers = ["Choice", *(num(stage["name"]) for stage in stages)]
    title = f"Effect on {label(found['metric'])} at equal {label(found['cost'])} in percentage points: {caption}"
    return table(title, headers, body, class_="heat")


def _cell(preference: Json | None, largest: float) -> Markup:
    effect = preference and preference["effect"]
    if not preference or not effect:
        return tag("td", MISSING, class_="num")
    text = interval_said(effect)
    shares = [preference["all_share"], preference["good_share"]]
    known = None if None in shares else tag("small", " → ".join(percent(share, 0) for share in shares))
    return tag(
        "td",
        tag("strong", text) if preference["resolved"] else text,
        known,
        data_v=f"{effect['value']:.6g}",
        class_="num " + ("up" if effect["value"] >= 0 else "down"),
        style=f"--heat:{abs(effect['value']) / largest:.2f}",
    )


def interval_said(interval: Mapping[str, float]) -> str:
    """Return a difference of fractions in percentage points with its interval: ``+1.2 (+0.3 to +2.0)``."""
    value, low, high = (f"{round(100 * interval[name], 1) + 0.0:+.1f}" for name in ("value", "low", "high"))
    return minus(f"{value} ({low} to {high})")


def minus(text: str) -> str:
    """Return a text with its negative numbers as they are printed."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text)


def _difference(found: Json) -> list[Markup]:
    """Return how the effects at the fewest bits differ from those at the most."""
    rows = [
        tag(
            "tr",
            tag("th", f"{entry['kind']} {entry['choice']}", scope="row"),
            tag("td", _sure(entry), class_="num"),
        )
        for entry in found["entries"]
    ]
    title = f"Effect in {found['low']} minus effect in {found['high']}, percentage points"
    headers = ["Choice", num(f"{found['low']} minus {found['high']}")]
    note = f"Paired: {many(found['num_subnets'], 'architecture')}, each judged at both stages."
    return [
        tag("p", minus(difference_said(found))),
        tag("p", note, class_="note"),
        table(title, headers, rows, class_="heat"),
    ]


def _sure(entry: Json) -> object:
    if not entry["difference"]:
        return MISSING
    text = interval_said(entry["difference"])
    return tag("strong", text) if entry["resolved"] else text


def insight_charts(found: Json) -> Json:
    """Return what the charts draw: a part a kind, with the effects by place, stage and choice."""
    if not found:
        return {"stages": [], "kinds": [], "cost": ""}
    parts = []
    for kind, rows in by_choice(found["stages"]).items():
        places = list(dict.fromkeys(place for place, _ in rows))
        choices = list(dict.fromkeys(choice for _, choice in rows))
        parts.append(
            {
                "kind": kind,
                "choices": [str(choice) for choice in choices],
                "whole": _grid(rows, NETWORK, choices, len(found["stages"])),
                "places": [
                    {"name": place, "effects": _grid(rows, place, choices, len(found["stages"]))}
                    for place in places
                    if place != NETWORK
                ],
            }
        )
    names = [stage["name"] for stage in found["stages"]]
    return {"stages": names, "kinds": parts, "cost": label(found["cost"])}


def _grid(
    rows: Mapping[tuple[str, Any], Sequence[Json | None]], place: str, choices: Sequence[Any], stages: int
) -> list[list[Json | None]]:
    """Return, by stage and choice, the effect in percentage points: value, low, high and whether it is resolved."""
    return [[_effect((rows.get((place, choice)) or [None] * stages)[i]) for choice in choices] for i in range(stages)]


def _effect(preference: Json | None) -> Json | None:
    if not preference or not preference["effect"]:
        return None
    numbers = {name: round(100 * preference["effect"][name], 4) for name in ("value", "low", "high")}
    return {**numbers, "resolved": preference["resolved"], "num_with": preference["num_with"]}
