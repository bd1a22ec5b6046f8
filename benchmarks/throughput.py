"""Images a second in training, float and quantized, with and without compiled kernels, by number of threads.

    python benchmarks/throughput.py [--data PATH] [--space resnet20] [--threads 1,2] [--device cpu|cuda] [--quick]

The published network (``elastic = false``), one subnet a step with hard labels, LSQ at 4 bits, batch 64, AdamW,
augmentation included; steps of all cases take turns in one process, wall time. Without ``--data`` the images are noise
of CIFAR-10's shape. On a GPU the peak memory of each case stands beside its rate.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from common import write

from qnas import components
from qnas.config import load_config
from qnas.data import Augmentation, Data, PixelGrid, Split
from qnas.plugins import Registry, load_registry
from qnas.processes import Processes
from qnas.train import Trainer

CASES = {
    "float": {"quantize": False, "compile": False},
    "quantized, eager": {"quantize": True, "compile": False},
    "quantized, compiled": {"quantize": True, "compile": True},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="images of 32 pixels, such as CIFAR-10's parquet folder")
    parser.add_argument("--space", default="resnet20")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16-mixed"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a few rounds: does it run?")
    parser.add_argument("--out", type=Path, help="JSON file; benchmarks/results/throughput.json by default")
    return parser.parse_args()


def settings(args: argparse.Namespace, case: dict[str, bool]):
    stage = {"name": "only", "epochs": 10**6, "lr": 1e-3, "quantize": case["quantize"]}
    data = {"name": "files", "options": {"path": str(args.data.absolute())}} if args.data else {}
    return load_config(
        {
            "compile": case["compile"],
            "data": data,
            "space": {"name": args.space, "options": {"elastic": False}},
            "quantization": {"w_bits": [4], "a_bits": [4], "granularity": "network"},
            "train": {"num_subnets": 1, "supervision": "hard", "batch_size": args.batch_size, "stages": [stage]},
        }
    )


def noise() -> Data:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4096, 3, 32, 32), generator=rng).to(torch.uint8)
    split = Split(images, torch.randint(0, 10, (len(images),), generator=rng))
    return Data("noise", tuple("0123456789"), split, split, split, PixelGrid.of(images), Augmentation(flip=True))


def trainer(registry: Registry, config, data: Data, args: argparse.Namespace) -> Trainer:
    space = components.build_space(registry, config, data)
    supernet = components.build_supernet(registry, config, space, data)
    processes = Processes(args.device, args.precision)
    return components.build_trainer(registry, config, supernet, data, None, processes)


def timed(trained: Trainer, batch, number: int, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    images, labels = next(batch)
    trained.step(images, labels, 0, number, 1e-3)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    args = parse()
    rounds = 2 if args.quick else args.rounds
    registry = load_registry()
    configs = {name: settings(args, case) for name, case in CASES.items()}
    data = components.load_data(registry, next(iter(configs.values()))) if args.data else noise()
    trainers = {name: trainer(registry, config, data, args) for name, config in configs.items()}
    for one in trainers.values():
        one._enter_stage()
        one.supernet.train()
        one._looks_inside = lambda step: False  # once an epoch, in a real run
    batches = {name: iter(one.batches.epoch(0)) for name, one in trainers.items()}
    found: dict[str, dict[str, float]] = {}
    numbers = itertools.count()
    for threads in (int(n) for n in args.threads.split(",")):
        torch.set_num_threads(threads)
        times: dict[str, list[float]] = {name: [] for name in trainers}
        memory: dict[str, float] = {}
        for turn in range(rounds + 2):
            for name, one in trainers.items():
                if args.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds = timed(one, batches[name], next(numbers), args.device)
                if turn >= 2:
                    times[name].append(seconds)
                if args.device == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated() / 2**20
        rates = {name: args.batch_size / statistics.median(all_) for name, all_ in times.items()}
        over = {
            f"{name} over float": statistics.median(a / b for a, b in zip(times[name], times["float"], strict=True))
            for name in list(times)[1:]
        }
        found[f"{threads} threads"] = {f"{n}, images/s": round(r, 1) for n, r in rates.items()}
        found[f"{threads} threads"] |= {n: round(r, 3) for n, r in over.items()}
        found[f"{threads} threads"] |= {f"{n}, peak MiB": round(m, 1) for n, m in memory.items()}
    what = {"space": args.space, "batch_size": args.batch_size, "data": data.name, "rounds": rounds}
    write("throughput", {**what, "device": args.device, "precision": args.precision, "threads": found}, args.out)


if __name__ == "__main__":
    main()
