"""The published networks: multiply-accumulates and parameters, counted by hand from the papers' tables.

Sums are those that are known: torchvision's ``mobilenet_v2``, ``resnet18`` and ``resnet50`` have 3,504,872, 11,689,512
and 25,557,032 parameters; the papers say 300 M (MobileNetV2), 569 M (MobileNetV1), 1.8 G (ResNet-18) multiply-adds and
0.27 M parameters (ResNet-20).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from qnas.costs import CostTable, sample_costs
from qnas.nn.grid import AffineGrid
from qnas.nn.supernet import BuildContext
from qnas.rng import generator
from qnas.space import QuantScheme
from qnas.testing.parts import RoundingQuantizer


@dataclass
class Tally:
    """Counts a network as it is written down, convolution by convolution."""

    size: int
    channels: int
    macs: int = 0
    parameters: int = 0

    def conv(self, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Tally:
        """Count a convolution and its batch normalisation, whose output is the next one's input."""
        self.size = (self.size + stride - 1) // stride
        weights = out * (self.channels // groups) * kernel * kernel
        self.macs += weights * self.size * self.size
        self.parameters += weights + 2 * out
        self.channels = out
        return self

    def beside(self, before: tuple[int, int], out: int, stride: int) -> None:
        """Count a 1x1 shortcut from ``before`` (size, channels)."""
        other = Tally(*before).conv(out, 1, stride)
        self.macs += other.macs
        self.parameters += other.parameters

    def linear(self, out: int) -> Tally:
        self.macs += self.channels * out
        self.parameters += self.channels * out + out
        return self


def mbv2(size=224, classes=1000, tally=Tally) -> Tally:
    """Sandler et al., Table 2: t, c, n, s."""
    net = tally(size, 3).conv(32, 3, 2)
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for t, c, n, s in table:
        for i in range(n):
            hidden = net.channels * t
            if t > 1:
                net.conv(hidden)
            net.conv(hidden, 3, s if i == 0 else 1, hidden).conv(c)
    return net.conv(1280).linear(classes)


def mbv1(size=224, classes=1000, tally=Tally) -> Tally:
    """Howard et al., Table 1."""
    net = tally(size, 3).conv(32, 3, 2)
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in rows:
        net.conv(net.channels, 3, stride, net.channels).conv(out)
    return net.linear(classes)


def resnet18(size=224, classes=1000, tally=Tally) -> Tally:
    net = tally(size, 3).conv(64, 7, 2)
    net.size //= 2  # max pooling
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        before = (net.size, net.channels)
        net.conv(out, 3, stride).conv(out, 3)
        if stride == 2:
            net.beside(before, out, 2)
        net.conv(out, 3).conv(out, 3)
    return net.linear(classes)


def resnet50(size=224, classes=1000) -> Tally:
    net = Tally(size, 3).conv(64, 7, 2)
    net.size //= 2
    for hidden, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            before = (net.size, net.channels)
            net.conv(hidden).conv(hidden, 3, stride if i == 0 else 1).conv(4 * hidden)
            if i == 0:
                net.beside(before, 4 * hidden, stride)
    return net.linear(classes)


def resnet20(size=32, classes=10, tally=Tally) -> Tally:
    """Shortcuts have no parameters and multiply nothing."""
    net = tally(size, 3).conv(16, 3)
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        net.conv(out, 3, stride)
        for _ in range(5):
            net.conv(out, 3)
    return net.linear(classes)


class LowBit(Tally):
    """A network of BASQ's units: all but the stem have two more batch normalisations, and no shortcut has weights."""

    def conv(self, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Tally:
        before = self.channels
        super().conv(out, kernel, stride, groups)
        if before != 3:
            self.parameters += 2 * before + 2 * out  # in front of the quantizer, and after the sum
        return self

    def beside(self, before: tuple[int, int], out: int, stride: int) -> None:
        """Count nothing: Flexconn copies channels."""


# The convolutions are the families'; resnet18 lacks its three 1x1 shortcuts: 64 * 128 * 28^2 = 128 * 256 * 14^2 =
# 256 * 512 * 7^2 = 6,422,528 MACs each, and 1,814,073,344 - 3 * 6,422,528 = 1,794,805,760.
LOW_BIT = {
    "mbv2": (mbv2, 300_774_272, 3_570_472),
    "mbv1": (mbv1, 568_740_352, 4_273_640),
    "resnet18": (resnet18, 1_794_805_760, 11_530_152),
    "resnet20": (resnet20, 40_551_040, 272_314),
}

# name: image, classes, counted by hand, MACs, parameters
PUBLISHED = {
    "mbv2": (224, 1000, mbv2, 300_774_272, 3_504_872),
    "mbv1": (224, 1000, mbv1, 568_740_352, 4_231_976),
    "resnet18": (224, 1000, resnet18, 1_814_073_344, 11_689_512),
    "resnet50": (224, 1000, resnet50, 4_089_184_256, 25_557_032),
    "resnet20": (32, 10, resnet20, 40_551_040, 269_722),
}


@pytest.fixture(scope="module")
def models(registry):
    return {"macs": registry.load("cost", "macs")}


def space_of(registry, name, **options):
    image, classes = PUBLISHED[name][:2]
    return registry.load("space", name)(QuantScheme((4,), (4,)), image_size=image, num_classes=classes, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_network_has_its_macs(registry, models, name):
    _, _, by_hand, macs, parameters = PUBLISHED[name]
    assert (by_hand().macs, by_hand().parameters) == (macs, parameters)
    space = space_of(registry, name, elastic=False)
    assert all(len(knob.choices) == 1 for knob in space.knobs)
    assert sample_costs(space, models, space.highest())["macs"] == macs


# Subnets that OQAT's README lists (https://github.com/LaVieEnRoseSMZ/OQA), with its "FLOPs" in millions:
# image, kernels, expansions, depths, bits, FLOPs
OQAT = [
    (128, "33533557355355353575", "33443433333443666433", "22323", 4, 55.385),
    (212, "75533553357775757333", "34436443643434466664", "24344", 3, 292.019),
    (224, "55757553553537557737", "66446464646666666666", "44444", 2, 455.741),
]


@pytest.mark.parametrize(("image", "kernels", "expansions", "depths", "bits", "flops"), OQAT)
def test_flops_of_oqat_subnets(registry, image, kernels, expansions, depths, bits, flops):
    """Its README's FLOPs are MACs; its code divides BitOPs by 64, but for stem, squeeze-excite and classifier."""
    space = registry.load("space", "mbv3")(
        QuantScheme((bits,), (bits,)), image_size=image, num_classes=1000, resolutions=(image,), size="large"
    )
    sample = space.lowest()
    for i, (kernel, expansion) in enumerate(zip(kernels, expansions, strict=True)):
        block = f"stage{i // 4 + 1}.block{i % 4 + 1}"
        sample |= {f"{block}.kernel": int(kernel), f"{block}.expansion": int(expansion)}
    sample |= {f"stage{i}.depth": int(depth) for i, depth in enumerate(depths, 1)}
    space.validate(sample)
    costs = sample_costs(space, {name: registry.load("cost", name) for name in ("macs", "oqat_flops")}, sample)
    assert round(costs["macs"] / 1e6, 3) == flops
    layers = {layer.name: layer.macs for layer in space.layers(sample)}
    whole = {name for name in layers if name in ("stem", "classifier") or ".se." in name}
    exact = sum(float(macs) if name in whole else macs / 64 * bits * bits for name, macs in layers.items())
    assert costs["oqat_flops"] == pytest.approx(exact, abs=0.5 * len(layers))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_elastic_space_holds_the_published_network(registry, models, name):
    space = space_of(registry, name)
    published = space_of(registry, name, elastic=False).highest()
    sample = {**space.highest(), **{k: v for k, v in published.items() if k in space.position}}
    assert sample_costs(space, models, sample)["macs"] == PUBLISHED[name][3]
    if name in ("resnet18", "resnet20"):
        assert sample == space.highest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_network_has_its_parameters(registry, name):
    assert parameters_of(space_of(registry, name, elastic=False)) == PUBLISHED[name][4]


def parameters_of(space):
    with torch.device("meta"):  # shapes are all that is asked for
        grid = AffineGrid(torch.tensor(0.1), 0, 0, 255)
        supernet = space.build(BuildContext(space, RoundingQuantizer, RoundingQuantizer, grid))
    return sum(p.numel() for p in supernet.parameters())


@pytest.mark.parametrize("name", LOW_BIT)
def test_networks_of_blocks_for_few_bits(registry, models, name):
    count, macs, parameters = LOW_BIT[name]
    by_hand = count(tally=LowBit)
    assert (by_hand.macs, by_hand.parameters) == (macs, parameters)
    image, classes = PUBLISHED[name][:2]
    space = registry.load("space", f"basq-{name}")(QuantScheme((2,), (2,)), image_size=image, num_classes=classes)
    assert all(len(knob.choices) == 1 for knob in space.knobs)
    assert sample_costs(space, models, space.highest())["macs"] == macs
    assert parameters_of(space) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_networks_of_preactivation_blocks(registry, models, name):
    image, classes, _, macs, parameters = PUBLISHED[name]
    cls = registry.load("space", f"basq-{name}")
    space = cls(QuantScheme((2,), (2,)), image_size=image, num_classes=classes, block="preactivation")
    assert sample_costs(space, models, space.highest())["macs"] == macs
    # Each block normalises its input instead of its second convolution's output; the last sum is normalised too.
    layers = {layer.name: layer for layer in space.layers(space.highest())}
    moved = sum(2 * layer.in_channels for site, layer in layers.items() if site.endswith("block1.conv1"))
    moved += 2 * layers["classifier"].in_channels
    moved -= sum(2 * layer.out_channels for site, layer in layers.items() if site.endswith("block1.conv2"))
    assert parameters_of(space) == parameters + moved


@pytest.mark.parametrize("name", [*PUBLISHED, "mbv3"])
def test_a_hundred_thousand_samples_a_second(registry, name):
    """MACs, BitOPs and size of the ImageNet-sized spaces together, bit-widths by layer."""
    models = {cost: registry.load("cost", cost) for cost in ("macs", "bitops", "size_bytes")}
    space = registry.load("space", name)(QuantScheme((2, 3, 4), (2, 3, 4), "layer"), image_size=224, num_classes=1000)
    table = CostTable(space, models)
    rows = space.draw(generator(3, "rate"), 50_000)
    best = 0.0
    for _ in range(3):
        start = time.thread_time()
        found = table.costs(rows)
        best = max(best, len(rows) / (time.thread_time() - start))
    assert best > 100_000
    for i in (0, 1, len(rows) - 1):
        want = sample_costs(space, models, space.sample(rows[i]))
        assert {cost: int(values[i]) for cost, values in found.items()} == want
