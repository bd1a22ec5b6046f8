"""ask -> evaluate -> tell -> store: one loop for every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from qnas.constraints import FeasibleSet, parse_constraint, total_violation
from qnas.costs import Cost, CostTable, sample_costs, usual
from qnas.errors import ConfigError, ConstraintError, unknown_name
from qnas.evaluate import Evaluation, Evaluator
from qnas.files import write_json
from qnas.hypervolume import hypervolume, objective_box
from qnas.latency import LATENCY, TABLE_LATENCY
from qnas.pareto import front
from qnas.processes import Processes
from qnas.protocols import Objective, SearchProblem, State, Strategy, Trial
from qnas.recorder import NullRecorder, Recorder
from qnas.scoring import score_error
from qnas.space import Sample
from qnas.store import RunDirectory

if TYPE_CHECKING:
    from qnas.latency.searching import SearchLatency


@dataclass(frozen=True)
class SearchSettings:
    """What names a search: equal settings continue one another.

    Attributes:
        strategy: its name.
        options: of the strategy.
        evaluations: subnets to judge.
        objectives: names of metrics.
        constraints: texts such as ``bitops<=2e8``.
        predictor: what the strategy is told instead of measurements; ``None`` for measurements.
        measured: with a predictor, how many of the best predicted subnets are judged at the end.
    """

    strategy: str
    options: Mapping[str, Any]
    evaluations: int
    objectives: tuple[str, ...]
    constraints: tuple[str, ...]
    seed: int
    predictor: str | None = None
    measured: int = 20

    def identity(self) -> dict[str, Any]:
        """Return what names the search, JSON-safe; what only concerns a predictor is left out without one."""
        every = asdict(self)
        if self.predictor is None:
            del every["predictor"], every["measured"]
        return every


def named_objectives(names: Sequence[str], metric: str, costs: Mapping[str, Any]) -> tuple[Objective, ...]:
    """Return objectives with their directions; the task's metric is maximised, latency is known beside the costs."""
    known = {metric: "max", LATENCY: "min", **{name: cost.direction for name, cost in costs.items()}}
    if len(set(names)) != len(names) or not names:
        raise ConfigError(
            f"Objectives must be one or more different metrics; given: {', '.join(names) or 'none'}. "
            "Correct --objective."
        )
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name("The objective", name, known, "Correct --objective."))
    return tuple(Objective(name, known[name]) for name in names)


class Search:
    """One search of a run: resumable after every trial.

    Args:
        store: of the run.
        evaluator: judges subnets.
        settings: name the search.
        make_strategy: returns the strategy for a problem.
        recorder: receives ``search`` and ``trial`` events.
        processes: those that judge; what is found does not depend on their number.
        latency: of the search's subnets, where objectives or constraints name it.

    Raises:
        ConstraintError: no subnet can meet the constraints on costs.
    """

    def __init__(
        self,
        store: RunDirectory,
        evaluator: Evaluator,
        settings: SearchSettings,
        make_strategy: Any,
        recorder: Recorder | None = None,
        processes: Processes | None = None,
        latency: SearchLatency | None = None,
    ) -> None:
        self.processes = processes or Processes()
        self.latency = latency
        self.store = store
        self.evaluator = evaluator
        self.settings = settings
        self.recorder = recorder or NullRecorder()
        space = evaluator.supernet.space
        metric = evaluator.task.metric
        self.objectives = named_objectives(settings.objectives, metric, evaluator.costs)
        self.constraints = [
            parse_constraint(text, [metric, *evaluator.costs, LATENCY]) for text in settings.constraints
        ]
        self.asked = (*settings.objectives, *(constraint.name for constraint in self.constraints))
        costs: dict[str, Cost] = {**evaluator.costs, **({} if latency is None else latency.costs)}
        guides = self.constraints if latency is None else latency.guides(self.constraints)
        self.feasible = FeasibleSet(CostTable(space, costs), guides, settings.seed)
        problem = SearchProblem(space, self.objectives, self.feasible.draw, self.feasible.repair, settings.seed)
        self.strategy: Strategy = make_strategy(problem)
        self.name, state = store.open_search(settings.strategy.replace(":", "-"), self._identity())
        self.pending: list[Sample] = []
        if state is not None:
            self._load_state(state)
        self.trials = [trial for _, _, trial in store.trials(self.name)]

    def _identity(self) -> dict[str, Any]:
        """Return what names the search in its run."""
        evaluator = self.evaluator
        latency = {} if self.latency is None else {"latency": self.latency.identity()}
        return {
            **self.settings.identity(),
            **latency,
            "supernet": evaluator.digest(),
            "stage": evaluator.settings.stage,
        }

    @property
    def finished(self) -> bool:
        """Whether all evaluations are done."""
        return len(self.trials) >= self.settings.evaluations

    def run(self) -> list[Trial]:
        """Judge what is left and return all trials."""
        self.recorder.record("search", {"name": self.name, "evaluations": self.settings.evaluations})
        while not self.finished:
            if not self.pending:
                self.pending = self.strategy.ask(self.settings.evaluations - len(self.trials))
                if not self.pending:
                    break  # every subnet that the strategy can think of is judged
            self._judge(self.pending[: self.processes.size])
        return self.trials

    def _judge(self, samples: Sequence[Sample]) -> None:
        """Judge some pending samples at once, then store them one after another, in the order asked."""
        keys = [self.evaluator.cache_key(sample, "search") for sample in samples]
        new = [i for i, key in enumerate(keys) if self.store.cached(key) is None]
        found = self.processes.map(self.evaluator.judge, [(samples[i], "search") for i in new])
        evaluations = dict(zip(new, found, strict=True))
        latencies = self.latencies(samples)  # now that no process judges
        for i, (sample, cache_key) in enumerate(zip(samples, keys, strict=True)):
            self._finish(sample, cache_key, evaluations.get(i), latencies[i])

    def latencies(self, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Return the latency of each subnet as trials have it: measured or of the table; none where it is not asked."""
        latency = self.latency
        if latency is None:
            return [{} for _ in samples]
        if latency.measures:
            return [{LATENCY: ms} for ms in latency.measure(samples)]
        return [sample_costs(self.evaluator.supernet.space, latency.costs, sample) for sample in samples]

    def _finish(
        self, sample: Sample, cache_key: str, evaluation: Evaluation | None, latency: Mapping[str, float]
    ) -> None:
        """Tell and store one trial; ``None`` takes the stored evaluation."""
        space = self.evaluator.supernet.space
        key = space.key(sample)
        if evaluation is None:
            metrics = _stored_metrics(self.store, self.evaluator, sample, cache_key, self.asked)
        else:
            metrics = _with_costs(evaluation.metrics, self.evaluator, sample, self.asked)
        judged, metrics = metrics, {**metrics, **latency}  # a latency is no part of what is judged
        trial = Trial(key, sample, metrics, total_violation(self.constraints, metrics))
        self._learn(trial)
        self.pending.pop(0)
        with self.store.transaction():
            if evaluation is not None:
                self.store.put_evaluation(cache_key, key, "search", judged, evaluation.num_images, evaluation.packed())
            self.store.put_trial(self.name, len(self.trials), trial, cache_key, self._state())
        self.trials.append(trial)
        values = {"number": len(self.trials), "key": key, "metrics": metrics, "cached": evaluation is None}
        self.recorder.record("trial", values)

    def _learn(self, trial: Trial) -> None:
        """Take up what was measured."""
        self.strategy.tell([trial])

    def _state(self) -> State:
        return {"strategy": self.strategy.state_dict(), "pending": self.pending}

    def _load_state(self, state: State) -> None:
        self.strategy.load_state_dict(state["strategy"])
        self.pending = list(state["pending"])

    def front(self) -> list[Trial]:
        """Return the front of all trials.

        Raises:
            ConstraintError: no judged subnet meets the constraints on measured metrics.
        """
        return self.met(self.trials)

    def met(self, trials: Sequence[Trial]) -> list[Trial]:
        """Return the front of trials, at least one of which must meet the constraints."""
        found = front(trials, self.objectives)
        if not found and trials:
            nearest = min(trials, key=lambda t: (t.violation, t.key))
            names = sorted({c.name for c in self.constraints})
            reached = ", ".join(f"{name}={nearest.metrics[name]:g}" for name in names)
            raise ConstraintError(
                f"None of {len(trials)} judged subnets meets {', '.join(map(str, self.constraints))}; "
                f"the closest, {nearest.key}, has {reached}. Loosen the constraint, or "
                f"judge more subnets of the trained supernet: `qnas search {self.store.path} --evaluations N`."
            )
        return found

    def write_front(self) -> dict[str, Any]:
        """Report the front on the test split, choose one point, and write ``front.json``; return what it holds."""
        measured = self.measured(self.front())
        found = self.met(measured)
        samples = [trial.sample for trial in found]
        # Only now, after selection.
        tests = measure(self.store, self.evaluator, self.processes, samples, "test", self.asked)
        points = [self._point(*pair) for pair in zip(found, tests, strict=True)]
        metric = self.evaluator.task.metric
        value = {
            "search": self.name,
            "stage": self.evaluator.settings.stage,
            "strategy": self.settings.strategy,
            "seed": self.settings.seed,
            "objectives": [asdict(o) for o in self.objectives],
            "constraints": [str(c) for c in self.constraints],
            "split": "search",
            "evaluations": len(self.trials),
            "num_images": {name: len(self.evaluator.data.split(name)) for name in ("train", "search", "test")},
            "metric": metric,
            "chosen": choose(found, metric, self.objectives).key if found else None,
            "hypervolume": self._hypervolume(points),
            "points": points,
            **self._said_of_predictor(),
            **self._said_of_latency(measured, found),
        }
        write_json(self.store.search_directory(self.name) / "front.json", value)
        return value

    def _said_of_predictor(self) -> dict[str, Any]:
        """Return what ``front.json`` says of a predictor; nothing without one."""
        return {}

    def measured(self, points: Sequence[Trial]) -> list[Trial]:
        """Return points with their latencies measured, whatever the trials were told, and their violations anew."""
        if self.latency is None:
            return list(points)
        found, space = [], self.evaluator.supernet.space
        for point, ms in zip(points, self.latency.measure([point.sample for point in points]), strict=True):
            metrics = {**point.metrics, LATENCY: ms}
            if self.latency.cost is not None:
                metrics[TABLE_LATENCY] = sample_costs(space, self.latency.costs, point.sample)[LATENCY]
            found.append(replace(point, metrics=metrics, violation=total_violation(self.constraints, metrics)))
        return found

    def _said_of_latency(self, measured: Sequence[Trial], found: Sequence[Trial]) -> dict[str, Any]:
        """Return what ``front.json`` says of latency, and of the points that fell out when they were measured."""
        if self.latency is None:
            return {}
        kept = {trial.key for trial in found}
        out = [trial for trial in measured if trial.key not in kept]
        space = self.evaluator.supernet.space
        return {
            "latency": self.latency.to_json([space.layers(trial.sample) for trial in found]),
            "fell_out": [
                {
                    "key": trial.key,
                    "sample": trial.sample,
                    "metrics": trial.metrics,
                    "violation": trial.violation,
                    "because": "constraint" if trial.violation > 0 else "dominated",
                }
                for trial in out
            ],
        }

    def _hypervolume(self, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the front's hypervolume, by the split that it was chosen on and by the test split, and the box."""
        evaluator = self.evaluator
        largest = {} if self.latency is None else {LATENCY: self.latency.meter.reference().ms}
        box = objective_box(evaluator.supernet.space, evaluator.costs, evaluator.task.metric, self.objectives, largest)
        found = {
            split: hypervolume([point[key] for point in points], self.objectives, box.reference, box.ideal)
            for split, key in (("search", "metrics"), ("test", "test"))
        }
        return {**found, **box.to_json()}

    def _point(self, trial: Trial, test: dict[str, float]) -> dict[str, Any]:
        task, metric = self.evaluator.task, self.evaluator.task.metric
        counts = {name: len(self.evaluator.data.split(name)) for name in ("search", "test")}
        latency = {name: trial.metrics[name] for name in (LATENCY, TABLE_LATENCY) if name in trial.metrics}
        layers = [
            {**asdict(layer), "macs": layer.macs, "num_weights": layer.num_weights}
            for layer in self.evaluator.supernet.space.layers(trial.sample)
        ]
        return {
            "key": trial.key,
            "sample": trial.sample,
            "metrics": trial.metrics,
            "standard_error": score_error(task, trial.metrics[metric], counts["search"]),
            "test": {**test, **latency, "standard_error": score_error(task, test[metric], counts["test"])},
            "layers": layers,
        }


def measure(
    store: RunDirectory,
    evaluator: Evaluator,
    processes: Processes,
    samples: Sequence[Sample],
    split: str,
    asked: Sequence[str] = (),
) -> list[dict[str, float]]:
    """Return the metrics of subnets on a split, those that were judged before from the store.

    Args:
        store: of the run.
        evaluator: judges what was not judged before.
        processes: those that judge.
        samples: the subnets.
        split: ``search`` or ``test``.
        asked: costs that are wanted though they are computed only on request.
    """
    keys = [evaluator.cache_key(sample, split) for sample in samples]
    new = [(sample, key) for sample, key in zip(samples, keys, strict=True) if store.cached(key) is None]
    found = processes.map(evaluator.judge, [(sample, split) for sample, _ in new])
    with store.transaction():
        for (sample, key), evaluation in zip(new, found, strict=True):
            name = evaluator.supernet.space.key(sample)
            store.put_evaluation(key, name, split, evaluation.metrics, evaluation.num_images, evaluation.packed())
    return [_stored_metrics(store, evaluator, sample, key, asked) for sample, key in zip(samples, keys, strict=True)]


def _stored_metrics(
    store: RunDirectory, evaluator: Evaluator, sample: Sample, cache_key: str, asked: Sequence[str]
) -> dict[str, float]:
    """Return stored metrics, with the costs of models that were installed since then."""
    stored = store.cached(cache_key)
    assert stored is not None
    hidden = evaluator.costs.keys() - usual(evaluator.costs, asked).keys()  # asked for by another search
    return _with_costs({n: v for n, v in stored[0].items() if n not in hidden}, evaluator, sample, asked)


def _with_costs(
    metrics: dict[str, float], evaluator: Evaluator, sample: Sample, asked: Sequence[str]
) -> dict[str, float]:
    return {**metrics, **sample_costs(evaluator.supernet.space, usual(evaluator.costs, asked), sample)}


def choose(points: Sequence[Trial], metric: str, objectives: Sequence[Objective]) -> Trial:
    """Return the point to deploy: best on the task's metric, then cheapest on the other objectives, then by key."""
    signs = [(o.name, 1.0 if o.direction == "min" else -1.0) for o in objectives if o.name != metric]
    return min(points, key=lambda t: (-t.metrics[metric], [s * t.metrics[n] for n, s in signs], t.key))
