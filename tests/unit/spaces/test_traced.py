"""A user's network as a space: traced, described, refused where it must be, and computing what it computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from qnas import testing
from qnas.errors import ConfigError
from qnas.nn.elastic import ElasticConv
from qnas.nn.folding import folding_policy
from qnas.nn.graph import Graph
from qnas.rng import generator
from qnas.space import QuantScheme
from tests import own_networks
from tests.conftest import random_images
from tests.own_networks import CLASSES, NETWORKS, REFUSED, Body, Branching, make

SIZE = 16
NAMES = sorted(NETWORKS)
FOREIGN = {
    "resnet_cifar:resnet20_cifar10": (32, 10, {}),
    "preresnet_cifar:preresnet20_cifar10": (32, 10, {}),
    "densenet_cifar:densenet40_k12_cifar10": (32, 10, {}),
    "seresnet_cifar:seresnet20_cifar10": (32, 10, {}),
    "mobilenetv2:mobilenetv2_wd4": (224, 7, {"num_classes": 7}),
    "mobilenetv3:mobilenetv3_small_w7d20": (224, 7, {"num_classes": 7}),
    "shufflenet:shufflenet_g3_wd4": (224, 7, {"num_classes": 7}),
}


@pytest.fixture(scope="module")
def module_space(registry):
    cls = registry.load("space", "module")

    def make_space(factory, size=SIZE, classes=CLASSES, channels=1, scheme=None, **options):
        scheme = scheme or QuantScheme((2, 4), (2, 4), "layer")
        own = {name: options.pop(name) for name in ("skip", "weights") if name in options}
        return cls(
            scheme, image_size=size, num_classes=classes, image_channels=channels, source="net:make", factory=factory,
            factory_options=options, **own,
        )  # fmt: skip

    return make_space


@pytest.fixture
def in_float(module_space, make_supernet):
    """Returns a supernet in float with the statistics of its network, and that network."""

    def build(factory, seed=0, **given):
        options = {k: v for k, v in given.items() if k not in ("size", "classes", "channels", "skip", "weights")}
        space = module_space(factory, **given)
        context_free = testing.parts.RoundingQuantizer
        from qnas.nn.grid import AffineGrid
        from qnas.nn.supernet import BuildContext

        grid = AffineGrid(torch.tensor(1 / 64), 100, 0, 255)
        torch.manual_seed(seed)
        supernet = space.build(BuildContext(space, context_free, context_free, grid)).eval()
        torch.manual_seed(seed)
        return supernet, factory(**options).eval()

    return build


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_in_float_it_computes_what_the_network_does(in_float, name):
    supernet, network = in_float(make, kind=name)
    supernet.activate(supernet.space.lowest())
    images = random_images(8, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(supernet(images), network(images), rtol=1e-5, atol=1e-5)
    subnet = supernet.extract(supernet.space.lowest()).eval()
    with torch.no_grad():
        torch.testing.assert_close(subnet(images), network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_others_keep_their_answers(in_float, name):
    pytest.importorskip("pytorchcv", reason="pytorchcv is not installed: pip install --no-deps pytorchcv")
    from qnas.factories import find_factory

    size, classes, options = FOREIGN[name]
    factory = find_factory(f"pytorchcv.models.{name}")
    supernet, network = in_float(factory, size=size, classes=classes, channels=3, **options)
    supernet.activate(supernet.space.highest())
    images = random_images(2, size, channels=3)
    with torch.no_grad():
        want = network(images)
        torch.testing.assert_close(supernet(images), want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_weight(module_space, make_supernet, name):
    supernet = make_supernet(module_space(make, kind=name)).train()
    supernet.activate(supernet.space.highest())
    supernet(random_images(16, SIZE)).square().sum().backward()
    for label, parameter in supernet.named_parameters():
        if label.endswith((".weight", ".bias")) and "quantizer" not in label:
            assert parameter.grad is not None, label
            assert torch.isfinite(parameter.grad).all(), label
    grads = [p.grad.abs().sum() for label, p in supernet.named_parameters() if label.endswith("parts.0.weight")]
    assert all(grads)


@pytest.mark.parametrize("policy", ["moving", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_every_folding_policy_extracts_what_it_trains(module_space, make_supernet, name, policy):
    supernet = make_supernet(module_space(make, kind=name), folding=folding_policy(policy)).eval()
    sample = supernet.space.highest()
    supernet.activate(sample)
    images = random_images(4, SIZE, seed=3)
    with torch.no_grad():
        want, found = supernet(images), supernet.extract(sample).eval()(images)
    assert torch.isfinite(found).all()
    # A value on a tie of two codes may fall to either side; most answers are equal.
    assert (((found - want).abs() / want.abs().amax()) < 0.05).float().mean() > 0.9


def test_relu6_is_cut_off_in_float_and_on_the_grid(in_float, module_space, make_supernet):
    def factory():
        return Body(then=nn.ReLU6())

    supernet, _ = in_float(factory)
    site = next(m for m in supernet.modules() if getattr(m, "upper", None) == 6.0)
    values = torch.linspace(-3, 12, 61).reshape(1, 1, 1, -1)
    assert torch.equal(site(values), values.clamp(0, 6))
    quantized = make_supernet(module_space(factory))
    quantized.activate(quantized.space.highest())
    site = next(m for m in quantized.modules() if getattr(m, "upper", None) == 6.0)
    site.quantizer.start(torch.linspace(0, 40, 64).reshape(1, 1, 8, 8), site._context(4))  # a grid far beyond 6
    grid = site.extract()
    with torch.no_grad():
        assert torch.equal(site(values), grid(values))
    assert float(grid(values).max()) <= 6 + grid.scale / 2
    assert grid.grid.qmax < 255


# --- description -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_space_keeps_the_contract(module_space, name):
    testing.check_space(lambda scheme: module_space(make, scheme=scheme, kind=name))


def test_layers_are_named_by_their_modules_and_described_as_they_are(module_space):
    space = module_space(make, kind="resnet")
    layers = {spec.name: spec for spec in space.layers(space.highest())}
    assert [n for n, spec in layers.items() if spec.kind != "quantize"] == [
        *("stem.0", "layers.0.conv1", "layers.0.conv2", "layers.1.downsample.0"),
        *("layers.1.conv1", "layers.1.conv2", "fc"),
    ]
    assert [spec.out_size for spec in layers.values() if spec.kind == "conv"] == [16, 8, 8, 4, 4, 4]
    stem, last = layers["stem.0"], layers["fc"]
    assert (stem.w_bits, stem.a_bits, last.w_bits, last.a_bits) == (8, 8, 8, 8)
    assert layers["layers.1.conv1"].stride == 2
    assert (layers["layers.0.conv1"].w_bits, layers["layers.0.conv1"].a_bits) == (4, 4)
    assert "layers.0.conv1.w_bits" in space.position
    assert "stem.0.w_bits" not in space.position
    macs = sum(spec.macs for spec in layers.values())
    assert macs == 16**2 * 8 * 9 + 2 * 64 * 64 * 9 + 16 * (8 * 16 * 10 + 16 * 16 * 9) + 16 * 10


def test_a_larger_image_makes_larger_maps(module_space):
    small, large = (module_space(make, size=size, kind="resnet") for size in (16, 32))
    assert [2 * a.out_size for a in small.layers(small.highest()) if a.kind == "conv"] == [
        b.out_size for b in large.layers(large.highest()) if b.kind == "conv"
    ]


def test_whatever_several_take_is_put_on_a_grid_once(module_space):
    space = module_space(make, kind="resnet")
    grids = [spec.name for spec in space.layers(space.highest()) if spec.kind == "quantize"]
    assert sorted(grids) == [
        "avgpool.out",
        "fc.out",
        "layers.0.add.out",
        "layers.0.conv2.out",
        "layers.1.add.out",
        "layers.1.conv2.out",
        "layers.1.downsample.0.out",
        "stem.0.out",
    ]


def test_batch_normalisation_belongs_to_the_convolution_that_alone_feeds_it(in_float):
    supernet, network = in_float(make, kind="dense")
    layers = {m.name: m for m in supernet.modules() if isinstance(m, ElasticConv)}
    assert layers["stem"].bn is None
    assert layers["mix"].bn is not None
    assert "mix_bn" not in layers
    alone = layers["norms.0"]
    assert torch.equal(alone.weight, torch.ones_like(alone.weight))
    assert alone.groups == 16
    assert torch.equal(alone.bn.weights[0], network.norms[0].weight)
    space = supernet.space
    assert space.layers(space.lowest())[[s.name for s in space.sites].index("norms.0")].w_bits == 8


def test_a_bias_before_normalisation_moves_its_mean_and_eps_is_kept(in_float):
    supernet, network = in_float(make, kind="mobile")
    layers = {m.name: m for m in supernet.modules() if isinstance(m, ElasticConv)}
    depthwise = layers["depthwise"]
    assert depthwise.bias is None
    torch.testing.assert_close(depthwise.bn.mean0, network.depthwise_bn.running_mean - network.depthwise.bias)
    assert layers["stem"].bn.eps == 1e-3
    assert layers["stem"].padding == 1
    assert layers["grouped"].bias is not None
    assert layers["head"].weight.shape == (10, 32, 1, 1)


def test_skip_keeps_layers_at_edge_bits(module_space):
    space = module_space(make, kind="resnet", skip=["layers.0.*", "layers.1.conv1"])
    bits = {spec.name: spec.w_bits for spec in space.layers(space.lowest()) if spec.kind != "quantize"}
    assert bits == {
        "stem.0": 8, "layers.0.conv1": 8, "layers.0.conv2": 8, "layers.1.downsample.0": 2, "layers.1.conv1": 8,
        "layers.1.conv2": 2, "fc": 8,
    }  # fmt: skip
    assert module_space(make, kind="resnet", skip="layers.0.*,layers.1.conv1").knobs == space.knobs
    with pytest.raises(ConfigError, match=r"'layers.9.conv' does not exist\. Did you mean 'layers\.\d\.conv\d'"):
        module_space(make, kind="resnet", skip=["layers.9.conv"])


def test_one_bit_width_for_all_layers(module_space):
    space = module_space(make, kind="resnet", scheme=QuantScheme((2, 4), (2, 4), "network"))
    assert [knob.label for knob in space.knobs] == ["w_bits", "a_bits"]


def test_describing_and_building_twice_gives_the_same(in_float):
    first, second = (in_float(make, kind="dense", seed=seed)[0] for seed in (3, 3))
    assert [str(s) for s in first.space.layers(first.space.lowest())] == [
        str(s) for s in second.space.layers(second.space.lowest())
    ]
    for (name, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    state = torch.random.get_rng_state()
    first.space.__class__(
        first.space.scheme, image_size=SIZE, num_classes=CLASSES, image_channels=1, source="n:m", factory=make
    )
    assert torch.equal(state, torch.random.get_rng_state()), "a description must draw nothing"


def test_fresh_weights_are_drawn_anew(in_float):
    supernet, network = in_float(make, kind="dense", weights="fresh")
    layers = {m.name: m for m in supernet.modules() if isinstance(m, ElasticConv)}
    assert not torch.equal(layers["mix"].weight, network.mix.weight)
    assert torch.equal(layers["norms.0"].weight, torch.ones_like(layers["norms.0"].weight))
    assert torch.equal(layers["norms.0"].bn.mean0, torch.zeros(16))
    assert not supernet.space.brings_weights


def test_a_file_of_the_networks_weights_can_be_loaded(in_float, tmp_path):
    from qnas.initial import load_initial_weights

    supernet, _ = in_float(make, kind="mobile", weights="fresh")
    torch.manual_seed(5)
    trained = make("mobile").eval()
    torch.save(trained.state_dict(), tmp_path / "net.pth")
    report = load_initial_weights(supernet, tmp_path / "net.pth")
    assert not report.unfit
    layers = {m.name: m for m in supernet.modules() if isinstance(m, ElasticConv)}
    assert torch.equal(layers["project"].weight, trained.project.weight)
    assert torch.equal(layers["gate.reduce"].weight.flatten(1), trained.gate.reduce.weight)
    assert torch.equal(layers["stem"].bn.mean0, trained.stem_bn.running_mean)


# --- errors ------------------------------------------------------------------------------------------------------


def line_of(text):
    """Return the number of the one line of the networks' file that holds a text."""
    lines = Path(own_networks.__file__).read_text().splitlines()
    (found,) = [i for i, line in enumerate(lines, 1) if text in line and "REFUSED" not in line and "lambda" not in line]
    return found


def test_data_dependent_branches_are_named_with_module_and_line(module_space):
    with pytest.raises(ConfigError) as error:
        module_space(Branching)
    message = str(error.value)
    assert f"{own_networks.__file__} line {line_of('# data-dependent')}" in message
    assert "`if x.mean() > 0:" in message
    assert "module 'inner.1'" in message


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantized_is_refused_with_its_line(module_space, case):
    factory, what, line = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(what)) as error:
        module_space(factory)
    message = str(error.value)
    assert f"{own_networks.__file__} line {line_of(line)} " in message
    assert "\n" not in message
    assert re.search(r"node '\w+' in module '[\w.]+'", message)


def test_wrong_shapes_are_told(module_space):
    with pytest.raises(ConfigError, match=r"answers in the shape \['N', 10\], but the data has 7 classes"):
        module_space(make, classes=7)
    with pytest.raises(ConfigError, match=r"Images of 4 x 4 pixels do not pass .* at node 'conv1'"):
        module_space(make, size=4, kind="lenet")
    with pytest.raises(ConfigError, match="Images of 16 x 16 pixels do not pass"):
        module_space(make, channels=3)
    with pytest.raises(ConfigError, match="without layers"):
        module_space(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels=10)


def test_a_factory_that_makes_another_network_each_time_is_noticed(module_space, make_supernet):
    widths = iter((8, 12))
    space = module_space(lambda: make(width=next(widths)))
    with pytest.raises(ConfigError, match=r"another network this time: its layer 'stem\.0'"):
        make_supernet(space)


def test_the_factorys_options_are_checked(module_space):
    with pytest.raises(ConfigError, match=r"option of net:make 'widht' does not exist\. Did you mean 'width'"):
        module_space(own_networks.SmallResNet, widht=3)
    with pytest.raises(ConfigError, match=r"needs arguments that are not given: width\. Give --space-option width=VAL"):
        module_space(lambda width: make(width=width))
    with pytest.raises(ConfigError, match=r"fails with kind='none': KeyError: 'none' \(.*own_networks.py, line \d+\)"):
        module_space(make, kind="none")
    with pytest.raises(ConfigError, match=r"returns int, not a torch\.nn\.Module"):
        module_space(lambda: 3)
    with pytest.raises(ConfigError, match="is a network"):
        module_space(make())
    with pytest.raises(ConfigError, match="'new' does not exist"):
        module_space(make, weights="new")


# --- the graph ---------------------------------------------------------------------------------------------------


def test_samples_share_the_graph(module_space, make_supernet):
    supernet = make_supernet(module_space(make, kind="mobile")).eval()
    space = supernet.space
    answers = []
    for row in space.draw(generator(0, "own"), 4):
        sample = space.sample(row)
        supernet.activate(sample)
        with torch.no_grad():
            answers.append(supernet(random_images(2, SIZE)))
        subnet = supernet.extract(sample)
        assert isinstance(subnet.body[0], Graph)
        assert {layer.spec.name: layer.spec for layer in subnet.subnet_layers()} == {
            spec.name: spec for spec in space.layers(sample) if spec.kind != "quantize"
        }
    assert not all(torch.equal(answers[0], other) for other in answers[1:])
