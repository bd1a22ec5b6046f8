"""The vectorised table of costs against sums over single layers, on spaces made to be awkward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qnas import costs
from qnas.costs import CostTable, cost_of
from qnas.layers import LayerSpec
from qnas.rng import generator
from qnas.space import Condition, Knob, QuantScheme, SearchSpace, Site


class Awkward(SearchSpace):
    """Sites that depend on nothing, on one another's knobs in other orders, on inactive knobs, or are never there."""

    def __init__(self, scheme: QuantScheme) -> None:
        deep = (Condition("depth", (2,)),)
        knobs = [Knob("depth", (1, 2)), Knob("width", (8, 12, 16)), Knob("kernel", (3, 5), active_if=deep)]

        def first(sample):
            return LayerSpec("first", "conv", 3, int(sample["width"]), 3, out_size=4)

        def second(sample):
            if sample["depth"] == 1:
                return None
            width = int(sample["width"])
            return LayerSpec("second", "conv", width, width, int(sample["kernel"]), groups=width, out_size=4)

        def fixed(spec, **bits):
            return Site(spec.name, (), lambda sample: spec, **bits)

        sites = [
            fixed(LayerSpec("alone", "conv", 1, 3, 3, out_size=5), w_bits=8, a_bits=8),
            Site("first", ("width",), first, "stage1", "stage1.a"),
            Site("second", ("kernel", "width", "depth"), second, "stage1", "stage1.b", active_if=deep),
            Site("half", ("width", "depth"), second_half, "stage1", "stage1.b", w_bits=8),
            Site("never", ("depth",), lambda sample: None, w_bits=8, a_bits=8),
        ]
        super().__init__("awkward", knobs, sites, scheme, image_size=8, num_classes=3)

    def build(self, context):
        raise NotImplementedError


def second_half(sample):
    return LayerSpec("half", "linear", int(sample["width"]) * int(sample["depth"]), 3)


class Odd:
    """Not linear in anything, and different by name and kind: what a table of a third party may be."""

    direction = "min"
    unit = "units"

    def layer_cost(self, layer):
        base = 100 if layer.kind == "linear" else 7
        return base + len(layer.name) + (layer.macs * layer.w_bits) % 13 + layer.a_bits * layer.a_bits // layer.groups


class One:
    direction = "min"
    unit = "layers"

    def layer_cost(self, layer):
        return 1


MODELS = {"odd": Odd(), "layers": One()}


@pytest.mark.parametrize("granularity", ["network", "stage", "block", "layer"])
@pytest.mark.parametrize("bits", [((2, 3, 4), (2, 8)), ((4,), (4,))])
def test_every_sample_costs_what_its_layers_do(granularity, bits):
    space = Awkward(QuantScheme(*bits, granularity))
    table = CostTable(space, MODELS)
    sizes = [len(knob.choices) for knob in space.knobs]
    rows = np.indices(sizes).reshape(len(sizes), -1).T  # all of them
    many = table.costs(rows)
    for i, row in enumerate(rows):
        layers = space.layers(space.sample(row))
        assert {n: int(many[n][i]) for n in MODELS} == {n: cost_of(layers, m) for n, m in MODELS.items()}
    assert all(costs.dtype == np.int64 for costs in many.values())


def test_a_model_is_asked_once_and_not_for_samples():
    calls = []

    class Counting(One):
        def layer_cost(self, layer):
            calls.append(layer.name)
            return layer.macs

    space = Awkward(QuantScheme((2, 4), (2, 4), "layer"))
    table = CostTable(space, {"macs": Counting()})
    assert sorted(calls) == sorted(site.name for site in space.sites)
    for _ in range(3):
        table.costs(space.draw(generator(0, "costs"), 10))
    assert len(calls) == len(space.sites)


def test_chunks_do_not_show(monkeypatch):
    space = Awkward(QuantScheme((2, 4), (2, 4), "layer"))
    table = CostTable(space, MODELS)
    rows = space.draw(generator(0, "costs"), 53)
    whole = table.costs(rows)
    monkeypatch.setattr(costs, "_CHUNK", 10)
    for name, values in table.costs(rows).items():
        np.testing.assert_array_equal(values, whole[name])
    assert {name: values.shape for name, values in table.costs(rows[:0]).items()} == {"odd": (0,), "layers": (0,)}
    assert list(table.costs(rows, ["layers"])) == ["layers"]


def test_a_view_with_fewer_bits_costs_the_same():
    space = Awkward(QuantScheme((2, 3, 4), (2, 8), "layer"))
    view = space.restrict(w_bits=[3, 4])
    rows = view.draw(generator(0, "costs"), 40)
    found = CostTable(view, MODELS).costs(rows)["odd"]
    for row, cost in zip(rows, found, strict=True):
        assert cost == cost_of(space.layers(view.sample(row)), MODELS["odd"])


def test_whole_numbers_and_fractions_keep_their_kind():
    class Half(One):
        def layer_cost(self, layer):
            return layer.macs / 2

    space = Awkward(QuantScheme())
    rows = space.draw(generator(0, "costs"), 5)
    found = CostTable(space, {"half": Half(), "layers": One()}).costs(rows)
    assert found["half"].dtype == np.float64
    want = [sum(layer.macs for layer in space.layers(space.sample(row))) / 2 for row in rows]
    np.testing.assert_array_equal(found["half"], want)


class Mean(One):
    """An average: of kernel sizes, by MACs; layers of other kinds than convolutions do not count."""

    def layer_cost(self, layer):
        return self.layer_weight(layer) * layer.kernel_size

    def layer_weight(self, layer):
        return layer.macs if layer.kind == "conv" else 0 * layer.macs


@pytest.mark.parametrize("granularity", ["network", "layer"])
def test_an_average_is_one_division_of_two_sums(granularity):
    space = Awkward(QuantScheme((2, 4), (2, 8), granularity))
    table = CostTable(space, {"mean": Mean(), "layers": One()})
    rows = space.draw(generator(0, "costs"), 60)
    found = table.costs(rows)
    assert list(found) == ["mean", "layers"]
    for row, mean, layers in zip(rows, found["mean"], found["layers"], strict=True):
        specs = [layer for layer in space.layers(space.sample(row)) if layer.kind == "conv"]
        assert mean == sum(s.macs * s.kernel_size for s in specs) / sum(s.macs for s in specs)
        assert layers == len(space.layers(space.sample(row)))


def test_costs_on_request_are_left_out_until_they_are_asked_for():
    class Hidden(One):
        on_request = True

    models = {"layers": One(), "hidden": Hidden(), "other": Hidden()}
    assert list(costs.usual(models)) == ["layers"]
    assert list(costs.usual(models, ["hidden", "accuracy"])) == ["layers", "hidden"]


class Blocks:
    """A number for every block's shape; of the activations' bits it sees whether there are 4 or more."""

    direction = "min"
    unit = "ms"
    on_request = True
    offset = 7
    divisor = 8

    def __init__(self):
        self.asked = []

    def block_cost(self, block, layers):
        self.asked.append(block)
        return sum(Odd().layer_cost(layer) for layer in self.seen(layers)) * len(layers) + len(block)

    def seen(self, layers):
        return [replace(layer, w_bits=8, a_bits=self.bits_seen("a_bits", layer.a_bits)) for layer in layers]

    def bits_seen(self, role, bits):
        return 8 if role == "w_bits" or bits >= 4 else 3


@pytest.mark.parametrize("granularity", ["network", "stage", "layer"])
def test_a_cost_a_block_is_that_of_its_layers_together(granularity):
    space = Awkward(QuantScheme((2, 3, 4), (2, 3, 4, 8), granularity))
    model = Blocks()
    table = CostTable(space, {"blocks": model, **MODELS})
    asked = len(model.asked)
    rows = space.draw(generator(0, "costs"), 300)
    found = table.costs(rows)
    for i, row in enumerate(rows):
        layers = {layer.name: layer for layer in space.layers(space.sample(row))}
        parts = {"alone": ["alone"], "stage1.a": ["first"], "stage1.b": ["second", "half"], "never": ["never"]}
        sums = [
            Blocks().block_cost(block, [layers[name] for name in names if name in layers])
            for block, names in parts.items()
            if any(name in layers for name in names)
        ]
        assert found["blocks"][i] == (sum(sums) + 7) / 8
        assert costs.sample_costs(space, {"blocks": model}, space.sample(row))["blocks"] == found["blocks"][i]
    assert asked < 1 + 3 * 2 + 2 * 3 * 2 * 4 + 1  # bits that are not told apart are not asked apart
    np.testing.assert_array_equal(found["odd"], CostTable(space, MODELS).costs(rows)["odd"])


def test_effects_of_a_cost_a_block_are_in_its_unit():
    space = Awkward(QuantScheme((4,), (2, 8), "layer"))
    table = CostTable(space, {"blocks": Blocks()})
    sizes = [len(knob.choices) for knob in space.knobs]
    rows = np.indices(sizes).reshape(len(sizes), -1).T
    found, costs_of = table.effects("blocks"), table.costs(rows)["blocks"]
    for position, size in enumerate(sizes):
        for choice in range(size):
            moved = costs_of[rows[:, position] == choice].mean() - costs_of.mean()
            assert found[position][choice] == pytest.approx(moved)
    weights = [space.position[knob.label] for knob in space.knobs if knob.role == "w_bits"]
    assert not set(weights) & set(table.depends_on("blocks"))
