"""Latency on the user's device: timing of models, tables of block latencies, measured subnets of a run."""

from __future__ import annotations

LATENCY = "latency_ms"
"""The metric: milliseconds of one inference, less is better."""

TABLE_LATENCY = "table_latency_ms"
"""What a table says of a subnet whose :data:`LATENCY` is measured."""
