"""COCO's average precision, by pycocotools, the metric's own implementation."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from typing import Any

import numpy as np
from torch import Tensor

from qnas.errors import PluginError

PACKAGE = "pycocotools"
METRICS = {"mAP": 0, "mAP50": 1, "mAP75": 2}  # positions in COCOeval.stats


def require() -> None:
    """Raise ``PluginError`` where the package is missing, before anything is trained."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise PluginError(
            f"Task detection measures average precision by the package {PACKAGE}, which is not installed. Install it: "
            "pip install 'qnas[detection]'."
        )


def average_precision(detections: Tensor, targets: Tensor, num_classes: int) -> dict[str, float]:
    """Return mean average precision over IoU 0.5 to 0.95, at 0.5 and at 0.75, as fractions.

    Args:
        detections: ``[M, 7]``: number of the image, corners ``x1, y1, x2, y2``, score, class.
        targets: ``[N, B, 5]``: class (-1 where there is no object) and corners.
        num_classes: of objects; the mean is over those that the targets hold.
    """
    require()
    objects = [
        {"image_id": i, "category_id": int(box[0]), "bbox": [*box[1:3], box[3] - box[1], box[4] - box[2]]}
        for i, boxes in enumerate(targets.double().tolist())
        for box in boxes
        if box[0] >= 0
    ]
    for number, entry in enumerate(objects, 1):  # from 1: the package takes 0 for no match
        entry |= {"id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
    if not objects or not len(detections):
        return dict.fromkeys(METRICS, 0.0)
    found = detections.double().numpy().copy()
    found[:, 3:5] -= found[:, 1:3]  # corners to width and height
    stats = _evaluate(objects, found, len(targets), num_classes)
    return {name: max(0.0, float(stats[position])) for name, position in METRICS.items()}


def _evaluate(objects: list[dict[str, Any]], found: np.ndarray, num_images: int, num_classes: int) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(num_images)],
            "categories": [{"id": i} for i in range(num_classes)],
            "annotations": objects,
        }
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats: np.ndarray = judge.stats
    return stats
