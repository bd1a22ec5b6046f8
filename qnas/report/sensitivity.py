"""How much accuracy goes with each bit-width of each group of layers: an additive fit to the judged subnets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qnas.report.data import Json, number

MIN_FREEDOM = 5  # judged subnets beyond the number of coefficients, so that the errors mean something
ROLES = ("w_bits", "a_bits")
NETWORK = "network"  # the group of knobs that hold for all layers
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Effect:
    """One bit-width of one group of layers.

    Attributes:
        group: of layers, as the knob names it.
        role: ``w_bits`` or ``a_bits``.
        num_subnets: judged subnets that have it.
        value: accuracy with it minus the overall mean, all other knobs equal in the fit.
        error: standard error of ``value``.
    """

    group: str
    role: str
    bits: int
    num_subnets: int
    value: float
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """What could be told, and from what.

    Attributes:
        effects: none where the fit was not possible.
        num_subnets: that the fit saw.
        num_coefficients: of the fit, the constant included; of the smallest one tried where none was possible.
        covariates: how the other knobs entered, in words.
        residual: standard deviation of what the fit leaves.
        reason: why there are no effects.
    """

    effects: tuple[Effect, ...]
    num_subnets: int
    num_coefficients: int = 0
    covariates: str = ""
    residual: float = math.nan
    reason: str = ""


def sensitivity(trials: Sequence[Json], score: str) -> Sensitivity:
    """Fit the score as a sum over knobs by least squares.

    Every choice of every bit knob has a coefficient. The other knobs are covariates: with a coefficient a choice where
    there are enough subnets for it; else as one number a knob (its place among its choices); else as the logarithm of
    the subnet's MACs alone.

    Args:
        trials: of all searches; equal subnets count once.
        score: the metric to explain.
    """
    subnets = list({t["key"]: t for t in trials if number(t["metrics"], score) is not None}.values())
    samples = [trial["sample"] for trial in subnets]
    y = np.array([trial["metrics"][score] for trial in subnets], dtype=np.float64)
    varied = [label for label in _labels(samples) if len({str(s.get(label)) for s in samples}) > 1]
    bit_labels = [label for label in varied if _is_bits(label)]
    others = [label for label in varied if not _is_bits(label)]
    if not bit_labels:
        return Sensitivity((), len(subnets), reason="no bit-width differs between the judged subnets")
    bit_columns = [_one_hot(samples, label) for label in bit_labels]
    width = 0
    for covariates, make in _forms(subnets, samples, others):
        x = np.column_stack([np.ones(len(y)), *bit_columns, *make()])
        width = x.shape[1]
        if len(y) - width < MIN_FREEDOM or np.linalg.matrix_rank(x) < width:
            continue
        beta, covariance, residual = _fit(x, y)
        effects = _effects(samples, bit_labels, beta, covariance)
        return Sensitivity(tuple(effects), len(y), width, covariates, residual)
    reason = f"{len(y)} judged subnets cannot tell {width} coefficients apart; a search with more --evaluations can"
    return Sensitivity((), len(y), width, reason=reason)


def _forms(
    subnets: Sequence[Json], samples: Sequence[Json], labels: Sequence[str]
) -> list[tuple[str, Callable[[], list[Array]]]]:
    """Return the ways in which the other knobs can enter, the fullest first."""
    if not labels:
        return [("no other knob differs", list)]
    forms: list[tuple[str, Callable[[], list[Array]]]] = [
        ("a coefficient for every choice of every other knob", lambda: [_one_hot(samples, x) for x in labels]),
        ("every other knob as one number", lambda: [_place(samples, x) for x in labels]),
    ]
    macs = [number(trial["metrics"], "macs") for trial in subnets]
    if all(value is not None and value > 0 for value in macs):
        logs = np.log([float(value or 1) for value in macs])
        if np.ptp(logs) > 0:
            forms.append(("the other knobs by the logarithm of the MACs alone", lambda: [logs - logs.mean()]))
    return forms


def _fit(x: Array, y: Array) -> tuple[Array, Array, float]:
    """Return coefficients, their covariance and the residual standard deviation."""
    scale = np.linalg.norm(x, axis=0)
    q, r = np.linalg.qr(x / scale)
    beta = np.linalg.solve(r, q.T @ y) / scale
    variance = float(((y - x @ beta) ** 2).sum()) / (len(y) - x.shape[1])
    inverse = np.linalg.inv(r) / scale[:, None]
    return beta, variance * inverse @ inverse.T, math.sqrt(variance)


def _effects(samples: Sequence[Json], labels: Sequence[str], beta: Array, covariance: Array) -> list[Effect]:
    """Return a contrast for every bit-width: its coefficient minus the mean coefficient over the subnets."""
    effects = []
    start = 1
    for label in labels:
        choices = _choices(samples, label)
        counts = np.array([sum(s.get(label) == choice for s in samples) for choice in choices])
        for i, choice in enumerate(choices):
            weights = np.where(np.arange(len(choices)) == i, 1.0, 0.0) - counts / counts.sum()
            contrast = np.zeros(len(beta))
            contrast[start : start + len(choices) - 1] = weights[1:]  # the first choice is the baseline, 0
            value, error = float(contrast @ beta), math.sqrt(max(0.0, float(contrast @ covariance @ contrast)))
            group, _, role = label.rpartition(".")
            effects.append(Effect(group or NETWORK, role, int(choice), int(counts[i]), value, error))
        start += len(choices) - 1
    return effects


def _labels(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(label for sample in samples for label in sample))


def _is_bits(label: str) -> bool:
    return label.rpartition(".")[2] in ROLES


def _choices(samples: Sequence[Mapping[str, Any]], label: str) -> list[Any]:
    """Return the choices that occur, in their order where they have one."""
    found = list(dict.fromkeys(sample.get(label) for sample in samples))
    plain = all(isinstance(choice, (int, float)) for choice in found)
    return sorted(found) if plain else sorted(found, key=str)


def _one_hot(samples: Sequence[Mapping[str, Any]], label: str) -> Array:
    """Return ``[n, choices - 1]``: 1 where a sample has the choice; the first choice is the baseline."""
    choices = _choices(samples, label)
    return np.array([[float(s.get(label) == choice) for choice in choices[1:]] for s in samples])


def _place(samples: Sequence[Mapping[str, Any]], label: str) -> Array:
    """Return ``[n, 1]``: the place of each sample's choice, centred; ``[n, choices - 1]`` where there is no order."""
    choices = _choices(samples, label)
    if not all(isinstance(choice, (int, float)) for choice in choices):
        return _one_hot(samples, label)
    places = np.array([[float(choices.index(s.get(label)))] for s in samples])
    centred: Array = places - places.mean()
    return centred
