"""Figure 3 of MultiQuant (Xu et al., IJCAI 2022): what Monte Carlo sampling does for average bit-widths.

    python benchmarks/reproduce/multiquant_sampling.py [--quick] [--out FILE]

On ResNet-20 for small images (width 0.5, 16 pixels) and ResNet-18 for ImageNet, bits 2 to 8 layer by layer, first and
last layer left out. No network is built or trained: only bit-widths are drawn. For every weighting of layers, which the
paper leaves open:

- the averages in a data set of 5,000 subnets, uniform against Monte Carlo, whose targets are spread evenly;
- draws for one subnet within the tolerance of a target, 2.5 to 7.5: uniform ones as counted, up to a cap, and as
  computed exactly; Monte Carlo ones as counted; for weights alone and for weights and activations together.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from qnas.averages import WEIGHTINGS, AverageBits
from qnas.costs import CostTable
from qnas.distribution import Window, expected_draws
from qnas.files import write_json, write_text
from qnas.monte_carlo import MonteCarlo
from qnas.plugins import load_registry
from qnas.rng import generator
from qnas.space import BIT_ROLES, QuantScheme, SearchSpace

BITS = tuple(range(2, 9))
TARGETS = tuple(np.arange(2.5, 7.75, 0.5).tolist())
EDGES = np.arange(2.0, 8.25, 0.5)  # of the histogram
SAMPLES = 5000  # of a data set for a predictor, as in the paper
TRIALS = 20
CAP = 10_000  # uniform draws after which a trial is given up
CHUNK = 5000
ROLES = {"weights": ("w_bits",), "weights and activations": BIT_ROLES}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=0.25, help="of averages, in bits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few samples and trials: does it run?")
    parser.add_argument("--work", type=Path, help="not used: nothing is trained")
    default = Path(__file__).parents[1] / "results" / "multiquant_sampling.json"
    parser.add_argument("--out", type=Path, default=default)
    return parser.parse_args()


def spaces() -> dict[str, SearchSpace]:
    """Return the two networks, with nothing but bit-widths to choose."""
    registry, scheme = load_registry(), QuantScheme(BITS, BITS, "layer")
    small = registry.load("space", "resnet20")(scheme, image_size=16, num_classes=10, elastic=False, width=0.5)
    large = registry.load("space", "resnet18")(scheme, image_size=224, num_classes=1000, elastic=False)
    return {"resnet20, width 0.5, 16 pixels": small, "resnet18, ImageNet": large}


def averages(space: SearchSpace, samples: list[dict[str, Any]], weighting: str) -> dict[str, list[int]]:
    """Return a histogram of the average bits of weights and of activations."""
    table = CostTable(space, {role: AverageBits(role, weighting) for role in BIT_ROLES})
    found = table.costs(space.indices(samples))
    return {role: np.histogram(found[role], bins=EDGES)[0].tolist() for role in BIT_ROLES}


def datasets(space: SearchSpace, weighting: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the histograms of a uniform and of a spread data set."""
    n = 200 if args.quick else SAMPLES
    sampler = load_registry().load("sampler", "monte-carlo")(weighting=weighting, tolerance=args.tolerance)
    rng = generator(args.seed, "multiquant-sampling")
    uniform = [space.sample(row) for row in space.draw(rng, n)]
    return {
        "uniform": averages(space, uniform, weighting),
        "monte_carlo": averages(space, sampler.draw(space, rng, n), weighting),
    }


def uniform_draws(table: CostTable, windows: Mapping[str, Window], rng: np.random.Generator, cap: int) -> int | None:
    """Return how many uniform draws it took to meet the windows; ``None`` if ``cap`` were not enough."""
    for start in range(0, cap, CHUNK):
        costs = table.costs(table.space.draw(rng, min(CHUNK, cap - start)), list(windows))
        met = np.logical_and.reduce([window.holds(costs[name]) for name, window in windows.items()])
        if met.any():
            return start + int(met.argmax()) + 1
    return None


def draws(space: SearchSpace, weighting: str, roles: tuple[str, ...], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for each target how many draws one subnet takes."""
    table = CostTable(space, {role: AverageBits(role, weighting) for role in roles})
    source = MonteCarlo(table, roles)
    trials, cap = (3, 2000) if args.quick else (TRIALS, CAP)
    rows = []
    for target in TARGETS:
        windows = dict.fromkeys(roles, Window.around(target, args.tolerance))
        rng = generator(args.seed, "multiquant-draws", round(100 * target), len(roles))
        counted = [uniform_draws(table, windows, rng, cap) for _ in range(trials)]
        met = [count for count in counted if count is not None]
        found = source.draw(rng, [windows] * (100 * trials))
        rows.append(
            {
                "target": target,
                "exact": expected_draws(table, windows),
                "uniform": float(np.mean(met)) if len(met) == trials else None,
                "uniform_capped": trials - len(met),
                "monte_carlo": float(found.draws.mean()),
                "monte_carlo_met": float(found.met.mean()),
            }
        )
    return rows


def markdown(value: Mapping[str, Any]) -> str:
    """Return the tables."""
    lines = ["# Draws for average bit-widths", "", _settings(value), ""]
    for space, weightings in value["spaces"].items():
        for weighting, found in weightings.items():
            said = f"{space}, averages by {weighting}, within {value['tolerance']} bits"
            lines += [f"## {said}", "", f"Subnets of a data set of {value['samples']:,} by average bits.", ""]
            edges = [f"{low:g}-{high:g}" for low, high in pairwise(EDGES)]
            lines += [f"| | {' | '.join(edges)} |", "|---|" + "---:|" * len(edges)]
            for kind, histograms in found["datasets"].items():
                for role, counts in histograms.items():
                    lines.append(f"| {kind}, {role} | {' | '.join(f'{count:,}' for count in counts)} |")
            for roles, rows in found["draws"].items():
                lines += ["", f"Mean draws for one subnet, {roles}.", ""]
                lines += [
                    "| target | uniform, exact | uniform, counted | Monte Carlo, counted |",
                    "|---:|---:|---:|---:|",
                ]
                for row in rows:
                    missed = f"{row['uniform_capped']} of {value['trials']} trials took more than {value['cap']:,}"
                    counted = missed if row["uniform"] is None else f"{row['uniform']:,.1f}"
                    lines.append(f"| {row['target']:g} | {row['exact']:,.1f} | {counted} | {row['monte_carlo']:.1f} |")
            lines.append("")
    return "\n".join(lines)


def _settings(value: Mapping[str, Any]) -> str:
    return (
        f"Bits {BITS[0]} to {BITS[-1]} of every layer but the first and the last. A subnet meets a target within "
        f"{value['tolerance']} bits. Uniform: {value['trials']} trials a target, each given up after {value['cap']:,} "
        f"draws; Monte Carlo: {100 * value['trials']:,} subnets a target. Seed {value['seed']}."
    )


def main() -> None:
    args = parse()
    trials, cap = (3, 2000) if args.quick else (TRIALS, CAP)
    value: dict[str, Any] = {
        "benchmark": "multiquant_sampling",
        "tolerance": args.tolerance,
        "seed": args.seed,
        "samples": 200 if args.quick else SAMPLES,
        "trials": trials,
        "cap": cap,
        "edges": EDGES.tolist(),
        "spaces": {},
    }
    for name, space in spaces().items():
        for weighting in WEIGHTINGS:
            value["spaces"].setdefault(name, {})[weighting] = {
                "datasets": datasets(space, weighting, args),
                "draws": {said: draws(space, weighting, roles, args) for said, roles in ROLES.items()},
            }
            print(f"{name}, averages by {weighting}, within {args.tolerance} bits: done", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, value)
    write_text(args.out.with_suffix(".md"), markdown(value))
    print(f"Written: {args.out} and {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
