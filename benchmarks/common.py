"""What the benchmarks share: interleaved rounds, ratios with their spread, JSON beside the printed table."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from qnas.environment import environment

RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a few rounds: does it run?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; benchmarks/results/NAME.json by default")
    return parser.parse_args()


def interleave(functions: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Return CPU seconds of each function in each round; they take turns, so that noise hits all alike."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(rounds):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Return the median of the rounds' ratios, their quartiles, and both medians."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios * 3)
    return {
        "ratio": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        f"{over}_ms": round(statistics.median(times[over]) * 1e3, 2),
        f"{under}_ms": round(statistics.median(times[under]) * 1e3, 2),
    }


def write(name: str, result: dict[str, Any], out: Path | None) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    machine = environment("")
    machine.pop("command")
    value = {"benchmark": name, "commit": commit, "machine": machine, **result}
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
