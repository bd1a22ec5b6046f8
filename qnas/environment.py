"""What else a result depends on: versions, machine, command."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("qnas", "torch", "numpy", "onnx", "onnxruntime", "scikit-learn", "safetensors")


def environment(command: str) -> dict[str, Any]:
    """Return what else a result depends on: versions, machine, command."""
    return {
        "command": command,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "absent"


def processor() -> str:
    """Return the name of the machine's processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
