"""Does the supernet rank subnets as training each of them alone does?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qnas.alone import AloneSettings, train_alone
from qnas.errors import ConfigError
from qnas.files import write_json
from qnas.rng import generator
from qnas.search import measure
from qnas.space import Sample, SearchSpace
from qnas.statistics import kendall

if TYPE_CHECKING:
    from qnas.run import Run

FOLDER = "ranks"
TRIES = 1000  # draws for each subnet that is wanted, since equal ones are drawn again


def draw_distinct(space: SearchSpace, n: int, seed: int) -> list[Sample]:
    """Return ``n`` different subnets, each knob drawn uniformly.

    Raises:
        ConfigError: the space has not so many.
    """
    found: dict[str, Sample] = {}
    rng = generator(seed, "rank")
    for _ in range(TRIES):
        for row in space.draw(rng, n):
            sample = space.canonical(space.sample(row))
            found.setdefault(space.key(sample), sample)
            if len(found) == n:
                return list(found.values())
    raise ConfigError(f"The space {space.name!r} has fewer than {n} different subnets: {len(found)}. Lower --configs.")


def rank(run: Run, num_configs: int, settings: AloneSettings) -> dict[str, Any]:
    """Compare the supernet's ranking of random subnets with that of training each alone; resumable.

    The supernet's accuracy is that of the search split, which a search would go by; the truth is the accuracy on the
    test split of the subnet trained alone, so that no image counts on both sides. The processes of the run train one
    subnet each.

    Returns:
        What the file in ``ranks/`` holds: ``configs`` with both accuracies, and Kendall's ``tau`` with its interval.
    """
    settings = settings.named(run.config)
    evaluator = run.stages.evaluator(settings.stage)
    space = evaluator.supernet.space
    samples = draw_distinct(space, num_configs, run.config.seed)
    metric = evaluator.task.metric
    with run.processes.leading():
        scores = [m[metric] for m in measure(run.store, evaluator, run.processes, samples, "search")]
    done: list[dict[str, Any]] = []
    with run.processes.leading():
        for start in range(0, len(samples), run.processes.size):
            part = samples[start : start + run.processes.size]
            keys = [space.key(sample) for sample in part]
            run.recorder.record("alone", {"number": start + 1, "total": len(samples), "keys": keys})
            done += run.processes.map(_train_in(run), [(sample, settings) for sample in part])
    truth = [result["metrics"]["test"][metric] for result in done]
    configs = [
        {
            "key": result["key"],
            "sample": sample,
            "supernet": score,
            "alone": true,
            "alone_search": result["metrics"]["search"][metric],
            "alone_standard_error": result["standard_error"]["test"],
            "costs": {name: value for name, value in result["metrics"]["test"].items() if name != metric},
        }
        for sample, score, true, result in zip(samples, scores, truth, done, strict=True)
    ]
    value = {
        "metric": metric,
        "settings": asdict(settings),
        "num_configs": num_configs,
        "num_images": {"supernet": len(run.data.search), "alone": len(run.data.test)},
        "image_passes": sum(result["image_passes"] for result in done),
        "tau": asdict(kendall(scores, truth)),
        "configs": configs,
    }
    write_json(rank_file(run.store.path, num_configs, settings), value)
    return value


def help_rank(run: Run, settings: AloneSettings) -> None:
    """Do a follower's share of :func:`rank`."""
    run.processes.serve(run.stages.evaluator(settings.stage).judge)
    run.processes.serve(_train_in(run))


def _train_in(run: Run) -> Callable[[tuple[Sample, AloneSettings]], dict[str, Any]]:
    """Return what trains one subnet in one process."""

    def train(item: tuple[Sample, AloneSettings]) -> dict[str, Any]:
        return train_alone(run, *item, run.processes.alone())

    return train


def rank_file(run: Path, num_configs: int, settings: AloneSettings) -> Path:
    """Return the file of one comparison."""
    text = json.dumps({"n": num_configs, **asdict(settings)}, sort_keys=True)
    return run / FOLDER / f"{num_configs}-{settings.start}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


def list_ranks(run: Path) -> list[Mapping[str, Any]]:
    """Return every comparison of a run."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / FOLDER).glob("*.json"))]
