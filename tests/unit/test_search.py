"""Dominance, constraints, strategies' shared ground."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.constraints import FeasibleSet, parse_constraint, total_violation
from qnas.costs import CostTable
from qnas.errors import ConfigError, ConstraintError
from qnas.pareto import best_first, crowding, dominates, front, ranks
from qnas.protocols import Objective, Trial
from qnas.rng import generator
from qnas.search import choose, named_objectives
from qnas.statistics import unpack_correct
from tests.chains import Chain, averages, every_sample

OBJECTIVES = (Objective("accuracy", "max"), Objective("bitops", "min"))
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25)


def trials(points, violations=None):
    violations = violations or [0.0] * len(points)
    return [
        Trial(f"{i:04d}", {}, {"accuracy": a, "bitops": b}, v)
        for i, ((a, b), v) in enumerate(zip(points, violations, strict=True))
    ]


@settings(max_examples=100, deadline=None)
@given(points=POINTS)
def test_no_point_of_a_front_dominates_another_and_every_other_is_dominated(points):
    found = front(trials(points), OBJECTIVES)
    values = {(t.metrics["accuracy"], t.metrics["bitops"]) for t in found}
    assert len(values) == len(found)
    for a, b in values:
        assert not any((x >= a and y <= b) and (x, y) != (a, b) for x, y in points)
    for a, b in points:
        assert any(x >= a and y <= b for x, y in values)


@settings(max_examples=50, deadline=None)
@given(points=POINTS, seed=st.integers(0, 100))
def test_front_does_not_depend_on_order(points, seed):
    found = trials(points)
    shuffled = list(np.random.default_rng(seed).permutation(np.array(found, dtype=object)))
    assert [t.key for t in front(found, OBJECTIVES)] == [t.key for t in front(shuffled, OBJECTIVES)]
    assert [t.key for t in best_first(found, OBJECTIVES)] == [t.key for t in best_first(shuffled, OBJECTIVES)]


def test_meeting_the_constraints_comes_first():
    values = np.array([[0.0, 0.0], [5.0, 5.0], [1.0, 1.0]])
    violations = np.array([1.0, 0.0, 0.5])
    np.testing.assert_array_equal(ranks(values, violations), [2, 0, 1])
    assert dominates(values, violations)[1, 0]
    assert front(trials([(9, 0), (1, 5)], [1.0, 0.0]), OBJECTIVES)[0].key == "0001"
    assert front(trials([(9, 0)], [1.0]), OBJECTIVES) == []


def test_crowding_prefers_the_ends_and_the_lonely():
    distance = crowding(np.array([[0.0, 10.0], [1.0, 9.0], [2.0, 8.0], [9.0, 0.0]]))
    assert np.isinf(distance[[0, 3]]).all()
    assert distance[2] > distance[1]


def test_chosen_point_is_the_most_accurate_then_the_cheapest():
    points = trials([(5, 9), (7, 8), (7, 3), (6, 1)])
    assert choose(points, "accuracy", OBJECTIVES).key == "0002"


def test_constraints_are_parsed_and_measured():
    constraint = parse_constraint(" bitops <= 2e8", ["accuracy", "bitops"])
    assert (constraint.name, constraint.sense, constraint.limit) == ("bitops", "<=", 2e8)
    assert total_violation([constraint], {"bitops": 3e8}) == pytest.approx(0.5)
    assert total_violation([parse_constraint("accuracy>=0.9", ["accuracy"])], {"accuracy": 0.95}) == 0
    for text, message in (("bitops<2e8", "form NAME<=NUMBER"), ("bitops<=many", "form"), ("bitop<=3", "'bitops'")):
        with pytest.raises(ConfigError, match=message):
            parse_constraint(text, ["accuracy", "bitops"])


@pytest.fixture(scope="module")
def table(make_space, registry):
    models = {name: registry.load("cost", name) for name in ("macs", "bitops", "size_bytes")}
    return CostTable(make_space(granularity="layer"), models)


def constrain(table, *texts):
    return FeasibleSet(table, [parse_constraint(t, ["accuracy", *table.models]) for t in texts], seed=0)


def test_drawn_and_repaired_samples_are_feasible(table):
    lowest = table.costs(table.space.indices([table.space.lowest()]))["bitops"][0]
    for limit in (3 * lowest, 1.02 * lowest, lowest):  # ample, hardly any, exactly one
        feasible = constrain(table, f"bitops<={limit}")
        rng = generator(0, "test")
        for rows in (feasible.draw(rng, 20), feasible.repair(table.space.draw(rng, 20), rng)):
            assert rows.shape == (20, len(table.space.knobs))
            assert (feasible.violation(rows) == 0).all()


def test_repair_leaves_feasible_samples_alone(table):
    rows = table.space.draw(generator(0, "x"), 10)
    feasible = constrain(table)
    np.testing.assert_array_equal(feasible.repair(rows, generator(0, "y")), rows)


def test_what_nothing_meets_ends_at_once_and_says_how_close(table):
    lowest = int(table.costs(table.space.indices([table.space.lowest()]))["bitops"][0])
    start = time.perf_counter()
    with pytest.raises(ConstraintError, match=f"closest one has bitops={lowest:,}"):
        constrain(table, f"bitops<={lowest - 1}")
    with pytest.raises(ConstraintError, match="of space 'mbv3' meets"):
        constrain(table, "macs<=200000", "macs>=500000")
    assert time.perf_counter() - start < 5


def test_a_narrow_window_is_found(table):
    feasible = constrain(table, "macs<=300000", "macs>=299000")
    assert (feasible.violation(feasible.draw(generator(0, "w"), 5)) == 0).all()


def test_wrong_objectives_are_refused():
    with pytest.raises(ConfigError, match="different metrics"):
        named_objectives(["accuracy", "accuracy"], "accuracy", {})
    with pytest.raises(ConfigError, match="'accurracy' does not exist"):
        named_objectives(["accurracy"], "accuracy", {})


def test_correctness_bits_round_trip():
    correct = np.random.default_rng(0).random(359) < 0.9
    np.testing.assert_array_equal(unpack_correct(np.packbits(correct).tobytes(), 359), correct)


def test_the_front_of_many_trials_is_fast():
    rng = np.random.default_rng(0)
    many = trials([(int(a), int(b)) for a, b in rng.integers(0, 10_000, size=(50_000, 2))])
    start = time.perf_counter()
    found = front(many, OBJECTIVES)
    assert time.perf_counter() - start < 10
    assert found == front(found, OBJECTIVES)


def test_a_window_around_a_known_subnet_is_found(table):
    for seed in range(5):
        row = table.space.draw(generator(seed, "known"), 1)
        costs = {name: int(value[0]) for name, value in table.costs(row).items()}
        macs, size = costs["macs"], costs["size_bytes"]
        windows = (f"macs<={macs * 1.02}", f"macs>={macs * 0.98}", f"size_bytes<={size * 1.02}")
        feasible = constrain(table, *windows, f"size_bytes>={size * 0.98}")
        assert (feasible.violation(feasible.draw(generator(seed, "draw"), 3)) == 0).all()


def test_rare_samples_come_from_conditional_marginals():
    bits = tuple(range(2, 9))
    space = Chain(w_bits=bits, a_bits=bits)
    table = CostTable(space, averages("macs"))
    feasible = FeasibleSet(table, [parse_constraint(text, ["w", "a"]) for text in ("w<=2.6", "a<=2.6", "a>=2.1")], 0)
    assert {name: str(window) for name, window in feasible.windows().items()} == {
        "w": "at most 2.6",
        "a": "from 2.1 to 2.6",
    }
    rows = feasible.draw(generator(0, "rare"), 300)
    assert (feasible.violation(rows) == 0).all()
    np.testing.assert_array_equal(FeasibleSet(table, feasible.constraints, 0).draw(generator(0, "rare"), 300), rows)
    every = every_sample(space)
    inside = every[feasible.violation(every) == 0]
    for knob in range(rows.shape[1]):  # repair would pull all samples to one
        want = np.bincount(inside[:, knob], minlength=7) / len(inside)
        np.testing.assert_allclose(np.bincount(rows[:, knob], minlength=7) / len(rows), want, atol=0.15)


def test_samples_that_are_not_rare_stay_uniform():
    space = Chain()
    feasible = FeasibleSet(CostTable(space, averages("macs")), [parse_constraint("w<=4", ["w"])], 0)
    drawn = space.draw(generator(0, "often"), 40)
    want = drawn[feasible.violation(drawn) == 0][:20]
    np.testing.assert_array_equal(feasible.draw(generator(0, "often"), 20), want)
    assert feasible._monte_carlo is None


def test_repair_takes_over_one_knob_after_another_until_the_constraint_is_met(make_space, registry):
    """The same as judging each stage of the repair by itself."""
    space = make_space(granularity="layer")
    table = CostTable(space, {"bitops": registry.load("cost", "bitops")})
    limit = int(np.quantile(table.costs(space.draw(generator(0, "t"), 500))["bitops"], 0.02))
    feasible = FeasibleSet(table, [parse_constraint(f"bitops<={limit}", ["bitops"])], 0)
    rows = space.draw(generator(1, "t"), 60)
    repaired = feasible.repair(rows, generator(2, "t"))
    want, wrong = rows.copy(), np.flatnonzero(feasible.violation(rows) > 0)
    orders = generator(2, "t").permuted(np.tile(np.arange(rows.shape[1]), (len(wrong), 1)), axis=1)
    for row, order in zip(wrong, orders, strict=True):
        for column in order:
            want[row, column] = feasible._anchor[column]
            if feasible.violation(want[row][None])[0] == 0:
                break
    np.testing.assert_array_equal(repaired, want)
    assert len(wrong) > 40
    assert (feasible.violation(repaired) == 0).all()
