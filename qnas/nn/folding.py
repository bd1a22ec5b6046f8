"""Folding policies: whether, and with which statistics, batch normalisation is folded into weights in training.

A policy belongs to the convolution and its batch normalisation; the quantizer sees the statistics in its context and
knows nothing else of it. Statistics always come from the unquantized convolution on the (fake-quantized) input, never
from the folded path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qnas.errors import unknown_name
from qnas.nn.batchnorm import batch_statistics

if TYPE_CHECKING:
    from qnas.nn.elastic import ElasticConv


class FoldingPolicy(Protocol):
    """How a convolution with batch normalisation computes in training.

    ``folds`` tells extraction whether the weights are quantized after (True) or before folding.
    """

    folds: bool

    def forward(self, layer: ElasticConv, x: Tensor, weight: Tensor) -> Tensor:
        """Return the normalised output ``[N, O, H', W']`` of ``x`` ``[N, I, H, W]`` and active ``weight``."""


class NoFolding:
    """Quantize the weights as they are; batch normalisation follows (OQAT, MultiQuant, BASQ)."""

    folds = False

    def forward(self, layer: ElasticConv, x: Tensor, weight: Tensor) -> Tensor:
        """Return BN(conv(x, Q(w)))."""
        assert layer.bn is not None
        y: Tensor = layer.bn(layer.convolve(x, layer.quantize_weight(weight)))
        return y


class MovingFolding:
    """Quantize the weights folded with the moving statistics (QuantNAS, Eq. 3 and Fig. 3)."""

    folds = True

    def forward(self, layer: ElasticConv, x: Tensor, weight: Tensor) -> Tensor:
        """Return conv(x, Q(w gamma/sigma)) + beta - gamma mu/sigma, with the moving mu and sigma."""
        assert layer.bn is not None
        mean, var = layer.bn.running(weight.shape[0])
        if layer.bn.training:
            with torch.no_grad():
                batch_mean, batch_var, _ = batch_statistics(layer.convolve(x, weight), layer.bn.ranks)
            layer.bn.track(batch_mean, batch_var)
        return _folded(layer, x, weight, mean, var)


class BatchFolding:
    """Quantize the weights folded with the current batch's statistics (QuantNAS, Sec. 4.1)."""

    folds = True

    def forward(self, layer: ElasticConv, x: Tensor, weight: Tensor) -> Tensor:
        """Return conv(x, Q(w gamma/sigma)) + beta - gamma mu/sigma, with the batch's mu and sigma."""
        assert layer.bn is not None
        mean, var = layer.bn.running(weight.shape[0])
        if not layer.bn.training:
            return _folded(layer, x, weight, mean, var)
        batch_mean, batch_var, _ = batch_statistics(layer.convolve(x, weight), layer.bn.ranks)
        layer.bn.track(batch_mean, batch_var)
        return _folded(layer, x, weight, batch_mean, batch_var)


def _folded(layer: ElasticConv, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    assert layer.bn is not None
    gamma, beta = layer.bn.parameters_of(weight.shape[0])
    sigma = torch.sqrt(var + layer.bn.eps)
    folded = weight * (gamma / sigma).reshape(-1, 1, 1, 1)
    quantized = layer.quantize_weight(folded, gamma=gamma, mean=mean, sigma=sigma)
    return layer.convolve(x, quantized) + (beta - gamma * mean / sigma).reshape(1, -1, 1, 1)


POLICIES: dict[str, type[FoldingPolicy]] = {"none": NoFolding, "moving": MovingFolding, "batch": BatchFolding}


def folding_policy(name: str) -> FoldingPolicy:
    """Return the policy of this name: ``none``, ``moving`` or ``batch``."""
    if name not in POLICIES:
        from qnas.errors import ConfigError

        raise ConfigError(unknown_name("The folding policy", name, POLICIES, "Set --folding to one of these."))
    return POLICIES[name]()
