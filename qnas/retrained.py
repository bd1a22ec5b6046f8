"""What a run says of its searched points that were trained again by themselves. Reads files alone: no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qnas.errors import StoreError
from qnas.layers import FLOAT_BITS

ALONE = "alone"
FILE = "retrain.json"
RESULT = "result.json"
_PREFIX = f"{ALONE}/"
_NAME = re.compile(r"[0-9a-f]+-(?:scratch|supernet)-[0-9a-f]{8}")


def is_alone(stage: str | None) -> bool:
    """Tell whether a stage's name is ``alone/FOLDER``, a net trained by itself; names of stages have no slash."""
    return stage is not None and "/" in stage


def alone_folder(run: Path, stage: str) -> Path:
    """Return the folder that ``alone/FOLDER`` names.

    Raises:
        StoreError: it is not of this form, so it might be a folder elsewhere.
    """
    if not stage.startswith(_PREFIX) or not _NAME.fullmatch(stage.removeprefix(_PREFIX)):
        raise StoreError(
            f"{stage!r} names no net of {run} that was trained by itself. Give {_PREFIX} and the name of a folder "
            f"there, such as {_PREFIX}0123456789abcdef-scratch-01234567, or the name of a training stage."
        )
    return run / stage


def read_retrained(run: Path) -> dict[str, Any]:
    """Return the nets that a run trained again for deployment; nothing where that is not finished.

    Returns:
        ``nets``, a result each (see :func:`qnas.alone.train_alone`) with ``search`` and ``searched_key``, the point
        that it comes from, and ``bits``, the bit-width of all its layers (``None``: the point's own; then with
        ``before``: the point's ``metrics`` and ``standard_error`` with the supernet's weights, and the ``difference``
        on the test split); ``hypervolume``, the box of the run's space by metric.

    Raises:
        StoreError: a file is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        nets = []
        for net in found["nets"]:
            folder = alone_folder(run, f"{_PREFIX}{net['id']}")
            nets.append({**json.loads((folder / RESULT).read_text(encoding="utf-8")), **net})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} does not fit the nets in {run / ALONE}: {error!r}. Make it anew by `qnas run --resume {run}`."
        ) from error
    return {**found, "nets": nets}


def bits_said(sample: Mapping[str, Any]) -> str:
    """Return a subnet's bit-widths in words: ``4``, or ``w 2-4, a 3`` where they differ."""
    said = {}
    for role in ("w", "a"):
        bits = sorted({int(v) for label, v in sample.items() if label.rpartition(".")[2] == f"{role}_bits"})
        if bits:
            ends = [str(b) if b < FLOAT_BITS else "float" for b in dict.fromkeys((bits[0], bits[-1]))]
            said[role] = "-".join(ends)
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{role} {text}" for role, text in said.items())
