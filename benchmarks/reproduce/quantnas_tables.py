"""The tables of ``quantnas.py``, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared import said, table

Json = Mapping[str, Any]


def markdown(value: Json) -> str:
    """Return every table for which there are figures."""
    summary = value["summary"]
    parts = [
        ("Loss after the last stage (Fig. 8)", _training(summary["training"])),
        ("Standard deviations of subnets (Fig. 4, 5)", _statistics(summary["statistics"])),
        ("Scales (Sec. 3.2, Fig. 10)", _scales(summary["scales"])),
        ("Ranks of random subnets", _ranks(value["seeds"], summary["ranks"])),
        ("Differences between arms, seed by seed", _differences(summary["differences"])),
        ("Fronts of accuracy and measured latency", _fronts(value["seeds"], summary["fronts"])),
    ]
    return "\n".join(f"### {title}\n\n{text}\n" for title, text in parts if text)


def _training(summary: Json) -> str:
    rows = [
        [name, said(entry["largest"]), said(entry["smallest"]), str(entry["diverged"])]
        for name, entry in summary.items()
    ]
    return table(["arm", "loss of the largest", "of the smallest", "seeds that diverged"], rows)


def _statistics(summary: Json) -> str:
    kinds = {
        "subnets": "subnet and subnet",
        "moving": "supernet's moving and subnet",
        "batch": "supernet's batch and subnet",
    }
    rows = [
        [f"{arm}: {label}", *(said(entry[f"{kind} {n}"], 4) for n in ("cosine", "least cosine", "error"))]
        for arm, entry in summary.items()
        for kind, label in kinds.items()
    ]
    return table(["after", "cosine, mean", "cosine, least", "relative error"], rows)


def _scales(summary: Json) -> str:
    names = ("median spread", "largest spread", "error, from given", "error, from fitted", "error, between")
    accuracies = ("accuracy, given", "accuracy, fitted", "accuracy, tuned")
    rows = [
        [arm, *(said(entry[name], 2) for name in names), *(said(entry[name], 1, 100) for name in accuracies)]
        for arm, entry in summary.items()
    ]
    header = ["arm", "best scales: largest / smallest, median layer", "worst layer"]
    header += ["given against tuned from them", "against tuned from fitted", "tuned against tuned"]
    header += ["accuracy given, %", "fitted, %", "tuned, %"]
    return table(header, rows)


def _ranks(seeds: Json, summary: Json) -> str:
    kinds = ("given", "shared", "fitted", "tuned")
    taus = ("given, fitted", "shared, fitted", "given, tuned", "shared, tuned")
    rows: list[Sequence[str]] = []
    for arm, entry in summary.items():
        accuracies = (said(entry[f"accuracy, {name}"], 1, 100) for name in kinds)
        rows.append([arm, *accuracies, *(said(entry[f"tau, {name}"], 2) for name in taus)])
        for number, seed in seeds.items():
            tau = seed["arms"][arm].get("ranks", {}).get("tau")
            if tau:
                cells = (f"{tau[t]['value']:.2f} [{tau[t]['low']:.2f}, {tau[t]['high']:.2f}]" for t in taus)
                rows.append([f"{arm}, seed {number}", *("" for _ in kinds), *cells])
    header = ["arm", "accuracy, given scales, %", "supernet's, %", "fitted, %", "tuned, %"]
    header += [f"tau, {kind}" for kind in ("given, fitted", "supernet's, fitted", "given, tuned", "supernet's, tuned")]
    return table(header, rows)


def _differences(summary: Json) -> str:
    rows = [
        [name, said(entry["loss"]), said(entry["accuracy"], 1, 100), said(entry["tau"], 2)]
        for name, entry in summary.items()
    ]
    return table(["arms", "loss of the largest", "accuracy of random subnets, points", "tau against tuned"], rows)


def _fronts(seeds: Json, summary: Json) -> str:
    rows: list[Sequence[str]] = []
    for arm, entry in summary.items():
        rows.append([arm, "", "", said(entry["hypervolume, search"], 4), said(entry["hypervolume, test"], 4)])
        for number, seed in seeds.items():
            for point in seed["arms"][arm].get("front", {}).get("points", ()):
                cells = [f"{point['latency_ms']:.3f}", f"{100 * point['test']:.1f}", "", ""]
                rows.append([f"{arm}, seed {number}", *cells])
    return table(["arm", "latency, ms", "accuracy, test, %", "hypervolume, search", "hypervolume, test"], rows)
