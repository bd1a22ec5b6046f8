"""From the nodes of torch.fx to operations: which calls of torch mean what, and which cannot be a part of a space."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qnas.errors import ConfigError
from qnas.nn.activation import GlobalPool, HardSwish
from qnas.nn.graph import Concat, Flatten, Product, SelectChannels, Sum, Unflatten
from qnas_search_spaces.traced.operations import Layer, Operation, Program, Ref, without_unused
from qnas_search_spaces.traced.tracing import Traced, plain_type

SUPPORTED = (
    "Supported are Conv2d, Linear and BatchNorm2d; ReLU, ReLU6, Hardswish, Hardsigmoid, Sigmoid and SiLU; additions, "
    "products and concatenations of tensors; max, average and global average pooling; flatten, chunks, slices and "
    "shuffles of channels; dropout. Write it with these, or choose another network."
)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
FLOAT_FUNCTIONS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "h-swish": (HardSwish, False),
    "h-sigmoid": (nn.Hardsigmoid, True),
    "sigmoid": (nn.Sigmoid, True),
    "silu": (nn.SiLU, False),
}
"""What makes each, and whether its output cannot be below zero."""

FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", "relu": "relu", "relu_": "relu",
    F.relu6: "relu6", F.hardtanh: "hardtanh",
    torch.clamp: "clamp", "clamp": "clamp", "clamp_": "clamp",
    F.hardswish: "h_swish", F.hardsigmoid: "h_sigmoid", F.silu: "silu",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid", "sigmoid_": "sigmoid",
    operator.add: "add", operator.iadd: "add", torch.add: "add", "add": "add", "add_": "add",
    operator.mul: "multiply", operator.imul: "multiply", torch.mul: "multiply", "mul": "multiply", "mul_": "multiply",
    operator.truediv: "divide", operator.itruediv: "divide", torch.div: "divide", "div": "divide", "div_": "divide",
    torch.cat: "concat", torch.concat: "concat", torch.concatenate: "concat",
    F.max_pool2d: "max_pool", torch.max_pool2d: "max_pool",
    F.avg_pool2d: "avg_pool",
    F.adaptive_avg_pool2d: "adaptive_avg_pool", F.adaptive_max_pool2d: "adaptive_max_pool",
    torch.mean: "mean", "mean": "mean",
    torch.flatten: "reshape", "flatten": "reshape", torch.reshape: "reshape", "reshape": "reshape", "view": "reshape",
    torch.squeeze: "reshape", "squeeze": "reshape", torch.unsqueeze: "reshape", "unsqueeze": "reshape",
    torch.transpose: "transpose", "transpose": "transpose", "permute": "permute", torch.permute: "permute",
    torch.chunk: "chunk", "chunk": "chunk", torch.split: "chunk", "split": "chunk",
    F.dropout: "identity", F.dropout2d: "identity", "contiguous": "identity",
    "clone": "identity", torch.clone: "identity",
}  # fmt: skip


def lower(traced: Traced) -> Program:
    """Return the operations of a traced network.

    Raises:
        ConfigError: one of its nodes has no counterpart; names the node, its module and the user's line.
    """
    return _Lowering(traced).run()


class _Groups:
    """Channels that are being shuffled: the value, and the positions of its channels as ``[groups, channels]``."""

    def __init__(self, ref: Ref, order: Tensor) -> None:
        self.ref = ref
        self.order = order


class _Shifted:
    """What comes before the division by 6 where a hard sigmoid or h-swish is written by hand.

    Attributes:
        ref: ``x``.
        form: ``shifted`` (``x + 3``), ``clipped`` (``relu6(x + 3)``) or ``product`` (``x * relu6(x + 3)``).
    """

    def __init__(self, ref: Ref, form: str) -> None:
        self.ref = ref
        self.form = form


class _Lowering:
    """Goes through a graph once; ``env`` says what each node's tensor is made of."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.operations: list[Operation] = []
        self.env: dict[fx.Node, Ref | _Groups | _Shifted] = {}
        self.names: Counter[str] = Counter()
        self.called: dict[str, fx.Node] = {}
        self.absorbed: set[str] = set()  # batch normalisations that belong to a convolution
        self.modules: Mapping[str, nn.Module] = dict(traced.network.named_modules())

    def run(self) -> Program:
        """Return the program."""
        image_shape: tuple[int, ...] = ()
        output = Ref(0)
        for node in self.traced.graph.nodes:
            value = self.traced.values.get(node)
            if node.op == "placeholder":
                if not image_shape:
                    image_shape = tuple(value.shape[1:])
                    self.env[node] = Ref(0)
            elif node.op == "output":
                output = self._output(node)
            elif isinstance(value, (Tensor, tuple, list)) and _holds_tensors(value):
                self._visit(node, value)
        return without_unused(self.operations, output, image_shape)

    def _visit(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] != value.shape[-2]:
            raise self.traced.refuse(
                node, f"a map of {value.shape[-2]} x {value.shape[-1]} pixels", "Maps must be square."
            )
        if node.op == "get_attr":
            return  # refused by whatever takes it
        if node.op == "call_module":
            result = self._module(node, self.modules[str(node.target)])
        elif node.target is operator.getitem:
            result = self._item(node, *node.args)
        else:
            name = FUNCTIONS.get(node.target)
            if name is None:
                raise self._unknown(node)
            result = self._call(node, getattr(self, f"_{name}"))
        if result is not None:
            self.env[node] = result

    def _call(self, node: fx.Node, handler: Callable[..., Any], **given: Any) -> Any:
        """Call a handler with the node's arguments; tensors stay nodes, sizes become numbers."""

        def resolved(argument: fx.Node) -> Any:
            value = self.traced.values.get(argument)
            return argument if _holds_tensors(value) else value

        args = fx.node.map_arg(node.args, resolved)
        kwargs = fx.node.map_arg(node.kwargs, resolved)
        try:
            return handler(node, *args, **kwargs, **given)
        except TypeError as error:
            raise self.traced.refuse(node, f"{self._title(node)} with options ({error})", SUPPORTED) from error

    # --- helpers -------------------------------------------------------------------------------------------------

    def _title(self, node: fx.Node) -> str:
        """Return what a node does, as its author would call it."""
        if node.op == "call_module":
            return f"module {type(self.modules[str(node.target)]).__name__}"
        return (
            f".{node.target}()"
            if isinstance(node.target, str)
            else f"{getattr(node.target, '__name__', node.target)}()"
        )

    def _unknown(self, node: fx.Node) -> ConfigError:
        return self.traced.refuse(node, self._title(node), SUPPORTED)

    def _ref(self, x: Any, node: fx.Node) -> Ref:
        found = self.env.get(x) if isinstance(x, fx.Node) else None
        if isinstance(found, Ref):
            return found
        if isinstance(x, fx.Node) and x.op == "get_attr":
            raise self.traced.refuse(node, f"{self._title(node)} with the network's tensor {x.target!r}", SUPPORTED)
        what = "a number" if not isinstance(x, fx.Node) else f"what {x.name!r} gives"
        raise self.traced.refuse(node, f"{self._title(node)} with {what}", SUPPORTED)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self.traced.values[node].shape[1:])

    def _name(self, node: fx.Node, kind: str) -> str:
        """Return a unique name: the module's path, and what is computed there where it is no module of its own."""
        scope = self.traced.scope(node)
        name = scope if node.op == "call_module" else ".".join(filter(None, [scope, kind.replace("-", "_")]))
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name]}"

    def _add_operation(
        self, node: fx.Node, kind: str, inputs: list[Ref], make: Callable[[], nn.Module], *,
        not_negative: bool = False, shape: tuple[int, ...] | None = None,
    ) -> Ref:  # fmt: skip
        name = self._name(node, kind)
        shape = self._shape(node) if shape is None else shape
        self.operations.append(Operation(kind, name, tuple(inputs), shape, not_negative, make=make))
        return Ref(len(self.operations))

    def _not_negative(self, *refs: Ref) -> bool:
        return all(r.relu or (r.value > 0 and self.operations[r.value - 1].not_negative) for r in refs)

    # --- modules -------------------------------------------------------------------------------------------------

    def _module(self, node: fx.Node, module: nn.Module) -> Any:
        plain = plain_type(module)
        if plain is not None:
            return self._layer(node, module, plain)
        if isinstance(module, IDENTITIES):
            return self._call(node, self._identity)
        if isinstance(module, nn.ReLU6):
            return self._call(node, self._relu6)
        if isinstance(module, nn.Hardtanh):
            return self._call(node, self._hardtanh, min_val=module.min_val, max_val=module.max_val)
        if isinstance(module, nn.MaxPool2d):
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
            return self._call(node, self._max_pool, **{name: getattr(module, name) for name in names})
        if isinstance(module, nn.AvgPool2d):
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            return self._call(node, self._avg_pool, **{name: getattr(module, name) for name in names})
        simple: dict[type[nn.Module], Callable[..., Any]] = {
            nn.ReLU: self._relu, nn.Hardswish: self._h_swish, nn.Hardsigmoid: self._h_sigmoid, nn.SiLU: self._silu,
            nn.Sigmoid: self._sigmoid, nn.AdaptiveAvgPool2d: self._adaptive_avg_pool,
            nn.AdaptiveMaxPool2d: self._adaptive_max_pool, nn.Flatten: self._reshape, nn.Unflatten: self._reshape,
            nn.ChannelShuffle: self._shuffle,
        }  # fmt: skip
        handler = simple.get(type(module))
        if handler is None:
            raise self._unknown(node)
        return self._call(node, handler, **({"groups": module.groups} if isinstance(module, nn.ChannelShuffle) else {}))

    def _layer(self, node: fx.Node, module: nn.Module, plain: type[nn.Module]) -> Ref:
        path = str(node.target)
        if plain is nn.BatchNorm2d and path in self.absorbed:
            return self._ref(node.args[0], node)
        if path in self.called:
            raise self.traced.refuse(
                node, f"a second use of layer {path!r}",
                f"Its weights are shared with node {self.called[path].name!r}; give each its own layer.",
            )  # fmt: skip
        self.called[path] = node
        x = self._ref(node.args[0], node)
        describe = {nn.Conv2d: self._conv, nn.Linear: self._linear, nn.BatchNorm2d: self._norm}[plain]
        layer = describe(node, module, path)
        self.absorbed.update([layer.norm] if layer.norm else [])
        self.operations.append(Operation("layer", self._name(node, "layer"), (x,), self._shape(node), layer=layer))
        return Ref(len(self.operations))

    def _conv(self, node: fx.Node, conv: Any, path: str) -> Layer:
        kernel = self._square(node, conv.kernel_size, "a kernel")
        stride = self._square(node, conv.stride, "a stride")
        if self._square(node, conv.dilation, "a dilation") != 1 or conv.padding_mode != "zeros":
            raise self.traced.refuse(
                node, f"a convolution with dilation {conv.dilation} and padding mode {conv.padding_mode!r}",
                "Only dilation 1 and padding with zeros have integer kernels here. Build the network without.",
            )  # fmt: skip
        padding = {"same": kernel // 2, "valid": 0}.get(conv.padding, conv.padding)
        if conv.padding == "same" and kernel % 2 == 0:
            raise self.traced.refuse(node, "padding 'same' of an even kernel", "It is not symmetric. Give a number.")
        padding = self._square(node, padding, "a padding")
        norm = self._norm_behind(node)
        return Layer(
            path, "conv", conv.in_channels, conv.out_channels, kernel, stride, padding, conv.groups,
            norm, self._eps(node, norm), conv.bias is not None and norm is None,
        )  # fmt: skip

    def _linear(self, node: fx.Node, linear: Any, path: str) -> Layer:
        if len(self._shape(node)) != 1:
            raise self.traced.refuse(
                node, f"a linear layer on a tensor of shape {['N', *self._shape(node)]}",
                "Linear layers take [N, features]; sequences and maps have no place here. Flatten before it.",
            )  # fmt: skip
        return Layer(path, "linear", linear.in_features, linear.out_features, bias=linear.bias is not None)

    def _norm(self, node: fx.Node, norm: Any, path: str) -> Layer:
        channels = norm.num_features
        return Layer(path, "norm", channels, channels, groups=channels, norm=path, eps=self._eps(node, path))

    def _norm_behind(self, node: fx.Node) -> str | None:
        """Return the batch normalisation that alone takes a convolution's output."""
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module":
            return None
        path = str(users[0].target)
        return path if plain_type(self.modules[path]) is nn.BatchNorm2d and path not in self.called else None

    def _eps(self, node: fx.Node, path: str | None) -> float:
        if path is None:
            return 1e-5
        norm: Any = self.modules[path]
        if norm.running_mean is None:
            raise self.traced.refuse(
                node, f"batch normalisation {path!r} without running statistics",
                "Make it with track_running_stats=True.",
            )  # fmt: skip
        return float(norm.eps)

    def _square(self, node: fx.Node, value: Any, what: str) -> int:
        numbers = [value] if isinstance(value, int) else list(value)
        if len(set(numbers)) != 1:
            raise self.traced.refuse(node, f"{what} of {tuple(numbers)}", "Only square ones can be described.")
        return int(numbers[0])

    # --- activations ---------------------------------------------------------------------------------------------

    def _identity(self, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Any:
        return self.env.get(x)

    def _relu(self, node: fx.Node, x: fx.Node, inplace: bool = False) -> Ref:
        ref = self._ref(x, node)
        return ref if self._not_negative(ref) else Ref(ref.value, relu=True)

    def _relu6(self, node: fx.Node, x: fx.Node, inplace: bool = False) -> Any:
        shifted = self.env.get(x)
        if isinstance(shifted, _Shifted) and shifted.form == "shifted":
            return _Shifted(shifted.ref, "clipped")
        return self._cut(node, x, 0.0, 6.0)

    def _hardtanh(
        self, node: fx.Node, x: fx.Node, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
    ) -> Any:
        return self._relu6(node, x) if (min_val, max_val) == (0, 6) else self._cut(node, x, min_val, max_val)

    def _clamp(self, node: fx.Node, x: fx.Node, min: float | None = None, max: float | None = None) -> Any:
        return self._relu6(node, x) if (min, max) == (0, 6) else self._cut(node, x, min, max)

    def _cut(self, node: fx.Node, x: fx.Node, low: float | None, high: float | None) -> Ref:
        ref = self._ref(x, node)
        if low != 0:
            raise self.traced.refuse(node, f"a clip from {low} to {high}", "Clips start at 0. " + SUPPORTED)
        upper = min((bound for bound in (high, ref.upper) if bound is not None), default=None)
        return Ref(ref.value, True, None if upper is None else float(upper))

    def _float_function(self, node: fx.Node, x: fx.Node | Ref, kind: str) -> Ref:
        make, not_negative = FLOAT_FUNCTIONS[kind]
        ref = x if isinstance(x, Ref) else self._ref(x, node)
        return self._add_operation(node, kind, [ref], make, not_negative=not_negative)

    def _h_swish(self, node: fx.Node, x: fx.Node, inplace: bool = False) -> Ref:
        return self._float_function(node, x, "h-swish")

    def _h_sigmoid(self, node: fx.Node, x: fx.Node, inplace: bool = False) -> Ref:
        return self._float_function(node, x, "h-sigmoid")

    def _silu(self, node: fx.Node, x: fx.Node, inplace: bool = False) -> Ref:
        return self._float_function(node, x, "silu")

    def _sigmoid(self, node: fx.Node, x: fx.Node) -> Ref:
        return self._float_function(node, x, "sigmoid")

    # --- several tensors -----------------------------------------------------------------------------------------

    def _add(self, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Any:
        if alpha != 1:
            raise self._unknown(node)
        if 3 in (x, y) and isinstance(self.env.get(x if y == 3 else y), Ref):
            return _Shifted(self._ref(x if y == 3 else y, node), "shifted")
        refs = [self._ref(x, node), self._ref(y, node)]
        return self._add_operation(node, "add", refs, Sum, not_negative=self._not_negative(*refs))

    def _multiply(self, node: fx.Node, x: Any, y: Any) -> Any:
        for tensor, number in ((x, y), (y, x)):
            if isinstance(number, float) and abs(number * 6 - 1) < 1e-6:
                return self._divide(node, tensor, 6)
            gate = self.env.get(number) if isinstance(number, fx.Node) else None
            if isinstance(gate, _Shifted) and gate.form == "clipped" and self.env.get(tensor) == gate.ref:
                return _Shifted(gate.ref, "product")
        refs = [self._ref(x, node), self._ref(y, node)]
        return self._add_operation(node, "product", refs, Product, not_negative=self._not_negative(*refs))

    def _divide(self, node: fx.Node, x: Any, y: Any) -> Ref:
        shifted = self.env.get(x) if isinstance(x, fx.Node) else None
        if isinstance(shifted, _Shifted) and y == 6 and shifted.form != "shifted":
            return self._float_function(node, shifted.ref, {"clipped": "h-sigmoid", "product": "h-swish"}[shifted.form])
        raise self._unknown(node)

    def _concat(self, node: fx.Node, tensors: Any, dim: int = 0) -> Ref:
        ndim = self.traced.values[node].ndim
        if dim % ndim != 1:
            raise self.traced.refuse(node, f"a concatenation along dimension {dim}", "Only channels (1) have one.")
        refs = [self._ref(x, node) for x in tensors]
        return self._add_operation(node, "concat", refs, Concat, not_negative=self._not_negative(*refs))

    # --- pooling -------------------------------------------------------------------------------------------------

    def _max_pool(
        self, node: fx.Node, x: fx.Node, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Ref:  # fmt: skip
        numbers = self._pooling(node, x, kernel_size, stride, padding, dilation, ceil_mode)
        if return_indices:
            raise self.traced.refuse(node, "max pooling that returns indices", SUPPORTED)
        ref = self._ref(x, node)
        return self._add_operation(
            node, "max-pool", [ref], lambda: nn.MaxPool2d(*numbers), not_negative=self._not_negative(ref)
        )

    def _avg_pool(
        self, node: fx.Node, x: fx.Node, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Ref:  # fmt: skip
        kernel, stride, padding = self._pooling(node, x, kernel_size, stride, padding, 1, ceil_mode)
        if divisor_override is not None:
            raise self.traced.refuse(node, "average pooling with a divisor of its own", SUPPORTED)
        ref = self._ref(x, node)
        if padding == 0 and kernel == self.traced.values[x].shape[-1]:
            return self._add_operation(node, "global-pool", [ref], GlobalPool, not_negative=self._not_negative(ref))
        return self._add_operation(
            node, "avg-pool", [ref],
            lambda: nn.AvgPool2d(kernel, stride, padding, count_include_pad=count_include_pad),
            not_negative=self._not_negative(ref),
        )  # fmt: skip

    def _pooling(
        self, node: fx.Node, x: fx.Node, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> tuple[int, int, int]:
        kernel = self._square(node, kernel_size, "a pooling window")
        step = self._square(node, kernel if stride in (None, ()) else stride, "a pooling stride")
        pad = self._square(node, padding, "a padding of pooling")
        if self._square(node, dilation, "a dilation of pooling") != 1:
            raise self.traced.refuse(node, "pooling with dilation", SUPPORTED)
        before, after = (self.traced.values[n].shape[-1] for n in (x, node))
        if ceil_mode and after != (before + 2 * pad - kernel) // step + 1:
            raise self.traced.refuse(
                node, f"pooling that rounds its size up, from {before} to {after} pixels",
                "Integer kernels here round down: choose ceil_mode=False, or an image size where both are the same.",
            )  # fmt: skip
        return kernel, step, pad

    def _adaptive_avg_pool(self, node: fx.Node, x: fx.Node, output_size: Any = None) -> Any:
        kernel = self._adaptive_window(node, x)
        return self._ref(x, node) if kernel == 1 else self._avg_pool(node, x, kernel)

    def _adaptive_max_pool(
        self, node: fx.Node, x: fx.Node, output_size: Any = None, return_indices: bool = False
    ) -> Any:
        kernel = self._adaptive_window(node, x)
        return self._ref(x, node) if kernel == 1 else self._max_pool(node, x, kernel, return_indices=return_indices)

    def _adaptive_window(self, node: fx.Node, x: fx.Node) -> int:
        before, after = (self.traced.values[n].shape[-1] for n in (x, node))
        if before % after:
            raise self.traced.refuse(
                node, f"adaptive pooling of {before} x {before} to {after} x {after} pixels",
                "Windows must be equal: choose an image size that makes the first a multiple of the second.",
            )  # fmt: skip
        return int(before // after)

    def _mean(self, node: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False, **options: Any) -> Ref:
        ref, ndim = self._ref(x, node), self.traced.values[x].ndim
        dims = {d % ndim for d in ([dim] if isinstance(dim, int) else dim or ())}
        if options or dims != {2, 3} or ndim != 4:
            raise self.traced.refuse(node, f"a mean over {dim}", "Only that over height and width has a kernel.")
        channels = self.traced.values[x].shape[1]
        pooled = self._add_operation(
            node, "global-pool", [ref], GlobalPool, not_negative=self._not_negative(ref), shape=(channels, 1, 1)
        )
        return pooled if keepdim else self._flatten(node, pooled)

    # --- shapes --------------------------------------------------------------------------------------------------

    def _flatten(self, node: fx.Node, ref: Ref) -> Ref:
        return self._add_operation(node, "flatten", [ref], Flatten, not_negative=self._not_negative(ref))

    def _reshape(self, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Any:
        """Tell by the shapes what a view, flatten, squeeze or the like does."""
        before, after = tuple(self.traced.values[x].shape), tuple(self.traced.values[node].shape)
        grouped = self.env.get(x)
        if isinstance(grouped, _Groups):
            if after == (before[0], before[1] * before[2], *before[3:]):
                return self._select(node, grouped.ref, grouped.order.flatten().tolist())
            raise self._unknown(node)
        ref = self._ref(x, node)
        if before == after:
            return ref
        if len(before) == 4 and after == (before[0], before[1] * before[2] * before[3]):
            return self._flatten(node, ref)
        if len(before) == 2 and after == (*before, 1, 1):
            return self._add_operation(node, "unflatten", [ref], Unflatten, not_negative=self._not_negative(ref))
        if len(before) == 4 and len(after) == 5 and after[0] == before[0] and after[3:] == before[2:]:
            return _Groups(ref, torch.arange(before[1]).reshape(after[1:3]))
        raise self.traced.refuse(node, f"a change of shape from {list(before)} to {list(after)}", SUPPORTED)

    def _transpose(self, node: fx.Node, x: fx.Node, dim0: int, dim1: int) -> Any:
        grouped = self.env.get(x)
        if not isinstance(grouped, _Groups) or {dim0 % 5, dim1 % 5} != {1, 2}:
            raise self._unknown(node)
        return _Groups(grouped.ref, grouped.order.T)

    def _permute(self, node: fx.Node, x: fx.Node, *dims: Any) -> Any:
        order = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
        if order != (0, 2, 1, 3, 4):
            raise self._unknown(node)
        return self._transpose(node, x, 1, 2)

    def _shuffle(self, node: fx.Node, x: fx.Node, groups: int) -> Ref:
        channels = self.traced.values[x].shape[1]
        return self._select(node, self._ref(x, node), torch.arange(channels).reshape(groups, -1).T.flatten().tolist())

    def _chunk(self, node: fx.Node, x: fx.Node, size: Any, dim: int = 0) -> None:
        """Check a split; its parts are made where they are taken out."""
        if dim % self.traced.values[x].ndim != 1:
            raise self.traced.refuse(node, f"a split along dimension {dim}", "Only channels (1) are split.")
        self._ref(x, node)

    def _item(self, node: fx.Node, x: Any, index: Any) -> Any:
        parts = self.traced.values.get(x)
        if isinstance(parts, (tuple, list)) and isinstance(index, int) and x.target in _SPLITS:
            start = sum(part.shape[1] for part in parts[: index % len(parts)])
            channels = range(start, start + parts[index].shape[1])
            return self._select(node, self._ref(x.args[0], node), list(channels))
        dims = index if isinstance(index, tuple) else (index,)
        everything = slice(None)
        if (
            isinstance(parts, Tensor)
            and len(dims) > 1
            and isinstance(dims[1], slice)
            and all(d == everything for d in (dims[0], *dims[2:]))
        ):
            wanted = slice(*(self._number(bound) for bound in (dims[1].start, dims[1].stop, dims[1].step)))
            return self._select(node, self._ref(x, node), list(range(parts.shape[1]))[wanted])
        raise self._unknown(node)

    def _number(self, bound: Any) -> Any:
        return self.traced.values[bound] if isinstance(bound, fx.Node) else bound

    def _select(self, node: fx.Node, ref: Ref, channels: list[int]) -> Ref:
        return self._add_operation(
            node, "select-channels", [ref], lambda: SelectChannels(channels), not_negative=self._not_negative(ref)
        )

    def _output(self, node: fx.Node) -> Ref:
        answer = node.args[0]
        if not isinstance(answer, fx.Node) or not isinstance(self.traced.values[answer], Tensor):
            raise ConfigError(
                f"{self.traced.source} answers with {type(answer).__name__}, where one tensor of class scores "
                "[N, classes] is wanted. Wrap it in a module whose forward returns that."
            )
        return self._ref(answer, node)


_SPLITS = (torch.chunk, "chunk", torch.split, "split")


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value)
    )
