"""Bit-packed storage: a safetensors file whose tensors take exactly the bytes that the cost ``size_bytes`` counts.

Tensors of a quantized layer ``<site>``:

- ``codes`` uint8: the weights' codes in two's complement of ``bits``, one after another, lowest bit first;
- ``zero_points`` ``[O]`` uint8, of asymmetric weights alone, whose codes are then unsigned;
- ``scales`` ``[O]`` float32: of each output channel, batch normalisation folded in, so they may be negative;
- ``bias`` ``[O]`` int32: the bias is ``bias * grid_scale * |scales| / 2 ** bias_shift``;
- ``grid_scale`` ``[]`` float32 and ``grid_zero_point`` ``[]`` uint8: of the input, wherever it was put on that grid.

A site that only puts a tensor on a grid has the last two, a layer in float ``weight`` and ``bias`` in float32, a batch
normalisation that stays in float ``factor`` and ``offset`` ``[C]`` in float32, under the name of its operation. Shapes,
bits, ``bias_shift`` and the range of the grids' codes are in the file's metadata, under ``layers``, as JSON;
``padding`` is there where it is not half of the kernel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from qnas.deploy.integers import CodeGrid, integer_layer
from qnas.deploy.trace import Trace, squeeze_excite_weights, trace
from qnas.errors import ExportError, StoreError
from qnas.files import write_bytes
from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.nn.activation import FloatSqueezeExcite, GridQuantize
from qnas.nn.subnet import ChannelAffine, Subnet, SubnetLayer

FORMAT = "qnas-packed-1"
FIELDS = {
    "quantized": ("codes", "scales", "bias", "grid_scale", "grid_zero_point"),
    "asymmetric": ("codes", "zero_points", "scales", "bias", "grid_scale", "grid_zero_point"),
    "float": ("weight", "bias"),
    "quantize": ("grid_scale", "grid_zero_point"),
    "affine": ("factor", "offset"),
}
DTYPES = {
    "codes": torch.uint8,
    "zero_points": torch.uint8,
    "scales": torch.float32,
    "grid_scale": torch.float32,
    "grid_zero_point": torch.uint8,
    "weight": torch.float32,
    "factor": torch.float32,
    "offset": torch.float32,
}


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes of ``bits`` bits each, lowest bit first.

    Args:
        codes: any shape; in ``[-2^(bits-1), 2^bits)``, so two's complement or unsigned.
        bits: 1 to 8.

    Returns:
        ``[ceil(n * bits / 8)]`` uint8; the last byte is filled with zeros.

    Raises:
        ExportError: a code does not fit.
    """
    flat = codes.detach().cpu().flatten().to(torch.int32)
    if not 1 <= bits <= 8:
        raise ExportError(f"Codes are packed with 1 to 8 bits, not {bits}.")
    if len(flat) and (int(flat.min()) < -(2 ** (bits - 1)) or int(flat.max()) >= 2**bits):
        raise ExportError(f"Codes from {int(flat.min())} to {int(flat.max())} do not fit in {bits} bits.")
    stream = ((flat[:, None] >> torch.arange(bits)) & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8))
    return (stream.reshape(-1, 8) << torch.arange(8)).sum(1).to(torch.uint8)


def unpack_codes(packed: Tensor, bits: int, count: int, signed: bool) -> Tensor:
    """Return the ``count`` codes that :func:`pack_codes` packed, ``[count]`` int16.

    Raises:
        StoreError: the number of bytes is not that of ``count`` codes.
    """
    if not 1 <= bits <= 8 or count < 0 or len(packed) != -(-count * bits // 8):
        raise StoreError(f"{len(packed)} bytes cannot hold {count} codes of {bits} bits. The file is damaged.")
    stream = ((packed.to(torch.int32)[:, None] >> torch.arange(8)) & 1).flatten()[: count * bits]
    codes = (stream.reshape(count, bits) << torch.arange(bits)).sum(1)
    if signed:
        codes = torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes)
    return codes.to(torch.int16)


def write_packed(subnet: Subnet, path: str | Path, metadata: Mapping[str, str]) -> int:
    """Write a folded subnet bit-packed and return the bytes of its tensors.

    Raises:
        ExportError: a part of the subnet has no integers, or a described layer is not in it.
    """
    tensors, layers = _Packer(subnet, trace(subnet)).pack()
    header = {**metadata, "resolution": subnet.resolution, "layers": layers}
    # One key: safetensors leaves the order of several to chance, and equal subnets must give equal files.
    write_bytes(Path(path), save(tensors, {FORMAT: json.dumps(header)}))
    return sum(tensor.nbytes for tensor in tensors.values())


class _Packer:
    """Collects the tensors of every described layer."""

    def __init__(self, subnet: Subnet, steps: Trace) -> None:
        self.specs = {spec.name: spec for spec in subnet.layers}
        self.steps = steps
        self.tensors: dict[str, Tensor] = {}
        self.layers: dict[str, dict[str, Any]] = {}

    def pack(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """Return the tensors by name, and the description of each layer."""
        for step in self.steps.steps:
            module = step.module
            if isinstance(module, SubnetLayer):
                self._layer(module, self.steps.input_grid(step))
            elif isinstance(module, FloatSqueezeExcite):
                for part, (weight, bias) in zip(("reduce", "expand"), squeeze_excite_weights(module), strict=True):
                    self._float(self.specs[f"{module.name}.{part}"], weight, bias)
            elif isinstance(module, ChannelAffine):
                self._affine(step.name, module)
            elif isinstance(module, GridQuantize) and self._stands_alone(step.name):
                grid = self.steps.grids[step.output]
                assert grid is not None
                self.layers[step.name] = {"kind": "quantize"}
                self._grid(step.name, grid)
        in_float = {name for name, spec in self.specs.items() if spec.kind == "quantize" and spec.a_bits == FLOAT_BITS}
        missing = sorted(set(self.specs) - set(self.layers) - in_float)
        if missing:
            raise ExportError(
                f"The space describes {', '.join(missing)}, but the extracted subnet holds no such layer. "
                "Every described site must stand in the network."
            )
        return self.tensors, self.layers

    def _stands_alone(self, site: str) -> bool:
        """Tell whether a grid is stored by itself, not with the layer whose input it is."""
        spec = self.specs.get(site)  # a convolution's output in front of a float operation is no site
        return spec is None or spec.kind == "quantize"

    def _affine(self, name: str, affine: ChannelAffine) -> None:
        self.layers[name] = {"kind": "affine", "shape": list(affine.factor.shape)}
        self.tensors[f"{name}.factor"] = affine.factor.detach().float().contiguous()
        self.tensors[f"{name}.offset"] = affine.offset.detach().float().contiguous()

    def _grid(self, site: str, grid: CodeGrid) -> None:
        self.tensors[f"{site}.grid_scale"] = torch.tensor(grid.scale, dtype=torch.float32)
        self.tensors[f"{site}.grid_zero_point"] = torch.tensor(grid.zero_point, dtype=torch.uint8)
        self.layers[site]["grid"] = [grid.low, grid.high]

    def _layer(self, layer: SubnetLayer, grid: CodeGrid | None) -> None:
        spec = layer.spec
        if spec.w_bits == FLOAT_BITS:
            self._float(spec, layer.weight, layer.bias)
            self.layers[spec.name] |= _padding(layer)
            return
        if grid is None or layer.grid is None:
            raise ExportError(
                f"Layer {spec.name!r} is described with {spec.w_bits}-bit weights, but its weights or its input are "
                "in float. Extract the subnet from a supernet in quantize mode."
            )
        integers = integer_layer(layer, grid)
        if integers.bits > spec.w_bits:
            raise ExportError(
                f"The weights of {spec.name!r} take {integers.bits} bits in two's complement, not {spec.w_bits}."
            )
        asymmetric = integers.zero_points is not None
        if asymmetric != spec.w_zero_points:
            described = "with" if spec.w_zero_points else "without"
            raise ExportError(
                f"The weights of {spec.name!r} are described {described} zero points, but their quantizer's "
                "grid says otherwise. Correct its has_weight_zero_points()."
            )
        self.layers[spec.name] = {
            "kind": spec.kind, "bits": spec.w_bits, "shape": list(integers.codes.shape), "stride": spec.stride,
            "groups": spec.groups, "bias_shift": integers.shift, "asymmetric": asymmetric, **_padding(layer),
        }  # fmt: skip
        codes = integers.codes
        if integers.zero_points is not None:
            codes = codes + integers.zero_points.reshape(-1, *[1] * (codes.ndim - 1))
            self.tensors[f"{spec.name}.zero_points"] = integers.zero_points.to(torch.uint8)
        self.tensors[f"{spec.name}.codes"] = pack_codes(codes, spec.w_bits)
        self.tensors[f"{spec.name}.scales"] = integers.scales
        self.tensors[f"{spec.name}.bias"] = integers.bias_codes
        self._grid(spec.name, grid)

    def _float(self, spec: LayerSpec, weight: Tensor, bias: Tensor | None) -> None:
        self.layers[spec.name] = {
            "kind": spec.kind, "bits": FLOAT_BITS, "shape": list(weight.shape), "stride": spec.stride,
            "groups": spec.groups,
        }  # fmt: skip
        zeros = torch.zeros(len(weight))
        self.tensors[f"{spec.name}.weight"] = weight.detach().float().contiguous()
        self.tensors[f"{spec.name}.bias"] = zeros if bias is None else bias.detach().float().contiguous()


def _padding(layer: SubnetLayer) -> dict[str, int]:
    return {} if layer.padding == layer.spec.kernel_size // 2 else {"padding": layer.padding}


def read_packed(path: str | Path) -> dict[str, Any]:
    """Read and check what :func:`write_packed` wrote.

    Returns:
        ``metadata`` (strings), ``tensors`` (as stored, by name) and ``layers``: for each site its description with
        the tensors under their short names; ``codes`` are unpacked, int16 in the weights' shape, and count from 0
        (from ``zero_points`` where the weights are asymmetric).

    Raises:
        StoreError: the file cannot be read, is of another format, or its parts do not fit together.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{str(path)!r} cannot be read as a packed model: {error}. Export it again.") from error
    if header is None:
        raise StoreError(
            f"{str(path)!r} is no packed model: its metadata has no {FORMAT!r}. Give a file that `qnas export` wrote."
        )
    try:
        metadata = json.loads(header)
        described = metadata.pop("layers")
        layers = {site: _read_layer(site, dict(entry), tensors) for site, entry in described.items()}
    except (KeyError, TypeError, ValueError, AttributeError, StoreError) as error:
        raise StoreError(f"{str(path)!r} is damaged: {error}. Export it again.") from error
    used = {f"{site}.{name}" for site, layer in layers.items() for name in FIELDS[_fields(layer)]}
    if used != set(tensors):
        raise StoreError(
            f"{str(path)!r} is damaged: unexpected tensors {sorted(set(tensors) - used)}. Export it again."
        )
    return {"metadata": metadata, "tensors": tensors, "layers": layers}


def _fields(entry: Mapping[str, Any]) -> str:
    if entry["kind"] in ("quantize", "affine"):
        return str(entry["kind"])
    if entry["bits"] == FLOAT_BITS:
        return "float"
    return "asymmetric" if entry.get("asymmetric", False) else "quantized"


def _read_layer(site: str, entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Check one site's tensors against its description, and return both in one."""
    fields = _fields(entry)
    for name in FIELDS[fields]:
        tensor = tensors[f"{site}.{name}"]
        bias = torch.float32 if fields == "float" else torch.int32
        if tensor.dtype != DTYPES.get(name, bias):
            raise StoreError(f"{site}.{name} has the type {tensor.dtype}")
        entry[name] = tensor
    if "grid" in entry:
        low, high = entry["grid"]
        if not 0 <= low <= int(entry["grid_zero_point"]) <= high <= 255 or not float(entry["grid_scale"]) > 0:
            raise StoreError(f"the grid of {site} is impossible")
    if fields == "quantize":
        return entry
    shape = torch.Size(entry["shape"])
    if fields == "affine":
        for name in FIELDS[fields]:
            if entry[name].shape != shape:
                raise StoreError(f"{site}.{name} has the shape {list(entry[name].shape)}")
        return entry
    if entry["bias"].shape != shape[:1]:
        raise StoreError(f"{site}.bias has the shape {list(entry['bias'].shape)}")
    if fields == "float":
        if entry["weight"].shape != shape:
            raise StoreError(f"{site}.weight has the shape {list(entry['weight'].shape)}")
        return entry
    if not 0 <= entry["bias_shift"] <= 7:
        raise StoreError(f"the bias_shift of {site} is impossible")
    if entry["scales"].shape != shape[:1]:
        raise StoreError(f"{site}.scales has the shape {list(entry['scales'].shape)}")
    if fields == "asymmetric" and entry["zero_points"].shape != shape[:1]:
        raise StoreError(f"{site}.zero_points has the shape {list(entry['zero_points'].shape)}")
    signed = fields == "quantized"
    entry["codes"] = unpack_codes(entry["codes"], entry["bits"], shape.numel(), signed=signed).reshape(shape)
    return entry
