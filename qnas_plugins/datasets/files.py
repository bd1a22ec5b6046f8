"""The user's own images: Hugging Face parquet, folders named after classes, or CIFAR's python batches."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qnas.data import Augmentation, ImageSet, StreamedImages
from qnas.errors import ConfigError, DataError
from qnas.rng import generator
from qnas_plugins.datasets import cifar, folder, parquet
from qnas_plugins.datasets.decode import ColourError, Decoder, num_cores, probe
from qnas_plugins.datasets.encoded import Found

SMALLEST, LARGEST_DEFAULT = 8, 224  # pixels; the latter is what ImageNet is trained at
SMALL = 64  # pixels; up to here images are cropped after padding, larger ones are cropped and resized
CROP_SHARE = 8  # a padding crop moves images by this part of their size: 4 of CIFAR's 32 pixels
CROP_AREA = (0.08, 1.0)
MOST_WORKERS = 8
GIB = 2**30


class Files:
    """The data set ``files``, which ``--data PATH`` stands for."""

    def load(
        self,
        *,
        path: str = "",
        image_size: int | None = None,
        channels: Literal[1, 3] | None = None,
        limit: int | None = None,
        memory: Literal["auto", "yes", "no"] = "auto",
        memory_limit: float = 4.0,
        workers: int | None = None,
        augment: Literal["auto", "none", "crop", "resized-crop"] = "auto",
        flip: bool = True,
        image_column: str = "",
        label_column: str = "",
        cache: str = "",
    ) -> ImageSet:
        """Return the images at a path, decoded or, where they are too large, streamed.

        Images of any mode become grey where all are grey, else RGB; alpha is dropped, 16 bits are scaled to 8. They are
        turned as EXIF says; the shorter side is resized, and the centre kept.

        Args:
            path: a parquet file, or a folder: with parquet files, ``train/CLASS/*.jpg`` (and ``test`` or ``val``),
                ``CLASS/*.jpg``, or CIFAR's batches. A test split that comes with the data stays the test split; of test
                and validation, test does.
            image_size: pixels. By default the shorter side of the images if all are alike, else the median one, at most
                224; as seen on 256 of them.
            channels: 1 to make all images grey, 3 to make all RGB.
            limit: images of each class, drawn at random, of the training and of the test images; for quick trials.
            memory: whether to decode all images at the start; ``auto`` if they fit into ``memory_limit``.
            memory_limit: GiB, of decoded images (twice that is taken for a moment) and of a parquet's encoded ones.
            workers: processes that decode streamed images; one a core, at most 8, by default.
            augment: ``crop`` (after padding by 1/8), ``resized-crop`` (8% to all of the area) or ``none`` of them; by
                default ``crop`` for images of up to 64 pixels as they are stored, else ``resized-crop``.
            flip: whether mirror images mean the same.
            image_column, label_column: of parquet files; found by type and name by default.
            cache: folder for a copy of a parquet's encoded images that exceed ``memory_limit``.

        Raises:
            ConfigError: an option is out of range or names a column that is not there.
            DataError: there are no images at the path, or they cannot be used; names the file or row.
        """
        _check(path, limit, memory_limit, workers)
        root = Path(path).expanduser()
        budget = float("inf") if memory == "yes" else memory_limit * GIB
        try:
            found = _find(root, parquet.Options(image_column, label_column, budget, cache))
            chosen = _limited(found, limit)
            if found.open is None:
                images: torch.Tensor | StreamedImages = torch.from_numpy(found.pixels[chosen])
                side = size = found.pixels.shape[-1]
            else:
                encoded = found.open(chosen)
                shape = probe(encoded)
                side, size = shape.side, image_size or max(SMALLEST, min(shape.side, LARGEST_DEFAULT))
                decoder = Decoder(
                    encoded, str(root), size, channels or (1 if shape.grey else 3), strict=channels is None
                )
                streamed = memory == "no" or decoder.num_bytes > budget
                images = _streamed(decoder, workers) if streamed else _decoded(decoder)
        except OSError as error:
            raise DataError(
                f"{error.filename or root} cannot be read: {error.strerror or error}. Check that the file is there and "
                "that you may read it."
            ) from error
        return ImageSet(
            name=root.name,
            images=images,
            labels=torch.from_numpy(found.labels[chosen]),
            class_names=found.class_names,
            augmentation=_augmentation(augment, flip, side, image_size or size),
            image_size=size,
            test=None if found.test is None else torch.from_numpy(np.flatnonzero(found.test[chosen])),
        )


def _check(path: str, limit: int | None, memory_limit: float, workers: int | None) -> None:
    if not path:
        raise ConfigError(
            "Data set files needs the path of your images. Give it as --data PATH, or as path in [data.options]."
        )
    for name, value, least in (("limit", limit, 1), ("workers", workers, 0)):
        if value is not None and value < least:
            raise ConfigError(f"data.options.{name} cannot be {value}; give at least {least}.")
    if memory_limit <= 0:
        raise ConfigError(f"data.options.memory_limit cannot be {memory_limit}; give GiB above 0, or memory = 'no'.")


def _find(root: Path, options: parquet.Options) -> Found:
    """Return what lies at the path, of whatever format.

    Raises:
        DataError: nothing does that could be used.
    """
    if not root.exists():
        raise DataError(
            f"The images' path {root} does not exist. Correct --data, or path in [data.options]; a run whose images "
            "moved has it in its config.toml."
        )
    found = cifar.find(root) or parquet.find(root, options)
    if found is None and root.is_file():
        raise DataError(f"{root} is no parquet file. Give a folder of images; unpack an archive first.")
    found = found or folder.find(root)
    if found is None or not len(found.labels):
        raise DataError(
            f"{root} holds no images. Looked for parquet files, CIFAR's python batches, train/CLASS/IMAGE and "
            f"CLASS/IMAGE, with images ending in {', '.join(folder.SUFFIXES)}. Give the folder that holds one of these."
        )
    return found


def _limited(found: Found, limit: int | None) -> np.ndarray:
    """Return the numbers of the images to use: all, or up to ``limit`` of each class and of each split."""
    if limit is None:
        return np.arange(len(found.labels))
    test = np.zeros(len(found.labels), bool) if found.test is None else found.test
    chosen = [
        generator(0, "limit", label, held_out).permutation(np.flatnonzero((found.labels == label) & (test == held_out)))
        for label in range(len(found.class_names))
        for held_out in (0, 1)
    ]
    return np.sort(np.concatenate([numbers[:limit] for numbers in chosen]))


def _streamed(decoder: Decoder, workers: int | None) -> StreamedImages:
    return StreamedImages(decoder, workers=min(num_cores(), MOST_WORKERS) if workers is None else workers)


def _decoded(decoder: Decoder) -> torch.Tensor:
    try:
        return torch.from_numpy(decoder.read_all())
    except ColourError:  # the sample was grey, this one is not
        return torch.from_numpy(decoder.in_colour().read_all())


def _augmentation(kind: str, flip: bool, side: int, size: int) -> Augmentation:
    """Return what suits images that are stored with ``side`` pixels and trained at ``size``."""
    if kind == "none":
        return Augmentation(flip=flip)
    if kind == "crop" or (kind == "auto" and side <= SMALL):
        return Augmentation(crop=size // CROP_SHARE, flip=flip)
    return Augmentation(resized_crop=CROP_AREA, flip=flip)
