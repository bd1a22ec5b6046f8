"""MultiQuant (Xu et al., IJCAI 2022) on a CPU: which of its claims hold in small?

    python benchmarks/reproduce/multiquant.py --data CIFAR10 --work FOLDER [--seeds 0,1,2] [--quick]

Space resnet20 at width 8 (half the published one), 16 pixels, 10,000 training images of CIFAR-10; 5,000 more to select
on, the data set's own test split to report on. From one float network a seed, quantized after training by LAPQ
(``ptq``):

- ``qat-2``, ``qat-4``, ``qat-8``: quantization-aware training at one bit-width in all layers;
- ``hard``, ``smooth``, ``adaptive``: one supernet at 2 to 8 bits, by lowest, two random and highest bit-widths a step,
  on hard labels, smoothed labels, and the online adaptive label;
- ``anyprecision``, ``robustquant``: the paper's rivals that train one net for all bit-widths.

Then the losses and gradients of each bit-width (the "vicious competition"), the predictor of accuracy, and mixed
precision against one bit-width in all layers. How often samples meet an average bit-width is
``multiquant_sampling.py``.

Every part stops and goes on like any run. JSON and tables are written when a seed is done. ``--parts train`` only
trains; ``--quick`` asks whether it runs: one seed, few images, on embedded digits unless ``--data`` is given.
"""

from __future__ import annotations

import argparse
from typing import Any

import multiquant_claims as claims
import multiquant_tables as tables
import shared

from qnas.run import Run

BITS = [2, 3, 4, 5, 6, 7, 8]
EPOCHS = {
    "float": 15,
    "trained": 10,
    "robustquant": 40,
    "anyprecision": 8,
}  # equal image passes of supernets and rivals
SUPERVISIONS = {"hard": "hard", "smooth": "label-smoothing", "adaptive": "adaptive-label"}
QAT = {"qat-2": 2, "qat-4": 4, "qat-8": 8}
RIVALS = ("anyprecision", "robustquant")
ARMS = (*QAT, *SUPERVISIONS, *RIVALS)
SHARED_STAGES = {"anyprecision": 0, "robustquant": 1}  # of the base's two; the others take both
PARTS = ("train", "uniform", "competition", "mixed")


def settings(args: argparse.Namespace, seed: int, arm: str) -> dict[str, Any]:
    """Return the configuration of an arm, or of ``base``, from which all arms go on."""
    epochs = dict.fromkeys(EPOCHS, 1) if args.quick else EPOCHS
    bits = [2, 4, 8] if args.quick else BITS
    base = {"name": "float", "epochs": epochs["float"], "lr": 6e-3, "quantize": False}
    ptq = {"name": "ptq", "epochs": 0, "lr": 3e-3, "calibrator": "lapq"}
    stages = {
        "base": [base, ptq],
        "anyprecision": [{"name": "trained", "epochs": epochs["anyprecision"], "lr": 6e-3}],
        "robustquant": [base, at("robust", epochs["robustquant"], 8), {**ptq, "name": "trained"}],
        **{name: [base, ptq, at("trained", epochs["trained"], one)] for name, one in QAT.items()},
    }.get(arm, [base, ptq, at("trained", epochs["trained"])])
    quantizer = {"anyprecision": "dorefa", "robustquant": "robustquant"}.get(arm, "multiquant")
    every = arm == "anyprecision"
    supervision = "recursive-distillation" if every else SUPERVISIONS.get(arm, "hard")
    return {
        "seed": seed,
        "threads": 1,
        "data": shared.images(args, search_fraction=1 / 3, image_size=16),  # 1,000 of a class to train on
        "space": {"name": "resnet20", "options": {"elastic": False, "width": 0.5}},
        "quantization": {
            "weight_quantizer": quantizer,
            "act_quantizer": quantizer,
            "w_bits": bits,
            "a_bits": bits,
            "granularity": "network" if every else "layer",
            "bn": "w_bits" if every else "shared",
        },
        "train": {
            "sampler": "every-bits" if every else "lrh",
            "num_subnets": len(bits) if every else 4 if arm in SUPERVISIONS else 1,
            "supervision": supervision,
            "batch_size": 128,
            "weight_decay": 0.0,
            "calibrator_options": {"rounds": 0 if args.quick else 1},
            "stages": stages,
        },
    }


def at(name: str, epochs: int, bits: int | None = None) -> dict[str, Any]:
    """Return a stage that trains at one bit-width, or at all."""
    one = {} if bits is None else {"w_bits": [bits], "a_bits": [bits]}
    return {"name": name, "epochs": epochs, "lr": 3e-3, **one}


def trained(args: argparse.Namespace, seed: int, arm: str) -> Run:
    """Return the run of an arm, trained to the end."""
    path = args.work / f"{arm}-{seed}"
    run = shared.opened(path, lambda: settings(args, seed, arm))
    if arm != "base" and run.stages.latest_checkpoint() is None:
        shared.take_stages(args.work / f"base-{seed}", path, SHARED_STAGES.get(arm, 2))
    run.train()
    return run


def reproduce(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return everything of one seed that is asked for."""
    found: dict[str, Any] = {"arms": {}}
    parts = args.parts.split(",")
    for arm in ("base", *args.arms.split(",")):
        with trained(args, seed, arm) as run:
            folder = run.store.path
            at = {"passes": run.progress().image_passes}
            if "uniform" in parts:
                only = QAT.get(arm)
                at["uniform"] = shared.stored(
                    folder / "uniform.json", lambda run=run, only=only: claims.uniform(run, only)
                )  # type: ignore[misc]
            if "competition" in parts and arm in ("base", *SUPERVISIONS):
                at["competition"] = shared.stored(folder / "competition.json", lambda run=run: claims.competition(run))  # type: ignore[misc]
            if "mixed" in parts and arm == "adaptive":
                found["mixed"] = shared.stored(folder / "mixed.json", lambda run=run: claims.mixed(run, args.quick))  # type: ignore[misc]
            found["arms"][arm] = at
    return found


def main() -> None:
    args = shared.parse(__doc__, "multiquant", PARTS, ARMS)
    seeds = [0] if args.quick else [int(s) for s in args.seeds.split(",")]
    shared.report(seeds, lambda seed: reproduce(args, seed), claims.summary, tables.markdown, args.out)


if __name__ == "__main__":
    main()
