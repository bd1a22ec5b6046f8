"""ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qnas.errors import ExportError


class OnnxRuntime:
    """Executes exported models with all graph optimisations, on the CPU.

    Args:
        threads: of one operator; operators run one after another.
    """

    name = "onnxruntime"
    native_bits = (8,)  # its kernels of 4 bits are for matrices alone, and compute in float

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    @property
    def version(self) -> str:
        """Version of the runtime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def session(self, model_path: str, *, optimized_path: str | None = None, threads: int | None = None) -> Any:
        """Return an inference session.

        Args:
            model_path: of an ONNX model.
            optimized_path: where to write the graph that is really executed.
            threads: of one operator; the device's own by default.

        Raises:
            ExportError: the runtime cannot load the model.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # On x86 without VNNI the default kernel adds two products of uint8 and int8 in int16, which overflows with
        # 8-bit weights. This asks for the exact one there, and changes nothing elsewhere.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if optimized_path is not None:
            options.optimized_model_filepath = optimized_path
        try:
            return onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exceptions share no base class
            raise ExportError(
                f"ONNX Runtime {self.version} cannot load {str(model_path)!r}: {error}. Export the subnet again."
            ) from error

    def run(self, model_path: str, images: np.ndarray[Any, Any], batch_size: int) -> np.ndarray[Any, Any]:
        """Return the model's outputs for ``[N, C, H, W]`` float32 images."""
        session = self.session(model_path)
        name = session.get_inputs()[0].name
        starts = range(0, len(images), batch_size)
        parts = [session.run(None, {name: np.ascontiguousarray(images[i : i + batch_size])})[0] for i in starts]
        return np.concatenate(parts)

    def operators(self, model_path: str) -> dict[str, int]:
        """Return how often each operator stands in the graph that the runtime really executes."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            target = str(Path(folder) / "optimized.onnx")
            self.session(model_path, optimized_path=target)
            graph = onnx.load(target).graph
        return dict(sorted(Counter(node.op_type for node in graph.node).items()))

    def prepare(self, model_path: str, batch: int, threads: int) -> Callable[[], None]:
        """Load a model and return what executes it once; inputs and outputs stay where they are from run to run."""
        import onnxruntime

        session = self.session(model_path, threads=threads)
        binding, rng = session.io_binding(), np.random.default_rng(0)
        for found in session.get_inputs():
            shape = [size if isinstance(size, int) else batch for size in found.shape]
            codes = found.type == "tensor(uint8)"
            values = rng.integers(0, 256, shape) if codes else rng.standard_normal(shape)
            value = np.ascontiguousarray(values, dtype=np.uint8 if codes else np.float32)
            binding.bind_ortvalue_input(found.name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
        for found in session.get_outputs():
            binding.bind_output(found.name, "cpu")

        def infer() -> None:
            session.run_with_iobinding(binding)

        return infer

    def clock(self, threads: int) -> Callable[[], float]:
        """Return the calling thread's own time for one thread, which is then the only one that computes."""
        return time.thread_time if threads == 1 else time.perf_counter
