"""Range calibrators against independent searches in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas.plugins import load_registry
from qnas.testing.parts import toy_images, toy_supernet
from qnas_plugins.calibrators.ranges import BINS, Seen, entropy_threshold

REGISTRY = load_registry()
MINMAX = REGISTRY.load("quantizer", "minmax")


def calibrator(name, **options):
    return REGISTRY.load("calibrator", name)(**options)


def quantizer(role="activation", signed=False, **options):
    return MINMAX(QuantizerSite("layer", role, (2, 4, 8), 8, signed), **options).eval()


def long_tailed(n=20000, seed=0):
    return torch.distributions.Laplace(0.0, 1.0).icdf(
        torch.rand(n, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)
    )


def histogram(x):
    seen = Seen.empty(*x.aminmax())
    for part in x.split(7000):
        seen.count(part)
    return seen


def test_a_histogram_counts_every_value_of_every_batch():
    x = long_tailed()
    seen = histogram(x)
    assert seen.counts.sum() == len(x)
    assert float(seen.low) == float(x.min())
    assert (seen.points[0] * seen.counts[0]).sum() / len(x) == pytest.approx(float(x.mean()), abs=0.01)


def test_minmax_keeps_everything():
    x = long_tailed()
    low, high = calibrator("minmax").find(quantizer(signed=True), SiteContext(4, 8), histogram(x))
    assert (float(low), float(high)) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_numpys(percentile):
    x = long_tailed()
    seen = histogram(x)
    width = float(seen.high - seen.low) / BINS
    low, high = calibrator("percentile", percentile=percentile).find(quantizer(), SiteContext(4, 8), seen)
    tail = (100 - percentile) / 2
    assert float(low) == pytest.approx(np.percentile(x.numpy(), tail), abs=4 * width)
    assert float(high) == pytest.approx(np.percentile(x.numpy(), 100 - tail), abs=4 * width)
    low, high = calibrator("percentile", percentile=percentile).find(quantizer(), SiteContext(4, 8), histogram(x.abs()))
    assert float(low) == 0.0
    assert float(high) == pytest.approx(np.percentile(x.abs().numpy(), percentile), abs=4 * width)


def test_percentile_of_weights_goes_by_channel():
    w = long_tailed(8 * 400).reshape(8, 400, 1, 1) * torch.arange(1, 9).reshape(-1, 1, 1, 1)
    low, high = calibrator("percentile", percentile=95.0).find(
        quantizer("weight", True, per_channel=True), SiteContext(4, 8), Seen.of_weights(w, True)
    )
    kept = ((w[:, :, 0, 0] >= low[:, None]) & (w[:, :, 0, 0] <= high[:, None])).float().mean(1)
    assert ((kept > 0.94) & (kept < 0.96)).all()


def test_a_percentile_of_100_keeps_everything():
    x = long_tailed()
    low, high = calibrator("percentile", percentile=100.0).find(quantizer(), SiteContext(4, 8), histogram(x))
    assert (float(low), float(high)) == (float(x.min()), float(x.max()))
    with pytest.raises(ConfigError, match="percentile"):
        calibrator("percentile", percentile=0.0)


def squared_error(x, high, bits):
    scale = high / (2**bits - 1)
    return float(((np.clip(np.round(x / scale), 0, 2**bits - 1) * scale - x) ** 2).sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_finds_the_range_that_a_search_in_float64_finds(bits):
    x = long_tailed().abs()
    _, high = calibrator("mse").find(quantizer(), SiteContext(bits, 8), histogram(x))
    exact = x.double().numpy()
    best = min(squared_error(exact, top, bits) for top in np.linspace(0.01, 1, 400) * exact.max())
    assert squared_error(exact, float(high), bits) < 1.01 * best
    if bits < 8:
        assert float(high) < 0.8 * float(x.max())  # few bits: clipping pays


def test_mse_of_weights_goes_by_channel():
    w = long_tailed(8 * 400).reshape(8, 400, 1, 1) * torch.arange(1, 9).reshape(-1, 1, 1, 1)
    _, together = calibrator("mse").find(
        quantizer("weight", True, per_channel=True), SiteContext(2, 8), Seen.of_weights(w, True)
    )
    for channel in range(8):
        alone = Seen.of_weights(w[channel : channel + 1], False)
        _, high = calibrator("mse").find(quantizer("weight", True), SiteContext(2, 1), alone)
        assert float(together[channel]) == pytest.approx(float(high[0]))


def plain_entropy(counts, levels):
    """The algorithm of the slides, bin by bin."""
    best, kept = float("inf"), len(counts)
    for i in range(len(counts), levels - 1, -1):
        p = [float(c) for c in counts[:i]]
        p[-1] += float(sum(counts[i:]))
        groups = [[] for _ in range(levels)]
        for j in range(i):
            groups[j * levels // i].append(j)
        q = [0.0] * i
        for group in groups:
            holders = [j for j in group if counts[j] > 0]
            for j in holders:
                q[j] = sum(float(counts[k]) for k in group) / len(holders)
        sp, sq = sum(p), sum(q)
        divergence = sum(a / sp * np.log((a / sp) / max(b / sq, 1e-12)) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < best:
            best, kept = divergence, i
    return kept


@pytest.mark.parametrize("levels", [4, 16])
def test_entropy_threshold_is_that_of_the_slides(levels):
    rng = np.random.default_rng(0)
    counts = np.histogram(np.abs(rng.laplace(size=4000)), 96)[0].astype(float)
    assert entropy_threshold(counts, levels) == plain_entropy(counts, levels)


def test_entropy_clips_activations_and_leaves_weights():
    x = torch.cat([long_tailed().abs(), torch.tensor([60.0])])
    _, high = calibrator("entropy").find(quantizer(), SiteContext(8, 8), histogram(x))
    assert 2.0 < float(high) < 30.0
    w = long_tailed(800).reshape(8, 100, 1, 1)
    low, high = calibrator("entropy").find(
        quantizer("weight", True, per_channel=True), SiteContext(4, 8), Seen.of_weights(w, True)
    )
    torch.testing.assert_close(high, w.flatten(1).amax(1))
    torch.testing.assert_close(low, w.flatten(1).amin(1))


@pytest.mark.parametrize("name", ["minmax", "percentile", "mse", "entropy"])
def test_ranges_do_not_depend_on_those_before(name):
    """Activations are looked at with weights in float, whatever their quantizers were."""
    supernet = toy_supernet(weight=MINMAX, act=MINMAX)
    supernet.train()
    states = []
    for factor in (1.0, 0.2):
        for quantizer in supernet.quantizers():
            if isinstance(quantizer, MINMAX):
                for bits in quantizer.site.bits:
                    quantizer.set_range(bits, torch.tensor(-factor), torch.tensor(factor))
        supernet.activate(supernet.space.highest())
        calibrator(name).start(supernet, [toy_images(48)], ("weight", "activation"), lambda i, outputs: outputs.sum())
        states.append({key: value.clone() for key, value in supernet.state_dict().items() if "quantizer" in key})
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
