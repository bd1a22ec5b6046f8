"""Uniform sampling: every choice of every knob equally often, subnets independent of one another."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from qnas.rng import generator
from qnas_plugins.samplers.uniform import Uniform

DRAWS = 4000


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(granularity="stage")


@pytest.fixture(scope="module")
def rows(space):
    return space.indices(Uniform().draw(space, generator(0, "test"), DRAWS))


def test_every_choice_is_equally_likely(space, rows):
    p_values = []
    for column, knob in zip(rows.T, space.knobs, strict=True):
        counts = np.bincount(column, minlength=len(knob.choices))
        if len(counts) == 1:
            continue
        p_values.append(chisquare(counts).pvalue)
    assert len(p_values) > 10
    assert min(p_values) > 0.01 / len(p_values)


def test_knobs_do_not_depend_on_one_another(space, rows):
    first, second = _two(space)
    table = np.zeros((len(space.knobs[first].choices), len(space.knobs[second].choices)))
    np.add.at(table, (rows[:, first], rows[:, second]), 1)
    assert chi2_contingency(table).pvalue > 0.001


def _two(space):
    return [i for i, knob in enumerate(space.knobs) if len(knob.choices) > 1][:2]


def test_the_order_means_nothing(space):
    """The subnets of a step are alike, whatever their position: none is always the largest, as in a sandwich."""
    steps = np.stack([space.indices(Uniform().draw(space, generator(0, "x", i), 4)) for i in range(1000)])
    column = _two(space)[0]
    table = np.stack([np.bincount(steps[:, position, column]) for position in range(4)])
    assert chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("n", [1, 2, 7])
def test_it_draws_as_many_as_asked(space, n):
    samples = Uniform().draw(space, generator(1, "test"), n)
    assert len(samples) == n
    for sample in samples:
        space.validate(sample)


def test_it_draws_from_a_stages_view_alone(space):
    view = space.restrict(w_bits=[4])
    assert {s["stage1.w_bits"] for s in Uniform().draw(view, generator(0, "test"), 20)} == {4}
