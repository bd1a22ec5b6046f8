"""The min-max quantizer against Jacob et al. 2018 in float64."""

from __future__ import annotations

import pytest
import torch

from qnas.errors import PluginError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas.plugins import load_registry

MINMAX = load_registry().load("quantizer", "minmax")


def make(role="weight", signed=True, **options):
    return MINMAX(QuantizerSite("layer", role, (2, 4, 8), 8, signed), **options)


def ranges(quantizer):
    """Return the range of each bit-width."""
    buffers = dict(quantizer.named_buffers())
    return {bits: (float(buffers[f"low_{bits}"]), float(buffers[f"high_{bits}"])) for bits in quantizer.site.bits}


def values(*shape, seed=0, shift=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + shift


def reference(x, bits, asymmetric, signed):
    """Jacob et al., Eq. 1 and Sec. 3: scale and zero point of the range, in float64."""
    v = x.double()
    low, high = min(float(v.min()), 0.0), max(float(v.max()), 0.0)
    levels = 2**bits - 1
    if asymmetric:
        scale = (high - low) / levels
        zero = min(max(round(-low / scale), 0), levels)
        return ((v / scale).round() + zero).clamp(0, levels).sub(zero) * scale
    if not signed:
        return (v / (high / levels)).round().clamp(0, levels) * (high / levels)
    qn, qp = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = max(high / qp, low / qn)
    return (v / scale).round().clamp(qn, qp) * scale


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("asymmetric", "signed"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("shift", [-0.7, 0.0, 0.7])
def test_it_rounds_as_the_paper_says(bits, asymmetric, signed, shift):
    x = values(6, 8, 5, 5, shift=shift)
    x = x if signed else x.abs()
    quantizer = make("activation", signed, asymmetric=asymmetric).eval()
    quantizer.start(x, SiteContext(bits, 8))
    want = reference(x, bits, asymmetric, signed)
    got = quantizer(x, SiteContext(bits, 8))
    near_tie = (got.double() - want).abs() > 1e-4
    assert near_tie.double().mean() < 1e-3
    torch.testing.assert_close(got.double()[~near_tie], want[~near_tie], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_ranges_a_channel_are_those_of_the_channels_alone(asymmetric):
    w = values(8, 4, 3, 3) * torch.arange(1, 9).reshape(-1, 1, 1, 1)
    whole = make(asymmetric=asymmetric, per_channel=True).eval()
    whole.start(w, SiteContext(4, 8))
    got = whole(w, SiteContext(4, 8))
    for channel in range(8):
        alone = make(asymmetric=asymmetric).eval()
        alone.start(w[channel : channel + 1], SiteContext(4, 8))
        torch.testing.assert_close(got[channel], alone(w[channel : channel + 1], SiteContext(4, 8))[0])
    torch.testing.assert_close(whole(w[:3], SiteContext(4, 3)), got[:3])


@pytest.mark.parametrize("asymmetric", [False, True])
def test_zero_is_exact(asymmetric):
    x = values(8, 4, 3, 3, shift=0.4)
    quantizer = make(asymmetric=asymmetric, per_channel=True).eval()
    quantizer.start(x, SiteContext(4, 8))
    assert quantizer(torch.zeros(8, 4, 3, 3), SiteContext(4, 8)).abs().max() == 0


def test_the_gradient_passes_inside_the_range_and_not_outside():
    quantizer = make("activation", signed=False).eval()
    quantizer.set_range(4, torch.tensor(0.0), torch.tensor(1.5))
    x = torch.tensor([-0.5, 0.2, 1.4, 1.6], requires_grad=True)
    quantizer(x, SiteContext(4, 4)).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]


def test_ranges_follow_the_data_in_training_and_not_in_evaluation():
    quantizer = make("activation", asymmetric=True, momentum=0.25)
    quantizer.start(torch.tensor([[-1.0, 2.0]]), SiteContext(4, 2))
    quantizer(torch.tensor([[-3.0, 6.0]]), SiteContext(4, 2))
    assert ranges(quantizer) == dict.fromkeys((2, 4, 8), (-1.5, 3.0))  # -1 + 0.25 * (-3 + 1), 2 + 0.25 * (6 - 2)
    quantizer.eval()(torch.tensor([[-30.0, 60.0]]), SiteContext(4, 2))
    assert ranges(quantizer) == dict.fromkeys((2, 4, 8), (-1.5, 3.0))


def test_a_calibrated_range_stays():
    quantizer = make("activation", signed=False)
    quantizer.start(torch.tensor([[0.0, 2.0]]), SiteContext(4, 2))
    quantizer.set_range(4, torch.tensor(0.0), torch.tensor(1.0))
    quantizer(torch.tensor([[0.0, 9.0]]), SiteContext(8, 2))
    high = {bits: value for bits, (_, value) in ranges(quantizer).items()}
    assert high[4] == 1.0
    assert high[2] == high[8] == pytest.approx(2.7)


def test_activations_have_no_range_a_channel():
    with pytest.raises(PluginError, match="weights only"):
        make("activation", per_channel=True)


def test_several_processes_share_the_extremes():
    class Two:
        size = 2

        def minimum(self, x):
            return x - 1

        def maximum(self, x):
            return x + 1

    quantizer = make("activation", asymmetric=True, momentum=1.0)
    quantizer.start(torch.tensor([[-1.0, 2.0]]), SiteContext(4, 2))
    quantizer.ranks = Two()
    quantizer(torch.tensor([[-1.0, 2.0]]), SiteContext(4, 2))
    assert ranges(quantizer)[2] == (-2.0, 3.0)


@pytest.mark.parametrize("calibrated", [False, True])
def test_an_inherited_range_follows_the_data_unless_it_was_given(calibrated):
    quantizer = make("activation", signed=False)
    quantizer.start(torch.tensor([[0.0, 1.5]]), SiteContext(4, 2))
    if calibrated:
        quantizer.set_range(4, torch.tensor(0.0), torch.tensor(1.5))
    quantizer.inherit(4, 2)
    assert ranges(quantizer)[2] == (0.0, pytest.approx(1.2))  # 3 steps of 4 times 1.5 / 15
    quantizer(torch.tensor([[0.0, 3.2]]), SiteContext(2, 2))
    assert ranges(quantizer)[2] == (0.0, pytest.approx(1.2 if calibrated else 1.4))
