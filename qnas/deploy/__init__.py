"""From a folded subnet to an integer graph: trace, export to ONNX, bit-packed storage, verification on a device."""
