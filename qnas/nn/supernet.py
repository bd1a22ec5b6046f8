"""The supernet: a chain of elastic parts that hold the largest weights, activated by samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.nn.activation import MODES, ActivationSite, FixedGrid, GlobalPool, HardSwish, Observe, Unquantized
from qnas.nn.active import ActiveSubnet
from qnas.nn.batchnorm import ElasticBatchNorm
from qnas.nn.elastic import ElasticConv
from qnas.nn.folding import FoldingPolicy, NoFolding
from qnas.nn.grid import AffineGrid
from qnas.nn.norm import ElasticNorm
from qnas.nn.quantizer import ROLES, Quantizer, QuantizerSite
from qnas.nn.ranks import Ranks
from qnas.nn.subnet import Subnet, SubnetLayer, SubnetNorm
from qnas.space import BIT_ROLES, Knob, Sample, SearchSpace, Site, Value

MakeQuantizer = Callable[[QuantizerSite], Quantizer]


@dataclass
class BuildContext:
    """Everything that a space needs to build its supernet from quantized parts.

    Attributes:
        space: whose sites name the bit-widths.
        weight_quantizer, act_quantizer: make the quantizer of a site.
        input_grid: of the normalised images.
        folding: policy of every convolution with batch normalisation.
        compile: let quantizers use compiled kernels.
        bn_role: ``w_bits`` or ``a_bits``: each layer's batch normalisation has a bank for each of these bit-widths.
    """

    space: SearchSpace
    weight_quantizer: MakeQuantizer
    act_quantizer: MakeQuantizer
    input_grid: AffineGrid
    folding: FoldingPolicy = field(default_factory=NoFolding)
    compile: bool = False
    bn_role: str | None = None

    def __post_init__(self) -> None:
        self._sites: dict[str, Site] = {site.name: site for site in self.space.sites}

    @property
    def edge_bits(self) -> int:
        """Bits of the tensors between blocks, and of the first and last layer."""
        return self.space.scheme.edge_bits

    def site(
        self,
        name: str,
        channels: int,
        *,
        signed: bool,
        relu: bool = False,
        passthrough_bits: int | None = None,
        upper: float | None = None,
    ) -> ActivationSite:
        """Return the activation site ``name``; further arguments are those of :class:`ActivationSite`."""
        _, bits = self.space.bit_choices(self._sites[name])
        fixed = self.space.bit_labels(name)[1] is None
        branch = self._sites[name].branch
        site = QuantizerSite(name, "activation", bits, channels, signed, self.compile, fixed=fixed, branch=branch)
        quantizer = Unquantized(site) if bits == (FLOAT_BITS,) else self.act_quantizer(site)
        return ActivationSite(name, quantizer, relu=relu, passthrough_bits=passthrough_bits, upper=upper)

    def image_site(self, name: str, channels: int) -> ActivationSite:
        """Return the site where images enter, on their own 8-bit grid."""
        site = QuantizerSite(name, "activation", (8,), channels, signed=True)
        return ActivationSite(name, FixedGrid(site, self.input_grid))

    def conv(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        *,
        input_relu: bool = False,
        input_upper: float | None = None,
        signed_input: bool = False,
        passthrough_bits: int | None = None,
        image: bool = False,
        output: bool = False,
        output_relu: bool = False,
        bank: str | None = None,
        **options: Any,
    ) -> ElasticConv:
        """Return an elastic layer with quantizers at its weights, its input and, if asked, its output.

        Args:
            name: of the site; the output's is ``name.out``.
            input_relu: a ReLU before the input's quantizer.
            input_upper: where that ReLU is cut off; ``None`` for nowhere.
            signed_input: the input can be negative.
            passthrough_bits: the input arrives on a grid of so many bits.
            image: the input is the image.
            output: put the output on a grid of ``edge_bits``.
            output_relu: a ReLU before the output's quantizer.
            bank: label of the knob whose choices have a batch normalisation each.
            **options: of :class:`ElasticConv`.
        """
        options["bank_knobs"] = self._bank_knobs(name, bank)
        weights, *others = self._weight_quantizers(name, out_channels, tuple(options.get("kernels", (1,))))
        if others:
            (options["private_knob"],) = self.space.private_knobs(name, "conv")
            options["private_quantizers"] = others
        if self.space.scheme.conv_only:
            passthrough_bits = None  # what arrives is in float
            options["raw_site"] = None if options.get("linear") else self._raw_site(name, out_channels)
        if image:
            input_site = self.image_site(name, in_channels)
        else:
            input_site = self.site(
                name,
                in_channels,
                signed=signed_input,
                relu=input_relu,
                passthrough_bits=passthrough_bits,
                upper=input_upper,
            )
        output_site = (
            self.site(f"{name}.out", out_channels, signed=not output_relu, relu=output_relu) if output else None
        )
        return ElasticConv(
            name, in_channels, out_channels, weights, input_site, output_site, folding=self.folding, **options
        )

    def _bank_knobs(self, name: str, bank: str | None) -> list[Knob]:
        """Return the knobs that choose among batch normalisations: of a layer, or after or before its input's site."""
        if bank is None and self.bn_role is not None:
            bank = self.space.bit_labels(name)[BIT_ROLES.index(self.bn_role)]  # None where the bits are fixed
        own = [] if bank is None else [self.space.knobs[self.space.position[bank]]]
        return [*own, *self.space.private_knobs(name, "norm")]

    def _weight_quantizers(self, name: str, channels: int, kernels: tuple[int, ...]) -> list[Quantizer]:
        """Return the quantizer of a layer's weights, or one for each choice that has weights of its own."""
        w_bits, _ = self.space.bit_choices(self._sites[name])
        fixed = self.space.bit_labels(name)[0] is None
        site = QuantizerSite(name, "weight", w_bits, channels, True, self.compile, kernels, fixed)
        count = math.prod(len(knob.choices) for knob in self.space.private_knobs(name, "conv"))
        return [Unquantized(site) if w_bits == (FLOAT_BITS,) else self.weight_quantizer(site) for _ in range(count)]

    def norm(self, name: str, channels: int, layer: str, *, output: bool = False) -> ElasticNorm:
        """Return a batch normalisation that stands alone, and is not folded when deployed.

        Args:
            name: of the operation.
            channels: the largest number.
            layer: the site whose layer it belongs to: its input, or its output, is normalised; where branches of that
                input have batch normalisations of their own, this one has them too.
            output: whether it normalises what has the layer's output channels.
        """
        return ElasticNorm(name, channels, layer, output=output, bank_knobs=self._bank_knobs(layer, None))

    def _raw_site(self, name: str, channels: int) -> ActivationSite:
        """Return the site of a convolution's output, which an integer kernel needs where floats follow."""
        site = QuantizerSite(f"{name}.raw", "activation", (self.edge_bits,), channels, True, self.compile, fixed=True)
        return ActivationSite(name, self.act_quantizer(site), output_bits=self.edge_bits)


class Supernet(nn.Module):
    """A chain of elastic parts. One process may hold many: the active subnet is a module's state.

    Args:
        space: that the samples are of.
        parts: in the order of the data's way; a part that is not active in a subnet is left out.

    Attributes:
        unset: names in its state that the checkpoint it was loaded from did not hold: of quantizers' bit-widths that
            came later.
    """

    def __init__(self, space: SearchSpace, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.space = space
        self.parts = nn.ModuleList(parts)
        self._elastic: list[Any] = [m for m in self.modules() if m is not self and hasattr(m, "activate")]
        self._penalised = [
            m
            for m in self.modules()
            if (isinstance(m, ElasticConv) and _has_penalty(m.weight_quantizer))
            or (isinstance(m, ActivationSite) and _has_penalty(m.quantizer))
        ]
        self.sample: Sample = space.highest()
        self.layers: tuple[LayerSpec, ...] = ()
        self.unset: frozenset[str] = frozenset()
        self._modes = dict.fromkeys(ROLES, "float")

    def activate(self, sample: Mapping[str, Value]) -> None:
        """Make ``sample`` the active subnet: one description drives computation and costs alike."""
        self.sample = self.space.canonical(sample)  # equal keys must compute the same
        self.layers = self.space.layers(self.sample)
        active = ActiveSubnet(
            self.sample,
            {layer.name: layer for layer in self.layers},
            {layer.name: self.space.site_values(layer.name, self.sample) for layer in self.layers},
        )
        for module in self._elastic:
            module.activate(active)

    def connect(self, ranks: Ranks) -> None:
        """Let batch normalisation and quantizers see the whole batch of a step that several processes share."""
        for module in self.modules():
            if isinstance(module, (ElasticBatchNorm, Quantizer)):
                module.ranks = ranks

    def set_mode(self, mode: str, roles: Sequence[str] = ROLES) -> None:
        """Set all sites of the given roles to ``float``, ``start``, ``observe`` or ``quantize``.

        In ``start`` mode quantizers start from the data that passes; for ``observe`` see :meth:`observing`.
        """
        if mode not in MODES or not set(roles) <= set(ROLES):
            raise ValueError(f"mode must be one of {MODES} and roles of {ROLES}, not {mode!r} and {tuple(roles)!r}")
        self._modes.update(dict.fromkeys(roles, mode))
        for module in self.modules():
            if isinstance(module, ElasticConv):
                module.mode = self._modes["weight"]
            elif isinstance(module, ActivationSite):
                module.mode = self._modes["activation"]

    @contextmanager
    def keeping_statistics(self) -> Iterator[None]:
        """Leave the running statistics of batch normalisation as they were before."""
        buffers = [b for m in self.modules() if isinstance(m, ElasticBatchNorm) for b in m.buffers()]
        kept = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)

    @contextmanager
    def observing(self, observe: Observe, roles: Sequence[str] = ROLES) -> Iterator[None]:
        """Show ``observe`` what arrives at the quantizers of these roles in forward passes, which stay in float."""
        modes = dict(self._modes)
        places = [m for m in self.modules() if isinstance(m, (ElasticConv, ActivationSite))]
        for place in places:
            place.observe = observe
        self.set_mode("observe", roles)
        try:
            yield
        finally:
            for place in places:
                place.observe = None
            for role, mode in modes.items():
                self.set_mode(mode, [role])

    @property
    def quantized_roles(self) -> tuple[str, ...]:
        """Roles whose quantizers are at work."""
        return tuple(role for role, mode in self._modes.items() if mode == "quantize")

    @property
    def mode(self) -> str:
        """The mode of all sites or, where they differ, that of each role."""
        modes = dict.fromkeys(self._modes.values())
        return next(iter(modes)) if len(modes) == 1 else ", ".join(f"{r} {m}" for r, m in self._modes.items())

    def forward(self, images: Tensor) -> Tensor:
        """Return the active subnet's outputs ``[N, classes]`` of normalised images at its resolution."""
        x = images
        for part in self.parts:
            if getattr(part, "active", True):
                x = part(x)
        return x

    def extract(self, sample: Mapping[str, Value]) -> Subnet:
        """Return the subnet of ``sample`` as a static network with its own copy of the weights."""
        self.activate(sample)
        body = nn.Sequential(*(extract(part) for part in self.parts if getattr(part, "active", True)))
        return Subnet(self.sample, self.space.resolution(self.sample), self.layers, body)

    def penalty(self) -> Tensor | None:
        """Return the sum of what the quantizers at work in the active subnet add to the loss, or ``None``."""
        found = [term for term in (site.penalty() for site in self._penalised) if term is not None]
        return torch.stack(found).sum() if found else None

    def quantizers(self) -> list[Quantizer]:
        """Return every quantizer, in a fixed order."""
        return [m for m in self.modules() if isinstance(m, Quantizer)]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters as ``weights``, which are decayed, ``norms``, ``quantizers`` and their ``clips``."""
        groups: dict[str, list[nn.Parameter]] = {"weights": [], "norms": [], "quantizers": [], "clips": []}
        steps = {id(p) for q in self.quantizers() for p in q.parameters()}
        clips = {id(p) for q in self.quantizers() for p in q.clips()}
        for parameter in self.parameters():
            if id(parameter) in steps:
                groups["clips" if id(parameter) in clips else "quantizers"].append(parameter)
            else:
                groups["norms" if parameter.ndim <= 1 else "weights"].append(parameter)
        return groups


def tuned_parameters(supernet: Supernet, which: str) -> list[nn.Parameter]:
    """Return what finetuning trains: of batch normalisation, and the quantizers' clip values (BASQ, Sec. 4.2).

    Args:
        supernet: that holds them.
        which: ``norms`` for gamma and beta, ``biases`` for beta alone; clips either way.
    """
    norms = [module for module in supernet.modules() if isinstance(module, ElasticBatchNorm)]
    kinds = {"norms": ("weights", "biases"), "biases": ("biases",)}[which]
    found = [parameter for norm in norms for kind in kinds for parameter in getattr(norm, kind)]
    return found + [parameter for quantizer in supernet.quantizers() for parameter in quantizer.clips()]


def take_statistics(supernet: Supernet, subnet: Subnet) -> None:
    """Give the active banks of batch normalisation the statistics of their twins in a subnet that is not folded."""
    theirs = {module.spec.name: module.bn for module in subnet.modules() if isinstance(module, SubnetLayer)}
    theirs |= {module.name: module.bn for module in subnet.modules() if isinstance(module, SubnetNorm)}
    for module in supernet.modules():
        bn = theirs.get(module.name) if isinstance(module, (ElasticConv, ElasticNorm)) and module.active else None
        if bn is None or not isinstance(own := module.bn, ElasticBatchNorm):
            continue
        for mine, their in zip(own.running(bn.num_features), (bn.running_mean, bn.running_var), strict=True):
            assert their is not None
            mine.copy_(their)


def _has_penalty(quantizer: Quantizer) -> bool:
    return type(quantizer).penalty is not Quantizer.penalty


def extract(part: Any) -> nn.Module:
    """Return the static twin of one part of a supernet; an empty chain where nothing is left of it."""
    if isinstance(part, (HardSwish, GlobalPool)):
        return type(part)()
    if isinstance(part, nn.MaxPool2d):
        return nn.MaxPool2d(part.kernel_size, part.stride, part.padding)
    if hasattr(part, "extract"):
        twin = part.extract()
        return nn.Sequential() if twin is None else twin
    raise TypeError(f"{type(part).__name__} cannot be extracted: give it an extract() method")
