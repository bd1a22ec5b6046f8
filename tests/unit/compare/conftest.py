"""Finished runs without training: the files that a comparison reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from qnas.config import load_config
from qnas.files import write_json, write_text
from qnas.protocols import Trial
from qnas.statistics import standard_error
from qnas.store import CONFIG, RunDirectory

OBJECTIVES = ({"name": "accuracy", "direction": "max"}, {"name": "bitops", "direction": "min"})
NUM_IMAGES = 400


def fabricated_answers(right: int, seed: int, n: int = NUM_IMAGES) -> np.ndarray:
    """Which of ``n`` images are answered right: the easy ones mostly, as nets of one kind agree."""
    order = np.argsort(np.arange(n) + np.random.default_rng(seed).normal(0, 20, n))
    found = np.zeros(n, dtype=bool)
    found[order[:right]] = True
    return found


def fabricate(
    path: Path,
    points: Sequence[tuple[int, int, int]],
    *,
    seed: int = 0,
    digest: str = "images",
    strategy: str = "random",
    objectives: Sequence[Mapping[str, str]] = OBJECTIVES,
    metric: str = "accuracy",
    epochs: int = 1,
    settings: Mapping[str, object] | None = None,
    **extra: object,
) -> Path:
    """Write a run whose front has points of (BitOPs, right on the search split, right on the test split).

    Called again with another ``stage``, it adds a search to the run.
    """
    config = load_config({"seed": seed, "train": {"epochs": epochs}}, settings or {})
    path.mkdir(parents=True, exist_ok=True)
    stage = extra.get("stage", "")
    write_text(path / CONFIG, config.to_toml())
    write_json(path / "data.json", {"name": "digits", "digest": digest})
    with RunDirectory(path) as store:
        name, _ = store.open_search(
            strategy, {"strategy": strategy, "evaluations": len(points), "seed": seed, "stage": stage}
        )
        front = []
        for i, (bitops, *right) in enumerate(points):
            key, measured = f"{path.name}{stage}{i}", {}
            for split, number in zip(("search", "test"), right, strict=True):
                bits = fabricated_answers(number, 7 * i + seed)
                measured[split] = {metric: float(bits.mean()), "bitops": bitops, "size_bytes": bitops // 100}
                packed = np.packbits(bits).tobytes()
                store.put_evaluation(f"{name}{key}{split}", key, split, measured[split], NUM_IMAGES, packed)
            store.put_trial(name, i, Trial(key, {"depth": i}, measured["search"]), f"{name}{key}search", {})
            errors = {split: standard_error(measured[split][metric], NUM_IMAGES) for split in measured}
            test = {**measured["test"], "standard_error": errors["test"]}
            point = {"key": key, "sample": {"depth": i}, "metrics": measured["search"], "layers": []}
            front.append({**point, "standard_error": errors["search"], "test": test})
        value = {
            "search": name,
            "strategy": strategy,
            "seed": seed,
            "objectives": list(objectives),
            "constraints": [],
            "split": "search",
            "evaluations": len(points),
            "num_images": {"train": 1000, "search": NUM_IMAGES, "test": NUM_IMAGES},
            "metric": metric,
            "chosen": max(front, key=lambda p: p["metrics"][metric])["key"],
            "points": front,
            **extra,
        }
        write_json(store.search_directory(name) / "front.json", value)
    return path


@pytest.fixture(scope="session")
def answers():
    """Which of 400 images a net answers right that is right this often, by (number, seed)."""
    return fabricated_answers


@pytest.fixture(scope="session")
def make_run():
    """Writes a finished run without training; see :func:`fabricate`."""
    return fabricate
