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
    yield ComponentSpec(
        "strategy",
        "genetic",
        "qnas_strategies.genetic:Genetic",
        "Elitists of all generations under targets such as average bit-widths, as MultiQuant searches",
    )
    yield ComponentSpec(
        "strategy",
        "nsga2",
        "qnas_strategies.nsga2:NSGA2",
        "NSGA-II with pymoo's operators and sorting (Deb et al. 2002)",
    )
    for name, cls, summary in (
        ("tpe", "TPE", "Tree-structured Parzen estimator"),
        ("gp", "GP", "Gaussian process"),
        ("nsgaii", "NSGAII", "Optuna's NSGA-II"),
        ("nsgaiii", "NSGAIII", "NSGA-III, for three objectives and more"),
        ("qmc", "QMC", "Quasi-random sequence"),
    ):
        target = f"qnas_strategies.optuna_samplers:{cls}"
        yield ComponentSpec("strategy", f"optuna:{name}", target, f"Optuna: {summary}")
    yield ComponentSpec("strategy", "random", "qnas_strategies.random:RandomSearch", "Uniform draws, none twice")
