"""Scenes for detection, composed of another data set's images: real objects on a canvas, their boxes known.

Everything is a function of the options. The source's images are split as a run splits them (``split_seed``,
``search_fraction``, ``test_fraction``), and scenes of a split hold images of that split alone, backgrounds included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qnas.data import SPLITS, Augmentation, Data, ImageSet, Split, prepare, resize_uint8
from qnas.errors import ConfigError
from qnas.plugins import load_registry
from qnas.rng import generator

CANVAS = 64  # pixels
TRIES = 20  # places that are drawn for an object until one is free; else the scene has one object fewer
STRETCH = 0.25  # an object's height and width differ by up to a factor of 2^STRETCH either way
BLUR = 4  # pixels that are left of an image before it is enlarged to a background
NOISE = 24.0  # largest standard deviation of a background's noise, in grey levels
LOADED = 256  # source images that are decoded at a time


@dataclass(frozen=True)
class _Plan:
    """What scenes are made of: options that do not depend on the split."""

    canvas: int
    fewest: int
    most: int
    smallest: float
    largest: float
    overlap: float
    seed: int


class Scenes:
    """The data set ``scenes``. Targets are ``[N, most, 5]``: class (-1 where there is no object), corners in pixels."""

    def load(
        self,
        *,
        source: str = "digits",
        source_options: dict[str, Any] | None = None,
        image_size: int | None = None,
        train: int = 2000,
        search: int = 500,
        test: int = 500,
        fewest: int = 1,
        most: int = 4,
        smallest: float = 0.25,
        largest: float = 0.5,
        overlap: float = 0.1,
        seed: int = 0,
        split_seed: int = 0,
        search_fraction: float = 0.2,
        test_fraction: float = 0.2,
    ) -> ImageSet:
        """Return the scenes of all three splits.

        Args:
            source: name of the data set whose images are the objects.
            source_options: of that data set.
            image_size: height and width of a scene, in pixels; 64 by default.
            train, search, test: number of scenes.
            fewest, most: objects in a scene.
            smallest, largest: side of an object, as a share of the scene's.
            overlap: largest share of the smaller of two objects that both cover.
            seed: of the scenes.
            split_seed, search_fraction, test_fraction: how the source's images are split.

        Raises:
            ConfigError: an option is out of range.
            DataError: the source has too few images.
        """
        canvas = CANVAS if image_size is None else image_size
        counts = dict(zip(SPLITS, (train, search, test), strict=True))
        plan = _Plan(canvas, fewest, most, smallest, largest, overlap, seed)
        _check(source, plan, counts)
        images = load_registry().load("dataset", source)().load(**(source_options or {}))
        # As a run's splits: the images are not needed at its size, so they stay as they are where they are square.
        size = images.images.shape[-1]
        data = prepare(images, image_size=size, seed=split_seed, fractions=(search_fraction, test_fraction))
        parts = [_compose(data, name, counts[name], plan) for name in SPLITS]
        ends = np.cumsum([0, *counts.values()])
        return ImageSet(
            name=f"scenes of {images.name}",
            images=torch.cat([scenes for scenes, _ in parts]),
            labels=torch.cat([targets for _, targets in parts]),
            class_names=images.class_names,
            augmentation=Augmentation(),
            image_size=canvas,
            search=torch.arange(ends[1], ends[2]),
            test=torch.arange(ends[2], ends[3]),
        )


def _check(source: str, plan: _Plan, counts: dict[str, int]) -> None:
    if source == "scenes":
        raise ConfigError("Data set scenes cannot be composed of scenes. Give another source in its options.")
    for name, value, fine, allowed in (
        ("image_size", plan.canvas, plan.canvas >= 16, "16 or more"),
        ("fewest", plan.fewest, 1 <= plan.fewest <= plan.most, f"1 to most = {plan.most}"),
        ("smallest", plan.smallest, 0 < plan.smallest <= plan.largest, f"over 0, to largest = {plan.largest}"),
        ("largest", plan.largest, plan.largest <= 0.8, "0.8 at most"),
        ("overlap", plan.overlap, 0 <= plan.overlap < 1, "0 or more, below 1"),
        *((name, count, count >= 2, "2 or more") for name, count in counts.items()),
    ):
        if not fine:
            raise ConfigError(f"Option {name!r} of data set scenes cannot be {value}; give {allowed}.")


def _compose(data: Data, name: str, count: int, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Return the scenes of one split, uint8 ``[count, C, S, S]``, and their targets ``[count, most, 5]``."""
    split = data.split(name)
    drawn = [_draw(len(split), plan, name, number) for number in range(count)]
    used = np.unique(np.concatenate([[d.background, *d.objects] for d in drawn]))
    place = {int(number): i for i, number in enumerate(used)}
    pixels = _load(split, used, max(2 * BLUR, round(plan.canvas * plan.largest * 2 ** (STRETCH / 2))))
    scenes = torch.empty(count, data.channels, plan.canvas, plan.canvas, dtype=torch.uint8)
    targets = torch.zeros(count, plan.most, 5)
    targets[..., 0] = -1
    for scene, target, d in zip(scenes, targets, drawn, strict=True):
        scene.copy_(_background(pixels[place[d.background]], d, plan))
        for slot, (number, (x, y, width, height)) in enumerate(zip(d.objects, d.boxes, strict=True)):
            scene[:, y : y + height, x : x + width] = _resized(pixels[place[number]], height, width)
            box = [float(split.labels[number]), x, y, x + width, y + height]
            target[slot] = torch.tensor(box)
    return scenes, targets


@dataclass(frozen=True)
class _Drawn:
    """One scene's random draws: numbers of source images, boxes ``x, y, width, height``, and what its noise is from."""

    background: int
    objects: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    rng: np.random.Generator


def _draw(num_images: int, plan: _Plan, split: str, number: int) -> _Drawn:
    rng = generator(plan.seed, f"scenes {split}", number)
    background, *chosen = (int(n) for n in rng.integers(0, num_images, 1 + rng.integers(plan.fewest, plan.most + 1)))
    boxes: list[tuple[int, int, int, int]] = []
    for _ in chosen:
        for _ in range(TRIES):
            box = _draw_box(rng, plan)
            if all(_covered(box, other) <= plan.overlap for other in boxes):
                boxes.append(box)
                break
    return _Drawn(background, tuple(chosen[: len(boxes)]), tuple(boxes), rng)


def _draw_box(rng: np.random.Generator, plan: _Plan) -> tuple[int, int, int, int]:
    side = plan.canvas * rng.uniform(plan.smallest, plan.largest)
    stretch = 2 ** (rng.uniform(-STRETCH, STRETCH) / 2)
    width, height = (max(2, min(plan.canvas, round(s))) for s in (side * stretch, side / stretch))
    x, y = (int(rng.integers(0, plan.canvas - extent + 1)) for extent in (width, height))
    return x, y, width, height


def _covered(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the share of the smaller box that lies in the other, too."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height) / min(a[2] * a[3], b[2] * b[3])


def _background(image: Tensor, drawn: _Drawn, plan: _Plan) -> Tensor:
    """Return an image blurred beyond recognition, with noise, uint8 ``[C, S, S]``."""
    coarse = F.interpolate(image[None].float(), (BLUR, BLUR), mode="bilinear", antialias=True)
    smooth = F.interpolate(coarse, (plan.canvas, plan.canvas), mode="bilinear")[0]
    noise = drawn.rng.uniform(0, NOISE) * drawn.rng.standard_normal((plan.canvas, plan.canvas))
    return (smooth + torch.from_numpy(noise)).round().clamp(0, 255).to(torch.uint8)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    sized = F.interpolate(image[None].float(), (height, width), mode="bilinear", antialias=True)[0]
    return sized.round().clamp(0, 255).to(torch.uint8)


def _load(split: Split, numbers: np.ndarray, largest: int) -> Tensor:
    """Return source images in memory, none larger than an object can be."""
    parts = torch.split(torch.from_numpy(numbers), LOADED)
    size = min(split.images.shape[-1], largest)
    return torch.cat([resize_uint8(pixels, size) for pixels in split.stream(parts)])
