"""Judging a subnet over its floor: at most 1.2.

    python benchmarks/judge.py [--threads N] [--quick]

The floor is measured in the same run, in turns: the same static subnet, already extracted, its batch normalisation
calibrated natively (training mode, ``momentum=None``, channels last, inference mode) on the calibration images, then
folded beforehand and run over the search images (channels last, inference mode). Judging does all of it from the
sample: activate, extract, quantize weights, calibrate, fold, round biases, measure, costs. The float floor is the same
without fake quantization. Cases: mbv3 large at 64 pixels with 2,000 images each (as Once-for-All judges), and the
default job's digits.
"""

from __future__ import annotations

import copy

import torch
from common import arguments, interleave, ratio, write

from qnas.data import Augmentation, Data, PixelGrid, Split
from qnas.evaluate import Evaluator, EvaluatorSettings
from qnas.nn.batchnorm import recalibrate
from qnas.nn.supernet import BuildContext
from qnas.plugins import Registry, load_registry
from qnas.rng import generator
from qnas.space import QuantScheme

LIMIT = 1.2


def evaluator(
    registry: Registry, image_size: int, channels: int, images: int, calibration: int, **options
) -> Evaluator:
    space = registry.load("space", "mbv3")(
        QuantScheme((4,), (4,)), image_size=image_size, num_classes=10, image_channels=channels, **options
    )
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images + calibration, channels, image_size, image_size), generator=rng).to(
        torch.uint8
    )
    labels = torch.randint(0, 10, (len(pixels),), generator=rng)
    train, search = (Split(pixels[s], labels[s]) for s in (slice(0, calibration), slice(calibration, None)))
    grid = PixelGrid.of(train.images)
    data = Data("noise", tuple("0123456789"), train, search, search, grid, Augmentation())
    lsq = registry.load("quantizer", "lsq")
    supernet = space.build(BuildContext(space, lsq, lsq, grid.affine(), compile=True))
    supernet.to(memory_format=torch.channels_last)
    supernet.activate(space.highest())
    supernet.set_mode("start")
    with torch.no_grad():
        supernet(grid.normalise(train.images[:32]))
    supernet.set_mode("quantize")
    costs = {name: registry.load("cost", name) for name in ("macs", "bitops", "size_bytes")}
    settings = EvaluatorSettings(calibration_images=calibration, batch_size=100)
    task, bn = registry.load("task", "classification")(), registry.load("calibrator", "bn")()
    return Evaluator(supernet, data, task, [bn], costs, settings)


def floor(judge: Evaluator, sample, mode: str):
    """Return the calibration and the measurement of a subnet that is already there."""
    judge.supernet.set_mode(mode)
    unfolded = judge.supernet.extract(sample).to(memory_format=torch.channels_last)
    judge.supernet.set_mode("quantize")
    calibration = judge._batches("calibration", judge._calibration, unfolded.resolution)
    images = judge.images("search", unfolded.resolution)
    folded = copy.deepcopy(unfolded)
    recalibrate(folded, calibration)
    folded.fold()

    def run() -> None:
        recalibrate(unfolded, calibration)
        with torch.inference_mode():
            for batch in images:
                folded(batch)

    return run


def main() -> None:
    args = arguments(__doc__ or "")
    torch.set_num_threads(args.threads)
    registry = load_registry()
    images = 200 if args.quick else 2000
    cases = {
        f"mbv3 large, 64 pixels, {images} + {images} images": evaluator(
            registry, 64, 3, images, images, size="large", resolutions=(64,)
        ),
        "mbv3 small, 16 pixels, 359 + 500 images (the default job)": evaluator(
            registry, 16, 1, 359, 500, resolutions=(16,)
        ),
    }
    result = {}
    for name, judge in cases.items():
        sample = judge.supernet.space.sample(judge.supernet.space.draw(generator(0, "judge"), 1)[0])
        functions = {
            "judge": lambda judge=judge, sample=sample: judge.evaluate(sample),
            "floor": floor(judge, sample, "quantize"),
            "float_floor": floor(judge, sample, "float"),
        }
        times = interleave(functions, 3 if args.quick else 5 if "large" in name else 25, warmup=1)
        result[name] = {
            "over_floor": ratio(times, "judge", "floor"),
            "over_float_floor": ratio(times, "judge", "float_floor"),
        }
    write("judge", {"threads": args.threads, "limit": LIMIT, "cases": result}, args.out)


if __name__ == "__main__":
    main()
