"""RetinaNet's task: loss and assignment against loops, average precision against a plain reading of the metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qnas.errors import DataError, PluginError
from qnas.nn.features import Feature
from qnas_plugins.tasks import boxes, coco
from qnas_plugins.tasks.detection import IGNORED, NOTHING, Detection, assign, focal_loss
from qnas_plugins.tasks.retinanet import pyramid_levels

FEATURES = (Feature(4, 6, 8), Feature(8, 10, 4))


def make(**options):
    return Detection(**{"features": FEATURES, "image_size": 32, "num_classes": 3, **options})


def targets_of(*images, slots=3):
    found = torch.zeros(len(images), slots, 5)
    found[..., 0] = -1
    for i, objects in enumerate(images):
        for j, entry in enumerate(objects):
            found[i, j] = torch.tensor([float(v) for v in entry])
    return found


TARGETS = targets_of([(0, 2, 3, 14, 15), (2, 14, 14, 31, 30)], [(1, 4, 4, 20, 20)], [])


# --- loss ------------------------------------------------------------------------------------------------------------


def focal(x, y, alpha, gamma):
    """Eq. 5 of the paper, for one logit."""
    p = 1 / (1 + math.exp(-x))
    p_t, alpha_t = (p, alpha) if y else (1 - p, 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)


def focal_gradient(x, y, alpha, gamma):
    """App. B, Eq. 11, with alpha: d/dx of the above."""
    sign = 1 if y else -1
    p_t = 1 / (1 + math.exp(-sign * x))
    alpha_t = alpha if y else 1 - alpha
    return alpha_t * sign * (1 - p_t) ** gamma * (gamma * p_t * math.log(p_t) + p_t - 1)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 1.5)])
def test_focal_loss_and_its_gradient_are_the_published_ones(alpha, gamma):
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    for y in (0, 1):
        x.grad = None
        found = focal_loss(x, torch.full_like(x, y), alpha, gamma)
        np.testing.assert_allclose(found.detach(), [focal(v, y, alpha, gamma) for v in x.tolist()], rtol=1e-9)
        found.sum().backward()
        want = [focal_gradient(v, y, alpha, gamma) for v in x.tolist()]
        np.testing.assert_allclose(x.grad, want, rtol=1e-7, atol=1e-12)


def test_focal_loss_is_finite_where_answers_are_sure():
    x = torch.tensor([-200.0, 200.0], requires_grad=True)
    for y in (0.0, 1.0):
        loss = focal_loss(x, torch.full((2,), y), 0.25, 2.0)
        assert torch.isfinite(loss).all()
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert torch.isfinite(gradient).all()


def assigned(anchors, objects):
    """The rule for one image, in words: 0.5 and more, below 0.4, and each object's best anchors."""
    shared = [[_iou(a, o[1:]) for o in objects] for a in anchors]
    chosen = []
    for row in shared:
        best = max(row, default=0.0)
        chosen.append(row.index(best) if row and best >= 0.5 else NOTHING if best < 0.4 else IGNORED)
    for j in range(len(objects)):
        most = max(row[j] for row in shared)
        for i, row in enumerate(shared):
            if row[j] == most and not any(row[k] == max(r[k] for r in shared) for k in range(j)):
                chosen[i] = j
    return chosen


def _iou(a, b):
    return float(boxes.overlap(torch.tensor([a]), torch.tensor([[float(v) for v in b]])))


def test_assignment_is_by_overlap():
    task = make()
    found = assign(task.anchors, TARGETS)
    for i, entries in enumerate(TARGETS.tolist()):
        assert found[i].tolist() == assigned(task.anchors.tolist(), [e for e in entries if e[0] >= 0])
    assert (found[2] == NOTHING).all()
    assert {IGNORED, NOTHING, 0, 1} == set(found[0].tolist())


def reference_loss(task, outputs, targets):
    """Both terms over all images, divided by all anchors with an object."""
    total = classes = regression = 0.0
    for image, entries in zip(outputs.tolist(), targets.tolist(), strict=True):
        objects = [e for e in entries if e[0] >= 0]
        for answer, anchor, own in zip(
            image, task.anchors.tolist(), assigned(task.anchors.tolist(), objects), strict=True
        ):
            if own == IGNORED:
                continue
            for c in range(3):
                classes += focal(answer[c], own >= 0 and objects[own][0] == c, 0.25, 2.0)
            if own >= 0:
                total += 1
                box, (w, h) = objects[own][1:], (anchor[2] - anchor[0], anchor[3] - anchor[1])
                wanted = [
                    (box[0] + box[2] - anchor[0] - anchor[2]) / 2 / w,
                    (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / h,
                    math.log((box[2] - box[0]) / w),
                    math.log((box[3] - box[1]) / h),
                ]
                for found, want in zip(answer[3:], wanted, strict=True):
                    d = abs(found - want)
                    regression += d * d / 2 * 9 if d < 1 / 9 else d - 1 / 18
    return (classes + regression) / max(total, 1)


@pytest.mark.parametrize("images", [slice(0, 3), slice(2, 3)])
def test_the_loss_is_focal_and_smooth_l1_by_anchors_with_an_object(images):
    task, targets = make(octaves=1), TARGETS[images]
    outputs = torch.randn(len(targets), len(task.anchors), 7, generator=torch.Generator().manual_seed(0))
    assert float(task.loss(outputs, targets)) == pytest.approx(reference_loss(task, outputs, targets), rel=1e-5)


# --- network ---------------------------------------------------------------------------------------------------------


def test_a_head_answers_for_every_anchor_at_the_prior():
    task = make()
    assert task.extra == 0  # an anchor of 4 * 8 pixels is as large as the image
    assert make(image_size=64).extra == 1
    for wanted in (0, 2):
        task = make(extra=wanted)
        head = task.head()
        maps = tuple(torch.randn(2, f.channels, f.size, f.size) for f in FEATURES)
        outputs = head(maps)
        assert outputs.shape == (2, len(task.anchors), 7)
        assert [m.shape[-1] for m in head.pyramid(maps)] == [size for _, size in pyramid_levels(FEATURES, wanted)]
        assert outputs[..., :3].sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)


def test_an_output_belongs_to_the_anchor_where_it_was_computed():
    task = make(extra=0)
    head = task.head()
    with torch.no_grad():
        for layer in head.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
                centre = layer.weight[:, :, 1, 1].clone()
                layer.weight.zero_()
                layer.weight[:, :, 1, 1] = centre  # nothing comes from the neighbours
    maps = [torch.zeros(1, f.channels, f.size, f.size) for f in FEATURES]
    base = head(tuple(maps))
    maps[1][:, :, 3, 0] = 5.0  # bottom left of the coarse map
    moved = (head(tuple(maps)) != base).any(-1)[0]
    centres = (task.anchors[moved][:, :2] + task.anchors[moved][:, 2:]) / 2
    fine = {(x, y) for x in (2.0, 6.0) for y in (26.0, 30.0)}  # the same corner of the finer map, from the top down
    assert {tuple(c) for c in centres.round().tolist()} == {(4.0, 28.0), *fine}
    assert int(moved.sum()) == 5 * 9


@pytest.mark.parametrize("options", [{"width": 0}, {"ratios": ()}, {"scale": 0.0}, {"alpha": 1.0}, {"extra": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"width|alpha"):
        make(**options)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4), r"takes targets \[images, boxes, 5\].*gives \[4\]"),
        (torch.tensor([[[3.0, 1, 1, 5, 5]]]), r"box \[3.0, 1.0, 1.0, 5.0, 5.0\]; a box has a class below 3"),
        (torch.tensor([[[0.0, 5, 1, 5, 5]]]), r"x1 < x2"),
    ],
)
def test_targets_that_are_no_boxes(targets, message):
    make().check_targets(TARGETS)
    with pytest.raises(DataError, match=message):
        make().check_targets(targets)


# --- metric ----------------------------------------------------------------------------------------------------------


def average_precision(detections, targets, threshold, label):
    """COCO's metric for one class and threshold: greedy matching by score, precision at 101 recalls, interpolated."""
    truths = {i: [e[1:] for e in entries if e[0] == label] for i, entries in enumerate(targets.tolist())}
    total = sum(map(len, truths.values()))
    free = {i: [True] * len(entries) for i, entries in truths.items()}
    hits = []
    for row in sorted((d for d in detections.tolist() if d[6] == label), key=lambda d: -d[5]):
        shared = [_iou64(row[1:5], t) if free[int(row[0])][j] else -1 for j, t in enumerate(truths[int(row[0])])]
        best = max(shared, default=-1)
        hits.append(best >= threshold)
        if hits[-1]:
            free[int(row[0])][shared.index(best)] = False
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    recall = found / total
    return np.mean([max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)])


def _iou64(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, w) * max(0.0, h)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_average_precision_is_cocos():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 30, (12, 3, 2))
    corners = np.concatenate([low, low + rng.uniform(8, 30, (12, 3, 2))], -1)
    targets = torch.from_numpy(np.concatenate([rng.integers(0, 3, (12, 3, 1)), corners], -1)).double()
    targets[0, 2] = torch.tensor([-1.0, 0, 0, 0, 0])
    rows = []
    for i, entries in enumerate(targets.tolist()):
        for entry in entries:
            if entry[0] < 0:
                continue
            label = entry[0] if rng.random() < 0.8 else (entry[0] + 1) % 3
            rows.append([i, *np.array(entry[1:]) + rng.normal(0, 1.5, 4), rng.random(), label])
        rows.append([i, 1, 1, 20, 20, rng.random(), 0])
    detections = torch.tensor(rows, dtype=torch.float64)
    found = coco.average_precision(detections, targets, 3)
    for name, thresholds in (("mAP50", [0.5]), ("mAP75", [0.75]), ("mAP", np.linspace(0.5, 0.95, 10))):
        want = np.mean([average_precision(detections, targets, t, c) for t in thresholds for c in range(3)])
        assert found[name] == pytest.approx(want, abs=1e-9)
    assert 0.1 < found["mAP"] < found["mAP50"] < 1


def perfect(task, targets):
    """Outputs that say the truth at every anchor with an object."""
    own = assign(task.anchors, targets)
    outputs = torch.full((len(targets), len(task.anchors), 7), -9.0)
    outputs[..., 3:] = 0
    for i, a in (own >= 0).nonzero().tolist():
        entry = targets[i, own[i, a]]
        outputs[i, a, int(entry[0])] = 9.0
        outputs[i, a, 3:] = boxes.encode(entry[1:], task.anchors[a])
    return outputs


def test_right_answers_score_1_and_lose_nothing():
    task = make()
    outputs = perfect(task, TARGETS)
    assert task.score(outputs, TARGETS) == pytest.approx({"mAP": 1.0, "mAP50": 1.0, "mAP75": 1.0})
    found = task.detections(outputs)
    assert found[:, 0].tolist() == [0, 0, 1]  # duplicates are suppressed, the empty image has none
    assert sorted(found[:2, 6].tolist()) == [0, 2]
    torch.testing.assert_close(found[2, 1:5].float(), TARGETS[1, 0, 1:], atol=1e-3, rtol=0)
    assert task.loss(outputs, TARGETS) < 1e-6


def test_wrong_classes_score_nothing():
    task = make()
    outputs = perfect(task, TARGETS)
    rolled = torch.cat([outputs[..., :3].roll(1, -1), outputs[..., 3:]], -1)
    assert task.score(rolled, TARGETS)["mAP"] < 0.05


def test_images_are_counted_over_all_parts():
    task, many = make(), 70  # more than are decoded at a time
    targets = TARGETS[1:2].repeat(many, 1, 1)
    found = task.detections(perfect(task, targets))
    assert found[:, 0].tolist() == list(range(many))
    assert task.score(perfect(task, targets), targets)["mAP"] == pytest.approx(1.0)


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[2:]])
def test_no_detections_or_no_objects_score_0(targets):
    task = make()
    outputs = torch.full((len(targets), len(task.anchors), 7), -9.0)
    assert task.score(outputs, targets) == {"mAP": 0.0, "mAP50": 0.0, "mAP75": 0.0}


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(coco, "PACKAGE", "no_such_package")
    with pytest.raises(PluginError, match=r"no_such_package, which is not installed. Install it: pip install 'qnas\["):
        make()
