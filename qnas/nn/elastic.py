"""The elastic layer: largest weights, sliced by the active subnet, quantized, convolved, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.nn.activation import ActivationSite, Observe
from qnas.nn.active import ActiveSubnet
from qnas.nn.batchnorm import EPS, ElasticBatchNorm, bank_keys, bank_of
from qnas.nn.conv import convolve
from qnas.nn.folding import FoldingPolicy, NoFolding
from qnas.nn.quantizer import Quantizer, SiteContext

if TYPE_CHECKING:
    from qnas.nn.subnet import SubnetLayer
    from qnas.space import Knob, Value


class ElasticConv(nn.Module):
    """Input site, convolution or linear layer, batch normalisation, output site; each but the middle optional.

    The weights of smaller widths are prefixes of the largest ones. Smaller kernels are the centre of the next larger
    one, multiplied by a learned matrix (OFA's kernel transform); the transform acts before quantization.

    Args:
        name: the site's name.
        in_channels, out_channels: the largest numbers.
        weight_quantizer: shared by all kernels and widths.
        input_site: puts the input on a grid; ``None`` leaves it as it comes.
        output_site: puts the normalised output on a grid.
        raw_site: puts the convolution's output on a grid; its batch normalisation then stays in float when deployed.
        kernels: kernel sizes to choose among, ascending.
        depthwise: one group a channel.
        groups: of the convolution, where it is not depthwise; its numbers of channels are then fixed.
        padding: on each side; ``None`` for half of the kernel.
        linear: a fully connected layer: flattens its input, has a bias and no batch normalisation.
        bias: whether there is one, where no batch normalisation follows; ``None`` for linear layers alone.
        norm: whether batch normalisation follows.
        eps: of batch normalisation.
        unit: weights start at 1, as those of a depthwise 1x1 layer that stands for its batch normalisation alone.
        folding: policy for it in training.
        bank_knobs: any knobs of the space; each combination of their choices has a batch normalisation of its own.
        private_knob: each of its choices has weights of its own, and a quantizer for them.
        private_quantizers: of the weights of its second choice and those that follow.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        weight_quantizer: Quantizer,
        input_site: ActivationSite | None,
        output_site: ActivationSite | None = None,
        *,
        kernels: Sequence[int] = (1,),
        stride: int = 1,
        depthwise: bool = False,
        groups: int = 1,
        padding: int | None = None,
        linear: bool = False,
        bias: bool | None = None,
        norm: bool = True,
        eps: float = EPS,
        unit: bool = False,
        folding: FoldingPolicy | None = None,
        bank_knobs: Sequence[Knob] = (),
        raw_site: ActivationSite | None = None,
        private_knob: Knob | None = None,
        private_quantizers: Sequence[Quantizer] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.kernels = tuple(kernels)
        self.stride = stride
        self.depthwise = depthwise
        self.groups = groups
        self.padding = padding
        self.unit = unit
        self.linear = linear
        largest = self.kernels[-1]
        fan_in = 1 if depthwise else in_channels // groups
        self.weight = nn.Parameter(torch.empty(out_channels, fan_in, largest, largest))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if (linear if bias is None else bias) else None
        self.transforms = nn.ParameterDict(
            {str(k): nn.Parameter(torch.eye(k * k)) for k in self.kernels[:-1]}  # from the next larger kernel
        )
        self.bn = ElasticBatchNorm(out_channels, bank_keys(bank_knobs), eps) if norm and not linear else None
        self.bank_knobs = tuple(bank_knobs)
        self.weight_quantizer = weight_quantizer
        self.private_knob = private_knob
        self.private_quantizers = nn.ModuleList(private_quantizers)
        self.private_weights = nn.ParameterList(nn.Parameter(torch.empty_like(self.weight)) for _ in private_quantizers)
        self.initialise(out_channels, largest)
        self._private = 0  # position of the active choice of the private knob
        self.input = input_site
        self.output = output_site
        self.raw = raw_site
        self.folding = folding or NoFolding()
        self.mode = "float"
        self.observe: Observe | None = None
        self.spec: LayerSpec | None = None
        self.values: Mapping[str, Value] = {}

    def initialise(self, out_channels: int, kernel: int) -> None:
        """Draw the weights for a layer of this size (He et al. 2015; the fan-out of one channel where depthwise)."""
        for weight in (self.weight, *self.private_weights):
            self._draw(weight, out_channels, kernel)

    def _draw(self, weight: Tensor, out_channels: int, kernel: int) -> None:
        if self.linear:
            nn.init.normal_(weight, 0.0, 0.01)
            return
        if self.unit:
            nn.init.ones_(weight)
            return
        nn.init.normal_(weight, 0.0, (2.0 / (out_channels // self.groups * kernel**2)) ** 0.5)
        if self.depthwise:  # drawn anew, so that a seed's weights are those of earlier versions
            nn.init.normal_(weight, 0.0, (2.0 / kernel**2) ** 0.5)

    def activate(self, active: ActiveSubnet) -> None:
        """Take up the active subnet's description of this layer."""
        self.spec = active.layers.get(self.name)
        self.values = active.values.get(self.name, {})
        if self.spec is None:
            return
        if self.bn is not None and self.bank_knobs:
            self.bn.select(bank_of(self.bank_knobs, active.sample))
        if self.private_knob is not None:
            self._private = self.private_knob.choices.index(active.sample[self.private_knob.label])

    @property
    def active_quantizer(self) -> Quantizer:
        """The quantizer of the active weights."""
        own = self._private - 1
        return self.private_quantizers[own] if own >= 0 else self.weight_quantizer  # type: ignore[return-value]

    @property
    def active(self) -> bool:
        """Whether the active subnet has this layer."""
        return self.spec is not None

    def active_weight(self) -> Tensor:
        """Return the weights of the active kernel and channels, ``[O, I, K, K]``, unquantized."""
        assert self.spec is not None, f"layer {self.name} is not active"
        spec = self.spec
        whole = self.private_weights[self._private - 1] if self._private else self.weight
        weight = whole[: spec.out_channels, : spec.in_channels // spec.groups]
        for k in reversed(self.kernels[:-1]):
            if weight.shape[-1] == spec.kernel_size:
                break
            margin = (weight.shape[-1] - k) // 2
            centre = weight[:, :, margin : margin + k, margin : margin + k]
            shape = centre.shape
            weight = F.linear(centre.reshape(-1, k * k), self.transforms[str(k)]).reshape(shape)
        return weight

    def weight_context(self, **statistics: Tensor) -> SiteContext:
        """Return the weight quantizer's context for the active subnet."""
        assert self.spec is not None, f"layer {self.name} is not active"
        spec = self.spec
        return SiteContext(spec.w_bits, spec.out_channels, self.values, **statistics, kernel=spec.kernel_size)

    def quantize_weight(self, weight: Tensor, **statistics: Tensor) -> Tensor:
        """Return the fake-quantized weights, or the weights themselves in float mode."""
        if self._in_float:
            return weight
        ctx = self.weight_context(**{name: value.detach() for name, value in statistics.items()})
        quantizer = self.active_quantizer
        weight = quantizer.prepare(weight, ctx)
        if self.mode == "observe":
            if self.observe is not None:
                self.observe(quantizer, ctx, weight.detach())
            return weight
        if self.mode == "start":
            quantizer.start(weight.detach(), ctx)
        quantized: Tensor = quantizer(weight, ctx)
        return quantized

    @property
    def _in_float(self) -> bool:
        return self.mode == "float" or (self.spec is not None and self.spec.w_bits == FLOAT_BITS)

    def penalty(self) -> Tensor | None:
        """Return the weight quantizer's term of the loss; ``None`` where it is not at work in the active subnet."""
        if self.spec is None or self.mode != "quantize" or self._in_float:
            return None
        return self.active_quantizer.penalty(self.weight_context())

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve ``[N, I, H, W]`` with ``[O, I / groups, K, K]``, without a bias."""
        return self._convolve(x, weight, None)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        groups = weight.shape[0] if self.depthwise else self.groups
        return convolve(x, weight, bias, self.stride, groups, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, O, H', W']``; ``[N, O]`` for a linear layer."""
        if self.input is not None:
            x = self.input(x)
        weight = self.active_weight()
        if self.linear:
            x = F.linear(x.flatten(1), self.quantize_weight(weight).flatten(1), self.bias)
        elif self.bn is None:
            x = self._convolve(x, self.quantize_weight(weight), self.bias)
            x = x if self.raw is None else self.raw(x)
        elif self.raw is not None:
            x = self.bn(self.raw(self.convolve(x, self.quantize_weight(weight))))
        elif self.mode == "float":
            x = self.bn(self.convolve(x, weight))
        else:
            x = self.folding.forward(self, x, weight)
        return x if self.output is None else self.output(x)

    def extract(self) -> SubnetLayer:
        """Return the static twin for the active subnet."""
        from qnas.nn.subnet import SubnetLayer

        assert self.spec is not None, f"layer {self.name} is not active"
        return SubnetLayer(
            self.spec,
            self.active_weight().detach(),
            None if self.bias is None else self.bias.detach()[: self.spec.out_channels],
            None if self.bn is None else self.bn.extract(self.spec.out_channels),
            None if self.input is None else self.input.extract(),
            None if self.output is None else self.output.extract(),
            None if self._in_float else self.active_quantizer,
            self.weight_context(),
            folds=self.folding.folds,
            padding=self.padding,
            raw_grid=None if self.raw is None else self.raw.extract(),
        )
