"""The contract of a quantizer: what it is told of its site, and what it must answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from qnas.errors import PluginError
from qnas.nn.grid import Grid
from qnas.nn.ranks import Ranks
from qnas.space import Knob, Site, Value

ROLES = ("weight", "activation")


@dataclass(frozen=True)
class QuantizerSite:
    """What never changes about the place where a quantizer works.

    Attributes:
        name: the site's name.
        role: ``weight`` or ``activation``.
        bits: every bit-width that may be asked for, ascending.
        channels: the largest number of channels (output channels for weights).
        signed: whether values can be negative.
        compile: whether a compiled kernel may be used where the quantizer has one.
        kernels: kernel sizes that the layer can have, ascending; of weights alone.
        fixed: whether the bit-width is the same in every subnet, as in the first and last layer.
        branch: the name under which sites choose among branches together (:class:`qnas.space.Site`).
    """

    name: str
    role: str
    bits: tuple[int, ...]
    channels: int
    signed: bool
    compile: bool = False
    kernels: tuple[int, ...] = ()
    fixed: bool = False
    branch: str | None = None


@dataclass(frozen=True)
class SiteContext:
    """What the active subnet says about a site, for one call.

    Attributes:
        bits: the bit-width to quantize to.
        channels: number of active channels (a prefix of all).
        values: the knobs that quantizers added for the site, by full label.
        kernel: the active kernel size; of weights alone.
        gamma, mean, sigma: ``[channels]``, of the batch normalisation that is folded into the weights, else ``None``.
    """

    bits: int
    channels: int
    values: Mapping[str, Value] = field(default_factory=dict)
    gamma: Tensor | None = None
    mean: Tensor | None = None
    sigma: Tensor | None = None
    kernel: int = 1


class Quantizer(nn.Module, ABC):
    """Fake-quantizes the weights or activations of one site.

    Parameters of a bit-width or branch that the active subnet does not use must take no part in the computation, so
    that they keep no gradient. All parameters of a quantizer are trained without weight decay, at the learning rate
    of the quantizer group.

    State is kept by bit-width: the state of a quantizer with more, lower bit-widths holds that of one with fewer, under
    the same names and shapes; what a checkpoint does not hold stays unset until :meth:`inherit` or :meth:`start` sets
    it. So a name says its bit-width (``zero_point_4``), and no tensor has a dimension for bit-widths.

    Attributes:
        roles: where it can be used.
        absorbs_relu: set per site: ``forward(x)`` equals ``forward(relu(x))``, gradient included, so the caller may
            leave the ReLU out.
        per_channel: set per site: whether ranges, like the grid, vary along the first dimension of weights.
        ranks: the processes that share the batch; state that follows activations must be reduced over them.
        calibrators: names of what adjusts a subnet after its batch normalisation, before it is judged; they run where
            the user names none.
        needs_folding: of weights: whether it makes sense only where batch normalisation is folded in training.
    """

    roles: frozenset[str] = frozenset({"weight", "activation"})
    absorbs_relu: bool = False
    per_channel: bool = False
    calibrators: tuple[str, ...] = ()
    needs_folding: bool = False

    @property
    def follows_batches(self) -> bool:
        """Whether activations have the range of their batch in training, and each subnet its own once calibrated."""
        return type(self).batch_range is not Quantizer.batch_range

    def batch_range(self, x: Tensor) -> Tensor:
        """Return what the grid of activations ``[N, C, ...]`` follows from; calibration takes the mean over batches.

        Raises:
            PluginError: this quantizer's grid does not follow batches.
        """
        raise self._no_batches()

    def range_grid(self, extremes: Tensor, ctx: SiteContext) -> Grid:
        """Return the grid that follows from a :meth:`batch_range`, or from the mean of several.

        Raises:
            PluginError: this quantizer's grid does not follow batches.
        """
        raise self._no_batches()

    def _no_batches(self) -> PluginError:
        return PluginError(
            f"Quantizer {type(self).__name__} at {self.site.name!r} has a grid that does not follow batches. "
            "Give it batch_range() and range_grid(), or do not ask for them."
        )

    @property
    def takes_ranges(self) -> bool:
        """Whether a calibrator of ranges can set one (:meth:`set_range`)."""
        return type(self).set_range is not Quantizer.set_range

    @classmethod
    def can_compile(cls) -> bool:
        """Tell whether it has a compiled kernel that works on this machine."""
        return False

    @classmethod
    def has_weight_zero_points(cls, **options: Any) -> bool:
        """Tell whether, with these options, it puts weights on asymmetric grids, whose zero points are stored."""
        return False

    def __init__(self, site: QuantizerSite) -> None:
        super().__init__()
        self.site = site
        self.ranks = Ranks()

    @classmethod
    def knobs(cls, site: Site, **options: Any) -> Iterable[Knob]:
        """Return the knobs it adds for a site, with the user's options.

        Labels read ``site.plugin.name``; ``branch.plugin.name`` where the site has a branch name and all sites of that
        name have this one knob. Their role is ``quantizer``; ``Knob.private`` says what each choice has for itself.
        """
        return ()

    @abstractmethod
    def start(self, x: Tensor, ctx: SiteContext) -> None:
        """Set the parameters of every bit-width from data.

        Args:
            x: weights ``[O, I, K, K]`` or activations ``[N, C, ...]`` as they arrive before quantization.
            ctx: of the active subnet.
        """

    def prepare(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return the weights that are rounded in place of ``x``, differentiable, the same shape; ``x`` by default.

        Asked for weights alone, before :meth:`start`, :meth:`forward` and :meth:`export`, and before ranges are
        observed.
        """
        return x

    @abstractmethod
    def forward(self, x: Tensor, ctx: SiteContext) -> Tensor:
        """Return ``x`` on the grid, differentiable; float32 mathematics under any autocast."""

    @abstractmethod
    def export(self, ctx: SiteContext) -> Grid:
        """Return the grid that ``forward`` rounds to for this context, detached.

        Raises:
            ExportError: what it trains has no grid; the message says why.
        """

    def clips(self) -> Iterable[nn.Parameter]:
        """Return the parameters that are clip values: what is finetuned beside batch normalisation after a search."""
        return ()

    def penalty(self, ctx: SiteContext) -> Tensor | None:
        """Return a term to add to the loss, ``[]``, or ``None``; asked only where the active subnet quantizes."""
        return None

    def set_range(self, bits: int, low: Tensor, high: Tensor) -> None:
        """Take up the range that a calibrator found, at one bit-width.

        Args:
            bits: one of the site's.
            low, high: ``[]``, or ``[channels]`` where :attr:`per_channel` is set; ``low <= 0 <= high``.

        Raises:
            PluginError: this quantizer has no range to set.
        """
        raise PluginError(
            f"Quantizer {type(self).__name__} at {self.site.name!r} takes no range from a calibrator. "
            "Leave --calibrator out, or choose another quantizer."
        )

    def inherit(self, high: int, low: int) -> None:
        """Start the parameters of ``low`` bits from those of ``high`` bits.

        Raises:
            PluginError: this quantizer has no such rule.
        """
        raise PluginError(
            f"Quantizer {type(self).__name__} at {self.site.name!r} declares no rule to carry {high} bits to {low}. "
            "Choose a quantizer that does, or train the lower bit-width from data."
        )
