"""Conditional marginals against those of every sample; draws that meet their targets."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.costs import CostTable
from qnas.distribution import Window, expected_draws
from qnas.errors import ConstraintError
from qnas.monte_carlo import MonteCarlo
from qnas.rng import generator
from qnas.space import QuantScheme
from tests.chains import Chain, averages, every_sample

WINDOWS = (Window(high=2.4), Window.around(3.0, 0.4), Window(low=4.6))


def exact(space, rows, inside):
    """Return the marginals of the samples inside, ``[num_knobs, most choices]``."""
    most = max(len(knob.choices) for knob in space.knobs)
    return np.stack([np.bincount(rows[inside, knob], minlength=most) / inside.sum() for knob in range(rows.shape[1])])


@pytest.mark.parametrize("depths", [(2,), (1, 2)])
@pytest.mark.parametrize("weighting", ["layers", "parameters", "macs", "features"])
def test_marginals_are_those_of_all_samples_that_meet_the_targets(weighting, depths):
    space = Chain(depths=depths)
    table = CostTable(space, averages(weighting))
    rows = every_sample(space)
    costs = table.costs(rows)
    roles = np.array([knob.role for knob in space.knobs])
    sampler = MonteCarlo(table, ("w", "a"))
    for first in WINDOWS:
        for second in (WINDOWS[0], Window(3, 5)):
            found = sampler.marginals({"w": first, "a": second})
            held = {"w_bits": first.holds(costs["w"]), "a_bits": second.holds(costs["a"])}
            held["architecture"] = held["w_bits"] & held["a_bits"]  # on both together
            for role, inside in held.items():
                want = exact(space, rows, inside)[roles == role]
                np.testing.assert_allclose(found[roles == role], want, atol=0.03)
    np.testing.assert_allclose(sampler.marginals({"w": Window(), "a": Window()}).sum(1), 1)


def test_a_pool_counts_as_uniform_samples_do(registry):
    """In ResNet-20, against plain uniform samples in the middle and the exact chance of a low average."""
    cls = registry.load("space", "resnet20")
    space = cls(QuantScheme(tuple(range(2, 9)), (4,), "layer"), image_size=16, num_classes=10, elastic=False)
    table = CostTable(space, averages("layers"))
    pool = MonteCarlo(table, ("w",)).pool(("w",))
    weights = np.exp(pool.log_weights)
    assert weights.mean() == pytest.approx(1, abs=0.05)  # E[uniform / mixture] under the mixture
    for window in (Window(high=2.5), Window(high=3), Window.around(5, 0.25), Window(low=7.5)):
        estimate = weights[window.holds(pool.costs["w"])].sum() / len(weights)
        assert estimate * expected_draws(table, {"w": window}) == pytest.approx(1, abs=0.15)
    uniform = space.draw(generator(0, "uniform"), 40_000)
    inside = Window.around(5, 0.25).holds(table.costs(uniform, ["w"])["w"])
    found = pool.marginals(pool.inside({"w": Window.around(5, 0.25)}))
    np.testing.assert_allclose(found, exact(space, uniform, inside), atol=0.06)


def test_draws_meet_their_targets_and_are_functions_of_the_generator():
    space = Chain(depths=(1, 2))
    table = CostTable(space, averages("macs"))
    targets = [{"w": Window.around(w, 0.3), "a": Window.around(a, 0.5)} for w in (2.2, 3.4, 4.9) for a in (2, 4, 6)]
    drawn = MonteCarlo(table, ("w", "a")).draw(generator(0, "draws"), targets * 20)
    assert drawn.met.all()
    costs = table.costs(drawn.rows)
    for i, target in enumerate(targets * 20):
        assert all(bool(window.holds(costs[name][i])) for name, window in target.items())
    sampler = MonteCarlo(table, ("w", "a"))
    sampler.draw(generator(9, "draws"), targets[::-1])  # what was drawn before changes nothing
    again = sampler.draw(generator(0, "draws"), targets * 20)
    np.testing.assert_array_equal(again.rows, drawn.rows)
    np.testing.assert_array_equal(again.draws, drawn.draws)
    assert len(sampler.draw(generator(0, "draws"), []).rows) == 0


def test_low_averages_take_few_draws(registry):
    cls = registry.load("space", "resnet18")
    bits = tuple(range(2, 9))
    space = cls(QuantScheme(bits, bits, "layer"), image_size=224, num_classes=1000, elastic=False)
    table = CostTable(space, averages("layers"))
    window = Window(high=3)
    assert expected_draws(table, {"w": window}) > 300_000
    sampler = MonteCarlo(table, ("w",))
    drawn = sampler.draw(generator(0, "low"), [{"w": window}] * 200)
    assert drawn.met.all()
    sizes = [len(knob.choices) for knob in space.knobs]
    marginals = [row[:size] for row, size in zip(sampler.marginals({"w": window}), sizes, strict=True)]
    expected = expected_draws(table, {"w": window}, marginals)
    assert expected < 5
    assert drawn.draws.mean() == pytest.approx(expected, rel=0.3)


def test_a_narrow_target_gets_a_pool_of_its_own():
    bits = tuple(range(2, 9))
    space = Chain(w_bits=bits, a_bits=bits)
    table = CostTable(space, averages("parameters"))
    rows = every_sample(space)
    costs = table.costs(rows, ["w", "a"])
    value = np.unique(costs["w"])[7]
    window = Window(value, value)
    sampler = MonteCarlo(table, ("w",), size=200)
    assert len(sampler.pool(("w",)).inside({"w": window})) < 30
    found = sampler.marginals({"w": window})
    want = exact(space, rows, window.holds(costs["w"]))
    roles = np.array([knob.role for knob in space.knobs])
    np.testing.assert_allclose(found[roles == "w_bits"], want[roles == "w_bits"], atol=0.1)


def test_targets_that_nothing_meets_are_refused_at_once():
    sampler = MonteCarlo(CostTable(Chain(), averages("layers")), ("w",))
    with pytest.raises(ConstraintError, match=r"w from 0.75 to 1.25: it goes from 2 to 5. Choose"):
        sampler.marginals({"w": Window.around(1, 0.25)})
    network = MonteCarlo(CostTable(Chain(granularity="network"), averages("layers")), ("w",))
    with pytest.raises(ConstraintError, match=r"the closest has w=(3|5). Choose another target"):
        network.marginals({"w": Window.around(4, 0.5)})


def test_costs_that_multiply_have_conditional_marginals_too():
    class BitOps:
        direction, unit = "min", "BitOPs"

        def layer_cost(self, layer):
            return layer.macs * layer.w_bits * layer.a_bits

    space = Chain(depths=(1, 2))
    table = CostTable(space, {"bitops": BitOps(), **averages("layers")})
    rows = every_sample(space)
    costs = table.costs(rows)
    limit = float(np.quantile(costs["bitops"], 0.02))
    windows = {"bitops": Window(high=limit), "w": Window(low=3)}
    found = MonteCarlo(table, ("bitops", "w")).marginals(windows)
    held = windows["bitops"].holds(costs["bitops"])
    both = held & windows["w"].holds(costs["w"])
    for knob, spec in enumerate(space.knobs):
        want = exact(space, rows, held if spec.role == "a_bits" else both)[knob]
        np.testing.assert_allclose(found[knob], want, atol=0.05)
