"""Images in folders named after their classes, as ImageNet's are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from qnas.errors import DataError
from qnas_plugins.datasets.encoded import Found

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")  # the first that has images in classes
SKIPPED = (".", "__")  # beginnings of what operating systems and archivers leave behind


class FolderImages:
    """Image files (``Encoded``).

    Args:
        root: of all files.
        files: relative to it.
    """

    def __init__(self, root: str, files: list[str]) -> None:
        self.root = root
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def data(self, number: int) -> bytes:
        """Return the file's bytes."""
        with open(os.path.join(self.root, self.files[number]), "rb") as file:
            return file.read()

    def name(self, number: int) -> str:
        """Return the path within the root."""
        return self.files[number]

    def size(self, number: int) -> int:
        """Return the file's size, in bytes."""
        return os.path.getsize(os.path.join(self.root, self.files[number]))


def find(root: Path) -> Found | None:
    """Return the images below ``root``, or ``None`` if there are none.

    ``train/CLASS/...`` with ``test/CLASS/...`` or ``val/CLASS/...``, or ``CLASS/...`` without splits. Classes may have
    folders within. Where both a test and a validation split are there, test is the test split and validation is left
    aside, unless test's images have no classes.

    Raises:
        DataError: images lie about without a class, or the test split has a class that training images do not have.
    """
    folders = {name.lower(): name for name in _folders(root)}
    train = next((folders[name] for name in TRAIN if name in folders), None)
    tests = [folders[name] for name in TEST if name in folders]
    if train is None:
        if tests:
            raise DataError(f"{root} has {' and '.join(tests)} but no train. Name the folder of training images train.")
        images = _classes(root)
        _refuse_unsorted(root, images)
        return _found(root, images, {}) if images else None
    images = _classes(root / train)
    _refuse_unsorted(root / train, images)
    for name in tests:
        held_out = _classes(root / name)
        if any(held_out.values()):
            unknown = sorted({label for label, files in held_out.items() if files} - set(images))
            if unknown:
                raise DataError(
                    f"{root / name} has class {unknown[0]!r}, which {root / train} has not. Sort its images into the "
                    f"same classes, or move the folder {name} away to have a test split drawn."
                )
            return _found(root, images, held_out)
    return _found(root, images, {}) if images else None


def _found(root: Path, train: dict[str, list[str]], test: dict[str, list[str]]) -> Found:
    names = sorted(train)
    labelled = [
        (file, label, held_out)
        for held_out, classes in ((False, train), (True, test))
        for label, name in enumerate(names)
        for file in classes.get(name, ())
    ]
    files = np.array([os.path.relpath(file, root) for file, _, _ in labelled], dtype=object)
    held_out = np.array([is_test for _, _, is_test in labelled], dtype=bool)

    def open_files(numbers: np.ndarray[Any, Any]) -> FolderImages:
        return FolderImages(str(root), files[numbers].tolist())

    labels = np.array([label for _, label, _ in labelled], dtype=np.int64)
    return Found(labels, tuple(names), held_out if test else None, open_files)


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(SKIPPED))


def _classes(root: Path) -> dict[str, list[str]]:
    """Return the image files of every folder, sorted; nothing if there is no image at all."""
    found = {name: sorted(_images(os.path.join(root, name))) for name in _folders(root)}
    return found if any(found.values()) else {}


def _images(folder: str) -> list[str]:
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(SKIPPED)]
        found += [os.path.join(path, f) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(SKIPPED)]
    return found


def _refuse_unsorted(root: Path, classes: dict[str, list[str]]) -> None:
    """Refuse a folder whose images lie in it without a class."""
    if classes:
        return
    with os.scandir(root) as entries:
        loose = sorted(e.name for e in entries if e.is_file() and e.name.lower().endswith(SUFFIXES))
    if loose:
        raise DataError(
            f"{root} holds images ({loose[0]}, ...) that are in no class. Sort them into one folder a class: "
            f"{root / 'CLASS' / loose[0]}."
        )
