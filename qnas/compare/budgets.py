"""Budgets that several fronts can be compared at, and what each front offers within them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qnas.compare.entries import Entry
from qnas.errors import ConfigError, unknown_name
from qnas.report.data import Json, number

COUNT = 5  # budgets by default, fewer where neighbours offer the same


def check_cost(entries: Sequence[Entry], cost: str) -> None:
    """Refuse a cost that cannot be a budget.

    Raises:
        ConfigError: not every front has it, or more of it is better.
    """
    shared = set.intersection(*({name for p in e.points for name in p["metrics"]} for e in entries))
    allowed = shared - {entry.metric for entry in entries}
    if cost not in allowed:
        raise ConfigError(unknown_name("The cost", cost, allowed, "Correct --cost; every run must have it."))
    if {"name": cost, "direction": "max"} in entries[0].front["objectives"]:
        raise ConfigError(
            f"A budget is for a cost of which less is better, and {cost!r} is maximised. Choose another --cost."
        )


def pick(entry: Entry, cost: str, budget: float) -> Json | None:
    """Return the point within a budget that is best on the search split (then the cheapest, then by key)."""
    within = [
        p
        for p in entry.points
        if (c := number(p["metrics"], cost)) is not None
        and c <= budget
        and number(p["metrics"], entry.metric) is not None
    ]
    return min(within, key=lambda p: (-p["metrics"][entry.metric], p["metrics"][cost], p["key"]), default=None)


def common_budgets(entries: Sequence[Entry], cost: str, count: int = COUNT) -> list[float]:
    """Return budgets within which every front has a point, from the costs alone.

    They are spread by equal factors from the smallest to the largest that makes sense, rounded up to two digits. One
    that offers nothing new to any front is left out, since testing the same pair twice tells nothing.
    """
    costs = [[v for p in entry.points if (v := number(p["metrics"], cost)) is not None] for entry in entries]
    low, high = max(map(min, costs)), max(map(max, costs))
    steps = [i / (count - 1) for i in range(count)] if high > low else [0.0]
    spread = [low * (high / low) ** s if low > 0 else low + (high - low) * s for s in steps]
    budgets: list[float] = []
    before: list[Json | None] = []
    for budget in sorted({round_up(value) for value in spread}):
        offered = [pick(entry, cost, budget) for entry in entries]
        if offered != before:
            budgets.append(budget)
        before = offered
    return budgets


def round_up(value: float, digits: int = 2) -> float:
    """Return the nearest number from ``value`` up with a few significant digits, so that what fits still fits."""
    if value <= 0:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    rounded = float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")
    return max(rounded, value)
