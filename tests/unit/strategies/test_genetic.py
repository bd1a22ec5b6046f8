"""The genetic strategy: who is kept, who is bred, and targets on averages."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.constraints import FeasibleSet, parse_constraint
from qnas.costs import CostTable
from qnas.errors import ConfigError
from qnas.pareto import best_first
from qnas.protocols import Objective, SearchProblem, Trial
from qnas_strategies import genetic
from qnas_strategies.genetic import Genetic
from qnas_strategies.random import RandomSearch
from tests.chains import Chain, averages
from tests.problems import OBJECTIVES, Grid, drive, problem

BITS = tuple(range(2, 9))


def best(trials):
    return max(trial.metrics["accuracy"] for trial in trials)


def test_elitists_are_the_best_of_all_generations():
    space = Grid(numbers=6, size=5)
    strategy = Genetic(problem(space, objectives=OBJECTIVES[:1]), population=8, elites=3)
    trials = drive(strategy, space, 33)  # four generations, and the first of the fifth
    want = best_first(trials[:32], OBJECTIVES[:1])[:3]
    assert [t.key for t in strategy._elites] == [t.key for t in want]


def test_half_of_a_population_are_mutants_and_half_are_crossings(monkeypatch):
    made = []
    for name in ("mutate", "cross"):
        was = getattr(genetic, name)
        monkeypatch.setattr(genetic, name, lambda *args, name=name, was=was: made.append(name) or was(*args))
    monkeypatch.setattr(genetic, "LITTER", 1)
    space = Grid(numbers=10, size=6)
    strategy = Genetic(problem(space), population=10, mutants=4, elites=5)
    drive(strategy, space, 10)
    assert not made  # the first population is drawn
    drive(strategy, space, 10, ask=10)
    kinds = "".join(name[0] for name in made)
    assert kinds.lstrip("m") == "c" * kinds.count("c")  # mutants first
    assert kinds.count("m") >= 4
    assert kinds.count("c") >= 6


def test_it_finds_better_subnets_than_chance():
    space = Grid(numbers=12, size=7)
    searched, chance = [], []
    for seed in range(3):
        made = problem(space, seed, OBJECTIVES[:1])
        searched.append(best(drive(Genetic(made, population=20), space, 200)))
        chance.append(best(drive(RandomSearch(made), space, 200)))
    assert min(searched) > max(chance)


@pytest.mark.parametrize("texts", [("w<=2.6", "a<=2.6"), ("w>=3.9", "w<=4.1", "a<=3")])
def test_every_subnet_meets_targets_on_averages(texts):
    space = Chain(w_bits=BITS, a_bits=BITS)
    table = CostTable(space, averages("parameters"))
    feasible = FeasibleSet(table, [parse_constraint(text, ["w", "a"]) for text in texts], 0)
    objectives = (Objective("accuracy", "max"),)
    strategy = Genetic(SearchProblem(space, objectives, feasible.draw, feasible.repair, 0), population=12)
    trials = []
    for _ in range(48):
        (sample,) = strategy.ask(1)
        assert feasible.violation(space.indices([sample]))[0] == 0
        score = -sum((sample[knob.label] - 3) ** 2 for knob in space.knobs if knob.role == "w_bits")
        trials.append(Trial(space.key(sample), sample, {"accuracy": float(score)}))
        strategy.tell(trials[-1:])
    firsts = space.indices([trial.sample for trial in trials[:12]])
    assert len(np.unique(firsts, axis=0)) == 12
    first, last = ([t.metrics["accuracy"] for t in part] for part in (trials[:12], trials[-12:]))
    assert np.mean(last) > np.mean(first)


def test_wrong_options_are_refused():
    for options in ({"population": 1}, {"mutants": 101}, {"elites": 0}, {"mutation_probability": 1.5}):
        with pytest.raises(ConfigError, match="Strategy genetic"):
            Genetic(problem(), **options)
