"""A look inside the supernet during a training step: steps, clipping, batch statistics, gradients. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qnas.errors import ExportError
from qnas.nn.batchnorm import ElasticBatchNorm
from qnas.nn.elastic import ElasticConv
from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, SiteContext
from qnas.nn.supernet import Supernet


class Probe:
    """Watches a supernet while its subnets train.

    Args:
        supernet: whose modules are watched.
    """

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self._names = {m: m.name for m in supernet.modules() if isinstance(m, ElasticConv)}
        self._norms = {m.bn: m.name for m in self._names if m.bn is not None}

    @contextmanager
    def watching(self, found: dict[str, Any]) -> Iterator[None]:
        """Collect what one subnet's forward pass shows.

        Args:
            found: receives ``steps`` (mean step size), ``clip_ratios`` (share of values beyond the grid; those that a
                ReLU cuts do not count), both by ``site.role``, and ``bn_std`` (mean over channels of the batch's
                standard deviation), by layer; layers whose normalisation is folded in training are left out of it.
        """
        steps: dict[str, Tensor] = {}
        clipped: dict[str, Tensor] = {}
        deviations: dict[str, Tensor] = {}

        @torch.no_grad()
        def quantized(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            assert isinstance(module, Quantizer)
            values, ctx = inputs
            grid = _grid(module, ctx)
            if grid is None:
                return
            name = f"{module.site.name}.{module.site.role}"
            scale, zero_point = grid.broadcast_scale(values.ndim), grid.broadcast_zero_point(values.ndim)
            low, high = (grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale
            outside = values > high + scale / 2
            if module.site.signed:
                outside |= values < low - scale / 2
            steps[name] = grid.scale.mean()
            clipped[name] = outside.float().mean()

        @torch.no_grad()
        def normalised(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, ElasticBatchNorm)
            deviations[self._norms[module]] = inputs[0].float().std((0, 2, 3), correction=0).mean()

        handles = [q.register_forward_hook(quantized) for q in self.supernet.quantizers()]
        handles += [norm.register_forward_pre_hook(normalised) for norm in self._norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        found["steps"], found["clip_ratios"], found["bn_std"] = map(_numbers, (steps, clipped, deviations))

    def gradient_norms(self) -> dict[str, float]:
        """Return the norm of the gradient of each layer's weights, before clipping; layers without one are left out."""
        return _numbers({n: m.weight.grad.norm() for m, n in self._names.items() if m.weight.grad is not None})


def _grid(quantizer: Quantizer, ctx: SiteContext) -> AffineGrid | None:
    try:
        grid = quantizer.export(ctx)
    except ExportError:
        return None
    return grid if isinstance(grid, AffineGrid) else None


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return all values at once: each read of its own would wait for a GPU."""
    if not values:
        return {}
    together = torch.stack([value.detach().float().reshape(()) for value in values.values()]).tolist()
    return dict(zip(values, together, strict=True))
