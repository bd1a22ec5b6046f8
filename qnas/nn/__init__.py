"""Elastic and quantized layers, batch normalisation, the supernet and the subnets extracted from it."""
