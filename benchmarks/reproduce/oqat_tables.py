"""What ``oqat.py`` found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shared import table

Json = Mapping[str, Any]


def markdown(value: Json) -> str:
    """Return every table that there are figures for."""
    seeds, summary = value["seeds"], value["summary"]
    parts = [
        ("Test accuracy at 2 bits, three ways", _arms(seeds)),
        ("Differences of the three ways", _differences(summary["arms"].items())),
        ("Ranking in float against that at fewer bits", _ranks(summary)),
        ("Searched at 2 bits against fixed and random nets of equal BitOPs", _searched(seeds)),
        ("Differences", _differences(_flat(summary["searched"]))),
        ("Weights of the supernet and weights trained again", _retrained(seeds)),
        ("Differences", _differences(summary["retrained"].items())),
        ("MAC-weighted image passes for N deployment scenarios", _scenarios(summary["scenarios"])),
    ]
    return "\n".join(f"### {title}\n\n{table}\n" for title, table in parts if table)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(entry: Json) -> str:
    """Return a difference in percentage points with its interval."""
    if "low" not in entry:
        return f"{100 * entry['mean']:+.1f}"
    return f"{100 * entry['mean']:+.1f} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]"


def _differences(entries: Iterable[tuple[str, Json]]) -> str:
    rows = [(name, _points(e), "yes" if e["resolved"] else "not resolved") for name, e in entries]
    return table(("difference, points", "mean [95% interval] over seeds", "resolved"), rows)


def _flat(searched: Json) -> list[tuple[str, Json]]:
    return [(f"{what}, at {name}", e) for name, both in searched.items() for what, e in both.items()]


def _arms(seeds: Json) -> str:
    rows = [
        (arm, seed, *(_percent(f[what]) for what in ("largest", "random", "smallest")), f"{f['image_passes']:,.0f}")
        for arm in ("direct", "inherit", "restart")
        for seed, f in ((seed, s["arms"][arm]) for seed, s in seeds.items())
    ]
    return table(("arm", "seed", "largest, %", "8 random, mean, %", "smallest, %", "image passes"), rows)


def _ranks(summary: Json) -> str:
    rows = []
    for bits, entry in summary["tau"].items():
        halves = [_number(entry[f"halves_{name}"]) for name in ("tau", "ceiling", "correlation")]
        rows.append((bits, _number(entry), *halves, _points(summary["regret"][bits])))
    header = (
        "bits",
        "Kendall's tau, same images",
        "tau, other images",
        "its ceiling",
        "correlation without noise",
        "lost by choosing in float, points",
    )
    return table(header, rows)


def _number(entry: Json | None) -> str:
    """Return a mean over seeds with its interval."""
    if entry is None:
        return "unknown"
    ends = f" [{entry['low']:.2f}, {entry['high']:.2f}]" if "low" in entry else ""
    return f"{entry['mean']:.2f}{ends}"


def _searched(seeds: Json) -> str:
    rows = []
    for seed, s in seeds.items():
        for name, b in s.get("searched", {}).get("budgets", {}).items():
            mean = sum(b["random"]) / len(b["random"]) if b["random"] else float("nan")
            rows.append((name, seed, f"{b['bitops']:,}", _percent(b["searched"]), _percent(b["fixed"]), _percent(mean)))
    return table(("budget of", "seed", "BitOPs", "searched, %", "fixed, %", "random, mean, %"), sorted(rows))


def _retrained(seeds: Json) -> str:
    rows = []
    for seed, s in seeds.items():
        r = s.get("retrained")
        if r:
            scores = [_percent(r[name]) for name in ("supernet", "finetuned", "float")]
            rows.append((seed, *scores, f"{r['passes']['finetuned']:,.0f}", f"{r['passes']['float']:,.0f}"))
    header = ("seed", "supernet's, %", "finetuned, %", "from float, %", "passes, finetuned", "passes, from float")
    return table(header, rows)


def _scenarios(found: Json) -> str:
    if not found:
        return ""
    counts = next(iter(found["by"].values()))
    rows = [(name, *(f"{n:,.0f}" for n in by.values())) for name, by in found["by"].items()]
    return table(("recipe", *(f"N = {n}" for n in counts)), rows)
