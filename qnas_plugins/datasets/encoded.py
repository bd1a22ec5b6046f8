"""Encoded images, wherever they lie: what the formats give and the decoder takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Encoded(Protocol):
    """Images as files or bytes, not decoded. Worker processes hold copies of it, so it must be picklable."""

    def __len__(self) -> int:
        """Return the number of images."""

    def data(self, number: int) -> Any:
        """Return the encoded image as bytes.

        Raises:
            OSError: it cannot be read.
            ValueError: there is none.
        """

    def name(self, number: int) -> str:
        """Return where the image stands, for messages: its file, or its row."""

    def size(self, number: int) -> int:
        """Return its encoded size, in bytes."""


@dataclass(frozen=True)
class Found:
    """What lies at a path: labels of all images, and how to get at some of the images.

    Attributes:
        labels: ``[N]`` int64, from 0.
        class_names: one for each label.
        test: ``[N]`` booleans: which images are a test split that came with the data; ``None`` if none did.
        open: returns the encoded images of these numbers.
        pixels: ``[N, 3, H, W]`` uint8 where the images are not encoded at all; then ``open`` is not called.
    """

    labels: np.ndarray[Any, Any]
    class_names: tuple[str, ...]
    test: np.ndarray[Any, Any] | None
    open: Callable[[np.ndarray[Any, Any]], Encoded] | None = None
    pixels: np.ndarray[Any, Any] | None = None
