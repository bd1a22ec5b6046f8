"""What devices say of themselves; that they answer and can be timed is in the contract tests."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from qnas.errors import PluginError
from qnas_plugins.devices.onnxruntime import OnnxRuntime
from qnas_plugins.devices.openvino import OpenVino


def test_an_absent_openvino_is_said_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for use in (lambda: OpenVino().version, lambda: OpenVino().prepare("m.onnx", 1, 1)):
        with pytest.raises(PluginError, match=r"not installed\. Install it by `pip install \"qnas\[openvino\]\"`"):
            use()


def test_clocks_are_those_that_see_the_work():
    assert OnnxRuntime().clock(1) is time.thread_time
    assert OnnxRuntime().clock(2) is time.perf_counter
    assert OpenVino().clock(1) is time.perf_counter


def test_neither_has_kernels_below_8_bits():
    assert OnnxRuntime.native_bits == OpenVino.native_bits == (8,)


def test_a_child_may_end_after_openvino_was_used(tmp_path):
    """OpenVINO leaves a thread with a stack for signals that is no more, on which Python's handler would run."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    code = """
import ctypes, gc, signal, subprocess, sys
import numpy as np, onnx
from onnx import TensorProto, helper
from qnas_plugins.devices.openvino import OpenVino, _SignalStack
def stack():
    found = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.flags, found.pointer
before = stack()
shape = ["N", 3]
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), sys.argv[1])
held = []
for _ in range(3):
    held.append(OpenVino().prepare(sys.argv[1], 1, 1))
    held[-1]()
    assert OpenVino().run(sys.argv[1], -np.ones((2, 3), np.float32), 1).max() == 0
while held:
    held.pop(0)
    gc.collect()
assert stack() == before
signal.signal(signal.SIGCHLD, lambda *_: None)
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.onnx")], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr
