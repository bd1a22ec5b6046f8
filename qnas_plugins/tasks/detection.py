"""Object detection: RetinaNet's loss on a backbone's features, COCO's average precision.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qnas.errors import DataError
from qnas.nn.features import Feature, FloatHead
from qnas_plugins.tasks import boxes, coco
from qnas_plugins.tasks.retinanet import RetinaNetHead, pyramid_levels

FOREGROUND, BACKGROUND = 0.5, 0.4  # overlap of an anchor with an object (Sec. 4: Anchors)
IGNORED, NOTHING = -2, -1  # in place of an object's number
SMOOTH_L1 = 1 / 9  # where the loss of an offset turns from a parabola into a line, as Detectron has it
LEAST_SCORE, NMS, CANDIDATES, KEPT = 0.05, 0.5, 300, 100  # of inference; the paper's 1,000 a level suit larger images
IMAGES = 64  # decoded at a time


class Detection:
    """Objects in boxes. Targets are ``[N, B, 5]``: class (-1 where there is no object) and corners in pixels.

    Args:
        features: of the backbone, fine to coarse.
        image_size: height and width of the images, in pixels.
        num_classes: of objects.
        alpha, gamma: of the focal loss.
        scale: side of the smallest anchor, in strides.
        octaves: anchor sizes a level.
        ratios: of anchors, height by width.
        extra: coarser levels to add to the backbone's; by default until an anchor is as large as the image.
        width, depth: channels and convolutions of the head (256 and 4 in the paper).
    """

    metric = "mAP"

    def __init__(
        self,
        *,
        features: tuple[Feature, ...],
        image_size: int,
        num_classes: int,
        alpha: float = 0.25,
        gamma: float = 2.0,
        scale: float = 4.0,
        octaves: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        extra: int | None = None,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        if min(width, octaves, len(ratios)) < 1 or depth < 0 or min(scale, *ratios) <= 0 or (extra or 0) < 0:
            raise ValueError("width and octaves are 1 or more, scale and ratios over 0, depth and extra 0 or more")
        if not 0 < alpha < 1 or gamma < 0:
            raise ValueError("alpha lies between 0 and 1, and gamma is 0 or more")
        coco.require()
        self.features = tuple(features)
        self.image_size = image_size
        self.num_classes = num_classes
        self.alpha, self.gamma = alpha, gamma
        self.num_anchors = octaves * len(ratios)
        self.extra = 0 if extra is None else extra
        while extra is None and scale * self.features[-1].stride * 2 ** (self.extra + 1) <= image_size:
            self.extra += 1
        self.width, self.depth = width, depth
        levels = pyramid_levels(self.features, self.extra)
        self.anchors = boxes.make_anchors(levels, scale, octaves, ratios)

    def check_targets(self, targets: Tensor) -> None:
        """Refuse targets that are no boxes of known classes with sides over 0.

        Raises:
            DataError: says what they are instead.
        """
        if targets.ndim != 3 or targets.shape[-1] != 5:
            raise DataError(
                f"Task detection takes targets [images, boxes, 5] (class and corners x1, y1, x2, y2 in pixels); the "
                f"data set gives {list(targets.shape)}. Take --data scenes, or a data set that knows boxes."
            )
        real = targets[targets[..., 0] >= 0]
        wrong = (real[:, 0] >= self.num_classes) | (real[:, 3:] <= real[:, 1:3]).any(1)
        if bool(wrong.any()):
            raise DataError(
                f"The data set gives the box {real[wrong][0].tolist()}; a box has a class below {self.num_classes} and "
                "corners x1 < x2, y1 < y2. Correct its load()."
            )

    def head(self) -> FloatHead:
        """Return a new feature pyramid with RetinaNet's head; outputs are ``[N, A, num_classes + 4]``."""
        return RetinaNetHead(
            self.features,
            extra=self.extra,
            num_anchors=self.num_anchors,
            num_classes=self.num_classes,
            width=self.width,
            depth=self.depth,
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return focal loss and smooth L1 of the offsets, each summed and divided by the anchors with an object.

        Args:
            outputs: ``[N, A, num_classes + 4]``.
            targets: ``[N, B, 5]``.
        """
        anchors = self.anchors.to(outputs.device)
        logits, offsets = outputs.float().split([self.num_classes, 4], -1)
        chosen = assign(anchors, targets)
        has = chosen >= 0
        own = targets.gather(1, chosen.clamp(min=0)[..., None].expand(-1, -1, 5))
        wanted = torch.zeros_like(logits)
        wanted.scatter_(2, own[..., :1].long().clamp(min=0), has[..., None].to(wanted.dtype))
        total = has.sum().clamp(min=1)
        terms = focal_loss(logits, wanted, self.alpha, self.gamma)
        classes = terms[chosen != IGNORED].sum()
        truth = boxes.encode(own[..., 1:], anchors.expand(len(outputs), -1, -1))[has]
        regression = F.smooth_l1_loss(offsets[has], truth, reduction="sum", beta=SMOOTH_L1)
        return (classes + regression) / total

    def score(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return ``mAP`` (IoU 0.5 to 0.95), ``mAP50`` and ``mAP75`` of a whole split."""
        return coco.average_precision(self.detections(outputs), targets, self.num_classes)

    def detections(self, outputs: Tensor) -> Tensor:
        """Return what is found: ``[M, 7]`` image, corners in pixels, score, class; by image and falling score."""
        parts = []
        for start in range(0, len(outputs), IMAGES):
            found = self._detect(outputs[start : start + IMAGES].float())
            found[:, 0] += start
            parts.append(found)
        return torch.cat(parts) if parts else torch.zeros(0, 7)

    def _detect(self, outputs: Tensor) -> Tensor:
        logits, offsets = outputs.split([self.num_classes, 4], -1)
        count = min(CANDIDATES, logits[0].numel())
        scores, places = logits.sigmoid().flatten(1).topk(count, 1)
        anchor, label = places // self.num_classes, places % self.num_classes
        chosen = anchor[..., None].expand(-1, -1, 4)
        corners = boxes.decode(offsets.gather(1, chosen), self.anchors.to(outputs.device)[anchor])
        corners = corners.clamp(0, self.image_size)
        real = (scores >= LEAST_SCORE) & (boxes.area(corners) > 0)
        # What does not count is of a class of its own, so that it suppresses nothing.
        keep = boxes.suppress(corners, torch.where(real, label, NOTHING), NMS) & real
        keep &= keep.cumsum(1) <= KEPT
        image = torch.arange(len(outputs), device=outputs.device)[:, None].expand_as(scores)
        rows = [image[..., None], corners, scores[..., None], label[..., None]]
        return torch.cat([row.to(torch.float64) for row in rows], -1)[keep]


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return ``-alpha_t (1 - p_t)^gamma log(p_t)`` for each logit (Eq. 5), the shape of both arguments.

    Args:
        logits: of independent sigmoids.
        targets: 0 or 1.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    missing = torch.where(targets > 0, 1 - p, p)  # 1 - p_t
    weight = torch.where(targets > 0, torch.full_like(p, alpha), torch.full_like(p, 1 - alpha))
    return weight * missing**gamma * entropy


def assign(anchors: Tensor, targets: Tensor) -> Tensor:
    """Return for each anchor the number of its object, ``NOTHING`` or ``IGNORED``, ``[N, A]``.

    An anchor takes the object that it overlaps most, by ``FOREGROUND`` or more; below ``BACKGROUND`` it is background.

    Args:
        anchors: ``[A, 4]``.
        targets: ``[N, B, 5]``.
    """
    shared = boxes.overlap(anchors.expand(len(targets), -1, -1), targets[..., 1:])
    shared = shared.masked_fill(targets[:, None, :, 0] < 0, -1.0)
    best, number = shared.max(2)
    number = torch.where(best >= FOREGROUND, number, torch.where(best < BACKGROUND, NOTHING, IGNORED))
    # Departs from Sec. 4, as Detectron and torchvision do: an object also gets the anchors that overlap it most.
    most = shared.amax(1, keepdim=True)
    forced, own = ((shared == most) & (most > 0)).max(2)
    return torch.where(forced, own, number)
