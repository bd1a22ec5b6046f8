"""OQAT (Shen et al., ICCV 2021) on a CPU: which of its claims hold in small?

    python benchmarks/reproduce/oqat.py --data CIFAR10 --work FOLDER [--seeds 0,1,2] [--quick]

Space mbv2 at width 0.25 (a stem of 8 channels), kernels 3 and 5, expansions 3 and 6, 1 or 2 blocks a stage, 24 and 32
pixels, 10,000 training images of CIFAR-10. From one float supernet a seed, three ways to 2 bits at equal MAC-weighted
image passes:

- ``direct``: 2 bits from the float weights;
- ``inherit``: 4, 3, then 2 bits, steps inherited (``s' = 2^d s``);
- ``restart``: 4, 3, then 2 bits, weights inherited, steps started from data anew at each.

Then, on the supernets of ``inherit``: the ranking of 50 architectures in float against that at 4, 3 and 2 bits; a
search at 2 bits against fixed and random nets of equal BitOPs; weights of the supernet against weights trained again.

Every part stops and goes on like any run. JSON and tables are written when a seed is done. ``--parts train`` only
trains; ``--quick`` asks whether it runs: one seed, few images, on embedded digits unless ``--data`` is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import oqat_claims as claims
import oqat_tables as tables
import shared

from qnas.rank import draw_distinct
from qnas.run import Run

ARMS = ("direct", "inherit", "restart")
SPACE = {"width": 0.25, "kernels": [3, 5], "expansions": [3, 6], "depths": [1, 2]}
SUBNETS = 8  # random ones, besides the largest and the smallest
EPOCHS = {4: 3, 3: 2, 2: 2}  # of the stages by bits: 7 epochs in all, about 110,000 image passes
PARTS = ("train", "ranks", "searched", "retrained")


def base(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return what all runs share."""
    return {
        "seed": seed,
        "threads": 1,
        "data": shared.images(args, 1250),  # of them 1,000 of a class to train on
        "space": {"name": "mbv2", "options": SPACE},
        "quantization": {
            "w_bits": [2, 3, 4],
            "a_bits": [2, 3, 4],
            "granularity": "network",
            "weight_options": {"sharing": "bits"},
        },
        "train": {"num_subnets": 3, "batch_size": 64},
    }


def stages(arm: str, quick: bool) -> list[dict[str, Any]]:
    """Return the training stages of an arm; equal epochs over all."""
    epochs = dict.fromkeys(EPOCHS, 1) if quick else EPOCHS

    def at(bits: int, epochs: int, **how: bool) -> dict[str, Any]:
        return {"name": f"{bits}-bit", "epochs": epochs, "lr": 3e-3, "w_bits": [bits], "a_bits": [bits], **how}

    if arm == "float":
        return [{"name": "float", "epochs": 2 if quick else 8, "lr": 6e-3, "quantize": False}]
    if arm == "direct":
        return [at(2, sum(epochs.values()))]
    how = {"inherit": True} if arm == "inherit" else {"restart": True}
    return [at(4, epochs[4]), at(3, epochs[3], **how), at(2, epochs[2], **how)]


def trained(args: argparse.Namespace, seed: int, arm: str, init: Path | None) -> Run:
    """Return the run of an arm, trained to the end."""
    path = args.work / f"{arm}-{seed}"

    def settings() -> dict[str, Any]:
        found = base(args, seed)
        start = {} if init is None else {"init": str(init)}
        found["train"] |= {"stages": stages(arm, args.quick), **start}
        return found

    run = shared.opened(path, settings)
    if arm == "restart" and run.stages.latest_checkpoint() is None:
        shared.take_stages(args.work / f"inherit-{seed}", path, 1)  # the 4-bit stage is the same in both, to the byte
    run.train()
    return run


def judged(run: Run, quick: bool) -> dict[str, Any]:
    """Return the test accuracies of the same subnets at 2 bits in every arm."""
    space = run.stages.space()
    samples = [space.highest(), space.lowest(), *draw_distinct(space, 3 if quick else SUBNETS, 0)]
    scores = [run.evaluate(sample, "test").metrics["accuracy"] for sample in samples]
    random = scores[2:]
    return {
        "largest": scores[0],
        "smallest": scores[1],
        "random": sum(random) / len(random),
        "image_passes": run.progress().image_passes,
    }


def reproduce(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return everything of one seed that is asked for."""
    found: dict[str, Any] = {"arms": {}}
    parts = args.parts.split(",")
    with trained(args, seed, "float", None) as plain:
        init = plain.trained_checkpoint().absolute()
        found["float_passes"] = plain.progress().image_passes
        for arm in ARMS:
            with trained(args, seed, arm, init) as run:
                file = run.store.path / "judged.json"
                found["arms"][arm] = shared.stored(file, lambda run=run: judged(run, args.quick))  # type: ignore[misc]
        with trained(args, seed, "inherit", init) as run:
            folder = run.store.path
            found["passes"] = {e["stage"]: e["image_passes"] for e in run.progress().history}  # at each stage's end
            if "ranks" in parts:
                found["ranks"] = shared.stored(folder / "ranks.json", lambda: claims.ranks(plain, run, args.quick))
            if "searched" in parts:
                found["searched"] = shared.stored(folder / "searched.json", lambda: claims.searched(run, args.quick))
            if "retrained" in parts and "searched" in found:
                make = lambda: claims.retrained(run, found["searched"], args.quick)  # noqa: E731
                found["retrained"] = shared.stored(folder / "retrained.json", make)
    return found


def main() -> None:
    args = shared.parse(__doc__, "oqat", PARTS)
    seeds = [0] if args.quick else [int(s) for s in args.seeds.split(",")]
    shared.report(seeds, lambda seed: reproduce(args, seed), claims.summary, tables.markdown, args.out)


if __name__ == "__main__":
    main()
