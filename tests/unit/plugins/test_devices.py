"""What devices say of themselves; that they answer and can be timed is in the contract tests."""

from __future__ import annotations

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
