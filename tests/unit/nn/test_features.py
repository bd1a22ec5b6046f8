"""The features of a subnet: where they are taken, and that supernet, subnet and gradient agree on them."""

from __future__ import annotations

import pytest
import torch

from qnas.deploy.integers import integer_layer
from qnas.deploy.rounding import round_biases
from qnas.deploy.trace import trace
from qnas.errors import ConfigError
from qnas.nn.blocks import InvertedResidual
from qnas.nn.elastic import ElasticConv
from qnas.nn.features import Feature, FloatHead, backbone, feature_subnet, find_taps
from qnas.nn.supernet import Supernet
from qnas.space import QuantScheme
from tests.conftest import random_images
from tests.own_networks import CLASSES, NETWORKS, make

ALL = (2, 4, 8, 16, 32)
STRIDES = {  # of the small form for 16 pixels
    "mbv3": (2, 4, 8),
    "mbv1": (2, 4, 8, 16),
    "mbv2": (2, 4, 8),
    "resnet18": (2, 4, 8),
    "resnet20": (2, 4),
    "resnet50": (2, 4, 8),
    "basq-mbv1": (2, 4, 8, 16),
    "basq-mbv2": (2, 4, 8),
    "basq-resnet18": (2, 4, 8),
    "basq-resnet20": (2, 4),
}


@pytest.fixture
def make_net(make_space, make_family, make_supernet):
    def make_one(name, mode="quantize"):
        space = make_space(granularity="layer") if name == "mbv3" else make_family(name)
        return make_supernet(space, mode=mode)

    return make_one


@pytest.mark.parametrize("mode", ["quantize", "float"])
@pytest.mark.parametrize("name", STRIDES)
def test_features_of_a_supernet_are_those_of_its_subnet(make_net, name, mode):
    net = make_net(name, mode).eval()
    for sample in (net.space.highest(), net.space.lowest()):
        net.activate(sample)
        taps = find_taps(net, ALL)
        assert tuple(tap.stride for tap in taps) == STRIDES[name]
        body = backbone(net, taps)
        images = random_images(4, 32)
        with torch.no_grad():
            maps = body(images)
            subnet = feature_subnet(net.extract(sample).eval(), taps)
            twin = body.extract().eval()
            for x, y, z, feature in zip(maps, subnet(images), twin(images), body.describe(32), strict=True):
                assert feature == Feature(32 // x.shape[-1], x.shape[1], x.shape[-1])
                torch.testing.assert_close(y, x)
                torch.testing.assert_close(z, x)


@pytest.mark.parametrize("mode", ["quantize", "float"])
@pytest.mark.parametrize(("name", "options"), [("resnet20", {}), ("basq-resnet20", {"block": "fracbnn"}), ("mbv1", {})])
def test_skips_in_float_are_not_put_on_the_grid_of_a_feature(make_family, make_supernet, name, options, mode):
    net = make_supernet(make_family(name, conv_only=True, **options), mode=mode).eval()
    sample = net.space.highest()
    net.activate(sample)
    taps = find_taps(net, ALL)
    images = random_images(4, 16)
    with torch.no_grad():
        subnet = feature_subnet(net.extract(sample).eval(), taps)
        for x, y in zip(backbone(net, taps)(images), subnet(images), strict=True):
            torch.testing.assert_close(y, x)


@pytest.mark.parametrize("name", STRIDES)
def test_features_are_on_a_grid_and_end_before_the_head(make_net, name):
    net = make_net(name)
    net.activate(net.space.highest())
    taps = find_taps(net, ALL)
    subnet = feature_subnet(net.extract(net.space.highest()), taps).fold()
    steps = trace(subnet)
    assert all(steps.grids[value] is not None for value in steps.outputs)
    names = {layer.spec.name for _, layer in steps.layers()}
    assert names == {layer.name for layer in subnet.layers if layer.kind != "quantize"}
    assert not names & {"head", "features", "classifier", "pool"}
    described = {layer.name for layer in net.layers if layer.kind != "quantize" and ".se." not in layer.name}
    assert described - names <= {"head", "features", "classifier"}


def test_a_block_that_hands_on_its_value_before_the_relu_is_tapped_behind_it(make_net):
    net = make_net("mbv1").eval()
    net.activate(net.space.highest())
    taps = find_taps(net, (4,))
    assert taps[0].reader == taps[0].value  # the next block, whose input site has the ReLU
    with torch.no_grad():
        (x,) = backbone(net, taps)(random_images(2, 16))
    assert x.min() == 0
    assert len(x.unique()) <= 2**4


def test_gradients_reach_weights_and_quantizers_as_far_as_the_last_feature(make_net):
    net = make_net("mbv3").train()
    net.activate(net.space.highest())
    body = backbone(net, find_taps(net))
    sum(x.square().mean() for x in body(random_images(8, 16))).backward()
    inside = {id(p) for p in body.parameters()}
    layers = [m for m in body.modules() if isinstance(m, ElasticConv)]
    assert layers
    for layer in layers:
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0, layer.name
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.weight_quantizer.parameters())
    assert all(p.grad is None for p in net.parameters() if id(p) not in inside)


def test_looking_for_features_changes_nothing(make_net):
    net = make_net("resnet18").train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.activate(net.space.highest())
    backbone(net, find_taps(net)).describe(24)
    assert all(module.training for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_blocks_of_the_subnet_alone_are_in_it(make_net):
    net = make_net("mbv3")
    blocks = {}
    for sample in (net.space.lowest(), net.space.highest()):
        net.activate(sample)
        body = backbone(net, find_taps(net))
        blocks[len(body.parts)] = sum(isinstance(part, InvertedResidual) for part in body.parts)
    assert sorted(blocks.values()) == [3, 5]  # one block a stage, or two, after the first


def test_strides_that_no_subnet_has_are_refused(make_net):
    net = make_net("resnet20")
    with pytest.raises(ConfigError, match=r"no features at strides 16, 32: its maps are at 1, 2, 4\. Take a space"):
        find_taps(net, (16, 32))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_users_network_has_features(registry, make_supernet, name):
    space = registry.load("space", "module")(
        QuantScheme((4, 8), (4, 8), "layer"), image_size=16, num_classes=CLASSES, image_channels=1,
        source="tests.own_networks:make", factory=make, factory_options={"kind": name},
    )  # fmt: skip
    net = make_supernet(space).eval()
    net.activate(space.highest())
    taps = find_taps(net, ALL)
    body = backbone(net, taps)
    images = random_images(4, 16)
    subnet = feature_subnet(net.extract(space.highest()).eval(), taps)
    with torch.no_grad():
        for x, y, tap in zip(body(images), subnet(images), taps, strict=True):
            assert 0 < x.shape[-1] <= 16 // tap.stride  # less where convolutions are not padded
            torch.testing.assert_close(y, x)
    steps = trace(subnet.fold())
    assert all(steps.grids[value] is not None for value in steps.outputs)


class Mean(FloatHead):
    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Linear(channels, 2)

    def forward(self, features):
        return self.layer(features[-1].mean((2, 3)))


def test_a_head_on_features_is_a_supernet_that_is_extracted_and_rounded(make_net):
    net = make_net("resnet20").eval()
    sample = net.space.highest()
    net.activate(sample)
    body = backbone(net, find_taps(net))
    whole = Supernet(net.space.pin(sample).sized(24), [body, Mean(body.describe(24)[-1].channels)])
    whole.set_mode("quantize")
    subnet = whole.eval().extract(sample)
    assert subnet.resolution == 24
    with torch.no_grad():
        want = whole(random_images(3, 24))
        torch.testing.assert_close(subnet.eval()(random_images(3, 24)), want)
        before = [layer.bias.clone() for layer in subnet.fold().subnet_layers()]
        rounded = round_biases(subnet)
    steps = trace(rounded)
    assert steps.steps[-1].kind == "head"
    assert [island.reason for island in steps.islands()] == ["the head is in float"]
    assert any(not torch.equal(b, layer.bias) for b, (_, layer) in zip(before, steps.layers(), strict=True))
    for step, layer in steps.layers():  # biases are where integer kernels put them
        grid = steps.input_grid(step)
        torch.testing.assert_close(layer.bias, integer_layer(layer, grid).bias(grid), rtol=0, atol=0)
    assert not any(p.requires_grad for p in rounded.parameters())
