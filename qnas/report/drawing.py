"""A subnet drawn layer by layer as SVG, for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from qnas.report.data import Json
from qnas.report.formats import TIMES, bits
from qnas.report.markup import Markup, join, tag

ROW, PAD, GAP = 20, 6, 8  # height of a layer, inside a block, between blocks; in pixels
LEFT, BAR, RIGHT = 124, 110, 326  # widths of the names of blocks, of the largest layer, of the text
NAME = 15  # letters of a block's name
TEXT = 5  # from the middle of a row to the text's baseline


def draw_subnet(point: Json) -> Markup:
    """Return the subnet of a point as SVG in a box that scrolls: a bar a layer, a frame a block, from input to output.

    A bar is as wide as the square root of the layer's channels, so that thin layers stay visible, and as dark as the
    bit-width of its weights.
    """
    layers: list[Json] = point.get("layers") or []
    if not layers:
        return Markup("")
    widest = max(int(layer["out_channels"]) for layer in layers)
    shapes: list[Markup] = []
    y = GAP
    for name, block in _blocks(layers):
        height = 2 * PAD + ROW * len(block)
        frame = tag("rect", x=LEFT - 8, y=y, width=BAR + RIGHT, height=height, rx=7, class_="frame")
        shapes += [frame, _text(_short(name), LEFT - 16, y + height / 2 + TEXT, "block")]
        for row, layer in enumerate(block):
            shapes += _layer(layer, y + PAD + ROW * row, widest)
        y += height + GAP
    title = f"Subnet {point['key']}: {len(layers)} layers in order; the table below holds the same numbers"
    width = LEFT + BAR + RIGHT
    picture = tag(
        "svg", join(shapes, "\n"), viewBox=f"0 0 {width} {y}", width=width, height=y, role="img", aria_label=title
    )
    return tag("div", picture, class_="drawing", role="region", tabindex="0", aria_label=f"Drawing of {point['key']}")


def shade(value: Any) -> str:
    """Return how dark a bit-width is drawn, as a CSS number from 0 (2 bits) to 1 (8 bits and more)."""
    if not isinstance(value, int) or value < 1:
        return "1.00"
    return f"{min(1.0, max(0.0, (math.log2(value) - 1) / 2)):.2f}"


def _blocks(layers: Sequence[Json]) -> Iterator[tuple[str, list[Json]]]:
    """Yield blocks of consecutive layers: those whose names agree up to the last part."""
    for name, block in groupby(layers, key=_block_name):
        yield name, list(block)


def _block_name(layer: Mapping[str, Any]) -> str:
    """Return ``stage1.block2`` for ``stage1.block2.expand``, and ``stem`` for ``stem`` and ``stem.out``.

    A tensor that is put on a grid belongs to the block that makes it, ``first`` for ``first.project.out``.
    """
    parts = str(layer["name"]).split(".")
    if len(parts) == 1:
        return parts[0]
    blocks = next((i for i, part in enumerate(parts) if part.startswith("block")), None)
    return ".".join(parts[: 1 if blocks is None else blocks + 1])


def _layer(layer: Json, y: float, widest: int) -> Iterator[Markup]:
    """Yield the shapes of one layer."""
    width = max(4.0, BAR * math.sqrt(int(layer["out_channels"]) / widest))
    x = LEFT + (BAR - width) / 2
    w_bits, a_bits = layer.get("w_bits", 32), layer.get("a_bits", 32)
    grid = layer["kind"] == "quantize"
    kind = "grid" if grid else "floating" if w_bits == 32 else "layer"
    height = 4 if grid else ROW - 4
    tip = tag("title", f"{layer['name']}: {_shape(layer)}, {_bits(w_bits, a_bits, grid)}")
    yield tag(
        "rect",
        tip,
        x=f"{x:.1f}",
        y=y + (ROW - height) / 2,
        width=f"{width:.1f}",
        height=height,
        rx=min(3, height // 2),
        class_=kind,
        style=None if kind != "layer" else f"--shade:{shade(w_bits)}",
    )
    base = y + ROW / 2 + TEXT
    yield _text(_shape(layer), LEFT + BAR + 12, base, "note" if grid else "")
    yield _text(_bits(w_bits, a_bits, grid), LEFT + BAR + RIGHT - 18, base, "end note" if grid else "end")


def _short(name: str) -> str:
    """Return a name that fits beside its block; its end tells blocks apart."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _shape(layer: Json) -> str:
    out = layer.get("out_size", 1)
    if layer["kind"] == "quantize":
        return f"{layer['name'].split('.')[-1]} on a grid, {out}{TIMES}{out}"
    kernel, stride, groups = layer.get("kernel_size", 1), layer.get("stride", 1), layer.get("groups", 1)
    kind = "fc" if layer["kind"] == "linear" else f"{kernel}{TIMES}{kernel}"
    step = f" /{stride}" if stride != 1 else ""
    deep = " dw" if groups == layer["in_channels"] and groups > 1 else f" g{groups}" if groups > 1 else ""
    return f"{kind}{deep}{step}, {layer['in_channels']}→{layer['out_channels']}, {out}{TIMES}{out}"


def _bits(w_bits: Any, a_bits: Any, grid: bool) -> str:
    activation = f"A {bits(a_bits)}"
    return activation if grid else f"W {bits(w_bits)}, {activation}"


def _text(text: str, x: float, y: float, kind: str) -> Markup:
    return tag("text", text, x=x, y=y, class_=kind or None)
