"""Scenes: what is told of the objects is what was painted, and no image serves two splits."""

from __future__ import annotations

import pytest
import torch

from qnas.components import load_data
from qnas.config import DataConfig, RunConfig
from qnas.data import prepare
from qnas.errors import ConfigError

FEW = {"train": 40, "search": 12, "test": 10}


@pytest.fixture(scope="module")
def scenes(registry):
    return registry.load("dataset", "scenes")()


@pytest.fixture(scope="module")
def digits(registry):
    return prepare(registry.load("dataset", "digits")().load(), image_size=8, seed=0, fractions=(0.2, 0.2))


@pytest.fixture(scope="module")
def made(scenes):
    return scenes.load(**FEW)


def objects(targets):
    return [(int(b[0]), *map(int, b[1:])) for b in targets.tolist() if b[0] >= 0]


def test_shapes_and_splits(made):
    assert made.images.shape == (62, 1, 64, 64)
    assert made.labels.shape == (62, 4, 5)
    assert made.search.tolist() == list(range(40, 52))
    assert made.test.tolist() == list(range(52, 62))
    assert not made.has_classes
    assert made.image_size == 64
    assert len(made.class_names) == 10


def test_objects_lie_on_the_canvas_with_little_overlap(made):
    counts = set()
    for targets in made.labels:
        found = objects(targets)
        counts.add(len(found))
        assert (targets[len(found) :] == torch.tensor([-1.0, 0, 0, 0, 0])).all()  # padding comes last
        for i, (label, x1, y1, x2, y2) in enumerate(found):
            assert 0 <= label < 10
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 64
            assert min(x2 - x1, y2 - y1) >= 64 * 0.25 / 2**0.125 - 1
            assert max(x2 - x1, y2 - y1) <= 64 * 0.5 * 2**0.125 + 1
            for _, u1, v1, u2, v2 in found[:i]:
                shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
                assert shared <= 0.1 * min((x2 - x1) * (y2 - y1), (u2 - u1) * (v2 - v1))
    assert counts == {1, 2, 3, 4}


def nearest(patch, images):
    """Return how far the nearest image is from a patch, in mean grey levels, and its number."""
    small = torch.nn.functional.interpolate(patch[None].float(), (8, 8), mode="bilinear", antialias=True)
    distances = (images.float() - small).abs().mean((1, 2, 3))
    return float(distances.min()), int(distances.argmin())


def test_an_object_is_an_image_of_its_class_and_of_its_split(made, digits):
    parts = {"train": range(40), "search": range(40, 52), "test": range(52, 62)}
    for name, numbers in parts.items():
        split = digits.split(name)
        checked = 0
        for number in numbers:
            found = objects(made.labels[number])
            if len(found) != 1:
                continue
            label, x1, y1, x2, y2 = found[0]
            patch = made.images[number][:, y1:y2, x1:x2]
            distance, at = nearest(patch, split.images)
            assert int(split.labels[at]) == label
            others = [nearest(patch, digits.split(other).images)[0] for other in parts if other != name]
            assert distance < min(others)
            checked += 1
        assert checked


def test_backgrounds_are_not_constant(made):
    for image, targets in zip(made.images, made.labels, strict=True):
        outside = torch.ones(64, 64, dtype=torch.bool)
        for _, x1, y1, x2, y2 in objects(targets):
            outside[y1:y2, x1:x2] = False
        assert image[0][outside].float().std() > 2


def test_scenes_are_a_function_of_the_seed(scenes, made):
    again, other = scenes.load(**FEW), scenes.load(**FEW, seed=1)
    assert torch.equal(again.images, made.images)
    assert torch.equal(again.labels, made.labels)
    assert not torch.equal(other.labels, made.labels)
    longer = scenes.load(**{**FEW, "train": 41})
    assert torch.equal(longer.images[:40], made.images[:40])


def test_a_run_takes_them_with_the_splits_that_they_come_with(registry):
    options = {**FEW, "most": 2}
    data = load_data(registry, RunConfig(data=DataConfig(name="scenes", image_size=48, options=options)))
    assert {name: len(data.split(name)) for name in FEW} == FEW
    assert data.train.images.shape[1:] == (1, 48, 48)
    assert data.test.labels.shape == (10, 2, 5)
    assert data.digest != load_data(registry, RunConfig(data=DataConfig(name="scenes", options=options))).digest


def test_of_the_users_own_images(scenes, tmp_path, make_folder):
    path = str(make_folder(tmp_path / "pets", each=20, size=(24, 20)))
    made = scenes.load(source="files", source_options={"path": path}, image_size=40, **FEW)
    assert made.images.shape == (62, 3, 40, 40)
    assert made.class_names == ("cat", "dog", "owl")
    label, x1, y1, x2, y2 = next(o[0] for o in map(objects, made.labels) if len(o) == 1)
    number = next(i for i, o in enumerate(map(objects, made.labels)) if len(o) == 1)
    patch = made.images[number][:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean((1, 2))
    assert int(patch.argmax()) == label  # each class has a colour of its own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "scenes"}, "cannot be composed of scenes"),
        ({"fewest": 5}, "'fewest' of data set scenes cannot be 5; give 1 to most = 4"),
        ({"smallest": 0.0}, "'smallest' of data set scenes cannot be 0.0"),
        ({"largest": 0.9}, "'largest' of data set scenes cannot be 0.9; give 0.8 at most"),
        ({"overlap": 1.0}, "'overlap'"),
        ({"test": 1}, "'test' of data set scenes cannot be 1; give 2 or more"),
        ({"image_size": 8}, "'image_size'"),
    ],
)
def test_options_out_of_range(scenes, options, message):
    with pytest.raises(ConfigError, match=message):
        scenes.load(**options)
