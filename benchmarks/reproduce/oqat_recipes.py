"""The three ways of OQAT's Fig. 2 (Shen et al., ICCV 2021) side by side: search, then quantize; quantized search, then
retrain; one quantized supernet whose subnets are deployed as they are.

    python benchmarks/reproduce/oqat_recipes.py --data CIFAR10 --work FOLDER [--seeds 0,1,2] [--device cuda]

Each is its recipe, run by ``qnas run`` and compared by ``qnas compare``, which states the image passes that each took.
Their epochs are the recipes' own; ``--epochs-factor 5`` multiplies all of them, for data larger than digits. Runs that
were stopped go on. ``--quick`` asks whether it runs: one epoch a stage, on embedded digits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

from qnas.config import read_settings
from qnas.files import write_json, write_text
from qnas.plugins import load_registry

RECIPES = ("nas-then-quantize", "search-then-retrain", "oqat")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a name or a path; embedded digits without it")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce-oqat-recipes"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--epochs-factor", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one epoch a stage, few evaluations: does it run?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "oqat_recipes.json")
    return parser.parse_args()


def settings(recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return a recipe's small form with its epochs multiplied."""
    found, _ = read_settings(Path(str(load_registry().load("recipe", recipe))))
    stages = [*found["train"]["stages"], *found.get("retrain", {}).get("stages", [])]
    for stage in stages:
        stage["epochs"] = 1 if args.quick else args.epochs_factor * stage["epochs"]
    found["search"]["evaluations"] = 2 if args.quick else args.evaluations
    if args.quick:
        found["space"]["options"] = {"depths": [1], "kernels": [3], "se": False, "act": "relu"}
        found["train"]["num_subnets"] = 2
        found["data"] = {"search_fraction": 0.4, "test_fraction": 0.4}
    return found


def run(recipe: str, seed: int, args: argparse.Namespace) -> Path:
    """Run one recipe to its end, or go on with it."""
    out = args.work / f"{recipe}-{seed}"
    command = [sys.executable, "-m", "qnas", "run", "-q"]
    if (out / "config.toml").is_file():
        command += ["--resume", str(out)]
    else:
        file = args.work / f"{recipe}-{seed}.toml"
        write_text(file, tomli_w.dumps(settings(recipe, args)))
        command += ["--config-file", str(file), "--seed", str(seed), "--device", args.device, "--out", str(out)]
        command += ["--data", args.data] if args.data else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def main() -> None:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    seeds = [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
    runs = [run(recipe, seed, args) for seed in seeds for recipe in RECIPES]
    folder = args.work / "compare"
    subprocess.run([sys.executable, "-m", "qnas", "compare", *map(str, runs), "--out", str(folder)], check=True)
    write_json(args.out, json.loads((folder / "compare.json").read_text()))


if __name__ == "__main__":
    main()
