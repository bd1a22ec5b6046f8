"""QuantNAS (Gao et al., CVPR Workshops 2024) on a CPU: which of its claims hold in small?

    python benchmarks/reproduce/quantnas.py --data CIFAR10 --work FOLDER [--seeds 0,1,2] [--quick]

Space mbv3 (small, ReLU, no squeeze-excite: Sec. 5.1) at resolutions 12, 16 and 20, 10,000 training images of CIFAR-10;
5,000 more to select on, the data set's own test split to report on. From one float supernet a seed, fully quantized
supernets with batch normalisation folded before quantization, 2,028 steps each:

- ``shared-8``, ``shared-4``: LSQ, one scale a layer for all subnets, folding batch statistics (Sec. 4.1);
- ``predicted-8``, ``predicted-4``: the scale predictor (Sec. 4.2), likewise;
- ``moving-8``: as ``shared-8``, folding moving statistics (Fig. 8).

Then: how the statistics of subnets differ (Fig. 4, 5), how far their best scales are apart (Sec. 3.2), how near the
predicted scales are to fine-tuned ones (Fig. 10), whether accuracies rank subnets as those with fitted scales do, and
accuracy-latency fronts measured on this machine. ``quantnas_latency.py`` times MobileNetV2 in float, with convolutions
alone quantized, and fully quantized.

Every part stops and goes on like any run. JSON and tables are written when a seed is done. ``--parts train`` only
trains; ``--quick`` asks whether it runs: one seed, few images, on embedded digits unless ``--data`` is given.
"""

from __future__ import annotations

import argparse
from typing import Any

import quantnas_claims as claims
import quantnas_tables as tables
import shared

from qnas.errors import TrainingDivergedError
from qnas.run import Run

EPOCHS = {"float": 8, "quantized": 13}  # 13 epochs of 156 steps: the 2,000 of Fig. 8
ARMS = {
    "shared-8": ("lsq", "batch", 8),
    "predicted-8": ("scale-predictor", "batch", 8),
    "moving-8": ("lsq", "moving", 8),
    "shared-4": ("lsq", "batch", 4),
    "predicted-4": ("scale-predictor", "batch", 4),
}
PARTS = ("train", "statistics", "scales", "ranks", "fronts")


def settings(args: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """Return the configuration of an arm, or of ``base``, from which all arms go on."""
    images = shared.images(args, search_fraction=1 / 3)  # 1,000 of a class to train on
    epochs = dict.fromkeys(EPOCHS, 1) if args.quick else EPOCHS
    quantizer, folding, bits = ARMS.get(arm, ("lsq", "none", 8))
    if arm == "base":
        start: dict[str, Any] = {}
        stage: dict[str, Any] = {"name": "float", "epochs": epochs["float"], "lr": 6e-3, "quantize": False}
    else:
        start = {"init": str((args.work / f"base-{seed}/stages/00-float/checkpoint.safetensors").absolute())}
        stage = {"name": "quantized", "epochs": epochs["quantized"], "lr": 3e-3}
    resolutions = [12, 16] if args.quick else [12, 16, 20]
    return {
        "seed": seed,
        "threads": 1,
        "data": {**images, "image_size": 16 if args.quick else 20},
        "space": {
            "name": "mbv3",
            "options": {"size": "small", "se": False, "act": "relu", "resolutions": resolutions},
        },
        "quantization": {
            "weight_quantizer": quantizer,
            "act_quantizer": "lsq",
            "w_bits": [bits],
            "a_bits": [bits],
            "folding": folding,
        },
        "train": {"num_subnets": 2 if args.quick else 3, "weight_decay": 1e-5, "stages": [stage], **start},
    }


def trained(args: argparse.Namespace, seed: int, arm: str) -> tuple[Run, str]:
    """Return the run of an arm, trained to the end, or as far as it did not diverge; and how it diverged."""
    path = args.work / f"{arm}-{seed}"
    run = shared.opened(path, lambda: settings(args, seed, arm))
    try:
        run.train()
    except TrainingDivergedError as error:
        return run, str(error)
    return run, ""


def reproduce(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return everything of one seed that is asked for."""
    parts = args.parts.split(",")
    found: dict[str, Any] = {"arms": {}}
    for arm in ("base", *ARMS):
        run, diverged = trained(args, seed, arm)
        with run:
            folder = run.store.path
            at: dict[str, Any] = {"history": run.progress().history, "diverged": diverged}
            finished = not diverged and arm != "base"
            if "statistics" in parts and arm in ("base", "shared-8"):
                make = lambda run=run: claims.statistics(run, args.quick)  # noqa: E731
                at["statistics"] = shared.stored(folder / "statistics.json", make)
            if "scales" in parts and finished and arm != "moving-8":
                make = lambda run=run: claims.scales(run, args.quick)  # noqa: E731
                at["scales"] = shared.stored(folder / "scales.json", make)
            if "ranks" in parts and finished:
                make = lambda run=run: claims.ranks(run, args.quick)  # noqa: E731
                at["ranks"] = shared.stored(folder / "ranks.json", make)
            if "fronts" in parts and finished and arm in ("shared-8", "predicted-8"):
                make = lambda run=run: claims.front(run, args.quick)  # noqa: E731
                at["front"] = shared.stored(folder / "front.json", make)
            found["arms"][arm] = at
    return found


def main() -> None:
    args = shared.parse(__doc__, "quantnas", PARTS)
    seeds = [0] if args.quick else [int(s) for s in args.seeds.split(",")]
    shared.report(seeds, lambda seed: reproduce(args, seed), claims.summary, tables.markdown, args.out)


if __name__ == "__main__":
    main()
