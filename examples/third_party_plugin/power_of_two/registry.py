"""Registers the quantizer."""

from __future__ import annotations

from collections.abc import Iterable

from qnas.hookspecs import ComponentSpec, hookimpl


@hookimpl
def qnas_components() -> Iterable[ComponentSpec]:
    """Yield the one component of this package."""
    yield ComponentSpec(
        "quantizer",
        "power2",
        "power_of_two.quantizer:PowerOfTwo",
        "Power-of-two steps",
    )
