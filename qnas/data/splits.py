"""Three splits of the images, drawn by the seed, and the integer grid of their pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qnas.data.augment import Augmentation
from qnas.data.images import ImageSet, StreamedImages, resize_uint8
from qnas.errors import DataError
from qnas.nn.grid import AffineGrid
from qnas.rng import generator

SPLITS = ("train", "search", "test")
MIN_SPLIT = 2  # images of each class in each split
PIXEL_SAMPLE = 1024  # training images that a stream's pixel grid is measured on


@dataclass(frozen=True)
class PixelGrid:
    """The integer grid of 8-bit pixels after normalisation: value = scale * (pixel - zero_point).

    One mean (rounded to a whole pixel value) and one deviation for all channels, so that images enter an integer
    graph without any loss.
    """

    scale: float
    zero_point: int

    @staticmethod
    def of(images: Tensor) -> PixelGrid:
        """Return the grid that gives uint8 ``images`` a mean near 0 and a standard deviation of 1."""
        # From whole numbers: a sum of floats would depend on the number of threads in its last bits.
        counts = torch.bincount(images.reshape(-1), minlength=256).tolist()
        total, first, second = (sum(count * value**k for value, count in enumerate(counts)) for k in (0, 1, 2))
        std = math.sqrt(total * second - first**2) / total
        return PixelGrid(1.0 / std if std > 0 else 1.0, round(first / total))

    def normalise(self, images: Tensor) -> Tensor:
        """Return float32 values of uint8 pixels, channels last in memory."""
        values = images.to(torch.float32).sub_(self.zero_point).mul_(self.scale)
        return values.contiguous(memory_format=torch.channels_last)

    def affine(self) -> AffineGrid:
        """Return the grid for the network's input."""
        return AffineGrid(torch.tensor(self.scale), self.zero_point, 0, 255)


@dataclass(frozen=True)
class Split:
    """One split: uint8 images ``[N, C, S, S]``, in memory or streamed, and labels ``[N]`` (or targets ``[N, ...]``)."""

    images: Tensor | StreamedImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def streamed(self) -> bool:
        """Whether the images are decoded on demand, since they would not fit into memory."""
        return not isinstance(self.images, Tensor)

    def subset(self, n: int, seed: int, purpose: str) -> Split:
        """Return ``n`` images drawn without replacement, in a fixed order."""
        if n >= len(self):
            return self
        chosen = torch.from_numpy(np.sort(generator(seed, purpose).permutation(len(self))[:n]))
        return Split(self.images[chosen], self.labels[chosen])

    def stream(self, parts: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Yield the uint8 images ``[n, C, S, S]`` of each part, in order."""
        if not isinstance(self.images, Tensor):
            yield from self.images.stream(parts)
            return
        for part in parts:
            yield self.images[part]

    def loaded(self) -> Tensor:
        """Return all images in memory, uint8 ``[N, C, S, S]``."""
        return self.images if isinstance(self.images, Tensor) else self.images.take(torch.arange(len(self)))


@dataclass(frozen=True)
class Data:
    """What a run works on: the three splits at the run's image size, and the pixel grid of the training split."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    search: Split
    test: Split
    pixels: PixelGrid
    augmentation: Augmentation

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.train.images.shape[-1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """Digest of all images, labels and the pixel grid (hexadecimal).

        Of streamed images names and sizes stand for the pixels, which would take as long as an epoch to read: a file
        that is added, removed, renamed or moved to another class is noticed, one that is changed within the same
        number of bytes is not, unless it is among those that the pixel grid is measured on.
        """
        digest = hashlib.sha256(repr((self.class_names, self.pixels)).encode())
        for part in (self.train, self.search, self.test):
            for values in (part.images, part.labels):
                if isinstance(values, Tensor):
                    digest.update(repr(tuple(values.shape)).encode())
                    digest.update(values.contiguous().numpy().data)
                else:
                    digest.update(values.digest().encode())
        return digest.hexdigest()

    def split(self, name: str) -> Split:
        """Return a split by name."""
        return {"train": self.train, "search": self.search, "test": self.test}[name]


def prepare(images: ImageSet, *, image_size: int, seed: int, fractions: tuple[float, float]) -> Data:
    """Resize once, split by seed, and measure the pixel grid on the training split.

    Args:
        images: all of them.
        image_size: height and width to train at, in pixels.
        seed: of the splits.
        fractions: of all images, for the search and the test split; drawn class by class, or from all at once where
            targets are no classes. A split that comes with the data is kept as it is.

    Raises:
        DataError: a class has too few images for three splits, or a stream has another size.
    """
    parts = _divide(images, seed, fractions)
    sized = _sized(images, image_size)
    splits = {
        name: Split(sized[order], images.labels[order])
        for name, order in ((n, torch.from_numpy(np.sort(np.concatenate(p)))) for n, p in parts.items())
    }
    pixels = PixelGrid.of(_sample(splits["train"].images))
    return Data(images.name, images.class_names, **splits, pixels=pixels, augmentation=images.augmentation)


def _divide(images: ImageSet, seed: int, fractions: tuple[float, float]) -> dict[str, list[np.ndarray]]:
    """Return the numbers of each split's images."""
    rng = generator(seed, "splits")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    fixed = {"search": images.search, "test": images.test}
    given = np.zeros(len(images.labels), dtype=bool)
    for chosen in fixed.values():
        if chosen is not None:
            given[chosen.numpy()] = True
    labels = images.labels.numpy()
    groups = [("Data set", np.ones(len(labels), dtype=bool))]
    if images.has_classes:
        groups = [(f"Class {name!r} of data set", labels == i) for i, name in enumerate(images.class_names)]
    for group, members in groups:
        own = rng.permutation(np.flatnonzero(members & ~given))
        drawn = [name for name in fixed if fixed[name] is None]
        counts = [round(f * len(own)) if name in drawn else 0 for f, name in zip(fractions, fixed, strict=True)]
        fewest = {"search": MIN_SPLIT, "test": 1}
        if len(own) - sum(counts) < MIN_SPLIT or any(
            count < fewest[name] for count, name in zip(counts, fixed, strict=True) if name in drawn
        ):
            raise DataError(
                f"{group} {images.name!r} has {len(own)} images, too few for a training, a search "
                "and a test split. Add images, or change the fractions in [data]."
            )
        parts["search"].append(own[: counts[0]])
        parts["test"].append(own[counts[0] : sum(counts)])
        parts["train"].append(own[sum(counts) :])
    for name, chosen in fixed.items():
        if chosen is not None:
            parts[name] = [chosen.numpy()]
    return parts


def _sized(images: ImageSet, size: int) -> Tensor | StreamedImages:
    """Return the images at the size to train at."""
    if isinstance(images.images, Tensor):
        return resize_uint8(images.images, size)
    if images.images.shape[2:] != (size, size):
        raise DataError(
            f"Data set {images.name!r} streams images of {list(images.images.shape[2:])} pixels, but data.image_size "
            f"is {size}. Let its load() take image_size, or leave the setting out."
        )
    return images.images


def _sample(images: Tensor | StreamedImages) -> Tensor:
    """Return what the pixel grid is measured on: all images in memory, or ``PIXEL_SAMPLE`` of a stream, evenly."""
    if isinstance(images, Tensor):
        return images
    n = min(len(images), PIXEL_SAMPLE)
    return images.take(torch.arange(n) * len(images) // n)
