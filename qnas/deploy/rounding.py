"""Puts a subnet's biases where integer kernels put them, so that a subnet is judged as it will be deployed."""

from __future__ import annotations

import torch

from qnas.deploy.integers import IntegerLayer, integer_layer
from qnas.deploy.trace import trace
from qnas.errors import ExportError
from qnas.nn.grid import AffineGrid
from qnas.nn.subnet import Subnet, SubnetLayer


@torch.no_grad()
def round_biases(subnet: Subnet) -> Subnet:
    """Round the biases of a folded subnet to multiples of input scale times weight scale, in place.

    Integer kernels add biases as int32 codes of that step. At 2 to 4 bits the step is a noticeable part of an output
    step, and rounding it only in the exported model moves a tenth or more of the predictions of a barely trained
    net; rounded here, fake-quantized and integer outputs are the same but for ties of float32 rounding. A second
    call changes nothing. A subnet that has no integer counterpart is left as it is.

    Returns:
        ``subnet`` itself.
    """
    try:
        steps = trace(subnet)
        found: list[tuple[SubnetLayer, IntegerLayer, torch.Tensor]] = []
        for step, layer in steps.layers():
            grid = steps.input_grid(step)
            if grid is not None and layer.grid is not None:
                integers = integer_layer(layer, grid)
                found.append((layer, integers, integers.bias(grid)))
    except ExportError:
        return subnet
    for layer, integers, bias in found:
        if layer.bias is not None:
            layer.bias = bias.to(layer.bias.device)
        _rescale(layer, integers)
    return subnet


def _rescale(layer: SubnetLayer, integers: IntegerLayer) -> None:
    """Give channels whose scale was too small for their bias the codes and the scale that they are deployed with."""
    chosen = integers.rescaled
    if not bool(chosen.any()):
        return
    grid = layer.grid
    assert isinstance(grid, AffineGrid)
    assert layer.codes is not None
    layer.codes[chosen] = (integers.codes + grid.broadcast_zero_point(layer.codes.ndim))[chosen].to(torch.int16)
    layer.channel_scale = layer.channel_scale.clone()
    layer.channel_scale[chosen] = (integers.scales / grid.scale)[chosen]
    scales = integers.scales.reshape(-1, *[1] * (layer.codes.ndim - 1))
    layer.weight[chosen] = (integers.codes * scales)[chosen].to(layer.weight.dtype)
