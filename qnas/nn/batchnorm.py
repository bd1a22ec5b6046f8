"""Batch normalisation of elastic layers: sliced parameters, banks keyed by knobs, recalibration of subnets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnas.nn.ranks import Ranks
from qnas.space import Knob, Value

EPS = 1e-5
MOMENTUM = 0.1


def bank_keys(knobs: Sequence[Knob]) -> list[str]:
    """Return the keys of the banks for every combination of these knobs' choices; one, ``""``, without knobs."""
    return ["|".join(map(str, values)) for values in itertools.product(*(knob.choices for knob in knobs))]


def bank_of(knobs: Sequence[Knob], sample: Mapping[str, Value]) -> str:
    """Return the key of a sample's bank."""
    return "|".join(str(sample[knob.label]) for knob in knobs)


class ElasticBatchNorm(nn.Module):
    """Batch normalisation over a prefix of the channels, with one bank of parameters and statistics a key.

    A bank is chosen by the values of any knobs (a quantizer's branch, a bit-width); without any there is a single bank.
    In training the current batch's statistics are used; the running ones are kept for folding policies that want
    them. A subnet is never judged with them: it is recalibrated. Several processes normalise with the statistics of
    their whole batch, as one process would.

    Args:
        channels: the largest number of channels.
        banks: keys of the banks.
        eps: added to the variance.
    """

    def __init__(self, channels: int, banks: Iterable[str] = ("",), eps: float = EPS) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.banks = tuple(banks)
        self.bank = self.banks[0]
        self.ranks = Ranks()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(channels)) for _ in self.banks])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(channels)) for _ in self.banks])
        for i in range(len(self.banks)):
            self.register_buffer(f"mean{i}", torch.zeros(channels))
            self.register_buffer(f"var{i}", torch.ones(channels))

    def select(self, bank: str) -> None:
        """Make ``bank`` the active one."""
        if bank not in self.banks:
            raise KeyError(f"no batch normalisation bank {bank!r}; there are {list(self.banks)}")
        self.bank = bank

    def parameters_of(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return gamma and beta of the active bank, ``[channels]`` each."""
        i = self.banks.index(self.bank)
        return self.weights[i][:channels], self.biases[i][:channels]

    def running(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance of the active bank, ``[channels]`` each; views."""
        i = self.banks.index(self.bank)
        return getattr(self, f"mean{i}")[:channels], getattr(self, f"var{i}")[:channels]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, H, W]`` with ``C`` at most ``channels``, by its own statistics when training."""
        gamma, beta = self.parameters_of(x.shape[1])
        mean, var = self.running(x.shape[1])
        if self.training and self.ranks.size > 1:
            return self._forward_together(x, gamma, beta)
        return F.batch_norm(x, mean, var, gamma, beta, self.training, MOMENTUM, self.eps)

    def _forward_together(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Normalise by the statistics over all processes; float32 mathematics under autocast."""
        mean, var, count = batch_statistics(x, self.ranks)
        self.track(mean, var * (count / max(count - 1, 1)))
        factor = gamma * torch.rsqrt(var + self.eps)
        y = x.to(mean.dtype) * factor.reshape(1, -1, 1, 1) + (beta - mean * factor).reshape(1, -1, 1, 1)
        return y.to(x.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics of the active bank towards those of a batch, ``[C]`` each."""
        running_mean, running_var = self.running(len(mean))
        running_mean.lerp_(mean, MOMENTUM)
        running_var.lerp_(var, MOMENTUM)

    def extract(self, channels: int) -> nn.BatchNorm2d:
        """Return a plain batch normalisation of the active bank and a prefix of the channels."""
        plain = nn.BatchNorm2d(channels, eps=self.eps, momentum=None)
        gamma, beta = self.parameters_of(channels)
        mean, var = self.running(channels)
        with torch.no_grad():
            plain.weight.copy_(gamma)
            plain.bias.copy_(beta)
            plain.running_mean.copy_(mean)  # type: ignore[union-attr]
            plain.running_var.copy_(var)  # type: ignore[union-attr]
        return plain


def batch_statistics(y: Tensor, ranks: Ranks | None = None) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance over all but the channels of ``[N, C, H, W]``, and the number of values.

    Over several processes, which hold equal shares of the batch, the variance is the mean of theirs and the variance
    of their means: nothing cancels. In float32 at least.
    """
    y = y if y.dtype in (torch.float32, torch.float64) else y.float()
    mean, var = _ChannelStatistics.apply(y)  # type: ignore[no-untyped-call]
    count = y.numel() // y.shape[1]
    if ranks is None or ranks.size == 1:
        return mean, var, count
    whole = ranks.mean(mean)
    return whole, ranks.mean(var + (mean - whole) ** 2), count * ranks.size


class _ChannelStatistics(torch.autograd.Function):
    """Mean and biased variance of each channel of ``[N, C, H, W]``.

    ``torch.var_mean`` over these dimensions is 8 to 19 times slower on CPUs. Here the sums go over one dimension,
    pairwise; the variance is that of the centred values.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        pixels = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])  # a view in channels-last layout
        mean = pixels.sum(0).div_(len(pixels))
        var = (pixels - mean).square_().sum(0).div_(len(pixels))
        ctx.save_for_backward(y, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """d mean / d y = 1 / M, d var / d y = 2 (y - mean) / M, M pixels a channel."""
        grad_mean, grad_var = grads
        y, mean = ctx.saved_tensors
        pixels = y.numel() // y.shape[1]
        factor = grad_var * (2 / pixels)
        offset = grad_mean / pixels - factor * mean
        return torch.addcmul(offset.reshape(1, -1, 1, 1), y, factor.reshape(1, -1, 1, 1))


class _Count:
    """Number of values a channel that one batch normalisation saw in a batch."""

    def __init__(self) -> None:
        self.values = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.values = inputs[0].numel() // inputs[0].shape[1]


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the statistics of every ``BatchNorm2d`` by the average over the given batches.

    Whatever else follows batches (it has ``start_calibration`` and ``finish_calibration``) is calibrated with them.

    Native batch normalisation in training mode with ``momentum=None`` averages the batch means and the unbiased batch
    variances; the variances are then turned into the biased ones that training normalised with. Batches must be of
    one size, so that each counts the same.

    Args:
        model: a static model; changed in place and left in evaluation mode.
        batches: ``[N, C, H, W]`` each.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    counts = [_Count() for _ in norms]
    hooks = [norm.register_forward_pre_hook(count) for norm, count in zip(norms, counts, strict=True)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    followers = [m for m in model.modules() if hasattr(m, "start_calibration")]
    for follower in followers:
        follower.start_calibration()  # type: ignore[operator]
    try:
        with torch.inference_mode():
            for images in batches:
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for follower in followers:
            follower.finish_calibration()  # type: ignore[operator]
    with torch.no_grad():
        for norm, count in zip(norms, counts, strict=True):
            if count.values and norm.running_var is not None:
                norm.running_var.mul_((count.values - 1) / count.values)
    model.eval()
