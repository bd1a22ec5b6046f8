"""Units and blocks for few bits: against their formulas in plain operations, with banks chosen by a branch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qnas.nn.activation import ActivationSite, GridQuantize
from qnas.nn.batchnorm import ElasticBatchNorm
from qnas.nn.elastic import ElasticConv
from qnas.nn.flexconn import Flexconn
from qnas.nn.lowbit import LowBitInvertedResidual, LowBitUnit, PreactivationBlock
from qnas.nn.norm import ElasticNorm
from qnas.space import Knob
from tests.conftest import random_images

MOBILE, RESIDUAL = ("new", "fracbnn"), ("new", "fracbnn", "preactivation")
CASES = [("basq-mbv1", block) for block in MOBILE] + [("basq-mbv2", block) for block in MOBILE]
CASES += [("basq-resnet20", block) for block in RESIDUAL]
BRANCHES = (0, 1, 2)


def branches(site):
    """A quantizer's knob whose choices have batch normalisations of their own."""
    if site.branch is not None:
        yield Knob(f"{site.branch}.toy.branch", BRANCHES, "quantizer", private=("norm",))


class Reference:
    """The formulas in float64, one layer at a time; grids where the layer's sites have them."""

    def __init__(self, unit, sample):
        self.sites = {}
        for module in unit.modules():
            if isinstance(module, ElasticConv):
                for key, site in (("in", module.input), ("raw", module.raw), ("out", module.output)):
                    self.sites[f"{module.name}.{key}"] = site
            elif isinstance(module, ActivationSite):
                self.sites.setdefault(module.name, module)
        self.norms = {m.name: m for m in unit.modules() if isinstance(m, ElasticNorm)}
        self.convs = {m.name: m for m in unit.modules() if isinstance(m, ElasticConv)}
        self.sample = sample

    def grid(self, name, x):
        site = self.sites.get(name)
        twin = None if site is None else site.extract()
        if not isinstance(twin, GridQuantize):
            return x
        grid = twin.grid
        codes = torch.clamp(torch.round(x / grid.scale) + grid.zero_point, grid.qmin, grid.qmax)
        return (codes - grid.zero_point) * grid.scale

    def normalise(self, bn: ElasticBatchNorm, branch, x):
        label = None if branch is None else f"{branch}.toy.branch"
        i = 0 if label is None else BRANCHES.index(self.sample[label])
        assert len(bn.banks) == (1 if label is None else len(BRANCHES))
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        gamma, beta = (p[: x.shape[1]].reshape(1, -1, 1, 1) for p in (bn.weights[i], bn.biases[i]))
        return (x - mean) / torch.sqrt(var + 1e-5) * gamma + beta

    def norm(self, name, branch, x):
        return self.normalise(self.norms[name].bn, branch, x)

    def conv(self, name, branch, x, *, signed=False):
        """``BN(conv(Q(x)))``, the quantizer cutting at zero; without batch normalisation where there is none."""
        conv = self.convs[name]
        x = self.grid(f"{name}.in", x if signed else x.clamp(min=0))
        weight = conv.extract().weight
        groups = x.shape[1] if conv.depthwise else 1
        y = F.conv2d(x, weight, stride=conv.stride, padding=weight.shape[-1] // 2, groups=groups)
        y = self.grid(f"{name}.raw", y)
        return y if conv.bn is None else self.normalise(conv.bn, branch, y)

    def unit(self, name, branch, x, *, new, skip, signed=False):
        y = self.conv(name, branch, self.norm(f"{name}.pre", branch, x) if new else x, signed=signed)
        y = self.grid(f"{name}.out", y.clamp(min=0))
        if skip:
            y = self.grid(f"{name}.add", y + self.flexconn(name, x, y.shape))
        return self.grid(f"{name}.norm", self.norm(f"{name}.last", branch, y))

    def flexconn(self, name, x, shape):
        """Fold, average, put on a grid, copy: one channel and one window after the other."""
        _, out, height, width = shape
        folded = [sum(x[:, j] for j in range(k, x.shape[1], out)) for k in range(min(out, x.shape[1]))]
        s = self.convs[name].stride
        windows = [(slice(i * s, i * s + s), slice(k * s, k * s + s)) for i in range(height) for k in range(width)]
        y = torch.stack(folded, 1)
        y = torch.stack([y[:, :, i, k].mean((2, 3)) for i, k in windows], 2).unflatten(2, (height, width))
        if f"{name}.skip" in self.sites:
            y = self.grid(f"{name}.skip", y)
        return y[:, [j % y.shape[1] for j in range(out)]]

    def preactivation(self, block, x, shortcut):
        name = block.layer.name.removesuffix(".conv1")
        y = self.conv(f"{name}.conv1", name, self.norm(f"{name}.conv1.pre", name, x))
        y = self.grid(f"{name}.conv2.out", self.conv(f"{name}.conv2", name, y))
        return self.grid(f"{name}.add", y + shortcut)


def watched(supernet, kinds, sample):
    """Run the active subnet in float64, and return every block of these kinds with its input and output."""
    supernet.double().train()
    seen = []
    handles = [
        module.register_forward_hook(lambda m, x, y: seen.append((m, x[0].detach(), y.detach())))
        for module in supernet.modules()
        if isinstance(module, kinds)
    ]
    supernet.activate(sample)
    with torch.no_grad():
        supernet(random_images(4, 15, seed=4).double())
    for handle in handles:
        handle.remove()
    return seen


def choose(space):
    """The largest subnet, neighbouring blocks with different branches."""
    labels = [knob.label for knob in space.knobs if ".toy." in knob.label]
    assert labels
    return {**space.highest(), **{label: BRANCHES[i % 3] for i, label in enumerate(labels)}}


def close(found, want, grid_step=1.0):
    """Assert equality; a tie of two codes may fall to either side."""
    assert ((found - want).abs() > 1e-9 * want.abs().max()).double().mean() < 1e-3


@pytest.mark.parametrize("conv_only", [True, False])
@pytest.mark.parametrize(("name", "block"), CASES)
def test_every_block_is_its_formula(make_family, make_supernet, name, block, conv_only):
    space = make_family(
        name, (2,), (2,), block=block, conv_only=conv_only, site_knobs=branches, image_size=15, resolutions=(15,)
    )
    supernet = make_supernet(space)
    sample = choose(space)
    sites = {site.name: site for site in space.sites}
    kinds = PreactivationBlock if block == "preactivation" else LowBitUnit
    seen = watched(supernet, kinds, sample)
    assert len(seen) == sum(1 for m in supernet.modules() if isinstance(m, kinds) and m.active)
    for module, x, y in seen:
        branch = sites[module.layer.name].branch
        reference = Reference(module, sample)
        if block != "preactivation":
            close(y, reference.unit(module.layer.name, branch, x, new=block == "new", skip=True))
            continue
        shortcut = x
        if y.shape != x.shape:  # option A: every second pixel, zeros in front and behind
            zeros = (y.shape[1] - x.shape[1]) // 2
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, zeros, zeros))
        close(y, reference.preactivation(module, x, shortcut))


def test_an_inverted_residual_adds_its_input_where_nothing_changes_the_shape(make_family, make_supernet):
    supernet = make_supernet(make_family("basq-mbv2", (4,), (4,), image_size=15, resolutions=(15,)))
    adds = []
    for block, x, y in watched(supernet, LowBitInvertedResidual, supernet.space.highest()):
        with torch.no_grad():
            want = x
            for unit in (m for m in block.parts if isinstance(m, LowBitUnit)):
                want = unit(want)
            if x.shape == y.shape:
                want = next(m for m in block.parts if isinstance(m, ActivationSite))(want + x)
        assert torch.equal(want, y)
        adds.append(x.shape == y.shape)
    assert any(adds)
    assert not all(adds)


def test_without_a_skip_a_unit_normalises_what_is_rectified(make_family, make_supernet):
    space = make_family("basq-mbv2", (2,), (2,), flexconn="static", image_size=15, resolutions=(15,))
    supernet = make_supernet(space)
    for unit, x, y in watched(supernet, LowBitUnit, space.highest()):
        name = unit.layer.name
        skip = any(isinstance(part, Flexconn) for part in unit.parts)
        assert skip == name.endswith("depthwise") == (f"{name}.add" in {site.name for site in space.sites})
        close(y, Reference(unit, space.highest()).unit(name, None, x, new=True, skip=skip))


def test_signed_codes_keep_what_is_negative(make_family, make_supernet):
    space = make_family("basq-resnet20", (2,), (2,), signed=True, image_size=15, resolutions=(15,))
    supernet = make_supernet(space)
    for unit, x, y in watched(supernet, LowBitUnit, space.highest()):
        assert unit.layer.input.quantizer.site.signed
        assert not unit.layer.input.relu
        close(y, Reference(unit, space.highest()).unit(unit.layer.name, None, x, new=True, skip=True, signed=True))


def test_only_what_a_branch_concerns_has_banks(make_family, make_supernet):
    """MobileNetV2: the three of the depthwise unit. ResNet: all of a block, and all of its convolutions together."""
    for name in ("basq-mbv2", "basq-mbv1", "basq-resnet20"):
        supernet = make_supernet(make_family(name, site_knobs=branches))
        for unit in (m for m in supernet.modules() if isinstance(m, LowBitUnit)):
            banks = [len(m.banks) for m in unit.modules() if isinstance(m, ElasticBatchNorm)]
            own = name == "basq-resnet20" or unit.layer.name.endswith(".depthwise")
            assert banks == [3 if own else 1] * 3
    labels = [knob.label for knob in supernet.space.knobs if ".toy." in knob.label]
    assert labels == [f"stage{s}.block{b}.toy.branch" for s in (1, 2, 3) for b in (1, 2)]


def test_a_branch_changes_the_answer_and_only_its_own_bank_learns(make_family, make_supernet):
    space = make_family("basq-mbv2", (4,), (4,), site_knobs=branches)
    supernet = make_supernet(space).train()
    label = "stage1.block1.depthwise.toy.branch"
    outputs = []
    for branch in BRANCHES:
        supernet.zero_grad()
        supernet.activate({**space.highest(), label: branch})
        y = supernet(random_images(8, 16))
        y.square().sum().backward()
        outputs.append(y.detach())
        unit = next(
            m
            for m in supernet.modules()
            if isinstance(m, LowBitUnit) and m.layer.name == label.removesuffix(".toy.branch")
        )
        for bn in (m for m in unit.modules() if isinstance(m, ElasticBatchNorm)):
            assert [w.grad is not None for w in bn.weights] == [i == branch for i in range(3)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_an_unknown_block_or_shortcut_is_refused():
    with pytest.raises(ValueError, match="fracbnn"):
        LowBitUnit(None, "unit", 8, 8, block="basic")
    with pytest.raises(ValueError, match="identity"):
        PreactivationBlock(None, "block", 8, 8, stride=1, shortcut="none")
