"""Streamed images: the same batches as from memory, whatever decodes them, and errors that name the image."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from qnas.data import (
    PIXEL_SAMPLE,
    Augmentation,
    ImageSet,
    PixelGrid,
    Split,
    StreamedImages,
    TrainBatches,
    batches,
    prepare,
)
from qnas.errors import DataError
from qnas.evaluate import Evaluator, EvaluatorSettings

N, SIZE = 150, 16


class Stored:
    """A source whose images lie in an array; counts what is read in this process."""

    def __init__(self, pixels, names=None):
        self.pixels = pixels
        self.names = names or [f"{i}.png" for i in range(len(pixels))]
        self.broken = self.deadly = -1
        self.read_here = 0

    @property
    def shape(self):
        return tuple(self.pixels.shape[1:])

    def __len__(self):
        return len(self.pixels)

    def read(self, numbers):
        if self.broken in numbers:
            raise DataError(f"{self.names[self.broken]} cannot be decoded.")
        if self.deadly in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        self.read_here += len(numbers)
        return self.pixels[numbers]

    def identity(self, numbers):
        return (self.names[n] for n in numbers)


def source(**changes):
    pixels = np.random.default_rng(0).integers(0, 256, (N, 1, SIZE, SIZE)).astype(np.uint8)
    made = Stored(pixels)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def image_set(images):
    return ImageSet("noise", images, torch.arange(N) % 2, ("even", "odd"), Augmentation(crop=2, flip=True), SIZE)


def prepared(images):
    return prepare(image_set(images), image_size=SIZE, seed=3, fractions=(0.2, 0.2))


@pytest.fixture(scope="module")
def in_memory():
    return prepared(torch.from_numpy(source().pixels))


def same(one, other):
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streamed_batches_are_those_from_memory(in_memory, workers):
    data = prepared(StreamedImages(source(), workers=workers))
    assert data.pixels == in_memory.pixels  # fewer images than the sample
    assert (data.image_size, data.channels) == (SIZE, 1)
    expected = list(batches(in_memory.search, in_memory.pixels, 12, 8))
    found = list(batches(data.search, data.pixels, 12, 8))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def train(split):
        return TrainBatches(split, data.pixels, data.augmentation, 16, 0)

    epochs = [list(train(data.train).epoch(number)) for number in (2, 0)]  # in another order than the reference
    for number, found_epoch in zip((2, 0), epochs, strict=True):
        assert same(found_epoch, list(train(in_memory.train).epoch(number)))
    assert torch.equal(train(data.train).start_images(10, 1), train(in_memory.train).start_images(10, 1))


def test_streaming_draws_nothing_from_the_global_generator():
    images = StreamedImages(source(), workers=2)
    before = torch.random.get_rng_state()
    list(images.stream([slice(0, 5), slice(5, 10), slice(10, 15)]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_epoch_that_is_left_early_does_not_change_the_next(in_memory):
    data = prepared(StreamedImages(source(), workers=2))
    train = TrainBatches(data.train, data.pixels, data.augmentation, 16, 0)
    left = train.epoch(0)
    next(left)
    left.close()
    expected = TrainBatches(in_memory.train, data.pixels, data.augmentation, 16, 0)
    assert same(list(train.epoch(1)), list(expected.epoch(1)))


def test_views_are_chosen_as_from_a_tensor():
    stored = source()
    images, pixels = StreamedImages(stored), torch.from_numpy(stored.pixels)
    chosen = torch.tensor([7, 3, 140, 3])
    assert torch.equal(images[chosen].take(torch.arange(4)), pixels[chosen])
    assert torch.equal(images[10:60][chosen[:2]].take(torch.arange(2)), pixels[10:60][chosen[:2]])
    assert images[10:60].shape == (50, 1, SIZE, SIZE)
    split, streamed = (Split(part, torch.arange(N)) for part in (pixels, images))
    assert (split.streamed, streamed.streamed) == (False, True)
    assert torch.equal(split.subset(20, 1, "start").loaded(), streamed.subset(20, 1, "start").loaded())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_without_a_worker_s_traceback(workers):
    images = StreamedImages(source(broken=11), workers=workers)
    with pytest.raises(DataError) as error:
        list(images.stream([slice(i, i + 4) for i in range(0, 20, 4)]))
    assert str(error.value) == "11.png cannot be decoded."


def test_a_worker_that_is_killed_says_what_to_do():
    images = StreamedImages(source(deadly=11), workers=2)
    with pytest.raises(DataError, match=r"process that decodes images died.*fewer `workers`"):
        list(images.stream([slice(i, i + 4) for i in range(0, 20, 4)]))


def test_the_digest_is_of_names_labels_classes_and_pixels(in_memory):
    def digest(changes=(), workers=0, **sets):
        stored = source()
        for number, name in changes:
            stored.names[number] = name
        return prepare(
            replace(image_set(StreamedImages(stored, workers=workers)), **sets),
            image_size=SIZE,
            seed=3,
            fractions=(0.2, 0.2),
        ).digest

    assert digest() == digest(workers=2)
    other = torch.arange(N) % 2
    other[:2] = other[:2].flip(0)
    different = [digest([(5, "x.png")]), digest(class_names=("a", "b")), digest(labels=other), in_memory.digest]
    assert len({digest(), *different}) == 5


def test_the_pixel_grid_is_measured_on_a_sample_of_the_training_images():
    pixels = np.random.default_rng(1).integers(0, 256, (4000, 1, 4, 4)).astype(np.uint8)
    stored = Stored(pixels)
    images = ImageSet("noise", StreamedImages(stored), torch.arange(4000) % 2, ("a", "b"))
    data = prepare(images, image_size=4, seed=0, fractions=(0.2, 0.2))
    assert stored.read_here == PIXEL_SAMPLE
    numbers = data.train.images.numbers
    assert data.pixels == PixelGrid.of(
        torch.from_numpy(pixels)[numbers[torch.arange(PIXEL_SAMPLE) * len(numbers) // PIXEL_SAMPLE]]
    )
    everything = PixelGrid.of(torch.from_numpy(pixels))
    assert data.pixels.scale == pytest.approx(everything.scale, rel=0.02)


def test_a_stream_of_another_size_is_refused():
    with pytest.raises(DataError, match=r"streams images of \[16, 16\] pixels, but data.image_size is 8"):
        prepare(image_set(StreamedImages(source())), image_size=8, seed=0, fractions=(0.2, 0.2))


def test_the_evaluator_judges_a_stream_as_memory_and_keeps_no_more_than_calibration(
    in_memory, make_space, make_supernet, registry
):
    space = make_space(num_classes=2, resolutions=(12, 16))
    task, bn = registry.load("task", "classification")(), registry.load("calibrator", "bn")()
    settings = EvaluatorSettings(calibration_images=20, calibration_batch=10, batch_size=8)

    def evaluator(data):
        return Evaluator(make_supernet(space).eval(), data, task, [bn], {}, settings)

    streamed = evaluator(prepared(StreamedImages(source())))
    kept = evaluator(in_memory)
    for sample in (space.highest(), space.lowest()):
        for split in ("search", "test"):
            found, expected = streamed.evaluate(sample, split), kept.evaluate(sample, split)
            assert found.metrics == expected.metrics
            np.testing.assert_array_equal(found.correct, expected.correct)
    assert {name for name, _ in streamed._sized} == {"calibration"}
    assert {name for name, _ in kept._sized} == {"calibration", "search", "test"}
