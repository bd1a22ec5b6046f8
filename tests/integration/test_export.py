"""From supernet to integer graph: what is fused, what is stored, and that the runtime answers as the subnet does."""

import dataclasses
import json
from collections import Counter
from functools import cache, lru_cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qnas.costs import sample_costs
from qnas.data import ImageSet, batches, prepare
from qnas.deploy.integers import code_grid, integer_layer
from qnas.deploy.onnx_export import export_onnx
from qnas.deploy.pack import read_packed, write_packed
from qnas.deploy.rounding import round_biases
from qnas.deploy.trace import trace
from qnas.deploy.verify import VerifyLimits, verify
from qnas.errors import ExportError
from qnas.evaluate import Evaluator, EvaluatorSettings
from qnas.layers import LayerSpec
from qnas.nn.activation import GlobalPool, GridQuantize, HardSwish
from qnas.nn.folding import folding_policy
from qnas.nn.grid import AffineGrid, CodebookGrid
from qnas.nn.quantizer import SiteContext
from qnas.nn.subnet import PaddedShortcut, Residual, Subnet, SubnetLayer
from qnas.nn.supernet import BuildContext
from qnas.plugins import load_registry
from qnas.rng import generator
from qnas.space import QuantScheme

REGISTRY = load_registry()
SIZE = 16
LAYOUT = {"Transpose", "Flatten", "Reshape", "ReorderInput", "ReorderOutput"}


@lru_cache(maxsize=1)
def digits():
    images: ImageSet = REGISTRY.load("dataset", "digits")().load()
    return prepare(images, image_size=SIZE, seed=0, fractions=(0.1, 0.1))


@lru_cache(maxsize=1)
def device():
    return REGISTRY.load("device", "onnxruntime")(threads=1)


@cache
def evaluator(
    bits=4, se=False, act="relu", negative="signed", per_channel=False, conv_only=False, folding="none", weight="lsq"
) -> Evaluator:
    """An untrained supernet whose quantizers started from data; gammas of all signs, some 0."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, lsq = digits(), REGISTRY.load("quantizer", "lsq")
    space = REGISTRY.load("space", "mbv3")(
        QuantScheme((bits,), (bits,), conv_only=conv_only),
        image_size=SIZE,
        num_classes=10,
        image_channels=1,
        se=se,
        act=act,
        kernels=(3, 5),
        expansions=(2, 3),
        depths=(1, 2),
    )
    weights, options = REGISTRY.load("quantizer", weight), {"per_channel": True} if per_channel else {}
    supernet = space.build(
        BuildContext(
            space,
            lambda site: weights(site, **options),
            lambda site: lsq(site, negative=negative),
            data.pixels.affine(),
            folding_policy(folding),
        )
    )
    started(supernet, data)
    return Evaluator(
        supernet,
        data,
        REGISTRY.load("task", "classification")(),
        [REGISTRY.load("calibrator", name)() for name in ("bn", *weights.calibrators)],
        {"size_bytes": REGISTRY.load("cost", "size_bytes")},
        EvaluatorSettings(calibration_images=100),
    )


@torch.no_grad()
def started(supernet, data):
    """Draw batch normalisations, with gammas of all signs and some 0, and start quantizers from data."""
    for name, parameter in supernet.named_parameters():
        if ".bn.weights" in name:
            parameter.uniform_(-1.5, 1.5)
            parameter[0], parameter[1] = 0.0, 1e-12
        elif ".bn.biases" in name:
            parameter.normal_(std=0.3)
    supernet.activate(supernet.space.highest())
    supernet.set_mode("start")
    supernet(data.pixels.normalise(data.train.images[:128]))
    supernet.set_mode("quantize")


def subnet_of(which="highest", **options) -> Subnet:
    judge = evaluator(**options)
    space = judge.supernet.space
    samples = {"highest": space.highest(), "lowest": space.lowest()}
    if which not in samples:
        samples[which] = space.sample(space.draw(generator(3, "export"), 1)[0])
    return round_biases(judge.subnet(samples[which]))


def compare(subnet, path, **options):
    data = digits()
    images = batches(data.test, data.pixels, subnet.resolution, 100)
    task = REGISTRY.load("task", "classification")()
    return verify(subnet, path, device(), images, data.test.labels, task=task, **options)


def test_verification_in_groups_is_that_of_all_at_once(tmp_path, monkeypatch):
    subnet = subnet_of()
    export_onnx(subnet, tmp_path / "model.onnx", metadata={})
    whole = compare(subnet, tmp_path / "model.onnx")
    calls = []
    run = type(device()).run
    monkeypatch.setattr(type(device()), "run", lambda *args: calls.append(len(args[2])) or run(*args))
    monkeypatch.setitem(verify.__globals__, "GROUP_VALUES", 150 * subnet.resolution**2)
    assert compare(subnet, tmp_path / "model.onnx") == whole
    assert calls == [min(200, whole.num_images - start) for start in range(0, whole.num_images, 200)]


def initializers(path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def expected_integer_operators(subnet) -> dict[str, int]:
    """Operators of a graph without float operations, from the subnet's modules alone."""
    count: Counter[str] = Counter(QuantizeLinear=1, DequantizeLinear=1)
    stream = None  # the grid that the last module left its output on

    def regrid(quantize):
        nonlocal stream
        if (quantize.grid.qmin, quantize.grid.qmax) != (0, 255):
            count["Clip"] += 1
        if stream is not None:
            count["QLinearAdd"] += 1
        stream = quantize.grid

    for module in subnet.modules():
        if isinstance(module, SubnetLayer):
            count["QGemm" if module.spec.kind == "linear" else "QLinearConv"] += 1
            if module.input is not None and module.spec.name != "stem":
                regrid(module.input)
            stream = None
            if module.output is not None:
                regrid(module.output)
        elif isinstance(module, Residual):
            count["QLinearAdd"] += 1  # its output's grid is that of the addition
        elif isinstance(module, GlobalPool):
            count["QLinearGlobalAveragePool"] += 1
            stream = None
        elif isinstance(module, GridQuantize) and module.name == "pool":
            regrid(module)
    return dict(count)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("which", ["highest", "lowest", "random"])
def test_a_relu_net_is_executed_in_integers_alone(tmp_path, bits, which):
    subnet = subnet_of(which, bits=bits)
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert summary.islands == ()
    executed = {op: n for op, n in device().operators(summary.path).items() if op not in LAYOUT}
    assert executed == expected_integer_operators(subnet)
    report = compare(subnet, summary.path)
    assert report.passed, report.failures
    assert report.within_steps is not None
    assert report.identical >= 0.98


@pytest.mark.parametrize("which", ["highest", "lowest"])
@pytest.mark.parametrize("weight", ["lsq", "scale-predictor"])
def test_a_fully_quantized_net_that_was_folded_first_has_one_scale_a_tensor(tmp_path, weight, which):
    """QuantNAS, Sec. 2.1 and 5.1: one Q, one DQ, integer operators between, symmetric weights, a scale a tensor."""
    subnet = subnet_of(which, bits=8, folding="batch", weight=weight)
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert summary.islands == ()
    executed = {op: n for op, n in device().operators(summary.path).items() if op not in LAYOUT}
    assert executed == expected_integer_operators(subnet)
    assert executed["QuantizeLinear"] == executed["DequantizeLinear"] == 1
    for name, scales in initializers(summary.path).items():
        if name.endswith(".weight.scales"):
            assert len(np.unique(scales)) == 1, name
        if name.endswith(".weight.zero_points"):
            assert not scales.any(), name
    report = compare(subnet, summary.path)
    assert report.passed, report.failures


@pytest.mark.parametrize("bits", [4, 8])
def test_with_convolutions_alone_quantized_everything_else_is_in_float(tmp_path, bits):
    subnet = subnet_of("highest", bits=bits, conv_only=True)
    layers = [layer for layer in subnet.subnet_layers() if layer.spec.kind == "conv"]
    blocks = sum(isinstance(module, Residual) for module in subnet.modules())
    normalised = [layer.spec.name for layer in layers if layer.affine is not None]
    assert normalised == [layer.spec.name for layer in layers if layer.spec.name != "features"]
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    executed = Counter(device().operators(summary.path))
    assert executed["QLinearConv"] == len(layers)
    assert executed["Conv"] == 0
    assert executed["BatchNormalization"] == len(normalised)
    assert executed["QuantizeLinear"] >= len(layers)  # before each of them
    assert executed["DequantizeLinear"] == len(layers)  # after each of them
    assert executed["Add"] == blocks
    assert executed["Gemm"] + executed["FusedGemm"] == 1
    assert not {"QLinearAdd", "QGemm", "QLinearGlobalAveragePool"} & set(executed)
    assert {island.name for island in summary.islands} >= {"classifier", *(f"{name}.bn" for name in normalised)}
    report = compare(subnet, summary.path)
    assert report.passed, report.failures
    write_packed(subnet, tmp_path / "packed.safetensors", metadata={})
    stored = read_packed(tmp_path / "packed.safetensors")["layers"]
    assert {name for name, entry in stored.items() if entry["kind"] == "affine"} == {f"{n}.bn" for n in normalised}
    for layer in layers:
        assert torch.equal(stored[layer.spec.name]["codes"] * layer.grid.scale, layer.weight)
        assert float(stored[f"{layer.spec.name}.raw"]["grid_scale"]) == layer.raw.scale
    assert torch.equal(stored["stem.bn"]["offset"], layers[0].affine.offset)


def test_costs_of_a_net_with_convolutions_alone_quantized_are_in_float_elsewhere():
    judge = evaluator(bits=8, conv_only=True)
    layers = judge.supernet.space.layers(judge.supernet.space.highest())
    assert {(layer.w_bits, layer.a_bits) for layer in layers if layer.kind == "conv"} == {(8, 8)}
    assert {(layer.w_bits, layer.a_bits) for layer in layers if layer.kind != "conv"} == {(32, 32)}


def test_a_net_with_convolutions_alone_quantized_answers_as_its_supernet():
    supernet = evaluator(bits=8, conv_only=True).supernet.train()
    images = digits().pixels.normalise(digits().train.images[:16])
    subnet = supernet.extract(supernet.space.highest()).train()
    with torch.no_grad(), supernet.keeping_statistics():
        torch.testing.assert_close(subnet(images), supernet(images))
    supernet.eval()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("options", [{"act": "auto"}, {"act": "h-swish", "negative": "zero-point"}])
def test_with_squeeze_excite_and_h_swish_every_convolution_stays_integer(tmp_path, bits, options):
    subnet = subnet_of(bits=bits, se=True, **options)
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    executed = device().operators(summary.path)
    kinds = Counter(layer.spec.kind for layer in subnet.subnet_layers())
    blocks = sum("se.reduce" in spec.name for spec in subnet.layers)
    swishes = sum(isinstance(module, HardSwish) for module in subnet.modules())
    assert blocks
    assert swishes
    assert executed["QLinearConv"] == kinds["conv"]
    assert executed["QGemm"] == 1
    assert executed.get("Conv", 0) + executed.get("FusedConv", 0) == 2 * blocks
    reasons = Counter(island.reason.split()[0] for island in summary.islands)
    assert reasons == {"h-swish": swishes, "squeeze-excite": blocks}
    assert {island.name for island in summary.islands if island.name.endswith(".se")} == {
        spec.name.removesuffix(".reduce") for spec in subnet.layers if spec.name.endswith("se.reduce")
    }
    report = compare(subnet, summary.path)
    assert report.passed, report.failures


@pytest.mark.parametrize(
    "options", [{"negative": "zero-point"}, {"per_channel": True}, {"bits": 8, "per_channel": True}]
)
def test_zero_points_and_scales_a_channel(tmp_path, options):
    subnet = subnet_of(**options)
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert summary.islands == ()
    report = compare(subnet, summary.path)
    assert report.passed, report.failures


@cache
def asymmetric_evaluator(bits, per_channel, folding="none") -> Evaluator:
    """An untrained supernet with min-max quantizers, asymmetric weights and activations; gammas of all signs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, minmax = digits(), REGISTRY.load("quantizer", "minmax")
    scheme = QuantScheme((bits,), (bits,), w_zero_points=True)
    space = REGISTRY.load("space", "mbv3")(
        scheme, image_size=SIZE, num_classes=10, image_channels=1, se=False, act="relu", depths=(1,), resolutions=(16,)
    )

    def weights(site):
        return minmax(site, asymmetric=True, per_channel=per_channel)

    def activations(site):
        return minmax(site, asymmetric=True)

    context = BuildContext(space, weights, activations, data.pixels.affine(), folding_policy(folding))
    supernet = space.build(context).to(memory_format=torch.channels_last)
    started(supernet, data)
    costs = {"size_bytes": REGISTRY.load("cost", "size_bytes")}
    calibrators = [REGISTRY.load("calibrator", "bn")()]
    return Evaluator(supernet, data, REGISTRY.load("task", "classification")(), calibrators, costs, EvaluatorSettings())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_weights_are_integers_too(tmp_path, bits, per_channel):
    judge = asymmetric_evaluator(bits, per_channel)
    subnet = judge.subnet(judge.supernet.space.highest())
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert summary.islands == ()
    executed = device().operators(str(tmp_path / "m.onnx"))
    assert not {"Conv", "Gemm", "MatMul"} & set(executed), executed
    report = verify(subnet, summary.path, device(), judge.images("test", SIZE), judge.data.test.labels, task=judge.task)
    assert report.passed, report.failures


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_a_convolution_with_zero_points_is_the_integer_sum(tmp_path, bits, groups):
    """Codes of one layer against exact integers: a sum over (x - zx)(c - zc), plus the bias, rounded once."""
    rng = torch.Generator().manual_seed(bits)
    channels, levels = 6, 2**bits - 1
    zero_points = torch.linspace(0, levels, channels).round().to(torch.int64)
    scales = torch.rand(channels, generator=rng) * 0.02 + 0.01
    weight_grid = AffineGrid(scales, zero_points, 0, levels, 0)

    class Asymmetric(_Given):
        def export(self, ctx):
            return weight_grid

    codes = torch.randint(0, levels + 1, (channels, channels // groups, 3, 3), generator=rng)
    factor = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, 1.0])  # of batch normalisation: some signs turn
    reach = 40 if groups == 1 else 16
    wanted = grid(float(scales.mean()) * levels * 0.05 * reach, zero_point=120)
    conv = SubnetLayer(
        LayerSpec("conv", "conv", channels, channels, 3, 3, groups, 1, bits, 8, True),
        weight_grid.decode(codes), torch.randn(channels, generator=rng), None,
        GridQuantize("conv", grid(0.05, zero_point=90), relu=False), GridQuantize("conv.out", wanted, relu=False),
        Asymmetric(bits), SiteContext(bits, channels), folds=False,
    )  # fmt: skip
    conv.channel_scale = factor
    conv.weight = conv.weight * factor.reshape(-1, 1, 1, 1)
    same = layer(  # hands every code on, for the output of a model has two dimensions
        "same", torch.eye(channels).long()[:, :, None, None] * 100, [1.0] * channels, [0.0] * channels, kind="linear",
        output=GridQuantize("same.out", wanted, relu=False),
    )  # fmt: skip
    subnet = round_biases(Subnet({}, 3, (), nn.Sequential(conv, same)).fold())
    path = str(tmp_path / "m.onnx")
    export_onnx(subnet, path, metadata={})
    executed = device().operators(path)
    assert executed["QLinearConv"] == 1
    x = torch.randint(0, 256, (256, channels, 3, 3), generator=rng)
    found = torch.from_numpy(device().run(path, ((x - 90) * np.float32(0.05)).float().numpy(), 256)) / wanted.scale
    products = torch.nn.functional.conv2d(
        (x - 90).double(),
        (codes - zero_points.reshape(-1, 1, 1, 1)).double(),
        stride=3,
        padding=1,
        groups=groups,
    )[:, :, 0, 0]
    exact = (products * 0.05 * (scales * factor).double() + conv.bias.double()) / wanted.scale.double()
    near_tie = ((exact - exact.floor()) - 0.5).abs() < 1e-4
    want = exact.round().clamp(-120, 135)
    torch.testing.assert_close(found.double().round()[~near_tie], want[~near_tie], rtol=0, atol=0)
    assert near_tie.double().mean() < 0.01
    assert 5 < exact.std() < 100


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_asymmetric_weights_are_packed_with_their_zero_points(tmp_path, bits):
    judge = asymmetric_evaluator(bits, True)
    sample = judge.supernet.space.highest()
    subnet = judge.subnet(sample)
    size = write_packed(subnet, tmp_path / "p.safetensors", {})
    assert size == sample_costs(judge.supernet.space, judge.costs, sample)["size_bytes"]
    packed = read_packed(tmp_path / "p.safetensors")["layers"]
    for layer in subnet.subnet_layers():
        entry = packed[layer.spec.name]
        zero_points = entry["zero_points"].to(torch.int16).reshape(-1, *[1] * (layer.weight.ndim - 1))
        scales = entry["scales"].reshape(zero_points.shape)
        torch.testing.assert_close((entry["codes"] - zero_points) * scales, layer.weight, rtol=1e-5, atol=1e-7)
        assert entry["codes"].min() >= 0
        assert entry["zero_points"].unique().numel() > 1


def test_asymmetric_weights_that_the_space_does_not_know_of_are_refused(tmp_path):
    judge = asymmetric_evaluator(4, True)
    subnet = judge.subnet(judge.supernet.space.highest())
    for layer in subnet.subnet_layers():
        layer.spec = dataclasses.replace(layer.spec, w_zero_points=False)
    with pytest.raises(ExportError, match="has_weight_zero_points"):
        write_packed(subnet, tmp_path / "p.safetensors", {})
    assert not (tmp_path / "p.safetensors").exists()


def test_scales_and_weights_in_the_file_are_the_trained_ones(tmp_path):
    subnet = subnet_of(bits=4)
    export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    stored = initializers(tmp_path / "m.onnx")
    negative = 0
    for step, layer in trace(subnet).layers():
        name, grid = step.name, trace(subnet).input_grid(step)
        codes, scales = stored[f"{name}.weight.codes"], stored[f"{name}.weight.scales"]
        trained = layer.weight_scales().expand(len(codes)).numpy()
        integers = integer_layer(layer, grid)
        kept = ~integers.rescaled.numpy()
        assert codes.dtype == np.int8
        assert stored[f"{name}.bias.codes"].dtype == np.int32
        assert (scales > 0).all()
        assert integers.shift == (0 if layer.spec.w_bits == 8 else 3)
        assert np.array_equal(scales[kept] * 2**integers.shift, np.abs(trained)[kept])
        signs = np.where(trained < 0, -1, 1).reshape(-1, *[1] * (codes.ndim - 1)) / 2**integers.shift
        assert np.array_equal((codes * signs)[kept], layer.codes.reshape(codes.shape).numpy()[kept])
        negative += int((trained < 0).sum())
    assert negative > 20
    for module in subnet.modules():
        if isinstance(module, GridQuantize):
            assert stored[f"{module.name}.grid_scale"] == module.grid.scale.numpy()
            assert stored[f"{module.name}.grid_scale"].shape == ()


def test_the_model_says_what_it_is(tmp_path):
    subnet = subnet_of("lowest")
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={"config": "abc"})
    model = onnx.load(summary.path)
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
    properties = {p.key: p.value for p in model.metadata_props}
    pixels = digits().pixels
    assert properties["config"] == "abc"
    assert float(properties["input.scale"]) == np.float32(pixels.scale)
    assert int(properties["input.zero_point"]) == pixels.zero_point
    assert properties["input.resolution"] == str(subnet.resolution)
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert summary.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    json.dumps(summary.to_json())


@pytest.mark.parametrize(
    ("name", "factor"),
    [("classifier.out.grid_scale", 1.1), ("head.weight.scales", 1.5), ("features.bias.codes", -3)],
)
def test_a_model_that_was_tampered_with_fails(tmp_path, name, factor):
    subnet = subnet_of(bits=8)
    path = tmp_path / "m.onnx"
    export_onnx(subnet, path, metadata={})
    assert compare(subnet, path).passed
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == name:
            value = numpy_helper.to_array(initializer)
            changed = value + 3000 if factor < 0 else value * factor
            initializer.CopyFrom(numpy_helper.from_array(np.asarray(changed, value.dtype), name))
    onnx.save(model, path)
    report = compare(subnet, path)
    assert not report.passed
    assert report.failures
    assert json.loads(json.dumps(report.to_json()))["passed"] is False


def test_limits_can_be_set(tmp_path):
    subnet = subnet_of("lowest")
    export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    report = compare(subnet, tmp_path / "m.onnx", limits=VerifyLimits(agreement=1.1))
    assert len(report.failures) == 1


@pytest.mark.parametrize("options", [{}, {"bits": 2, "per_channel": True}, {"bits": 3, "se": True, "act": "auto"}])
@pytest.mark.parametrize("which", ["highest", "lowest"])
def test_the_packed_payload_is_the_cost(tmp_path, options, which):
    judge, subnet = evaluator(**options), subnet_of(which, **options)
    path = tmp_path / "m.safetensors"
    payload = write_packed(subnet, path, {"config": "abc"})
    read = read_packed(path)
    cost = sample_costs(judge.supernet.space, judge.costs, subnet.sample)["size_bytes"]
    assert payload == cost == sum(tensor.nbytes for tensor in read["tensors"].values())
    assert read["metadata"]["config"] == "abc"
    assert set(read["layers"]) == {spec.name for spec in subnet.layers}
    for layer in subnet.subnet_layers():
        stored = read["layers"][layer.spec.name]
        values = stored["codes"] * stored["scales"].reshape(-1, 1, 1, 1)
        torch.testing.assert_close(values, layer.weight, rtol=1e-6, atol=1e-9)
        bias = stored["bias"] * stored["grid_scale"] * stored["scales"].abs() / 2 ** stored["bias_shift"]
        torch.testing.assert_close(bias, torch.zeros(len(bias)) if layer.bias is None else layer.bias)


def test_rounding_biases_twice_changes_nothing():
    subnet = subnet_of(bits=3)
    before = {name: value.clone() for name, value in subnet.named_buffers()}
    round_biases(subnet)
    for name, value in subnet.named_buffers():
        assert torch.equal(value, before[name]), name


# --- graphs built by hand --------------------------------------------------------------------------------------


def grid(scale, bits=8, zero_point=0):
    return AffineGrid(torch.tensor(scale), zero_point, 0, 2**bits - 1)


class _Given:
    """A stand-in for a trained quantizer: weights on the integers times a scale."""

    def __init__(self, bits):
        self.bits = bits

    def prepare(self, x, ctx: SiteContext):
        return x

    def export(self, ctx: SiteContext):
        return AffineGrid(torch.tensor(0.01), 0, -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)


def layer(name, codes, factor, bias, bits=8, kind="conv", **grids):
    """A folded layer with the given codes, batch normalisation factor and bias."""
    codes = torch.as_tensor(codes)
    o, i, k, _ = codes.shape
    spec = LayerSpec(name, kind, i, o, k, w_bits=bits, a_bits=8)
    result = SubnetLayer(
        spec, codes * 0.01, torch.as_tensor(bias), None, grids.get("input"), grids.get("output"), _Given(bits),
        SiteContext(bits, o), folds=False,
    )  # fmt: skip
    result.channel_scale = torch.as_tensor(factor)
    result.weight = result.weight * result.channel_scale.reshape(-1, 1, 1, 1)
    return result


def single(codes, factor, bias, bits=8):
    """image -> conv -> grid -> mean -> linear -> grid."""
    o = len(codes)
    conv = layer(
        "conv", codes, factor, bias, bits,
        input=GridQuantize("conv", grid(0.02, zero_point=128), relu=False),
        output=GridQuantize("conv.out", grid(0.1, zero_point=100), relu=False),
    )  # fmt: skip
    fc = layer(
        "fc", torch.arange(-o, o).reshape(2, o, 1, 1), [1.0, 1.0], [0.0, 0.1], kind="linear",
        input=GridQuantize("fc", grid(0.07, zero_point=100), relu=False),
        output=GridQuantize("fc.out", grid(0.02, zero_point=128), relu=False),
    )  # fmt: skip
    return Subnet({}, 6, (), nn.Sequential(conv, GlobalPool(), fc)).fold()


def outputs(subnet, tmp_path, channels):
    path = str(tmp_path / "m.onnx")
    export_onnx(subnet, path, metadata={})
    images = torch.randn(64, channels, subnet.resolution, subnet.resolution, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = subnet(images)
    return expected, torch.from_numpy(device().run(path, images.numpy(), 64)), initializers(path)


def test_a_code_without_an_opposite_keeps_its_negative_scale(tmp_path):
    codes = torch.tensor([[-128, 127], [-128, 3], [-127, 127]]).reshape(3, 2, 1, 1)
    subnet = round_biases(single(codes, [1.0, -1.5, -0.5], [0.3, -0.7, 0.2]))
    expected, found, stored = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    assert np.sign(stored["conv.weight.scales"]).tolist() == [1, -1, 1]
    assert stored["conv.weight.codes"].reshape(3, 2).tolist() == [[-128, 127], [-128, 3], [127, -127]]


def test_channels_of_scale_zero_or_nearly_keep_their_bias(tmp_path):
    codes = torch.tensor([[-8, 7], [5, -8], [7, 7], [-3, 2], [1, 1]]).reshape(5, 2, 1, 1)
    factor = [0.0, 1e-30, -1e-7, 0.0, 1.0]
    subnet = round_biases(single(codes, factor, [1.5, -2.0, 3.0, 0.0, 0.5], bits=4))
    expected, found, stored = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    assert (stored["conv.weight.scales"] > 0).all()
    steps = stored["conv.bias.scales"].astype(np.float64)
    np.testing.assert_allclose(stored["conv.bias.codes"] * steps, [1.5, -2.0, 3.0, 0.0, 0.5], rtol=0, atol=2e-4)
    assert np.array_equal(stored["conv.weight.codes"][4].ravel(), [8, 8])  # 4-bit codes 1 times 2 ** 3


def test_a_relu_on_a_grid_with_a_zero_point_is_an_integer_clip(tmp_path):
    subnet = round_biases(single(torch.tensor([[3, -4], [-5, 6]]).reshape(2, 2, 1, 1), [8.0, 8.0], [0.1, 0.0]))
    conv = subnet.body[0]
    conv.output = GridQuantize("conv.out", grid(0.02, zero_point=100), relu=True)
    expected, found, stored = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    assert stored["conv.out.low"] == 100
    executed = device().operators(str(tmp_path / "m.onnx"))
    assert executed["Clip"] == 1
    assert "Relu" not in executed


def test_max_pooling_works_on_codes(tmp_path):
    subnet = single(torch.tensor([[3, -4], [-5, 6]]).reshape(2, 2, 1, 1), [8.0, 8.0], [0.1, 0.0])
    conv, pool, fc = subnet.body
    subnet.body = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1), pool, fc)
    round_biases(subnet)
    expected, found, _ = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    assert trace(subnet).islands() == []


@pytest.mark.parametrize(
    ("zero_point", "stride", "pads"), [(0, 2, (3, 4)), (131, 2, (0, 5)), (40, 1, (2, 2)), (7, 2, (0, 0))]
)
def test_a_padded_shortcut_moves_codes_and_computes_nothing(tmp_path, zero_point, stride, pads):
    """The padding is the code of 0, whatever that is; every code is the subnet's."""
    subnet = single(torch.tensor([[3, -4], [-5, 6]]).reshape(2, 2, 1, 1), [8.0, 8.0], [0.1, 0.0])
    conv, pool, _ = subnet.body
    conv.output = GridQuantize("conv.out", grid(0.05, zero_point=zero_point), relu=False)
    channels = 2 + sum(pads)
    fc = layer(
        "fc", torch.arange(-channels, channels).reshape(2, channels, 1, 1), [1.0, 1.0], [0.0, 0.1], kind="linear",
        input=GridQuantize("fc", grid(0.07, zero_point=100), relu=False),
        output=GridQuantize("fc.out", grid(0.02, zero_point=128), relu=False),
    )  # fmt: skip
    subnet.body = nn.Sequential(conv, PaddedShortcut(stride, *pads), pool, fc)
    round_biases(subnet)
    expected, found, _ = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    assert trace(subnet).islands() == []
    model = onnx.load(tmp_path / "m.onnx")
    moved = [node for node in model.graph.node if node.op_type in ("Slice", "Pad")]
    assert [node.op_type for node in moved] == ["Slice"] * (stride > 1) + ["Pad"] * (sum(pads) > 0)
    model.graph.output.append(onnx.helper.make_tensor_value_info(moved[-1].output[0], onnx.TensorProto.UINT8, None))
    images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    _, codes = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        values = subnet.body[1](conv(images))
    assert codes.dtype == np.uint8
    assert codes.shape == (8, channels, *(2 * [6 // stride]))
    assert np.array_equal(codes, (values / 0.05).round().numpy() + zero_point)
    assert (codes[:, : pads[0]] == zero_point).all()


def test_a_block_around_a_padded_shortcut_is_integer_throughout(tmp_path):
    """``relu(conv(x) + pad(x))``: ResNet-20's block where it halves the map."""
    subnet = single(torch.tensor([[3, -4], [-5, 6]]).reshape(2, 2, 1, 1), [8.0, 8.0], [0.1, 0.0])
    stem, pool, _ = subnet.body
    stem.output = GridQuantize("conv.out", grid(0.05), relu=True)
    rng = torch.Generator().manual_seed(0)
    conv = layer(
        "block", torch.randint(-90, 90, (4, 2, 3, 3), generator=rng), [0.5] * 4, [0.1, -0.2, 0.0, 0.3],
        output=GridQuantize("block.out", grid(0.06, zero_point=120), relu=False),
    )  # fmt: skip
    conv.spec = dataclasses.replace(conv.spec, stride=2)
    block = Residual(conv, GridQuantize("add", grid(0.08), relu=True), PaddedShortcut(2, 1, 1))
    fc = layer(
        "fc", torch.arange(-4, 4).reshape(2, 4, 1, 1), [1.0, 1.0], [0.0, 0.1], kind="linear",
        input=GridQuantize("fc", grid(0.07), relu=False),
        output=GridQuantize("fc.out", grid(0.02, zero_point=128), relu=False),
    )  # fmt: skip
    subnet.body = nn.Sequential(stem, block, pool, fc)
    round_biases(subnet)
    expected, found, _ = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    executed = {op: n for op, n in device().operators(str(tmp_path / "m.onnx")).items() if op not in LAYOUT}
    assert executed == {
        "QuantizeLinear": 1, "QLinearConv": 2, "Slice": 1, "Pad": 1, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1,
        "QGemm": 1, "DequantizeLinear": 1,
    }  # fmt: skip


def test_what_has_no_integer_kernel_is_refused_by_name(tmp_path):
    subnet = single(torch.tensor([[3, -4]]).reshape(1, 2, 1, 1), [1.0], [0.0])
    conv, pool, fc = subnet.body
    subnet.body = nn.Sequential(conv, nn.Softmax(1), pool, fc)
    with pytest.raises(ExportError, match=r"Softmax.*body_1"):
        trace(subnet)
    subnet.body = nn.Sequential(conv, pool, fc)
    table = CodebookGrid(torch.tensor([-0.5, 0.0, 1.0]))
    conv.grid = table
    with pytest.raises(ExportError, match=r"'conv'.*table"):
        export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    with pytest.raises(ExportError, match=r"'a'.*table"):
        code_grid(table, "a")
    assert not list(tmp_path.iterdir())
    assert round_biases(subnet) is subnet


def test_layers_in_float_are_exported_and_listed(tmp_path):
    subnet = single(torch.tensor([[30, -40], [9, 90]]).reshape(2, 2, 1, 1), [1.0, 1.0], [0.0, 0.2])
    conv = subnet.body[0]
    conv.grid = conv.codes = None
    round_biases(subnet)
    expected, found, stored = outputs(subnet, tmp_path, 2)
    assert float((expected - found).abs().max()) <= 0.02 + 1e-6
    assert stored["conv.weight"].dtype == np.float32
    assert [(i.name, i.reason) for i in trace(subnet).islands()] == [("conv", "its weights are in float")]


def test_a_relu_of_its_own_is_a_clip_of_codes(tmp_path):
    subnet = single(torch.tensor([[3, -4], [-5, 6]]).reshape(2, 2, 1, 1), [8.0, 8.0], [0.1, 0.0])
    conv, pool, fc = subnet.body
    subnet.body = nn.Sequential(conv, nn.ReLU(), pool, fc)
    round_biases(subnet)
    expected, found, _ = outputs(subnet, tmp_path, 2)
    assert torch.equal(expected, found)
    assert trace(subnet).islands() == []


def test_a_net_in_float_is_one_island(tmp_path):
    judge = evaluator(se=True, act="auto")
    judge.supernet.set_mode("float")
    try:
        subnet = judge.supernet.extract(judge.supernet.space.lowest()).fold()
    finally:
        judge.supernet.set_mode("quantize")
    summary = export_onnx(subnet, tmp_path / "m.onnx", metadata={})
    assert "QuantizeLinear" not in summary.operators
    report = compare(subnet, summary.path)
    assert report.passed, report.failures
    assert report.output_step is None
    assert report.largest_difference < 1e-3
    with pytest.raises(ExportError, match="quantize mode"):
        write_packed(subnet, tmp_path / "m.safetensors", {})


def test_an_unfolded_subnet_is_refused():
    judge = evaluator()
    subnet = judge.supernet.extract(judge.supernet.space.lowest())
    with pytest.raises(ExportError, match="fold"):
        trace(subnet)


def test_signed_codes_are_shifted_to_uint8():
    found = code_grid(AffineGrid(torch.tensor(0.5), 0, -8, 7), "a")
    assert dataclasses.astuple(found) == (0.5, 8, 0, 15)
    with pytest.raises(ExportError, match="256"):
        code_grid(AffineGrid(torch.tensor(0.5), 0, -300, 7), "a")
