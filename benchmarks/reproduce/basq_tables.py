"""The tables of ``basq.py``, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared import said, table

Json = Mapping[str, Any]


def markdown(value: Json) -> str:
    """Return every table for which there are figures."""
    summary = value["summary"]
    parts = [
        ("Accuracy of the searched net and of random ones, test split, in percent", _searched(summary)),
        ("Random configurations, search split, in percent (Figure 4)", _spread(summary)),
        ("Clip values at the end of training, mean over sites", _clips(summary)),
        ("Finetuning, test split, in percent", _finetuned(summary)),
    ]
    return "\n".join(f"### {title}\n\n{text}\n" for title, text in parts if text)


def _rows(summary: Json, part: str, keys: list[str]) -> list[list[str]]:
    return [
        [name, *(said(entry[part][key], 1, 100) for key in keys)] for name, entry in summary.items() if part in entry
    ]


def _searched(summary: Json) -> str:
    keys = ["chosen, search", "chosen, test", "random, test", "gain"]
    header = ["arm", "chosen, search split", "chosen", "random ones", "chosen over random"]
    return table(header, _rows(summary, "search", keys))


def _spread(summary: Json) -> str:
    kinds = {"moving": "statistics of training", "calibrated": "recalibrated"}
    rows = []
    for name, entry in summary.items():
        for kind, label in kinds.items() if "spread" in entry else ():
            numbers = (entry["spread"][f"{kind}, {key}"] for key in ("least", "mean", "most", "deviation"))
            rows.append([f"{name}, {label}", *(said(number, 1, 100) for number in numbers)])
    return table(["arm", "worst", "mean", "best", "standard deviation"], rows)


def _clips(summary: Json) -> str:
    rows = []
    for name, entry in summary.items():
        rows += [[name, branch, said(alpha, 2)] for branch, alpha in entry.get("clips", {}).items()]
    return table(["arm", "branch: lambda", "alpha"], rows)


def _finetuned(summary: Json) -> str:
    return table(["arm", "before", "after", "gain"], _rows(summary, "finetune", ["before", "after", "gain"]))
