"""Splits, pixel grid, augmentation and batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnas.data import (
    MIN_SPLIT,
    Augmentation,
    Data,
    ImageSet,
    PixelGrid,
    Split,
    TrainBatches,
    batches,
    prepare,
    resize,
    resize_uint8,
)
from qnas.errors import DataError

FRACTIONS = (0.2, 0.2)
NAMES = ("cat", "dog", "owl")


def image_set(counts, *, test=None, search=None, shuffle=0, size=8):
    """Return images whose first two pixels hold the image's own number, so that splits can be traced."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(shuffle))]
    images = torch.zeros(len(labels), 1, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = (torch.arange(len(labels)) % 256).to(torch.uint8)
    images[:, 0, 0, 1] = (torch.arange(len(labels)) // 256).to(torch.uint8)
    images[:, 0, 1:] = (labels * 80).to(torch.uint8)[:, None, None]
    return ImageSet("pets", images, labels, NAMES[: len(counts)], test=test, search=search)


def numbers(split: Split) -> list[int]:
    images = split.images.int()
    return (images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1]).tolist()


def made(images, *, seed=0, size=8, fractions=FRACTIONS) -> Data:
    return prepare(images, image_size=size, seed=seed, fractions=fractions)


# --- splits ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(12, 60), min_size=2, max_size=3),
    seed=st.integers(0, 1000),
    fractions=st.tuples(st.floats(0.15, 0.4), st.floats(0.15, 0.4)),
)
def test_splits_are_disjoint_stratified_and_cover_everything(counts, seed, fractions):
    images = image_set(counts)
    data = made(images, seed=seed, fractions=fractions)
    parts = [numbers(data.split(name)) for name in ("train", "search", "test")]
    assert sorted(n for part in parts for n in part) == list(range(sum(counts)))
    for part, fraction in ((data.search, fractions[0]), (data.test, fractions[1])):
        found = Counter(part.labels.tolist())
        for label, count in enumerate(counts):
            assert found[label] == round(fraction * count)
    for name in ("train", "search", "test"):
        split = data.split(name)
        assert torch.equal(split.labels, images.labels[numbers(split)])
        assert min(Counter(split.labels.tolist()).values()) >= MIN_SPLIT


def test_splits_depend_on_the_seed_alone():
    images = image_set([30, 30, 40])
    first, again, other = made(images, seed=1), made(images, seed=1), made(images, seed=2)
    for name in ("train", "search", "test"):
        assert torch.equal(first.split(name).images, again.split(name).images)
        assert numbers(first.split(name)) != numbers(other.split(name))
    torch.manual_seed(99)
    assert numbers(made(images, seed=1).train) == numbers(first.train)


def test_image_size_does_not_move_images_between_splits():
    images = image_set([30, 30])
    small, large = made(images, size=4), made(images, size=16)
    for name in ("train", "search", "test"):
        assert torch.equal(small.split(name).labels, large.split(name).labels)
        assert small.split(name).images.shape[-2:] == (4, 4)
        assert large.split(name).images.shape[-2:] == (16, 16)


def test_a_given_test_split_is_kept():
    given_test = torch.tensor([3, 17, 40, 41, 59])
    images = image_set([30, 30], test=given_test)
    for seed in range(3):
        data = made(images, seed=seed)
        assert numbers(data.test) == given_test.tolist()
        assert not set(numbers(data.train)) & set(numbers(data.search))
        assert sorted(numbers(data.train) + numbers(data.search) + numbers(data.test)) == list(range(60))


def test_a_given_search_split_is_kept():
    given_test, given_search = torch.tensor([3, 17, 40, 41, 59]), torch.tensor([0, 1, 20, 21])
    images = image_set([30, 30], search=given_search)
    data = made(images)
    assert numbers(data.search) == given_search.tolist()
    left = [30 - int((images.labels[given_search] == label).sum()) for label in (0, 1)]
    assert Counter(data.test.labels.tolist()) == {label: round(0.2 * n) for label, n in enumerate(left)}
    both = made(image_set([30, 30], test=given_test, search=given_search))
    assert (numbers(both.search), numbers(both.test)) == (given_search.tolist(), given_test.tolist())
    assert sorted(numbers(both.train) + given_search.tolist() + given_test.tolist()) == list(range(60))


@pytest.mark.parametrize("shape", [(4, 5), (3,), ()])
def test_targets_that_are_no_classes_are_split_at_random(shape):
    images = image_set([50, 3])  # of which three would be too few for a class
    targets = torch.randn(53, *shape, generator=torch.Generator().manual_seed(0))
    images = replace(images, labels=targets, class_names=("cat",))
    assert not images.has_classes
    data, other = made(images), made(images, seed=1)
    parts = [numbers(data.split(name)) for name in ("train", "search", "test")]
    assert list(map(len, parts)) == [31, 11, 11]
    assert sorted(n for part in parts for n in part) == list(range(53))
    assert numbers(other.test) != parts[2]
    for name, part in zip(("train", "search", "test"), parts, strict=True):
        assert torch.equal(data.split(name).labels, targets[part])
    digest = replace(data, test=replace(data.test, labels=data.test.labels + 1)).digest
    assert digest != data.digest


def test_too_few_images_without_classes_are_named():
    images = replace(image_set([3, 3]), labels=torch.zeros(6, 2, 5))
    with pytest.raises(DataError, match=r"Data set 'pets' has 6 images, too few"):
        made(images)


@pytest.mark.parametrize("counts", [[30, 3], [4, 30], [30, 0]])
def test_a_class_with_too_few_images_is_named(counts):
    small = NAMES[counts.index(min(counts))]
    with pytest.raises(DataError, match=rf"Class '{small}' of data set 'pets' has {min(counts)} images.*\[data\]"):
        made(image_set(counts))


def test_one_class_is_refused():
    with pytest.raises(DataError, match=r"'pets' has 1 class; .*Add images of another class"):
        image_set([30])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_malformed_images_are_refused_with_their_shape(images, labels):
    with pytest.raises(DataError, match=r"uint8 images \[N, C, H, W\].*given:"):
        ImageSet("odd", images, labels, ("a", "b"))


def test_subset_is_a_fixed_draw_without_replacement():
    split = made(image_set([200, 200])).train
    part = split.subset(50, 3, "calibration")
    assert numbers(part) == numbers(split.subset(50, 3, "calibration"))
    assert len(set(numbers(part))) == len(part) == 50
    assert set(numbers(part)) <= set(numbers(split))
    assert numbers(part) != numbers(split.subset(50, 4, "calibration"))
    assert numbers(part) != numbers(split.subset(50, 3, "start"))
    assert split.subset(10_000, 3, "calibration") is split


# --- pixels ------------------------------------------------------------------------------------------------------


def test_pixel_grid_normalises_and_is_measured_on_the_training_split():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    pixels = torch.randint(0, 256, (200, 3, 8, 8), generator=rng).to(torch.uint8)
    data = made(ImageSet("noise", pixels, labels, ("a", "b")))
    assert data.pixels == PixelGrid.of(data.train.images)
    values = data.pixels.normalise(data.train.images)
    assert values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert abs(float(values.mean())) <= 0.5 * data.pixels.scale  # the mean is rounded to a whole pixel
    assert float(values.double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert (data.channels, data.num_classes) == (3, 2)


def test_pixels_enter_the_integer_grid_without_loss():
    grid = PixelGrid(1 / 60, 117)
    pixels = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    affine = grid.affine()
    back = torch.round(grid.normalise(pixels) / affine.scale) + affine.zero_point
    assert torch.equal(back.to(torch.uint8), pixels)
    assert torch.equal(pixels, torch.arange(256).to(torch.uint8).view(1, 1, 16, 16))  # not changed in place


def test_constant_images_have_a_grid():
    grid = PixelGrid.of(torch.full((3, 1, 4, 4), 7, dtype=torch.uint8))
    assert grid == PixelGrid(1.0, 7)


def test_resizing_to_the_same_size_is_the_same_tensor():
    images = torch.randint(0, 256, (2, 1, 8, 8)).to(torch.uint8)
    assert resize_uint8(images, 8) is images
    floats = images.float()
    assert resize(floats, 8) is floats


def test_resizing_keeps_shape_type_range_and_constants():
    images = torch.full((2, 3, 9, 9), 200, dtype=torch.uint8)
    for size in (4, 9, 20):
        sized = resize_uint8(images, size)
        assert sized.dtype == torch.uint8
        assert sized.shape == (2, 3, size, size)
        assert (sized == 200).all()
    assert resize_uint8(torch.zeros(1, 1, 6, 10, dtype=torch.uint8), 8).shape == (1, 1, 8, 8)


# --- augmentation ------------------------------------------------------------------------------------------------

STRONG = Augmentation(shift=0.2, rotate=20, scale=0.2, flip=True)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_augmentation_is_a_function_of_its_generator():
    images = torch.rand(16, 3, 8, 8, generator=generator(0))
    before = images.clone()
    torch.manual_seed(1)
    first = STRONG(images, generator(5))
    torch.manual_seed(2)
    assert torch.equal(first, STRONG(images, generator(5)))
    assert not torch.equal(first, STRONG(images, generator(6)))
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert not torch.equal(first, images)


def test_augmentation_keeps_values_within_those_of_the_image():
    images = torch.rand(16, 1, 8, 8, generator=generator(0))
    changed = STRONG(images, generator(1))
    low, high = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    assert (changed.amin((1, 2, 3)) >= low - 1e-6).all()
    assert (changed.amax((1, 2, 3)) <= high + 1e-6).all()


def test_no_augmentation_is_the_same_tensor():
    images = torch.rand(2, 1, 8, 8)
    assert Augmentation()(images, generator(0)) is images


def test_flip_mirrors_some_images_and_leaves_the_others():
    images = torch.rand(64, 1, 8, 8, generator=generator(0))
    changed = Augmentation(flip=True)(images, generator(0))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(changed, images, strict=True)]
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 16 < sum(same) < 48


# --- batches -----------------------------------------------------------------------------------------------------


def test_batches_give_every_image_once_in_order(tiny_data):
    split = tiny_data.search
    found = list(batches(split, tiny_data.pixels, 16, 25))
    assert [len(b) for b in found] == [25, 25, 10]
    torch.testing.assert_close(torch.cat(found), tiny_data.pixels.normalise(split.images), rtol=0, atol=0)
    assert all(b.is_contiguous(memory_format=torch.channels_last) for b in found)
    assert [b.shape[-1] for b in batches(split, tiny_data.pixels, 8, 60)] == [8]


def test_whole_batches_leave_out_a_smaller_last_one_unless_it_is_the_only_one(tiny_data):
    def sizes(batch_size):
        return [len(b) for b in batches(tiny_data.search, tiny_data.pixels, 16, batch_size, whole=True)]

    assert sizes(25) == [25, 25]
    assert sizes(30) == [30, 30]
    assert sizes(100) == [60]


def train_batches(data, *, batch_size=32, seed=0):
    return TrainBatches(data.train, data.pixels, STRONG, batch_size, seed)


def test_training_batches_are_functions_of_seed_and_epoch(tiny_data):
    def epoch(number, **given_options):
        return [(x.clone(), y) for x, y in train_batches(tiny_data, **given_options).epoch(number)]

    def same(one, other):
        return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))

    first = epoch(3)
    torch.manual_seed(7)
    assert same(first, epoch(3))
    assert not same(first, epoch(4))
    assert not same(first, epoch(3, seed=1))


def test_an_epoch_has_whole_batches_of_different_images(tiny_data):
    plain = TrainBatches(tiny_data.train, tiny_data.pixels, Augmentation(), 32, 0)
    found = list(plain.epoch(0))
    assert len(found) == plain.steps == len(tiny_data.train) // 32
    assert all(len(images) == len(labels) == 32 for images, labels in found)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(
        tiny_data.pixels.normalise(tiny_data.train.images).contiguous(), tiny_data.train.labels, strict=True
    )}  # fmt: skip
    drawn = [
        (image.contiguous().numpy().tobytes(), int(label))
        for images, labels in found
        for image, label in zip(images, labels, strict=True)
    ]
    assert len({image for image, _ in drawn}) == len(drawn)
    assert all(known[image] == label for image, label in drawn)  # labels stay with their images


def test_a_batch_is_never_larger_than_the_split(tiny_data):
    large = train_batches(tiny_data, batch_size=10_000)
    assert large.steps == 1
    assert len(next(iter(large.epoch(0)))[1]) == len(tiny_data.train)


def test_the_pixel_grid_does_not_depend_on_threads():
    images = torch.randint(0, 256, (4000, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    grids = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        grids.add(PixelGrid.of(images))
    torch.set_num_threads(1)
    (grid,) = grids
    pixels = images.double()
    assert grid.zero_point == round(float(pixels.mean()))
    assert grid.scale == pytest.approx(1 / float(pixels.std(correction=0)), rel=1e-12)
