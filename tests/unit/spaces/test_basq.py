"""Spaces of blocks for few bits: options, which layers have a skip, where branches are, and the order of the sites."""

from __future__ import annotations

import pytest

from qnas.deploy.trace import trace
from qnas.errors import ConfigError

RESIDUAL = [(f"basq-resnet{n}", block) for n in (18, 20) for block in ("new", "fracbnn", "preactivation")]
CASES = [(f"basq-mbv{n}", block) for n in (1, 2) for block in ("new", "fracbnn")] + RESIDUAL


def names(space, suffix):
    return [s.name.removesuffix(suffix) for s in space.sites if s.name.endswith(suffix)]


@pytest.mark.parametrize(("name", "block"), CASES)
def test_sites_are_in_the_order_of_the_datas_way(make_family, make_supernet, name, block):
    space = make_family(name, (2,), (2,), block=block)
    for sample in (space.lowest(), space.highest()):
        steps = trace(make_supernet(space).extract(sample).fold()).steps
        described = [layer.name for layer in space.layers(sample)]
        assert [n for n in dict.fromkeys(step.name for step in steps) if n in described] == described


@pytest.mark.parametrize("name", ["basq-mbv1", "basq-mbv2", "basq-resnet18", "basq-resnet20"])
def test_the_published_network_is_the_default(registry, make_family, name):
    cls = registry.load("space", name)
    space = cls(make_family(name).scheme, image_size=16, num_classes=10, width=0.25)
    assert {knob.role for knob in space.knobs if len(knob.choices) > 1} == {"w_bits", "a_bits"}
    assert names(space, ".add")  # skips
    assert all(site.a_bits == 8 for site in space.sites if site.name.endswith((".out", ".skip", ".add", ".norm")))


def test_flexconn_of_mobilenetv2_is_named_by_its_layers(make_family):
    given = {"expansion": ["expand", "head"], "static": ["depthwise"], "reduction": ["project"]}
    for kinds in (["expansion"], ["static"], ["reduction"], ["static", "expansion"], []):
        space = make_family("basq-mbv2", flexconn=kinds)
        blocks = {site.block for site in space.sites} - {"head"}
        added = {site.rsplit(".", 1)[-1] for site in names(space, ".add") if site not in blocks}
        assert added == {layer for kind in kinds for layer in given[kind]}
        assert names(space, ".add")  # the block's own sums are there whatever is asked for
    assert make_family("basq-mbv2", flexconn="static,expansion").sites != make_family("basq-mbv2").sites


def test_flexconn_of_mobilenetv1_goes_by_the_largest_widths(make_family):
    def skips(kind):
        return set(names(make_family("basq-mbv1", flexconn=kind, depths=None), ".add"))

    wider = {f"stage{n}.block1.pointwise" for n in (1, 2, 3, 4, 5)}
    assert skips("expansion") == wider
    assert skips("reduction") == set()
    static = skips("static")
    assert "stage2.block2.pointwise" in static
    assert "stage1.block1.depthwise" in static
    assert not static & wider


def test_branches_are_at_depthwise_inputs_and_for_residual_blocks(make_family):
    for name in ("basq-mbv1", "basq-mbv2"):
        sites = make_family(name).sites
        branches = {site.name: site.branch for site in sites if site.branch is not None}
        assert branches == {site.name: site.name for site in sites if site.name.endswith(".depthwise")}
    for name, block in RESIDUAL:
        space = make_family(name, block=block)
        for site in space.sites:
            convolution = site.block is not None and site.name.rsplit(".", 1)[-1].startswith(("conv", "downsample"))
            assert site.branch == (site.block if convolution else None)
        assert any(s.name.endswith(".downsample") for s in space.sites) == (
            (name, block) == ("basq-resnet18", "preactivation")
        )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("basq-mbv2", {"block": "preactivation"}, "block must be one of new, fracbnn; given: 'preactivation'.* mbv2"),
        ("basq-resnet20", {"block": "basic"}, "one of new, fracbnn, preactivation; given: 'basic'.* space resnet20"),
        ("basq-mbv2", {"flexconn": ["expand"]}, r"flexconn must be different names .* given: \['expand'\]"),
        ("basq-mbv1", {"flexconn": ["static", "static"]}, "flexconn must be different names"),
        ("basq-mbv2", {"kernels": (4,)}, "kernels must be"),
        ("basq-resnet20", {"widths": (0.25, 1.0), "width": 1.0, "block": "preactivation"}, "add channels of zeros"),
        ("basq-resnet20", {"widths": (0.25, 1.0), "width": 1.0}, "8 channels after one with 16.* largest subnet"),
        ("basq-resnet18", {"widths": (0.25, 1.0), "width": 1.0}, "32 channels after one with 64.* largest subnet"),
        ("basq-mbv1", {"widths": (0.25, 1.0), "width": 1.0}, "16 channels after one with 32.* largest subnet"),
    ],
)
def test_options_that_cannot_be_are_refused(make_family, name, options, message):
    with pytest.raises(ConfigError, match=f"Space {name}: .*{message}"):
        make_family(name, **options)


def test_widths_are_free_where_no_skip_leads_from_one_to_the_next(make_family):
    make_family("basq-resnet18", widths=(0.25, 1.0), width=1.0, block="preactivation")
    make_family("basq-mbv1", widths=(0.25, 1.0), width=1.0, flexconn=["static"])


@pytest.mark.parametrize(("name", "block"), CASES)
def test_the_largest_subnet_has_every_site(make_family, name, block):
    """Quantizers start in it."""
    given = {"expansions": (1, 6)} if name == "basq-mbv2" else {}
    space = make_family(name, block=block, width=1.0, **given)
    assert [layer.name for layer in space.layers(space.highest())] == [site.name for site in space.sites]
