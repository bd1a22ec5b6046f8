"""Parquet as Hugging Face writes it: files, shards, columns, class names; in memory and from a copy."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qnas.errors import ConfigError, DataError
from qnas_plugins.datasets import parquet
from qnas_plugins.datasets.parquet import Options, find

NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def no_bars():
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield
    if shown:
        datasets.enable_progress_bars()


def png(number) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(labels, start=0):
    return [png(start + i) for i in range(len(labels))], list(labels)


def write(path, labels, *, start=0, image="image", label="label", names=NAMES, group=4):
    """Write a file with the library itself, with the features Image and ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, labels = rows(labels, start)
    kind = (
        datasets.ClassLabel(names=names)
        if names
        else datasets.Value("string" if isinstance(labels[0], str) else "int64")
    )
    made = datasets.Dataset.from_dict(
        {image: [{"bytes": data, "path": None} for data in images], label: labels},
        features=datasets.Features({image: datasets.Image(), label: kind}),
    )
    made.to_parquet(str(path), batch_size=group)
    return path


def write_plain(path, columns, group=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def opened(found, numbers=None):
    return found.open(np.arange(len(found.labels)) if numbers is None else np.asarray(numbers))


def numbers_in(encoded):
    """Return the numbers that :func:`png` wrote into the images."""
    found = []
    for i in range(len(encoded)):
        red, green, _ = Image.open(io.BytesIO(encoded.data(i))).getpixel((0, 0))
        found.append(red + 256 * green)
    return found


def test_one_file(tmp_path):
    path = write(tmp_path / "animals.parquet", [0, 1, 2, 1, 0, 2, 2])
    assert pq.ParquetFile(path).num_row_groups == 2
    found = find(path, Options())
    assert found.labels.tolist() == [0, 1, 2, 1, 0, 2, 2]
    assert found.class_names == tuple(NAMES)
    assert found.test is None
    encoded = opened(found)
    assert numbers_in(encoded) == list(range(7))
    assert encoded.name(5) == "animals.parquet, row 5"
    assert encoded.size(5) == len(png(5))


@pytest.mark.parametrize("folder", [".", "data", "plain_text"])
def test_shards_in_the_hub_s_folders(tmp_path, folder):
    root = tmp_path / folder
    write(root / "train-00000-of-00002.parquet", [0, 1, 2])
    write(root / "train-00001-of-00002.parquet", [2, 1, 0, 0, 1], start=3)
    write(root / "test-00000-of-00001.parquet", [1, 0], start=8)
    found = find(tmp_path, Options())
    assert found.labels.tolist() == [0, 1, 2, 2, 1, 0, 0, 1, 1, 0]
    assert found.test.tolist() == [False] * 8 + [True] * 2
    encoded = opened(found)
    assert numbers_in(encoded) == list(range(10))
    assert encoded.name(7) == "train-00001-of-00002.parquet, row 4"
    assert encoded.name(8) == "test-00000-of-00001.parquet, row 0"
    some = opened(found, [1, 4, 9])
    assert numbers_in(some) == [1, 4, 9]
    assert [some.name(i) for i in range(3)] == [encoded.name(i) for i in (1, 4, 9)]
    assert [some.size(i) for i in range(3)] == [encoded.size(i) for i in (1, 4, 9)]


def test_test_comes_before_validation_unless_it_has_no_labels(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 2])
    write(tmp_path / "validation.parquet", [0], start=3)
    write(tmp_path / "test.parquet", [1, 1], start=4)
    assert numbers_in(opened(find(tmp_path, Options()))) == [0, 1, 2, 4, 5]
    write(tmp_path / "test.parquet", [-1, -1], start=4)  # as competitions publish it
    found = find(tmp_path, Options())
    assert numbers_in(opened(found)) == [0, 1, 2, 3]
    assert found.test.tolist() == [False, False, False, True]


def test_several_configurations_are_not_mixed(tmp_path):
    write(tmp_path / "small" / "train.parquet", [0, 1])
    write(tmp_path / "large" / "train.parquet", [0, 1])
    with pytest.raises(DataError, match=r"several folders: large, small\. Give the path of one"):
        find(tmp_path, Options())
    assert find(tmp_path / "small", Options()).labels.tolist() == [0, 1]


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("picture", "labels"), ("photo", "species")])
def test_other_names_of_columns_are_found(tmp_path, image, label):
    path = write(tmp_path / "a.parquet", [0, 1, 2], image=image, label=label)
    found = find(path, Options())
    assert found.class_names == tuple(NAMES)
    assert numbers_in(opened(found)) == [0, 1, 2]


def test_columns_may_be_named(tmp_path):
    images, _ = rows([0] * 4)
    others, _ = rows([0] * 4, start=50)
    columns = {"image": images, "thumbnail": others, "label": [0, 1, 0, 1], "colour": ["red", "blue", "red", "blue"]}
    path = write_plain(tmp_path / "a.parquet", columns)
    found = find(path, Options("thumbnail", "colour"))
    assert numbers_in(opened(found)) == [50, 51, 52, 53]
    assert found.class_names == ("blue", "red")
    assert found.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigError, match=r"'colours' does not exist. Did you mean 'colour'.*label_column in \[data"):
        find(path, Options("", "colours"))
    with pytest.raises(ConfigError, match=r"'img' does not exist.*Allowed: .*thumbnail.*image_column"):
        find(path, Options("img", ""))
    with pytest.raises(DataError, match=r"'colour' of .* holds string, not encoded images"):
        find(path, Options("colour", ""))


def test_plain_columns_give_their_values_as_names(tmp_path):
    images, labels = rows([7, 3, 7, 10])
    found = find(write_plain(tmp_path / "a.parquet", {"image": images, "label": labels}), Options())
    assert found.class_names == ("3", "7", "10")
    assert found.labels.tolist() == [1, 0, 1, 2]
    large = pa.array(images, pa.large_binary())
    found = find(write_plain(tmp_path / "b.parquet", {"image": large, "label": [True, False, True, True]}), Options())
    assert found.class_names == ("False", "True")
    assert numbers_in(opened(found)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": rows([0])[0]}, "has no column of labels.*Its columns: image.*label_column=NAME"),
        ({"label": [0], "text": ["a"]}, "has no column of images.*Its columns: label, text.*image_column=NAME"),
        ({"image": rows([0] * 2)[0], "label": [0, None]}, "'label' of .* holds int and missing"),
        ({"image": rows([0] * 2)[0], "label": [0.5, 1.0]}, "holds float"),
        ({"image": rows([])[0], "label": []}, "has no column|holds nothing"),
    ],
)
def test_unusable_columns_are_said(tmp_path, columns, said):
    path = write_plain(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=said):
        find(path, Options())


def test_labels_beyond_the_class_names_are_refused(tmp_path):
    path = write(tmp_path / "train.parquet", [0, -1, 2, -1])
    with pytest.raises(DataError, match=r"2 labels of .* are not from 0 to 2, the first is -1"):
        find(path, Options())


def test_files_must_have_the_same_columns(tmp_path):
    write(tmp_path / "train-0.parquet", [0, 1])
    write(tmp_path / "train-1.parquet", [0, 1], label="kind")
    with pytest.raises(DataError, match=r"train-1.parquet has no column 'label', which other files"):
        find(tmp_path, Options())


def test_a_torn_file_is_named(tmp_path):
    path = write(tmp_path / "train.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"train.parquet cannot be read as parquet"):
        find(tmp_path, Options())


def test_a_row_without_bytes_is_broken_not_fatal(tmp_path):
    column = pa.array([{"bytes": png(0), "path": "a"}, {"bytes": None, "path": "b"}])
    encoded = opened(find(write_plain(tmp_path / "a.parquet", {"image": column, "label": [0, 1]}), Options()))
    with pytest.raises(ValueError, match="no bytes"):
        encoded.data(1)
    assert encoded.size(1) == 0


def test_other_folders_have_no_parquet(tmp_path):
    assert find(tmp_path, Options()) is None
    (tmp_path / "x.txt").write_text("")
    assert find(tmp_path / "x.txt", Options()) is None


def test_images_beyond_the_limit_want_a_folder_for_a_copy(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 2])
    with pytest.raises(DataError, match=r"more than memory_limit.*data\.options\.cache=FOLDER"):
        opened(find(tmp_path, Options(memory_bytes=100)))


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from qnas_plugins.datasets.parquet import Options, find
found = find(Path(sys.argv[1]), Options(memory_bytes=10, cache=sys.argv[2]))
for _ in range(2):  # the second time from the copy that is there
    encoded = found.open(np.array([0, 2, 3, 6, 7]))
print([encoded.name(i) for i in range(5)], [bytes(encoded.data(i))[:4] == b"\\x89PNG" for i in range(5)])
print([encoded.size(i) for i in range(5)])
"""


def test_a_copy_lies_in_the_folder_named_and_nowhere_else(tmp_path):
    data, cache, home = tmp_path / "data", tmp_path / "cache", tmp_path / "home"
    write(data / "train-0.parquet", [0, 1, 2, 0])
    write(data / "train-1.parquet", [0, 1], start=4)
    write(data / "test.parquet", [2, 1], start=6)
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(data), str(cache)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    names, sizes = done.stdout.splitlines()
    memory = opened(find(data, Options()), [0, 2, 3, 6, 7])
    assert names == str([memory.name(i) for i in range(5)]) + " [True, True, True, True, True]"
    assert sizes == str([len(png(i)) for i in (0, 2, 3, 6, 7)])
    assert not done.stderr
    assert not [path for path in home.rglob("*") if path.is_file()]
    copies = list(cache.rglob("*.arrow"))
    assert len(copies) == 1
    assert sorted(path.name for path in data.iterdir()) == ["test.parquet", "train-0.parquet", "train-1.parquet"]


def test_images_from_a_copy_are_those_of_the_file(tmp_path):
    write(tmp_path / "data" / "train.parquet", [0, 1, 2, 0, 1])
    found = find(tmp_path / "data", Options(memory_bytes=10, cache=str(tmp_path / "cache")))
    assert numbers_in(opened(found)) == list(range(5))
    assert numbers_in(opened(found, [1, 4])) == [1, 4]
    assert datasets.is_progress_bar_enabled() is False  # as before


def test_words_of_splits():
    def split(name):
        return next(iter(parquet._by_split([parquet.Path(name)])), None)

    assert [split(n) for n in ("train.parquet", "train-00000-of-00001.parquet", "cifar_train.parquet")] == ["train"] * 3
    assert [split(n) for n in ("val.parquet", "dev-0.parquet", "validation_1.parquet")] == ["validation"] * 3
    assert split("test-00000-of-00001.parquet") == "test"
    assert [split(n) for n in ("trainer.parquet", "latest.parquet", "0000.parquet")] == [None] * 3
