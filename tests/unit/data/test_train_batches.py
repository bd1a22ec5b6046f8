"""Training batches shared by processes."""

from __future__ import annotations

import pytest
import torch

from qnas.data import Augmentation, Split, TrainBatches, batches
from qnas.errors import ConfigError

KINDS = {
    "affine": Augmentation(shift=0.1, rotate=15, scale=0.1),
    "crop": Augmentation(crop=2, flip=True),
    "resized": Augmentation(resized_crop=(0.08, 1.0), flip=True),
    "none": Augmentation(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_parts_of_all_ranks_are_the_whole_batch(tiny_data, kind, ranks):
    def epoch(rank, ranks):
        made = TrainBatches(tiny_data.train, tiny_data.pixels, KINDS[kind], 18, 5, rank=rank, ranks=ranks)
        assert made.steps == len(tiny_data.train) // 18
        return list(made.epoch(2))

    whole = epoch(0, 1)
    parts = [epoch(rank, ranks) for rank in range(ranks)]
    assert len(whole) == 6
    for step, (images, labels) in enumerate(whole):
        shares = [part[step] for part in parts]
        assert {len(share[1]) for share in shares} == {18 // ranks}
        assert torch.equal(torch.cat([share[0] for share in shares]), images)
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)


def test_a_batch_that_cannot_be_shared_is_refused(tiny_data):
    with pytest.raises(ConfigError, match=r"train.batch_size is 32, which 3 processes cannot share.*multiple of 3"):
        TrainBatches(tiny_data.train, tiny_data.pixels, Augmentation(), 32, 0, ranks=3)
    few = Split(tiny_data.train.images[:3], tiny_data.train.labels[:3])
    with pytest.raises(ConfigError, match=r"has 3 images, too few for 4 processes"):
        TrainBatches(few, tiny_data.pixels, Augmentation(), 8, 0, ranks=4)


def test_a_small_split_makes_batches_that_can_be_shared(tiny_data):
    made = [
        TrainBatches(tiny_data.train, tiny_data.pixels, Augmentation(), 7000, 0, rank=rank, ranks=7)
        for rank in range(7)
    ]
    assert {batch.batch_size for batch in made} == {119}  # of 120
    assert {len(next(iter(batch.epoch(0)))[1]) for batch in made} == {17}


def test_start_images_are_a_fixed_draw_of_normalised_training_images(tiny_data):
    made = TrainBatches(tiny_data.train, tiny_data.pixels, KINDS["crop"], 12, 0, rank=1, ranks=2)
    expected = tiny_data.pixels.normalise(tiny_data.train.subset(30, 4, "start").images)
    assert torch.equal(made.start_images(30, 4), expected)


def test_images_and_labels_are_on_the_device(tiny_data):
    meta = torch.device("meta")  # keeps shapes and devices, computes nothing
    made = TrainBatches(tiny_data.train, tiny_data.pixels, KINDS["affine"], 12, 0, device=meta)
    images, labels = next(iter(made.epoch(0)))
    assert (images.device, labels.device) == (meta, meta)
    assert images.shape == (12, 1, 16, 16)
    assert made.start_images(5, 0).device == meta
    assert {b.device for b in batches(tiny_data.search, tiny_data.pixels, 8, 20, device=meta)} == {meta}
