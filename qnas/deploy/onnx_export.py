"""Writes a folded subnet as an ONNX model of QuantizeLinear/DequantizeLinear pairs that runtimes fuse to integers.

The graph is built node by node, so scales are those that were trained, to the last bit, and weights are stored as
int8 and biases as int32 codes. Codes of 2 to 7 bits are int8 codes like any other; activations of fewer than 8 bits
are clipped as uint8 between the two halves of a pair, which runtimes keep as an integer operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from qnas.deploy.graph import GraphWriter
from qnas.deploy.integers import CodeGrid, integer_layer, weight_codes
from qnas.deploy.trace import Island, Step, Trace, squeeze_excite_weights, trace
from qnas.errors import ExportError
from qnas.files import write_bytes
from qnas.nn.activation import FloatSqueezeExcite, GridQuantize
from qnas.nn.flexconn import FoldChannels
from qnas.nn.graph import SelectChannels
from qnas.nn.grid import CodebookGrid
from qnas.nn.subnet import ChannelAffine, PaddedShortcut, Subnet, SubnetLayer

INPUT = "images"
OUTPUT = "logits"
Shapes = Mapping[str, list[str | int]]
LAST = 2**31 - 1  # as the end of a slice: whatever comes last


@dataclass(frozen=True)
class ExportSummary:
    """What was written.

    Attributes:
        path: of the model.
        size_bytes: of the file.
        operators: how often each operator stands in the file, before a runtime fuses them.
        islands: operations that stay in float.
    """

    path: str
    size_bytes: int
    operators: dict[str, int]
    islands: tuple[Island, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self) | {"islands": [asdict(island) for island in self.islands]}


def export_onnx(
    subnet: Subnet, path: str | Path, *, metadata: Mapping[str, str], outputs: Shapes | None = None
) -> ExportSummary:
    """Write a folded subnet as ONNX (opset 21, IR 10).

    The input ``images`` is float32 ``[N, C, R, R]``, normalised; the output ``logits`` float32 ``[N, classes]``.
    ``N`` is free. The file's metadata holds ``metadata`` and how pixels become inputs (``input.*``).

    Args:
        subnet: folded.
        path: of the file.
        metadata: names and texts.
        outputs: names and shapes of the outputs, where these are others: the features of a backbone.

    Raises:
        ExportError: a part of the subnet has no counterpart in an integer graph.
    """
    built = build_model(subnet, metadata, outputs)
    content = built.model.SerializeToString()
    path = Path(path)
    write_bytes(path, content)
    operators = dict(sorted(Counter(node.op_type for node in built.model.graph.node).items()))
    return ExportSummary(str(path), len(content), operators, tuple(built.steps.islands()))


@dataclass(frozen=True)
class BuiltModel:
    """A subnet as an ONNX model, and where its nodes come from.

    Attributes:
        model: checked.
        steps: of the subnet.
        made_by: the position in ``steps.steps`` of the step that each node is of, by the node's name.
    """

    model: Any
    steps: Trace
    made_by: dict[str, int]


def build_model(subnet: Subnet, metadata: Mapping[str, str], outputs: Shapes | None = None) -> BuiltModel:
    """Return what :func:`export_onnx` writes.

    Raises:
        ExportError: a part of the subnet has no counterpart in an integer graph.
    """
    exporter = _Exporter(trace(subnet))
    return BuiltModel(exporter.export(subnet, metadata, outputs), exporter.steps, exporter.made_by)


def input_recipe(steps: Trace, resolution: int) -> dict[str, str]:
    """Return how images become inputs, for the model's metadata."""
    recipe = {"input.layout": "NCHW", "input.dtype": "float32", "input.resolution": str(resolution)}
    grids = {steps.grids[step.output] for step in steps.consumers(steps.input) if step.kind == "quantize"}
    grid = grids.pop() if len(grids) == 1 else None
    if grid is not None:
        recipe["input.scale"] = repr(grid.scale)
        recipe["input.zero_point"] = str(grid.zero_point)
        recipe["input.recipe"] = "input = scale * (pixel - zero_point), pixel 0 to 255"
        recipe["input.resize"] = (
            "bilinear, antialiased, to input.resolution; stretch other pixel ranges to 0 to 255 first"
        )
    return recipe


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: its float name; where it is on a grid, its codes' name, the grid and the grid's site."""

    name: str
    codes: str = ""
    grid: CodeGrid | None = None
    site: str = ""


class _Exporter:
    """Emits the nodes of each step."""

    def __init__(self, steps: Trace) -> None:
        self.steps = steps
        self.graph = GraphWriter()
        self.values: dict[str, _Value] = {}
        self.made_by: dict[str, int] = {}

    def export(self, subnet: Subnet, metadata: Mapping[str, str], outputs: Shapes | None) -> Any:
        """Return the model; ``outputs`` are in the order of the trace's, the classifier's by default."""
        steps, layers = self.steps, list(self.steps.layers())
        if not layers:
            raise ExportError("The subnet has no layers with weights.")
        self.values[steps.input] = _Value(self.graph.unique(INPUT))
        emitters: dict[str, Callable[[Step], _Value]] = {
            "quantize": self._quantize,
            "conv": self._conv,
            "linear": self._linear,
            "add": lambda step: self._float(step, "Add"),
            "relu": self._relu,
            "clip": self._clip,
            "max-pool": self._max_pool,
            "avg-pool": self._avg_pool,
            "fold-channels": self._fold_channels,
            "pad-shortcut": self._pad_shortcut,
            "flatten": lambda step: self._on_codes(step, "Flatten", axis=1),
            "unflatten": self._unflatten,
            "select-channels": self._select_channels,
            "concat": lambda step: self._float(step, "Concat", axis=1),
            "global-pool": lambda step: self._float(step, "GlobalAveragePool"),
            "product": lambda step: self._float(step, "Mul"),
            "h-swish": lambda step: self._float(step, "HardSwish"),
            "h-sigmoid": lambda step: self._float(step, "HardSigmoid", alpha=1 / 6, beta=0.5),
            "sigmoid": lambda step: self._float(step, "Sigmoid"),
            "silu": self._silu,
            "squeeze-excite": self._squeeze_excite,
            "affine": self._affine,
        }
        for number, step in enumerate(steps.steps):
            if step.kind not in emitters:
                raise ExportError(f"{step.name!r} is {step.kind!r}, which is not exported. Export the features alone.")
            before = len(self.graph.nodes)
            self.values[step.output] = emitters[step.kind](step)
            self.made_by |= {node.name: number for node in self.graph.nodes[before:]}
        if outputs is None:
            outputs = {OUTPUT: ["N", layers[-1][1].spec.out_channels]}
        for value, name in zip(steps.outputs, outputs, strict=True):
            self.graph.rename(self.values[value].name, name)
        size = subnet.resolution
        return self.graph.model(
            {INPUT: ["N", layers[0][1].spec.in_channels, size, size]},
            outputs,
            {**input_recipe(steps, size), **metadata},
        )

    def _input(self, step: Step) -> _Value:
        return self.values[step.inputs[0]]

    def _float(self, step: Step, op: str, *constants: str, **attributes: Any) -> _Value:
        inputs = [self.values[name].name for name in step.inputs]
        return _Value(self.graph.node(op, [*inputs, *constants], step.name, **attributes))

    def _on_codes(self, step: Step, op: str, *constants: str, **attributes: Any) -> _Value:
        """Emit an operator that moves values without computing: on codes, where there are any."""
        x = self._input(step)
        if x.grid is None:
            return self._float(step, op, *constants, **attributes)
        return self._on_grid(self.graph.node(op, [x.codes, *constants], step.name, **attributes), x.site, x.grid)

    def _on_grid(self, codes: str, site: str, grid: CodeGrid) -> _Value:
        return _Value(self.graph.dequantize(codes, site, grid), codes, grid, site)

    def _quantize(self, step: Step) -> _Value:
        x, grid = self._input(step), self.steps.grids[step.output]
        assert isinstance(step.module, GridQuantize)
        assert grid is not None
        clipped = grid.rectified() if step.module.relu else grid  # saturating at 0 is a ReLU: no node for it
        if x.grid == clipped:
            return x
        name = x.name
        if x.grid is not None:
            # Runtimes drop a bare pair of grids or run it in float. The sum with 0 is an integer operator.
            zero = CodeGrid(1.0, 0, 0, 255)
            shape = (1, 1) if step.inputs[0] in self.steps.flat else (1, 1, 1, 1)
            codes = self.graph.constant("zero.codes", np.zeros(shape, np.uint8))
            name = self.graph.node("Add", [name, self.graph.dequantize(codes, "zero", zero)], f"{step.name}.regrid")
        return self._on_grid(self.graph.quantize(name, step.name, clipped), step.name, grid)

    def _parameters(self, step: Step, x: _Value) -> list[str]:
        """Return the names of weights and bias: dequantized codes, or floats where one of the two is in float."""
        layer, name = step.module, step.name
        assert isinstance(layer, SubnetLayer)
        linear = step.kind == "linear"
        if layer.grid is None or (x.grid is None and not isinstance(layer.grid, CodebookGrid)):
            return self._float_parameters(layer, name, linear=linear)
        if x.grid is None:
            weight_codes(layer)  # raises
        assert x.grid is not None
        integers = integer_layer(layer, x.grid)
        codes, zero_points, scales, bias = integers.int8()
        values = _array(codes.flatten(1) if linear else codes)
        weight = self.graph.dequantized_constant(f"{name}.weight", values, _array(scales), _array(zero_points))
        steps = np.float32(x.grid.scale) * _array(scales)
        return [weight, self.graph.dequantized_constant(f"{name}.bias", _array(bias), steps)]

    def _float_parameters(self, layer: SubnetLayer, name: str, *, linear: bool) -> list[str]:
        weight = self.graph.constant(f"{name}.weight", _array(layer.weight.flatten(1) if linear else layer.weight))
        if layer.bias is None:
            return [weight]
        return [weight, self.graph.constant(f"{name}.bias", _array(layer.bias))]

    def _conv(self, step: Step) -> _Value:
        assert isinstance(step.module, SubnetLayer)
        spec = step.module.spec
        k, s = spec.kernel_size, spec.stride
        return self._float(
            step,
            "Conv",
            *self._parameters(step, self._input(step)),
            kernel_shape=[k, k],
            strides=[s, s],
            pads=[step.module.padding] * 4,
            group=spec.groups,
        )

    def _linear(self, step: Step) -> _Value:
        x = self._input(step)
        if step.inputs[0] in self.steps.flat:
            flat = x
        elif x.grid is None:
            flat = _Value(self.graph.node("Flatten", [x.name], f"{step.name}.flat", axis=1))
        else:
            codes = self.graph.node("Flatten", [x.codes], f"{step.name}.flat", axis=1)
            flat = self._on_grid(codes, x.site, x.grid)
        return _Value(self.graph.node("Gemm", [flat.name, *self._parameters(step, x)], step.name, transB=1))

    def _relu(self, step: Step) -> _Value:
        x, grid = self._input(step), self.steps.grids[step.output]
        if x.grid is None or grid is None:
            return self._float(step, "Relu")
        return x if x.grid.low == grid.low else self._on_grid(self.graph.clip(x.codes, step.name, grid), x.site, grid)

    def _max_pool(self, step: Step) -> _Value:
        pool = step.module
        assert isinstance(pool, nn.MaxPool2d)
        if pool.ceil_mode or pool.return_indices:
            raise ExportError(f"Max pooling at {step.name!r} rounds its size up or returns indices. Do without.")
        attributes = {
            "kernel_shape": _pair(pool.kernel_size),
            "strides": _pair(pool.stride),
            "pads": _pair(pool.padding) * 2,
            "dilations": _pair(pool.dilation),
        }
        return self._on_codes(step, "MaxPool", **attributes)

    def _avg_pool(self, step: Step) -> _Value:
        pool = step.module
        assert isinstance(pool, nn.AvgPool2d)
        padded = _pair(pool.padding) != [0, 0]
        if pool.divisor_override is not None or (pool.ceil_mode and padded):
            # With padding, runtimes do not agree on what a last window that is cut off is divided by.
            raise ExportError(
                f"Average pooling at {step.name!r} has a divisor of its own, or padding and a size that is rounded up. "
                "Do without."
            )
        return self._float(
            step,
            "AveragePool",
            kernel_shape=_pair(pool.kernel_size),
            strides=_pair(pool.stride),
            pads=_pair(pool.padding) * 2,
            ceil_mode=int(pool.ceil_mode),
            count_include_pad=int(pool.count_include_pad and padded),
        )

    def _fold_channels(self, step: Step) -> _Value:
        """Emit a grouped convolution of ones over the channels that are summed, an integer operator on codes.

        Its groups are neighbours, so channels are moved first: on codes too, where there are any.
        """
        fold, x, graph, name = step.module, self._input(step), self.graph, step.name
        assert isinstance(fold, FoldChannels)
        parts = -(-fold.given // fold.channels)
        missing = parts * fold.channels - fold.given
        y = x.name if x.grid is None else x.codes
        if missing:
            pads = graph.constant(f"{name}.pads", np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
            zero = np.array(0, np.float32) if x.grid is None else np.array(x.grid.zero_point, np.uint8)
            y = graph.node("Pad", [y, pads, graph.constant(f"{name}.zero", zero)], f"{name}.padded")
        order = np.arange(parts * fold.channels, dtype=np.int64).reshape(parts, fold.channels).T.reshape(-1)
        y = graph.node("Gather", [y, graph.constant(f"{name}.order", order)], f"{name}.ordered", axis=1)
        ones = np.ones((fold.channels, parts, 1, 1), np.int8)
        if x.grid is None:
            weight = graph.constant(f"{name}.weight", ones.astype(np.float32))
        else:
            y = graph.dequantize(y, x.site, x.grid)
            weight = graph.dequantized_constant(f"{name}.weight", ones, np.ones(fold.channels, np.float32))
        return _Value(graph.node("Conv", [y, weight], name, kernel_shape=[1, 1], group=fold.channels))

    def _clip(self, step: Step) -> _Value:
        clip = step.module
        assert isinstance(clip, nn.Hardtanh)
        low, high = (np.array(bound, np.float32) for bound in (clip.min_val, clip.max_val))
        constants = [self.graph.constant(f"{step.name}.low", low), self.graph.constant(f"{step.name}.high", high)]
        return self._float(step, "Clip", *constants)

    def _unflatten(self, step: Step) -> _Value:
        return self._on_codes(step, "Unsqueeze", self.graph.constant("last.axes", np.array([2, 3], np.int64)))

    def _select_channels(self, step: Step) -> _Value:
        assert isinstance(step.module, SelectChannels)
        channels = np.array(step.module.channels, np.int64)
        return self._on_codes(step, "Gather", self.graph.constant(f"{step.name}.channels", channels), axis=1)

    def _silu(self, step: Step) -> _Value:
        x = self._input(step).name
        gate = self.graph.node("Sigmoid", [x], f"{step.name}.gate")
        return _Value(self.graph.node("Mul", [x, gate], step.name))

    def _pad_shortcut(self, step: Step) -> _Value:
        """Subsample and pad: on codes, so that no arithmetic is needed; the padding is the code of 0."""
        pad, x, graph, name = step.module, self._input(step), self.graph, step.name
        assert isinstance(pad, PaddedShortcut)
        y = x.name if x.grid is None else x.codes
        if pad.stride > 1:
            numbers = {"starts": [0, 0], "ends": [LAST, LAST], "axes": [2, 3], "steps": [pad.stride, pad.stride]}
            inputs = [graph.constant(f"{name}.{key}", np.array(value, np.int64)) for key, value in numbers.items()]
            y = graph.node("Slice", [y, *inputs], f"{name}.subsampled")
        if pad.front or pad.back:
            pads = graph.constant(f"{name}.pads", np.array([0, pad.front, 0, 0, 0, pad.back, 0, 0], np.int64))
            zero = np.array(0, np.float32) if x.grid is None else np.array(x.grid.zero_point, np.uint8)
            y = graph.node("Pad", [y, pads, graph.constant(f"{name}.zero", zero)], name)
        return _Value(y) if x.grid is None else self._on_grid(y, x.site, x.grid)

    def _affine(self, step: Step) -> _Value:
        """Emit one operator for factor and offset: batch normalisation with a mean of 0 and a variance of 1."""
        affine, graph, name = step.module, self.graph, step.name
        assert isinstance(affine, ChannelAffine)
        ones = np.ones(len(affine.factor), np.float32)
        constants = [
            graph.constant(f"{name}.factor", _array(affine.factor)),
            graph.constant(f"{name}.offset", _array(affine.offset)),
            graph.constant(f"{name}.mean", 0 * ones),
            graph.constant(f"{name}.variance", ones),
        ]
        return self._float(step, "BatchNormalization", *constants, epsilon=0.0)

    def _squeeze_excite(self, step: Step) -> _Value:
        se, graph, name = step.module, self.graph, step.name
        assert isinstance(se, FloatSqueezeExcite)
        x = self._input(step).name
        reduce, expand = squeeze_excite_weights(se)

        def constants(layer: str, weight: Tensor, bias: Tensor) -> list[str]:
            return [
                graph.constant(f"{name}.{layer}.weight", _array(weight)),
                graph.constant(f"{name}.{layer}.bias", _array(bias)),
            ]

        y = graph.node("GlobalAveragePool", [x], f"{name}.mean")
        y = graph.node("Conv", [y, *constants("reduce", *reduce)], f"{name}.reduce", kernel_shape=[1, 1])
        y = graph.node("Relu", [y], f"{name}.relu")
        y = graph.node("Conv", [y, *constants("expand", *expand)], f"{name}.expand", kernel_shape=[1, 1])
        y = graph.node("HardSigmoid", [y], f"{name}.gate", alpha=1 / 6, beta=0.5)
        return _Value(graph.node("Mul", [x, y], name))


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().contiguous().cpu().numpy()


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value, value]
