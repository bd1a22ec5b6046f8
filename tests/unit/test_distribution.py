"""The distribution of averages of uniform samples: against all samples of small spaces, and numbers counted apart."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.costs import CostTable
from qnas.distribution import Window, distribution, expected_draws, probability
from qnas.errors import ConfigError
from qnas.space import QuantScheme
from tests.chains import Chain, averages, every_sample

BITS = tuple(range(2, 9))


@pytest.fixture(scope="module")
def resnet18(registry):
    cls = registry.load("space", "resnet18")
    return cls(QuantScheme(BITS, BITS, "layer"), image_size=224, num_classes=1000, elastic=False)


@pytest.mark.parametrize(
    ("weighting", "window", "draws"),
    [
        ("", Window(high=3), 348_897),
        ("", Window(high=3.25), 30_740),
        ("", Window.around(3, 0.5), 2_468),
        ("_parameters", Window(high=3), 319),
        ("_macs", Window(high=3), 69_942),
        ("_features", Window(high=3), 27_243),
    ],
)
def test_draws_of_resnet18_counted_by_hand(registry, resnet18, weighting, window, draws):
    """The convolution over its 19 convolutions between the first and the last layer, done apart from this project."""
    name = f"avg_w_bits{weighting}"
    table = CostTable(resnet18, {name: registry.load("cost", name)})
    assert round(expected_draws(table, {name: window})) == draws


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize("weighting", ["layers", "parameters", "macs", "features"])
def test_distribution_against_every_sample(weighting, granularity):
    space = Chain(granularity=granularity)
    table = CostTable(space, averages(weighting))
    rows = every_sample(space)
    found = table.costs(rows)
    rng = np.random.default_rng(0)
    skewed = [rng.dirichlet(np.ones(len(knob.choices))) for knob in space.knobs]
    chances = np.prod([skewed[i][rows[:, i]] for i in range(rows.shape[1])], axis=0)
    for name in ("w", "a"):
        values, probabilities = distribution(table, name)
        held = probabilities > 0
        want, counts = np.unique(found[name], return_counts=True)
        np.testing.assert_array_equal(values[held], want)  # to the last bit, so that windows hold the same samples
        np.testing.assert_allclose(probabilities[held], counts / len(rows), rtol=1e-12)
        for window in (Window(high=3), Window(2.5, 3.5), Window(low=4.75)):
            inside = window.holds(found[name])
            assert probability(table, {name: window}) == pytest.approx(inside.mean())
            assert probability(table, {name: window}, skewed) == pytest.approx(chances[inside].sum())
    both = {"w": Window(high=3), "a": Window(low=4)}
    inside = both["w"].holds(found["w"]) & both["a"].holds(found["a"])
    assert expected_draws(table, both) == pytest.approx(1 / inside.mean())
    assert expected_draws(table, {"w": Window(high=1)}) == np.inf


def test_a_coarse_lattice_is_off_by_half_a_step_a_knob():
    space = Chain()
    table = CostTable(space, averages("macs"))
    values, chances = distribution(table, "w")
    rough, fewer = distribution(table, "w", cells=50)
    assert len(rough) <= 50 + len(space.knobs) < len(values)
    step, knobs = rough[1] - rough[0], sum(knob.role == "w_bits" for knob in space.knobs)
    for limit in np.linspace(2, 5, 13):
        low, high = (chances[values <= limit + side * knobs * step / 2].sum() for side in (-1.001, 1.001))
        assert low - 1e-12 <= fewer[rough <= limit].sum() <= high + 1e-12
    assert fewer.sum() == pytest.approx(1)


def test_what_has_no_closed_form_is_refused():
    table = CostTable(Chain(depths=(1, 2)), averages("layers"))
    with pytest.raises(ConfigError, match="elastic=false"):
        expected_draws(table, {"w": Window(high=3)})
    models = {**averages("layers"), "macs": averages("macs")["w"]}
    with pytest.raises(ConfigError, match="changes more than one"):
        expected_draws(CostTable(Chain(), models), {"w": Window(high=3), "macs": Window(high=3)})


@pytest.mark.parametrize("depths", [(2,), (1, 2)])
def test_effects_and_dependence_against_every_sample(depths):
    space = Chain(depths=depths)
    table = CostTable(space, {**averages("macs"), "sum": Sum()})
    rows = every_sample(space)
    found = table.costs(rows)
    for name in ("w", "a", "sum"):
        exact = name == "sum" or len(depths) == 1
        changed = []
        for knob, effect in enumerate(table.effects(name)):
            means = [found[name][rows[:, knob] == k].mean() for k in range(len(space.knobs[knob].choices))]
            if exact:
                np.testing.assert_allclose(effect, np.array(means) - found[name].mean(), rtol=1e-9, atol=1e-9)
            lines = found[name].reshape([len(k.choices) for k in space.knobs])
            if (np.ptp(lines, axis=knob) > 0).any():
                changed.append(knob)
        assert list(table.depends_on(name)) == changed


class Sum:
    direction = "min"
    unit = "units"

    def layer_cost(self, layer):
        return layer.macs * layer.w_bits * layer.a_bits
