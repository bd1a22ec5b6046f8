"""Convolution, with "same" padding unless told otherwise, on whatever path is fast and exact."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int, padding: int | None = None
) -> Tensor:
    """Convolve ``[N, I, H, W]`` with ``[O, I / groups, K, K]``, padded by ``padding``, by default ``K // 2`` (K odd).

    oneDNN's depthwise gradient falls back to a reference kernel, up to 20 times slower, where the padding is as large
    as half of the map. There the padding is made explicit, and taps that only ever see padding are left out; the
    result is the same to the last bit.

    A strided 1x1 convolution looks at every ``stride``-th pixel alone. On the CPU it is computed on these: the gradient
    of the strided form writes beyond its memory for some numbers of channels (PyTorch 2.13, channels-last layout), and
    a process then dies at any later moment.
    """
    size, kernel = x.shape[-1], weight.shape[-1]
    if kernel == 1 and stride > 1 and not padding and torch.is_grad_enabled() and x.device.type == "cpu":
        return F.conv2d(x[:, :, ::stride, ::stride], weight, bias, 1, 0, 1, groups)
    if padding is not None and padding != kernel // 2:
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    if groups == 1 or kernel - 1 < size or not torch.is_grad_enabled() or x.device.type != "cpu":
        return F.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
    margin = max(0, (kernel - (2 * size - 1)) // 2)
    if margin:
        weight = weight[:, :, margin : kernel - margin, margin : kernel - margin]
    padding = weight.shape[-1] // 2
    return F.conv2d(F.pad(x, (padding,) * 4), weight, bias, stride, 0, 1, groups)
