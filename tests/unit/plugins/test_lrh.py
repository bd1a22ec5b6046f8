"""Lowest-random-highest co-training."""

from __future__ import annotations

from qnas.rng import generator
from qnas_plugins.samplers.lrh import LowestRandomHighest


def test_highest_random_ones_lowest(make_space):
    space = make_space(granularity="layer", w_bits=(2, 4, 8), a_bits=(3, 8))
    samples = LowestRandomHighest().draw(space, generator(0, "t"), 5)
    assert len(samples) == 5
    assert samples[0] == space.highest()
    roles = {knob.label: knob.role for knob in space.knobs}
    for label, value in samples[-1].items():
        if roles[label] == "w_bits":
            assert value == 2
        elif roles[label] == "a_bits":
            assert value == 3
        else:
            assert value == space.highest()[label]
    layers = {layer.name: layer for layer in space.layers(samples[-1])}
    assert {layers[n].w_bits for n in ("stem", "classifier") if n in layers} == {8}  # first and last layer
    middle = samples[1:-1]
    assert len({space.key(s) for s in middle}) == 3
    assert len({v for s in middle for k, v in s.items() if roles[k] == "w_bits"}) == 3
    assert samples == LowestRandomHighest().draw(space, generator(0, "t"), 5)


def test_one_subnet_is_the_highest(make_space):
    space = make_space()
    assert LowestRandomHighest().draw(space, generator(0, "t"), 1) == [space.highest()]
    assert len(LowestRandomHighest().draw(space, generator(0, "t"), 2)) == 2
