"""What ``insights.json`` holds, in words and in the order of a table. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qnas.effects import NETWORK, in_order

MOST_SAID = 3  # choices that a sentence names on each side
Json = dict[str, Any]


def by_choice(stages: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, Any], list[Json | None]]]:
    """Return preferences by kind, then by place and choice: one a stage, ``None`` where a stage has no such choice."""
    known = [{(p["kind"], p["place"], p["choice"]): p for p in stage["preferences"]} for stage in stages]
    names = list(dict.fromkeys(name for found in known for name in found))
    ordered: dict[str, dict[tuple[str, Any], list[Json | None]]] = {}
    for kind in dict.fromkeys(name[0] for name in names):
        own = [name for name in names if name[0] == kind]
        choices = in_order(name[2] for name in own)
        for place in dict.fromkeys(name[1] for name in own):
            for choice in (c for c in choices if (kind, place, c) in own):
                ordered.setdefault(kind, {})[place, choice] = [found.get((kind, place, choice)) for found in known]
    return ordered


def effect_said(preference: Mapping[str, Any] | None) -> str:
    """Return an effect in percentage points, with half of its interval: ``+1.2 ± 0.8``."""
    effect = preference and preference["effect"]
    if not effect:
        return "-"
    return f"{100 * effect['value']:+.1f} ± {50 * (effect['high'] - effect['low']):.1f}"


def sentence(stage: Mapping[str, Any], cost: str) -> str:
    """Return in words what the good subnets of a stage prefer, the surest first."""
    n = stage["num_subnets"]
    if not stage["num_resolved"]:
        return f"{stage['name']}: nothing is resolved with {n} subnets; try --configs {4 * n}."
    found = _surest(stage["preferences"], "effect")
    sides = [[(named(p), p["effect"]["value"]) for p in found if s * p["effect"]["value"] > 0] for s in (1, -1)]
    parts = [f"{verb} {_listed(side)}" for verb, side in zip(("prefer", "avoid"), sides, strict=True) if side]
    return f"{stage['name']}: at equal {cost}, good subnets {'; they '.join(parts)}. {_chance(stage)}"


def difference_said(found: Mapping[str, Any]) -> str:
    """Return in words what two stages prefer differently."""
    low, high = found["low"], found["high"]
    sure = _surest(found["entries"], "difference")
    if not sure:
        return f"{low} against {high}: no difference between what they prefer is resolved."
    listed = _listed([(named(e), e["difference"]["value"]) for e in sure])
    return f"{low} against {high}, the same architectures: effects differ for {listed}. {_chance(found)}"


def _chance(found: Mapping[str, Any]) -> str:
    count, chance = found["num_resolved"], found["expected_by_chance"]
    return (
        f"{count} of {found['num_tested']} {'is' if count == 1 else 'are'} resolved; by chance alone about "
        f"{chance:.1f} would be{', so these may be chance' if count <= 2 * chance else ''}."
    )


def _surest(found: Sequence[Mapping[str, Any]], what: str) -> list[Mapping[str, Any]]:
    """Return what is resolved, the surest first; of two choices that mirror each other the one above 0."""
    kept = []
    for i, entry in enumerate(found):
        twin = (
            found[i - 1] if entry["mirror"] else found[i + 1] if i + 1 < len(found) and found[i + 1]["mirror"] else None
        )
        if entry["resolved"] and (twin is None or entry[what]["value"] > 0):
            kept.append(entry)
    return sorted(kept, key=lambda entry: _doubt(entry[what]))


def _doubt(interval: Mapping[str, float]) -> float:
    """Return the width of an interval as a multiple of its distance from 0: small where an effect is sure."""
    return (interval["high"] - interval["low"]) / abs(interval["value"])


def _listed(found: Sequence[tuple[str, float]]) -> str:
    shown = [f"{name} ({100 * value:+.1f} points)" for name, value in found[:MOST_SAID]]
    rest = len(found) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def named(found: Mapping[str, Any]) -> str:
    """Return a choice in words: ``kernel 5 in stage2``."""
    place = found.get("place", NETWORK)
    return f"{found['kind']} {found['choice']}{'' if place == NETWORK else f' in {place}'}"
