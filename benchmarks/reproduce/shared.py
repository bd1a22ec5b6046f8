"""What the evidence scripts share: parts that are made once, tables, and results that are written seed by seed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas.files import write_json, write_text
from qnas.statistics import mean_interval


def stored(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file holds; where there is none, make it first."""
    if not path.is_file():
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def report(
    seeds: Iterable[int],
    reproduce: Callable[[int], dict[str, Any]],
    summary: Callable[[Mapping[str, Any]], dict[str, Any]],
    markdown: Callable[[Mapping[str, Any]], str],
    out: Path,
) -> None:
    """Reproduce one seed after another; after each, write JSON and tables of all so far, and print the tables."""
    found: dict[str, Any] = {}
    for seed in seeds:
        found[str(seed)] = reproduce(seed)
        value = {"seeds": found, "summary": summary(found)}
        write_json(out, value)
        text = markdown(value)
        write_text(out.with_suffix(".md"), text)
        print(text, flush=True)


def take_stages(source: Path, target: Path, count: int) -> None:
    """Copy the first stages: the float net and its ranges, which arms share."""
    partial = target / "stages.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for stage in sorted((source / "stages").iterdir())[:count]:
        shutil.copytree(stage, partial / stage.name)
    if count:
        partial.rename(target / "stages")


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return a mean over seeds with its 95% interval; ``low`` and ``high`` are ``None`` for one seed."""
    found = mean_interval(values)
    low, high = (float(end) if math.isfinite(end) else None for end in (found.low, found.high))
    return {"value": float(found.value), "low": low, "high": high, "n": len(values)}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, numbers to the right; nothing without rows."""
    listed = list(rows)
    if not listed:
        return ""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *listed]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
