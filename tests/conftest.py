"""Fixtures shared by all tests: one thread, the installed plugins, a tiny space and supernet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qnas.data import Data, PixelGrid, Split
from qnas.nn.grid import AffineGrid
from qnas.nn.quantizer import QuantizerSite
from qnas.nn.supernet import BuildContext, Supernet
from qnas.plugins import Registry, load_registry
from qnas.space import QuantScheme, SearchSpace

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="session")
def mbv3(registry: Registry) -> type[SearchSpace]:
    return registry.load("space", "mbv3")


@pytest.fixture(scope="session")
def make_space(mbv3) -> Callable[..., SearchSpace]:
    """Returns a small mbv3; keywords are those of the scheme and of the space."""

    def make(w_bits=(2, 4), a_bits=(2, 4), granularity="network", site_knobs=None, **options: Any) -> SearchSpace:
        scheme = QuantScheme(w_bits, a_bits, granularity, site_knobs=site_knobs)
        given = {"image_size": 16, "num_classes": 10, "image_channels": 1, "depths": (1, 2), **options}
        return mbv3(scheme, **given)

    return make


TINY = {
    "basq-mbv1": {"width": 0.25, "elastic": True, "kernels": (3,), "depths": (1, 2)},
    "basq-mbv2": {"width": 0.25, "elastic": True, "kernels": (3, 5), "expansions": (3, 4), "depths": (1, 2)},
    "basq-resnet18": {"width": 0.125, "elastic": True},
    "basq-resnet20": {"width": 0.5, "elastic": True, "depths": (1, 2)},
    "mbv1": {"width": 0.25},
    "mbv2": {"width": 0.25, "depths": (1, 2)},
    "resnet18": {"width": 0.125},
    "resnet20": {"width": 0.5},
    "resnet50": {"width": 0.0625},
}
"""Spaces in a size that tests can run; mbv3 has fixtures of its own."""


@pytest.fixture(scope="session")
def make_family(registry: Registry) -> Callable[..., SearchSpace]:
    """Returns one of the spaces of ``TINY``; keywords are those of the scheme and of the space."""

    def make(
        name: str, w_bits=(2, 4), a_bits=(2, 4), granularity="layer", conv_only=False, site_knobs=None, **options: Any
    ) -> SearchSpace:
        scheme = QuantScheme(w_bits, a_bits, granularity, conv_only=conv_only, site_knobs=site_knobs)
        given = {"image_size": 16, "num_classes": 10, "image_channels": 1, **TINY[name], **options}
        return registry.load("space", name)(scheme, **given)

    return make


@pytest.fixture(scope="session")
def make_supernet(registry: Registry) -> Callable[..., Supernet]:
    """Returns a supernet of a space, its quantizers started from random images."""
    lsq = registry.load("quantizer", "lsq")

    def make(space: SearchSpace, *, folding=None, mode="quantize", seed=0, weight=None, act=None) -> Supernet:
        torch.manual_seed(seed)
        kwargs = {} if folding is None else {"folding": folding}
        context = BuildContext(
            space,
            weight or (lambda site: lsq(site)),
            act or (lambda site: lsq(site)),
            AffineGrid(torch.tensor(1 / 64), 100, 0, 255),
            **kwargs,
        )
        supernet = space.build(context).to(memory_format=torch.channels_last)
        for name, parameter in supernet.named_parameters():  # gammas and betas as training would leave them
            if ".bn.weights" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            elif ".bn.biases" in name:
                torch.nn.init.uniform_(parameter, -0.3, 0.3)
        with torch.no_grad():
            supernet.activate(space.highest())
            supernet.set_mode("start")
            supernet(random_images(64, space.image_size, channels=getattr(space, "image_channels", 1), seed=seed))
        supernet.set_mode(mode)
        return supernet

    return make


def random_images(n: int, size: int, *, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Smooth random images, normalised: ``[n, channels, size, size]``."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, channels, 4, 4, generator=rng)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="session")
def tiny_data() -> Data:
    """Two classes that a tiny net can tell apart: bright left or bright right half."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 2
    images = torch.randint(0, 120, (240, 1, 16, 16), generator=rng)
    for i, label in enumerate(labels):
        images[i, :, :, 8 * int(label) : 8 * int(label) + 8] += 100
    images = images.to(torch.uint8)
    train, search, test = (Split(images[s], labels[s]) for s in (slice(0, 120), slice(120, 180), slice(180, 240)))
    from qnas.data import Augmentation

    return Data("halves", ("left", "right"), train, search, test, PixelGrid.of(train.images), Augmentation())


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Returns what writes PNG images of ``classes`` into ``root/CLASS``; each class has a colour of its own."""

    def make(root: Path, classes=("cat", "dog", "owl"), each=12, size=(16, 16), mode="RGB", seed=0) -> Path:
        rng = np.random.default_rng(seed)
        for number, name in enumerate(classes):
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(each):
                pixels = rng.integers(0, 90, (size[1], size[0], 3))
                pixels[..., number % 3] += 120
                Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(root / name / f"{i:03}.png")
        return root

    return make


@pytest.fixture
def weight_site() -> QuantizerSite:
    return QuantizerSite("layer", "weight", (2, 4, 8), 8, signed=True)


@pytest.fixture
def act_site() -> QuantizerSite:
    return QuantizerSite("layer", "activation", (2, 4, 8), 8, signed=False)
