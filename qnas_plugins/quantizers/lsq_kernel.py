"""Builds and calls the compiled form of LSQ and PACT: a few lines of C, made by the machine's own compiler at once.

The library is built in a private folder and loaded at once: nothing that another user could have written is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=off")  # fmt: skip
SECONDS = 60  # longest that a compiler may take


@functools.cache
def load() -> ctypes.CDLL | None:
    """Return the compiled kernels, built once a process; ``None`` where there is no working compiler."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="qnas-") as folder:
        source, target = Path(folder) / "lsq.c", Path(folder) / "lsq.so"
        source.write_bytes((files(__package__) / "lsq_kernel.c").read_bytes())
        try:
            subprocess.run(
                [compiler, *FLAGS, str(source), "-o", str(target), "-lm"],
                check=True,
                capture_output=True,
                timeout=SECONDS,
            )
            kernels = ctypes.CDLL(str(target))
        except (OSError, subprocess.SubprocessError):
            return None
    pointer, size, real = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float
    kernels.lsq_forward.argtypes = [pointer, pointer, size, real, real, real]
    kernels.lsq_forward.restype = None
    kernels.lsq_backward.argtypes = [pointer, pointer, pointer, pointer, size, real, real]
    kernels.lsq_backward.restype = ctypes.c_double
    kernels.clip_backward.argtypes = kernels.lsq_backward.argtypes
    kernels.clip_backward.restype = ctypes.c_double
    return kernels


def serves(v: Tensor) -> bool:
    """Tell whether the kernels can work on ``v``: float32 on the CPU, without holes in memory."""
    return (
        v.dtype is torch.float32
        and v.device.type == "cpu"
        and (v.is_contiguous() or (v.ndim == 4 and v.is_contiguous(memory_format=torch.channels_last)))
    )


def forward(kernels: ctypes.CDLL, v: Tensor, scale: float, qn: int, qp: int) -> Tensor:
    """Return ``round(clip(v / scale, qn, qp)) * scale``, the shape and layout of ``v``."""
    q = torch.empty_like(v)
    kernels.lsq_forward(v.data_ptr(), q.data_ptr(), v.numel(), scale, qn, qp)
    return q


def backward(
    kernels: ctypes.CDLL, grad: Tensor, v: Tensor, q: Tensor, low: float, high: float, *, inside: bool = True
) -> tuple[Tensor, float]:
    """Return the gradient to ``v``, and the sum of ``grad (q - v)`` inside and ``grad q`` outside the bounds.

    All tensors have one layout. ``inside = False`` sums outside the bounds alone.
    """
    grad_v = torch.empty_like(v)
    call = kernels.lsq_backward if inside else kernels.clip_backward
    total = call(grad.data_ptr(), v.data_ptr(), q.data_ptr(), grad_v.data_ptr(), v.numel(), low, high)
    return grad_v, total
