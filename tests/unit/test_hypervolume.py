"""Hypervolume against sums of boxes by hand and against chance; its box is the space's, whatever was found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.hypervolume import hypervolume, objective_box
from qnas.protocols import Objective

ONE = (Objective("accuracy", "max"),)
TWO = (*ONE, Objective("cost", "min"))
THREE = (*TWO, Objective("size", "min"))
REFERENCE = {"accuracy": 0.0, "cost": 100.0, "size": 10.0}
IDEAL = {"accuracy": 1.0, "cost": 0.0, "size": 0.0}
UNIT = st.floats(0, 1)


def share(objectives, *points):
    named = [dict(zip((o.name for o in objectives), point, strict=True)) for point in points]
    return hypervolume(named, objectives, REFERENCE, IDEAL)


def by_inclusion_exclusion(losses):
    """The union of the boxes between each point and the reference point at 1, by the sizes of all intersections."""
    total = 0.0
    for n in range(1, len(losses) + 1):
        for chosen in itertools.combinations(losses, n):
            total += (-1) ** (n + 1) * float(np.prod(1 - np.max(chosen, axis=0)))
    return total


def test_one_objective_is_the_best_value():
    assert share(ONE, (0.25,), (0.75,), (0.5,)) == pytest.approx(0.75)


def test_two_objectives_by_hand():
    assert share(TWO, (0.5, 25.0)) == pytest.approx(0.5 * 0.75)
    # Two steps of a staircase: 0.8 x 0.4, and what 0.5 x 0.9 adds left of it.
    assert share(TWO, (0.8, 60.0), (0.5, 10.0)) == pytest.approx(0.8 * 0.4 + 0.5 * (0.9 - 0.4))


def test_three_objectives_by_hand():
    a, b = (0.5, 50.0, 5.0), (0.8, 80.0, 1.0)
    # 0.5^3 + 0.8 * 0.2 * 0.9 - (what both dominate: 0.5 * 0.2 * 0.5)
    assert share(THREE, a, b) == pytest.approx(0.125 + 0.144 - 0.05)


@pytest.mark.parametrize("objectives", [ONE, TWO, THREE])
def test_against_all_intersections_and_against_chance(objectives):
    rng = np.random.default_rng(0)
    for _ in range(5):
        losses = rng.random((6, len(objectives)))
        points = [
            {o.name: REFERENCE[o.name] + (1 - x) * (IDEAL[o.name] - REFERENCE[o.name])
             for o, x in zip(objectives, row, strict=True)}
            for row in losses
        ]  # fmt: skip
        found = hypervolume(points, objectives, REFERENCE, IDEAL)
        assert found == pytest.approx(by_inclusion_exclusion(losses), abs=1e-12)
        darts = rng.random((20_000, len(objectives)))
        hit = (darts[:, None] >= losses[None]).all(2).any(1).mean()
        assert found == pytest.approx(hit, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(points=st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=8), new=st.tuples(UNIT, UNIT))
def test_a_further_point_adds_what_it_alone_dominates(points, new):
    points = [(a, 100 * b) for a, b in points]
    new = new[0], 100 * new[1]
    before, after = share(TWO, *points), share(TWO, *points, new)
    assert 0 <= before <= after + 1e-12
    assert after <= 1 + 1e-12
    if any(a >= new[0] and b <= new[1] for a, b in points):
        assert after == pytest.approx(before, abs=1e-12)
    elif new[0] > 1e-3 and new[1] < 100 - 1e-1 and all(a < new[0] - 1e-3 or b > new[1] + 1e-1 for a, b in points):
        assert after > before


def test_points_beyond_the_box_count_as_on_its_side():
    assert share(TWO, (0.5, 150.0)) == 0
    assert share(TWO, (-0.1, 50.0)) == 0
    assert share(TWO, (1.2, -5.0)) == pytest.approx(1.0)
    assert share(TWO, (0.5, -5.0)) == pytest.approx(0.5)
    assert hypervolume([], TWO, REFERENCE, IDEAL) == 0


def test_an_objective_without_extent_takes_no_part():
    box = {"accuracy": 0.0, "cost": 0.0}, {"accuracy": 1.0, "cost": 0.0}
    assert hypervolume([{"accuracy": 0.3, "cost": 0.0}], TWO, *box) == pytest.approx(0.3)


class Saved:
    direction, unit = "max", "MACs"

    def layer_cost(self, layer):
        return 2 * layer.macs


def test_the_box_is_that_of_the_space(make_space, registry):
    space = make_space()
    costs = {"macs": registry.load("cost", "macs"), "saved": Saved()}
    objectives = (Objective("accuracy", "max"), Objective("macs", "min"), Objective("saved", "max"))
    macs = float(sum(layer.macs for layer in space.layers(space.highest())))
    box = objective_box(space, costs, "accuracy", objectives)
    assert box.reference == {"accuracy": 0.0, "macs": macs, "saved": 0.0}
    assert box.ideal == {"accuracy": 1.0, "macs": 0.0, "saved": 2 * macs}
    assert box.to_json() == {"reference": box.reference, "ideal": box.ideal}
