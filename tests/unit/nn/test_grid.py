"""Affine grids and tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.nn.activation import FixedGrid, GridQuantize
from qnas.nn.grid import AffineGrid, CodebookGrid, least_squares_scale
from qnas.nn.quantizer import QuantizerSite, SiteContext


@settings(max_examples=50, deadline=None)
@given(
    bits=st.integers(2, 8),
    zero=st.floats(0, 1),
    scale=st.floats(0.001, 10),
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
)
def test_encode_and_decode_are_inverse_on_the_grid(bits, zero, scale, values):
    grid = AffineGrid(torch.tensor(scale), round(zero * (2**bits - 1)), 0, 2**bits - 1)
    codes = torch.arange(2**bits, dtype=torch.int16)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    assert grid.bits == bits
    x = torch.tensor(values)
    assert torch.equal(grid.decode(grid.encode(x)), grid.quantize(x))
    inside = (x >= grid.decode(codes[:1])) & (x <= grid.decode(codes[-1:]))
    assert ((grid.quantize(x) - x).abs()[inside] <= scale / 2 * 1.001).all()


def test_one_scale_a_channel():
    grid = AffineGrid(torch.tensor([0.5, 2.0]), 0, -8, 7, axis=0)
    x = torch.tensor([[1.2, -9.0], [1.2, -99.0]])
    torch.testing.assert_close(grid.quantize(x), torch.tensor([[1.0, -4.0], [2.0, -16.0]]))


def test_table_takes_the_nearest_level():
    grid = CodebookGrid(torch.tensor([-1.0, 0.0, 0.5, 2.0]))
    x = torch.tensor([-3.0, -0.4, 0.3, 1.3, 9.0])
    torch.testing.assert_close(grid.quantize(x), torch.tensor([-1.0, 0.0, 0.5, 2.0, 2.0]))
    assert grid.bits == 2
    torch.testing.assert_close(GridQuantize("s", grid, relu=True)(x), torch.tensor([0.0, 0.0, 0.5, 2.0, 2.0]))


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="outside"):
        AffineGrid(torch.tensor(1.0), 9, 0, 3)
    with pytest.raises(ValueError, match="axis"):
        AffineGrid(torch.ones(3), 0, 0, 3)


def test_pixels_pass_their_own_grid_unchanged():
    from qnas.data import PixelGrid

    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    pixels = PixelGrid.of(images)
    x = pixels.normalise(images)
    site = FixedGrid(QuantizerSite("stem", "activation", (8,), 1, True), pixels.affine())
    torch.testing.assert_close(site(x, SiteContext(8, 1)), x)
    assert torch.equal(pixels.affine().encode(x).reshape(-1), torch.arange(256, dtype=torch.int16))


@pytest.mark.parametrize(("qmin", "qmax"), [(-2, 1), (-8, 7), (0, 3), (-128, 127)])
def test_no_scale_is_better_than_that_of_least_squares(qmin, qmax):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()
    values = values.abs() if qmin == 0 else values

    def error(scale: float) -> float:
        return float(((values / scale).round().clamp(qmin, qmax) * scale - values).square().sum())

    found = float(least_squares_scale(values, qmin, qmax))
    tried = float(values.abs().max()) * np.linspace(0.002, 1.5, 5000)
    assert error(found) <= min(error(scale) for scale in tried) * 1.002


def test_values_that_no_code_can_stand_for_have_no_scale():
    assert float(least_squares_scale(torch.zeros(4), -8, 7)) == 0.0
    assert float(least_squares_scale(-torch.ones(4), 0, 15)) == 0.0
