"""From a folded subnet to an integer graph: trace, export to ONNX, bit-packed storage, verification on a device."""

from __future__ import annotations

from qnas.deploy.features import FeatureCheck, check_features, export_features
from qnas.deploy.onnx_export import ExportSummary, export_onnx
from qnas.deploy.pack import pack_codes, read_packed, unpack_codes, write_packed
from qnas.deploy.rounding import round_biases
from qnas.deploy.trace import Island
from qnas.deploy.verify import VerifyLimits, VerifyReport, verify

__all__ = [
    "ExportSummary",
    "FeatureCheck",
    "Island",
    "VerifyLimits",
    "VerifyReport",
    "check_features",
    "export_features",
    "export_onnx",
    "pack_codes",
    "read_packed",
    "round_biases",
    "unpack_codes",
    "verify",
    "write_packed",
]
