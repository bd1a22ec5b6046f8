"""Optuna's samplers: reproducible, resumable, quiet, quick enough, and told of constraints."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from scipy.stats import qmc

from qnas import components
from qnas.errors import ConfigError
from qnas_strategies import optuna_samplers
from tests.problems import Grid, drive, judge, problem

QUICK = ("tpe", "nsgaii", "nsgaiii", "qmc")


@pytest.fixture(scope="module")
def load(registry):
    return lambda name: registry.load("strategy", f"optuna:{name}")


def keys(trials):
    return [trial.key for trial in trials]


def reloaded(strategy, made_by, of):
    state = json.loads(json.dumps(strategy.state_dict()))
    other = made_by(of)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("name", QUICK)
def test_suggestions_depend_on_seed_and_results_alone(load, name):
    space = Grid()
    first, again, other = (keys(drive(load(name)(problem(space, seed)), space, 40)) for seed in (0, 0, 1))
    assert first == again
    assert len(set(first)) == 40
    assert len(set(first) & set(other)) < 20  # the seed decides all of them, not the first alone


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("limit", [None, 0.4])
def test_resumed_in_the_middle_of_a_batch_it_asks_the_same(load, name, limit):
    space = Grid()
    whole = load(name)(problem(space), batch=3)
    parts = load(name)(problem(space), batch=3)
    for _ in range(14):
        samples = whole.ask(10)
        assert samples == parts.ask(10)
        assert len(samples) == 3
        for sample in samples:
            whole.tell([judge(space, sample, limit)])
            parts.tell([judge(space, sample, limit)])
            parts = reloaded(parts, lambda p: load(name)(p, batch=3), problem(space))


def test_a_gaussian_process_is_reproducible_and_goes_on(load):
    space = Grid(numbers=3, size=4)
    whole = drive(load("gp")(problem(space), n_startup_trials=4), space, 7, limit=0.5)
    part = load("gp")(problem(space), n_startup_trials=4)
    begun = drive(part, space, 5, limit=0.5)
    rest = drive(reloaded(part, lambda p: load("gp")(p, n_startup_trials=4), problem(space)), space, 2, limit=0.5)
    assert keys(whole) == keys(begun + rest)


@pytest.mark.parametrize("name", [*QUICK, "gp"])
def test_it_says_and_warns_nothing(load, name, capfd):
    space = Grid()
    options = {"gp": {"n_startup_trials": 3}, "nsgaii": {"population_size": 4}, "nsgaiii": {"population_size": 4}}
    drive(load(name)(problem(space), **options.get(name, {})), space, 5 if name == "gp" else 15)
    assert capfd.readouterr() == ("", "")  # a warning would be an error in tests


def test_the_quasi_random_sequence_goes_on():
    """After a first random subnet, the suggestions are the points of one scrambled Sobol sequence."""
    space = Grid(numbers=4, size=4, words=("a", "b", "c", "d"))
    strategy = optuna_samplers.QMC(problem(space))
    asked = space.indices([t.sample for t in drive(strategy, space, 32)])
    assert strategy._suggested < 2 * 32
    seed = strategy._make_sampler()._seed
    points = qmc.Sobol(5, scramble=True, seed=seed).random(64)
    rows = {tuple(np.minimum((p * 4).astype(int), 3)) for p in points}
    assert {tuple(row) for row in asked[1:]} <= rows
    for column in asked.T:  # evenly spread: about 8 of each of 4 values
        assert np.bincount(column, minlength=4).min() >= 5


def test_a_wrong_option_is_refused_before_anything_is_trained(registry):
    make = components.strategy_maker(registry, "optuna:tpe", {"n_startup_trails": 3})
    with pytest.raises(ConfigError, match=r"TPESampler.*n_startup_trails.*Correct \[search.options\]"):
        make(problem())
    with pytest.raises(ConfigError, match=r"QMCSampler.*qmc_type='wrong'"):
        optuna_samplers.QMC(problem(), qmc_type="wrong")
    with pytest.raises(ConfigError, match="batch must be at least 1; given: 0"):
        optuna_samplers.TPE(problem(), batch=0)


@pytest.mark.parametrize("name", ["tpe", "nsgaii"])
def test_what_misses_constraints_is_avoided(load, name):
    space = Grid(numbers=10)
    options = {"nsgaii": {"population_size": 16}}.get(name, {})
    trials = drive(load(name)(problem(space), **options), space, 100, limit=0.25)
    met = [trial.violation == 0 for trial in trials]
    assert np.mean(met[-40:]) > np.mean(met[:20]) + 0.3


def test_constraints_that_are_first_missed_late_are_taken_up(load):
    """A sampler wants the violations of all trials or of none."""
    space = Grid(numbers=3, size=4)
    strategy = load("gp")(problem(space), n_startup_trials=2)
    drive(strategy, space, 3)
    trials = drive(strategy, space, 2, limit=0.0)
    assert any(trial.violation for trial in trials)
    assert len(drive(strategy, space, 1, limit=0.0)) == 1


def test_the_sampler_learns_the_repaired_subnet():
    space = Grid()

    def repair(rows, rng):
        rows = rows.copy()
        rows[:, 0] = 0
        return rows

    strategy = optuna_samplers.TPE(problem(space, repair=repair))
    trials = drive(strategy, space, 15)
    assert all(trial.sample["k0"] == 0 for trial in trials)
    told = [t for t in strategy._study.get_trials() if t.values is not None]
    assert [t.params["k0"] for t in told] == [0] * 15


@pytest.mark.parametrize("name", QUICK)
def test_a_small_space_is_exhausted_and_ends(load, name):
    space = Grid(numbers=2, size=3)
    trials = drive(load(name)(problem(space)), space, 1000)
    assert len(trials) == len(set(keys(trials))) == 18


def test_many_suggestions_take_seconds():
    space = Grid(numbers=20)
    start = time.process_time()
    strategy = optuna_samplers.TPE(problem(space))
    assert len(drive(strategy, space, 100)) == 100
    assert time.process_time() - start < 12  # 2 s on an idle machine; 40 s where each builds the study anew
    assert strategy._suggested < 2 * 100


def test_it_beats_chance_on_average():
    space = Grid(numbers=10)
    best = {
        cls: [max(t.metrics["accuracy"] - t.metrics["cost"] for t in drive(cls(problem(space, s)), space, 60))
              for s in range(3)]
        for cls in (optuna_samplers.TPE, optuna_samplers.QMC)
    }  # fmt: skip
    assert np.mean(best[optuna_samplers.TPE]) > np.mean(best[optuna_samplers.QMC])


def test_knobs_of_numbers_are_ordered_and_others_are_not():
    import optuna

    distributions = optuna_samplers.TPE(problem(Grid(words=("a", "b", "c"))))._distributions
    assert distributions["k0"] == optuna.distributions.IntDistribution(0, 4)
    assert distributions["word"] == optuna.distributions.CategoricalDistribution((0, 1, 2))
