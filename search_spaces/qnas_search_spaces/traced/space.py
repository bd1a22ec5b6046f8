"""The space ``module``: a network of the user's, as it is; what is searched are its layers' bit-widths.

``--space module:PACKAGE.MODULE:FACTORY`` calls the factory and traces its network with torch.fx (Reed et al.,
"torch.fx: Practical Program Capture and Transformation for Deep Learning in Python", MLSys 2022). Layers are named by
their modules' paths. Unlike the built-in spaces, describing this one needs torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qnas.errors import ConfigError, unknown_name
from qnas.layers import LayerSpec
from qnas.nn.elastic import ElasticConv
from qnas.nn.graph import Graph, Wire
from qnas.space import QuantScheme, SearchSpace, Site, Value
from qnas_search_spaces.traced.grids import GridNode, LayerNode, Node, OperationNode, Plan, place_grids
from qnas_search_spaces.traced.lowering import lower
from qnas_search_spaces.traced.network import make_network
from qnas_search_spaces.traced.operations import Layer
from qnas_search_spaces.traced.tracing import trace_network

if TYPE_CHECKING:
    from qnas.nn.supernet import BuildContext, Supernet

WEIGHTS = ("module", "fresh")
OWN_OPTIONS = ("skip", "weights")


class ModuleSpace(SearchSpace):
    """The space of a network that a factory makes.

    Every convolution (with the batch normalisation behind it) and every linear layer is a layer with bit-widths of its
    own. Those that take the images, those that the answer comes from, and batch normalisations that stand alone (which
    are 1x1 depthwise convolutions when deployed) have edge bits, and so have layers named by ``skip``.

    Args:
        scheme: bit-widths and their granularity; there are no stages and blocks, so these are single layers here.
        image_size: height and width of the images, in pixels.
        num_classes: that the network must answer for.
        image_channels: channels of the images.
        source: ``PACKAGE.MODULE:FACTORY``.
        factory: that it names; called for the description, and again for every supernet.
        skip: layers that keep edge bits, by name; ``*`` and ``?`` stand for any letters.
        weights: ``module`` takes the weights and statistics that the factory's network has, ``fresh`` draws new ones.
        factory_options: keywords that the factory is called with.

    Raises:
        ConfigError: there is no such network, or it holds what cannot be quantized and exported; names the line.
    """

    def __init__(
        self,
        scheme: QuantScheme,
        *,
        image_size: int,
        num_classes: int,
        image_channels: int = 3,
        source: str = "",
        factory: Callable[..., Any] | None = None,
        skip: Sequence[str] | str = (),
        weights: str = "module",
        factory_options: Mapping[str, Any] | None = None,
    ) -> None:
        if factory is None:
            raise ConfigError(
                "The space 'module' is that of a network of yours: name it as --space module:PACKAGE.MODULE:FACTORY."
            )
        if weights not in WEIGHTS:
            raise ConfigError(unknown_name("The choice of weights", weights, WEIGHTS, "Correct [space.options]."))
        self.source = source
        self.factory = factory
        self.options = options = dict(factory_options or {})
        self.brings_weights = weights == "module"
        self.image_channels = image_channels
        with torch.random.fork_rng(devices=[]):  # its weights are not wanted here, and must not move other draws
            torch.manual_seed(0)
            network = make_network(factory, source, options, OWN_OPTIONS)
        traced = trace_network(network, source, image_channels, image_size)
        program = lower(traced)
        self.plan: Plan = place_grids(program)
        self._check(program.shape(program.output.value), num_classes)
        layers = [node.name for node in self.plan.nodes if isinstance(node, LayerNode)]
        kept = _named(source, layers, skip.split(",") if isinstance(skip, str) else skip)
        edge = {*kept, *self.plan.first, *self.plan.last}
        sites = [site for node in self.plan.nodes for site in _sites(node, edge, scheme.edge_bits)]
        super().__init__(f"module:{source}", [], sites, scheme, image_size=image_size, num_classes=num_classes)

    def _check(self, shape: tuple[int, ...], num_classes: int) -> None:
        if not any(isinstance(node, LayerNode) for node in self.plan.nodes):
            raise ConfigError(f"{self.source} makes a network without layers to quantize: no Conv2d or Linear is used.")
        if shape != (num_classes,):
            raise ConfigError(
                f"{self.source} answers in the shape {['N', *shape]}, but the data has {num_classes} classes: "
                f"[N, {num_classes}] is wanted. Give the factory's option for it, often --space-option "
                f"num_classes={num_classes}."
            )

    def torchvision_names(self) -> Mapping[str, str]:
        """Return the modules of the user's network by layer, so that a file of its ``state_dict`` can be loaded."""
        names = {}
        for layer_node in self.plan.nodes:
            if isinstance(layer_node, LayerNode):
                layer = layer_node.layer
                names |= {layer_node.name: layer.path} if layer.kind != "norm" else {}
                names |= {f"{layer_node.name}.bn": layer.norm} if layer.norm is not None else {}
        return names

    def build(self, context: BuildContext) -> Supernet:
        """Build the supernet: one graph, with the weights that the factory's network has now unless told otherwise.

        Raises:
            ConfigError: the factory makes another network than it did when the space was described.
        """
        from qnas.nn.supernet import Supernet

        modules: dict[str, nn.Module] = {}
        if self.brings_weights:  # first, so that its random draws are those that follow the seed
            modules = dict(make_network(self.factory, self.source, self.options, OWN_OPTIONS).named_modules())
        graph = Graph([Wire(_part(context, node), node.inputs) for node in self.plan.nodes], self.plan.output)
        for part, node in zip(graph.parts, self.plan.nodes, strict=True):
            if isinstance(part, ElasticConv) and isinstance(node, LayerNode) and self.brings_weights:
                _take_over(part, node.layer, modules, self.source)
        return Supernet(self, [graph])


def _named(source: str, layers: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Return the layers that the patterns name."""
    found: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(layers, pattern)
        if not matching:
            raise ConfigError(
                unknown_name(f"A layer of {source}", pattern, layers, "Correct --space-option skip (space.options).")
            )
        found.update(matching)
    return found


def _sites(node: Node, edge: set[str], edge_bits: int) -> list[Site]:
    if isinstance(node, OperationNode):
        return []
    if isinstance(node, GridNode):
        spec = LayerSpec(node.name, "quantize", node.channels, node.channels, out_size=node.size)
        bits: int | None = edge_bits
    else:
        layer = node.layer
        kind = "linear" if layer.kind == "linear" else "conv"
        spec = LayerSpec(
            node.name, kind, layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.groups, node.size,
            normalised=layer.norm is not None,
        )  # fmt: skip
        bits = edge_bits if node.name in edge or layer.kind == "norm" else None

    def describe(sample: Mapping[str, Value]) -> LayerSpec:
        return spec

    return [Site(node.name, (), describe, w_bits=bits, a_bits=bits)]


def _part(context: BuildContext, node: Node) -> nn.Module:
    if isinstance(node, OperationNode):
        assert node.operation.make is not None
        return node.operation.make()
    if isinstance(node, GridNode):
        if node.image:
            return context.image_site(node.name, node.channels)
        return context.site(node.name, node.channels, signed=node.signed, relu=node.relu, upper=node.upper)
    layer = node.layer
    return context.conv(
        node.name,
        layer.in_channels,
        layer.out_channels,
        input_relu=node.relu,
        input_upper=node.upper,
        signed_input=node.signed,
        passthrough_bits=context.edge_bits if node.gridded else None,
        image=node.image,
        kernels=(layer.kernel,),
        stride=layer.stride,
        groups=layer.groups,
        padding=layer.padding,
        linear=layer.kind == "linear",
        bias=layer.bias,
        norm=layer.norm is not None,
        eps=layer.eps,
        unit=layer.kind == "norm",
    )


@torch.no_grad()
def _take_over(part: ElasticConv, layer: Layer, modules: Mapping[str, nn.Module], source: str) -> None:
    """Copy a layer's weights, and the parameters and statistics of its batch normalisation."""
    bias = torch.zeros(layer.out_channels)
    if layer.kind != "norm":
        module: Any = modules.get(layer.path)
        weight = _tensor(module, "weight", layer, source)
        _copy(part.weight, weight if weight.ndim == 4 else weight[:, :, None, None], layer, source)
        if module.bias is not None:
            bias = module.bias
    if part.bias is not None:
        _copy(part.bias, bias, layer, source)
    if part.bn is None:
        return
    assert layer.norm is not None
    norm: Any = modules.get(layer.norm)
    mean, variance = (_tensor(norm, name, layer, source) for name in ("running_mean", "running_var"))
    for i in range(len(part.bn.banks)):
        if norm.affine:
            _copy(part.bn.weights[i], norm.weight, layer, source)
            _copy(part.bn.biases[i], norm.bias, layer, source)
        # A bias in front of batch normalisation moves its mean, and nothing else.
        _copy(part.bn.get_buffer(f"mean{i}"), mean - bias, layer, source)
        _copy(part.bn.get_buffer(f"var{i}"), variance, layer, source)


def _tensor(module: Any, name: str, layer: Layer, source: str) -> Tensor:
    found = getattr(module, name, None)
    if not isinstance(found, Tensor):
        raise _other_network(layer, source)
    return found


def _copy(target: Tensor, value: Tensor, layer: Layer, source: str) -> None:
    if value.shape != target.shape:
        raise _other_network(layer, source)
    target.copy_(value)


def _other_network(layer: Layer, source: str) -> ConfigError:
    return ConfigError(
        f"{source} made another network this time: its layer {layer.path!r} is missing or has another shape. A factory "
        "must make the same network each time that it is called; only its weights may be drawn at random."
    )
