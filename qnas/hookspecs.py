"""The contract in one file: what a plugin may register, and how.

A plugin is a module (or object) named by an entry point of group ``qnas``. It implements
:func:`qnas_components` with ``qnas.hookspecs.hookimpl`` and yields one :class:`ComponentSpec` for each thing that
it offers. Listing components imports none of them: a target is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pluggy

hookspec = pluggy.HookspecMarker("qnas")
hookimpl = pluggy.HookimplMarker("qnas")

KINDS: dict[str, str] = {
    "space": "a search space: knobs, layers and the supernet (qnas.space.SearchSpace)",
    "quantizer": "fake quantization of weights or activations (qnas.nn.quantizer.Quantizer)",
    "sampler": "which subnets a training step or a population draws (qnas.protocols.Sampler)",
    "supervision": "what the subnets of a step should answer (qnas.protocols.Supervision)",
    "calibrator": "gradient-free adjustment: of a subnet before it is judged, or of ranges (qnas.protocols)",
    "strategy": "which subnets to judge next (qnas.protocols.Strategy)",
    "predictor": "predicts a metric of subnets from their encoding (qnas.protocols.Predictor)",
    "cost": "a number computed from layer descriptions (qnas.protocols.CostModel)",
    "dataset": "images and labels (qnas.protocols.Dataset)",
    "task": "loss and metrics of a model family (qnas.protocols.Task)",
    "device": "a runtime that executes exported models (qnas.protocols.Device)",
    "recipe": "a TOML file of settings, used as the base of a run (a path)",
}


@dataclass(frozen=True, order=True)
class ComponentSpec:
    """One registered component.

    Attributes:
        kind: one of :data:`KINDS`.
        name: what the user types; unique within its kind.
        target: ``"package.module:attribute"``, imported on first use.
        summary: one line for ``qnas plugins``.
    """

    kind: str
    name: str
    target: str
    summary: str


@hookspec
def qnas_components() -> Iterable[ComponentSpec]:  # type: ignore[empty-body]
    """Yield the components of this plugin; called once, must import nothing heavy."""
