"""A search whose strategy is told predictions; the best predicted subnets are judged at its end.

So a strategy sees tens of thousands of subnets in minutes. What is predicted is never reported as measured: trials, the
front and everything that follows from them are measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qnas.constraints import total_violation
from qnas.evaluate import Evaluator
from qnas.pareto import best_first
from qnas.predictor import predict
from qnas.processes import Processes
from qnas.protocols import Predictor, State, Trial
from qnas.recorder import Recorder
from qnas.search import Search, SearchSettings
from qnas.space import Sample
from qnas.store import RunDirectory

if TYPE_CHECKING:
    from qnas.latency.searching import SearchLatency


class PredictedSearch(Search):
    """One search on predictions: resumable after every batch that the strategy asks, then after every trial.

    Of all predicted subnets the best are kept, by fronts and crowding; they become the trials.

    Args:
        store, evaluator, settings, make_strategy, recorder, processes, latency: see :class:`qnas.search.Search`.
        predictor: fitted.
        fitted: what ``predictor.json`` holds of it; part of the search's name.

    Attributes:
        predicted: subnets that the strategy has seen.
        kept: the best of them, ``settings.measured`` at most; their metrics are predictions.
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
        *,
        predictor: Predictor,
        fitted: dict[str, Any],
    ) -> None:
        self.predictor = predictor
        self.fitted = fitted
        self.predicted = 0
        self.kept: list[Trial] = []
        self._chosen = False
        if latency is not None:
            latency.estimate()  # what is not measured must be in a table
        super().__init__(store, evaluator, settings, make_strategy, recorder, processes, latency)
        self._costs = [name for name in self.asked if name in self.feasible.table.models]

    def _identity(self) -> dict[str, Any]:
        fitted = {name: value for name, value in self.fitted.items() if name != "score"}
        return {**super()._identity(), "fitted": fitted}

    @property
    def finished(self) -> bool:
        """Whether all predictions are made and the best subnets judged."""
        return self._chosen and not self.pending

    def run(self) -> list[Trial]:
        """Predict and judge what is left; return the judged trials."""
        settings = self.settings
        if not self._chosen:
            self.recorder.record("predicting", {"name": self.name, "evaluations": settings.evaluations})
            while self.predicted < settings.evaluations:
                samples = self.strategy.ask(settings.evaluations - self.predicted)
                if not samples:
                    break  # every subnet that the strategy can think of is predicted
                self._tell(samples)
            self.pending = [trial.sample for trial in self.kept]
            self._chosen = True
            self.store.put_state(self.name, self._state())
        self.recorder.record("search", {"name": self.name, "evaluations": len(self.kept)})
        while self.pending:
            self._judge(self.pending[: self.processes.size])
        return self.trials

    def _tell(self, samples: Sequence[Sample]) -> None:
        trials = self.predict(samples)
        self.strategy.tell(trials)
        self.kept = best_first([*self.kept, *trials], self.objectives)[: self.settings.measured]
        self.predicted += len(samples)
        self.store.put_state(self.name, self._state())
        self.recorder.record("predicted", {"number": self.predicted, "new": len(samples)})

    def predict(self, samples: Sequence[Sample]) -> list[Trial]:
        """Return subnets with their costs and the predicted metric."""
        space = self.evaluator.supernet.space
        indices = space.indices(samples)
        metrics = {self.evaluator.task.metric: predict(self.predictor, space, indices)}
        metrics |= self.feasible.table.costs(indices, list(dict.fromkeys([*self.evaluator.usual, *self._costs])))
        found = []
        for i, sample in enumerate(samples):
            own = {name: values[i].item() for name, values in metrics.items()}
            found.append(Trial(space.key(sample), sample, own, total_violation(self.constraints, own)))
        return found

    def _learn(self, trial: Trial) -> None:
        """Leave the strategy as it is: it is done."""

    def _state(self) -> State:
        kept = [trial.to_state() for trial in self.kept]
        return {**super()._state(), "predicted": self.predicted, "kept": kept, "chosen": self._chosen}

    def _load_state(self, state: State) -> None:
        super()._load_state(state)
        self.predicted, self._chosen = int(state["predicted"]), bool(state["chosen"])
        self.kept = [Trial.of_state(kept) for kept in state["kept"]]

    def _said_of_predictor(self) -> dict[str, Any]:
        metric = self.evaluator.task.metric
        names = ("name", "options", "fitted", "held_out", "score")
        return {
            "predictor": {
                **{name: self.fitted[name] for name in names},
                "evaluations": self.predicted,
                "predicted": {trial.key: trial.metrics[metric] for trial in self.kept},
            }
        }
