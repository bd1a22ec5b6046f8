"""Small real parts to test components with: a space of two elastic layers, its supernet, a search problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qnas.constraints import FeasibleSet
from qnas.costs import CostTable
from qnas.data import Augmentation, Data, PixelGrid, Split
from qnas.layers import LayerSpec
from qnas.nn.activation import GlobalPool
from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import Quantizer, QuantizerSite, SiteContext
from qnas.nn.supernet import BuildContext, MakeQuantizer, Supernet
from qnas.protocols import Objective, SearchProblem, Trial
from qnas.space import Condition, Knob, QuantScheme, Sample, SearchSpace, Site, Value

IMAGE_SIZE = 8
CLASSES = 3


class ToySpace(SearchSpace):
    """Stem, an elastic convolution that may be left out, pooling, classifier."""

    def __init__(self, scheme: QuantScheme | None = None) -> None:
        scheme = scheme or QuantScheme((2, 4), (2, 4), "layer")
        edge = scheme.edge_bits
        there = (Condition("depth", (1,)),)

        def middle(sample: Mapping[str, Value]) -> LayerSpec | None:
            if not sample["depth"]:
                return None
            return LayerSpec("middle", "conv", 8, 8, int(sample["kernel"]), out_size=IMAGE_SIZE)

        def fixed(spec: LayerSpec, w_bits: int | None = edge, a_bits: int | None = edge) -> Site:
            return Site(spec.name, (), lambda sample: spec, w_bits=w_bits, a_bits=a_bits)

        sites = [
            fixed(LayerSpec("stem", "conv", 1, 8, 3, out_size=IMAGE_SIZE)),
            Site("middle", ("depth", "kernel"), middle, active_if=there),
            fixed(LayerSpec("pool", "quantize", 8, 8, out_size=IMAGE_SIZE)),
            fixed(LayerSpec("classifier", "linear", 8, CLASSES)),
            fixed(LayerSpec("classifier.out", "quantize", CLASSES, CLASSES)),
        ]
        knobs = [Knob("depth", (0, 1)), Knob("kernel", (1, 3, 5), active_if=there)]
        super().__init__("toy", knobs, sites, scheme, image_size=IMAGE_SIZE, num_classes=CLASSES)

    def build(self, context: BuildContext) -> Supernet:
        """Build the three layers."""
        return Supernet(
            self,
            [
                context.conv("stem", 1, 8, kernels=(3,), image=True),
                context.conv("middle", 8, 8, kernels=(1, 3, 5), input_relu=True),
                context.site("pool", 8, signed=False, relu=True),
                GlobalPool(),
                context.conv("classifier", 8, CLASSES, linear=True, output=True),
            ],
        )


class RoundingQuantizer(Quantizer):
    """A fixed grid of steps of 1/8: the least that a quantizer can be."""

    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Nothing to learn."""

    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Round, with a straight-through gradient."""
        return x + (self.export(ctx).quantize(x) - x).detach()

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the fixed grid."""
        low = -(2 ** (ctx.bits - 1)) if self.site.signed else 0
        offset = -low if self.site.role == "activation" else 0
        high = low + 2**ctx.bits - 1
        return AffineGrid(torch.tensor(0.125), offset, low + offset, high + offset)


class RangeQuantizer(RoundingQuantizer):
    """A symmetric grid whose step a calibrator sets.

    Attributes:
        ranges: what it was given, by bit-width.
    """

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__(site)
        self.ranges: dict[int, tuple[float, float]] = {}

    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Keep the range."""
        self.ranges[bits] = float(low), float(high)

    def export(self, ctx: SiteContext) -> AffineGrid:
        """Return the grid that covers the range, the fixed one before there is any."""
        grid = super().export(ctx)
        high = self.ranges.get(ctx.bits, (0.0, 0.0))[1]
        step = max(high / (grid.qmax - int(grid.zero_point)), 1e-6) if high > 0 else 0.125
        return AffineGrid(torch.tensor(step), grid.zero_point, grid.qmin, grid.qmax)


def toy_space(site_knobs: Callable[[Site], list[Knob]] | None = None) -> ToySpace:
    """Return the toy space, with further knobs if given."""
    return ToySpace(QuantScheme((2, 4), (2, 4), "layer", site_knobs=site_knobs))


def toy_supernet(
    space: ToySpace | None = None, weight: MakeQuantizer = RoundingQuantizer, act: MakeQuantizer = RoundingQuantizer
) -> Supernet:
    """Return a supernet of the toy space, quantizers started, in ``quantize`` mode."""
    space = space or toy_space()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = space.build(BuildContext(space, weight, act, AffineGrid(torch.tensor(1 / 32), 128, 0, 255)))
    supernet.activate(space.highest())
    supernet.set_mode("start")
    with torch.no_grad():
        supernet(toy_images(size=space.image_size))
    supernet.set_mode("quantize")
    return supernet


def toy_images(n: int = 16, size: int = IMAGE_SIZE) -> Tensor:
    """Return ``[n, 1, size, size]`` fixed random images."""
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(0))


def toy_data() -> Data:
    """Return splits of 8 fixed random images each."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 1, IMAGE_SIZE, IMAGE_SIZE), generator=rng).to(torch.uint8)
    labels = torch.arange(24) % CLASSES
    train, search, test = (Split(pixels[i : i + 8], labels[i : i + 8]) for i in (0, 8, 16))
    names = tuple(map(str, range(CLASSES)))
    return Data("toy", names, train, search, test, PixelGrid(1 / 64, 128), Augmentation())


class ToyTask:
    """Cross-entropy and top-1 accuracy."""

    metric = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, ``[]``."""
        return torch.nn.functional.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the share of correct images."""
        return {self.metric: float(self.correct(outputs, targets).double().mean())}

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return whether the largest output is the label's, ``[N]``."""
        return outputs.argmax(1) == targets


class _Macs:
    direction = "min"
    unit = "MACs"

    def layer_cost(self, layer: LayerSpec) -> int:
        return layer.macs


def toy_problem(seed: int = 0) -> SearchProblem:
    """Return a search for accuracy and few MACs on the toy space."""
    space = toy_space()
    feasible = FeasibleSet(CostTable(space, {"macs": _Macs()}), [], seed)
    objectives = (Objective("accuracy", "max"), Objective("macs", "min"))
    return SearchProblem(space, objectives, feasible.draw, feasible.repair, seed)


def toy_trial(problem: SearchProblem, sample: Sample) -> Trial:
    """Judge a sample by a fixed formula in place of a network."""
    layers = problem.space.layers(sample)
    macs = sum(layer.macs for layer in layers)
    accuracy = 0.5 + 0.01 * sum(layer.w_bits * layer.kernel_size for layer in layers if layer.kind == "conv")
    return Trial(problem.space.key(sample), dict(sample), {"accuracy": accuracy, "macs": macs})


def site(role: str, *, signed: bool, channels: int = 8, bits: tuple[int, ...] = (2, 4, 8)) -> QuantizerSite:
    """Return a site for a quantizer under test."""
    return QuantizerSite("layer", role, bits, channels, signed)
