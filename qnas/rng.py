"""Random numbers as functions of (seed, purpose, step): the same draw however a run was interrupted."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *step: int) -> np.random.Generator:
    """Return the generator for one purpose at one step, for example ``generator(0, "batches", epoch)``."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), *step]))


def integer_seed(seed: int, purpose: str, *step: int) -> int:
    """Return a 63-bit seed for a library that wants an integer, such as ``torch.Generator``."""
    return int(generator(seed, purpose, *step).integers(2**63 - 1))
