"""Data sets of real size, where they are: a folder named by QNAS_DATA, or ../shared/data beside the repository."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from qnas import components
from qnas.config import load_config
from qnas.data import TrainBatches
from qnas_plugins.datasets.files import Files

ROOT = Path(os.environ.get("QNAS_DATA", Path(__file__).parents[3] / "shared" / "data"))


def data_set(name: str) -> Path:
    path = ROOT / name
    if not path.is_dir():
        pytest.skip(f"{name} is not there: put it into a folder and name that by the environment variable QNAS_DATA")
    return path


def load(registry, path, **options):
    return components.load_data(
        registry, load_config({"data": {"name": "files", "options": {"path": str(path), **options}}})
    )


def test_cifar10_loads_in_seconds():
    path = data_set("cifar10")
    start = time.perf_counter()
    images = Files().load(path=str(path))
    assert time.perf_counter() - start < 30  # 5 s on two cores that are free
    assert images.images.shape == (60000, 3, 32, 32)
    assert len(images.test) == 10000
    assert torch.bincount(images.labels).tolist() == [6000] * 10
    assert (images.class_names[0], images.class_names[9]) == ("airplane", "truck")
    means = images.images.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.491, 0.482, 0.447]), atol=0.01, rtol=0)  # the published ones


@pytest.mark.parametrize("name", ["cifar10", "imagenet64-100"])
def test_some_images_of_each_class_stream_as_from_memory(registry, name):
    path = data_set(name)
    in_memory, streamed = load(registry, path, limit=10), load(registry, path, limit=10, memory="no", workers=2)
    assert streamed.train.streamed
    assert streamed.class_names == in_memory.class_names
    for split in ("train", "search", "test"):
        assert torch.equal(streamed.split(split).loaded(), in_memory.split(split).images)
        assert torch.equal(streamed.split(split).labels, in_memory.split(split).labels)

    def epoch(data):
        return list(TrainBatches(data.train, in_memory.pixels, in_memory.augmentation, 20, 0).epoch(1))

    for (images, labels), (others, other_labels) in zip(epoch(streamed), epoch(in_memory), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
