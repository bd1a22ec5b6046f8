"""Where values are put on grids, so that whatever can be is an integer operator when deployed.

A layer takes its input from an accumulator and puts it on its own grid, the ReLU in between included, where nothing
else takes that value. Every other value is put once on a grid of edge bits, for all that take it: summands, what is
concatenated or pooled, what a float operation takes, what several layers take, and the network's answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from qnas_search_spaces.traced.operations import ON_CODES, Layer, Operation, Program, Ref

IMAGES = "images"


@dataclass(frozen=True)
class LayerNode:
    """A layer with the site of its input.

    Attributes:
        name: of its site.
        layer: what has weights.
        inputs: position of the value: 0 for the images, ``i + 1`` for what node ``i`` gives.
        relu, upper: of the input, where its site takes care of them.
        signed: whether the input, as it is taken, can be negative.
        gridded: whether it arrives on a grid of edge bits, and can be taken from it as it is.
        image: whether it is the image.
        size: height and width of the output, in pixels.
    """

    name: str
    layer: Layer
    inputs: tuple[int, ...]
    relu: bool
    upper: float | None
    signed: bool
    gridded: bool
    image: bool
    size: int


@dataclass(frozen=True)
class GridNode:
    """A value that is put on a grid of edge bits, after a ReLU or not; the images on their own."""

    name: str
    inputs: tuple[int, ...]
    channels: int
    size: int
    relu: bool
    upper: float | None
    signed: bool
    image: bool = False


@dataclass(frozen=True)
class OperationNode:
    """An operation without weights."""

    operation: Operation
    inputs: tuple[int, ...]


Node = LayerNode | GridNode | OperationNode


@dataclass(frozen=True)
class Plan:
    """The nodes of the supernet's graph, and the position of its output.

    Attributes:
        nodes: in an order in which they can be executed.
        output: position of the value that the network answers with.
        first, last: names of the layers that take the images, and of those that the answer comes from.
    """

    nodes: tuple[Node, ...]
    output: int
    first: frozenset[str]
    last: frozenset[str]


def place_grids(program: Program) -> Plan:
    """Return the graph of the supernet."""
    return _Placement(program).run()


class _Placement:
    """Goes through the operations once; ``raw`` and ``gridded`` say which nodes hold a value."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[Node] = []
        self.raw: dict[int, int] = {0: 0}  # value -> position, as it is computed
        self.on_grid: dict[Ref, int] = {}  # value, with what its grid took care of -> position
        self.names: Counter[str] = Counter(op.name for op in program.operations if op.layer is not None)
        self.uses: dict[int, list[tuple[Operation | None, Ref]]] = defaultdict(list)
        for operation in program.operations:
            for ref in operation.inputs:
                self.uses[ref.value].append((operation, ref))
        self.uses[program.output.value].append((None, program.output))

    def run(self) -> Plan:
        """Return the plan."""
        for number, operation in enumerate(self.program.operations, 1):
            if operation.layer is not None:
                self._layer(operation, operation.layer)
            else:
                inputs = tuple(self._gridded(ref) for ref in operation.inputs)
                self.nodes.append(OperationNode(operation, inputs))
            self.raw[number] = len(self.nodes)
            if operation.kind in ON_CODES:
                self.on_grid[Ref(number)] = len(self.nodes)
        output = self._gridded(self.program.output)
        return Plan(tuple(self.nodes), output, self._first(), self._last())

    def _layer(self, operation: Operation, layer: Layer) -> None:
        (ref,) = operation.inputs
        size = operation.shape[-1] if len(operation.shape) == 3 else 1
        alone = len(self.uses[ref.value]) == 1 and Ref(ref.value) not in self.on_grid
        if alone and not (ref.value == 0 and ref.relu):
            signed, image = not self.program.not_negative(ref), ref.value == 0
            at, relu, upper = self.raw[ref.value], ref.relu, ref.upper
            self.nodes.append(LayerNode(operation.name, layer, (at,), relu, upper, signed, False, image, size))
            return
        if not ref.relu or self._common(ref):
            at, taken = self._gridded(ref), Ref(ref.value)
        else:  # on a grid that others want with its negative values
            at, taken = self._gridded(Ref(ref.value)), ref
        signed = not self.program.not_negative(ref)
        gridded = not taken.relu
        self.nodes.append(
            LayerNode(operation.name, layer, (at,), taken.relu, taken.upper, signed, gridded, False, size)
        )

    def _common(self, ref: Ref) -> bool:
        """Tell whether all that take a value take it after the same ReLU, and its grid can be put behind that."""
        return ref.value != 0 and Ref(ref.value) not in self.on_grid and all(r == ref for _, r in self.uses[ref.value])

    def _gridded(self, ref: Ref) -> int:
        """Return the position of a value on a grid, and put it there if that is not done yet."""
        if ref in self.on_grid:
            return self.on_grid[ref]
        plain = Ref(ref.value)
        if ref.relu and not self._common(ref):
            return self._grid(ref, self._gridded(plain))
        return self._grid(ref, self.raw[ref.value])

    def _grid(self, ref: Ref, at: int) -> int:
        shape = self.program.shape(ref.value)
        size = shape[-1] if len(shape) == 3 else 1
        image = ref.value == 0 and not ref.relu
        base = IMAGES if ref.value == 0 else self.program.operations[ref.value - 1].name
        name = self._unique(base if image else f"{base}.out" if not ref.relu or self._common(ref) else f"{base}.relu")
        signed = not self.program.not_negative(ref)
        self.nodes.append(GridNode(name, (at,), shape[0], size, ref.relu, ref.upper, signed, image))
        self.on_grid[ref] = len(self.nodes)
        return len(self.nodes)

    def _unique(self, name: str) -> str:
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name]}"

    def _first(self) -> frozenset[str]:
        """Return the layers that no other layer comes before."""
        clean, found = {0}, set()  # values that no layer is behind
        for number, operation in enumerate(self.program.operations, 1):
            if all(ref.value in clean for ref in operation.inputs):
                if operation.layer is None:
                    clean.add(number)
                else:
                    found.add(operation.name)
        return frozenset(found)

    def _last(self) -> frozenset[str]:
        """Return the layers that no other layer stands between and the output."""
        found, seen, todo = set(), set(), [self.program.output.value]
        while todo:
            value = todo.pop()
            if value == 0 or value in seen:
                continue
            seen.add(value)
            operation = self.program.operations[value - 1]
            if operation.layer is None:
                todo += [ref.value for ref in operation.inputs]
            else:
                found.add(operation.name)
        return frozenset(found)
