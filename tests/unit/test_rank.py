"""Which subnets a ranking is of."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.errors import ConfigError
from qnas.rank import draw_distinct
from qnas.testing.parts import toy_space


def test_all_are_different_and_a_function_of_the_seed(make_space):
    space = make_space(granularity="layer")
    first, again, other = (draw_distinct(space, 30, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len({space.key(sample) for sample in first}) == 30
    assert all(sample == space.canonical(sample) for sample in first)


def test_a_longer_comparison_goes_on_from_a_shorter_one(make_space):
    space = make_space(granularity="layer")
    assert draw_distinct(space, 25, 3)[:10] == draw_distinct(space, 10, 3)


def test_knobs_are_drawn_uniformly(make_space):
    space = make_space(granularity="layer")
    always = [i for i, knob in enumerate(space.knobs) if not knob.active_if and len(knob.choices) > 1]
    rows = space.indices(draw_distinct(space, 400, 0))
    for column in always:
        counts = np.bincount(rows[:, column], minlength=len(space.knobs[column].choices))
        expected = 400 / len(counts)
        assert abs(counts - expected).max() < 5 * expected**0.5


def test_a_space_with_too_few_subnets_is_named():
    space = toy_space()  # 12 subnets with the middle layer, 1 without
    assert len(draw_distinct(space, 13, 0)) == 13
    with pytest.raises(ConfigError, match=r"'toy' has fewer than 14 different subnets: 13\. Lower --configs"):
        draw_distinct(space, 14, 0)
