"""The data set `files`: any format in, an image set out, in memory or streamed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from qnas import components
from qnas.config import load_config
from qnas.data import Augmentation, ImageSet, StreamedImages
from qnas.errors import ConfigError, DataError
from qnas_plugins.datasets import files
from qnas_plugins.datasets.files import Files


@pytest.fixture(scope="module")
def pets(tmp_path_factory, make_folder) -> Path:
    """Three classes of 12 images of 16 pixels, and a test split of 3 a class."""
    root = tmp_path_factory.mktemp("pets")
    make_folder(root / "train")
    make_folder(root / "val", each=3, seed=1)
    return root


def load(path, **options) -> ImageSet:
    return Files().load(path=str(path), **options)


def decoded(images: ImageSet) -> torch.Tensor:
    if isinstance(images.images, torch.Tensor):
        return images.images
    return images.images.take(torch.arange(len(images.labels)))


def test_a_folder_becomes_an_image_set(pets):
    images = load(pets)
    assert images.name == pets.name
    assert images.class_names == ("cat", "dog", "owl")
    assert images.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [0] * 3 + [1] * 3 + [2] * 3
    assert images.test.tolist() == list(range(36, 45))
    assert images.images.shape == (45, 3, 16, 16)
    assert images.image_size == 16
    for number, file in ((0, "train/cat/000.png"), (14, "train/dog/002.png"), (44, "val/owl/002.png")):
        np.testing.assert_array_equal(images.images[number], np.asarray(Image.open(pets / file)).transpose(2, 0, 1))


def test_every_format_gives_the_same(pets, tmp_path):
    """The pixels of the folder, written as parquet and as CIFAR's batches."""
    images = load(pets, image_size=32)
    splits = {"train": slice(0, 36), "test": slice(36, 45)}
    for name, part in splits.items():
        columns = {"image": [], "label": [images.class_names[label] for label in images.labels[part]]}
        for i, pixels in enumerate(images.images[part]):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
            columns["image"].append({"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": f"{i}.png"})
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "parquet" / f"{name}.parquet")
    rows, labels = images.images.reshape(45, -1).numpy(), images.labels.tolist()
    cifar = tmp_path / "cifar-10-batches-py"
    cifar.mkdir()
    parts = {f"data_batch_{n + 1}": slice(n * 8, n * 8 + (8 if n < 4 else 4)) for n in range(5)} | {
        "test_batch": slice(36, 45)
    }
    for name, part in parts.items():
        (cifar / name).write_bytes(pickle.dumps({b"data": rows[part], b"labels": labels[part]}, protocol=2))
    (cifar / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog", b"owl"]}, protocol=2))
    for found in (load(tmp_path / "parquet"), load(cifar), load(tmp_path)):
        assert torch.equal(found.images, images.images)
        assert torch.equal(found.labels, images.labels)
        assert torch.equal(found.test, images.test)
        assert found.class_names == images.class_names
        assert found.augmentation == images.augmentation


@pytest.mark.parametrize("size", [None, 12, 40])
def test_streamed_images_are_those_in_memory(pets, size):
    in_memory, streamed = load(pets, image_size=size), load(pets, image_size=size, memory="no", workers=2)
    assert isinstance(streamed.images, StreamedImages)
    assert streamed.images.shape == in_memory.images.shape == (45, 3, size or 16, size or 16)
    assert torch.equal(decoded(streamed), in_memory.images)
    assert torch.equal(streamed.labels, in_memory.labels)
    assert torch.equal(streamed.test, in_memory.test)
    assert streamed.images.digest() == load(pets, image_size=size, memory="no", workers=0).images.digest()


def test_the_digest_of_a_stream_holds_no_path(pets, tmp_path):
    (tmp_path / "linked").symlink_to(pets)
    assert load(tmp_path / "linked", memory="no").images.digest() == load(pets, memory="no").images.digest()


def test_what_exceeds_the_limit_is_streamed(pets):
    size = 45 * 3 * 16 * 16 / 2**30  # GiB
    assert isinstance(load(pets, memory_limit=size * 1.01).images, torch.Tensor)
    assert isinstance(load(pets, memory_limit=size * 0.99).images, StreamedImages)
    assert isinstance(load(pets, memory_limit=size * 0.99, memory="yes").images, torch.Tensor)
    assert load(pets, memory="no", workers=3).images.workers == 3
    assert 1 <= load(pets, memory="no").images.workers <= files.MOST_WORKERS


def test_a_limit_draws_so_many_of_each_class_and_split(pets):
    images, everything = load(pets, limit=2), load(pets)
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert images.test.tolist() == list(range(6, 12))
    known = {pixels.numpy().tobytes(): i for i, pixels in enumerate(everything.images)}
    chosen = [known[pixels.numpy().tobytes()] for pixels in images.images]
    assert chosen == sorted(set(chosen))
    assert everything.labels[chosen].tolist() == images.labels.tolist()
    assert torch.equal(images.images, load(pets, limit=2).images)
    assert torch.equal(decoded(load(pets, limit=2, memory="no", workers=0)), images.images)
    assert len(load(pets, limit=1000).labels) == 45


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((16, 16), {}, Augmentation(crop=2, flip=True)),
        ((64, 80), {}, Augmentation(crop=8, flip=True)),
        ((70, 70), {}, Augmentation(resized_crop=(0.08, 1.0), flip=True)),
        ((70, 70), {"image_size": 32}, Augmentation(resized_crop=(0.08, 1.0), flip=True)),
        ((70, 70), {"image_size": 32, "augment": "crop", "flip": False}, Augmentation(crop=4)),
        ((16, 16), {"augment": "resized-crop"}, Augmentation(resized_crop=(0.08, 1.0), flip=True)),
        ((16, 16), {"augment": "none"}, Augmentation(flip=True)),
        ((16, 16), {"augment": "none", "flip": False}, Augmentation()),
    ],
)
def test_augmentation_follows_the_native_size_and_the_options(tmp_path, make_folder, size, options, expected):
    make_folder(tmp_path, each=1, size=size)
    assert load(tmp_path, **options).augmentation == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(40, 30)] * 3, 30), ([(20, 16), (50, 40), (90, 90)], 40), ([(300, 400)] * 2, 224), ([(6, 7)] * 2, 8)],
)
def test_the_default_size_is_that_of_the_images_up_to_224(tmp_path, make_folder, sizes, expected):
    for number, size in enumerate(sizes):
        make_folder(tmp_path, (f"class{number}",), each=1, size=size)
    images = load(tmp_path)
    assert images.image_size == images.images.shape[-1] == expected


def test_grey_images_have_one_channel_unless_some_have_colour(tmp_path, make_folder, monkeypatch):
    make_folder(tmp_path, mode="L", each=5)
    assert load(tmp_path).images.shape[1] == 1
    assert load(tmp_path, channels=3).images.shape[1] == 3
    make_folder(tmp_path, ("emu",), each=1)  # in colour
    assert load(tmp_path).images.shape[1] == 3
    assert load(tmp_path, channels=1).images.shape[1] == 1
    monkeypatch.setattr("qnas_plugins.datasets.decode.PROBED", 2)  # which the one in colour is not among
    assert load(tmp_path).images.shape[1] == 3
    with pytest.raises(DataError, match=r"emu/000\.png in .* has colour.*channels=3"):
        decoded(load(tmp_path, memory="no", workers=0))


def test_sixteen_bits_palettes_and_alpha_are_converted(tmp_path, make_folder):
    make_folder(tmp_path, each=2)
    (tmp_path / "cat" / "000.png").unlink()
    Image.fromarray(np.full((16, 16), 200 * 257, np.uint16)).save(tmp_path / "cat" / "000.png")
    palette = Image.open(tmp_path / "dog" / "000.png").quantize(8)
    palette.save(tmp_path / "dog" / "000.gif")
    images = load(tmp_path)
    assert images.images.shape == (7, 3, 16, 16)
    assert (images.images[0] == 200).all()
    np.testing.assert_array_equal(images.images[2], np.asarray(palette.convert("RGB")).transpose(2, 0, 1))


# --- mistakes ----------------------------------------------------------------------------------------------------


def test_a_wrong_path_is_named(tmp_path):
    with pytest.raises(DataError, match=r"path .*/nowhere does not exist. Correct --data"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"needs the path of your images. Give it as --data PATH"):
        load("")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no images. Looked for parquet.*train/CLASS/IMAGE.*\.jpg.*\.png"):
        load(tmp_path)
    archive = tmp_path / "pets.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"pets.zip is no parquet file.*unpack"):
        load(archive)


def test_broken_images_are_named(tmp_path, make_folder):
    make_folder(tmp_path)
    (tmp_path / "dog" / "003.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^dog/003\.png in .* cannot be decoded: .*Repair or remove it"):
        load(tmp_path)
    (tmp_path / "dog" / "001.png").write_bytes((tmp_path / "dog" / "002.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"^2 of 36 images cannot be decoded\. The first: dog/001\.png"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"^dog/001\.png in .* cannot be decoded"):
        decoded(load(tmp_path, memory="no", workers=2))
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"^36 of 36 images"):
        load(tmp_path)


def test_one_class_and_too_few_images_are_refused(tmp_path, make_folder, registry):
    make_folder(tmp_path / "one", ("cat",))
    with pytest.raises(DataError, match=r"'one' has 1 class"):
        load(tmp_path / "one")
    make_folder(tmp_path / "few", ("cat", "dog"), each=12)
    make_folder(tmp_path / "few", ("owl",), each=3)
    config = load_config({"data": {"name": "files", "options": {"path": str(tmp_path / "few")}}})
    with pytest.raises(DataError, match=r"Class 'owl' of data set 'few' has 3 images, too few"):
        components.load_data(registry, config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit cannot be 0"),
        ({"workers": -1}, "workers cannot be -1"),
        ({"memory_limit": 0.0}, "memory_limit cannot be 0.0"),
        ({"memory": "maybe"}, "'memory' of data set 'files' cannot be 'maybe'"),
        ({"augment": "cutout"}, "'augment' .* cannot be 'cutout': .*'resized-crop'"),
        ({"channels": 4}, "'channels' .* cannot be 4"),
        ({"flip": 3}, "'flip' .* cannot be 3"),
        ({"colour": True}, "'colour' does not exist.*image_column"),
        ({"image_size": 16}, "'image_size' does not exist"),
    ],
)
def test_wrong_options_are_refused(pets, registry, options, said):
    config = load_config({"data": {"name": "files", "options": {"path": str(pets), **options}}})
    with pytest.raises(ConfigError, match=said):
        components.load_data(registry, config)


def test_a_folder_that_may_not_be_read_is_named(pets, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("qnas_plugins.datasets.folder.os.scandir", refuse)
    with pytest.raises(DataError, match=rf"{pets} cannot be read: Permission denied"):
        load(pets)


# --- from the configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["yes", "no"])
def test_the_resolved_size_gives_the_same_data_again(pets, registry, memory):
    options = {"path": str(pets), "memory": memory, "workers": 0}
    first = components.load_data(registry, load_config({"data": {"name": "files", "options": options}}))
    resolved = {"name": "files", "options": options, "image_size": first.image_size}
    assert components.load_data(registry, load_config({"data": resolved})).digest == first.digest
    assert (first.image_size, first.channels, first.train.streamed) == (16, 3, memory == "no")
    assert len(first.test) == 9
    resized = components.load_data(registry, load_config({"data": {**resolved, "image_size": 24}}))
    assert resized.image_size == 24
