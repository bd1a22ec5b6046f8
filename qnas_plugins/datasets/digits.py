"""The digits that scikit-learn ships: 1,797 real handwritten digits of 8x8 pixels, 17 grey levels.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from typing import Any

import torch

from qnas.data import Augmentation, ImageSet
from qnas.errors import ConfigError

LEVELS = 16  # pixel values are 0..16
IMAGE_SIZE = 16  # twice the native size: an 8x8 map is left after the stem


class Digits:
    """The data set ``digits``."""

    def load(self, **options: Any) -> ImageSet:
        """Return all digits; takes no options."""
        if options:
            raise ConfigError(
                f"Data set digits takes no options; given: {', '.join(sorted(options))}. Remove them from [data]."
            )
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = torch.from_numpy(bunch.images * (255.0 / LEVELS)).round().to(torch.uint8)
        return ImageSet(
            name="digits",
            images=pixels[:, None],
            labels=torch.from_numpy(bunch.target).long(),
            class_names=tuple(str(name) for name in bunch.target_names),
            augmentation=Augmentation(shift=0.06, rotate=10.0, scale=0.1),
            image_size=IMAGE_SIZE,
        )
