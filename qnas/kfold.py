"""K-fold selection: what choosing a net on a K-th of the search split is worth on the rest of it.

Kim et al., "BASQ", ECCV 2022, Sec. 6: each fold in turn selects, the others test. A search of its own for each fold is
told the score on that fold alone. Every judged net's answers to the whole search split are in the store, so nothing is
judged twice, and a search that was killed is replayed from them to where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor

from qnas.config import RunConfig
from qnas.constraints import total_violation
from qnas.data import Data
from qnas.errors import ConfigError, ConstraintError
from qnas.files import write_json
from qnas.kfold_said import file_name
from qnas.protocols import SearchProblem, Strategy, Task, Trial
from qnas.rng import generator, integer_seed
from qnas.search import Search, choose, measure
from qnas.space import Sample
from qnas.statistics import mean_interval, unpack_correct

PURPOSE = "kfold"
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def check_kfold(config: RunConfig, data: Data, task: Task) -> None:
    """Refuse a k-fold search that could not be made.

    Raises:
        ConfigError: too few or too many folds, a task whose answers are not kept image by image, or a predictor.
    """
    k, images = config.search.kfold, len(data.search)
    if not k:
        return
    if k < 2 or k > images:
        raise ConfigError(
            f"search.kfold is {k}, but the search split of data set {data.name!r} has {images} images, which make 2 to "
            f"{images} folds. Correct --kfold (10 is usual; 0 for none)."
        )
    if not hasattr(task, "correct"):
        raise ConfigError(
            f"search.kfold is {k}, but task {config.task!r} does not say of each image whether it is answered right: "
            "a fold has no score. Leave --kfold out."
        )
    if config.search.predictor is not None:
        raise ConfigError(
            f"search.kfold is {k}, but predictor {config.search.predictor!r} learns from scores on all of the search "
            "split, so no fold would be unseen. Give --kfold 0, or --predictor none."
        )


def folds_of(labels: Tensor, k: int, seed: int) -> np.ndarray[Any, Any]:
    """Return the fold of each image, ``[N]`` from 0 to ``k`` - 1, fixed by the seed.

    Sizes differ by one image at most and, where targets are classes, so do the numbers of each class.

    Args:
        labels: ``[N]`` classes, or targets ``[N, ...]`` of any kind.
        k: number of folds.
        seed: of the run.
    """
    order = generator(seed, PURPOSE).permutation(len(labels))
    if labels.ndim == 1 and not labels.is_floating_point():
        order = order[np.argsort(labels.numpy()[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % k
    return folds


class FoldSearch:
    """The search of one fold: that of the run, with draws of its own, told the score on the fold alone.

    Args:
        search: of the run, on all of the search split; its settings, constraints and store are used.
        make_strategy: returns the strategy for a problem.
        fold: which images select, ``[N]`` booleans.
        seed: of the strategy.
    """

    def __init__(
        self, search: Search, make_strategy: Callable[[SearchProblem], Strategy], fold: Mask, seed: int
    ) -> None:
        self.search = search
        self.fold = fold
        space, feasible = search.evaluator.supernet.space, search.feasible
        problem = SearchProblem(space, search.objectives, feasible.draw, feasible.repair, seed)
        self.strategy = make_strategy(problem)
        self.trials: list[Trial] = []

    def run(self) -> Trial | None:
        """Judge what the store lacks; return the best net of the fold, or ``None`` where none meets the constraints."""
        search, evaluations = self.search, self.search.settings.evaluations
        while len(self.trials) < evaluations:
            pending = self.strategy.ask(evaluations - len(self.trials))
            if not pending:
                break
            while pending:
                self._judge(pending[: search.processes.size])
                pending = pending[search.processes.size :]
        try:
            found = search.met(search.measured(search.met(self.trials)))
        except ConstraintError:
            return None
        return choose(found, search.evaluator.task.metric, search.objectives)

    def _judge(self, samples: Sequence[Sample]) -> None:
        search = self.search
        space, metric = search.evaluator.supernet.space, search.evaluator.task.metric
        judged = measure(search.store, search.evaluator, search.processes, samples, "search", search.asked)
        latencies = search.latencies(samples)
        for sample, whole, latency in zip(samples, judged, latencies, strict=True):
            metrics = {**whole, **latency, metric: float(self.answers(sample)[self.fold].mean())}
            trial = Trial(space.key(sample), sample, metrics, total_violation(search.constraints, metrics))
            self.strategy.tell([trial])
            self.trials.append(trial)
        search.recorder.record("fold_trial", {"new": len(samples)})

    def answers(self, sample: Sample) -> Mask:
        """Return which images of the search split a judged net answers right, ``[N]``."""
        stored = self.search.store.cached(self.search.evaluator.cache_key(sample, "search"))
        assert stored is not None
        return unpack_correct(stored[1], len(self.fold))


def kfold(search: Search, make_strategy: Callable[[SearchProblem], Strategy], k: int) -> dict[str, Any]:
    """Make the searches of all folds, those that are finished excepted; return what ``kfold-K.json`` holds.

    Args:
        search: of the run, finished.
        make_strategy: returns the strategy for a problem.
        k: number of folds.

    Returns:
        ``folds``, an entry each: number of ``images`` and of ``evaluations``, the chosen net's ``key`` and ``sample``
        (``None`` where none met the constraints), its score ``own`` on the fold and ``others`` on all other images;
        ``summary``: ``mean`` of ``others`` and ``optimism``, the mean of ``own`` minus ``others``, each with ``value``,
        ``low``, ``high`` and the standard deviation ``std`` over the folds.
    """
    path = search.store.search_directory(search.name) / file_name(k)
    done = search.store.read_json(path, {})
    if done.get("summary"):
        return dict(done)
    split, seed = search.evaluator.data.search, search.settings.seed
    numbers = folds_of(split.labels, k, seed)
    value: dict[str, Any] = {
        "k": k,
        "search": search.name,
        "stage": search.evaluator.settings.stage,
        "metric": search.evaluator.task.metric,
        "images": len(split),
        "folds": list(done.get("folds", [])),
        "summary": None,
    }
    for fold in range(len(value["folds"]), k):
        search.recorder.record(
            "fold", {"name": search.name, "fold": fold + 1, "folds": k, "evaluations": search.settings.evaluations}
        )
        own = FoldSearch(search, make_strategy, numbers == fold, integer_seed(seed, PURPOSE, k, fold))
        value["folds"].append(_entry(own, own.run()))
        write_json(path, value)
    value["summary"] = _summary(value["folds"])
    write_json(path, value)
    return value


def _entry(own: FoldSearch, chosen: Trial | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"images": int(own.fold.sum()), "evaluations": len(own.trials), "key": None}
    if chosen is None:
        return entry
    answers, metric = own.answers(chosen.sample), own.search.evaluator.task.metric
    others = {"own": chosen.metrics[metric], "others": float(answers[~own.fold].mean())}
    costs = {name: number for name, number in chosen.metrics.items() if name != metric}
    return {**entry, "key": chosen.key, "sample": chosen.sample, **others, "costs": costs}


def _summary(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [fold for fold in folds if fold["key"] is not None]
    return {
        "folds": len(found),
        "mean": _spread([fold["others"] for fold in found]),
        "optimism": _spread([fold["own"] - fold["others"] for fold in found]),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, interval and standard deviation over the folds; nothing of what too few folds leave open."""
    if len(values) < 2:
        return {"value": values[0] if values else None, "low": None, "high": None, "std": None}
    return {**asdict(mean_interval(values)), "std": float(np.std(values, ddof=1))}
