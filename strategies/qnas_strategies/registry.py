"""Registers the built-in strategies, as a third party would."""

from __future__ import annotations

from collections.abc import Iterable

from qnas.hookspecs import ComponentSpec, hookimpl


@hookimpl
def qnas_components() -> Iterable[ComponentSpec]:
    """Yield the strategies."""
    yield ComponentSpec(
        "strategy",
        "evolution",
        "qnas_strategies.evolution:Evolution",
        "Mutation and crossover of the best, as OFA, OQAT, QuantNAS and BASQ search",
    )
    yield ComponentSpec("strategy", "random", "qnas_strategies.random:RandomSearch", "Uniform draws, none twice")
