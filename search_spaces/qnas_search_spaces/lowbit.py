"""What the spaces of blocks for few bits share: their options, and the sites of :mod:`qnas.nn.lowbit`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from qnas.errors import ConfigError
from qnas_search_spaces.outline import Block, Outline, Size

BLOCKS = ("new", "fracbnn")
RESIDUAL_BLOCKS = (*BLOCKS, "preactivation")
FLEXCONN = ("expansion", "static", "reduction")


def block_kind(space: str, block: str, allowed: Sequence[str]) -> str:
    """Return the option ``block``, checked.

    Raises:
        ConfigError: there is no such block.
    """
    if block not in allowed:
        raise ConfigError(
            f"Space {space}: block must be one of {', '.join(allowed)}; given: {block!r}. Change [space.options] or "
            f"--space-option block=...; the family's own blocks are those of the space {space.removeprefix('basq-')}."
        )
    return block


def flexconn_kinds(space: str, given: Sequence[str] | str) -> tuple[str, ...]:
    """Return the option ``flexconn``, checked: which kinds of layers have a skip; names in a text are parted by commas.

    Raises:
        ConfigError: there is no such kind, or one is named twice.
    """
    kinds = tuple(given.split(",")) if isinstance(given, str) else tuple(given)
    if len(set(kinds)) != len(kinds) or not set(kinds) <= set(FLEXCONN):
        raise ConfigError(
            f"Space {space}: flexconn must be different names out of {', '.join(FLEXCONN)}, or [] for no such skips; "
            f"given: {list(kinds)}. For example --space-option flexconn=expansion,static."
        )
    return kinds


def role_of(in_channels: int, out_channels: int) -> str:
    """Return the kind of Flexconn between these numbers of channels, the largest ones."""
    if in_channels == out_channels:
        return "static"
    return "expansion" if in_channels < out_channels else "reduction"


def check_widths(space: str, given: Sequence[float] | float | None, widths: Sequence[tuple[int, ...]]) -> None:
    """Refuse stages that some samples make narrower than the one before, and the largest subnet does not.

    Raises:
        ConfigError: there is such a stage.
    """
    for before, after in pairwise(widths):
        if after[0] < before[-1] <= after[-1]:
            raise ConfigError(
                f"Space {space}: widths {given!r} let a stage have {after[0]} channels after one with {before[-1]}. "
                "Its skip would sum channels, but quantizers start in the largest subnet, which has no such sums. "
                "Give shares that are at most a factor of 2 apart, such as widths = [0.5, 0.75, 1.0]."
            )


def describe_unit(
    outline: Outline,
    name: str,
    in_channels: int | Size,
    out_channels: int | Size,
    at: int,
    *,
    block: Block,
    kind: str = "new",
    skip: bool = True,
    kernel: int | Size = 1,
    stride: int = 1,
    depthwise: bool = False,
    branch: str | None = None,
) -> None:
    """Add the sites of :class:`qnas.nn.lowbit.LowBitUnit`, in the order of the data's way.

    Args:
        name: of the convolution's site.
        in_channels, out_channels: active ones.
        at: by how much the image is larger than the unit's output.
        block: that it belongs to.
        kind: of block.
        skip: whether there is one.
        kernel, stride, depthwise: of the convolution.
        branch: name under which quantizers of its input may offer branches.
    """
    before, after = (n if isinstance(n, Size) else Size.fixed(n) for n in (in_channels, out_channels))
    outline.layer(
        name, before, after, at, kernel=kernel, stride=stride, depthwise=depthwise, block=block, branch=branch,
        float_norms=("input", "output") if kind == "new" else ("output",),
    )  # fmt: skip
    outline.grid(f"{name}.out", after, at, block)
    if skip:
        labels = tuple(dict.fromkeys((*before.labels, *after.labels)))
        computed = Size(labels, lambda sample: min(before.of(sample), after.of(sample)))  # copies come after it
        reduces = Size(labels, lambda sample: int(after.of(sample) < before.of(sample)))
        ever = {reduced for (reduced,) in outline.values(reduces)}
        if stride > 1 or 1 in ever:
            outline.grid(f"{name}.skip", computed, at, block, only_if=reduces if stride == 1 and 0 in ever else None)
        outline.grid(f"{name}.add", after, at, block)
    outline.grid(f"{name}.norm", after, at, block)
