"""Optuna's samplers as strategies: ``optuna:tpe``, ``optuna:gp``, ``optuna:nsgaii`` and others.

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019,
https://arxiv.org/abs/1907.10902.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from qnas.errors import ConfigError
from qnas.pareto import objective_values
from qnas.protocols import SearchProblem, State, Trial
from qnas.rng import generator, integer_seed
from qnas.space import Indices, Sample

TRIES = 10  # suggestions in search of a subnet that was not asked before
NEIGHBOURS = 20  # of a suggestion that was asked before, each with one knob drawn anew
DRAWS = 500  # random subnets that are looked through when no suggestion is new
SEQUENCE = "qmc:"  # under names that begin so, Optuna keeps with a study where its quasi-random sequence stands


class OptunaStrategy:
    """Asks an Optuna sampler for one subnet after another.

    Knobs whose choices are numbers are integer variables (positions among the choices, which are ordered), the others
    categorical. What violates constraints on costs is repaired, and the sampler learns the repaired subnet; other
    violations reach samplers that know of constraints. Every suggestion is a function of the seed, the number of
    suggestions before it and the trials told: the study can be built anew from them, so the state is JSON.

    Args:
        problem: space, objectives, feasible samples.
        batch: subnets asked at once, before their results are known; for as many processes.
        **options: of the sampler's constructor.

    Raises:
        ConfigError: an option that the sampler does not have, or a value that it cannot take.
    """

    sampler = ""  # the class in optuna.samplers
    defaults: ClassVar[Mapping[str, Any]] = {}  # options that are given unless the user gives them
    sequential = False  # whether all suggestions are one sequence of one seed, instead of each a draw of its own

    def __init__(self, problem: SearchProblem, *, batch: int = 1, **options: Any) -> None:
        if batch < 1:
            raise ConfigError(f"Strategy optuna: batch must be at least 1; given: {batch}. Change [search.options].")
        self.problem = problem
        self.batch = batch
        self.options = {**self.defaults, **options}
        self._history: list[dict[str, Any]] = []  # told: sample, values, violation, the sampler's own notes
        self._notes: dict[str, dict[str, Any]] = {}  # of subnets that were asked and not told yet, by key
        self._suggested = 0
        self._seen: list[str] = []
        self._sequence: dict[str, int] = {}
        self._storage: Any = None  # of the study
        self._study: Any = None  # knows all trials told; built when it is needed first
        self._constrained = False  # whether the study knows of violations
        self._make_sampler()  # wrong options are an error now, not after training

    def _make_sampler(self) -> Any:
        import optuna

        cls = getattr(optuna.samplers, self.sampler)
        seed = integer_seed(self.problem.seed, "optuna", 0 if self.sequential else self._suggested) % 2**32
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

    @cached_property
    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, IntDistribution

        found: dict[str, Any] = {}
        for knob in self.problem.space.knobs:
            last = len(knob.choices) - 1
            ordered = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in knob.choices)
            found[knob.label] = IntDistribution(0, last) if ordered else CategoricalDistribution(range(last + 1))
        return found

    def _build_study(self) -> Any:
        """Return a study that knows all trials told."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=self._storage, directions=["minimize"] * len(self.problem.objectives))
        number = self._storage.get_study_id_from_name(study.study_name)
        for name, place in self._sequence.items():
            self._storage.set_study_system_attr(number, name, place)
        self._constrained = any(entry["violation"] > 0 for entry in self._history)
        for entry in self._history:
            self._add(study, entry)
        return study

    def _add(self, study: Any, entry: Mapping[str, Any]) -> None:
        """Let the study know a trial."""
        import optuna

        study.add_trial(
            optuna.trial.create_trial(
                params=self._positions(entry["sample"]),
                distributions=self._distributions,
                values=entry["values"],
                system_attrs=entry["notes"],
                constraints={"violation": entry["violation"]} if self._constrained else None,
            )
        )

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
        """Return a subnet that was not asked before, if one is found."""
        space = self.problem.space
        seen = set(self._seen)
        for attempt in range(TRIES + 1):
            rng = generator(self.problem.seed, "optuna-repair", self._suggested)
            if attempt < TRIES:
                row, notes = self._suggest_row()
                rows = self.problem.repair(np.concatenate([row, self._neighbours(row, rng)]), rng)
            else:
                rows, notes = self.problem.draw(rng, DRAWS), {}
            self._suggested += 1
            for sample in map(space.sample, rows):
                key = space.key(sample)
                if key not in seen:
                    self._seen.append(key)
                    self._notes[key] = notes
                    return sample
        return None

    def _neighbours(self, row: Indices, rng: np.random.Generator) -> Indices:
        """Return rows that differ from ``row`` in one knob, to take where it was asked before; none for a sequence."""
        count = 0 if self.sequential else NEIGHBOURS
        rows = np.repeat(row, count, axis=0)
        column = rng.integers(row.shape[1], size=count)
        rows[np.arange(count), column] = self.problem.space.draw(rng, count)[np.arange(count), column]
        return rows

    def _suggest_row(self) -> tuple[Indices, dict[str, Any]]:
        """Return the sampler's next suggestion, ``[1, num_knobs]`` positions, and its notes on it."""
        from optuna.trial import TrialState

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._study is None:
                self._study = self._build_study()
            study = self._study
            study.sampler = self._make_sampler()
            trial = study.ask(self._distributions)
            # What is told is added as a trial of its own: the repaired subnet. The one asked must not be waited for.
            study.tell(trial, state=TrialState.FAIL)
            kept = self._storage.get_study_system_attrs(self._storage.get_study_id_from_name(study.study_name))
            self._sequence = {name: place for name, place in kept.items() if name.startswith(SEQUENCE)}
            notes = study.get_trials(deepcopy=False)[-1].system_attrs
        row = np.array([[int(trial.params[knob.label]) for knob in self.problem.space.knobs]], dtype=np.int64)
        return row, dict(notes)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn results."""
        values = objective_values(trials, self.problem.objectives)
        for trial, row in zip(trials, values.tolist(), strict=True):
            notes = self._notes.pop(trial.key, {})
            entry = {"sample": trial.sample, "values": row, "violation": trial.violation, "notes": notes}
            self._history.append(entry)
            if self._study is not None and (self._constrained or trial.violation == 0):
                self._add(self._study, entry)
            else:  # all trials of a study know their violations, or none does
                self._study = None

    def state_dict(self) -> State:
        """Return the trials told and what was asked."""
        return {
            "suggested": self._suggested,
            "seen": list(self._seen),
            "sequence": dict(self._sequence),
            "notes": dict(self._notes),
            "history": list(self._history),
        }

    def load_state_dict(self, state: State) -> None:
        """Take up a state."""
        self._suggested = int(state["suggested"])
        self._seen = list(state["seen"])
        self._sequence = dict(state["sequence"])
        self._notes = {key: dict(notes) for key, notes in state["notes"].items()}
        self._history = [dict(entry) for entry in state["history"]]
        self._study = None


class TPE(OptunaStrategy):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; several objectives: Ozaki et al. 2022).

    Multivariate (Falkner et al. 2018) unless ``multivariate=false`` is given: knobs drawn one by one take several times
    as long, and repeat what was asked before so often that most suggestions are lost.
    """

    sampler = "TPESampler"
    defaults: ClassVar[Mapping[str, Any]] = {"multivariate": True}


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
    """A quasi-random (scrambled Sobol) sequence: spreads evenly, learns nothing."""

    sampler = "QMCSampler"
    defaults: ClassVar[Mapping[str, Any]] = {"scramble": True}  # else the seed would change nothing
    sequential = True
