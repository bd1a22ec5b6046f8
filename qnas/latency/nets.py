"""Subnets as ONNX models for timing, from a supernet that is not trained: a latency does not depend on weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qnas import components
from qnas.blocks import blocks_of
from qnas.config import RunConfig
from qnas.data import Augmentation, Data, PixelGrid, Split
from qnas.deploy.onnx_export import BuiltModel, build_model
from qnas.latency.cut import BlockModel, cut
from qnas.nn.supernet import Supernet
from qnas.plugins import Registry
from qnas.rng import generator, integer_seed
from qnas.space import Sample, SearchSpace, Value

START_IMAGES = 8  # random ones, from which quantizers start so that grids are sane


def random_images(image_size: int, num_classes: int, channels: int) -> Data:
    """Return random images as a data set, for a network whose latency alone is asked for."""
    shape = (START_IMAGES, channels, image_size, image_size)
    images = torch.from_numpy(generator(0, "images").integers(0, 256, shape, dtype=np.uint8))
    split = Split(images, torch.arange(START_IMAGES) % num_classes)
    names = tuple(map(str, range(num_classes)))
    return Data("random", names, split, split, split, PixelGrid.of(images), Augmentation())


class LatencyNets:
    """Makes the models that are timed.

    Args:
        registry: of the plugins.
        config: names space and quantizers.
        space: of the subnets, with all its bit-widths.
        data: says how large images are and how pixels become inputs; none of its images is used.
    """

    def __init__(self, registry: Registry, config: RunConfig, space: SearchSpace, data: Data) -> None:
        self.registry = registry
        self.config = config
        self.space = space
        self.data = data
        self.block_of = {site.name: block.name for block in blocks_of(space) for site in block.sites}

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet with new weights and its quantizers started; made when it is first needed."""
        supernet = components.build_supernet(self.registry, self.config, self.space, self.data)
        supernet.activate(self.space.highest())
        size = self.space.resolution(supernet.sample)
        seed = torch.Generator().manual_seed(integer_seed(0, "latency"))
        supernet.set_mode("start")
        with torch.no_grad():
            supernet(torch.randn(START_IMAGES, self.data.channels, size, size, generator=seed))
        supernet.set_mode("quantize")
        return supernet.eval()

    def build(self, sample: Mapping[str, Value]) -> BuiltModel:
        """Return a subnet as an integer model.

        Raises:
            ExportError: a part of it has no integer counterpart.
        """
        with torch.no_grad():
            return build_model(self.supernet.extract(self.quantized(sample)).fold(), {})

    def quantized(self, sample: Mapping[str, Value]) -> Sample:
        """Return a sample with bits that are in float, in the stage it is of, as the highest of the whole space."""
        highest = self.space.highest()
        return {
            knob.label: sample[knob.label] if sample[knob.label] in knob.choices else highest[knob.label]
            for knob in self.space.knobs
        }

    def blocks(self, sample: Mapping[str, Value]) -> dict[str, BlockModel]:
        """Return the models of a subnet's blocks, by name."""
        return cut(self.build(sample), self.block_of)

    def identity(self) -> dict[str, Any]:
        """Return what besides the sample decides the models, JSON-safe."""
        config = self.config.model_dump(mode="json", exclude_none=True)
        quantization = config["quantization"]
        names = ("weight_quantizer", "act_quantizer", "weight_options", "act_options", "folding", "quantize")
        return {
            "name": config["space"]["name"],
            "options": config["space"]["options"],
            "image_size": self.data.image_size,
            "image_channels": self.data.channels,
            "num_classes": self.data.num_classes,
            **{name: quantization[name] for name in names},
        }
