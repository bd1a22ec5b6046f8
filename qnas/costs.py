"""Costs of subnets: sums over layers or blocks, or averages, for one sample or, vectorised, for many. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from qnas.blocks import BlockChoices, blocks_of
from qnas.layers import FLOAT_BITS, LayerSpec
from qnas.protocols import AverageCost, BlockCost, CostModel
from qnas.space import Indices, SearchSpace, Site, Value

Array = np.ndarray[Any, Any]
Cost = CostModel | BlockCost

_FIELDS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "groups"),
    *("out_size", "in_size", "num_weights", "macs", "float_norms", "raw_norm", "raw_grid"),
)
_WEIGHT = "/weight"  # behind a cost's name: the sum that its own is divided by; no cost's name holds a slash
_CHUNK = 4096  # samples at once: what a group gathers for them stays in the processor's cache


class LayerColumns:
    """One site in many samples: the attributes of :class:`LayerSpec` as integer arrays ``[n]``."""

    def __init__(self, name: str, kind: str, columns: Mapping[str, Array]) -> None:
        self.name = name
        self.kind = kind
        self._columns = columns

    def __getattr__(self, field: str) -> Array:
        try:
            return self._columns[field]
        except KeyError:
            raise AttributeError(field) from None


class _SiteTable:
    """The cost of one site for every combination of the knobs that decide it.

    Attributes:
        axes: positions of those knobs in the space, ascending: of its architecture and of its bits.
    """

    def __init__(self, space: SearchSpace, site: Site) -> None:
        self.space = space
        self.site = site
        self.architecture = list(dict.fromkeys(space.position[label] for label in site.depends_on))
        self.bits = tuple(None if label is None else space.position[label] for label in space.bit_labels(site.name))
        self.axes = tuple(sorted({*self.architecture, *(axis for axis in self.bits if axis is not None)}))

    def sums(self, summands: Mapping[str, Callable[[Any], Any]]) -> dict[str, Array]:
        """Return, by name, an array with a dimension for each of ``axes``; 0 where the site is left out."""
        shape = [len(self.space.knobs[axis].choices) for axis in self.axes]
        where = dict(zip(self.axes, np.indices(shape).reshape(len(shape), math.prod(shape)), strict=True))
        specs = self._specs()
        rows = np.zeros(math.prod(shape), dtype=np.int64)
        for axis in self.architecture:
            rows = rows * len(self.space.knobs[axis].choices) + where[axis]
        present = np.array([spec is not None for spec in specs])[rows]
        columns = {
            field: np.array([0 if spec is None else getattr(spec, field) for spec in specs], dtype=np.int64)[rows]
            for field in _FIELDS
        }
        columns["groups"] = np.maximum(columns["groups"], 1)
        fixed = (self.site.w_bits, self.site.a_bits)
        for name, source, bits in zip(("w_bits", "a_bits"), self.bits, fixed, strict=True):
            columns[name.replace("bits", "fixed")] = np.full(len(rows), source is None)
            if source is None:
                columns[name] = np.full(len(rows), bits, dtype=np.int64)
            else:
                columns[name] = np.array(self.space.knobs[source].choices, dtype=np.int64)[where[source]]
        columns["w_zero_points"] = (columns["w_bits"] < FLOAT_BITS) * np.int64(self.space.scheme.w_zero_points)
        kind = next((spec.kind for spec in specs if spec is not None), "quantize")
        layer = LayerColumns(self.site.name, kind, columns)
        return {name: np.where(present, summand(layer), 0).reshape(shape) for name, summand in summands.items()}

    def _specs(self) -> list[LayerSpec | None]:
        knobs = [self.space.knobs[axis] for axis in self.architecture]
        labels = [knob.label for knob in knobs]
        return [
            self.site.describe(dict(zip(labels, values, strict=True)))
            for values in itertools.product(*(knob.choices for knob in knobs))
        ]


class _BlockTable:
    """The costs of one block for every combination of the knobs that change them; as :class:`_SiteTable`."""

    def __init__(self, choices: BlockChoices, name: str, model: BlockCost) -> None:
        self.choices = choices
        self.name = name
        self.model = model
        self.axes = tuple(axis.position for axis in choices.axes)

    def sums(self) -> dict[str, Array]:
        """Return, by name, an array with a dimension for each of ``axes``; 0 where the block is left out."""
        block, seen = self.choices.block.name, self.choices.each()
        return {self.name: self.choices.spread([_block_cost(self.model, block, layers) for _, layers in seen])}


class _Group:
    """Sites that hang on the same knobs, or on some of them: one table of each of their sums.

    Attributes:
        axes: positions of the knobs, ascending.
    """

    def __init__(self, space: SearchSpace, axes: tuple[int, ...], names: Sequence[str]) -> None:
        self.axes = axes
        self.sizes = [len(space.knobs[axis].choices) for axis in axes]
        self.tables: dict[str, Array] = {name: np.zeros(math.prod(self.sizes), dtype=np.int64) for name in names}

    def add(self, axes: tuple[int, ...], costs: Mapping[str, Array]) -> None:
        """Add sums of a site or block, an array with a dimension for each of ``axes``, which are among the group's."""
        shape = [size if axis in axes else 1 for axis, size in zip(self.axes, self.sizes, strict=True)]
        for name, cost in costs.items():
            spread = np.broadcast_to(cost.reshape(shape), self.sizes).reshape(-1)
            self.tables[name] = self.tables[name] + spread

    def drop_empty(self) -> None:
        """Leave out tables of sums to which nothing here adds, so that they are not looked up."""
        self.tables = {name: table for name, table in self.tables.items() if table.any()}

    def along(self, name: str) -> Iterator[tuple[int, Array]]:
        """Yield each of ``axes`` with the table of a sum as ``[others, num_choices]`` along it."""
        if name not in self.tables:
            return
        whole = self.tables[name].reshape(self.sizes)
        for i, (axis, size) in enumerate(zip(self.axes, self.sizes, strict=True)):
            yield axis, np.moveaxis(whole, i, -1).reshape(-1, size)

    def rows(self, columns: Array) -> Array:
        """Return the position in the tables of each sample, ``[n]``; ``columns``: ``[num_knobs, n]``."""
        rows = np.zeros(columns.shape[1], dtype=np.intp)
        for axis, size in zip(self.axes, self.sizes, strict=True):
            np.multiply(rows, size, out=rows)
            np.add(rows, columns[axis], out=rows)
        return rows


class CostTable:
    """Costs of many samples of one space at once.

    Every cost model is asked once, here, for every combination of the knobs that decide a site. Sites are put together
    where one's knobs are among another's, so a block is few look-ups and not one for each of its sites.

    Args:
        space: described once, here; no model is built.
        models: cost models by name.
    """

    def __init__(self, space: SearchSpace, models: Mapping[str, Cost]) -> None:
        self.space = space
        self.models = dict(models)
        self._averages = frozenset(name for name, model in models.items() if isinstance(model, AverageCost))
        self._blocks = {name: model for name, model in models.items() if isinstance(model, BlockCost)}
        summands = _summands({name: m for name, m in models.items() if not isinstance(m, BlockCost)})
        names = [*summands, *self._blocks]
        self._groups: list[_Group] = []
        sites = [_SiteTable(space, site) for site in space.sites]
        for site in sorted(sites, key=lambda site: -len(site.axes)):  # whatever can take others in comes first
            self._home(site.axes, names).add(site.axes, site.sums(summands))
        for name, model in self._blocks.items():
            blocks = [BlockChoices(space, block, model.bits_seen) for block in blocks_of(space)]
            tables = [_BlockTable(choices, name, model) for choices in blocks]
            for table in sorted(tables, key=lambda table: -len(table.axes)):
                self._home(table.axes, names).add(table.axes, table.sums())
            self._home((), names).add((), {name: np.array(model.offset)})
        for group in self._groups:
            group.drop_empty()

    def _home(self, axes: tuple[int, ...], names: Sequence[str]) -> _Group:
        """Return the first group that can take in what hangs on ``axes``, a new one if there is none."""
        group = next((group for group in self._groups if set(axes) <= set(group.axes)), None)
        if group is None:
            group = _Group(self.space, axes, names)
            self._groups.append(group)
        return group

    def costs(self, indices: Indices, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Return, by cost name, the costs of the samples, ``[n]``.

        Args:
            indices: ``[n, num_knobs]``, from :meth:`SearchSpace.draw` or :meth:`SearchSpace.indices`.
            names: the costs wanted; all by default.
        """
        wanted = list(self.models) if names is None else list(names)
        parts = [self._chunk(indices[i : i + _CHUNK], wanted) for i in range(0, max(len(indices), 1), _CHUNK)]
        return {name: np.concatenate([part[name] for part in parts]) for name in wanted}

    def _chunk(self, indices: Indices, names: Sequence[str]) -> dict[str, Array]:
        columns = np.ascontiguousarray(indices.T, dtype=np.intp)
        wanted = self._sums(names)
        totals: dict[str, Array] = {name: np.zeros(len(indices), dtype=np.int64) for name in wanted}
        for group in self._groups:
            found = [name for name in wanted if name in group.tables]
            if not found:
                continue
            rows = group.rows(columns)
            for name in found:
                totals[name] = totals[name] + group.tables[name].take(rows)
        return {name: self._cost(name, totals) for name in names}

    def depends_on(self, name: str) -> tuple[int, ...]:
        """Return the positions of the knobs that change this cost in some sample, ascending."""
        found: set[int] = set()
        for group in self._groups:
            for total in self._sums([name]):
                found |= {axis for axis, along in group.along(total) if (along != along[:, :1]).any()}
        return tuple(sorted(found))

    def effects(self, name: str) -> list[Array]:
        """Return for each knob ``[num_choices]`` how far each choice moves the mean cost of uniform samples.

        Exact for a sum over layers; of an average of sums ``a / b``, what moves ``E[a] / E[b]`` to first order.
        """
        cost, moved = self._mean_moves(name)
        if name in self._blocks:
            return [by / self._blocks[name].divisor for by in moved]
        if name not in self._averages:
            return moved
        weight, by = self._mean_moves(name + _WEIGHT)
        if weight == 0:
            return [np.zeros(len(knob.choices)) for knob in self.space.knobs]
        return [(a - cost / weight * b) / weight for a, b in zip(moved, by, strict=True)]

    def _mean_moves(self, total: str) -> tuple[float, list[Array]]:
        """Return the mean of a sum over uniform samples, and how far each choice of each knob moves it."""
        mean, moved = 0.0, [np.zeros(len(knob.choices)) for knob in self.space.knobs]
        for group in (group for group in self._groups if total in group.tables):
            mean += float(group.tables[total].mean())
            for axis, along in group.along(total):
                moved[axis] += along.mean(0) - along.mean()
        return mean, moved

    def terms(self, name: str) -> tuple[list[Array], int] | None:
        """Return a cost as one term a knob, ``[num_choices]`` integers to be added up, and what divides their sum.

        Returns:
            ``None`` where the cost is no such sum, because knobs change it together or change an average's weights.
        """
        divisor = self._blocks[name].divisor if name in self._blocks else 1
        if name in self._averages:
            weights = [group.tables[name + _WEIGHT] for group in self._groups if name + _WEIGHT in group.tables]
            if any((weight != weight[0]).any() for weight in weights):
                return None
            divisor = int(sum(weight[0] for weight in weights)) or 1
        terms = [np.zeros(len(knob.choices), dtype=np.int64) for knob in self.space.knobs]
        for group in (group for group in self._groups if name in group.tables):
            whole, base = group.tables[name].reshape(group.sizes), group.tables[name][0]
            added = np.full(group.sizes, base)
            for i, axis in enumerate(group.axes):
                line = whole[tuple(slice(None) if j == i else 0 for j in range(whole.ndim))] - base
                terms[axis] = terms[axis] + line
                added = added + line.reshape([-1 if j == i else 1 for j in range(whole.ndim)])
            if (added != whole).any():
                return None
            terms[0] = terms[0] + base  # what is fixed is counted with the first knob
        return terms, divisor

    def _sums(self, names: Sequence[str]) -> list[str]:
        return [*names, *(name + _WEIGHT for name in names if name in self._averages)]

    def _cost(self, name: str, totals: Mapping[str, Array]) -> Array:
        if name in self._blocks:
            return totals[name] / self._blocks[name].divisor
        if name not in self._averages:
            return totals[name]
        weight = totals[name + _WEIGHT]
        return np.where(weight == 0, 0.0, totals[name] / np.maximum(weight, 1))


def _summands(models: Mapping[str, CostModel]) -> dict[str, Callable[[Any], Any]]:
    """Return what is to be summed over layers, by name: every cost, and the weights of those that are averages."""
    found: dict[str, Callable[[Any], Any]] = {name: model.layer_cost for name, model in models.items()}
    weights = {name + _WEIGHT: model.layer_weight for name, model in models.items() if isinstance(model, AverageCost)}
    return found | weights


_C = TypeVar("_C", bound=Cost)


def usual(models: Mapping[str, _C], asked: Iterable[str] = ()) -> dict[str, _C]:
    """Return the models that are computed for every subnet: those not on request, and those that are asked for."""
    wanted = set(asked)
    return {name: m for name, m in models.items() if name in wanted or not getattr(m, "on_request", False)}


def cost_of(layers: Sequence[LayerSpec], model: CostModel) -> float:
    """Return the cost of one subnet, given its layers: an ``int``, or the ``float`` that an average is."""
    cost = sum(int(model.layer_cost(layer)) for layer in layers)
    if not isinstance(model, AverageCost):
        return cost
    weight = sum(int(model.layer_weight(layer)) for layer in layers)
    return cost / weight if weight else 0.0


def sample_costs(space: SearchSpace, models: Mapping[str, Cost], sample: Mapping[str, Value]) -> dict[str, float]:
    """Return every cost of one sample."""
    layers = space.layers(sample)
    return {
        name: _sum_of_blocks(space, model, sample) if isinstance(model, BlockCost) else cost_of(layers, model)
        for name, model in models.items()
    }


def _sum_of_blocks(space: SearchSpace, model: BlockCost, sample: Mapping[str, Value]) -> float:
    blocks = ((block.name, block.layers(space, sample)) for block in blocks_of(space))
    return (model.offset + sum(_block_cost(model, name, layers) for name, layers in blocks)) / model.divisor


def _block_cost(model: BlockCost, block: str, layers: Sequence[LayerSpec]) -> int:
    return int(model.block_cost(block, layers)) if layers else 0
