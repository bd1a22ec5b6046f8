"""Quantized supernet step over the float step of the same subnets (folding none): at most 1.25.

    python benchmarks/step.py [--threads N] [--quick]

Spaces: mbv3 at 32 pixels (CIFAR's size) with and without float operations, mbv3 as the default job has it (16 pixels),
and ResNet-20 at 32 pixels. LSQ, 4 bits, sandwich of 4 with in-place distillation, AdamW, batch
64; float and quantized steps alternate in one process. The C kernel's compile time stands apart; the eager path, which
serves where there is no compiler, is measured after it.
"""

from __future__ import annotations

import time

import torch
from common import arguments, interleave, ratio, write

from qnas.data import Augmentation, PixelGrid, Split, TrainBatches
from qnas.nn.folding import NoFolding
from qnas.nn.supernet import BuildContext
from qnas.plugins import Registry, load_registry
from qnas.space import QuantScheme, SearchSpace
from qnas.train import Stage, Trainer, TrainSettings

LIMIT = 1.25


def trainer(registry: Registry, space: SearchSpace, channels: int, size: int, batch: int, compiled: bool) -> Trainer:
    lsq = registry.load("quantizer", "lsq")
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * batch, channels, size, size), generator=rng).to(torch.uint8)
    labels = torch.randint(0, 10, (4 * batch,), generator=rng)
    pixels = PixelGrid.of(images)
    torch.manual_seed(0)
    supernet = space.build(BuildContext(space, lsq, lsq, pixels.affine(), NoFolding(), compiled))
    supernet.to(memory_format=torch.channels_last)
    found = Trainer(
        supernet,
        TrainBatches(Split(images, labels), pixels, Augmentation(), batch, 0),
        registry.load("sampler", "sandwich")(),
        registry.load("supervision", "inplace-distillation")(registry.load("task", "classification")()),
        (Stage("quantized", 1, 1e-3, True),),
        TrainSettings(),
    )
    found._enter_stage()
    return found


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(args.threads)
    registry = load_registry()
    scheme = QuantScheme((4,), (4,))
    mbv3, resnet20 = registry.load("space", "mbv3"), registry.load("space", "resnet20")
    cases = {
        "resnet20, 32 pixels": (resnet20(scheme, image_size=32, num_classes=10, elastic=False), 3, 32),
        "mbv3 relu, 32 pixels": (mbv3(scheme, image_size=32, num_classes=10, se=False, act="relu"), 3, 32),
        "mbv3, 32 pixels": (mbv3(scheme, image_size=32, num_classes=10), 3, 32),
        "mbv3, 16 pixels (the default job)": (mbv3(scheme, image_size=16, num_classes=10, image_channels=1), 1, 16),
    }
    start = time.perf_counter()
    compiles = registry.load("quantizer", "lsq").can_compile()
    seconds = time.perf_counter() - start
    result: dict[str, dict[str, object]] = {}
    for kernel in ["compiled", "eager"] if compiles else ["eager"]:
        result[kernel] = {}
        for name, (space, channels, size) in cases.items():
            run = trainer(registry, space, channels, size, 64, kernel == "compiled")
            images, labels = next(iter(run.batches.epoch(0)))

            def step(mode: str, run=run, images=images, labels=labels) -> None:
                run.supernet.set_mode(mode)
                run.step(images, labels, 0, 0, 1e-4)

            functions = {"quantized": lambda: step("quantize"), "float": lambda: step("float")}
            result[kernel][name] = ratio(interleave(functions, 3 if args.quick else 25), "quantized", "float")
    found = {"threads": args.threads, "limit": LIMIT, "compile_seconds": round(seconds, 2), "cases": result}
    write("step", found, args.out)


if __name__ == "__main__":
    main()
