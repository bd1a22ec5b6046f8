"""Costs of subnets: pure sums over layer descriptions, for one sample or, vectorised, for many. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qnas.layers import LayerSpec
from qnas.protocols import CostModel
from qnas.space import Indices, SearchSpace, Site, Value

_FIELDS = ("in_channels", "out_channels", "kernel_size", "stride", "groups", "out_size", "num_weights", "macs")


class LayerColumns:
    """One site in many samples: the attributes of :class:`LayerSpec` as integer arrays ``[n]``."""

    def __init__(self, name: str, kind: str, columns: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.name = name
        self.kind = kind
        self._columns = columns

    def __getattr__(self, field: str) -> np.ndarray[Any, Any]:
        try:
            return self._columns[field]
        except KeyError:
            raise AttributeError(field) from None


class _SiteTable:
    """All layers that one site can be: a row for each combination of the architecture knobs it depends on."""

    def __init__(self, space: SearchSpace, site: Site) -> None:
        knobs = [space.knobs[space.position[label]] for label in site.depends_on]
        specs = [
            site.describe(dict(zip(site.depends_on, values, strict=True)))
            for values in itertools.product(*(knob.choices for knob in knobs))
        ]
        present = [spec for spec in specs if spec is not None]
        self.name, self.kind = site.name, present[0].kind if present else "quantize"
        self.present = np.array([spec is not None for spec in specs])
        self.fields = {
            field: np.array([0 if spec is None else getattr(spec, field) for spec in specs], dtype=np.int64)
            for field in _FIELDS
        }
        self.fields["groups"] = np.maximum(self.fields["groups"], 1)
        self.columns = [space.position[knob.label] for knob in knobs]
        sizes = [len(knob.choices) for knob in knobs]
        self.radix = np.array([int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))], dtype=np.int64)
        self.zero_points = space.scheme.w_zero_points
        self.bits = [self._bits(space, label, fixed) for label, fixed in self._bit_sources(space, site)]

    @staticmethod
    def _bit_sources(space: SearchSpace, site: Site) -> list[tuple[str | None, int | None]]:
        w_label, a_label = space.bit_labels(site.name)
        return [(w_label, site.w_bits), (a_label, site.a_bits)]

    @staticmethod
    def _bits(space: SearchSpace, label: str | None, fixed: int | None) -> tuple[int, np.ndarray[Any, Any]]:
        if label is None:
            return 0, np.array([fixed], dtype=np.int64)
        column = space.position[label]
        return column, np.array(space.knobs[column].choices, dtype=np.int64)

    def cost(self, indices: Indices, model: CostModel) -> np.ndarray[Any, Any]:
        """Return the cost of this site in each sample, ``[n]``; 0 where the sample leaves the site out."""
        rows = indices[:, self.columns] @ self.radix if self.columns else np.zeros(len(indices), dtype=np.int64)
        columns = {field: table[rows] for field, table in self.fields.items()}
        for name, (column, choices) in zip(("w_bits", "a_bits"), self.bits, strict=True):
            columns[name] = choices[indices[:, column]] if len(choices) > 1 else np.full(len(indices), choices[0])
        columns["w_zero_points"] = np.int64(self.zero_points)
        cost = model.layer_cost(LayerColumns(self.name, self.kind, columns))
        return np.where(self.present[rows], cost, 0)


class CostTable:
    """Costs of many samples of one space at once.

    Args:
        space: described once, here; no model is built.
        models: cost models by name.
    """

    def __init__(self, space: SearchSpace, models: Mapping[str, CostModel]) -> None:
        self.space = space
        self.models = dict(models)
        self._tables = [_SiteTable(space, site) for site in space.sites]

    def costs(self, indices: Indices, names: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Return, by cost name, the costs of the samples, ``[n]``.

        Args:
            indices: ``[n, num_knobs]``, from :meth:`SearchSpace.draw` or :meth:`SearchSpace.indices`.
            names: the costs wanted; all by default.
        """
        wanted = list(self.models) if names is None else names
        return {name: sum(table.cost(indices, self.models[name]) for table in self._tables) for name in wanted}  # type: ignore[misc]


def cost_of(layers: Sequence[LayerSpec], model: CostModel) -> int:
    """Return the cost of one subnet, given its layers."""
    return sum(int(model.layer_cost(layer)) for layer in layers)


def sample_costs(space: SearchSpace, models: Mapping[str, CostModel], sample: Mapping[str, Value]) -> dict[str, int]:
    """Return every cost of one sample."""
    layers = space.layers(sample)
    return {name: cost_of(layers, model) for name, model in models.items()}
