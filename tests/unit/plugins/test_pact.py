"""PACT and BASQ's branches against independent references of Eq. 1 and 2, gradients included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.errors import ConfigError
from qnas.nn.quantizer import QuantizerSite, SiteContext
from qnas.rng import generator
from qnas.space import QuantScheme
from qnas_plugins.quantizers import lsq_kernel
from qnas_plugins.quantizers.basq import BASQ, LAMBDAS
from qnas_plugins.quantizers.lsq import LSQ
from qnas_plugins.quantizers.pact import PACT, clip_fake_quantize


def reference(v: np.ndarray, alpha: float, qn: int, qp: int, grad: np.ndarray):
    """BASQ, Eq. 1, value by value, in float64: ``y = (|x| - |x - alpha| + alpha) / 2``, then rounded to equal steps."""
    out, grad_v, grad_alpha = np.empty_like(v), np.empty_like(v), 0.0
    step = alpha / qp
    for i, x in np.ndenumerate(v):
        if qn == 0:
            y = 0.5 * (abs(x) - abs(x - alpha) + alpha)
            low = 0.0
        else:  # the same on both sides
            y = 0.5 * (abs(x + alpha) - abs(x - alpha))
            low = -alpha
        out[i] = float(np.rint(y / step)) * step
        grad_v[i] = grad[i] if low < x < alpha else 0.0
        if x >= alpha:
            grad_alpha += grad[i]
        elif qn and x <= low:
            grad_alpha -= grad[i]
    return out, grad_v, grad_alpha


def edge_values(alpha: float, qp: int) -> np.ndarray:
    around = [b + d for b in (-alpha, 0.0, alpha) for d in (-2.0, -0.3, -0.01, 0.0, 0.01, 0.3, 2.0)]
    return np.array([*around, *(np.linspace(-alpha, alpha, 23) + 0.03 / qp)])


@pytest.mark.parametrize(("qn", "qp"), [(0, 3), (0, 15), (0, 255), (-1, 1), (-7, 7), (-127, 127)])
def test_forward_and_gradients_equal_the_published_formula(qn, qp):
    alpha = 1.5 * qp / 3  # a step of a half: v / s is exact, also at the bounds
    v = edge_values(alpha, qp)
    grad = np.random.default_rng(0).normal(size=v.shape)
    x = torch.tensor(v, requires_grad=True)
    clip = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    out = clip_fake_quantize(x, clip, alpha, alpha / qp, qn, qp)
    out.backward(torch.tensor(grad))
    want, want_v, want_alpha = reference(v, alpha, qn, qp, grad)
    np.testing.assert_allclose(out.detach().numpy(), want, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(x.grad.numpy(), want_v)
    np.testing.assert_allclose(clip.grad.item(), want_alpha, rtol=1e-12)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("qn", "qp"), [(0, 3), (0, 15), (-7, 7)])
def test_gradients_in_float32_and_of_the_compiled_kernel(qn, qp, compile):
    if compile and lsq_kernel.load() is None:
        pytest.skip("no C compiler")
    rng = np.random.default_rng(1)
    v, grad = rng.normal(size=(16, 8, 9, 9)) * 2, rng.normal(size=(16, 8, 9, 9)) + 0.5
    x = torch.tensor(v, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    clip = torch.tensor(1.7, requires_grad=True)
    step = float((clip.detach() / qp).item())
    out = clip_fake_quantize(x, clip, clip.item(), step, qn, qp, compile=compile)
    out.backward(torch.tensor(grad, dtype=torch.float32))
    seen = grad.astype(np.float32).astype(np.float64)
    want, want_v, want_alpha = reference(x.detach().double().numpy(), clip.item(), qn, qp, seen)
    assert np.isclose(out.detach().numpy(), want, atol=1e-6).mean() > 0.9999  # a tie may fall to the other side
    np.testing.assert_allclose(x.grad.numpy(), want_v, rtol=0, atol=1e-7)
    assert clip.grad.item() == pytest.approx(want_alpha, rel=1e-4)


def test_a_tensor_as_clip_value_gives_the_same_as_a_number():
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for as_number in (True, False):
        v, clip = x.clone().requires_grad_(), torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        bound = 0.8 if as_number else torch.tensor(0.8, dtype=torch.float64)
        out = clip_fake_quantize(v, clip, bound, bound / 3, 0, 3)
        out.square().sum().backward()
        found.append((out.detach(), v.grad, clip.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def context(bits: int = 2, **values: int) -> SiteContext:
    return SiteContext(bits, 4, values)


def act_site(*, branch: str | None = "block", signed: bool = False, bits=(2, 4), fixed: bool = False) -> QuantizerSite:
    return QuantizerSite("block.conv", "activation", bits, 4, signed, fixed=fixed, branch=branch)


def test_a_step_of_gradient_descent_is_equation_2():
    """alpha_new = alpha - eta (sum of the gradients of what is cut + lambda |alpha|)."""
    quantizer = PACT(act_site(), decay=0.02, clip_start=1.3)
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 2
    weights = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    loss = (quantizer(x, context()) * weights).sum() + quantizer.penalty(context())
    loss.backward()
    optimizer.step()
    cut = weights.double()[x.double() >= float(torch.tensor(1.3))].sum().item()
    assert float(quantizer.alphas["2_0"].detach()) == pytest.approx(1.3 - 0.1 * (cut + 0.02 * 1.3), rel=1e-5)
    assert quantizer.alphas["4_0"].grad is None


def test_no_clip_value_is_below_its_floor_and_there_nothing_decays():
    quantizer = PACT(act_site(), decay=0.1, clip_start=0.5, floor=0.25)
    with torch.no_grad():
        quantizer.alphas["2_0"].fill_(0.1)
    assert float(quantizer.clip_value(context())) == 0.25
    assert quantizer.penalty(context()) is None
    x = torch.full((1, 4, 1, 1), 3.0)
    out = quantizer(x, context())
    assert torch.equal(out.detach(), torch.full_like(x, 0.25))
    out.sum().backward()
    assert quantizer.alphas["2_0"].grad.item() == pytest.approx(4.0)  # it can grow again
    assert PACT(act_site(), decay=0.0).penalty(context()) is None


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    clip=st.floats(0.03125, 32, width=32),
    bits=st.sampled_from([2, 4]),
    signed=st.booleans(),
)
def test_quantizing_twice_changes_nothing_and_grids_agree(values, clip, bits, signed):
    quantizer = PACT(act_site(signed=signed), clip_start=clip)
    x = torch.tensor(values)[None]
    once = quantizer(x, context(bits)).detach()
    torch.testing.assert_close(quantizer(once, context(bits)).detach(), once, rtol=0, atol=0)
    grid = quantizer.export(context(bits))
    torch.testing.assert_close(grid.quantize(x), once, rtol=0, atol=0)
    assert grid.bits <= bits
    assert float(once.abs().max()) <= clip * (1 + 1e-6)


def test_a_calibrator_and_inheritance_set_all_branches():
    quantizer = BASQ(act_site(), lambdas=[0.1, 0.01])
    quantizer.set_range(4, torch.tensor(0.0), torch.tensor(1.5))
    assert [float(quantizer.alphas[f"4_{i}"].detach()) for i in range(2)] == [1.5, 1.5]
    quantizer.inherit(4, 2)
    four, two = (quantizer.export(SiteContext(bits, 4, {"block.basq.branch": 1})) for bits in (4, 2))
    torch.testing.assert_close(two.scale, four.scale * 4)


# --- branches ----------------------------------------------------------------------------------------------------


def test_what_has_fixed_bits_or_no_branch_has_the_grid_of_lsq():
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for quantizer in (PACT(act_site(fixed=True)), BASQ(act_site(branch=None)), BASQ(act_site(fixed=True))):
        same = LSQ(quantizer.site)
        for one in (quantizer, same):
            one.start(x, context(4))
        torch.testing.assert_close(quantizer(x, context(4)), same(x, context(4)), rtol=0, atol=0)
        assert not list(quantizer.clips())
        assert quantizer.penalty(context(4)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lambdas": []}, "one a branch"),
        ({"lambdas": 0.1}, "one a branch"),
        ({"lambdas": [0.1, "much"]}, "one a branch"),
        ({"lambdas": [0.1, -0.1]}, "from 0 up"),
        ({"convolution": "own"}, "shared, private"),
        ({"clip_start": 0.001}, "no less than floor"),
        ({"floor": 0.0}, "positive"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        BASQ(act_site(), **given)


def spaces(make, registry, **options):
    """The space and its supernet with branches."""
    from qnas.nn.grid import AffineGrid
    from qnas.nn.supernet import BuildContext

    def site_knobs(site):
        return BASQ.knobs(site, **options)

    space = make(site_knobs)
    supernet = space.build(
        BuildContext(space, LSQ, lambda site: BASQ(site, **options), AffineGrid(torch.tensor(1 / 128), 128, 0, 255))
    )
    return space, supernet


@pytest.fixture
def mbv2(registry):
    def make(site_knobs):
        scheme = QuantScheme((2,), (2,), "layer", site_knobs=site_knobs)
        return registry.load("space", "mbv2")(
            scheme, image_size=8, num_classes=4, image_channels=1, width=0.25, elastic=False
        )

    return make


@pytest.fixture
def resnet20(registry):
    def make(site_knobs):
        scheme = QuantScheme((2,), (2,), "layer", site_knobs=site_knobs)
        return registry.load("space", "resnet20")(scheme, image_size=8, num_classes=4, image_channels=1, width=0.5)

    return make


def test_mobilenet_chooses_before_each_depthwise_convolution(mbv2, registry):
    space, _ = spaces(mbv2, registry)
    labels = [knob.label for knob in space.knobs if knob.role == "quantizer"]
    depthwise = [site.name for site in space.sites if site.name.endswith(".depthwise")]
    assert labels == [f"{name}.basq.branch" for name in depthwise]
    assert len(labels) == 17  # as in the paper's code
    assert all(len(space.knobs[space.position[label]].choices) == 7 for label in labels)


def test_a_residual_block_has_one_choice_for_both_its_activations(resnet20, registry):
    space, supernet = spaces(resnet20, registry, lambdas=[0.1, 0.01, 0.001])
    own = [knob for knob in space.knobs if knob.role == "quantizer"]
    assert [knob.label for knob in own] == [f"stage{s}.block{b}.basq.branch" for s in (1, 2, 3) for b in (1, 2, 3)]
    assert own[2].active_if  # of a block that is not always there
    sample = {**space.highest(), "stage1.block1.basq.branch": 1}
    supernet.activate(sample)
    block = supernet.parts[1]
    for conv in block.layers:
        assert conv.bn.bank == "1"
        assert conv.bn.banks == ("0", "1", "2")
        assert len(list(conv.input.quantizer.clips())) == 3
    shallow = {**space.highest(), "stage1.depth": 1}
    assert space.key(shallow) == space.key({**shallow, "stage1.block2.basq.branch": 0})


def train(supernet, space, optimizer, samples):
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for sample in samples:
        optimizer.zero_grad(set_to_none=True)
        supernet.activate(sample)
        loss = supernet(images).square().mean() + supernet.penalty()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_branch_that_was_not_sampled_does_not_move(mbv2, registry, kind):
    space, supernet = spaces(mbv2, registry, lambdas=[0.5, 0.05, 0.005])
    supernet.train()
    supernet.set_mode("start")
    for branch in range(3):
        chosen = {k.label: branch for k in space.knobs if k.role == "quantizer"}
        supernet.activate({**space.highest(), **chosen})
        with torch.no_grad():
            supernet(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    supernet.set_mode("quantize")
    optimizer = kind(supernet.parameters(), lr=0.01, weight_decay=0.0)
    rng = generator(0, "branches")
    rows = [space.sample(row) for row in space.draw(rng, 4)]
    two = [{label: min(v, 1) if label.endswith(".basq.branch") else v for label, v in row.items()} for row in rows]
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    train(supernet, space, optimizer, two)
    sampled = {label: {row[label] for row in two} for label in two[0] if label.endswith(".basq.branch")}
    moved = 0
    for name, module in supernet.named_modules():
        if not isinstance(module, BASQ) or module.plain is not None:
            continue
        label = module._label
        for branch in range(3):
            alpha = module.alphas[f"2_{branch}"]
            if branch in sampled[label]:
                assert alpha.item() < 6.0  # nothing is cut at 6: what moves it is its decay
                moved += 1
            else:
                assert torch.equal(alpha, before[f"{name}.alphas.2_{branch}"])
                assert alpha not in optimizer.state
        conv = supernet.get_submodule(name.removesuffix(".input.quantizer"))
        for branch in range(3):
            bank, same = conv.bn.banks.index(str(branch)), branch not in sampled[label]
            for part in (f"weights.{bank}", f"biases.{bank}", f"mean{bank}"):
                value = dict(conv.bn.state_dict())[part]
                kept = torch.equal(value, before[f"{name.removesuffix('.input.quantizer')}.bn.{part}"])
                assert kept or not same
    assert moved > 17


def test_clip_values_have_a_learning_rate_of_their_own(mbv2, registry):
    _, supernet = spaces(mbv2, registry, lambdas=[0.1, 0.01])
    groups = supernet.parameter_groups()
    assert len(groups["clips"]) == 2 * 17
    everything = [id(p) for group in groups.values() for p in group]
    assert sorted(everything) == sorted(id(p) for p in supernet.parameters())


def test_convolutions_of_their_own_for_the_branches(resnet20, registry):
    """Table 7: each branch has its weights and their step; a subnet is extracted with those of its branch."""
    space, supernet = spaces(resnet20, registry, lambdas=[0.1, 0.01], convolution="private")
    shared, _ = spaces(resnet20, registry, lambdas=[0.1, 0.01])
    assert space.num_samples == shared.num_samples
    conv = supernet.parts[1].layers[0]
    assert len(conv.private_weights) == 1
    supernet.train()
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = [{**space.highest(), "stage1.block1.basq.branch": branch} for branch in (0, 1)]
    outputs = []
    for sample in samples:
        for mode in ("start", "quantize"):
            supernet.set_mode(mode)
            supernet.activate(sample)
            with torch.no_grad():
                out = supernet(images)
        subnet = supernet.extract(sample)
        for norm in subnet.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train()
        with torch.no_grad():
            torch.testing.assert_close(subnet(images), out)
        outputs.append(out)
    assert not torch.allclose(*outputs)
    supernet.activate(samples[1])
    supernet(images).sum().backward()
    assert conv.weight.grad is None
    assert conv.private_weights[0].grad is not None


def test_the_default_lambdas_are_those_of_the_paper():
    assert LAMBDAS == (1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)
