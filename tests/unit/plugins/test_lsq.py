"""LSQ against an independent float64 reference of the published formulas, gradients included."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.errors import ConfigError, PluginError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas_plugins.quantizers import lsq_kernel
from qnas_plugins.quantizers.lsq import LSQ, _LSQFunction, lsq_fake_quantize

SIGNED = [(-2, 1), (-8, 7), (-128, 127)]
UNSIGNED = [(0, 3), (0, 15), (0, 255)]


def reference(v: np.ndarray, s: float, qn: int, qp: int, grad: np.ndarray, g: float):
    """Esser et al., Eq. 1 (v-bar), 2 (v-hat), 3 (gradient to s) and 5 (gradient to v), value by value."""
    out, grad_v, grad_s = np.empty_like(v), np.empty_like(v), 0.0
    for i, value in np.ndenumerate(v):
        ratio = value / s
        clipped = min(max(ratio, qn), qp)
        out[i] = float(np.rint(clipped)) * s
        inside = qn < ratio < qp
        grad_v[i] = grad[i] if inside else 0.0
        if inside:
            grad_s += grad[i] * (-ratio + float(np.rint(ratio)))
        else:
            grad_s += grad[i] * (qn if ratio <= qn else qp)
    return out, grad_v, grad_s * g


def edge_values(s: float, qn: int, qp: int) -> np.ndarray:
    """Values inside, at, just beside and beyond both bounds, and in the half step beyond each bound."""
    around = [b + d for b in (qn, qp) for d in (-3.0, -0.75, -0.5, -0.3, -0.01, 0.0, 0.01, 0.3, 0.5, 0.75, 3.0)]
    inside = np.linspace(qn, qp, 13)[1:-1] + 0.21
    return np.array([*around, *inside, 0.0]) * s


@pytest.mark.parametrize(("qn", "qp"), SIGNED + UNSIGNED)
@pytest.mark.parametrize("s", [0.25, 0.5])
def test_forward_and_gradients_equal_the_published_formulas(qn, qp, s):
    v = edge_values(s, qn, qp)  # s is a power of two: v / s is exact, also at the bounds
    grad = np.random.default_rng(0).normal(size=v.shape)
    g = 1 / math.sqrt(v.size * qp)
    x = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    out = lsq_fake_quantize(x, step, qn, qp, g)
    out.backward(torch.tensor(grad))
    want, want_v, want_s = reference(v, s, qn, qp, grad, g)
    np.testing.assert_array_equal(out.detach().numpy(), want)
    np.testing.assert_array_equal(x.grad.numpy(), want_v)
    np.testing.assert_allclose(step.grad.item(), want_s, rtol=1e-12)


@pytest.mark.parametrize(("qn", "qp"), [(-128, 127), (0, 255), (-8, 7)])
def test_step_gradient_in_float32_does_not_cancel(qn, qp):
    rng = np.random.default_rng(1)
    v, grad = rng.normal(size=(32, 16, 9, 9)) * 2, rng.normal(size=(32, 16, 9, 9)) + 0.5
    s = 4.0 / (qp - qn)
    x = torch.tensor(v, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    step = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    lsq_fake_quantize(x, step, qn, qp, 1.0).backward(torch.tensor(grad, dtype=torch.float32))
    v32, s32 = x.detach().double().numpy(), step.item()
    _, _, want = reference(v32, s32, qn, qp, grad.astype(np.float32).astype(np.float64), 1.0)
    assert step.grad.item() == pytest.approx(want, rel=2e-3)


def test_gradients_differ_from_masks_on_the_rounded_value():
    # In the half step beyond a bound the rounded value is still on the grid; the published mask says outside.
    x = torch.tensor([7.3], dtype=torch.float64, requires_grad=True)
    step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    lsq_fake_quantize(x, step, -8, 7, 1.0).sum().backward()
    assert x.grad.item() == 0.0
    assert step.grad.item() == 7.0


def test_one_step_a_channel_equals_channels_apart():
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(4, 3, 3, 3, generator=rng, dtype=torch.float64)
    steps = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).reshape(4, 1, 1, 1).requires_grad_()
    grad = torch.randn(4, 3, 3, 3, generator=rng, dtype=torch.float64)
    together = lsq_fake_quantize(w, steps, -8, 7, 0.5)
    together.backward(grad)
    for c in range(4):
        step = steps.detach()[c, 0, 0, 0].clone().requires_grad_()
        alone = lsq_fake_quantize(w[c], step, -8, 7, 0.5)
        alone.backward(grad[c])
        torch.testing.assert_close(together[c], alone)
        torch.testing.assert_close(steps.grad[c, 0, 0, 0], step.grad)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    bits=st.sampled_from([2, 4, 8]),
    signed=st.booleans(),
)
def test_quantizing_twice_changes_nothing_and_grids_agree(values, bits, signed):
    site = QuantizerSite("s", "activation", (2, 4, 8), 1, signed)
    quantizer = LSQ(site)
    x = torch.tensor(values)[None]
    ctx = SiteContext(bits, 1)
    quantizer.start(x, ctx)
    once = quantizer(x, ctx).detach()
    torch.testing.assert_close(quantizer(once, ctx).detach(), once, rtol=0, atol=0)
    grid = quantizer.export(ctx)
    torch.testing.assert_close(grid.quantize(x), once, rtol=0, atol=0)
    torch.testing.assert_close(grid.quantize(x), grid.decode(grid.encode(x)), rtol=0, atol=0)


def test_start_is_data_driven_for_every_bit_width(weight_site):
    quantizer = LSQ(weight_site)
    w = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer.start(w, SiteContext(4, 8))
    for bits, qp in ((2, 1), (4, 7), (8, 127)):
        want = 2 * w.abs().mean() / math.sqrt(qp)
        torch.testing.assert_close(quantizer.step(SiteContext(bits, 8)).detach(), want)


def test_gradient_scale_counts_active_weights_and_features(weight_site, act_site):
    for site, x, count in (
        (weight_site, torch.randn(8, 4, 3, 3), 8 * 4 * 9),
        (act_site, torch.rand(5, 8, 6, 6), 8 * 36),  # of one image: the batch does not count
    ):
        quantizer = LSQ(site)
        ctx = SiteContext(4, 8)
        quantizer.start(x, ctx)
        _, qp = quantizer.range(4)
        step = quantizer.step(ctx).detach().double()
        quantizer(x, ctx).sum().backward()
        _, _, raw = reference(x.double().numpy(), step.item(), *quantizer.range(4), np.ones(x.shape), 1.0)
        # The parameter is log s: its gradient is s times that of s.
        want = raw / math.sqrt(count * qp) * step.item()
        assert quantizer.log_steps["4"].grad.item() == pytest.approx(want, rel=1e-3)
        assert quantizer.log_steps["2"].grad is None  # an unsampled bit-width keeps no gradient


def test_unsigned_quantizer_absorbs_the_relu_gradient_included(act_site):
    quantizer = LSQ(act_site)
    ctx = SiteContext(4, 8)
    x = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    quantizer.start(x.relu(), ctx)
    results = []
    for relu in (False, True):
        quantizer.zero_grad()
        leaf = x.clone().requires_grad_()
        out = quantizer(leaf.relu() if relu else leaf, ctx)
        (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        results.append((out.detach(), leaf.grad, quantizer.log_steps["4"].grad.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("negative", ["signed", "zero-point"])
def test_values_that_can_be_negative(negative):
    site = QuantizerSite("s", "activation", (3, 8), 4, signed=True)
    quantizer = LSQ(site, negative=negative)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).clamp(min=-0.4)
    ctx = SiteContext(3, 4)
    quantizer.start(x, ctx)
    qn, qp = quantizer.range(3)
    assert qn <= 0 <= qp
    assert qp - qn == 7
    if negative == "zero-point":
        assert qn > -4  # fewer levels below zero than a symmetric range would waste there
    grid = quantizer.export(ctx)
    assert grid.qmin == 0
    assert grid.decode(torch.tensor([grid.zero_point])).item() == 0.0
    torch.testing.assert_close(grid.quantize(x), quantizer(x, ctx).detach(), rtol=0, atol=0)


def test_zero_points_survive_a_checkpoint():
    site = QuantizerSite("s", "activation", (3, 8), 4, signed=True)
    quantizer, other = LSQ(site, negative="zero-point"), LSQ(site, negative="zero-point")
    quantizer.start(torch.linspace(-0.4, 2, 50)[None], SiteContext(3, 4))
    other.load_state_dict(quantizer.state_dict())
    assert other.range(3) == quantizer.range(3) != (0, 7)


@pytest.mark.parametrize("sharing", ["bits", "conv"])
def test_state_goes_on_where_lower_bits_come_in(sharing):
    few, many = (
        LSQ(QuantizerSite("s", "activation", bits, 4, signed=True), negative="zero-point", sharing=sharing)
        for bits in ((4,), (2, 3, 4))
    )
    x = torch.linspace(-2, 2, 52).reshape(13, 4)
    few.start(x, SiteContext(4, 4))
    found = many.load_state_dict(few.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) == {f"zero_point_{b}" for b in (2, 3)} | (
        set() if sharing == "conv" else {f"log_steps.{b}" for b in (2, 3)}
    )
    assert torch.equal(few(x, SiteContext(4, 4)), many(x, SiteContext(4, 4)))
    many.inherit(4, 2)
    grid, source = many.export(SiteContext(2, 4)), few.export(SiteContext(4, 4))
    assert grid.zero_point == source.zero_point // 4 > 0
    torch.testing.assert_close(grid.scale, 4 * source.scale)


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_one_step_for_all_bits_is_that_of_inheritance(role):
    site = QuantizerSite("s", role, (2, 3, 4), 4, True, kernels=(3, 5) if role == "weight" else ())
    options = {"negative": "zero-point"} if role == "activation" else {}
    quantizer = LSQ(site, sharing="conv", **options)
    x = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer.start(x, SiteContext(4, 4, kernel=3))
    apart = LSQ(site, **options)
    apart.start(x, SiteContext(4, 4, kernel=3))
    assert len(list(quantizer.parameters())) == 1
    s = quantizer.step(SiteContext(4, 4, kernel=3))
    torch.testing.assert_close(s, apart.step(SiteContext(4, 4, kernel=3)))
    for bits in (3, 2):
        torch.testing.assert_close(quantizer.step(SiteContext(bits, 4, kernel=5)), s * 2 ** (4 - bits))
        apart.inherit(4, bits)
        grid, inherited = quantizer.export(SiteContext(bits, 4)), apart.export(SiteContext(bits, 4))
        if role == "weight":
            torch.testing.assert_close(grid.quantize(x), inherited.quantize(x))
        ctx = SiteContext(bits, 4, kernel=3)
        for one in (quantizer, apart):
            one.zero_grad()
            one(x, ctx).sum().backward()
        (shared,) = quantizer.parameters()
        own = apart.log_steps[str(bits)]
        if role == "weight":
            torch.testing.assert_close(shared.grad, own.grad)


def test_a_step_a_kernel_moves_with_its_kernel_alone():
    site = QuantizerSite("s", "weight", (2, 4), 8, True, kernels=(3, 5))
    quantizer = LSQ(site, sharing="kernel")
    w = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    quantizer.start(w, SiteContext(4, 8, kernel=5))
    assert set(quantizer.log_steps) == {"2_3", "2_5", "4_3", "4_5"}
    quantizer(w[..., 1:4, 1:4], SiteContext(4, 8, kernel=3)).square().sum().backward()
    moved = {name for name, parameter in quantizer.log_steps.items() if parameter.grad is not None}
    assert moved == {"4_3"}
    with torch.no_grad():
        quantizer.log_steps["4_3"] += 1
    quantizer.inherit(4, 2)
    for kernel in (3, 5):
        steps = [quantizer.step(SiteContext(bits, 8, kernel=kernel)) for bits in (2, 4)]
        torch.testing.assert_close(steps[0], 4 * steps[1])
    with pytest.raises(ConfigError, match="sharing"):
        LSQ(site, sharing="layer")


def test_tensor_of_zeros_leaves_a_finite_grid(weight_site):
    quantizer = LSQ(weight_site, per_channel=True)
    quantizer.start(torch.zeros(8, 2, 3, 3), SiteContext(4, 8))
    out = quantizer(torch.zeros(8, 2, 3, 3), SiteContext(4, 8))
    assert torch.isfinite(out).all()
    assert (quantizer.step(SiteContext(4, 8)) > 0).all()


def test_bfloat16_is_computed_in_float32(act_site):
    quantizer = LSQ(act_site)
    x = torch.rand(4, 8)
    ctx = SiteContext(8, 8)
    quantizer.start(x, ctx)
    out = quantizer(x.bfloat16(), ctx)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, quantizer(x.bfloat16().float(), ctx).bfloat16())


def test_what_it_cannot_do_is_refused(act_site):
    with pytest.raises(PluginError, match="weights only"):
        LSQ(act_site, per_channel=True)
    with pytest.raises(ConfigError, match="zero-point"):
        LSQ(act_site, negative="offset")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("qn", "qp"), [(0, 15), (-2, 1), (-128, 127)])
def test_compiled_kernel_equals_the_eager_path(layout, qn, qp):
    kernels = lsq_kernel.load()
    if kernels is None:
        pytest.skip("no C compiler on this machine")
    rng = torch.Generator().manual_seed(0)
    v = (torch.randn(7, 5, 9, 11, generator=rng) * 3).contiguous(memory_format=layout)
    v[0, 0, 0, :3] = torch.tensor([0.0, float(qp), 1e30])
    grad = torch.randn(v.shape, generator=rng)
    results = []
    for used in (None, kernels):
        x = v.clone(memory_format=torch.preserve_format).requires_grad_()
        step = torch.tensor(0.37, requires_grad=True)
        out = _LSQFunction.apply(x, step, 0.37, qn, qp, 0.01, used)
        out.backward(grad)
        results.append((out.detach(), x.grad, step.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=0)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=1e-5, atol=1e-6)


def test_compiled_kernel_leaves_alone_what_it_cannot_serve(act_site):
    site = dataclasses.replace(act_site, compile=True)
    quantizer = LSQ(site)
    ctx = SiteContext(4, 8)
    x = torch.rand(4, 8, 6, 6)
    quantizer.start(x, ctx)
    for odd in (x.double(), x[:, :, ::2], x.expand(2, 4, 8, 6, 6)[0]):
        torch.testing.assert_close(quantizer(odd, ctx).float(), quantizer.export(ctx).quantize(odd.float()))


def test_without_a_compiler_there_is_no_kernel(monkeypatch):
    monkeypatch.setattr(lsq_kernel.shutil, "which", lambda name: None)
    assert lsq_kernel.load.__wrapped__() is None
    monkeypatch.setattr(lsq_kernel.shutil, "which", lambda name: "/bin/false")
    assert lsq_kernel.load.__wrapped__() is None


def test_a_narrow_range_is_symmetric(weight_site):
    quantizer = LSQ(weight_site, narrow_range=True)
    assert quantizer.range(2) == (-1, 1)  # ternary
    assert quantizer.range(4) == (-7, 7)
    w = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    ctx = SiteContext(2, 8)
    quantizer.start(w, ctx)
    assert set(quantizer.export(ctx).encode(w).unique().tolist()) == {-1, 0, 1}
    with pytest.raises(PluginError, match="for weights only"):
        LSQ(QuantizerSite("s", "activation", (2,), 4, True), narrow_range=True)
