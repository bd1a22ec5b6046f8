"""Residual blocks: the shortcut without parameters, and what is on which grid."""

from __future__ import annotations

import pytest
import torch

from qnas.layers import LayerSpec
from qnas.nn.active import ActiveSubnet
from qnas.nn.residual import ElasticPad, ResidualBlock
from qnas.nn.subnet import pad_shortcut


def pad_of(in_channels, out_channels, largest=(16, 32)):
    pad = ElasticPad("a", "b", *largest, stride=2)
    layers = {"a": LayerSpec("a", "conv", in_channels, 0), "b": LayerSpec("b", "conv", 0, out_channels)}
    pad.activate(ActiveSubnet({}, layers, {}))
    return pad


def test_the_widest_shortcut_is_that_of_the_usual_implementation():
    """``F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))`` (akamaster/pytorch_resnet_cifar10)."""
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    want = torch.zeros(2, 32, 5, 5)
    want[:, 8:24] = x[:, :, ::2, ::2]
    for shortcut in (pad_of(16, 32), pad_of(16, 32).extract()):
        assert torch.equal(shortcut(x), want)


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "front"), [(16, 24, 8), (8, 32, 8), (16, 16, 0), (12, 16, 4), (8, 24, 8)]
)
def test_a_channel_meets_the_same_channel_wherever_there_is_room(in_channels, out_channels, front):
    x = torch.randn(1, in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    y = pad_of(in_channels, out_channels)(x)
    assert y.shape == (1, out_channels, 2, 2)
    assert torch.equal(y[:, front : front + in_channels], x[:, :, ::2, ::2])
    assert y.abs().sum() == x[:, :, ::2, ::2].abs().sum()


def test_the_shortcut_keeps_the_memory_layout():
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    assert pad_shortcut(x, 2, 4, 4).is_contiguous(memory_format=torch.channels_last)


def test_sums_are_not_negative_and_branches_are_on_8_bits(make_family, make_supernet):
    for name, last in (("resnet20", "conv2"), ("resnet18", "conv2"), ("resnet50", "conv3")):
        supernet = make_supernet(make_family(name))
        space = supernet.space
        layers = {layer.name: layer for layer in space.layers(space.highest())}
        for block in (m for m in supernet.modules() if isinstance(m, ResidualBlock)):
            assert block.add.relu
            assert not block.add.quantizer.site.signed
            assert block.layers[-1].output.quantizer.site.signed
            for suffix in ("add", f"{last}.out"):
                assert layers[f"{block.name}.{suffix}"].a_bits == 8
            if f"{block.name}.downsample" in layers:
                assert layers[f"{block.name}.downsample.out"].a_bits == 8
                assert layers[f"{block.name}.downsample"].kind == "conv"


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="identity"):
        ResidualBlock(None, "block", [], stride=1, shortcut="none")
