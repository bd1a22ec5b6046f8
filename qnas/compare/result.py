"""Entries -> everything that a comparison says, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

from qnas.compare.budgets import check_cost, common_budgets, pick
from qnas.compare.entries import Entry
from qnas.errors import ConfigError
from qnas.protocols import Objective
from qnas.report.data import Json, json_safe, number
from qnas.report.volume import Box, common_box, complete, objectives_of, volume
from qnas.statistics import CONFIDENCE, holm, mean_interval, paired, unpaired

SPLITS = ("search", "test")


def compare(entries: Sequence[Entry], cost: str, budgets: Sequence[float] = ()) -> Json:
    """Compare what several runs found.

    Args:
        entries: two or more.
        cost: the metric that budgets are in.
        budgets: to compare at; by default those of :func:`~qnas.compare.budgets.common_budgets`.

    Returns:
        ``metric``, ``objectives``, ``cost``, ``budgets``; ``box`` of the hypervolumes; ``runs`` with their points,
        ``image_passes`` of training and ``hypervolume`` on both splits; ``at_budget``, a list a run of what it offers
        within each budget; ``pairs``, the tests of all pairs within each budget; ``groups``, means over the seeds of
        one configuration.

    Raises:
        ConfigError: metrics or objectives differ, or the cost is none.
    """
    entries = with_objectives(entries, cost)
    check_alike(entries)
    check_cost(entries, cost)
    objectives = objectives_of(entries[0].front)
    values = [metrics for e in entries for metrics in [*e.met, *(point["metrics"] for point in e.points)]]
    box = common_box([e.front for e in entries], complete(values, objectives), objectives)
    shown = sorted(set(map(float, budgets))) or common_budgets(entries, cost)
    runs = [_run(entry, objectives, box) for entry in entries]
    offered = [[_offer(entry, cost, budget) for budget in shown] for entry in entries]
    found: Json = json_safe(
        {
            "metric": entries[0].metric,
            "objectives": entries[0].front["objectives"],
            "cost": cost,
            "budgets": shown,
            "box": asdict(box) if box else None,
            "runs": runs,
            "at_budget": offered,
            "pairs": _pairs(entries, cost, shown),
            "groups": _groups(entries, runs, offered),
        }
    )
    return found


def with_objectives(entries: Sequence[Entry], cost: str) -> list[Entry]:
    """Return the entries, those of retrained nets with the objectives of the others, or with accuracy and the cost.

    Such nets were not chosen by objectives among one another, so those of the comparison are theirs.
    """
    sought = [entry.front["objectives"] for entry in entries if entry.front["objectives"] is not None]
    own = [{"name": entries[0].metric, "direction": "max"}, {"name": cost, "direction": "min"}]
    goals = sought[0] if sought else own
    return [
        entry if entry.front["objectives"] is not None else replace(entry, front={**entry.front, "objectives": goals})
        for entry in entries
    ]


def check_alike(entries: Sequence[Entry]) -> None:
    """Refuse searches that sought different things.

    Raises:
        ConfigError: names the first difference.
    """
    first = entries[0]
    for other in entries[1:]:
        for what, one, two in (
            ("the metric", first.metric, other.metric),
            ("the objectives", _goals(first), _goals(other)),
        ):
            if one != two:
                raise ConfigError(
                    f"The runs cannot be compared: {what} of {first.name} is {one}, of {other.name} {two}. "
                    f"Search one of them again with the other's --objective, and name the searches to compare."
                )


def _goals(entry: Entry) -> str:
    return ", ".join(sorted(f"{o['name']} ({o['direction']})" for o in entry.front["objectives"]))


def _run(entry: Entry, objectives: Sequence[Objective], box: Box | None) -> Json:
    front = entry.front
    kept = ("search", "strategy", "evaluations", "constraints", "num_images", "chosen")
    points = [{k: p.get(k) for k in ("key", "metrics", "standard_error", "test")} for p in entry.points]
    values = {"search": [p["metrics"] for p in points], "test": [p["test"] for p in points if p["test"]]}
    return {
        "name": entry.name,
        "seed": entry.seed,
        "image_passes": entry.image_passes,
        **{name: front.get(name) for name in kept},
        "points": points,
        "hypervolume": {s: volume(values[s], objectives, box) if values[s] else None for s in SPLITS},
    }


def _offer(entry: Entry, cost: str, budget: float) -> Json:
    """Return the best point within a budget: its accuracy on both splits."""
    point = pick(entry, cost, budget)
    if point is None:
        return {"key": None, "cost": None, "search": None, "search_error": None, "test": None, "test_error": None}
    test = point.get("test") or {}
    return {
        "key": point["key"],
        "cost": point["metrics"][cost],
        "search": point["metrics"][entry.metric],
        "search_error": point.get("standard_error"),
        "test": number(test, entry.metric),
        "test_error": number(test, "standard_error"),
    }


def _pairs(entries: Sequence[Entry], cost: str, budgets: Sequence[float]) -> list[Json]:
    """Return every pair within every budget; p-values of paired tests are corrected together (Holm)."""
    pairs = [
        _pair(*two, cost, budget)
        for budget in budgets
        for two in combinations(entries, 2)
        if all((pick(e, cost, budget) or {}).get("test") for e in two)
    ]
    tests: dict[tuple[str, ...], list[Json]] = {}
    for pair in pairs:
        if pair["paired"]:  # two budgets may offer the same two subnets: one test
            tests.setdefault((pair["first"], pair["second"], *pair["keys"]), []).append(pair)
    for same, corrected in zip(tests.values(), holm([same[0]["p_value"] for same in tests.values()]), strict=True):
        for pair in same:
            pair.update(corrected=corrected, significant=corrected < 1 - CONFIDENCE)
    return pairs


def _pair(first: Entry, second: Entry, cost: str, budget: float) -> Json:
    """Return the difference of two runs' test accuracies within a budget, paired by image where images are the same."""
    points = [pick(entry, cost, budget) for entry in (first, second)]
    keys = [str(point["key"]) for point in points if point]
    head: Json = {"budget": budget, "first": first.name, "second": second.name, "keys": keys}
    bits = [entry.answers.get(key) for entry, key in zip((first, second), keys, strict=True)]
    why = unpaired_because(first, second)
    if why is None and bits[0] is not None and bits[1] is not None and len(bits[0]) == len(bits[1]):
        test = paired(bits[0], bits[1])
        counts = {"only_first": test.only_first, "only_second": test.only_second}
        return {**head, "paired": True, **asdict(test.difference), "p_value": test.p_value, **counts}
    sides: list[Any] = []
    for entry, point in zip((first, second), points, strict=True):
        assert point is not None
        sides += [point["test"][entry.metric], int(entry.front["num_images"]["test"])]
    interval = asdict(unpaired(*sides))
    return {**head, "paired": False, "why": why or "answers were not stored: not paired", **interval}


def unpaired_because(first: Entry, second: Entry) -> str | None:
    """Return why two runs cannot be compared image by image; ``None`` where they can.

    The digest is that of all images and labels split by split, in order, so equal digests are equal test images.
    """
    same = first.digest is not None and first.digest == second.digest
    return None if same else "different test images: not paired"


def _groups(entries: Sequence[Entry], runs: Sequence[Json], offered: Sequence[Sequence[Json]]) -> list[Json]:
    """Return means over seeds of runs that differ in nothing else; a seed that comes again counts once."""
    members: dict[str, dict[int, int]] = {}
    for i, entry in enumerate(entries):
        members.setdefault(entry.identity, {}).setdefault(entry.seed, i)
    groups = []
    for seeds in members.values():
        if len(seeds) < 2:
            continue
        own = list(seeds.values())
        at_budget = [_mean([offers[i]["test"] for i in own]) for offers in zip(*offered, strict=True)]
        volumes = {split: _mean([runs[i]["hypervolume"][split] for i in own]) for split in SPLITS}
        groups.append(
            {
                "name": " + ".join(entries[i].name for i in own),
                "runs": [entries[i].name for i in own],
                "seeds": list(seeds),
                "hypervolume": volumes,
                "at_budget": at_budget,
            }
        )
    return groups


def _mean(values: Sequence[float | None]) -> Json:
    """Return the mean and its interval of those fractions that are known, with their number."""
    known = [value for value in values if value is not None]
    if not known:
        return {"value": None, "low": None, "high": None, "num_seeds": 0}
    mean = mean_interval(known)
    low, high = (end if math.isinf(end) else min(1.0, max(0.0, end)) for end in (mean.low, mean.high))
    return {"value": mean.value, "low": low, "high": high, "num_seeds": len(known)}
