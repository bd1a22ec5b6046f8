"""The fast path of small depthwise maps against the plain convolution, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qnas.nn.conv import convolve


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "kernel"), [(1, 3), (1, 7), (2, 3), (2, 5), (2, 7), (3, 5), (4, 5), (4, 7), (5, 3)])
def test_small_depthwise_maps(size, kernel, stride):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, size, size, generator=rng, dtype=torch.float64)
    w = torch.randn(4, 1, kernel, kernel, generator=rng, dtype=torch.float64)
    results = []
    for function in (convolve, lambda x, w, b, s, g: F.conv2d(x, w, b, s, kernel // 2, 1, g)):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = function(a, b, None, stride, 4)
        (y**3).sum().backward()
        results.append((y.detach(), a.grad, b.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("kernel", "padding", "groups"), [(4, 1, 1), (3, 0, 2), (2, 0, 4), (3, 2, 1), (3, None, 2)])
def test_any_padding_and_groups(kernel, padding, groups):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 7, 7, generator=rng)
    w = torch.randn(8, 4 // groups, kernel, kernel, generator=rng)
    b = torch.randn(8, generator=rng)
    want = F.conv2d(x, w, b, 2, kernel // 2 if padding is None else padding, 1, groups)
    torch.testing.assert_close(convolve(x, w, b, 2, groups, padding), want)


@pytest.mark.parametrize("padding", [None, 0, 1])
@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (4, 4), (16, 1)])
def test_strided_convolutions_of_single_pixels(channels, groups, padding):
    """Computed on the pixels that they look at: the same values and gradients, in any layout."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 7, 7, generator=rng, dtype=torch.float64)
    w = torch.randn(8, channels // groups, 1, 1, generator=rng, dtype=torch.float64)
    results = []
    for function in (convolve, lambda x, w, b, s, g, p: F.conv2d(x, w, b, s, p or 0, 1, g)):
        a = x.clone().requires_grad_()
        b = w.clone().requires_grad_()
        y = function(a, b, None, 2, groups, padding)
        (y**3).sum().backward()
        results.append((y.detach(), a.grad, b.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
