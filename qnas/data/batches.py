"""Batches in order, for judging; and augmented ones in random order, for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qnas.data.augment import Augmentation
from qnas.data.images import resize
from qnas.data.splits import PixelGrid, Split
from qnas.errors import ConfigError
from qnas.rng import generator, integer_seed

CPU = torch.device("cpu")


def batches(
    split: Split, pixels: PixelGrid, size: int, batch_size: int, *, whole: bool = False, device: torch.device = CPU
) -> Iterator[Tensor]:
    """Yield normalised images ``[n, C, size, size]`` in order.

    Args:
        whole: leave out a last batch that is smaller than the others (unless it is the only one).
        device: of the images; they are normalised and resized there.
    """
    total = len(split)
    if whole and total > batch_size:
        total -= total % batch_size
    for images in split.stream(slice(i, min(i + batch_size, total)) for i in range(0, total, batch_size)):
        normal = pixels.normalise(images.to(device))
        yield resize(normal, size).contiguous(memory_format=torch.channels_last)


@dataclass
class TrainBatches:
    """Augmented batches of the training split, each a function of (seed, epoch, step).

    Attributes:
        batch_size: images a step, over all ranks; at most as many as there are.
        device: of images and labels. Pixels go there as they are stored; random draws are made on the CPU, so that
            they do not depend on the device.
        rank, ranks: yield this one of so many equal, contiguous parts of each batch. An image is augmented as it would
            be in the whole batch.
    """

    split: Split
    pixels: PixelGrid
    augmentation: Augmentation
    batch_size: int
    seed: int
    device: torch.device = CPU
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.ranks:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}, which {self.ranks} processes cannot share equally. "
                f"Give a multiple of {self.ranks} (--batch-size)."
            )
        fitting = len(self.split) - len(self.split) % self.ranks
        if not fitting:
            raise ConfigError(
                f"The training split has {len(self.split)} images, too few for {self.ranks} processes. "
                "Start fewer processes, or add images."
            )
        self.batch_size = min(self.batch_size, fitting)

    @property
    def steps(self) -> int:
        """Steps an epoch; a smaller last batch is left out."""
        return len(self.split) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``[N, C, S, S]`` normalised images and ``[N]`` labels, N being this rank's part of a batch."""
        order = torch.from_numpy(generator(self.seed, "batches", epoch).permutation(len(self.split)))
        share = self.batch_size // self.ranks
        own = slice(self.rank * share, (self.rank + 1) * share)
        parts = [order[step * self.batch_size : (step + 1) * self.batch_size][own] for step in range(self.steps)]
        for step, (pixels, chosen) in enumerate(zip(self.split.stream(parts), parts, strict=True)):
            rng = torch.Generator().manual_seed(integer_seed(self.seed, "augment", epoch, step))
            drawn = self.augmentation.draw(self.batch_size, rng)
            images = self.pixels.normalise(pixels.to(self.device))
            images = self.augmentation.apply(images, None if drawn is None else drawn[own])
            labels = self.split.labels[chosen].to(self.device)
            yield images.contiguous(memory_format=torch.channels_last), labels

    def start_images(self, n: int, seed: int) -> Tensor:
        """Return ``n`` normalised training images ``[n, C, S, S]``, the same on every rank, for quantizers to start."""
        return self.pixels.normalise(self.split.subset(n, seed, "start").loaded().to(self.device))

    def start_labels(self, n: int, seed: int) -> Tensor:
        """Return the labels ``[n]`` of :meth:`start_images`."""
        return self.split.subset(n, seed, "start").labels.to(self.device)
