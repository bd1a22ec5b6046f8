"""The outline of a network: its knobs and sites, collected in the order of the data's way. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from qnas.layers import LayerSpec
from qnas.space import Condition, Knob, Site, Value
from qnas_search_spaces.sizes import resized


@dataclass(frozen=True)
class Size:
    """A number of channels, or a kernel's size, that knobs decide.

    Attributes:
        labels: of all knobs that ``of`` reads.
        of: sample -> number.
    """

    labels: tuple[str, ...]
    of: Callable[[Mapping[str, Value]], int]

    @classmethod
    def fixed(cls, number: int) -> Size:
        """Return a size that nothing changes."""
        return cls((), lambda sample: number)

    @classmethod
    def knob(cls, label: str) -> Size:
        """Return the size that a knob's value is."""
        return cls((label,), lambda sample: int(sample[label]))


@dataclass(frozen=True)
class Block:
    """Where a block's sites belong, and when they are there.

    Attributes:
        name: prefix of its sites, and their group for bit-widths by block.
        stage: their group for bit-widths by stage; ``None`` groups them by block.
        depth: label of the knob that says how many blocks the stage has; ``None`` where the block is always there.
        number: in the stage, from 1.
        active_if: when the block is there, for the knobs that belong to it alone.
    """

    name: str
    stage: str | None = None
    depth: str | None = None
    number: int = 1
    active_if: tuple[Condition, ...] = ()

    @classmethod
    def of_stage(cls, stage: str, number: int, depths: Sequence[int]) -> Block:
        """Return block ``number`` of a stage whose depth is one of ``depths``."""
        deep = tuple(d for d in depths if d >= number)
        if deep == tuple(depths):
            return cls(f"{stage}.block{number}", stage)
        label = f"{stage}.depth"
        return cls(f"{stage}.block{number}", stage, label, number, (Condition(label, deep),))


class Outline:
    """Collects knobs and sites.

    Args:
        resolutions: choices of the knob ``resolution``.
        edge_bits: of the sites that only put a tensor on a grid, and of the first and last layer.
    """

    def __init__(self, resolutions: tuple[int, ...], edge_bits: int) -> None:
        self.knobs: list[Knob] = [Knob("resolution", resolutions)]
        self.sites: list[Site] = []
        self.edge_bits = edge_bits

    def knob(self, label: str, choices: tuple[Value, ...], active_if: tuple[Condition, ...] = ()) -> None:
        """Add an architecture knob."""
        self.knobs.append(Knob(label, choices, active_if=active_if))

    def layer(
        self,
        name: str,
        in_channels: int | Size,
        out_channels: int | Size,
        at: int,
        *,
        kernel: int | Size = 1,
        stride: int = 1,
        depthwise: bool = False,
        kind: str = "conv",
        bits: int | None = None,
        block: Block | None = None,
        branch: str | None = None,
        norm: bool = True,
        float_norms: Sequence[str] = (),
        only_if: Size | None = None,
    ) -> None:
        """Add a site.

        Args:
            name: of the site.
            in_channels, out_channels: active ones.
            at: by how much the image is larger than the output; 0 after pooling.
            kernel, stride: of the convolution.
            depthwise: one group a channel.
            kind: as of :class:`LayerSpec`.
            bits: of weights and activations; ``None`` leaves them to the scheme.
            block: that it belongs to.
            branch: name under which quantizers of its input may offer branches.
            norm: whether batch normalisation follows.
            float_norms: of ``input`` and ``output``, what has a batch normalisation that stands alone.
            only_if: 0 for the samples that leave the site out; ``None`` where the block alone decides.
        """
        c_in, c_out, k = (n if isinstance(n, Size) else Size.fixed(n) for n in (in_channels, out_channels, kernel))
        depth = () if block is None or block.depth is None else (block.depth,)
        needed = Size.fixed(1) if only_if is None else only_if

        def describe(sample: Mapping[str, Value]) -> LayerSpec | None:
            if depth and block is not None and int(sample[depth[0]]) < block.number:
                return None
            if not needed.of(sample):
                return None
            channels = c_in.of(sample)
            groups = channels if depthwise else 1
            ends = {"input": channels, "output": c_out.of(sample)}
            alone = sum(ends[end] for end in float_norms)
            spec = LayerSpec(
                name, kind, channels, ends["output"], k.of(sample), stride, groups, normalised=norm, float_norms=alone
            )
            return resized(spec, sample, at)

        labels = (*(("resolution",) if at else ()), *depth, *c_in.labels, *c_out.labels, *k.labels, *needed.labels)
        depends_on = tuple(dict.fromkeys(labels))
        stage, group = (None, None) if block is None else (block.stage, block.name)
        there = () if block is None else block.active_if
        self.sites.append(Site(name, depends_on, describe, stage, group, bits, bits, there, branch))

    def grid(
        self,
        name: str,
        channels: int | Size,
        at: int,
        block: Block | None = None,
        **options: Any,
    ) -> None:
        """Add a site that only puts a tensor on a grid of ``edge_bits``; ``options`` are those of :meth:`layer`."""
        self.layer(name, channels, channels, at, kind="quantize", bits=self.edge_bits, block=block, **options)

    def values(self, *sizes: Size) -> set[tuple[int, ...]]:
        """Return what sizes are together, over all choices of the knobs that they read."""
        choices = {knob.label: knob.choices for knob in self.knobs}
        labels = list(dict.fromkeys(label for size in sizes for label in size.labels))
        samples = (dict(zip(labels, v, strict=True)) for v in product(*(choices[label] for label in labels)))
        return {tuple(size.of(sample) for size in sizes) for sample in samples}
