"""Sentences about latencies, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_native(latency: Mapping[str, Any]) -> str:
    """Return what is to be said of bit-widths that the device has no kernels for; nothing where there are none.

    Args:
        latency: the entry of ``front.json``.
    """
    lacking = latency.get("as_native") or []
    if not lacking:
        return ""
    kernel = ", ".join(f"int{bits}" for bits in latency["native_bits"])
    return f"as {kernel}: {latency['device']} has no kernels for {', '.join(map(str, lacking))} bits"
