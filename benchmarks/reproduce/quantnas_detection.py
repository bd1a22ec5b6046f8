"""QuantNAS (Gao et al., CVPRW 2024), Table 3, on a CPU: do scales that are predicted for a subnet help its detector?

    python benchmarks/reproduce/quantnas_detection.py [--data CIFAR10] [--work FOLDER] [--seeds 0,1,2] [--quick]

On the supernets of ``quantnas.py`` (with the same ``--work`` they are not trained again): all layers at 8 bits, folded
with batch statistics; each is searched for the best subnet within half of the largest one's BitOPs:

- ``shared``: one learned scale a layer, whatever the subnet (``shared-8`` there);
- ``predicted``: a scale that is predicted for each subnet (the paper's, ``predicted-8`` there).

Each chosen subnet, as the search left it, becomes the backbone of a RetinaNet on scenes that are composed of the same
images; ``float`` is the architecture that ``shared`` chose with the weights of the float supernet that both started
from. All have the same head, scenes and epochs.

Every part stops and goes on like any run. JSON and tables are written when a seed is done. ``--quick`` asks whether it
runs: one seed, few images and epochs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import quantnas
import shared

from qnas.choice import Choice
from qnas.costs import sample_costs
from qnas.detect import DetectSettings
from qnas.layers import FLOAT_BITS
from qnas.run import Run

EPOCHS = 12
EVALUATIONS = 40
BUDGET = 0.5  # of the largest subnet's BitOPs
SCENES = {"train": 1500, "search": 300, "test": 1000}
PIXELS = 48  # of a scene
ARMS = {"shared": "shared-8", "predicted": "predicted-8"}  # of quantnas.py
NAMES = {"float": "float", "shared": "shared scale", "predicted": "predicted scale"}
METRICS = ("mAP", "mAP50", "mAP75")


def searched(run: Run, quick: bool) -> Choice:
    """Return the subnet that a search within the budget chooses."""
    costs = {"bitops": run.registry.load("cost", "bitops")}
    largest = sample_costs(run.space, costs, run.space.highest())["bitops"]
    within = {"constraints": (f"bitops<={BUDGET * largest:.0f}",), "evaluations": 4 if quick else EVALUATIONS}
    front = run.search(run.config.model_copy(update={"search": run.config.search.model_copy(update=within)}))
    chosen = next(point for point in front["points"] if point["key"] == front["chosen"])
    return Choice(chosen["sample"], front["stage"])


def detector(args: argparse.Namespace, run: Run, choice: Choice) -> dict[str, Any]:
    """Return what a detector on a subnet finds, and the subnet's accuracy."""
    few = {"train": 100, "search": 20, "test": 20}
    made = DetectSettings(
        data_options=few if args.quick else SCENES,
        image_size=32 if args.quick else PIXELS,
        epochs=2 if args.quick else EPOCHS,
        task_options={"width": 8, "depth": 1, "octaves": 1} if args.quick else {},
    )
    result = run.detect(choice, made)
    own = run.evaluate(choice.sample, "test", choice.stage).metrics
    return {
        "key": result["key"],
        "stage": result["stage"],
        "quantizer": run.config.quantization.weight_quantizer,
        "detector": result["id"],
        "settings": asdict(made),
        "metrics": result["metrics"],
        "losses": result["losses"],
        "accuracy": own["accuracy"],
        "bitops": own["bitops"],
    }


def in_float(run: Run, choice: Choice) -> Choice:
    """Return the same architecture with the weights of the float stage."""
    bits = {knob.label for knob in run.space.knobs if knob.role in ("w_bits", "a_bits")}
    return Choice({name: FLOAT_BITS if name in bits else v for name, v in choice.sample.items()}, "float")


def reproduce(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the three detectors of one seed."""
    found: dict[str, Any] = {}
    with quantnas.trained(args, seed, "base")[0] as base:
        for arm, name in ARMS.items():
            with quantnas.trained(args, seed, name)[0] as run:
                file = run.store.path / "detector.json"
                choice = searched(run, args.quick)
                found[arm] = shared.stored(file, lambda run=run, choice=choice: detector(args, run, choice))  # type: ignore[misc]
            if arm == "shared":
                again = in_float(run, choice)
                file = base.store.path / "detector.json"
                found["float"] = shared.stored(file, lambda choice=again: detector(args, base, choice))  # type: ignore[misc]
    return found


def summary(seeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return means over seeds, and differences from the shared scale seed by seed, with 95% intervals."""
    of: dict[str, Any] = {}
    for arm in NAMES:
        values = {m: [s[arm]["metrics"]["test"][m] for s in seeds.values()] for m in METRICS}
        of[arm] = {m: shared.interval(v) for m, v in values.items()}
        base = [s["shared"]["metrics"]["test"]["mAP"] for s in seeds.values()]
        of[arm]["against shared"] = shared.interval(list(np.subtract(values["mAP"], base)))
        of[arm]["accuracy"] = shared.interval([s[arm]["accuracy"] for s in seeds.values()])
    return of


def markdown(value: Mapping[str, Any]) -> str:
    """Return the paper's table."""
    found = value["summary"]
    rows = [
        [
            NAMES[arm],
            *(shared.said(found[arm][m], 1, 100) for m in (*METRICS, "against shared")),
            shared.said(found[arm]["accuracy"], 1, 100),
        ]
        for arm in NAMES
    ]
    header = ["backbone", "mAP", "mAP50", "mAP75", "mAP against shared", "accuracy of the subnet"]
    return f"### Detection, test scenes, {len(value['seeds'])} seeds\n\n{shared.table(header, rows)}\n"


def main() -> None:
    args = shared.parse(__doc__, "quantnas_detection")
    seeds = [0] if args.quick else [int(s) for s in args.seeds.split(",")]
    shared.report(seeds, lambda seed: reproduce(args, seed), summary, markdown, args.out)


if __name__ == "__main__":
    main()
