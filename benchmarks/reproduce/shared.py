"""What the evidence scripts share: parts that are made once, tables, and results that are written seed by seed."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qnas.config import load_config
from qnas.files import write_json, write_text
from qnas.plugins import load_registry
from qnas.run import Run
from qnas.statistics import mean_interval


def parse(
    description: str | None, name: str, parts: Sequence[str] = (), arms: Sequence[str] = ()
) -> argparse.Namespace:
    """Return a script's arguments; ``name`` is that of its results, ``arms`` what of its trainings can be chosen."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10; embedded digits without it")
    parser.add_argument("--work", type=Path, help="folder of the runs; by default one in runs/")
    parser.add_argument("--seeds", default="0,1,2")
    if parts:
        parser.add_argument("--parts", default=",".join(parts), help=f"of {', '.join(parts)}")
    if arms:
        parser.add_argument("--arms", default=",".join(arms), help=f"of {', '.join(arms)}")
    parser.add_argument("--quick", action="store_true", help="one seed, few images and epochs: does it run?")
    parser.add_argument("--out", type=Path, help="JSON, with tables beside it; benchmarks/results/, or WORK if quick")
    args = parser.parse_args()
    args.work = args.work or Path("runs") / f"reproduce-{name}{'-quick' if args.quick else ''}"
    results = args.work if args.quick else Path(__file__).parents[1] / "results"
    args.out = args.out or results / f"{name}.json"
    return args


def images(args: argparse.Namespace, each: int = 1500, **cifar: Any) -> dict[str, Any]:
    """Return the configuration of the images: ``each`` of a class of CIFAR-10, or digits; few if quick.

    Args:
        args: of :func:`parse`.
        each: number of images of a class, to train and to select on; the test split is the data set's own.
        **cifar: further settings of ``[data]`` for it.
    """
    if args.data is None:  # digits, of which few are left to train if quick
        return {"search_fraction": 0.4, "test_fraction": 0.4} if args.quick else {}
    options = {"path": str(args.data.absolute()), "limit": 40 if args.quick else each}
    return {"name": "files", "options": options, **cifar}


def opened(path: Path, settings: Callable[[], Mapping[str, Any]]) -> Run:
    """Return the run in a folder; where there is none, make one with these settings."""
    registry = load_registry()
    if (path / "config.toml").is_file():
        return Run.open(path, registry)
    return Run.create(path, load_config(settings()), registry)


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


def said(entry: Mapping[str, Any] | None, digits: int = 3, factor: float = 1.0) -> str:
    """Return an :func:`interval` times ``factor`` in words; nothing for ``None``."""
    if entry is None:
        return ""
    shown = f"{factor * entry['value']:.{digits}f}"
    if entry["low"] is None:
        return shown
    return f"{shown} [{factor * entry['low']:.{digits}f}, {factor * entry['high']:.{digits}f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, numbers to the right; nothing without rows."""
    listed = list(rows)
    if not listed:
        return ""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *listed]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
