"""Images in parquet files, as Hugging Face's ``datasets`` writes them.

pyarrow reads them directly: ``datasets.load_dataset`` would first copy all of it into a cache in the user's home, and
its stream knows no order but the file's (CIFAR-10's training images: 47 MB copied; 6,500 images a second streamed,
9,000 read by row). The library serves where the encoded images do not fit into memory: its memory-mapped copy then lies
in a folder that the user names.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qnas.errors import ConfigError, DataError, unknown_name
from qnas_plugins.datasets.encoded import Found

SPLITS = {
    "train": "train|training",
    "test": "test|testing|eval|evaluation",
    "validation": "validation|valid|val|dev",
}  # words of file names, as the Hugging Face hub reads them
IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category")


@dataclass(frozen=True)
class Options:
    """What the user says about parquet files.

    Attributes:
        image_column, label_column: empty to find them.
        memory_bytes: largest size of encoded images in memory.
        cache: folder for a copy of those that are larger; empty to refuse them.
    """

    image_column: str = ""
    label_column: str = ""
    memory_bytes: float = float("inf")
    cache: str = ""


class ParquetImages:
    """Encoded images of parquet files (``Encoded``), in memory or memory-mapped.

    Args:
        columns: chunks of the image column, as bytes or as structs of bytes and path.
        numbers: ``[N]`` of the images among the rows of the chunks.
        rows: ``[N]`` of the images among the rows of all files.
        files: names and numbers of rows of the files.
    """

    def __init__(
        self, columns: list[pa.Array], numbers: np.ndarray[Any, Any], rows: np.ndarray[Any, Any],
        files: list[tuple[str, int]],
    ) -> None:  # fmt: skip
        self.bytes = [c.field("bytes") if pa.types.is_struct(c.type) else c for c in columns]
        self.starts = np.cumsum([0, *map(len, columns)]).tolist()
        self.numbers = numbers
        self.rows = rows
        self.files = [name for name, _ in files]
        self.file_starts = np.cumsum([0, *(count for _, count in files)]).tolist()

    def __len__(self) -> int:
        return len(self.numbers)

    def _scalar(self, number: int) -> Any:
        row = int(self.numbers[number])
        chunk = bisect_right(self.starts, row) - 1
        return self.bytes[chunk][row - self.starts[chunk]]

    def data(self, number: int) -> Any:
        """Return the bytes, not copied."""
        found = self._scalar(number).as_buffer()
        if found is None:
            raise ValueError("its row holds no bytes")
        return found

    def name(self, number: int) -> str:
        """Return the file and the row in it, from 0."""
        row = int(self.rows[number])
        file = bisect_right(self.file_starts, row) - 1
        return f"{self.files[file]}, row {row - self.file_starts[file]}"

    def size(self, number: int) -> int:
        """Return the number of bytes."""
        found = self._scalar(number).as_buffer()
        return 0 if found is None else len(found)


def find(root: Path, options: Options) -> Found | None:
    """Return the images in a parquet file or folder, or ``None`` if there is no such file.

    A folder's files are told apart by the word train, test or validation in their names; those without one are left
    aside unless there are no others. Where both test and validation are there, test is the test split and validation
    is left aside, unless test has no labels (-1), as competitions publish it.

    Raises:
        ConfigError: a column that is asked for does not exist.
        DataError: there is no column of images or labels, or a file cannot be read.
    """
    files = _files(root)
    if not files:
        return None
    splits = _by_split(files)
    train = splits.get("train") or splits.get("test") or splits.get("validation") or files
    image, label, names = _columns(train[0], options)
    labels = [_labels(path, label) for path in train]
    test: list[Path] = []
    for name in ("test", "validation"):
        candidate = splits.get(name, [])
        given = [_labels(path, label) for path in candidate]
        if candidate and candidate != train and not all(set(part) <= {-1, None} for part in given):
            test, labels = candidate, labels + given
            break
    numbered, names = _numbered([value for part in labels for value in part], names, root, label)
    held_out = np.arange(len(numbered)) >= sum(map(len, labels[: len(train)]))
    chosen = [*train, *test]

    def open_rows(rows: np.ndarray[Any, Any]) -> ParquetImages:
        return _open(root, chosen, image, rows, options)

    return Found(numbered, names, held_out if test else None, open_rows)


def _files(root: Path) -> list[Path]:
    """Return the parquet files of a folder, of its ``data``, or of its only folder that has some."""
    if root.is_file():
        return [root] if root.suffix == ".parquet" else []
    for folder in (root, root / "data"):
        found = sorted(folder.glob("*.parquet"))
        if found:
            return found
    folders = {path.parent for path in root.glob("*/*.parquet")}
    if len(folders) > 1:
        listed = ", ".join(sorted(folder.name for folder in folders))
        raise DataError(f"{root} has parquet files in several folders: {listed}. Give the path of one of them.")
    return sorted(path for folder in folders for path in folder.glob("*.parquet"))


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in files:
        for split, words in SPLITS.items():
            if re.search(rf"(?:^|[-._ 0-9])(?:{words})(?:[-._ 0-9]|$)", path.stem.lower()):
                found.setdefault(split, []).append(path)
                break
    return found


def _columns(path: Path, options: Options) -> tuple[str, str, list[str] | None]:
    """Return the names of the columns of images and of labels, and the names of the classes where they are known.

    The hub's features are read from the JSON in the schema, as ``datasets.Features.from_arrow_schema`` does, whose
    import takes 0.8 s.
    """
    schema = _opened(path).schema_arrow
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features: dict[str, Any] = json.loads(text).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        features = {}
    of_images = [field.name for field in schema if _holds_images(field.type)]
    image = _column("image", options.image_column, schema, of_images, IMAGE_COLUMNS, path)
    if image not in of_images:
        raise DataError(
            f"The column {image!r} of {path} holds {schema.field(image).type}, not encoded images (bytes, or a struct "
            "of bytes and path). Save the data set again with the feature Image of Hugging Face's datasets."
        )
    typed = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    labels = [name for name in (*LABEL_COLUMNS, *typed) if name in schema.names]
    label = _column("label", options.label_column, schema, labels, LABEL_COLUMNS, path)
    names = features.get(label, {}).get("names") if isinstance(features.get(label), dict) else None
    return image, label, [str(name) for name in names] if isinstance(names, list) else None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(
    role: str, asked: str, schema: pa.Schema, fitting: list[str], preferred: tuple[str, ...], path: Path
) -> str:
    if asked:
        if asked not in schema.names:
            next_step = f"Correct {role}_column in [data.options]."
            raise ConfigError(unknown_name(f"The column of {path}", asked, schema.names, next_step))
        return asked
    found = next((name for name in preferred if name in fitting), None) or next(iter(fitting), None)
    if found is None:
        raise DataError(
            f"{path} has no column of {role}s that can be told by its type or name. Its columns: "
            f"{', '.join(schema.names)}. Name the right one with --set data.options.{role}_column=NAME."
        )
    return found


def _labels(path: Path, column: str) -> list[Any]:
    file = _opened(path)
    if column not in file.schema_arrow.names:
        raise DataError(
            f"{path} has no column {column!r}, which other files of the data set have. Its columns: "
            f"{', '.join(file.schema_arrow.names)}. Write the files again with the same columns."
        )
    values: list[Any] = file.read(columns=[column])[column].to_pylist()
    return values


def _numbered(
    values: list[Any], names: list[str] | None, root: Path, column: str
) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """Return labels as numbers from 0, and the names of the classes; without known names, the sorted values."""
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}, {bool}) or (names is not None and kinds != {int}):
        listed = " and ".join(sorted("missing" if kind is type(None) else kind.__name__ for kind in kinds))
        raise DataError(
            f"The label column {column!r} of {root} holds {listed or 'nothing'}; it must hold one whole number or one "
            "text an image. Choose another by --set data.options.label_column=NAME, or leave out unlabelled rows."
        )
    if names is None:
        classes = sorted(set(values))
        number = {value: n for n, value in enumerate(classes)}
        return np.array([number[value] for value in values], dtype=np.int64), tuple(map(str, classes))
    labels = np.array(values, dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise DataError(
            f"{len(wrong)} labels of {root} are not from 0 to {len(names) - 1}, the first is {labels[wrong[0]]}. "
            "Leave out unlabelled rows, or correct the class names."
        )
    return labels, tuple(names)


def _open(root: Path, files: list[Path], column: str, rows: np.ndarray[Any, Any], options: Options) -> ParquetImages:
    """Return the images of some rows: in memory, or from a memory-mapped copy where they are too large for that."""
    counts = [(str(path.name), _opened(path).metadata.num_rows) for path in files]
    total = sum(count for _, count in counts)
    encoded = sum(_encoded_bytes(path, column) for path in files) * len(rows) / max(1, total)
    if encoded <= options.memory_bytes:
        return ParquetImages(_read_rows(files, column, rows), np.arange(len(rows)), rows, counts)
    if not options.cache:
        raise DataError(
            f"The encoded images of {root} have {encoded / 2**30:.1f} GiB, more than memory_limit, and parquet cannot "
            "be read image by image. Name a folder for a copy by --set data.options.cache=FOLDER, raise "
            "data.options.memory_limit (GiB), or give the images as files in folders."
        )
    return ParquetImages(_cached(files, column, options.cache), rows, rows, counts)


def _read_rows(files: list[Path], column: str, rows: np.ndarray[Any, Any]) -> list[pa.Array]:
    """Return some rows of a column; row groups without any are not read."""
    chunks: list[pa.Array] = []
    start = 0
    for path in files:
        file = _opened(path)
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            own = rows[(rows >= start) & (rows < start + length)] - start
            if len(own):
                read = file.read_row_group(group, columns=[column])[column]
                chunks += (read if len(own) == length else read.take(pa.array(own))).chunks
            start += length
    return chunks


def _cached(files: list[Path], column: str, cache: str) -> list[pa.Array]:
    """Return a column from the copy that ``datasets`` makes of it, once, in the user's folder."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        folder = str(Path(cache).expanduser().absolute())
        made = datasets.Dataset.from_parquet([str(path) for path in files], columns=[column], cache_dir=folder)
    finally:
        if shown:
            datasets.enable_progress_bars()
    chunks: list[pa.Array] = made.data.table[column].chunks
    return chunks


def _encoded_bytes(path: Path, column: str) -> int:
    """Return the uncompressed size of a column, from the file's footer."""
    metadata = _opened(path).metadata
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            if chunk.path_in_schema.split(".")[0] == column:
                total += chunk.total_uncompressed_size
    return total


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}. Download or write it again.") from error
