"""BASQ (Kim et al., ECCV 2022) on a CPU: which of its claims hold in small?

    python benchmarks/reproduce/basq.py --data CIFAR10 --work FOLDER [--seeds 0,1,2] [--arms basq,equal,...] [--quick]

2 bits for weights and activations, CIFAR-10 at 16 pixels; 10,000 images to train, 2,500 to select on, the data set's
own test split to report on. From scratch, first activations quantized, then weights too, one random path a step, Adam
(Sec. 6); LSQ for weights, one ternary scale an output channel, skips and sums in float, as in the paper's code.

- ``basq``: space ``basq-mbv2``, the seven lambdas of the paper in front of each depthwise convolution;
- ``equal``: the same with one lambda for all seven branches: what branches alone do;
- ``pact-...``: the same with one branch, that is PACT with a fixed lambda;
- ``lsq``: the same with LSQ there, too (Table 6's question: the same schedule);
- ``no-skips``: ``basq`` without Flexconn (Table 5);
- ``resnet20``: space ``basq-resnet20``, one choice a residual block.

Then: where clip values end up; how far 100 random configurations are apart, with the statistics of training and
recalibrated (Figure 4); what the search finds, selected and reported by folds (Sec. 6) and on the test split; what
finetuning adds (Sec. 4.2).

Every part stops and goes on like any run. JSON and tables are written when a seed is done. ``--quick`` asks whether it
runs: one seed, few images, on embedded digits unless ``--data`` is given.
"""

from __future__ import annotations

import argparse
from typing import Any

import basq_claims as claims
import basq_tables as tables
import shared

from qnas.run import Run

LAMBDAS = [1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5]
FIXED = {"pact-1e-2": 1e-2, "pact-5e-4": 5e-4, "pact-1e-5": 1e-5}
ARMS = ("basq", "equal", *FIXED, "lsq", "no-skips", "resnet20")
PARTS = ("train", "clips", "spread", "search", "finetune")
EPOCHS = 8  # of each phase
FINETUNE_EPOCHS = 3  # as in the paper
LR = 3e-3
CLIP_LR = 20.0  # else a clip value moves a seventh of a unit: each branch is drawn every seventh step
CLIP_START = 6.0


def settings(args: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """Return the configuration of an arm."""
    small = {"depths": [1], "expansions": [2], "kernels": [3], "elastic": True} if args.quick else {}
    if arm == "resnet20":
        space: dict[str, Any] = {"name": "basq-resnet20", "options": {"width": 0.5}}
    else:
        flexconn = {"flexconn": []} if arm == "no-skips" else {}
        space = {"name": "basq-mbv2", "options": {"width": 0.25, **small, **flexconn}}
    lambdas = {"equal": [5e-4] * len(LAMBDAS)} | {name: [value] for name, value in FIXED.items()}
    quantizer = {"act_quantizer": "lsq"} if arm == "lsq" else {"act_quantizer": "basq"}
    options = {} if arm == "lsq" else {"act_options": {"lambdas": lambdas.get(arm, LAMBDAS), "clip_start": CLIP_START}}
    epochs = 1 if args.quick else EPOCHS
    finetuned = {"name": "finetuned", "epochs": 1 if args.quick else FINETUNE_EPOCHS, "lr": 1e-4, "parameters": "norms"}
    return {
        "seed": seed,
        "threads": 1,
        "data": shared.images(args, 1250, image_size=16),
        "space": space,
        "quantization": {
            "w_bits": [2],
            "a_bits": [2],
            "granularity": "network",
            "quantize": "conv-only",
            "weight_options": {"per_channel": True, "narrow_range": True},
            **quantizer,
            **options,
        },
        "train": {
            "sampler": "uniform",
            "num_subnets": 1,
            "supervision": "hard",
            "optimizer": "adam",
            "weight_decay": 5e-6,
            "warmup": 0.0,
            "clip_lr": CLIP_LR,
            "stages": [
                {"name": "activations", "epochs": epochs, "lr": LR, "roles": ["activation"]},
                {"name": "both", "epochs": epochs, "lr": LR},
            ],
        },
        "search": {
            "strategy": "evolution",
            "objectives": ["accuracy"],
            "evaluations": 6 if args.quick else 120,
            "options": {"population": 3 if args.quick else 15, "random_share": 1 / 3, "extremes": False},
        },
        "retrain": {"points": "chosen", "start": "supernet", "stages": [finetuned]},
    }


def trained(args: argparse.Namespace, seed: int, arm: str) -> Run:
    """Return the run of an arm, trained to the end."""
    run = shared.opened(args.work / f"{arm}-{seed}", lambda: settings(args, seed, arm))
    run.train()
    return run


def reproduce(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return everything of one seed that is asked for."""
    parts = args.parts.split(",")
    makers = {
        "clips": claims.clips,
        "spread": claims.spread,
        "search": claims.searched,
        "finetune": claims.finetuned,
    }
    found: dict[str, Any] = {"arms": {}}
    for arm in args.arms.split(","):
        with trained(args, seed, arm) as run:
            at: dict[str, Any] = {"history": run.progress().history}
            for part in parts:
                if part in makers and claims.applies(part, run):
                    at[part] = shared.stored(
                        run.store.path / f"{part}.json", lambda run=run, part=part: makers[part](run, args.quick)
                    )
            found["arms"][arm] = at
    return found


def main() -> None:
    args = shared.parse(__doc__, "basq", PARTS, ARMS)
    seeds = [0] if args.quick else [int(s) for s in args.seeds.split(",")]
    shared.report(seeds, lambda seed: reproduce(args, seed), claims.summary, tables.markdown, args.out)


if __name__ == "__main__":
    main()
