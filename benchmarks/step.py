"""Quantized supernet step over the float step of the same subnets (folding none): at most 1.25.

    python benchmarks/step.py [--threads N] [--quick]

Spaces: mbv3 at 32 pixels (CIFAR's size) with and without float operations, mbv3 as the default job has it (16 pixels),
and a ResNet-20-like net of 3x3 layers at 32 pixels. LSQ, 4 bits, sandwich of 4 with in-place distillation, AdamW, batch
64; float and quantized steps alternate in one process. The C kernel's compile time stands apart; the eager path, which
serves where there is no compiler, is measured after it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from common import arguments, interleave, ratio, write

from qnas.data import Augmentation, PixelGrid, Split, TrainBatches
from qnas.layers import LayerSpec
from qnas.nn.activation import GlobalPool
from qnas.nn.folding import NoFolding
from qnas.nn.subnet import Residual
from qnas.nn.supernet import BuildContext, Supernet, extract
from qnas.plugins import Registry, load_registry
from qnas.space import Knob, QuantScheme, SearchSpace, Site, Value
from qnas.train import Stage, Trainer, TrainSettings

LIMIT = 1.25


class ResidualBlock(torch.nn.Module):
    """Two 3x3 layers and the skip, where shapes allow one."""

    def __init__(self, context: BuildContext, name: str, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = context.conv(f"{name}.a", width_in, width, kernels=(3,), stride=stride, passthrough_bits=8)
        self.second = context.conv(f"{name}.b", width, width, kernels=(3,), input_relu=True, output=True)
        self.skip = width_in == width
        self.add = context.site(f"{name}.add", width, signed=False, relu=True)

    def activate(self, active) -> None:
        pass

    def forward(self, x):
        y = self.second(self.first(x))
        return self.add(y + x if self.skip else y)

    def extract(self):
        body = torch.nn.Sequential(extract(self.first), extract(self.second))
        if self.skip:
            return Residual(body, self.add.extract())
        return torch.nn.Sequential(body, extract(self.add))


class ResNet20Like(SearchSpace):
    """ResNet-20's layers (He et al. 2016) with elastic width; skips only where shapes are equal."""

    def __init__(self, scheme: QuantScheme, size: int = 32) -> None:
        sites: list[Site] = []

        def site(name: str, kind: str, c_in: int, c_out: int, k: int, stride: int, out: int, bits=None) -> None:
            spec = LayerSpec(name, kind, c_in, c_out, k, stride, out_size=out)

            def describe(sample: Mapping[str, Value]) -> LayerSpec | None:
                return spec

            sites.append(Site(name, (), describe, w_bits=bits, a_bits=bits))

        site("stem", "conv", 3, 16, 3, 1, size, 8)
        site("stem.out", "quantize", 16, 16, 1, 1, size, 8)
        self.plan = []
        width = 16
        for stage, out_width in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if stage and not block else 1
                size //= stride
                name = f"stage{stage}.block{block}"
                self.plan.append((name, width, out_width, stride))
                site(f"{name}.a", "conv", width, out_width, 3, stride, size)
                site(f"{name}.b", "conv", out_width, out_width, 3, 1, size)
                site(f"{name}.b.out", "quantize", out_width, out_width, 1, 1, size, 8)
                site(f"{name}.add", "quantize", out_width, out_width, 1, 1, size, 8)
                width = out_width
        site("classifier", "linear", 64, 10, 1, 1, 1, 8)
        site("classifier.out", "quantize", 10, 10, 1, 1, 1, 8)
        super().__init__("resnet20-like", [Knob("unused", (0, 1))], sites, scheme, image_size=32, num_classes=10)

    def build(self, context: BuildContext) -> Supernet:
        parts = [context.conv("stem", 3, 16, kernels=(3,), image=True, output=True, output_relu=True)]
        parts += [ResidualBlock(context, *row) for row in self.plan]
        parts += [GlobalPool(), context.conv("classifier", 64, 10, linear=True, output=True)]
        return Supernet(self, parts)


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
    mbv3 = registry.load("space", "mbv3")
    cases = {
        "resnet20-like, 32 pixels": (ResNet20Like(scheme), 3, 32),
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
