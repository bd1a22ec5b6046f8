"""Sentences about latencies, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qnas.latency import LATENCY

REASONS = {"constraint": "misses a constraint", "dominated": "is dominated"}


def device_said(header: Mapping[str, Any]) -> str:
    """Return on what latencies were measured, given a table's header or the entry of ``front.json``."""
    threads, batch = header["threads"], header["batch"]
    return (
        f"{header['device']} {header['version']} on {header['machine']}, {threads} thread{'s' * (threads != 1)}, "
        f"batch {batch}"
    )


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


def sentences(front: Mapping[str, Any]) -> list[str]:
    """Return how the latencies of a front came about; nothing for a front without."""
    latency = front.get("latency")
    if not latency:
        return []
    found = [f"Latency: measured, {device_said(latency)}; largest subnet {latency['reference']['ms']:.4g} ms"]
    native = as_native(latency)
    if native:
        found.append(f"Latency {native}")
    if latency["mode"] == "table":
        found.append("Trials have a table's latency (table_latency_ms of the front's points); the front is measured")
    for point in front.get("fell_out") or ():
        reason = REASONS[point["because"]]
        found.append(
            f"Fell out of the front: {point['key']}, as measured at {point['metrics'][LATENCY]:.4g} ms {reason}"
        )
    return found
