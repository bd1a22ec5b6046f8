"""Sizes that the families share: channels that kernels like, choices that a user may name, sizes of images and maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from qnas.errors import ConfigError
from qnas.layers import LayerSpec
from qnas.space import LARGEST_SMALL_IMAGE, Value

Number = TypeVar("Number", int, float)

SIZES = ("auto", "small", "large")
SMALLEST_IMAGE, LARGEST_IMAGE = 8, 1024  # pixels
LARGEST_WIDTH = 8.0  # of the multiplier of all widths


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never more than 10% down (MobileNetV2's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def is_small(space: str, size: str, image_size: int) -> bool:
    """Tell whether the form for small images is meant.

    Args:
        space: named in errors.
        size: ``small``, ``large``, or ``auto``: by ``image_size``.
        image_size: in pixels.

    Raises:
        ConfigError: ``size`` is none of these.
    """
    if size not in SIZES:
        raise ConfigError(
            f"Space {space}: size must be one of {', '.join(SIZES)}; given: {size!r}. Change [space.options] or "
            "--space-option size=..."
        )
    return size == "small" or (size == "auto" and image_size <= LARGEST_SMALL_IMAGE)


def choices(
    space: str,
    name: str,
    values: Sequence[Number] | Number | None,
    default: Sequence[Number],
    valid: Callable[[Number], bool],
) -> tuple[Number, ...]:
    """Return the choices of one of a space's options as a tuple; a single value is one choice.

    Args:
        space, name: named in errors.
        values: what the user gave; ``None`` takes ``default``, which also serves as the error's example.
        valid: whether one value can be.

    Raises:
        ConfigError: they are not numbers, not ascending, or one cannot be.
    """
    if values is None:
        return tuple(default)
    given = (values,) if isinstance(values, (int, float)) else values
    numbers = isinstance(given, (list, tuple)) and all(type(v) in (int, float) for v in given)
    if not numbers or not given or list(given) != sorted(set(given)) or not all(valid(v) for v in given):
        shown = list(given) if isinstance(given, tuple) else given
        raise ConfigError(
            f"Space {space}: {name} must be different, ascending and possible sizes; given: {shown!r}. "
            f"For example {name} = {list(default)}."
        )
    return tuple(given)


def whole_numbers(
    space: str,
    name: str,
    values: Sequence[int] | int | None,
    default: Sequence[int],
    valid: Callable[[int], bool] = lambda v: v >= 1,
) -> tuple[int, ...]:
    """Return :func:`choices` that are whole numbers, from 1 up unless ``valid`` says otherwise."""
    return choices(space, name, values, default, lambda v: type(v) is int and valid(v))


def kernel_sizes(space: str, values: Sequence[int] | int | None, default: Sequence[int]) -> tuple[int, ...]:
    """Return :func:`choices` that are odd."""
    return whole_numbers(space, "kernels", values, default, lambda k: k % 2 == 1 and k >= 1)


def image_sizes(
    space: str, values: Sequence[int] | int | None, *, image_size: int, small: bool, elastic: bool = True
) -> tuple[int, ...]:
    """Return the resolutions to choose among; for ``None`` the default ones, or ``image_size`` alone."""
    if values is None:
        values = default_resolutions(image_size, small) if elastic else image_size
    return whole_numbers(space, "resolutions", values, (128, 160), lambda r: SMALLEST_IMAGE <= r <= LARGEST_IMAGE)


def default_resolutions(image_size: int, small: bool) -> tuple[int, ...]:
    """Return OQAT's resolutions (128 to 224 by 4) for large images, three quarters and all of a small one."""
    if not small:
        return tuple(range(128, image_size + 1, 4)) if image_size >= 128 else (image_size,)
    lower = image_size * 3 // 4 // 4 * 4
    return (lower, image_size) if lower >= 8 else (image_size,)


def width_multiplier(space: str, width: float) -> float:
    """Return the multiplier of all widths, checked."""
    if not 0 < width <= LARGEST_WIDTH:
        raise ConfigError(
            f"Space {space}: width must be a multiplier above 0 and up to {LARGEST_WIDTH:g}; given: {width!r}. 1.0 is "
            "the published network; for example --space-option width=0.25."
        )
    return width


def stage_widths(
    space: str, values: Sequence[float] | float | None, default: Sequence[float], largest: Sequence[int]
) -> list[tuple[int, ...]]:
    """Return, for each stage, the channels to choose among: shares of its largest width, rounded to multiples of 8."""
    shares = choices(space, "widths", values, default, lambda share: 0 < share <= 1)
    return [tuple(sorted({make_divisible(share * channels) for share in shares})) for channels in largest]


def published_only(space: str, **given: object) -> None:
    """Refuse choices beside ``elastic = false``, which leaves the published network alone."""
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise ConfigError(
            f"Space {space}: with elastic = false the published network is the only architecture; given besides: "
            f"{', '.join(named)}. Leave these out, or leave out elastic."
        )


def resized(spec: LayerSpec, sample: Mapping[str, Value], reduction: int) -> LayerSpec:
    """Set the output size: the image's, halved (rounding up) as often as the strides say; 1 after pooling.

    Args:
        reduction: product of all strides so far; 0 after pooling.
    """
    return replace(spec, out_size=1 if reduction == 0 else -(-int(sample["resolution"]) // reduction))
