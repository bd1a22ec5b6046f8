"""What ``multiquant.py`` found, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import table

Json = Mapping[str, Any]
BITS = [str(bits) for bits in range(2, 9)]


def markdown(value: Json) -> str:
    """Return every table that there are figures for."""
    seeds, summary = value["seeds"], value["summary"]
    parts = [
        ("Test accuracy with one bit-width in all layers", _uniform(summary["uniform"], "recalibrated")),
        ("MAC-weighted image passes of each, the float net's included", _passes(seeds)),
        ("The same with the running statistics of training", _uniform(summary["uniform"], "running")),
        ("Differences", _differences(summary["differences"])),
        ("Loss and gradient of each bit-width", _competition(seeds)),
        ("Predictor: held-out subnets", _predictors(summary["mixed"])),
        ("Predictors fitted to equally many samples, scored on the same others", _sampling(seeds)),
        ("Mixed precision against one bit-width", _mixed(seeds, summary["mixed"])),
        ("MAC-weighted image passes for N deployment scenarios", _scenarios(summary["scenarios"])),
    ]
    return "\n".join(f"### {title}\n\n{table}\n" for title, table in parts if table)


def _mean(entry: Json | None, *, factor: float = 100, sign: bool = False) -> str:
    """Return a mean over seeds with its interval."""
    if entry is None:
        return ""
    value = f"{factor * entry['value']:{'+' if sign else ''}.{1 if factor == 100 else 2}f}"
    if entry["low"] is None:
        return value
    ends = [f"{factor * entry[end]:.{1 if factor == 100 else 2}f}" for end in ("low", "high")]
    return f"{value} [{ends[0]}, {ends[1]}]"


def _resolved(entry: Json) -> str:
    if entry["low"] is None:
        return "one seed"
    return "yes" if entry["low"] > 0 or entry["high"] < 0 else "no"


def _uniform(summary: Json, kind: str) -> str:
    arms = summary.get(kind, {})
    rows = ([bits, *(_mean(arms[arm].get(bits)) for arm in arms)] for bits in BITS)
    names = {"base": "PTQ (LAPQ)"}
    return table(["bits", *(names.get(arm, arm) for arm in arms)], (row for row in rows if any(row[1:])))


def _differences(summary: Json) -> str:
    rows = ([name, _mean(entry, sign=True), _resolved(entry)] for name, entry in summary.items())
    return table(["difference in points", "mean over seeds [95% interval]", "resolved"], rows)


def _competition(seeds: Json) -> str:
    """Return losses, gradient norms and their cosines with the sum, means over seeds."""
    found: dict[tuple[str, str], dict[str, list[Json]]] = {}
    for seed in seeds.values():
        for arm, at in seed["arms"].items():
            for label in ("hard", "adaptive"):
                for bits, entry in at.get("competition", {}).get(label, {}).items():
                    found.setdefault((arm, label), {}).setdefault(bits, []).append(entry)
    rows = []
    for (arm, label), by_bits in found.items():
        for name, digits in (("loss", 3), ("norm", 3), ("cosine", 2)):
            cells = []
            for bits in BITS:
                values = [entry[name] for entry in by_bits.get(bits, [])]
                cells.append(f"{sum(values) / len(values):.{digits}f}" if values else "")
            rows.append([f"{'PTQ' if arm == 'base' else arm}, {label} label: {name}", *cells])
    return table(["net, label", *(f"{bits} bits" for bits in BITS)], rows)


def _predictors(summary: Json) -> str:
    rows = []
    for sampler in ("uniform", "monte-carlo"):
        found = summary.get(sampler)
        if found:
            names = ("tau", "ceiling tau", "pearson", "ceiling pearson")
            rows.append([sampler, *(_mean(found[name], factor=1) for name in names)])
    return table(["samples", "Kendall tau", "two halves: tau", "Pearson", "two halves: Pearson"], rows)


def _sampling(seeds: Json) -> str:
    rows = []
    for name, seed in seeds.items():
        found = seed.get("mixed", {}).get("sampling")
        for sampler in ("uniform", "monte-carlo") if found else ():
            numbers = [f"{found[sampler][name]:.2f}" for name in ("all", "lowest third", "highest third")]
            rows.append([f"{sampler}, seed {name}", str(found["fitted"]), str(found["scored"]), *numbers])
    return table(["samples", "fitted to", "scored on", "tau, all", "lowest third", "highest third"], rows)


def _passes(seeds: Json) -> str:
    arms = list(dict.fromkeys(arm for seed in seeds.values() for arm in seed["arms"]))
    rows = []
    for arm in arms:
        passes = [seed["arms"][arm]["passes"] for seed in seeds.values() if arm in seed["arms"]]
        rows.append([arm, f"{sum(passes) / len(passes):,.0f}", str(len(passes))])
    return table(["", "image passes", "seeds"], rows)


def _mixed(seeds: Json, summary: Json) -> str:
    rows = []
    for target, entry in summary.get("mixed - uniform", {}).items():
        for name, seed in seeds.items():
            found = seed.get("mixed", {}).get("searched", {}).get(target)
            if found:
                d = found["difference"]
                rows.append(
                    [
                        f"average <= {target}, seed {name}",
                        f"{100 * found['mixed']['accuracy']:.1f}",
                        f"{100 * found['uniform']['accuracy']:.1f}",
                        f"{100 * d['value']:+.1f} [{100 * d['low']:.1f}, {100 * d['high']:.1f}]",
                        f"{found['mixed']['bitops'] / found['uniform']['bitops']:.2f}",
                    ]
                )
        rows.append([f"average <= {target}, over seeds", "", "", _mean(entry, sign=True), ""])
    return table(["", "mixed", "uniform", "difference", "BitOPs, mixed over uniform"], rows)


def _scenarios(summary: Json) -> str:
    if not summary:
        return ""
    rows = ([n, f"{at['qat']:,.0f}", f"{at['supernet']:,.0f}"] for n, at in summary["of"].items())
    return table(["N", "QAT for each", "one supernet"], rows)
