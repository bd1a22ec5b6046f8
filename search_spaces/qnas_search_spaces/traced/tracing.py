"""Tracing a network with torch.fx: its graph, the shape of every value, and where in the user's code a node is from."""

from __future__ import annotations

import os
import re
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qnas.errors import ConfigError
from qnas.factories import is_users_code
from qnas_search_spaces.traced.network import OWN

BATCH = 2  # images in the batch that shapes are propagated with
_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in [^\n]*\n\s+(?P<text>[^\n]*)')
_PLAIN = (
    (nn.Conv2d, ("forward", "_conv_forward")),
    (nn.Linear, ("forward",)),
    (nn.BatchNorm2d, ("forward",)),
)  # a subclass that computes the same is a layer like them


class Tracer(fx.Tracer):
    """Keeps torch's own modules, and subclasses that compute what they do, whole; notes the user's lines."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module becomes one node."""
        return plain_type(m) is not None or super().is_leaf_module(m, module_qualified_name)


def plain_type(module: nn.Module) -> type[nn.Module] | None:
    """Return ``Conv2d``, ``Linear`` or ``BatchNorm2d`` where the module computes exactly what that does."""
    for plain, methods in _PLAIN:
        if isinstance(module, plain) and all(getattr(type(module), name) is getattr(plain, name) for name in methods):
            return plain
    return None


@dataclass(frozen=True)
class Traced:
    """A network as a graph.

    Attributes:
        network: that was traced; its tensors have no values any more.
        source: ``PACKAGE.MODULE:FACTORY``.
        graph: of its computation.
        values: what each node gives for a batch of :data:`BATCH` images, on the device ``meta``.
    """

    network: nn.Module
    source: str
    graph: fx.Graph
    values: dict[fx.Node, Any]

    def scope(self, node: fx.Node) -> str:
        """Return the path of the module that a node is computed in; empty for the network itself."""
        if node.op == "call_module":
            return str(node.target)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]) if stack else ""

    def at(self, node: fx.Node) -> str:
        """Return where a node is from: its name, its module and the line of the user's code."""
        scope = self.scope(node)
        found = f"node {node.name!r} in {f'module {scope!r}' if scope else 'the network itself'}"
        line = _line(node.stack_trace or "")
        return f"{found}, {line}" if line else found

    def refuse(self, node: fx.Node, what: str, instead: str) -> ConfigError:
        """Return the error for a node that cannot be a part of a space."""
        return ConfigError(f"{self.source} cannot become a search space: {what} at {self.at(node)}. {instead}")


def trace_network(network: nn.Module, source: str, channels: int, size: int) -> Traced:
    """Trace a network and propagate the shapes of a batch of images through it.

    Args:
        network: in evaluation mode; its parameters are given up.
        source: for messages.
        channels, size: of the images; they are square.

    Raises:
        ConfigError: it does what torch.fx cannot trace, or images of this size do not pass through it.
    """
    try:
        graph = Tracer().trace(network)
    except Exception as error:  # tracing runs the user's code on symbols, which may fail in any way
        raise _untraceable(network, source, error) from error
    images = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in images[1:] if not node.args]
    if not images or needed:
        raise ConfigError(
            f"{source} makes a network that takes {len(needed) + bool(images)} arguments; one batch of images is "
            "wanted. Wrap it in a module whose forward takes one."
        )
    traced = Traced(network.to("meta"), source, graph, {})
    runner = _Shapes(traced, size)
    runner.run(torch.empty(BATCH, channels, size, size, device="meta"))
    return traced


class _Shapes(fx.Interpreter):
    """Runs a graph on tensors without values, and keeps what each node gives."""

    def __init__(self, traced: Traced, size: int) -> None:
        super().__init__(fx.GraphModule(traced.network, traced.graph))
        self.traced = traced
        self.size = size
        self.extra_traceback = False
        self.originals = {node.name: node for node in traced.graph.nodes}  # it works on a copy of the graph

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        original = self.originals[n.name]
        try:
            value = super().run_node(n)
        except Exception as error:  # any operation may refuse the shape that it is given
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"Images of {self.size} x {self.size} pixels do not pass through {self.traced.source}: {reason}, at "
                f"{self.traced.at(original)}. Choose another --image-size, or options of the network that fit its "
                "channels and size."
            ) from error
        self.traced.values[original] = value
        return value


def _line(stack_trace: str) -> str:
    """Return the innermost line of a node's stack that is the user's."""
    frames = [m for m in _FRAME.finditer(stack_trace) if is_users_code(m["file"], OWN)]
    return f"{frames[-1]['file']} line {frames[-1]['line']} (`{frames[-1]['text'].strip()}`)" if frames else ""


def _untraceable(network: nn.Module, source: str, error: Exception) -> ConfigError:
    """Say which module and line of the user's code tracing stopped at."""
    paths = {id(module): name for name, module in network.named_modules()}
    scope, place = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        filename = os.path.abspath(frame.f_code.co_filename)
        owner = frame.f_locals.get("self")
        if id(owner) in paths:
            scope = paths[id(owner)]
        if is_users_code(filename, OWN):
            found = traceback.extract_stack(frame, limit=1)[0]
            text = traceback.FrameSummary(filename, line, found.name).line or ""
            place = f" at {filename} line {line} (`{text.strip()}`)"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ConfigError(
        f"{source} cannot be traced by torch.fx: {reason}{place}, in "
        f"{f'module {scope!r}' if scope else 'the network itself'}. The computation must not depend on the data or its "
        "shape: leave out such branches, loops and conversions, or choose another network."
    )
