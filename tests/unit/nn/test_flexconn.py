"""Skips past layers that change channels and maps: against a loop over every number, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.layers import LayerSpec
from qnas.nn.active import ActiveSubnet
from qnas.nn.flexconn import Flexconn, FoldChannels, copy_channels, fold_channels
from qnas.rng import generator


def flexconn(in_channels, out_channels, stride):
    skip = Flexconn("first", "last", stride)
    layers = {"first": LayerSpec("first", "conv", in_channels, 1), "last": LayerSpec("last", "conv", 1, out_channels)}
    skip.activate(ActiveSubnet({}, layers, {}))
    return skip


def mixing(in_channels, out_channels):
    """Return ``[O, I]``: which input channels make up each output channel, one by one."""
    matrix = np.zeros((out_channels, in_channels))
    for j in range(max(in_channels, out_channels)):
        matrix[j % out_channels, j % in_channels] = 1
    return matrix


def averaging(size, stride):
    """Return ``[ceil(size / stride), size]``: what each pixel of a row weighs in each average."""
    matrix = np.zeros((-(-size // stride), size))
    for i in range(len(matrix)):
        window = range(i * stride, min(size, (i + 1) * stride))
        matrix[i, list(window)] = 1 / len(window)
    return matrix


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.data())
def test_it_is_the_product_of_three_matrices(in_channels, out_channels, stride, height, width, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((2, in_channels, height, width))
    matrices = (mixing(in_channels, out_channels), averaging(height, stride), averaging(width, stride))
    want = np.einsum("nchw,oc,ph,qw->nopq", x, *matrices)
    skip = flexconn(in_channels, out_channels, stride)
    images = torch.from_numpy(x).requires_grad_()
    y = skip(images)
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-12, atol=1e-12)
    assert torch.equal(skip.extract()(images), y)
    assert (
        y.shape[2:] == F.conv2d(images, torch.zeros(1, in_channels, 3, 3).double(), stride=stride, padding=1).shape[2:]
    )
    g = rng.standard_normal(want.shape)
    y.backward(torch.from_numpy(g))
    back = np.einsum("nopq,oc,ph,qw->nchw", g, *matrices)
    np.testing.assert_allclose(images.grad.numpy(), back, rtol=1e-12, atol=1e-12)


def test_a_short_last_part_is_filled_with_zeros_and_a_last_copy_is_cut_off():
    x = torch.arange(1.0, 6).reshape(1, 5, 1, 1)
    assert fold_channels(x, 2).flatten().tolist() == [1 + 3 + 5, 2 + 4]
    assert copy_channels(x[:, :2], 5).flatten().tolist() == [1, 2, 1, 2, 1]


def test_the_input_itself_is_added_where_nothing_changes():
    x = torch.randn(1, 4, 3, 3)
    skip = flexconn(4, 4, 1)
    assert skip(x) is x
    assert len(skip.extract()) == 0


def test_the_memory_layout_is_kept():
    x = torch.randn(2, 24, 6, 6).contiguous(memory_format=torch.channels_last)
    for channels, stride in ((16, 1), (40, 1), (24, 2), (8, 2)):
        assert flexconn(24, channels, stride)(x).is_contiguous(memory_format=torch.channels_last)


def skips(module):
    return {m.first: m for m in module.modules() if isinstance(m, Flexconn)}


@pytest.mark.parametrize("name", ["basq-mbv1", "basq-mbv2", "basq-resnet18"])
def test_elastic_widths_take_prefixes_and_their_grids_are_where_something_is_computed(make_family, make_supernet, name):
    options = {"expansions": (1, 6)} if name == "basq-mbv2" else {}
    supernet = make_supernet(make_family(name, width=0.5, **options), mode="float")
    space = supernet.space
    seen = set()
    for sample in (space.lowest(), space.highest(), space.sample(space.draw(generator(0, "skips"), 1)[0])):
        supernet.activate(sample)
        layers = {layer.name: layer for layer in supernet.layers}
        for site, skip in skips(supernet).items():
            if not skip.active:
                continue
            layer = layers[site]
            computes = layer.stride > 1 or layer.out_channels < layer.in_channels
            assert (f"{site}.skip" in layers) == computes
            if computes:
                assert layers[f"{site}.skip"].in_channels == min(layer.in_channels, layer.out_channels)
            seen.add((layer.stride, np.sign(layer.out_channels - layer.in_channels)))
            x = torch.randn(1, layer.in_channels, 5, 5)
            assert torch.equal(skip(x), flexconn(layer.in_channels, layer.out_channels, layer.stride)(x))
    assert {sign for _, sign in seen} == ({-1, 0, 1} if name == "basq-mbv2" else {0, 1})


def test_sums_and_averages_are_put_on_a_grid_and_copies_stay_on_it(make_family, make_supernet):
    supernet = make_supernet(make_family("basq-mbv2"))
    subnet = supernet.extract(supernet.space.highest())
    layers = {layer.spec.name: layer.spec for layer in subnet.subnet_layers()}
    for site, skip in skips(supernet).items():
        if skip.active:
            kinds = [type(part).__name__ for part in skip.extract()]
            spec = layers[site]
            if spec.stride > 1:
                assert kinds == ["AvgPool2d", "GridQuantize"]
            elif spec.out_channels < spec.in_channels:
                assert kinds == ["FoldChannels", "GridQuantize"]
            else:
                assert kinds == (["SelectChannels"] if spec.out_channels > spec.in_channels else [])
    assert any(isinstance(m, FoldChannels) for m in subnet.modules())
