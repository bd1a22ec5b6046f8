"""Subnets: static networks extracted from a supernet, ready to be calibrated, folded, measured and exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.layers import LayerSpec
from qnas.nn.batchnorm import batch_statistics
from qnas.nn.conv import convolve
from qnas.nn.grid import AffineGrid, CodebookGrid, Grid, least_squares_scale
from qnas.nn.quantizer import Quantizer, SiteContext

if TYPE_CHECKING:
    from qnas.space import Sample


class SubnetLayer(nn.Module):
    """The static twin of :class:`qnas.nn.elastic.ElasticConv`.

    Its life has two parts. Until :meth:`fold`, batch normalisation is a module of its own whose statistics a
    calibrator may set; the weights are quantized once, here. After it, the statistics are in the weights and the bias.

    Where folding comes before quantization, the grid is the one that the quantizer gives for the statistics of the
    supernet, shared by all subnets, unless a calibrator asks for one of this subnet's own (:meth:`predict_scale`,
    :meth:`refit_scale`).

    Attributes:
        spec: the layer as costs see it.
        grid: of the weights; ``None`` where they are in float. Before folding for policies that quantize first.
        codes: ``[O, I, K, K]`` integers of the weights on the grid; ``None`` where they are in float.
        channel_scale: ``[O]``, by which folding multiplied the quantized weights (1 where it came before).
        padding: on each side of the input, in pixels.
        raw: puts the convolution's output on a grid, where batch normalisation stays in float: then :meth:`fold` turns
            it into ``affine``, a factor and an offset for each channel, and leaves weights and bias alone.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        spec: LayerSpec,
        weight: Tensor,
        bias: Tensor | None,
        bn: nn.BatchNorm2d | None,
        input_grid: nn.Module | None,
        output_grid: nn.Module | None,
        quantizer: Quantizer | None,
        ctx: SiteContext,
        *,
        folds: bool,
        padding: int | None = None,
        raw_grid: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.padding = spec.kernel_size // 2 if padding is None else padding
        self.input = input_grid
        self.output = output_grid
        self.raw = raw_grid
        self.affine: ChannelAffine | None = None
        self.bn = bn
        self.folds = folds and bn is not None and quantizer is not None
        self._quantizer = [quantizer]  # in a list: not a submodule, it stays the supernet's
        self._ctx = ctx
        self._shared: tuple[Tensor, Tensor] | None = None  # the supernet's mean and sigma
        self._own_scale: Tensor | None = None
        self.grid: Grid | None = None
        self.codes: Tensor | None = None
        self.channel_scale = torch.ones(len(weight))
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", None if bias is None else bias.clone())
        if self.folds:
            self._shared = self._statistics()
        elif quantizer is not None:
            with torch.no_grad():
                prepared = quantizer.prepare(self.weight, ctx)  # before the grid, which may follow from it
                self._put_on(quantizer.export(ctx), prepared)

    def _put_on(self, grid: Grid, weight: Tensor) -> None:
        self.grid = grid
        self.codes = grid.encode(weight)
        self.weight.copy_(grid.decode(self.codes))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and sigma of the batch normalisation's statistics as they are now, ``[O]`` each."""
        assert self.bn is not None
        assert self.bn.running_mean is not None
        assert self.bn.running_var is not None
        return self.bn.running_mean.clone(), torch.sqrt(self.bn.running_var + self.bn.eps)

    def _folded_context(self, mean: Tensor, sigma: Tensor) -> SiteContext:
        assert self.bn is not None
        return replace(self._ctx, gamma=self.bn.weight.detach(), mean=mean, sigma=sigma)

    def _grid_for(self, quantizer: Quantizer, mean: Tensor, sigma: Tensor) -> Grid:
        """Return the quantizer's grid for these statistics; it stays on the supernet's device, this may have moved."""
        ctx = self._folded_context(mean, sigma)
        assert ctx.gamma is not None
        home = next((t.device for t in (*quantizer.parameters(), *quantizer.buffers())), self.weight.device)
        ctx = replace(ctx, gamma=ctx.gamma.to(home), mean=mean.to(home), sigma=sigma.to(home))
        return quantizer.export(ctx).to(self.weight.device)

    def folded_grid(self) -> Grid:
        """Return the grid that :meth:`fold` puts folded weights on: the shared one, or with the subnet's own scale."""
        quantizer = self._quantizer[0]
        assert quantizer is not None
        assert self._shared is not None
        grid = self._grid_for(quantizer, *self._shared)
        if self._own_scale is None:
            return grid
        assert isinstance(grid, AffineGrid)
        return replace(grid, scale=self._own_scale.to(self.weight.device))

    @torch.no_grad()
    def folded_weight(self) -> Tensor:
        """Return the weights that :meth:`fold` would quantize now, ``[O, I, K, K]``."""
        assert self.bn is not None
        mean, sigma = self._statistics()
        quantizer = self._quantizer[0]
        folded = self.weight * (self.bn.weight / sigma).reshape(-1, 1, 1, 1)
        return folded if quantizer is None else quantizer.prepare(folded, self._folded_context(mean, sigma))

    @torch.no_grad()
    def predict_scale(self) -> None:
        """Let the quantizer give its grid for this subnet's statistics, as they are now (QuantNAS, Sec. 4.2).

        Changes nothing for quantizers whose grid does not depend on them, and for layers that do not fold first.
        """
        if self.folds:
            self._shared, self._own_scale = self._statistics(), None

    @torch.no_grad()
    def refit_scale(self) -> None:
        """Replace the scale by the one of the least squared error of this subnet's folded weights.

        Layers that do not fold first, or whose weights are on a table, keep theirs.
        """
        if not self.folds:
            return
        weight, grid = self.folded_weight(), self.folded_grid()
        if not isinstance(grid, AffineGrid) or grid.zero_points != (0, 0):
            return
        rows = [weight] if grid.axis is None else list(weight)
        fitted = torch.stack([least_squares_scale(row, grid.qmin, grid.qmax) for row in rows])
        fitted = fitted[0] if grid.axis is None else fitted
        self._own_scale = torch.where(fitted > 0, fitted, grid.scale)

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        """Give the folded weights a scale found elsewhere: ``[]``, or ``[O]`` where the grid has one a channel."""
        self._own_scale = scale.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, as the activated supernet would with the same statistics."""
        if self.input is not None:
            x = self.input(x)
        if self.spec.kind == "linear":
            x = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)
        elif self.folds and self.bn is not None:
            x = self._forward_unfolded(x)
        else:
            x = self._convolve(x, self.weight, self.bias)
            for then in (self.raw, self.bn, self.affine):
                x = x if then is None else then(x)
        return x if self.output is None else self.output(x)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(x, weight, bias, self.spec.stride, self.spec.groups, self.padding)

    def _forward_unfolded(self, x: Tensor) -> Tensor:
        """Gather statistics from the unquantized convolution; answer with the folded, quantized one."""
        assert self.bn is not None
        y = self._convolve(x, self.weight, None)
        if self.bn.training:
            self.bn(y)  # updates the statistics
            mean, var, _ = batch_statistics(y)
        else:
            assert self.bn.running_mean is not None
            assert self.bn.running_var is not None
            mean, var = self.bn.running_mean, self.bn.running_var
        sigma = torch.sqrt(var + self.bn.eps)
        factor = self.bn.weight / sigma
        quantizer = self._quantizer[0]
        assert quantizer is not None
        folded = quantizer.prepare(self.weight * factor.reshape(-1, 1, 1, 1), self._folded_context(mean, sigma))
        bias = self.bn.bias - factor * mean
        trains = self.bn.training
        grid = self._grid_for(quantizer, mean, sigma) if trains else self.folded_grid()  # as judged
        return self._convolve(x, grid.quantize(folded), bias)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the calibrated statistics into weights and bias; idempotent."""
        if self.bn is None:
            return
        mean, sigma = self._statistics()
        factor = self.bn.weight / sigma
        if self.raw is not None:
            self.affine = ChannelAffine(f"{self.spec.name}.bn", factor, self.bn.bias - factor * mean)
            self.bn = None
            return
        if self.folds:
            folded = self.folded_weight()
            self.weight = folded.clone()
            self._put_on(self.folded_grid(), folded)
        else:
            self.weight = self.weight * factor.reshape(-1, 1, 1, 1)
            self.channel_scale = factor.clone()
        self.bias = self.bn.bias - factor * mean
        self.bn = None
        self.folds = False

    def weight_scales(self) -> Tensor:
        """Return the factor from code to weight for each output channel, ``[O]``; may be negative or zero."""
        if not isinstance(self.grid, AffineGrid):
            return self.channel_scale
        return self.grid.scale.detach() * self.channel_scale


class ChannelAffine(nn.Module):
    """Multiplies each channel by a factor and adds an offset: batch normalisation that is not folded, in float.

    Args:
        name: of the step in deployed graphs.
        factor, offset: ``[C]``.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, name: str, factor: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("factor", factor.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * factor + offset`` of ``[N, C, H, W]``."""
        return x * self.factor.reshape(1, -1, 1, 1) + self.offset.reshape(1, -1, 1, 1)


class SubnetNorm(nn.Module):
    """The static twin of :class:`qnas.nn.norm.ElasticNorm`: until :meth:`fold` its statistics can be calibrated.

    Attributes:
        affine: what it is once folded; ``None`` before.
    """

    def __init__(self, name: str, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.name = name
        self.bn: nn.BatchNorm2d | None = bn
        self.affine: ChannelAffine | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, H, W]`` normalised."""
        y: Tensor = self.bn(x) if self.bn is not None else self.affine(x)  # type: ignore[misc]
        return y

    @torch.no_grad()
    def fold(self) -> None:
        """Turn the calibrated statistics into a factor and an offset for each channel; idempotent."""
        if self.bn is None:
            return
        assert self.bn.running_mean is not None
        assert self.bn.running_var is not None
        factor = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
        self.affine = ChannelAffine(self.name, factor, self.bn.bias - factor * self.bn.running_mean)
        self.bn = None


class Residual(nn.Module):
    """``grid(body(x) + shortcut(x))``; without a shortcut of its own, ``x`` itself is added."""

    def __init__(self, body: nn.Module, output: nn.Module | None, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, on its grid if it has one."""
        x = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return x if self.output is None else self.output(x)


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: :func:`pad_shortcut` with fixed numbers."""

    def __init__(self, stride: int, front: int, back: int) -> None:
        super().__init__()
        self.stride = stride
        self.front = front
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, front + C + back, ceil(H / stride), ceil(W / stride)]`` of ``[N, C, H, W]``."""
        return pad_shortcut(x, self.stride, self.front, self.back)


def pad_shortcut(x: Tensor, stride: int, front: int, back: int) -> Tensor:
    """Return every ``stride``-th pixel of ``[N, C, H, W]``, with channels of zeros in front and behind."""
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, front, back))


class Subnet(nn.Module):
    """A static network for one sample.

    Args:
        sample: that it was extracted for.
        resolution: height and width of the images that it takes, in pixels.
        layers: description, as costs see it.
        body: the computation; its leaves are those of ``qnas.nn.activation`` and :class:`SubnetLayer`.
    """

    def __init__(self, sample: Sample, resolution: int, layers: tuple[LayerSpec, ...], body: nn.Module) -> None:
        super().__init__()
        self.sample = dict(sample)
        self.resolution = resolution
        self.layers = layers
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs of normalised images ``[N, C, R, R]`` at this subnet's resolution."""
        outputs: Tensor = self.body(images)
        return outputs

    def subnet_layers(self) -> Iterator[SubnetLayer]:
        """Yield the layers with weights, in the order of the data's way."""
        for module in self.modules():
            if isinstance(module, SubnetLayer):
                yield module

    def fold(self) -> Subnet:
        """Fold every batch normalisation, for good; returns itself, in evaluation mode and channels-last layout."""
        for module in self.modules():
            if isinstance(module, (SubnetLayer, SubnetNorm)):
                module.fold()
        return self.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def codebook_layers(self) -> list[str]:
        """Return the names of layers whose weights are on a table instead of an affine grid."""
        return [layer.spec.name for layer in self.subnet_layers() if isinstance(layer.grid, CodebookGrid)]
