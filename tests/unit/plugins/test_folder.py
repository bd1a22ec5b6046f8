"""Folders of images: splits and classes by name, and what cannot be told is said."""

from __future__ import annotations

import numpy as np
import pytest

from qnas.errors import DataError
from qnas_plugins.datasets import folder


def listed(found):
    """Return (file, class, whether it is a test image) of every image."""
    encoded = found.open(np.arange(len(found.labels)))
    test = np.zeros(len(found.labels), bool) if found.test is None else found.test
    return [(encoded.name(i), found.class_names[found.labels[i]], bool(test[i])) for i in range(len(encoded))]


def test_classes_without_splits(tmp_path, make_folder):
    make_folder(tmp_path, ("owl", "cat"), each=2)
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "cat" / "._000.png").write_text("x")
    (tmp_path / "__MACOSX" / "cat").mkdir(parents=True)
    found = folder.find(tmp_path)
    assert found.class_names == ("cat", "owl")
    assert found.test is None
    assert listed(found) == [
        ("cat/000.png", "cat", False),
        ("cat/001.png", "cat", False),
        ("owl/000.png", "owl", False),
        ("owl/001.png", "owl", False),
    ]
    some = found.open(np.array([3, 1]))
    assert [some.name(0), some.name(1)] == ["owl/001.png", "cat/001.png"]
    assert some.data(0) == (tmp_path / "owl" / "001.png").read_bytes()
    assert some.size(0) == len(some.data(0))


@pytest.mark.parametrize("name", ["test", "val", "validation", "valid", "Test"])
def test_a_test_split_that_is_there(tmp_path, make_folder, name):
    make_folder(tmp_path / "train", ("cat", "owl"), each=2)
    make_folder(tmp_path / name, ("owl",), each=1)
    found = listed(folder.find(tmp_path))
    assert found[-1] == (f"{name}/owl/000.png", "owl", True)
    assert [is_test for _, _, is_test in found] == [False] * 4 + [True]


def test_test_comes_before_validation_unless_it_has_no_classes(tmp_path, make_folder):
    make_folder(tmp_path / "train", ("cat", "owl"), each=1)
    make_folder(tmp_path / "val", ("cat", "owl"), each=1)
    unlabelled = tmp_path / "test"
    unlabelled.mkdir()
    (unlabelled / "0.png").write_bytes((tmp_path / "val" / "cat" / "000.png").read_bytes())
    assert [name for name, _, test in listed(folder.find(tmp_path)) if test] == ["val/cat/000.png", "val/owl/000.png"]
    make_folder(tmp_path / "test", ("cat",), each=1)
    assert [name for name, _, test in listed(folder.find(tmp_path)) if test] == ["test/cat/000.png"]


def test_folders_within_a_class_belong_to_it_and_links_are_followed(tmp_path, make_folder):
    make_folder(tmp_path / "elsewhere", ("images",), each=2)
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "photo.JPEG").write_bytes(b"x")
    (tmp_path / "data" / "owl").symlink_to(tmp_path / "elsewhere")
    assert [(n, c) for n, c, _ in listed(folder.find(tmp_path / "data"))] == [
        ("cat/photo.JPEG", "cat"),
        ("owl/images/000.png", "owl"),
        ("owl/images/001.png", "owl"),
    ]


def test_an_empty_class_keeps_its_name(tmp_path, make_folder):
    make_folder(tmp_path, ("cat", "owl"), each=1)
    (tmp_path / "dog").mkdir()
    assert folder.find(tmp_path).class_names == ("cat", "dog", "owl")


def test_no_images_are_none(tmp_path):
    assert folder.find(tmp_path) is None
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert folder.find(tmp_path) is None


def test_images_without_a_class_are_refused(tmp_path, make_folder):
    image = (make_folder(tmp_path / "made", ("x",), each=1) / "x" / "000.png").read_bytes()
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "b.png").write_bytes(image)
    (flat / "a.png").write_bytes(image)
    with pytest.raises(DataError, match=r"flat holds images \(a\.png, \.\.\.\) that are in no class.*CLASS/a\.png"):
        folder.find(flat)


def test_a_test_split_alone_or_with_classes_of_its_own_is_refused(tmp_path, make_folder):
    make_folder(tmp_path / "val", ("cat", "emu"), each=1)
    with pytest.raises(DataError, match=r"has val but no train\. Name the folder"):
        folder.find(tmp_path)
    make_folder(tmp_path / "train", ("cat", "owl"), each=1)
    with pytest.raises(DataError, match=r"val has class 'emu', which .*train has not.*move the folder val away"):
        folder.find(tmp_path)
