"""Boxes: overlap, offsets, anchors and suppression against loops over single boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnas_plugins.tasks import boxes


def random_boxes(*shape, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=rng, dtype=torch.float64) * 40
    return torch.cat([low, low + 1 + torch.rand(*shape, 2, generator=rng, dtype=torch.float64) * 30], -1).to(dtype)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_overlap_of_all_pairs():
    a, b = random_boxes(2, 7), random_boxes(2, 5, seed=1)
    found = boxes.overlap(a, b)
    assert found.shape == (2, 7, 5)
    want = [[[iou(x, y) for y in bs] for x in xs] for xs, bs in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5, atol=1e-7)


def test_empty_boxes_overlap_nothing():
    empty = torch.zeros(1, 4)
    assert boxes.overlap(empty, empty).item() == 0
    assert boxes.overlap(empty, torch.tensor([[0.0, 0, 5, 5]])).item() == 0


def test_offsets_and_boxes_are_inverse():
    anchors, wanted = random_boxes(200, dtype=torch.float64), random_boxes(200, seed=1, dtype=torch.float64)
    offsets = boxes.encode(wanted, anchors)
    torch.testing.assert_close(boxes.decode(offsets, anchors), wanted)
    x, y, w, h = 20.0, 30.0, 8.0, 4.0  # an anchor by centre and size; the box twice as wide, half a width to the right
    anchor = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
    box = torch.tensor([[x + w / 2 - w, y - h / 2, x + w / 2 + w, y + h / 2]])
    torch.testing.assert_close(boxes.encode(box, anchor), torch.tensor([[0.5, 0.0, np.log(2), 0.0]]).float())


def test_a_huge_offset_stays_finite():
    found = boxes.decode(torch.tensor([[0.0, 0.0, 500.0, 1e9]]), torch.tensor([[0.0, 0, 16, 16]]))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0, 2] - found[0, 0], torch.tensor(1000.0))


def test_anchors_of_a_pyramid():
    anchors = boxes.make_anchors([(4, 3), (8, 2)], 4.0, 3, (0.5, 1.0, 2.0))
    assert anchors.shape == ((9 + 4) * 9, 4)
    number = 0
    for stride, size in ((4, 3), (8, 2)):
        for row in range(size):
            for column in range(size):
                for octave in range(3):
                    for ratio in (0.5, 1.0, 2.0):
                        x1, y1, x2, y2 = anchors[number].tolist()
                        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(
                            ((column + 0.5) * stride, (row + 0.5) * stride)
                        )
                        assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio)
                        assert (y2 - y1) * (x2 - x1) == pytest.approx((4 * stride * 2 ** (octave / 3)) ** 2)
                        number += 1


def greedy(corners, classes, threshold):
    kept = []
    for i in range(len(corners)):
        if not any(classes[j] == classes[i] and iou(corners[j], corners[i]) > threshold for j in kept):
            kept.append(i)
    return [i in kept for i in range(len(corners))]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_the_greedy_loop(threshold, seed):
    rng = torch.Generator().manual_seed(seed)
    corners, classes = random_boxes(3, 60, seed=seed), torch.randint(0, 3, (3, 60), generator=rng)
    found = boxes.suppress(corners, classes, threshold)
    want = [greedy(c, k, threshold) for c, k in zip(corners.tolist(), classes.tolist(), strict=True)]
    assert found.tolist() == want


def test_a_long_chain_of_suppression():
    x = torch.arange(40.0) * 4
    corners = torch.stack([x, torch.zeros(40), x + 10, torch.full((40,), 10.0)], -1)[None]
    keep = boxes.suppress(corners, torch.zeros(1, 40, dtype=torch.long), 0.4)[0]
    assert keep.tolist() == [i % 2 == 0 for i in range(40)]  # each overlaps the next by 3/7, the one after by 1/9
