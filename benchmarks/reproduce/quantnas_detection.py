"""QuantNAS (Gao et al., CVPRW 2024), Table 3, on a CPU: do scales that are predicted for a subnet help its detector?

    python benchmarks/reproduce/quantnas_detection.py [--data CIFAR10] [--work FOLDER] [--seeds 0,1,2] [--quick]

A supernet (mbv3 without squeeze-excite, ReLU) is trained in float, then with all layers at 8 bits, one scale a tensor,
folded with batch statistics, and searched for the best subnet within half of the largest one's BitOPs:

- ``shared``: one learned scale a layer, whatever the subnet (BatchQuant's way);
- ``predicted``: a scale that is predicted for each subnet (the paper's).

Each chosen subnet, as the search left it, becomes the backbone of a RetinaNet on scenes that are composed of the same
images; ``float`` is the architecture that ``shared`` chose with the weights of its supernet's float stage. All have the
same head, scenes and epochs.

Every part stops and goes on like any run. JSON and tables are written when a seed is done. ``--quick`` asks whether it
runs: one seed, few images and epochs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import shared

from qnas.choice import Choice, find
from qnas.costs import sample_costs
from qnas.detect import DetectSettings
from qnas.layers import FLOAT_BITS
from qnas.run import Run

BITS = 8
EPOCHS = {"float": 8, "quantized": 13, "detector": 15}
EVALUATIONS = 60
BUDGET = 0.5  # of the largest subnet's BitOPs
SCENES = {"train": 2000, "search": 500, "test": 1000}
ARMS = {"shared": "lsq", "predicted": "scale-predictor"}  # quantizers of the weights
NAMES = {"float": "float", "shared": "shared scale", "predicted": "predicted scale"}
METRICS = ("mAP", "mAP50", "mAP75")


def settings(args: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """Return the configuration of an arm."""
    quick = {"depths": (1,), "kernels": (3, 5), "expansions": (3, 4)} if args.quick else {}
    names = ("float", "quantized")
    stages = [
        {"name": name, "epochs": 1 if args.quick else EPOCHS[name], "lr": 6e-3, "quantize": name != "float"}
        for name in names
    ]
    return {
        "seed": seed,
        "threads": 1,
        "data": shared.images(args, image_size=24),
        "space": {"name": "mbv3", "options": {"se": False, "act": "relu", **quick}},
        "quantization": {
            "act_quantizer": "lsq",
            "w_bits": [BITS],
            "a_bits": [BITS],
            "folding": "batch",
            "weight_quantizer": ARMS[arm],
        },
        "train": {"stages": stages, "batch_size": 256 if args.quick else 64},
        "search": {"evaluations": 4 if args.quick else EVALUATIONS},
    }


def searched(args: argparse.Namespace, seed: int, arm: str) -> Run:
    """Return the run of an arm, trained and searched within the budget."""
    run = shared.opened(args.work / f"{arm}-{seed}", lambda: settings(args, seed, arm))
    run.train()
    if not run.fronts():
        largest = sample_costs(run.space, {"bitops": run.registry.load("cost", "bitops")}, run.space.highest())[
            "bitops"
        ]
        within = run.config.search.model_copy(update={"constraints": (f"bitops<={BUDGET * largest:.0f}",)})
        run.search(run.config.model_copy(update={"search": within}))
    return run


def detector(args: argparse.Namespace, run: Run, choice: Choice) -> dict[str, Any]:
    """Return what a detector on a subnet finds, and the subnet's accuracy."""
    few = {"train": 100, "search": 20, "test": 20}
    made = DetectSettings(
        data_options=few if args.quick else SCENES,
        image_size=32 if args.quick else 64,
        epochs=2 if args.quick else EPOCHS["detector"],
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
    for arm in ARMS:
        with searched(args, seed, arm) as run:
            choice = find(run, None)
            folder = run.store.path
            if arm == "shared":
                found["float"] = shared.stored(
                    folder / "float.json", lambda run=run, choice=choice: detector(args, run, in_float(run, choice))
                )  # type: ignore[misc]
            found[arm] = shared.stored(
                folder / "detector.json", lambda run=run, choice=choice: detector(args, run, choice)
            )  # type: ignore[misc]
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
