"""A data set's images: a tensor, or a stream that is decoded on demand; and their sizes."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qnas.data.augment import Augmentation
from qnas.errors import DataError

PREFETCH = 2  # batches that each worker decodes ahead
PART = 32  # images that a worker decodes at a time where no batch says how many
RESIZE_VALUES = 2**26  # pixels resized at a time, as floats


class ImageSource(Protocol):
    """Images that are decoded when asked for. Worker processes hold copies of it, so it must be picklable."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, as decoded."""

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the images of these numbers, uint8 ``[n, C, S, S]``, the same each time.

        Raises:
            DataError: one of them cannot be decoded; names it.
        """

    def identity(self, numbers: np.ndarray[Any, Any]) -> Iterable[str]:
        """Return what tells each image from another without decoding it: its name and size, no absolute path."""


class StreamedImages:
    """uint8 images ``[N, C, S, S]`` that are not in memory. Indexing gives a view of some of them, as with a tensor.

    Args:
        source: decodes.
        numbers: ``[N]`` of the images in the source; all of them by default.
        workers: processes that decode; 0 for this one. Changes nothing but speed.
    """

    def __init__(self, source: ImageSource, numbers: Tensor | None = None, workers: int = 0) -> None:
        self.source = source
        self.numbers = torch.arange(len(source)) if numbers is None else numbers
        self.workers = workers

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(N, C, S, S)``."""
        return (len(self.numbers), *self.source.shape)

    def __getitem__(self, chosen: Tensor | slice) -> StreamedImages:
        """Return some of the images, still streamed."""
        return StreamedImages(self.source, self.numbers[chosen], self.workers)

    def stream(self, parts: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Yield the images of each part, uint8 ``[n, C, S, S]``, in order, decoded ahead by the workers.

        Raises:
            DataError: an image cannot be decoded, or a worker died.
        """
        wanted = [self.numbers[part].numpy() for part in parts]
        if len(wanted) < 2 or not self.workers:
            for numbers in wanted:
                yield torch.from_numpy(self.source.read(numbers))
            return
        iterator = _loader(self.source, wanted, min(self.workers, len(wanted)))
        try:
            for item in iterator:
                if isinstance(item, str):
                    raise DataError(item)
                yield item
        except RuntimeError as error:  # what DataLoader raises when a worker was killed
            raise DataError(
                f"A process that decodes images died: {error}. If memory ran out, give fewer `workers` in "
                "[data.options] or a smaller batch size."
            ) from error
        finally:
            del iterator  # ends the workers now, not when the traceback of an error is let go

    def take(self, chosen: Tensor) -> Tensor:
        """Return the images at these places, uint8 ``[n, C, S, S]``, in memory."""
        parts = torch.split(chosen, PART)
        return torch.cat(list(self.stream(parts)))

    def digest(self) -> str:
        """Return the digest of the images' names and sizes (hexadecimal)."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for text in self.source.identity(self.numbers.numpy()):
            digest.update(f"{text}\n".encode())
        return digest.hexdigest()


class _Reader(Dataset[Any]):
    """Reads whole batches, in a worker."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, numbers: Any) -> Tensor | str:
        try:
            return torch.from_numpy(self.source.read(numbers))
        except DataError as error:  # as text: DataLoader would add the worker's traceback to the message
            return str(error)


def _loader(source: ImageSource, wanted: Sequence[np.ndarray[Any, Any]], workers: int) -> Iterator[Any]:
    """Return what decodes one batch after another in worker processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more workers than cores are the user's own wish
        return iter(
            DataLoader(
                _Reader(source),
                batch_size=None,
                sampler=wanted,
                num_workers=workers,
                prefetch_factor=PREFETCH,
                # A forked worker shares the encoded images, and does not import the main module again.
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                generator=torch.Generator(),  # else each epoch would draw from the global one
            )
        )


@dataclass(frozen=True)
class ImageSet:
    """Images and their targets.

    Attributes:
        name: for reports.
        images: ``[N, C, H, W]`` uint8, decoded; or a stream of such, ``[N, C, S, S]``.
        labels: ``[N]`` int64, classes from 0; or targets of another kind, ``[N, ...]``.
        class_names: one for each class.
        augmentation: that fits the data.
        image_size: the size to train at unless the user says otherwise, in pixels.
        test, search: indices of a split that comes with the data; ``None`` lets the seed choose one.
    """

    name: str
    images: Tensor | StreamedImages
    labels: Tensor
    class_names: tuple[str, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    image_size: int = 0
    test: Tensor | None = None
    search: Tensor | None = None

    @property
    def has_classes(self) -> bool:
        """Whether every image has one class, rather than a target of another kind."""
        return self.labels.ndim == 1 and not self.labels.is_floating_point()

    def __post_init__(self) -> None:
        dtype = self.images.dtype if isinstance(self.images, Tensor) else torch.uint8
        if dtype != torch.uint8 or len(self.images.shape) != 4 or len(self.images) != len(self.labels):
            raise DataError(
                f"Data set {self.name!r} must give uint8 images [N, C, H, W] and as many labels; given: "
                f"{dtype} {list(self.images.shape)} and {len(self.labels)} labels. Correct its load()."
            )
        if self.has_classes and len(self.class_names) < 2:
            raise DataError(
                f"Data set {self.name!r} has {len(self.class_names)} class; classification needs at least 2. "
                "Add images of another class."
            )


def resize_uint8(images: Tensor, size: int) -> Tensor:
    """Return uint8 images ``[N, C, size, size]``, bilinear with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    sized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    step = max(1, RESIZE_VALUES // (images.shape[1] * max(size, *images.shape[2:]) ** 2))
    for start in range(0, len(images), step):  # in parts: as floats all of them would take four times the memory
        part = F.interpolate(images[start : start + step].float(), (size, size), mode="bilinear", antialias=True)
        sized[start : start + step] = part.round_().clamp_(0, 255)
    return sized


def resize(images: Tensor, size: int) -> Tensor:
    """Return float images ``[N, C, size, size]``, bilinear with antialiasing; the same tensor if it fits already."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
