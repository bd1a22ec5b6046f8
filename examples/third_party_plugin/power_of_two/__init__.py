"""A quantizer for qnas whose steps are powers of two."""
