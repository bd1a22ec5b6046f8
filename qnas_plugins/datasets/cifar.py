"""CIFAR-10 and CIFAR-100 as their authors publish them: python pickles, read without running anything in them.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from qnas.errors import DataError
from qnas_plugins.datasets.encoded import Found

SIZE = 32
PUBLISHED = {
    "cifar-10-batches-py": ([f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta"),
    "cifar-100-python": (["train"], "test", "meta"),
}
LABELS = (b"labels", b"fine_labels")
NAMES = (b"label_names", b"fine_label_names")


def find(root: Path) -> Found | None:
    """Return the images in ``root`` or in the folder of the published name within it; ``None`` if it has none.

    CIFAR-100 has its 100 fine classes.

    Raises:
        DataError: a batch is missing, asks for more than a batch needs, or holds something else.
    """
    for name, (train, test, meta) in PUBLISHED.items():
        for folder in (root, root / name):
            if (folder / train[0]).is_file() and (folder / meta).is_file():
                return _load([folder / part for part in train], folder / test, folder / meta)
    return None


def _load(train: list[Path], test: Path, meta: Path) -> Found:
    described = _read(meta)
    names = next((described[key] for key in NAMES if key in described), None)
    if not isinstance(names, list):
        raise DataError(f"{meta} has no class names. Unpack the published archive again.")
    pixels, labels, held_out = [], [], []
    for path in [*train, test]:
        batch = _read(path)
        data = batch.get(b"data")
        given = next((batch[key] for key in LABELS if key in batch), None)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIZE**2:
            raise DataError(f"{path} holds no rows of {3 * SIZE**2} pixel values. Unpack the published archive again.")
        known = isinstance(given, list) and all(type(label) is int and 0 <= label < len(names) for label in given)
        if not known or len(given) != len(data):
            raise DataError(
                f"{path} has no label from 0 to {len(names) - 1} for each of its {len(data)} images. "
                "Unpack the published archive again."
            )
        pixels.append(data.reshape(-1, 3, SIZE, SIZE))
        labels.append(np.array(given, dtype=np.int64))
        held_out.append(np.full(len(data), path == test))
    texts = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names)
    return Found(np.concatenate(labels), texts, np.concatenate(held_out), pixels=np.concatenate(pixels))


def _read(path: Path) -> dict[bytes, Any]:
    """Return a batch; its arrays as NumPy's.

    Raises:
        DataError: it cannot be read, or is no pickled dictionary of plain values and arrays.
    """
    try:
        with open(path, "rb") as file:
            value = _PlainUnpickler(file, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Unpack the published archive again.") from error
    except Exception as error:  # a pickle can be broken in any way
        raise DataError(f"{path} is no CIFAR batch: {error}. Unpack the published archive again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is no CIFAR batch: it holds a {type(value).__name__}. Unpack the archive again.")
    # Batches made by today's Python have text for keys, the published ones bytes.
    plain = {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}
    return {key: item.array() if isinstance(item, _Array) else item for key, item in plain.items()}


class _Dtype:
    """Stands for ``numpy.dtype``: numbers only, since a crafted dtype could make NumPy follow foreign pointers."""

    def __init__(self, code: Any, *flags: Any) -> None:
        text = code.decode() if isinstance(code, bytes) else code
        if not isinstance(text, str) or text not in ("u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", "f4", "f8"):
            raise DataError(f"holds an array of {code!r}, which no CIFAR batch does. It was not loaded.")
        self.code = text
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.order = order if order in ("<", ">") else "="


class _Array:
    """Stands for ``numpy.ndarray`` while a pickle is read; keeps bytes until all is checked."""

    def __init__(self, *ignored: Any) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype = np.dtype(np.uint8)
        self.fortran = False
        self.raw = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.shape, self.fortran, self.raw = tuple(int(n) for n in shape), bool(fortran), bytes(raw)
        self.dtype = np.dtype(dtype.code).newbyteorder(dtype.order)
        if math.prod(self.shape) * self.dtype.itemsize != len(self.raw):
            raise DataError("holds an array whose size is not that of its data. It was not loaded.")

    def array(self) -> np.ndarray[Any, Any]:
        """Return the array itself."""
        return np.frombuffer(self.raw, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def _from_buffer(raw: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order in ("F", b"F"), raw))
    return array


def _encode(text: str, encoding: Any = "latin1") -> bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""
    return str(text).encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values and arrays of numbers. Nothing that a pickle names is ever imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for the few names that a pickled array mentions.

        Raises:
            DataError: for every other name.
        """
        package, _, rest = module.partition(".")
        if package == "numpy":
            admitted = {
                ("", "ndarray"): _Array,
                ("", "dtype"): _Dtype,
                ("multiarray", "_reconstruct"): _Array,
                ("numeric", "_frombuffer"): _from_buffer,
            }
            found = admitted.get((rest.removeprefix("core.").removeprefix("_core."), name))
            if found is not None:
                return found
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise DataError(
            f"asks for {module}.{name}, which no CIFAR batch does: a pickle can run any program, so it was not loaded. "
            "Take the published archive, https://www.cs.toronto.edu/~kriz/cifar.html."
        )
