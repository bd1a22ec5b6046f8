"""The sampler monte-carlo: targets met, averages spread, errors at once."""

from __future__ import annotations

import gc
import time
import weakref

import numpy as np
import pytest

from qnas.costs import CostTable
from qnas.errors import ConfigError, ConstraintError
from qnas.rng import generator
from qnas.space import QuantScheme
from qnas.testing import toy_space
from qnas_plugins.samplers.monte_carlo import MonteCarloSampler
from tests.chains import Chain, averages

BITS = tuple(range(2, 9))


@pytest.fixture(scope="module")
def resnet20(registry):
    cls = registry.load("space", "resnet20")
    return cls(QuantScheme(BITS, BITS, "layer"), image_size=16, num_classes=10, elastic=False, width=0.5)


def costs_of(space, samples, weighting="layers"):
    return CostTable(space, averages(weighting)).costs(space.indices(samples))


@pytest.mark.parametrize("weighting", ["layers", "parameters", "macs", "features"])
def test_targets_are_met(resnet20, weighting):
    sampler = MonteCarloSampler(w_target=2.5, a_target=7, weighting=weighting, tolerance=0.2)
    found = costs_of(resnet20, sampler.draw(resnet20, generator(0, "test"), 50), weighting)
    assert np.abs(found["w"] - 2.5).max() <= 0.2 + 1e-9
    assert np.abs(found["a"] - 7).max() <= 0.2 + 1e-9
    one = MonteCarloSampler(w_target=3, a_target="any", weighting=weighting)
    found = costs_of(resnet20, one.draw(resnet20, generator(0, "test"), 200), weighting)
    assert np.abs(found["w"] - 3).max() <= 0.25 + 1e-9
    assert found["a"].mean() == pytest.approx(5, abs=0.2)  # uniform


def test_averages_are_spread_evenly_and_quickly(resnet20):
    sampler = MonteCarloSampler()
    start = time.process_time()
    samples = sampler.draw(resnet20, generator(0, "test"), 5000)
    assert time.process_time() - start < 10  # about one second on an idle machine
    found = costs_of(resnet20, samples)
    for values in found.values():
        counts, _ = np.histogram(values, bins=np.linspace(2, 8, 7))
        assert counts.min() > 0.7 * 5000 / 6
    assert abs(np.corrcoef(found["w"], found["a"])[0, 1]) < 0.1
    uniform, _ = np.histogram(
        costs_of(resnet20, [resnet20.sample(r) for r in resnet20.draw(generator(0, "u"), 5000)])["w"],
        bins=np.linspace(2, 8, 7),
    )
    assert uniform[[0, -1]].max() < 10  # which uniform sampling leaves out


def test_draws_depend_on_the_generator_alone(resnet20):
    first, second = MonteCarloSampler(), MonteCarloSampler()
    second.draw(resnet20, generator(5, "test"), 7)
    assert first.draw(resnet20, generator(0, "test"), 9) == second.draw(resnet20, generator(0, "test"), 9)
    source = first._source(resnet20)
    assert first._source(resnet20) is source
    view = resnet20.restrict(w_bits=[2, 3])
    assert all(
        s[k.label] <= 3 for s in first.draw(view, generator(0, "test"), 9) for k in view.knobs if "w_b" in k.label
    )
    assert first._source(view) is not source
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None  # the pool of a space that is not drawn from any more is given up


def test_averages_that_the_space_does_not_have_take_the_nearest():
    space = Chain(granularity="network")  # all weights at 2, 3 or 5 bits
    found = costs_of(space, MonteCarloSampler().draw(space, generator(0, "test"), 120))
    assert set(found["w"]) == {2, 3, 5}
    assert set(found["a"]) == {2, 4, 6}
    toy = toy_space()  # its one layer may be left out, and there is no average then
    assert {sample["depth"] for sample in MonteCarloSampler().draw(toy, generator(0, "test"), 30)} == {1}
    fixed = Chain(w_bits=(4,), a_bits=(4,), depths=(1, 2))
    assert len(MonteCarloSampler().draw(fixed, generator(0, "test"), 30)) == 30


def test_wrong_targets_and_options_are_refused(resnet20):
    with pytest.raises(ConstraintError, match="goes from 2 to 8"):
        MonteCarloSampler(w_target=9).draw(resnet20, generator(0, "test"), 2)
    with pytest.raises(ConstraintError, match="the closest has"):
        MonteCarloSampler(w_target=4).draw(Chain(granularity="network"), generator(0, "test"), 2)
    with pytest.raises(ConstraintError, match="none of 20 draws"):
        MonteCarloSampler(w_target=3.003, tolerance=0.004, weighting="macs", tries=20).draw(
            resnet20, generator(0, "test"), 40
        )
    for options in ({"w_target": "low"}, {"a_target": 0}, {"weighting": "mass"}, {"tolerance": 0}, {"tries": 0}):
        with pytest.raises(ConfigError, match="Sampler monte-carlo"):
            MonteCarloSampler(**options)
