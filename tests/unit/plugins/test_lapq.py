"""LAPQ: its parabola, its joint refinement, and that each step makes the loss of a real net smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas.plugins import load_registry
from qnas.space import QuantScheme
from qnas.testing.parts import ToySpace, toy_images, toy_supernet
from qnas_plugins.calibrators.lapq import parabola_minimum, refine
from qnas_plugins.calibrators.ranges import Seen, norm_ranges

REGISTRY = load_registry()
IMAGES = [toy_images(48), toy_images(48).flip(3)]


@pytest.fixture(scope="module")
def net():
    multiquant = REGISTRY.load("quantizer", "multiquant")
    supernet = toy_supernet(ToySpace(QuantScheme((2, 4, 8), (2, 4, 8), "layer")), weight=multiquant, act=multiquant)
    supernet.train()
    labels = []
    with torch.no_grad():  # the answers of the float net, so that less rounding means less loss
        for parameter in supernet.parts[-1].parameters():
            parameter.mul_(30)  # so sure of its answers that the loss can grow
        supernet.set_mode("float")
        for images in IMAGES:
            labels.append(supernet(images).argmax(1))
        supernet.set_mode("quantize")

    def loss(number, outputs):
        return F.cross_entropy(outputs, labels[number])

    return supernet, loss


def set_by(name, net, **options):
    """Let a calibrator set all ranges; return the mean loss at each bit-width."""
    supernet, loss = net
    supernet.activate(supernet.space.highest())
    REGISTRY.load("calibrator", name)(**options).start(supernet, IMAGES, ("weight", "activation"), loss)
    assert supernet.sample == supernet.space.highest()
    found = {}
    for bits in (2, 4, 8):
        supernet.activate({knob.label: bits for knob in supernet.space.knobs if "bits" in knob.role} | fixed(supernet))
        with torch.no_grad():
            found[bits] = float(np.mean([float(loss(i, supernet(images))) for i, images in enumerate(IMAGES)]))
    return found


def fixed(supernet):
    return {k: v for k, v in supernet.space.highest().items() if not k.endswith("_bits")}


def test_ranges_of_a_norm_are_the_best_of_all_fractions():
    quantizer = REGISTRY.load("quantizer", "multiquant")(QuantizerSite("s", "weight", (3,), 8, signed=True))
    values = torch.distributions.Laplace(0.2, 1.0).icdf(torch.linspace(0.001, 0.999, 4000))
    ctx, seen = SiteContext(3, 8), Seen.of_weights(values.reshape(8, 500), per_channel=False)
    norms = (1.0, 2.0, 4.0)
    for (low, high), p in zip(norm_ranges(quantizer, ctx, seen, norms), norms, strict=True):
        errors = []
        v = values.double().numpy()
        for i in range(1, 101):
            bottom, top = v.min() * i / 100, v.max() * i / 100
            step = (top - bottom) / 7
            z = round(-bottom / step)
            rounded = (np.clip(np.rint(v / step) + z, 0, 7) - z) * step
            errors.append(np.sum(np.abs(rounded - v) ** p))
        best = (1 + int(np.argmin(errors))) / 100
        assert float(high) / v.max() == pytest.approx(best, abs=0.0101)
        assert float(low) / v.min() == pytest.approx(best, abs=0.0101)


def test_the_norms_order_the_ranges():
    """Higher norms punish what is clipped more: wider ranges."""
    quantizer = REGISTRY.load("quantizer", "multiquant")(QuantizerSite("s", "weight", (2,), 8, signed=True))
    values = torch.distributions.Laplace(0.0, 1.0).icdf(torch.linspace(0.001, 0.999, 4000))
    seen = Seen.of_weights(values.reshape(8, 500), per_channel=False)
    highs = [float(high) for _, high in norm_ranges(quantizer, SiteContext(2, 8), seen, (1.0, 2.0, 3.0, 4.0))]
    assert highs == sorted(highs)
    assert highs[0] < highs[-1]


def test_each_step_makes_the_loss_smaller(net):
    whole = set_by("minmax", net)
    layerwise = set_by("lapq", net, norms=[2.0], rounds=0)
    mse = set_by("mse", net)
    parabola = set_by("lapq", net, rounds=0)
    joint = set_by("lapq", net, norms=[2.0], rounds=1, line=3)
    for bits in (2, 4):
        assert layerwise[bits] == pytest.approx(mse[bits])
        assert parabola[bits] <= layerwise[bits] + 1e-6
        assert joint[bits] < layerwise[bits]
    assert layerwise[2] < whole[2]


def test_it_is_the_same_again(net):
    supernet, _ = net
    states = []
    for _ in range(2):
        set_by("lapq", net, norms=[2.0], rounds=1, line=2)
        states.append({name: tensor.clone() for name, tensor in supernet.state_dict().items()})
    for name, tensor in states[0].items():
        if "quantizer" in name:
            assert torch.equal(tensor, states[1][name]), name


def test_a_parabola_has_its_minimum_between_the_ends():
    norms = [2, 2.5, 3, 3.5, 4]
    assert parabola_minimum(norms, [(p - 2.8) ** 2 + 1 for p in norms]) == pytest.approx(2.8)
    assert parabola_minimum([2, 3, 4], [4, 3, 2.5]) is None  # it falls on
    assert parabola_minimum([2, 3, 4], [1, 3, 1]) is None  # it opens downwards
    assert parabola_minimum([2, 3], [1, 2]) is None
    assert parabola_minimum([2, 3, 4], [1, float("inf"), 1]) is None


def test_refinement_finds_the_minimum_of_a_coupled_function():
    wanted = np.array([0.7, 1.4, 1.1])

    def function(f):
        d = np.log2(f) - np.log2(wanted)
        return float(d @ np.array([[2, 0.5, 0], [0.5, 1, 0.3], [0, 0.3, 3]]) @ d)

    found = refine(function, 3, rounds=6, line=20, start=function(np.ones(3)))
    np.testing.assert_allclose(found, wanted, atol=0.05)


def test_refinement_never_returns_worse_than_its_start():
    assert (refine(lambda f: 1.0 + float(np.sum((f - 1) ** 2)), 2, 1, 4, start=1.0) == 1).all()


@pytest.mark.parametrize("options", [{"norms": []}, {"norms": [3.0, 2.0]}, {"rounds": -1}, {"line": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match="lapq"):
        REGISTRY.load("calibrator", "lapq")(**options)


@pytest.mark.parametrize("name", ["lapq", "mse"])
@pytest.mark.parametrize("sharing", ["conv", "kernel"])
def test_steps_that_are_shared_are_calibrated(name, sharing):
    """One step for all bit-widths is that of the highest; one for each kernel size is found by the kernel."""
    lsq = REGISTRY.load("quantizer", "lsq")

    def make(site):
        return lsq(site, sharing=sharing if site.role == "weight" or sharing == "conv" else "bits")

    supernet = toy_supernet(ToySpace(QuantScheme((2, 4), (2, 4), "layer")), weight=make, act=make)
    supernet.train()
    supernet.activate(supernet.space.highest())
    options = {"norms": [2.0], "rounds": 0} if name == "lapq" else {}
    weight = supernet.parts[1].active_weight().detach()
    REGISTRY.load("calibrator", name)(**options).start(
        supernet, IMAGES, ("weight", "activation"), lambda i, outputs: outputs.detach().square().mean()
    )
    quantizer, ctx = supernet.parts[1].weight_quantizer, SiteContext(4, 8, kernel=5)
    error = ((quantizer(weight, ctx) - weight) ** 2).sum().item()
    for factor in (0.8, 1.25):
        other = lsq(quantizer.site)
        other.log_steps["4"].data = (quantizer.step(ctx) * factor).log()
        assert error < ((other(weight, ctx) - weight) ** 2).sum().item()
