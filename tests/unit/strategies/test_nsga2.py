"""NSGA-II: survival against an implementation from the paper, constraints, bounds, small spaces, and its search."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from qnas.errors import ConfigError
from qnas.hypervolume import hypervolume
from qnas.protocols import Objective, Trial
from qnas_strategies.nsga2 import NSGA2
from qnas_strategies.random import RandomSearch
from tests.problems import OBJECTIVES, Grid, drive, judge, problem


def fronts_by_brute_force(values, violations):
    """Deb et al. 2002, Sec. III-A and VI: peel off the points that no other one dominates, again and again."""

    def dominates(a, b):
        if violations[a] or violations[b]:
            return violations[a] < violations[b]
        pairs = list(zip(values[a], values[b], strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    left, fronts = set(range(len(values))), []
    while left:
        front = sorted(i for i in left if not any(dominates(j, i) for j in left))
        fronts.append(front)
        left -= set(front)
    return fronts


def distances(values, front):
    """Crowding distance as the paper assigns it, normalised by the front's range in each objective."""
    found = dict.fromkeys(front, 0.0)
    for column in range(len(values[0])):
        order = sorted(front, key=lambda i: values[i][column])
        span = values[order[-1]][column] - values[order[0]][column]
        found[order[0]] = found[order[-1]] = float("inf")
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            found[i] += (values[after][column] - values[before][column]) / span
    return found


def trials_of(values, violations, space):
    rows = itertools.product(range(space.size), repeat=space.numbers)
    found = []
    for row, value, violation in zip(rows, values, violations, strict=False):
        sample = {**{f"k{i}": n for i, n in enumerate(row)}, "word": "a"}
        metrics = {"accuracy": -value[0], "cost": value[1], **({"size": value[2]} if len(value) > 2 else {})}
        found.append(Trial(space.key(sample), sample, metrics, violation))
    return found


@pytest.mark.parametrize("num_objectives", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_survivors_are_those_of_the_paper(num_objectives, seed):
    rng = np.random.default_rng(seed)
    space = Grid()
    values = rng.random((30, num_objectives)).tolist()
    violations = np.where(rng.random(30) < (0.0, 0.3, 0.8)[seed % 3], rng.random(30), 0.0).tolist()
    objectives = (*OBJECTIVES, Objective("size", "min"))[:num_objectives]
    strategy = NSGA2(problem(space, objectives=objectives), population=12)
    trials = trials_of(values, violations, space)
    kept = {trials.index(t) for t in strategy._survive(trials)}
    assert len(kept) == 12
    room = 12
    for front in fronts_by_brute_force(values, violations):
        chosen, left_out = kept & set(front), set(front) - kept
        assert len(chosen) == min(room, len(front))
        room -= len(chosen)
        if chosen and left_out:
            spread = distances(values, front)
            assert min(spread[i] for i in chosen) >= max(spread[i] for i in left_out) - 1e-12


def test_children_are_within_bounds_even_of_knobs_without_a_choice():
    space = Grid(numbers=4, size=3, words=("only",))
    strategy = NSGA2(problem(space), population=6)
    for trial in drive(strategy, space, 60, ask=4):
        space.validate(trial.sample)


def test_the_first_generation_holds_the_ends_of_the_space():
    space = Grid()
    assert NSGA2(problem(space), population=4).ask(4)[:2] == [space.highest(), space.lowest()]
    assert space.highest() not in NSGA2(problem(space), population=4, extremes=False).ask(4)


def test_children_are_repaired():
    space = Grid()

    def repair(rows, rng):
        rows = rows.copy()
        rows[:, 0] = 0
        return rows

    assert all(t.sample["k0"] == 0 for t in drive(NSGA2(problem(space, repair=repair)), space, 60))


def test_numpys_global_random_state_is_left_alone():
    space = Grid()
    before = np.random.get_state()
    drive(NSGA2(problem(space), population=4), space, 20)
    after = np.random.get_state()
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


@pytest.mark.parametrize("population", [3, 8])
def test_a_small_space_is_exhausted_and_ends(population):
    space = Grid(numbers=2, size=3)
    trials = drive(NSGA2(problem(space), population=population), space, 1000)
    assert len(trials) == len({t.key for t in trials}) == 18


def front_volume(space, trials):
    box = {"accuracy": 0.0, "cost": 1.0}, {"accuracy": 1.0, "cost": 0.0}
    return hypervolume([t.metrics for t in trials if not t.violation], OBJECTIVES, *box)


def test_it_finds_a_larger_front_than_random_search():
    space = Grid(numbers=10)
    volumes = {
        cls: [front_volume(space, drive(cls(problem(space, seed), **options), space, 120)) for seed in range(5)]
        for cls, options in ((NSGA2, {"extremes": False}), (RandomSearch, {}))
    }
    assert np.mean(volumes[NSGA2]) > np.mean(volumes[RandomSearch]) + 0.05
    assert min(volumes[NSGA2]) > max(volumes[RandomSearch])


def test_it_moves_to_where_constraints_are_met():
    space = Grid(numbers=10)
    trials = drive(NSGA2(problem(space), extremes=False), space, 160, limit=0.25)
    met = [trial.violation == 0 for trial in trials]
    assert sum(met[-48:]) > 24 > 6 > sum(met[:16])


def test_it_goes_on_in_the_middle_of_a_generation():
    space = Grid()
    whole = [t.key for t in drive(NSGA2(problem(space), population=6), space, 40, ask=4)]
    strategy = NSGA2(problem(space), population=6)
    asked = strategy.ask(4)
    strategy.tell([judge(space, sample) for sample in asked[:2]])
    state = json.loads(json.dumps(strategy.state_dict()))
    other = NSGA2(problem(space), population=6)
    other.load_state_dict(state)
    other.tell([judge(space, sample) for sample in asked[2:]])
    assert whole[4:] == [t.key for t in drive(other, space, 36, ask=4)]


@pytest.mark.parametrize(
    "options",
    [
        {"population": 1},
        {"crossover_eta": 0.0},
        {"mutation_eta": -1.0},
        {"crossover_probability": 1.1},
        {"mutation_probability": -0.1},
    ],
)
def test_wrong_options_are_refused_by_name(options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=rf"{name}={value}.*Change \[search.options\]"):
        NSGA2(problem(), **options)
