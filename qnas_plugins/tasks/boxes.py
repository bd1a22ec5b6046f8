"""Boxes as tensors: overlap, anchors, offsets, suppression of duplicates. Corners ``x1, y1, x2, y2`` in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)  # of a side, as an offset: what exceeds it is cut, so that nothing overflows


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union of all pairs, ``[..., N, M]`` of ``[..., N, 4]`` and ``[..., M, 4]``; or 0."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), torch.zeros_like(union))


def area(boxes: Tensor) -> Tensor:
    """Return ``[...]`` of ``[..., 4]``."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def make_anchors(levels: Sequence[tuple[int, int]], scale: float, octaves: int, ratios: Sequence[float]) -> Tensor:
    """Return the anchors of a pyramid, ``[A, 4]`` (Lin et al., "Focal Loss", 2017, Sec. 4: Anchors).

    Ordered by level, row, column, octave and ratio, as a head's outputs are.

    Args:
        levels: stride in pixels and size of each map, fine to coarse.
        scale: side of the smallest square anchor, in strides (the paper's is 4).
        octaves: sizes between a level and the next, ``2^(i / octaves)`` of it.
        ratios: height by width.
    """
    found = []
    for stride, size in levels:
        sides = [scale * stride * 2 ** (i / octaves) for i in range(octaves)]
        shapes = torch.tensor([(side / ratio**0.5, side * ratio**0.5) for side in sides for ratio in ratios])
        at = (torch.arange(size) + 0.5) * stride
        centres = torch.stack([at.expand(size, size), at[:, None].expand(size, size)], -1)[:, :, None]
        found.append(torch.cat([centres - shapes / 2, centres + shapes / 2], -1).reshape(-1, 4))
    return torch.cat(found)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return where boxes lie from anchors: centres in anchor sizes, logarithms of sizes (R-CNN, Girshick 2014, App. C).

    Args:
        boxes, anchors: ``[..., 4]``, the sides of both positive.
    """
    size, own = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([shift / own, torch.log(size / own)], -1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes ``[..., 4]`` that :func:`encode` gave these offsets for."""
    own = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + offsets[..., :2] * own
    half = own * torch.exp(offsets[..., 2:].clamp(max=LARGEST_GROWTH)) / 2
    return torch.cat([centre - half, centre + half], -1)


def suppress(boxes: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Return which boxes greedy non-maximum suppression keeps, class by class, ``[N, K]`` booleans.

    A box goes where one before it, of its class and kept, overlaps it by more than ``threshold``. Whether an earlier
    one is kept is settled first, so asking all at once again and again ends in the answer of the loop.

    Args:
        boxes: ``[N, K, 4]``, by falling score.
        classes: ``[N, K]``.
    """
    k = boxes.shape[-2]
    earlier = torch.ones(k, k, dtype=torch.bool, device=boxes.device).triu(1)
    rival = (overlap(boxes, boxes) > threshold) & (classes[..., :, None] == classes[..., None, :]) & earlier
    keep = torch.ones_like(classes, dtype=torch.bool)
    for _ in range(k):
        settled = ~(rival & keep[..., :, None]).any(-2)
        if torch.equal(settled, keep):
            break
        keep = settled
    return keep
