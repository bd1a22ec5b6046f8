"""Augmentation: each kind against an independent reference, and slices of a batch as in the whole of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qnas.data import Augmentation

KINDS = {
    "affine": Augmentation(shift=0.1, rotate=15, scale=0.1, flip=True),
    "crop": Augmentation(crop=2, flip=True),
    "flip": Augmentation(flip=True),
    "resized": Augmentation(resized_crop=(0.08, 1.0), flip=True),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_images(n=32, channels=3, size=16):
    images = torch.rand(n, channels, size, size, generator=seeded(0))
    return images.contiguous(memory_format=torch.channels_last)


def gradients(n, size):
    """Images whose channels hold each pixel's own x and y, from -1 to 1 at the borders."""
    centres = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y]).expand(n, 2, size, size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_is_changed_as_in_the_whole_batch(kind):
    augmentation, images = KINDS[kind], random_images(37)
    drawn = augmentation.draw(len(images), seeded(3))
    whole = augmentation.apply(images, drawn)
    assert torch.equal(whole, augmentation(images, seeded(3)))
    for part in (slice(0, 1), slice(1, 9), slice(9, 37)):
        assert torch.equal(augmentation.apply(images[part], drawn[part]), whole[part])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_function_of_its_generator_and_changes_nothing_in_place(kind):
    images = random_images()
    before = images.clone()
    first = KINDS[kind](images, seeded(5))
    assert torch.equal(first, KINDS[kind](images, seeded(5)))
    assert not torch.equal(first, KINDS[kind](images, seeded(6)))
    assert torch.equal(images, before)
    assert first.shape == images.shape


def test_affine_changes_are_those_of_affine_grid():
    images = random_images()
    augmentation = Augmentation(shift=0.06, rotate=10.0, scale=0.1)
    draws = torch.rand((len(images), 5), generator=seeded(7)) * 2 - 1
    angle = draws[:, 0] * (10 * torch.pi / 180)
    zoom = 1 + draws[:, 1] * 0.1
    rows = [
        torch.stack([torch.cos(angle) * zoom, -torch.sin(angle) * zoom, draws[:, 2] * 0.12], 1),
        torch.stack([torch.sin(angle) * zoom, torch.cos(angle) * zoom, draws[:, 3] * 0.12], 1),
    ]
    where = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    expected = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    assert torch.equal(augmentation(images, seeded(7)), expected)


def test_a_crop_moves_whole_pixels_and_fills_with_zero():
    images, pad = random_images(200, size=8), 2
    augmentation = Augmentation(crop=pad, flip=True)
    drawn = augmentation.draw(len(images), seeded(1))
    changed = augmentation.apply(images, drawn)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    seen = set()
    for image, result, (down, right, mirrored) in zip(images, changed, drawn.tolist(), strict=True):
        padded = torch.zeros(3, 12, 12)
        padded[:, pad : pad + 8, pad : pad + 8] = image
        cut = padded[:, down : down + 8, right : right + 8]
        assert torch.equal(result, cut.flip(-1) if mirrored else cut)
        seen.add((down, right, mirrored))
    assert {d for d, _, _ in seen} == {r for _, r, _ in seen} == set(range(2 * pad + 1))
    assert {m for _, _, m in seen} == {0, 1}
    assert augmentation.draw(100, seeded(1))[:, 2].sum() not in (0, 100)
    assert not Augmentation(crop=pad).draw(100, seeded(1))[:, 2].any()


def test_flip_alone_mirrors_exactly():
    images = random_images(64)
    changed = Augmentation(flip=True)(images, seeded(0))
    same = [torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 16 < sum(same) < 48


def test_a_resized_crop_keeps_a_box_within_the_image_of_the_area_and_ratio_asked_for():
    n, size = 2000, 16
    changed = Augmentation(resized_crop=(0.25, 0.75), flip=True)(gradients(n, size), seeded(2))
    # Away from the borders, where nothing is repeated, a gradient is resampled exactly: read the box off it.
    middle = slice(size // 4, -size // 4)
    x, y = changed[:, 0, size // 2, middle], changed[:, 1, middle, size // 2]
    torch.testing.assert_close(changed[:, 0, 5, middle], x, rtol=0, atol=1e-5)  # upright
    slopes = [(v[:, -1] - v[:, 0]) / (v.shape[1] - 1) * size / 2 for v in (x, y)]
    width, height = slopes[0].abs(), slopes[1]
    assert (height > 0).all()
    assert 0.4 < float((slopes[0] < 0).double().mean()) < 0.6  # mirrored
    for side, values in ((width, x), (height, y)):
        centre = (values[:, 0] + values[:, -1]) / 2
        assert ((centre.abs() + side) <= 1 + 1e-4).all()
        assert float(centre.min()) < -0.3
        assert float(centre.max()) > 0.3
    area, ratio = width * height, width / height
    assert float(area.min()) == pytest.approx(0.25, abs=0.01)
    assert float(area.max()) == pytest.approx(0.75, abs=0.01)
    assert float(area.mean()) == pytest.approx(0.5, abs=0.02)  # uniform; boxes of this area nearly always fit
    assert (ratio >= 3 / 4 - 1e-3).all()
    assert (ratio <= 4 / 3 + 1e-3).all()
    assert float(ratio.log().mean()) == pytest.approx(0, abs=0.02)


def test_a_box_that_never_fits_is_the_whole_image():
    images = random_images(8)
    changed = Augmentation(resized_crop=(1.5, 2.0))(images, seeded(0))
    torch.testing.assert_close(changed, images, rtol=0, atol=1e-6)


def test_kinds_do_not_mix():
    for mixed in (
        {"crop": 2, "shift": 0.1},
        {"crop": 2, "resized_crop": (0.1, 1.0)},
        {"resized_crop": (0.1, 1), "rotate": 3},
    ):
        with pytest.raises(ValueError, match="give one"):
            Augmentation(**mixed)


def test_nothing_to_do_draws_nothing():
    images = random_images(4)
    assert Augmentation().draw(4, seeded(0)) is None
    assert Augmentation()(images, seeded(0)) is images
