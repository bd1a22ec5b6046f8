"""CIFAR's pickles: the published layout is read, and nothing that a pickle names is ever run."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from qnas.errors import DataError
from qnas_plugins.datasets import cifar
from qnas_plugins.datasets.files import Files

CLASSES = ["cat", "dog", "owl"]


def write_cifar10(root, *, each=4, protocol=2, keys=lambda text: text.encode(), spoil=None):
    """Write six batches as the authors' Python 2 did; ``spoil`` may change a batch before it is written."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    pixels, labels = [], []
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        batch = {
            keys("data"): rng.integers(0, 256, (3 * each, 3072)).astype(np.uint8),
            keys("labels"): [int(label) for label in rng.permutation(np.arange(3 * each) % 3)],
            keys("filenames"): [f"{i}.png".encode() for i in range(3 * each)],
        }
        pixels.append(batch[keys("data")])
        labels += batch[keys("labels")]
        value = spoil(name, batch) if spoil else batch
        (root / name).write_bytes(pickle.dumps(value, protocol=protocol))
    (root / "batches.meta").write_bytes(
        pickle.dumps({keys("label_names"): [n.encode() for n in CLASSES]}, protocol=protocol)
    )
    return np.concatenate(pixels), labels


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("keys", [str.encode, str], ids=["bytes", "text"])
def test_cifar10_is_read_from_its_folder_or_the_one_above(tmp_path, protocol, keys):
    pixels, labels = write_cifar10(tmp_path / "cifar-10-batches-py", protocol=protocol, keys=keys)
    for path in (tmp_path, tmp_path / "cifar-10-batches-py"):
        found = cifar.find(path)
        np.testing.assert_array_equal(found.pixels.reshape(-1, 3072), pixels)
        assert found.pixels.shape == (72, 3, 32, 32)
        assert found.labels.tolist() == labels
        assert found.class_names == tuple(CLASSES)
        assert found.test.tolist() == [False] * 60 + [True] * 12


def test_cifar100_has_its_fine_classes(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, n in (("train", 40), ("test", 10)):
        batch = {
            b"data": rng.integers(0, 256, (n, 3072)).astype(np.uint8),
            b"fine_labels": [i % 4 for i in range(n)],
            b"coarse_labels": [0] * n,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {b"fine_label_names": [b"apple", b"baby", b"bear", b"bed"], b"coarse_label_names": [b"all"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    found = cifar.find(tmp_path)
    assert found.class_names == ("apple", "baby", "bear", "bed")
    assert found.labels.tolist() == [i % 4 for i in range(40)] + [i % 4 for i in range(10)]
    assert found.test.sum() == 10


def test_what_python_2_wrote_is_read(tmp_path):
    # As in the published files: protocol 2 with Python 2's short strings, which Python 3 no longer writes.
    def text(value):
        return b"U" + bytes([len(value)]) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(b"abcdef") + b"tb"
    )
    (tmp_path / "batch").write_bytes(b"\x80\x02}" + text(b"data") + array + b"s.")
    found = cifar._read(tmp_path / "batch")
    np.testing.assert_array_equal(found[b"data"], np.frombuffer(b"abcdef", np.uint8).reshape(2, 3))


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {mark}",), "system"),
        (eval, ("open({mark!r}, 'w')",), "eval"),
        (open, ("{mark}", "w"), "open"),
        (getattr, (1, "real"), "getattr"),
        (np.load, ("{mark}",), "numpy.load"),
        (np.memmap, ("{mark}", "uint8", "w+", 0, 5), "memmap"),
        (__import__, ("os",), "__import__"),
    ],
)
def test_a_pickle_that_runs_something_is_refused(tmp_path, function, arguments, name):
    mark = tmp_path / "mark"
    bad = Calls(function, *(a.format(mark=mark) if isinstance(a, str) else a for a in arguments))
    write_cifar10(tmp_path / "c", spoil=lambda n, b: {**b, b"extra": bad} if n == "data_batch_3" else b)
    with pytest.raises(DataError, match=rf"data_batch_3 asks for .*{name}.* was not loaded.*Take the published"):
        Files().load(path=str(tmp_path / "c"))
    assert not mark.exists()


def test_arrays_of_objects_and_of_false_sizes_are_refused(tmp_path):
    objects = np.array([{"a": 1}, None], dtype=object)
    write_cifar10(tmp_path / "o", spoil=lambda n, b: {**b, b"data": objects})
    with pytest.raises(DataError, match=r"data_batch_1 holds an array of 'O8'.*not loaded"):
        cifar.find(tmp_path / "o")
    fields = np.zeros(3, dtype=[("a", "u1"), ("b", "u1")])
    write_cifar10(tmp_path / "f", spoil=lambda n, b: {**b, b"data": fields})
    with pytest.raises(DataError, match=r"data_batch_1 holds an array of 'V2'.*not loaded"):
        cifar.find(tmp_path / "f")
    short = pickle.dumps({b"data": np.zeros(4, np.uint8)}, protocol=2).replace(b"K\x01K\x04\x85", b"K\x01K\x09\x85")
    (tmp_path / "short").write_bytes(short)
    with pytest.raises(DataError, match="size is not that of its data"):
        cifar._read(tmp_path / "short")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda n, b: [1, 2], "holds a list"),
        (lambda n, b: {**b, b"data": np.zeros((3, 5), np.uint8)}, "no rows of 3072 pixel values"),
        (lambda n, b: {**b, b"data": b[b"data"].astype(np.float32)}, "no rows of 3072 pixel values"),
        (lambda n, b: {**b, b"labels": b[b"labels"][:-1]}, "no label from 0 to 2 for each of its 12 images"),
        (lambda n, b: {**b, b"labels": [7] * 12}, "no label from 0 to 2"),
        (lambda n, b: {**b, b"labels": [[0]] * 12}, "no label from 0 to 2"),
        (lambda n, b: {b"data": b[b"data"]}, "no label from 0 to 2"),
    ],
)
def test_batches_of_something_else_are_named(tmp_path, spoil, said):
    write_cifar10(tmp_path, spoil=lambda n, b: spoil(n, b) if n == "data_batch_2" else b)
    with pytest.raises(DataError, match=rf"data_batch_2 .*{said}.*Unpack"):
        cifar.find(tmp_path)


def test_torn_and_missing_batches_are_named(tmp_path):
    write_cifar10(tmp_path)
    whole = (tmp_path / "data_batch_4").read_bytes()
    (tmp_path / "data_batch_4").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"data_batch_4 is no CIFAR batch: .*Unpack"):
        cifar.find(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"data_batch_4 cannot be read: No such file.*Unpack"):
        cifar.find(tmp_path)


def test_other_folders_are_none_of_cifar_s(tmp_path):
    (tmp_path / "train").mkdir()
    assert cifar.find(tmp_path) is None
    assert cifar.find(tmp_path / "missing") is None
