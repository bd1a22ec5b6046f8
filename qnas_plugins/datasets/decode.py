"""Decoding with Pillow: whatever a file holds comes out as uint8 [C, S, S]. Imports no torch."""

from __future__ import annotations

import io
import math
import mmap
import multiprocessing
import os
import signal
import statistics
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from qnas.errors import DataError
from qnas_plugins.datasets.encoded import Encoded

GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
PROBED = 256  # images whose headers decide on size and channels
CHUNK = 64  # images that a process decodes in a row
FEW = 256  # images for which a second process is not worth its start
ORIENTATION = 274  # EXIF tag; from 5 on width and height change places
DONE, BROKEN, COLOURED = 1, 2, 3


class ColourError(ValueError):
    """An image is in colour where all were taken to be grey."""


@dataclass(frozen=True)
class Shape:
    """What the headers of a sample of the images say.

    Attributes:
        side: median of the shorter sides, in pixels; 0 if no header can be read.
        grey: whether none has colour.
    """

    side: int
    grey: bool


def probe(encoded: Encoded) -> Shape:
    """Look at the headers of up to ``PROBED`` images, evenly; those that cannot be read say nothing."""
    n = min(len(encoded), PROBED)
    sizes, grey = [], True
    with _quiet():
        for number in (np.arange(n) * len(encoded) // n).tolist():
            try:
                with Image.open(io.BytesIO(encoded.data(number))) as image:
                    turned = image.getexif().get(ORIENTATION, 1) >= 5
                    sizes.append(image.size[::-1] if turned else image.size)
                    grey = grey and image.mode in GREY
            except Exception:  # found again, counted and named when it is decoded
                continue
    sides = [min(size) for size in sizes]
    return Shape(int(statistics.median_low(sides)) if sides else 0, grey)


def decode(data: Any, size: int, channels: int, *, strict: bool = False) -> np.ndarray[Any, Any]:
    """Return an encoded image as uint8 ``[C, size, size]``.

    Turned as its EXIF orientation says, converted to grey or RGB, the shorter side resized (bilinear, antialiased), the
    centre kept.

    Raises:
        ColourError: it has colour, but one channel is asked for; only if ``strict``, else it is made grey.
        Exception: whatever Pillow raises for a file that it cannot decode.
    """
    with Image.open(io.BytesIO(data)) as image:
        if strict and channels == 1 and image.mode not in GREY:
            raise ColourError
        if min(image.size) >= 4 * size:  # a JPEG is decoded at a fraction of its size, which is still twice ours
            image.draft(None, (2 * size, 2 * size))
        if image.getexif().get(ORIENTATION, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        image = _converted(image, channels)
        if image.size != (size, size):
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _converted(image: Image.Image, channels: int) -> Image.Image:
    mode = "RGB" if channels == 3 else "L"
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8, not scale them
        values = np.asarray(image).astype(np.float64)
        if image.mode != "I" or values.max(initial=0) > 255:
            values = values / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats, whose range is not known; save it with 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow quiet about odd metadata, which large collections are full of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Decoder:
    """Decodes a collection at one size, on demand (``qnas.data.ImageSource``) or all at once.

    Args:
        encoded: the images.
        where: they lie, for messages.
        size: height and width to decode to, in pixels.
        channels: 1 or 3.
        strict: refuse images with colour where there is one channel.
    """

    def __init__(self, encoded: Encoded, where: str, size: int, channels: int, *, strict: bool) -> None:
        self.encoded = encoded
        self.where = where
        self.shape = (channels, size, size)
        self.strict = strict

    @property
    def num_bytes(self) -> int:
        """Size of all images decoded."""
        return len(self) * math.prod(self.shape)

    def in_colour(self) -> Decoder:
        """Return a decoder of the same images to RGB."""
        return Decoder(self.encoded, self.where, self.shape[1], 3, strict=self.strict)

    def __len__(self) -> int:
        return len(self.encoded)

    def one(self, number: int) -> np.ndarray[Any, Any]:
        """Return one image, uint8 ``[C, S, S]``."""
        return decode(self.encoded.data(number), self.shape[1], self.shape[0], strict=self.strict)

    def read(self, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the images of these numbers, uint8 ``[n, C, S, S]``.

        Raises:
            DataError: one of them cannot be decoded; names it.
        """
        pixels = np.empty((len(numbers), *self.shape), np.uint8)
        with _quiet():
            for place, number in enumerate(numbers.tolist()):
                try:
                    pixels[place] = self.one(number)
                except ColourError as error:
                    raise DataError(
                        f"{self.encoded.name(number)} in {self.where} has colour, but the images looked at first have "
                        "none. Give --set data.options.channels=3."
                    ) from error
                except Exception as error:  # a decoder may fail in any way
                    raise DataError(
                        f"{self.encoded.name(number)} in {self.where} cannot be decoded: {_reason(error)}. "
                        "Repair or remove it."
                    ) from error
        return pixels

    def identity(self, numbers: np.ndarray[Any, Any]) -> Iterator[str]:
        """Yield each image's name and encoded size."""
        for number in numbers.tolist():
            yield f"{self.encoded.name(number)}: {self.encoded.size(number)}"

    def read_all(self) -> np.ndarray[Any, Any]:
        """Return all images, uint8 ``[N, C, S, S]``, decoded on all cores.

        Raises:
            ColourError: one has colour, but one channel is asked for.
            DataError: some cannot be decoded; says how many and names the first.
        """
        count = len(self)
        # Shared with the processes that fill them, so that nothing is sent back.
        pixels = np.frombuffer(mmap.mmap(-1, self.num_bytes), np.uint8).reshape(count, *self.shape)
        states = np.frombuffer(mmap.mmap(-1, count), np.uint8)
        with _quiet():
            self._fill_in_parallel(pixels, states)
        if (states == COLOURED).any():
            raise ColourError
        broken = np.flatnonzero(states == BROKEN)
        if len(broken):
            try:
                self.read(broken[:1])
            except DataError as error:
                if len(broken) == 1:
                    raise
                raise DataError(f"{len(broken)} of {count} images cannot be decoded. The first: {error}") from error
        return pixels

    def _fill_in_parallel(self, pixels: np.ndarray[Any, Any], states: np.ndarray[Any, Any]) -> None:
        workers = num_cores()
        if workers == 1 or len(self) < FEW:
            self._fill(pixels, states, 0, 1)
        elif sys.platform != "linux" or multiprocessing.current_process().daemon:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(lambda part: self._fill(pixels, states, part, workers), range(workers)))
        else:
            self._fill_in_processes(pixels, states, workers)

    def _fill_in_processes(self, pixels: np.ndarray[Any, Any], states: np.ndarray[Any, Any], workers: int) -> None:
        """Decode in forked processes, which see the encoded images and write into shared memory.

        Threads would wait for one another: Pillow's calls for a small image are too short (50,000 of CIFAR's: 9 s on
        two threads, 7 s on one, 3 s on two processes).
        """
        fork = multiprocessing.get_context("fork")
        Image.init()
        parts = [(pixels, states, part, workers) for part in range(workers)]
        processes = [fork.Process(target=self._fill_alone, args=part, daemon=True) for part in parts]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        except BaseException:
            for process in processes:
                if process.pid is not None:
                    process.terminate()
            raise
        if any(process.exitcode for process in processes):
            raise DataError(
                f"A process that decodes {self.where} died. If memory ran out, stream the images: "
                "--set data.options.memory=no."
            )

    def _fill_alone(self, *part: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
        self._fill(*part)

    def _fill(self, pixels: np.ndarray[Any, Any], states: np.ndarray[Any, Any], part: int, parts: int) -> None:
        """Decode every ``parts``-th chunk, from number ``part`` on."""
        for start in range(part * CHUNK, len(self), parts * CHUNK):
            for number in range(start, min(start + CHUNK, len(self))):
                try:
                    pixels[number] = self.one(number)
                    states[number] = DONE
                except ColourError:
                    states[number] = COLOURED
                except Exception:  # looked at again by read_all()
                    states[number] = BROKEN


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        text = "it is no image of a known format"  # Pillow names an object in memory
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return text.rstrip(".") or type(error).__name__


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
