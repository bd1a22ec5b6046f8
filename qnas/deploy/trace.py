"""The order of integer operations that a folded subnet stands for, whatever space it comes from."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from qnas.deploy.integers import CodeGrid, code_grid
from qnas.errors import ExportError
from qnas.nn.activation import FloatSqueezeExcite, GlobalPool, GridQuantize, HardSwish
from qnas.nn.features import FloatHead
from qnas.nn.flexconn import FoldChannels
from qnas.nn.graph import Concat, Flatten, Product, SelectChannels, Unflatten
from qnas.nn.subnet import ChannelAffine, PaddedShortcut, Subnet, SubnetLayer, SubnetNorm

FLOAT_MODULES: dict[type[nn.Module], str] = {
    HardSwish: "h-swish",
    FloatSqueezeExcite: "squeeze-excite",
    nn.Hardsigmoid: "h-sigmoid",
    nn.SiLU: "silu",
    ChannelAffine: "affine",
}
CODE_MODULES: dict[type[nn.Module], str] = {
    nn.MaxPool2d: "max-pool",
    PaddedShortcut: "pad-shortcut",
    Flatten: "flatten",
    Unflatten: "unflatten",
    SelectChannels: "select-channels",
}
GRID_MODULES: dict[type[nn.Module], str] = {
    GlobalPool: "global-pool",
    nn.AvgPool2d: "avg-pool",
    FoldChannels: "fold-channels",
    Concat: "concat",
    Product: "product",
    nn.Sigmoid: "sigmoid",
}
SUFFIXES = {  # of steps' names
    "global-pool": "mean", "avg-pool": "mean", "max-pool": "max", "pad-shortcut": "pad", "fold-channels": "fold",
}  # fmt: skip
ON_CODES = ("relu", *CODE_MODULES.values())  # kinds that keep a tensor on its grid
ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: ``quantize`` (:class:`GridQuantize`), ``conv`` or ``linear`` (:class:`SubnetLayer`, without its grids),
            ``add``, ``relu`` and ``clip`` (where no grid follows), ``head`` (:class:`FloatHead`), or one of
            :data:`FLOAT_MODULES`, :data:`CODE_MODULES` (which move codes) and :data:`GRID_MODULES` (whose result is
            put on a grid next).
        name: the site's, or derived from the site before it.
        inputs: names of values.
        output: name of the value that it makes.
        module: that it comes from; ``None`` for an addition.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    module: nn.Module | None = None


@dataclass(frozen=True)
class Island:
    """An operation that stays in float, and why."""

    name: str
    reason: str


@dataclass
class Trace:
    """A subnet as a list of steps, in an order in which they can be executed.

    Attributes:
        input: name of a value.
        outputs: names of values: one, or a backbone's features.
        grids: of each value; ``None`` where it is in float (or an integer accumulator that is put on a grid next).
        flat: values of shape ``[N, C]``; the others are maps.
    """

    input: str
    outputs: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    grids: dict[str, CodeGrid | None] = field(default_factory=dict)
    flat: set[str] = field(default_factory=set)

    @property
    def output(self) -> str:
        """Name of the (first) output."""
        return self.outputs[0]

    def add(self, step: Step) -> str:
        """Append a step and return the name of its value."""
        grid: CodeGrid | None = None
        if isinstance(step.module, GridQuantize):
            grid = code_grid(step.module.grid, step.name)
        elif step.kind in ON_CODES:
            grid = self.grids[step.inputs[0]]
            if grid is not None and step.kind == "relu":
                grid = grid.rectified()
        self.steps.append(step)
        self.grids[step.output] = grid
        if step.kind in ("flatten", "linear") or (step.kind != "unflatten" and step.inputs[0] in self.flat):
            self.flat.add(step.output)
        return step.output

    def input_grid(self, step: Step) -> CodeGrid | None:
        """Return the grid on which a step's (first) input arrives, wherever it was put there."""
        return self.grids[step.inputs[0]]

    def consumers(self, value: str) -> list[Step]:
        """Return the steps that take ``value``."""
        return [step for step in self.steps if value in step.inputs]

    def layers(self) -> Iterator[tuple[Step, SubnetLayer]]:
        """Yield the steps with weights of their own, with their layers."""
        for step in self.steps:
            if isinstance(step.module, SubnetLayer):
                yield step, step.module

    def islands(self) -> list[Island]:
        """Return the operations that no integer kernel can execute."""
        found = []
        for step in self.steps:
            reason = self._float_reason(step)
            if reason:
                found.append(Island(step.name, reason))
        return found

    def _float_reason(self, step: Step) -> str:
        if step.kind == "head":
            return "the head is in float"
        if step.kind in FLOAT_MODULES.values():
            return f"{step.kind} has no integer kernel"
        if step.kind == "quantize":
            return ""
        if isinstance(step.module, SubnetLayer) and step.module.grid is None:
            return "its weights are in float"
        if any(self.grids[name] is None for name in step.inputs):
            return "its input is in float"
        if step.kind in ON_CODES:
            return ""
        after = self.consumers(step.output)
        if len(after) != 1 or after[0].kind != "quantize":
            return "its output is used in float"
        return ""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (SubnetLayer, SubnetNorm, GridQuantize, FloatHead, *FLOAT_MODULES, *CODE_MODULES, *GRID_MODULES)
        return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)


def trace(subnet: Subnet) -> Trace:
    """Return the steps of a folded subnet.

    Raises:
        ExportError: it is not folded, or holds an operation that has no counterpart in an integer graph.
    """
    for module in subnet.modules():
        if isinstance(module, (SubnetLayer, SubnetNorm)) and module.bn is not None:
            name = module.spec.name if isinstance(module, SubnetLayer) else module.name
            raise ExportError(
                f"Layer {name!r} still has its batch normalisation. Call fold() on the subnet before export."
            )
    try:
        graph = _Tracer().trace(subnet)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ExportError(
            f"The subnet's computation cannot be traced: {error}. Its modules must not branch on the data."
        ) from error
    return _Builder(subnet).build(graph)


class _Builder:
    """Turns nodes of torch.fx into steps."""

    def __init__(self, subnet: Subnet) -> None:
        self.subnet = subnet
        self.values: dict[fx.Node, str] = {}
        self.names: dict[str, str] = {}  # of the step that made a value

    def build(self, graph: fx.Graph) -> Trace:
        images = [node for node in graph.nodes if node.op == "placeholder"]
        if len(images) != 1:
            raise ExportError(f"A subnet takes one tensor of images; this one takes {len(images)}.")
        self.trace = Trace(images[0].name, grids={images[0].name: None})
        self.values[images[0]] = images[0].name
        for node in graph.nodes:
            if node.op == "call_module":
                self.values[node] = self._module(node)
            elif node.op == "call_function" and node.target in ADDITIONS:
                self.values[node] = self._addition(node)
            elif node.op == "output":
                answer = node.args[0]
                several = answer if isinstance(answer, tuple) else (answer,)
                self.trace.outputs = tuple(self._value(one, node) for one in several)
            elif node.op != "placeholder":
                raise _unknown(node, f"{node.op} {node.target}")
        return self.trace

    def _value(self, argument: object, node: fx.Node) -> str:
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise _unknown(node, f"the argument {argument!r}")
        return self.values[argument]

    def _step(self, kind: str, name: str, inputs: tuple[str, ...], output: str, module: nn.Module | None) -> str:
        self.names[output] = name
        return self.trace.add(Step(kind, name, inputs, output, module))

    def _addition(self, node: fx.Node) -> str:
        if len(node.args) != 2 or node.kwargs:
            raise _unknown(node, "an addition with options")
        x, y = (self._value(argument, node) for argument in node.args)
        return self._step("add", node.name, (x, y), node.name, None)

    def _module(self, node: fx.Node) -> str:
        module = self.subnet.get_submodule(str(node.target))
        if isinstance(module, FloatHead) and isinstance(node.args[0], tuple):
            features = tuple(self._value(argument, node) for argument in node.args[0])
            return self._step("head", type(module).__name__, features, node.name, module)
        inputs = tuple(self._value(argument, node) for argument in node.args)
        if (len(inputs) != 1 and not isinstance(module, (Concat, Product))) or node.kwargs:
            raise _unknown(node, f"{type(module).__name__} with options")
        x = inputs[0]
        if isinstance(module, SubnetLayer):
            return self._layer(module, x, node.name)
        if isinstance(module, (GridQuantize, nn.ReLU, nn.Hardtanh)):
            return self._activation(module, x, node.name)
        if isinstance(module, SubnetNorm):
            assert module.affine is not None
            return self._step("affine", module.name, (x,), node.name, module.affine)
        if isinstance(module, (FloatSqueezeExcite, ChannelAffine)):
            name = module.name
            return self._step(FLOAT_MODULES[type(module)], name, (x,), node.name, module)
        for kinds in (FLOAT_MODULES, CODE_MODULES, GRID_MODULES):
            kind = kinds.get(type(module))
            if kind is not None:
                return self._step(kind, f"{self._site(x)}.{SUFFIXES.get(kind, kind)}", inputs, node.name, module)
        if isinstance(module, nn.Sequential) and not len(module):
            return x
        raise _unknown(node, type(module).__name__)

    def _site(self, value: str) -> str:
        return self.names.get(value, value).removesuffix(".out")

    def _activation(self, module: nn.Module, x: str, output: str) -> str:
        if isinstance(module, GridQuantize):
            return self._step("quantize", module.name, (x,), output, module)
        if isinstance(module, nn.Hardtanh):
            return self._step("clip", f"{self._site(x)}.clip", (x,), output, module)
        return self._step("relu", f"{self._site(x)}.relu", (x,), output, module)

    def _layer(self, layer: SubnetLayer, x: str, node: str) -> str:
        if layer.input is not None:
            x = self._activation(layer.input, x, f"{node}.input")
        x = self._step("linear" if layer.spec.kind == "linear" else "conv", layer.spec.name, (x,), node, layer)
        if layer.raw is not None:
            x = self._activation(layer.raw, x, f"{node}.raw")
        if layer.affine is not None:
            x = self._step("affine", layer.affine.name, (x,), f"{node}.affine", layer.affine)
        return x if layer.output is None else self._activation(layer.output, x, f"{node}.output")


def squeeze_excite_weights(module: FloatSqueezeExcite) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return weight and bias of both layers of ``module``."""
    w1, b1, w2, b2 = (module.get_buffer(name) for name in ("w1", "b1", "w2", "b2"))
    return (w1, b1), (w2, b2)


def _unknown(node: fx.Node, what: str) -> ExportError:
    return ExportError(
        f"The subnet holds {what} at {node.name!r}, which has no counterpart in an integer graph. "
        "Build spaces of the layers of qnas.nn."
    )
