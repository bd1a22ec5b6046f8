"""A thin layer over ``onnx.helper``: collects nodes and constants of a QDQ graph, and writes the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qnas.deploy.integers import CodeGrid

if TYPE_CHECKING:
    import onnx

OPSET = 21  # the newest of onnx is rejected by current runtimes
IR_VERSION = 10
PRODUCER = "qnas"


class GraphWriter:
    """Nodes and constants in the order in which they are added; equal names are numbered."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self._used: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        """Return ``name``, numbered if it was returned before."""
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}_{self._used[name]}"

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Store an initializer; one that is equal in name and value is shared."""
        known = self.constants.get(name)
        if known is not None and (known.dtype != value.dtype or not np.array_equal(known, value)):
            name = self.unique(name)
        self.constants.setdefault(name, value)
        self._used[name] = max(self._used[name], 1)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        from onnx import helper  # here, so that only an export takes the time to import it

        output = self.unique(output)
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}.{op}", **attributes))
        return output

    def grid(self, site: str, grid: CodeGrid) -> list[str]:
        """Return the names of a grid's scale and zero point, which are 0-d."""
        return [
            self.constant(f"{site}.grid_scale", np.array(grid.scale, np.float32)),
            self.constant(f"{site}.grid_zero_point", np.array(grid.zero_point, np.uint8)),
        ]

    def quantize(self, x: str, site: str, grid: CodeGrid) -> str:
        """Return the codes of a float value, clipped to the grid where it is narrower than uint8."""
        codes = self.node("QuantizeLinear", [x, *self.grid(site, grid)], f"{site}.codes")
        return codes if (grid.low, grid.high) == (0, 255) else self.clip(codes, site, grid)

    def clip(self, codes: str, site: str, grid: CodeGrid) -> str:
        """Return codes clipped to the grid's range."""
        low = self.constant(f"{site}.low", np.array(grid.low, np.uint8))
        high = self.constant(f"{site}.high", np.array(grid.high, np.uint8))
        return self.node("Clip", [codes, low, high], f"{site}.clipped")

    def dequantize(self, codes: str, site: str, grid: CodeGrid) -> str:
        """Return the values of codes."""
        return self.node("DequantizeLinear", [codes, *self.grid(site, grid)], f"{site}.values")

    def dequantized_constant(
        self,
        name: str,
        codes: np.ndarray[Any, Any],
        scales: np.ndarray[Any, Any],
        zero_points: np.ndarray[Any, Any] | None = None,
    ) -> str:
        """Return the values of stored codes ``[O, ...]``; scale and zero point (or 0) a channel, ``[O]``."""
        if zero_points is None:
            zero_points = np.zeros(len(scales), codes.dtype)
        inputs = [
            self.constant(f"{name}.codes", codes),
            self.constant(f"{name}.scales", scales),
            self.constant(f"{name}.zero_points", zero_points),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.values", axis=0)

    def rename(self, old: str, new: str) -> None:
        """Give a value another name wherever it stands."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new

    def _prune(self, used: set[str]) -> None:
        """Leave out nodes and constants that nothing takes, for runtimes would execute them."""
        kept = []
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                used.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: value for name, value in self.constants.items() if name in used}

    def model(
        self, inputs: Mapping[str, list[str | int]], outputs: Mapping[str, list[str | int]], metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """Return the checked model without unused nodes; inputs and outputs are float32 with the given shapes."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        self._prune(set(outputs))
        graph = helper.make_graph(
            self.nodes,
            "subnet",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name=PRODUCER)
        model.ir_version = IR_VERSION
        model.model_version = 1
        model.doc_string = "An integer network written by qnas. metadata_props say how pixels become its input."
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model
