"""Cuts the ONNX model of a subnet into one model a block, so that blocks are timed by themselves.

Tensors between blocks are inputs and outputs as the whole net passes them on: uint8 codes, or floats inside an island
that stays in float.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qnas.deploy.graph import IR_VERSION, OPSET, PRODUCER
from qnas.deploy.onnx_export import BuiltModel
from qnas.deploy.trace import ON_CODES
from qnas.nn.subnet import SubnetLayer

if TYPE_CHECKING:
    import onnx

CHUNK = 16  # of a digest, in hexadecimal digits
INSIDE = "DequantizeLinear"  # belongs to whoever takes its values: runtimes fuse it with the operator behind it
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class BlockModel:
    """One block of a subnet as a model of its own.

    Attributes:
        block: its name.
        model: inputs are uint8 codes or float32, as they come from the blocks before.
        structure: digest of operators and shapes: models that share it take the same time.
    """

    block: str
    model: onnx.ModelProto
    structure: str


def cut(built: BuiltModel, block_of: Mapping[str, str]) -> dict[str, BlockModel]:
    """Return the models of the blocks by name; a block that computes nothing has none.

    Args:
        built: a whole subnet.
        block_of: the block of each site.
    """
    import onnx

    places = _places(built, block_of)
    inferred = onnx.shape_inference.infer_shapes(built.model)
    parts: dict[str, list[onnx.NodeProto]] = {}
    for node in inferred.graph.node:
        step, clip = built.made_by[node.name], node.op_type == "Clip"
        parts.setdefault(places[step][int(clip)], []).append(node)
    cutter = _Cutter(inferred.graph)
    found = {name: cutter.model(name, nodes) for name, nodes in parts.items()}
    return {name: BlockModel(name, m, structure(m)) for name, m in found.items() if m is not None}


def _places(built: BuiltModel, block_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return for each step the block that it is timed with, and that of its clip.

    A layer is of its own block. Whatever follows it in float, up to the grid on which the result is put, belongs to the
    same operator of the runtime and so to the layer's block, whoever asks for that grid; but cutting the codes off is
    on account of the site that has so few bits. What moves codes is of the block that was at work when it is done: a
    shortcut without weights of that whose convolutions came before it, not of the one whose result it takes.
    """
    steps = built.steps
    made: dict[str, int] = {}
    places: list[tuple[str, str]] = []
    first = next(block_of[step.name] for step in steps.steps if step.name in block_of)
    for number, step in enumerate(steps.steps):
        own, producers = block_of.get(step.name), [made[value] for value in step.inputs if value in made]
        before = places[max(producers)][0] if producers else None
        on_grid = steps.grids[step.inputs[0]] is not None or not producers
        takes_own = isinstance(step.module, SubnetLayer) or (step.kind == "quantize" and on_grid)
        moves = step.kind in ON_CODES and on_grid and bool(places)
        place = places[-1][0] if moves else (own if takes_own else before) or own or before or first
        places.append((place, own or place))
        made[step.output] = number
    return places


class _Cutter:
    """Makes models of some of a graph's nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.takers: dict[str, list[str]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node.name)
        self.kinds = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}

    def model(self, block: str, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto | None:
        """Return the model of a block's nodes; ``None`` where they compute nothing that anyone takes."""
        import onnx
        from onnx import helper

        outputs = self._outputs(nodes)
        kept, inputs = self._needed(nodes, outputs)
        if not any(node.op_type != INSIDE for node in kept):
            return None
        kept, inputs, outputs = self._channels_last(kept, inputs, outputs)
        named = dict.fromkeys(name for node in kept for name in node.input)
        graph = helper.make_graph(
            kept, block, inputs, outputs, [self.constants[name] for name in named if name in self.constants]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name=PRODUCER)
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model

    def _outputs(self, nodes: Sequence[onnx.NodeProto]) -> list[str]:
        """Return what others take of the nodes' results, as codes where it is on a grid."""
        own = {node.name for node in nodes}
        made = {name for node in nodes for name in node.output}
        found = []
        for node in nodes:
            for name in node.output:
                if name in self.outputs:
                    found.append(name)
                elif any(taker not in own for taker in self.takers.get(name, ())):
                    codes = node.input[0] if node.op_type == INSIDE else name
                    found += [codes] if codes in made else []
        return list(dict.fromkeys(found))

    def _needed(
        self, nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]
    ) -> tuple[list[onnx.NodeProto], list[str]]:
        """Return the nodes that the outputs need, in order, and the tensors that come from elsewhere."""
        own = {name for node in nodes for name in node.output}
        wanted, inputs = set(outputs), []
        kept: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if not wanted.intersection(node.output):
                continue
            kept.append(node)
            wanted.update(node.input)
        foreign = [name for name in sorted(wanted) if name not in own and name not in self.constants and name]
        for name in foreign:
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == INSIDE:
                kept.append(maker)
                if maker.input[0] not in own:
                    inputs.append(maker.input[0])
            else:
                inputs.append(name)
        order = {name: i for i, name in enumerate(self.makers)}
        kept.sort(key=lambda node: order[node.output[0]])
        return kept, list(dict.fromkeys(inputs))

    def _channels_last(
        self, nodes: list[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]
    ) -> tuple[list[onnx.NodeProto], list[Any], list[Any]]:
        """Let maps of codes come and go channels-last, as integer kernels leave them to one another in a whole net.

        A runtime would else transpose them at both ends of every block, which it does not do inside a net.
        """
        from onnx import helper

        before, after, taken, given = [], [], [], []
        for name in inputs:
            kind, shape = self._kind(name)
            if len(shape) != 4 or name in self.inputs:
                taken.append(self.kinds[name])
                continue
            taken.append(helper.make_tensor_value_info(f"{name}.last", kind, [shape[i] for i in TO_NHWC]))
            before.append(helper.make_node("Transpose", [f"{name}.last"], [name], f"{name}.in", perm=TO_NCHW))
        for name in outputs:
            kind, shape = self._kind(name)
            if len(shape) != 4 or name in self.outputs:
                given.append(self.kinds[name])
                continue
            given.append(helper.make_tensor_value_info(f"{name}.result", kind, [shape[i] for i in TO_NHWC]))
            after.append(helper.make_node("Transpose", [name], [f"{name}.result"], f"{name}.out", perm=TO_NHWC))
        return [*before, *nodes, *after], taken, given

    def _kind(self, name: str) -> tuple[int, list[int | str]]:
        kind = self.kinds[name].type.tensor_type
        return kind.elem_type, [size.dim_value or size.dim_param for size in kind.shape.dim]


def structure(model: onnx.ModelProto) -> str:
    """Return the digest of a model's operators and shapes; weights, scales and names do not matter."""
    from onnx import TensorProto

    graph, names = model.graph, dict[str, int]()

    def number(name: str) -> int:
        return names.setdefault(name, len(names))

    lines = []
    for value in graph.input:
        kind = value.type.tensor_type
        shape = [size.dim_value for size in kind.shape.dim]
        lines.append(f"input {number(value.name)} {kind.elem_type} {shape}")
    for tensor in graph.initializer:
        fixed = bytes(tensor.raw_data).hex() if tensor.data_type == TensorProto.INT64 else ""
        lines.append(f"constant {number(tensor.name)} {tensor.data_type} {list(tensor.dims)} {fixed}")
    for node in graph.node:
        ends = [[number(name) for name in side] for side in (node.input, node.output)]
        settings = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
        lines.append(f"{node.op_type} {ends} {settings}")
    lines.append(f"outputs {[number(value.name) for value in graph.output]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:CHUNK]
