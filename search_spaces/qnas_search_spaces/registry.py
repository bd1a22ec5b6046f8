"""Registers the built-in search spaces, as a third party would."""

from __future__ import annotations

from collections.abc import Iterable

from qnas.hookspecs import ComponentSpec, hookimpl


@hookimpl
def qnas_components() -> Iterable[ComponentSpec]:
    """Yield the search spaces."""
    yield ComponentSpec(
        "space",
        "mbv3",
        "qnas_search_spaces.mbv3:MobileNetV3Space",
        "MobileNetV3 with elastic kernel, expansion, depth and resolution, as OFA and OQAT search it",
    )
