"""OpenVINO on the CPU."""

from __future__ import annotations

import ctypes
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from qnas.errors import ExportError, PluginError


class OpenVino:
    """Executes exported models, the same QDQ files as ONNX Runtime, by OpenVINO's CPU plugin.

    Operations that stay in float are computed in float32, as the subnet does, not in the bfloat16 that OpenVINO takes
    where the processor has it.

    Args:
        threads: that one inference may compute with.
    """

    name = "openvino"
    native_bits = (8,)

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @property
    def version(self) -> str:
        """Version of the runtime."""
        return str(_openvino().__version__).partition("-")[0]

    def compiled(self, model_path: str, threads: int | None = None) -> Any:
        """Return a compiled model, its number of images still free.

        Raises:
            ExportError: the runtime cannot load the model.
            PluginError: OpenVINO is not installed.
        """
        return self._compile(self._read(model_path), model_path, threads)

    def _read(self, model_path: str) -> Any:
        try:
            return _core().read_model(str(model_path))
        except RuntimeError as error:
            raise self._refusal(model_path, error) from error

    def _compile(self, model: Any, model_path: str, threads: int | None) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(threads or self.threads),
            "NUM_STREAMS": "1",
        }
        try:
            return _core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise self._refusal(model_path, error) from error

    def _refusal(self, model_path: str, error: Exception) -> ExportError:
        return ExportError(
            f"OpenVINO {self.version} cannot load {str(model_path)!r}: {error}. Export the subnet again."
        )

    def run(self, model_path: str, images: np.ndarray[Any, Any], batch_size: int) -> np.ndarray[Any, Any]:
        """Return the model's outputs for ``[N, C, H, W]`` float32 images."""
        model = self.compiled(model_path)
        starts = range(0, len(images), batch_size)
        parts = [model([np.ascontiguousarray(images[i : i + batch_size])])[0].copy() for i in starts]
        return np.concatenate(parts)

    def operators(self, model_path: str) -> dict[str, int]:
        """Return how often each kind of layer stands in the graph that the runtime really executes."""
        nodes = self.compiled(model_path).get_runtime_model().get_ops()
        kinds = (str(node.get_rt_info()["layerType"].astype(str)) for node in nodes)
        return dict(sorted(Counter(kinds).items()))

    def prepare(self, model_path: str, batch: int, threads: int) -> Callable[[], None]:
        """Load a model for a fixed number of images and return what executes it once."""
        openvino = _openvino()
        model, rng = self._read(model_path), np.random.default_rng(0)
        shapes = {
            found: [size.get_length() if size.is_static else batch for size in found.partial_shape]
            for found in model.inputs
        }
        model.reshape(dict(shapes))
        request = self._compile(model, model_path, threads).create_infer_request()
        for number, found in enumerate(model.inputs):
            codes = found.element_type == openvino.Type.u8
            values = rng.integers(0, 256, shapes[found]) if codes else rng.standard_normal(shapes[found])
            value = np.ascontiguousarray(values, dtype=np.uint8 if codes else np.float32)
            request.set_input_tensor(number, openvino.Tensor(value))

        def infer() -> None:
            request.infer()

        return infer

    def clock(self, threads: int) -> Callable[[], float]:
        """Return the wall clock: OpenVINO computes in threads of its own."""
        return time.perf_counter


def _core() -> Any:
    """Return OpenVINO's core, the one of this process.

    Raises:
        PluginError: OpenVINO is not installed.
    """
    return _loaded_core(_openvino())


@cache
def _loaded_core(openvino: Any) -> Any:
    """Return a core with its CPU plugin loaded.

    The plugin gives the calling thread a stack for signals, and frees it when the last core and model are gone, in an
    order that leaves the thread with one that is no more: the next signal that Python handles, as that of a child which
    ends, kills the process (OpenVINO 2026.4). So this core stays, and the thread keeps the stack that it had before.
    """
    core = openvino.Core()
    with _same_signal_stack():
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core


class _SignalStack(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _same_signal_stack() -> Iterator[None]:
    """Give this thread the stack for signals back that it had, where the system has such stacks."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    before = _SignalStack()
    if libc is not None:
        libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if libc is not None:
            libc.sigaltstack(ctypes.byref(before), None)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise PluginError(
            "Device 'openvino' needs the package openvino, which is not installed. Install it by "
            '`pip install "qnas[openvino]"`, or choose --device onnxruntime.'
        ) from error
    return openvino
