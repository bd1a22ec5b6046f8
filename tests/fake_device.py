"""A device whose latencies are a formula on a clock of its own: the same numbers on every machine, without waiting."""

from __future__ import annotations

from collections.abc import Callable

import onnx

START = 5e-5  # seconds that starting any model takes
NODE, WEIGHT = 1e-5, 1e-9  # of every node that computes, and of every element of its constants
FREE = ("DequantizeLinear", "Transpose", "QuantizeLinear", "Relu")  # fused with others, or what a cut adds


def seconds(model_path: str) -> float:
    """Return the time of one inference: a sum over nodes, so that that of a net is that of its parts."""
    graph = onnx.load(model_path).graph
    sizes = {t.name: max(1, int(onnx.numpy_helper.to_array(t).size)) for t in graph.initializer}
    spread = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    total = START
    for node in graph.node:
        if node.op_type not in FREE:
            total += NODE + WEIGHT * sum(sizes.get(spread.get(name, name), 0) for name in node.input)
    return total


class FakeDevice:
    """Takes :func:`seconds` for an inference.

    Args:
        slowed: factor on everything, given the number of the inference: how a machine's speed drifts.
    """

    version = "1.0"
    native_bits = (8,)

    def __init__(self, slowed: Callable[[int], float] = lambda number: 1.0) -> None:
        self.now = 0.0
        self.number = 0
        self.slowed = slowed
        self.prepared: list[str] = []

    def prepare(self, model_path: str, batch: int, threads: int) -> Callable[[], None]:
        """Return what lets the time pass."""
        needed = seconds(model_path) * batch / threads
        self.prepared.append(model_path)

        def infer() -> None:
            self.now += needed * self.slowed(self.number)
            self.number += 1

        return infer

    def clock(self, threads: int) -> Callable[[], float]:
        """Return the device's own clock."""
        return lambda: self.now
