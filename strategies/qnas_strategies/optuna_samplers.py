"""Optuna's samplers as strategies: ``optuna:tpe``, ``optuna:gp``, ``optuna:nsgaii`` and others.

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019,
https://arxiv.org/abs/1907.10902.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from qnas.errors import ConfigError
from qnas.pareto import objective_values
from qnas.protocols import SearchProblem, State, Trial
from qnas.rng import generator, integer_seed
from qnas.space import Sample

TRIES = 20  # suggestions in search of a subnet that was not asked before; then one is drawn at random


class OptunaStrategy:
    """Asks an Optuna sampler for one subnet after another.

    Knobs whose choices are numbers are integer variables (positions among the choices, which are ordered), the others
    categorical. What violates constraints on costs is repaired, and the sampler learns the repaired subnet; other
    violations reach samplers that know of constraints. Every suggestion is a function of the seed, the number of
    suggestions before it and the trials told: the study is built anew from them, so nothing but JSON is kept.

    Args:
        problem: space, objectives, feasible samples.
        batch: subnets asked at once, before their results are known; for as many processes.
        **options: of the sampler's constructor.
    """

    sampler = ""  # the class in optuna.samplers

    def __init__(self, problem: SearchProblem, *, batch: int = 1, **options: Any) -> None:
        if batch < 1:
            raise ConfigError(f"Strategy optuna: batch must be at least 1; given: {batch}. Change [search.options].")
        self.problem = problem
        self.batch = batch
        self.options = options
        self._history: list[dict[str, Any]] = []  # told: sample, values, violation, the sampler's own notes
        self._notes: dict[str, dict[str, Any]] = {}  # of subnets that were asked and not told yet, by key
        self._suggested = 0
        self._seen: list[str] = []
        self._make_sampler(0)  # wrong options are an error now, not after training

    def _make_sampler(self, count: int) -> Any:
        import optuna

        cls = getattr(optuna.samplers, self.sampler)
        # A quasi-random sequence is one sequence; the others draw anew each time.
        fixed = self.sampler == "QMCSampler"
        seed = integer_seed(self.problem.seed, "optuna", 0 if fixed else count) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some samplers are called experimental
            try:
                return cls(seed=seed, **self.options)
            except (TypeError, ValueError) as error:
                given = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
                raise ConfigError(
                    f"Optuna's {self.sampler} does not take the options given ({given}): {error}. "
                    "Correct [search.options]."
                ) from error

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, IntDistribution

        found: dict[str, Any] = {}
        for knob in self.problem.space.knobs:
            last = len(knob.choices) - 1
            ordered = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in knob.choices)
            found[knob.label] = IntDistribution(0, last) if ordered else CategoricalDistribution(range(last + 1))
        return found

    def _study(self) -> Any:
        """Return a study that knows all trials told."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            directions=["minimize"] * len(self.problem.objectives), sampler=self._make_sampler(self._suggested)
        )
        distributions = self._distributions()
        constrained = any(entry["violation"] > 0 for entry in self._history)
        for entry in self._history:
            study.add_trial(
                optuna.trial.create_trial(
                    params=self._positions(entry["sample"]),
                    distributions=distributions,
                    values=entry["values"],
                    system_attrs=entry["notes"],
                    constraints={"violation": entry["violation"]} if constrained else None,
                )
            )
        return study

    def _positions(self, sample: Sample) -> dict[str, int]:
        row = self.problem.space.indices([sample])[0]
        return {knob.label: int(i) for knob, i in zip(self.problem.space.knobs, row, strict=True)}

    def ask(self, n: int) -> list[Sample]:
        """Return at most ``batch`` new samples; none when no new one is found."""
        samples: list[Sample] = []
        for _ in range(min(n, self.batch)):
            sample = self._suggest()
            if sample is None:
                break
            samples.append(sample)
        return samples

    def _suggest(self) -> Sample | None:
        space = self.problem.space
        seen = set(self._seen)
        for attempt in range(2 * TRIES):
            rng = generator(self.problem.seed, "optuna-repair", self._suggested)
            notes: dict[str, Any] = {}
            if attempt < TRIES:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    study = self._study()
                    params = study.ask(self._distributions()).params
                notes = dict(study.trials[-1].system_attrs)
                row = space.indices([{k.label: k.choices[int(params[k.label])] for k in space.knobs}])
                row = self.problem.repair(row, rng)[0]
            else:
                row = self.problem.draw(rng, 1)[0]
            self._suggested += 1
            sample = space.sample(row)
            key = space.key(sample)
            if key not in seen:
                self._seen.append(key)
                self._notes[key] = notes
                return sample
        return None

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn results."""
        values = objective_values(trials, self.problem.objectives)
        for trial, row in zip(trials, values.tolist(), strict=True):
            notes = self._notes.pop(trial.key, {})
            entry = {"sample": trial.sample, "values": row, "violation": trial.violation, "notes": notes}
            self._history.append(entry)

    def state_dict(self) -> State:
        """Return the trials told and what was asked."""
        return {
            "suggested": self._suggested,
            "seen": list(self._seen),
            "notes": dict(self._notes),
            "history": list(self._history),
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        self._suggested = int(state["suggested"])
        self._seen = list(state["seen"])
        self._notes = {key: dict(notes) for key, notes in state["notes"].items()}
        self._history = [dict(entry) for entry in state["history"]]


class TPE(OptunaStrategy):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; several objectives: Ozaki et al. 2022)."""

    sampler = "TPESampler"


class GP(OptunaStrategy):
    """Gaussian process with expected (hypervolume) improvement."""

    sampler = "GPSampler"


class NSGAII(OptunaStrategy):
    """Optuna's own NSGA-II."""

    sampler = "NSGAIISampler"


class NSGAIII(OptunaStrategy):
    """NSGA-III (Deb and Jain 2014), for three objectives and more."""

    sampler = "NSGAIIISampler"


class QMC(OptunaStrategy):
    """A quasi-random (Sobol) sequence: spreads evenly, learns nothing."""

    sampler = "QMCSampler"
