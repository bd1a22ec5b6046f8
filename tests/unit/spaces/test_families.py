"""What the families beside mbv3 promise: options, knobs, prefixes, and subnets that answer as the supernet does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qnas.errors import ConfigError
from qnas.rng import generator
from tests.conftest import TINY, random_images

FAMILIES = sorted(TINY)


def samples(space, n):
    return [space.lowest(), space.highest(), *map(space.sample, space.draw(generator(0, "rows"), n))]


@pytest.mark.parametrize("mode", ["float", "quantize"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", FAMILIES)
def test_extracted_subnet_answers_exactly_as_the_active_supernet(make_family, make_supernet, name, size, mode):
    options = {} if name.endswith("resnet20") else {"size": size}
    supernet = make_supernet(make_family(name, **options), mode=mode)
    for sample in samples(supernet.space, 3):
        subnet = supernet.extract(sample)
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.momentum = 0.1
        images = random_images(4, subnet.resolution, seed=1)
        with torch.no_grad():
            supernet.train()
            supernet.activate(sample)
            torch.testing.assert_close(subnet(images), supernet(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gradient_reaches_everything_that_is_active_and_nothing_else(make_family, make_supernet, name):
    space = make_family(name, w_bits=(4,), a_bits=(4,))
    supernet = make_supernet(space)
    for sample, all_of_it in ((space.highest(), True), (space.lowest(), False)):
        supernet.zero_grad()
        supernet.train()
        supernet.activate(sample)
        supernet(random_images(4, space.resolution(sample))).square().sum().backward()
        missing = [n for n, p in supernet.named_parameters() if p.grad is None and ".transforms." not in n]
        inputs = [n for n in missing if "quantizer" in n]  # a site that passes its tensor on quantizes nothing
        assert (missing == inputs) == all_of_it
        for part in supernet.parts:
            if not getattr(part, "active", True):
                assert all(p.grad is None for p in part.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_without_elastic_only_bits_are_searched(make_family, name):
    tiny = {k: v for k, v in TINY[name].items() if k == "width"}
    none = dict.fromkeys(set(TINY[name]) - {*tiny, "elastic"})
    space = make_family(name, elastic=False, **none)
    assert {k.role for k in space.knobs if len(k.choices) > 1} == {"w_bits", "a_bits"}
    assert space.resolution(space.lowest()) == 16
    with pytest.raises(ConfigError, match=r"elastic = false .* given besides: resolutions"):
        make_family(name, elastic=False, **none, **tiny, resolutions=(12, 16))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mbv2", {"size": "medium"}, "size must be one of auto, small, large"),
        ("mbv2", {"kernels": (4,)}, r"kernels must be .* For example kernels = \[3, 5, 7\]"),
        ("mbv2", {"expansions": (0, 3)}, "expansions must be"),
        ("mbv2", {"depths": ()}, r"depths must be .*given: \[\]"),
        ("mbv2", {"resolutions": (4, 16)}, "resolutions must be"),
        ("mbv2", {"width": 0.0}, r"width must be a multiplier .* given: 0.0"),
        ("mbv1", {"widths": (0.5, 1.5)}, "widths must be"),
        ("mbv1", {"kernels": 3.0}, "kernels must be"),
        ("resnet18", {"widths": (1.0, 0.5)}, "widths must be"),
        ("resnet18", {"depths": (1, 3)}, "depths must be"),
        ("resnet50", {"expansions": (0.25, 2.0)}, "expansions must be"),
        ("resnet20", {"width": 1.0, "widths": (0.25, 1.0)}, "can add channels of zeros, but not leave channels out"),
    ],
)
def test_options_that_cannot_be_are_refused(make_family, name, options, message):
    with pytest.raises(ConfigError, match=f"Space {name}: .*{message}"):
        make_family(name, **options)


def test_depths_of_a_stage_are_as_published(make_family):
    def depths(space):
        return [knob.choices for knob in space.knobs if knob.label.endswith(".depth")]

    assert depths(make_family("mbv2", depths=None)) == [(2, 3, 4)] * 5 + [(1,)]
    assert depths(make_family("mbv2", depths=None, elastic=False)) == [(n,) for n in (2, 3, 4, 3, 3, 1)]
    assert depths(make_family("mbv1")) == [(2, 4, 6)]
    assert depths(make_family("resnet20")) == [(1, 2, 3)] * 3
    assert depths(make_family("resnet18")) == [(1, 2)] * 4
    assert depths(make_family("resnet50")) == [(1, 2, 3), (2, 3, 4), (4, 5, 6), (1, 2, 3)]
    assert depths(make_family("resnet50", depths=(3, 5))) == [(3,), (3, 4), (3, 5), (3,)]


def test_widths_are_channels_in_multiples_of_8(make_family):
    space = make_family("resnet18", width=1.0)
    widths = {k.label: k.choices for k in space.knobs if k.label.endswith(".width")}
    assert widths == {
        "stage1.width": (32, 48, 64), "stage2.width": (64, 96, 128), "stage3.width": (128, 192, 256),
        "stage4.width": (256, 384, 512),
    }  # fmt: skip
    layers = {layer.name: layer for layer in space.layers({**space.highest(), "stage1.width": 48})}
    assert layers["stem"].out_channels == 48  # nothing changes the width between stem and first block
    assert layers["stage1.block2.conv2"].in_channels == layers["stage1.block2.add"].out_channels == 48
    assert (layers["stage2.block1.conv1"].in_channels, layers["stage2.block1.downsample"].in_channels) == (48, 48)
    narrow = make_family("resnet18", width=0.125)  # choices that round to one are one
    assert narrow.knobs[narrow.position["stage1.width"]].choices == (8,)


def test_a_bottleneck_is_a_share_of_its_stage(make_family):
    space = make_family("resnet50", width=1.0)
    sample = {**space.highest(), "stage2.width": 336, "stage2.block2.expansion": 0.2}
    assert 336 in space.knobs[space.position["stage2.width"]].choices  # 0.65 of 512
    layers = {layer.name: layer for layer in space.layers(sample)}
    assert layers["stage2.block2.conv2"].in_channels == 64  # of 67.2
    assert layers["stage2.block2.conv3"].out_channels == 336
    assert layers["stage2.block1.conv2"].in_channels == 120  # 0.35 of 336 are 117.6


def test_narrow_stages_are_prefixes(make_family, make_supernet):
    supernet = make_supernet(make_family("resnet18", width=0.5), mode="float")
    space = supernet.space
    layer = next(m for m in supernet.modules() if getattr(m, "name", "") == "stage2.block1.conv1")
    sample = {**space.highest(), "stage1.width": 16, "stage2.width": 48}
    twin = next(m for m in supernet.extract(sample).subnet_layers() if m.spec.name == layer.name)
    assert torch.equal(twin.weight, layer.weight[:48, :16])
    assert len(twin.bn.weight) == 48


@pytest.mark.parametrize(
    ("name", "image", "small"), [("mbv2", 64, True), ("mbv1", 65, False), ("resnet18", 224, False)]
)
def test_the_size_follows_the_image(make_family, name, image, small):
    space = make_family(name, image_size=image)
    layer = space.layers(space.highest())[0]
    assert layer.stride == (1 if small else 2)
    assert layer.out_size == (image if small else -(-image // 2))


def test_the_small_residual_networks_keep_the_image_in_their_stem(make_family, make_supernet):
    for name, size, last in (("resnet18", "small", 2), ("resnet18", "large", 1), ("resnet50", "small", 2)):
        space = make_family(name, size=size)
        layers = {layer.name: layer for layer in space.layers(space.highest())}
        assert layers["stage4.block1.add"].out_size == last
        pools = [m for m in make_supernet(space).modules() if isinstance(m, nn.MaxPool2d)]
        assert len(pools) == (size == "large")


def test_torchvisions_names_are_of_layers_that_exist(make_family, make_supernet):
    for name in FAMILIES:
        space = make_family(name)
        names = space.torchvision_names()
        described = {site.name for site in space.sites}
        assert {ours.removesuffix(".bn") for ours in names} <= described
        assert len(set(names.values())) == len(names)
        assert bool(names) != name.startswith("basq-")  # of whose blocks torchvision has no network
        assert not names or {"stem", "stem.bn", "classifier"} <= set(names)
