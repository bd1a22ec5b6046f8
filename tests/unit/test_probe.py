"""Looks inside a supernet: what they find follows from tensors computed by hand, and they leave nothing behind."""

from __future__ import annotations

import pytest
import torch

from qnas.nn.elastic import ElasticConv
from qnas.nn.folding import folding_policy
from qnas.probe import Probe
from qnas.testing.parts import toy_images, toy_supernet


@pytest.fixture
def supernet():
    net = toy_supernet()
    net.train()
    net.activate(net.space.highest())
    return net


def layers(supernet):
    return {m.name: m for m in supernet.modules() if isinstance(m, ElasticConv)}


def look(supernet):
    found = {}
    with Probe(supernet).watching(found), torch.no_grad():
        supernet(toy_images())
    return found


def hooks(supernet):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in supernet.modules())


def test_shares_beyond_the_grid_are_counted_by_hand(supernet):
    """The grid's steps are 1/8: 4 bits reach from -1 to 7/8; what rounds to an end is not clipped."""
    weight = layers(supernet)["middle"].weight
    with torch.no_grad():
        weight.zero_()
        weight[0, 0, 0, :4] = torch.tensor([0.93, 0.95, -1.05, -1.07])
    found = look(supernet)
    assert found["clip_ratios"]["middle.weight"] == pytest.approx(2 / weight.numel())
    assert found["steps"]["middle.weight"] == 0.125


def test_what_a_relu_cuts_does_not_count(supernet):
    seen = {}
    middle = layers(supernet)["middle"]
    middle.input.quantizer.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    found = look(supernet)
    assert (seen["x"] < 0).any() or (seen["x"] == 0).any()
    above = (seen["x"] > 15 / 8 + 1 / 16).float().mean()
    assert found["clip_ratios"]["middle.activation"] == pytest.approx(float(above), abs=1e-6)


def test_a_subnet_shows_its_own_layers_alone(supernet):
    supernet.activate(supernet.space.lowest())  # without the layer in the middle
    found = look(supernet)
    assert set(found["bn_std"]) == {"stem"}
    assert not any(name.startswith("middle") for name in (*found["steps"], *found["clip_ratios"]))


def test_without_quantizers_there_are_deviations_alone(supernet):
    supernet.set_mode("float")
    found = look(supernet)
    assert found["steps"] == found["clip_ratios"] == {}
    assert set(found["bn_std"]) == {"stem", "middle"}


def test_folded_normalisation_is_left_out(supernet):
    for layer in layers(supernet).values():
        layer.folding = folding_policy("batch")
    found = look(supernet)
    assert found["bn_std"] == {}
    assert "middle.weight" in found["steps"]


def test_nothing_is_left_behind_even_after_an_error(supernet):
    before = hooks(supernet)
    look(supernet)
    with pytest.raises(RuntimeError), Probe(supernet).watching({}):
        supernet(torch.zeros(1, 5, 8, 8))  # the wrong number of channels
    assert hooks(supernet) == before


def test_a_look_changes_no_answer(supernet):
    with torch.no_grad():
        want = supernet(toy_images())
    with Probe(supernet).watching({}), torch.no_grad():
        assert torch.equal(supernet(toy_images()), want)


def test_gradient_norms_are_those_of_the_weights_that_have_one(supernet):
    supernet.activate(supernet.space.lowest())
    supernet(toy_images()).square().sum().backward()
    found = Probe(supernet).gradient_norms()
    assert set(found) == {"stem", "classifier"}
    for name, norm in found.items():
        assert norm == pytest.approx(float(layers(supernet)[name].weight.grad.double().norm()), rel=1e-5)
    supernet.zero_grad(set_to_none=True)
    assert Probe(supernet).gradient_norms() == {}
