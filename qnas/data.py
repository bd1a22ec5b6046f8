"""Images in memory: three splits, the integer pixel grid, augmentation and resizing as tensor operations."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qnas.errors import DataError
from qnas.nn.grid import AffineGrid
from qnas.rng import generator, integer_seed

SPLITS = ("train", "search", "test")
MIN_SPLIT = 2  # images of each class in each split


@dataclass(frozen=True)
class Augmentation:
    """Random changes that keep the label, drawn for each image and step.

    Attributes:
        shift: largest translation, as a fraction of the image's size.
        rotate: largest rotation, in degrees.
        scale: largest relative change of size.
        flip: whether mirror images mean the same.
    """

    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    flip: bool = False

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return changed copies of float images ``[N, C, H, W]``; borders are repeated outwards."""
        if not (self.shift or self.rotate or self.scale or self.flip):
            return images
        n = len(images)
        draws = torch.rand((n, 5), generator=rng) * 2 - 1
        angle = draws[:, 0] * (self.rotate * torch.pi / 180)
        zoom = 1 + draws[:, 1] * self.scale
        mirror = torch.where(draws[:, 4] < 0, -1.0, 1.0) if self.flip else torch.ones(n)
        matrix = torch.empty(n, 2, 3)
        matrix[:, 0, 0] = torch.cos(angle) * zoom * mirror
        matrix[:, 0, 1] = -torch.sin(angle) * zoom
        matrix[:, 1, 0] = torch.sin(angle) * zoom * mirror
        matrix[:, 1, 1] = torch.cos(angle) * zoom
        matrix[:, :, 2] = draws[:, 2:4] * (2 * self.shift)
        where = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
        return F.grid_sample(images, where, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, decoded.

    Attributes:
        name: for reports.
        images: ``[N, C, H, W]`` uint8.
        labels: ``[N]`` int64, from 0.
        class_names: one for each label.
        augmentation: that fits the data.
        image_size: the size to train at unless the user says otherwise, in pixels.
        test: indices of a test split that comes with the data; ``None`` lets the seed choose one.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    image_size: int = 0
    test: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise DataError(
                f"Data set {self.name!r} must give uint8 images [N, C, H, W] and as many labels; given: "
                f"{self.images.dtype} {list(self.images.shape)} and {len(self.labels)} labels. Correct its load()."
            )
        if len(self.class_names) < 2:
            raise DataError(
                f"Data set {self.name!r} has {len(self.class_names)} class; classification needs at least 2. "
                "Add images of another class."
            )


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
    """One split: uint8 images ``[N, C, S, S]`` and labels ``[N]``."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, n: int, seed: int, purpose: str) -> Split:
        """Return ``n`` images drawn without replacement, in a fixed order."""
        if n >= len(self):
            return self
        chosen = torch.from_numpy(np.sort(generator(seed, purpose).permutation(len(self))[:n]))
        return Split(self.images[chosen], self.labels[chosen])


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
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """Digest of all images, labels and the pixel grid (hexadecimal)."""
        digest = hashlib.sha256(repr((self.class_names, self.pixels)).encode())
        for part in (self.train, self.search, self.test):
            for tensor in (part.images, part.labels):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
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
        fractions: of all images, for the search and the test split; drawn class by class.

    Raises:
        DataError: a class has too few images for three splits.
    """
    rng = generator(seed, "splits")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    given = np.zeros(len(images.labels), dtype=bool)
    if images.test is not None:
        given[images.test.numpy()] = True
    labels = images.labels.numpy()
    for label, name in enumerate(images.class_names):
        own = rng.permutation(np.flatnonzero((labels == label) & ~given))
        counts = [round(f * len(own)) for f in fractions]
        if images.test is not None:
            counts[1] = 0
        if len(own) - sum(counts) < MIN_SPLIT or counts[0] < MIN_SPLIT or (images.test is None and counts[1] < 1):
            raise DataError(
                f"Class {name!r} of data set {images.name!r} has {len(own)} images, too few for a training, a search "
                "and a test split. Add images, or change the fractions in [data]."
            )
        parts["search"].append(own[: counts[0]])
        parts["test"].append(own[counts[0] : sum(counts)])
        parts["train"].append(own[sum(counts) :])
    if images.test is not None:
        parts["test"] = [images.test.numpy()]
    sized = resize_uint8(images.images, image_size)
    splits = {
        name: Split(sized[order], images.labels[order])
        for name, order in ((n, torch.from_numpy(np.sort(np.concatenate(p)))) for n, p in parts.items())
    }
    pixels = PixelGrid.of(splits["train"].images)
    return Data(images.name, images.class_names, **splits, pixels=pixels, augmentation=images.augmentation)


def resize_uint8(images: Tensor, size: int) -> Tensor:
    """Return uint8 images ``[N, C, size, size]``, bilinear with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    sized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return sized.round_().clamp_(0, 255).to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """Return float images ``[N, C, size, size]``, bilinear with antialiasing; the same tensor if it fits already."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def batches(split: Split, pixels: PixelGrid, size: int, batch_size: int, *, whole: bool = False) -> Iterator[Tensor]:
    """Yield normalised images ``[n, C, size, size]`` in order.

    Args:
        whole: leave out a last batch that is smaller than the others (unless it is the only one).
    """
    for start in range(0, len(split), batch_size):
        images = split.images[start : start + batch_size]
        if whole and start and len(images) < batch_size:
            return
        yield resize(pixels.normalise(images), size).contiguous(memory_format=torch.channels_last)


@dataclass
class TrainBatches:
    """Augmented batches of the training split, each a function of (seed, epoch, step)."""

    split: Split
    pixels: PixelGrid
    augmentation: Augmentation
    batch_size: int
    seed: int
    device: torch.device | None = None
    rank: int = 0
    ranks: int = 1

    def start_images(self, n: int, seed: int) -> Tensor:
        """Return ``n`` normalised images to start quantizers from."""
        return self.pixels.normalise(self.split.subset(n, seed, "start").images)

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, len(self.split))

    @property
    def steps(self) -> int:
        """Steps an epoch; a smaller last batch is left out."""
        return len(self.split) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``[N, C, S, S]`` normalised images and ``[N]`` labels."""
        order = torch.from_numpy(generator(self.seed, "batches", epoch).permutation(len(self.split)))
        for step in range(self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            rng = torch.Generator().manual_seed(integer_seed(self.seed, "augment", epoch, step))
            images = self.augmentation(self.pixels.normalise(self.split.images[chosen]), rng)
            a, b = [len(images) * r // self.ranks for r in (self.rank, self.rank + 1)]
            yield images[a:b].contiguous(memory_format=torch.channels_last), self.split.labels[chosen][a:b]
