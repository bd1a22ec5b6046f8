"""The supernet and the subnets extracted from it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qnas.nn.batchnorm import recalibrate
from qnas.nn.folding import POLICIES, folding_policy
from qnas.nn.subnet import SubnetLayer
from qnas.rng import generator
from tests.conftest import random_images


def rows(space, n, seed=0):
    return [space.lowest(), space.highest(), *(space.sample(r) for r in space.draw(generator(seed, "rows"), n))]


def train_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 0.1
    return model


@pytest.mark.parametrize("options", [{}, {"se": False, "act": "relu"}, {"act": "h-swish"}])
@pytest.mark.parametrize("mode", ["float", "quantize"])
def test_extracted_subnet_answers_exactly_as_the_active_supernet(make_space, make_supernet, options, mode):
    space = make_space(granularity="layer", **options)
    supernet = make_supernet(space, mode=mode)
    for sample in rows(space, 4):
        subnet = train_norms(supernet.extract(sample))
        images = random_images(8, subnet.resolution, seed=1)
        with torch.no_grad():
            supernet.train()
            supernet.activate(sample)
            torch.testing.assert_close(subnet(images), supernet(images), rtol=0, atol=0)


def test_extraction_and_calibration_leave_the_supernet_alone(make_space, make_supernet):
    supernet = make_supernet(make_space())
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    subnet = supernet.extract(supernet.space.lowest())
    recalibrate(subnet, [random_images(8, subnet.resolution)])
    subnet.fold()
    for name, tensor in supernet.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("folding", sorted(POLICIES))
def test_folding_changes_no_answer(make_space, make_supernet, folding):
    space = make_space(w_bits=(4,), a_bits=(8,))
    supernet = make_supernet(space, folding=folding_policy(folding))
    subnet = supernet.extract(space.highest())
    recalibrate(subnet, [random_images(32, subnet.resolution, seed=s) for s in range(2)])
    images = random_images(16, subnet.resolution, seed=9)
    with torch.no_grad():
        before = subnet(images)
        after = subnet.fold()(images)
        again = subnet.fold()(images)
    assert all(layer.bn is None for layer in subnet.subnet_layers())
    torch.testing.assert_close(after, again, rtol=0, atol=0)
    # A value beside a rounding threshold may fall on its other side: few do, and by single steps of the output.
    step = subnet.body[-1].output.scale
    assert ((after - before).abs() <= 1.5 * step).all()
    assert ((after - before).abs() < 1e-4).float().mean() > 0.8


@pytest.mark.parametrize("folding", ["moving", "batch"])
def test_folded_weights_are_what_is_quantized(make_space, make_supernet, folding):
    space = make_space(w_bits=(4,), a_bits=(8,))
    supernet = make_supernet(space, folding=folding_policy(folding))
    subnet = supernet.extract(space.highest())
    recalibrate(subnet, [random_images(32, subnet.resolution)])
    unfolded = {layer.spec.name: (layer.weight.clone(), layer.bn) for layer in subnet.subnet_layers()}
    subnet.fold()
    for layer in subnet.subnet_layers():
        weight, bn = unfolded[layer.spec.name]
        if bn is None:
            continue
        factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        want = layer.grid.quantize(weight * factor.reshape(-1, 1, 1, 1))
        torch.testing.assert_close(layer.weight, want, rtol=0, atol=0)
        assert (layer.channel_scale == 1).all()


def test_batch_folding_equals_batch_normalisation_without_quantization(make_space, make_supernet):
    """conv(x, w gamma/sigma) + beta - gamma mu/sigma is BN(conv(x, w)), forward and backward (QuantNAS, Eq. 4)."""
    space = make_space(w_bits=(8,), a_bits=(8,), se=False, act="relu")
    results = []
    for folding in ("none", "batch"):
        supernet = make_supernet(space, folding=folding_policy(folding)).double()
        supernet.activate(space.highest())
        layer = next(m for m in supernet.modules() if getattr(m, "name", "") == "stage1.block1.expand")
        layer.quantize_weight = lambda w, **_: w
        layer.input = None
        x = torch.randn(6, 16, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        layer.mode = "quantize"
        out = layer.folding.forward(layer, x, layer.active_weight())
        (out**3).sum().backward()
        results.append((out.detach(), layer.weight.grad, layer.bn.weights[0].grad, layer.bn.biases[0].grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_codes_and_scales_rebuild_the_folded_weights(make_space, make_supernet):
    subnet = make_supernet(make_space()).extract(make_space().highest())
    recalibrate(subnet, [random_images(16, subnet.resolution)])
    subnet.fold()
    for layer in subnet.subnet_layers():
        rebuilt = (layer.codes - layer.grid.zero_point).float() * layer.weight_scales().reshape(-1, 1, 1, 1)
        torch.testing.assert_close(rebuilt, layer.weight, rtol=1e-6, atol=1e-7)
        assert layer.codes.min() >= layer.grid.qmin
        assert layer.codes.max() <= layer.grid.qmax


def test_two_supernets_in_one_process_do_not_meet(make_space, make_supernet):
    space = make_space()
    a, b = make_supernet(space, seed=0), make_supernet(space, seed=1)
    images = random_images(4, 16)
    with torch.no_grad():
        a.activate({**space.highest(), "resolution": 16})
        before = a(images)
        b.activate(space.lowest())
        torch.testing.assert_close(a(images), before, rtol=0, atol=0)


def test_only_the_active_subnet_gets_gradients(make_space, make_supernet):
    space = make_space()
    supernet = make_supernet(space)
    supernet.activate(space.lowest())
    supernet(random_images(4, space.resolution(space.lowest()))).sum().backward()
    blocks = {p.name: p for p in supernet.parts if hasattr(p, "name")}
    assert all(p.grad is None for p in blocks["stage1.block2"].parameters())
    for quantizer in supernet.quantizers():
        for bits, step in getattr(quantizer, "log_steps", {}).items():
            if bits == "4" and len(quantizer.site.bits) > 1:
                assert step.grad is None


def test_smaller_kernels_are_transformed_centres(make_space, make_supernet):
    supernet = make_supernet(make_space())
    layer = next(m for m in supernet.modules() if getattr(m, "name", "") == "stage1.block1.depthwise")
    with torch.no_grad():
        for matrix in layer.transforms.values():
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0)))
    supernet.activate({**supernet.space.highest(), "stage1.block1.kernel": 3})
    w5 = (layer.weight[:, :, 1:6, 1:6].reshape(-1, 25) @ layer.transforms["5"].T).reshape(-1, 1, 5, 5)
    w3 = (w5[:, :, 1:4, 1:4].reshape(-1, 9) @ layer.transforms["3"].T).reshape(-1, 1, 3, 3)
    torch.testing.assert_close(layer.active_weight(), w3)


def test_every_parameter_is_in_one_group(make_space, make_supernet):
    supernet = make_supernet(make_space())
    groups = supernet.parameter_groups()
    assert sum(len(g) for g in groups.values()) == len(list(supernet.parameters()))
    assert len({id(p) for g in groups.values() for p in g}) == len(list(supernet.parameters()))
    assert all(p.ndim >= 2 for p in groups["weights"])


def test_unknown_modes_and_parts_are_refused(make_space, make_supernet):
    from qnas.nn.supernet import extract

    with pytest.raises(ValueError, match="mode must be one of"):
        make_supernet(make_space()).set_mode("int8")
    with pytest.raises(TypeError, match="extract"):
        extract(nn.Dropout())


def test_layers_stay_in_float_where_the_supernet_is(make_space, make_supernet):
    space = make_space()
    subnet = make_supernet(space, mode="float").extract(space.lowest())
    assert all(isinstance(m, SubnetLayer) and m.grid is None for m in subnet.subnet_layers())


def test_any_knob_may_key_a_bank(make_supernet):
    """A bit-width's own batch normalisation: trained apart, extracted with its bank."""
    from qnas.nn.supernet import BuildContext
    from qnas.testing.parts import ToySpace

    class Banked(ToySpace):
        def build(self, context: BuildContext):
            conv = context.conv

            def banked(name, *sizes, **options):
                return conv(name, *sizes, bank="middle.w_bits" if name == "middle" else None, **options)

            context.conv = banked
            return super().build(context)

    space = Banked()
    supernet = make_supernet(space)
    layer = next(m for m in supernet.modules() if getattr(m, "name", "") == "middle")
    with torch.no_grad():
        layer.bn.weights[0].fill_(2.0)
        layer.bn.weights[1].fill_(3.0)
    for bits, gamma in ((2, 2.0), (4, 3.0)):
        sample = {**space.highest(), "middle.w_bits": bits}
        supernet.zero_grad()
        supernet.activate(sample)
        supernet(random_images(4, 8)).sum().backward()
        assert [w.grad is not None for w in layer.bn.weights] == [bits == 2, bits == 4]
        twin = next(m for m in supernet.extract(sample).subnet_layers() if m.spec.name == "middle")
        assert (twin.bn.weight == gamma).all()


def test_equal_keys_compute_the_same(make_space, make_supernet):
    """What an inactive knob says must reach nobody: equal subnets share a key, a cached accuracy, an exported file."""
    from qnas.space import Condition, Knob

    def site_knobs(site):
        if site.name == "head":
            yield Knob("head.toy.branch", (0, 1), "quantizer", (Condition("w_bits", (2,)),))

    space = make_space(site_knobs=site_knobs)
    supernet = make_supernet(space)
    one, other = ({**space.highest(), "head.toy.branch": branch} for branch in (0, 1))
    assert space.key(one) == space.key(other)
    seen = []
    for sample in (one, other):
        supernet.activate(sample)
        seen.append(next(m for m in supernet.modules() if getattr(m, "name", "") == "head").values)
    assert seen[0] == seen[1]


def test_only_quantizers_at_work_are_penalised(make_supernet):
    from qnas.testing.parts import RoundingQuantizer, ToySpace

    asked = []

    class Penalised(RoundingQuantizer):
        def penalty(self, ctx):
            asked.append((self.site.name, self.site.role, ctx.bits))
            return torch.ones(())

    space = ToySpace()
    supernet = make_supernet(space, weight=Penalised, act=Penalised)
    supernet.activate(space.lowest())  # without the middle layer
    total = supernet.penalty()
    assert {name for name, _, _ in asked} == {"stem", "pool", "classifier", "classifier.out"}
    assert total == len(asked)
    supernet.set_mode("float")
    assert supernet.penalty() is None
